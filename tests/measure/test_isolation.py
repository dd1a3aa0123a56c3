from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.errors import CompressError, RuntimeAbsent
from compress.measure.isolation import measure_isolated
from compress.network.inputs import InputSpec, image_input
from compress.runtime.torch_runner import TorchOptions
from compress.target import Target

INPUTS = image_input((64, 64))
TORCH = Target("torch", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isolation") / "model.pt"
    save(create("default", {}, seed=0, trained=False), path)
    return path


@pytest.mark.slow
def test_memory_of_the_calling_process_is_not_counted(model: Path) -> None:
    ballast = np.ones(400 * 2**20, dtype=np.uint8)
    found = measure_isolated(model, INPUTS, TORCH, threads=1)
    more = measure_isolated(model, (InputSpec((8, 3, 512, 512)),), TORCH, threads=1, runs=1)
    assert ballast[-1] == 1
    assert 0 < found.model_mb < 400, "memory of the calling process was counted"
    assert found.peak_mb > found.model_mb
    assert more.model_mb > found.model_mb + 8 * 3 * 512 * 512 * 4 / 2**20
    assert found.first_ms > 0
    assert found.open_ms > 0
    assert found.gpu_mb is None


@pytest.mark.slow
def test_a_refusal_in_the_model_process_is_raised_here(model: Path) -> None:
    with pytest.raises(RuntimeAbsent, match="CUDA graphs need a CUDA device"):
        measure_isolated(model, INPUTS, TORCH, torch_options=TorchOptions(graphs=True))


@pytest.mark.parametrize("code", [-9, 1])
def test_a_process_that_dies_is_reported(code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def died(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, "", "Traceback\nMemoryError\n")

    monkeypatch.setattr(subprocess, "run", died)
    with pytest.raises(CompressError, match=rf"ended with exit code {code} \(MemoryError\)"):
        measure_isolated(tmp_path / "model.pt", INPUTS, TORCH)


def test_the_process_does_not_import_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the names of imported modules, in the current folder, are never run."""
    for name in ("json.py", "numpy.py", "torch.py", "compress.py"):
        (tmp_path / name).write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompressError, match="does not exist"):
        measure_isolated(tmp_path / "missing.pt", INPUTS, TORCH)
    assert not list(tmp_path.glob("*.ran"))
