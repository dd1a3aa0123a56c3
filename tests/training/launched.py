"""Training runs in several processes: ``python -m torch.distributed.run ... launched.py FOLDER``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stickmen import Stickmen, TinyPose, train_network
from torch import nn

from compress.data.augment import PLAIN
from compress.errors import CompressError, DataError
from compress.pose.spec import PoseSpec
from compress.training.distil import DistilWeights
from compress.training.loop import StateFile
from compress.training.options import FineTuneOptions
from compress.training.processes import ProcessGroup, join

OPTIONS = FineTuneOptions(
    steps=12, batch_size=8, size=(64, 64), learning_rate=3e-3, workers=0, amp="off", augmentation=PLAIN,
    checkpoint_every=4, evaluate_every=6, recalibrate_norms=2, ema=0.9, distil=DistilWeights(1.0, 1.0),
)  # fmt: skip


class Stopped(Exception):
    """Interrupts a run."""


def network(seed: int = 0) -> nn.Module:
    """The test network without dropout, which draws different numbers in each process."""
    torch.manual_seed(seed)
    module = TinyPose()
    module.refine[2].p = 0.0
    return module


def closeness(module: nn.Module) -> float:
    """A score that grows as weights and statistics approach 0."""
    return -float(sum(value.float().abs().sum() for value in module.state_dict().values()))


def tune(group: ProcessGroup, options: FineTuneOptions = OPTIONS, **more: Any) -> list[float]:
    """Losses and scores of a run."""
    done = train_network(
        network(), Stickmen(), options, pose=PoseSpec(), teacher=network(1), group=group,
        **({"score": closeness} | more),
    )  # fmt: skip
    return [*(entry.loss for entry in done.log), *(score for _, score in done.scores)]


def stop_at_second_score(path: Path, group: ProcessGroup) -> None:
    """Interrupt a run at step 6, which leaves the state of step 4."""
    left = [2]

    def evaluate(module: nn.Module) -> float:
        left[0] -= 1
        if not left[0]:
            raise Stopped
        return closeness(module)

    try:
        tune(group, score=evaluate, state=StateFile(path))
    except Stopped:
        return
    raise RuntimeError("the run was not stopped")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    group = join("cpu")
    result: dict[str, Any] = {"number": group.number, "count": group.count}
    result["straight"] = tune(group)
    result["pieces"] = tune(group, replace(OPTIONS, accumulate=2, freeze_statistics=True, recalibrate_norms=0))
    result["resumed"] = tune(group, state=StateFile(folder / "of_one.state", resume=True))
    stop_at_second_score(folder / "of_two.state", group)
    result["gathered"] = group.gather(group.number)
    result["main"] = group.from_main(lambda: group.number)
    try:
        group.from_main(lambda: _refuse())
    except DataError as error:
        result["error"] = str(error)
    try:
        tune(group, replace(OPTIONS, batch_size=9))
    except CompressError as error:
        result["uneven"] = str(error)
    (folder / f"result{group.number}.json").write_text(json.dumps(result))
    group.wait()


def _refuse() -> None:
    raise DataError("nothing here", found="folder")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
