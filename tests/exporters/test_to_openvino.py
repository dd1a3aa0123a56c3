from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import FileError, UsageError
from compress.exporters.to_onnx import read_metadata
from compress.exporters.to_openvino import atomic_pair, export_openvino
from compress.pose.spec import PoseSpec
from compress.runtime.openvino_runner import shared_core

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    compiled = shared_core().compile_model(path, "CPU", EXACT)
    found = compiled([images])
    return {output.get_any_name(): found[output] for output in compiled.outputs}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3)])
@pytest.mark.parametrize("size", [(1, 16, 24), (2, 200, 88)])
def test_same_maps_at_any_size(
    stub: nn.Module, stub_onnx: Path, tmp_path: Path, precision: str, tolerance: float, size: tuple[int, int, int]
) -> None:
    path = tmp_path / "stub.xml"
    assert export_openvino(stub_onnx, path, precision=precision) == (path, tmp_path / "stub.bin")
    images = torch.rand(size[0], 3, *size[1:]) - 0.5
    with torch.no_grad():
        wanted = stub.eval()(images)[-1]
    found = run(path, images.numpy())
    assert list(found) == ["heatmaps", "pafs"]
    for name, maps in found.items():
        torch.testing.assert_close(torch.from_numpy(maps), wanted[name], rtol=0, atol=tolerance)


def test_metadata_comes_along(stub_onnx: Path, tmp_path: Path, pose: PoseSpec) -> None:
    path, _ = export_openvino(stub_onnx, tmp_path / "stub.xml")
    model = shared_core().read_model(path)
    assert PoseSpec.from_dict(json.loads(model.get_rt_info(["compress", "pose"]).value)) == pose
    for key, value in read_metadata(stub_onnx).items():
        assert model.get_rt_info(["compress", key]).value == value


def test_half_precision_halves_the_weights_and_constants_are_folded(stub_onnx: Path, tmp_path: Path) -> None:
    sizes = []
    for precision in ("fp32", "fp16"):
        _, weights = export_openvino(stub_onnx, tmp_path / f"{precision}.xml", precision=precision)
        sizes.append(weights.stat().st_size)
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    kinds = [op.get_type_name() for op in shared_core().read_model(tmp_path / "fp32.xml").get_ops()]
    before = [op.get_type_name() for op in shared_core().read_model(stub_onnx).get_ops()]
    # Biases come from ONNX with operations that work out their shape; folded, only those of the resize are left.
    assert kinds.count("ShapeOf") <= 3 < before.count("ShapeOf")


@pytest.mark.parametrize("existing", ["m.xml", "m.bin"])
def test_existing_files_are_kept_unless_forced(stub_onnx: Path, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(FileError, match="exists"):
        export_openvino(stub_onnx, tmp_path / "m.xml")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(existing, "mine")]
    export_openvino(stub_onnx, tmp_path / "m.xml", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    assert run(tmp_path / "m.xml", np.zeros((1, 3, 16, 16), np.float32))["pafs"].shape == (1, 38, 2, 2)


def test_an_error_leaves_the_old_pair_and_nothing_else(tmp_path: Path) -> None:
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text("old")

    def stop_half_way() -> None:
        with atomic_pair(tmp_path / "m.xml") as temporary:
            temporary.write_text("new")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        stop_half_way()
    assert sorted((p.name, p.read_text()) for p in tmp_path.iterdir()) == [("m.bin", "old"), ("m.xml", "old")]


def test_a_reader_never_finds_halves_of_two_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text("old")
    seen = []

    def look() -> None:
        seen.append({p.suffix: p.read_text() for p in tmp_path.glob("m.*")})

    for name in ("replace", "unlink"):
        original = getattr(Path, name)

        def spy(self: Path, *args: object, original: object = original, **kwargs: object) -> object:
            result = original(self, *args, **kwargs)  # type: ignore[operator]
            look()
            return result

        monkeypatch.setattr(Path, name, spy)
    with atomic_pair(tmp_path / "m.xml") as temporary:
        temporary.write_text("new")
        temporary.with_suffix(".bin").write_text("new")
    assert len(seen) >= 3
    for state in seen:
        assert ".xml" not in state or state == {".xml": "new", ".bin": "new"}
    assert seen[-1] == {".xml": "new", ".bin": "new"}


def test_files_are_as_readable_as_any_other(stub_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for path in export_openvino(stub_onnx, tmp_path / "deep" / "folder" / "m.xml"):
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(("name", "precision"), [("m.bin", "fp32"), ("m", "fp32"), ("m.xml", "int3")])
def test_wrong_names_and_precisions_are_refused(stub_onnx: Path, tmp_path: Path, name: str, precision: str) -> None:
    with pytest.raises(UsageError):
        export_openvino(stub_onnx, tmp_path / name, precision=precision)
    assert not list(tmp_path.iterdir())


def test_nothing_is_reported_to_anybody(stub_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino_telemetry

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("telemetry was started")

    monkeypatch.setattr(openvino_telemetry.Telemetry, "init", forbidden)
    assert export_openvino(stub_onnx, tmp_path / "m.xml")[0].is_file()
