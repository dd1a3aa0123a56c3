"""A killed run resumes as if it had not been interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import launched
import pytest
import torch

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.commands.finetune import FinetuneOptions, run
from compress.errors import FileError
from compress.progress import Silent
from compress.training.log import log_path, read_log, steps_of
from compress.training.loop import StateFile
from compress.training.processes import ProcessGroup

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


@pytest.mark.slow
def test_a_process_killed_while_writing_its_state_resumes_from_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "run.state"
    done = subprocess.run(
        [sys.executable, str(HERE / "killed.py"), str(path), "2"], env=ENVIRONMENT, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2, "the state of step 4 and half of that of step 8"
    assert torch.load(path, weights_only=True)["step"] == 4
    alone = ProcessGroup(torch.device("cpu"))
    assert launched.tune(alone, state=StateFile(path, resume=True)) == launched.tune(alone)


@pytest.mark.slow
def test_a_command_killed_at_any_moment_resumes_with_the_same_curve(tmp_path: Path) -> None:
    save(create("default"), tmp_path / "model.pt")
    settings: dict[str, Any] = {
        "model": tmp_path / "model.pt", "data": "synthetic:7:6", "steps": 14, "batch_size": 2, "size": (64, 64),
        "workers": 0, "ema": 0.9, "checkpoint_every": 2,
    }  # fmt: skip
    words = ["--data", "synthetic:7:6", "--steps", "14", "--batch-size", "2", "--size", "64x64", "--workers", "0"]
    words += ["--ema", "0.9", "--checkpoint-every", "2", "--seed", "0", "-o", "tuned.pt"]
    output = tmp_path / "tuned.pt"
    moment = random.randrange(3, 12)
    child = subprocess.Popen(
        [sys.executable, "-m", "compress", "finetune", "model.pt", *words],
        cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    try:
        while child.poll() is None and time.monotonic() < deadline:
            if log_path(output).exists() and len(log_path(output).read_bytes().splitlines()) >= moment:
                break
            time.sleep(0.002)
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL, "it was killed before its end"
    assert not output.exists()
    (tmp_path / ".tuned.half.state").write_bytes(b"left by an earlier kill")

    resumed = run(FinetuneOptions(output=output, resume=True, **settings), Silent()).record
    straight = run(FinetuneOptions(output=tmp_path / "straight.pt", **settings), Silent()).record
    assert resumed["loss"] == straight["loss"]
    curves = [steps_of(read_log(log_path(tmp_path / name))) for name in ("tuned.pt", "straight.pt")]
    assert [(x["step"], x["loss"], x["parts"], x["learning_rate"]) for x in curves[0]] == [
        (x["step"], x["loss"], x["parts"], x["learning_rate"]) for x in curves[1]
    ]
    ours, theirs = (load(tmp_path / name).module.state_dict() for name in ("tuned.pt", "straight.pt"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sorted(path.name for path in tmp_path.iterdir() if "state" in path.name) == []
    # No state is left to resume from, and a finished run is not repeated.
    with pytest.raises(FileError, match="already exists"):
        run(FinetuneOptions(output=output, resume=True, **settings), Silent())
