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
from compress.runtime.torch_runner import TorchOptions

SHAPE = (1, 3, 64, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isolation") / "model.pt"
    save(create("default", {}, seed=0, trained=False), path)
    return path


@pytest.mark.slow
def test_a_model_alone_holds_little_whatever_the_process_that_asks_holds(model: Path) -> None:
    ballast = np.ones(400 * 2**20, dtype=np.uint8)
    found = measure_isolated(model, SHAPE, threads=1)
    more = measure_isolated(model, (8, 3, 512, 512), threads=1, runs=1)
    assert ballast[-1] == 1
    assert 0 < found.model_mb < 400, "memory of the asking process was counted"
    assert found.peak_mb > found.model_mb
    assert more.model_mb > found.model_mb + 8 * 3 * 512 * 512 * 4 / 2**20
    assert found.first_ms > 0
    assert found.open_ms > 0
    assert found.gpu_mb is None


@pytest.mark.slow
def test_what_the_model_s_process_refuses_is_refused_here(model: Path) -> None:
    with pytest.raises(RuntimeAbsent, match="CUDA graphs need a CUDA device"):
        measure_isolated(model, SHAPE, torch_options=TorchOptions(graphs=True))


@pytest.mark.parametrize("code", [-9, 1])
def test_a_process_that_dies_is_told(code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def died(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, "", "Traceback\nMemoryError\n")

    monkeypatch.setattr(subprocess, "run", died)
    with pytest.raises(CompressError, match=rf"ended with {code} \(MemoryError\)"):
        measure_isolated(tmp_path / "model.pt", SHAPE)
