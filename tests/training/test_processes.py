"""Several processes train one network as one process would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import launched
import pytest
import torch
from click.testing import CliRunner

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.cli import cli
from compress.commands.finetune import FinetuneOptions, run
from compress.errors import RuntimeAbsent, UsageError
from compress.progress import Silent
from compress.training.batches import Span, Steps
from compress.training.log import log_path, read_log, steps_of
from compress.training.loop import StateFile
from compress.training.norms import synchronise_norms
from compress.training.processes import ProcessGroup, join

HERE = Path(__file__).parent


def launch(*words: object, cwd: Path) -> str:
    """Run a command in two processes; its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), cwd=cwd, env=environment, start_new_session=True, **pipes) as child:
        try:
            printed, complaints = child.communicate(timeout=300)
        finally:
            # Killing the launcher alone would leave its children running.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 0, complaints[-3000:]
    return printed


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("pieces", [1, 2])
def test_processes_share_the_batches_of_a_single_process(count: int, pieces: int) -> None:
    def keys(**share: Any) -> list[list[tuple[int, int]]]:
        return list(Steps(7, Span(12, 2, 5, **share), seed=4))

    shares = [keys(pieces=pieces, share=(number, count)) for number in range(count)]
    assert {len(share) for share in shares} == {3 * pieces}
    assert all(len(piece) == 12 // (count * pieces) for share in shares for piece in share)
    together = [
        [key for share in shares for piece in share[step * pieces : (step + 1) * pieces] for key in piece]
        for step in range(3)
    ]
    assert together == keys()


def test_a_single_process_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = join("cpu")
    assert (alone.is_main, alone.count, alone.gather("x"), alone.from_main(lambda: 3)) == (True, 1, ["x"], 3)
    assert torch.equal(alone.mean(torch.ones(2)), torch.ones(2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RuntimeAbsent, match=r"accelerate is not installed.*pose-compress\[scale\]"):
        join("cpu")


def test_a_recipe_refuses_to_run_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(cli, ["run", str(tmp_path / "any.toml")])
    assert isinstance(done.exception, UsageError)
    assert "a recipe runs in one process (found: 'WORLD_SIZE=2')" in str(done.exception)


def test_synchronised_normalisation_equals_the_plain_one_in_eval_mode() -> None:
    network, shared = launched.network().eval(), launched.network()
    synchronise_norms(shared)
    shared.eval()
    images = torch.randn(2, 3, 64, 64)
    assert shared.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(shared(images)[-1]["pafs"], network(images)[-1]["pafs"])


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    alone = ProcessGroup(torch.device("cpu"))
    straight = launched.tune(alone)
    pieces = launched.tune(alone, replace(launched.OPTIONS, freeze_statistics=True, recalibrate_norms=0))
    launched.stop_at_second_score(tmp_path / "of_one.state", alone)
    launch(HERE / "launched.py", tmp_path, cwd=tmp_path)
    results = [json.loads((tmp_path / f"result{number}.json").read_text()) for number in (0, 1)]
    assert [(result.pop("number"), result["count"]) for result in results] == [(0, 2), (1, 2)]
    assert results[0] == results[1]
    # Sums are taken in another order, which training amplifies.
    assert results[0]["straight"] == pytest.approx(straight, rel=1e-3)
    assert results[0]["pieces"] == pytest.approx(pieces, rel=1e-3)
    assert results[0]["resumed"] == pytest.approx(straight, rel=1e-3)
    assert results[0]["gathered"] == [0, 1]
    assert results[0]["main"] == 0
    assert results[0]["error"] == "nothing here (found: 'folder')"
    assert "2 processes x accumulate 1" in results[0]["uneven"]
    # The state of two processes, resumed by one.
    state = torch.load(tmp_path / "of_two.state", weights_only=True)
    assert state["step"] == 4
    assert len(state["random"]) == 2
    resumed = launched.tune(alone, state=StateFile(tmp_path / "of_two.state", resume=True))
    assert resumed == pytest.approx(straight, rel=1e-3)


@pytest.mark.slow
def test_the_command_gives_the_same_result_with_two_processes(tmp_path: Path) -> None:
    save(create("default"), tmp_path / "model.pt")
    settings: dict[str, Any] = {
        "model": tmp_path / "model.pt", "data": "synthetic:7:8", "validation": "synthetic:1000:3", "steps": 3,
        "batch_size": 4, "size": (64, 64), "workers": 0, "height": 128,
    }  # fmt: skip
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    record = run(FinetuneOptions(output=one, **settings), Silent()).record
    words = ["-m", "compress", "finetune", "model.pt", "--data", "synthetic:7:8", "--validation", "synthetic:1000:3"]
    words += ["--steps", "3", "--batch-size", "4", "--size", "64x64", "--workers", "0", "--height", "128"]
    printed = launch(*words, "-o", "two.pt", "--json", cwd=tmp_path)
    # Only the main process prints.
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    printed_record = json.loads(line)
    assert printed_record["processes"] == 2
    assert printed_record["scores"][0] == record["scores"][0]
    assert record["scores"][0][1] > 0.01
    assert printed_record["scores"][-1][1] == pytest.approx(record["scores"][-1][1], abs=0.02)
    losses = [[step["loss"] for step in steps_of(read_log(log_path(path)))] for path in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    ours, theirs = (load(path).module for path in (one, two))
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=5e-3), name
    left = sorted(path.name for path in tmp_path.iterdir() if path.stem.startswith("two"))
    assert left == ["two.curve.png", "two.log.jsonl", "two.pt"]
