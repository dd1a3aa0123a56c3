"""INT8: which layers are quantised, which stay in FP32, and which are sensitive."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.errors import RuntimeAbsent, UsageError
from compress.exporters.ir_layers import first_layers, has_gates, head_layers, is_quantised, layer_labels, layers_of
from compress.exporters.quantise import layer_errors, quantise
from compress.exporters.to_openvino import write_ir
from compress.pose.spec import PoseSpec
from compress.runtime.opening import open_runner
from compress.runtime.openvino_runner import shared_core

Maps = NDArray[np.float32]

IMAGES = [np.random.default_rng(seed).normal(0, 1, (1, 3, 64, 80)).astype(np.float32) for seed in range(3)]


@pytest.fixture(scope="module")
def stub_ir(stub_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ir") / "stub.xml"
    write_ir(stub_onnx, path)
    return path


def read(path: Path) -> Any:

    return shared_core().read_model(path)


def run(model: Any, image: Maps) -> dict[str, Maps]:

    compiled = shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([image])
    return {port.get_any_name(): np.array(found[port]) for port in compiled.outputs}


def convolution(source: Any, channels: int, name: str, *, seed: int = 0, size: int = 1, planted: float = 0.0) -> Any:
    from openvino import opset8

    inputs = source.get_output_partial_shape(0)[1].get_length()
    weights = np.random.default_rng(seed).normal(0, 0.3, (channels, inputs, size, size)).astype(np.float32)
    weights[:, 0, 0, 0] += planted
    pads = [size // 2] * 2
    node = opset8.convolution(source, opset8.constant(weights), [1, 1], pads, pads, [1, 1])
    node.set_friendly_name(name)
    node.input_value(1).get_node().set_friendly_name(f"module.{name}.weight")
    return node


def two_stages(*, planted: float = 0.0, beside: bool = False) -> Any:
    """Features, maps of three channels, and maps of three channels again from both; a square root of nothing beside."""
    import openvino
    from openvino import opset8

    image = opset8.parameter([-1, 3, -1, -1], np.float32, name="images")
    features = opset8.relu(convolution(image, 4, "features", size=3))
    narrow = convolution(features, 3, "narrow", seed=1)
    wide = opset8.relu(convolution(narrow, 6, "wide", seed=2))
    early = opset8.add(convolution(wide, 3, "early", seed=3), np.ones((1, 3, 1, 1), np.float32))
    if planted:
        # The large weights meet nothing, but the steps of the others grow with them.
        early = opset8.multiply(early, np.array([0, 1, 1], np.float32).reshape(1, 3, 1, 1))
    joined = opset8.concat([early, features], 1)
    middle = opset8.relu(convolution(joined, 8, "middle", seed=4, planted=planted))
    late = convolution(middle, 3, "late", seed=5)
    late.output(0).set_names({"maps"})
    outputs = [opset8.result(late)]
    if beside:
        other = convolution(late, 2, "other", seed=6)
        other.output(0).set_names({"beside"})
        outputs.append(opset8.result(other))
    return openvino.Model(outputs, [image], "two-stages")


def states(model: Any) -> dict[str, bool]:
    labels = layer_labels(model)
    return {labels[op.get_friendly_name()]: is_quantised(op) for op in layers_of(model)}


def test_layers_bear_the_networks_own_names(stub_ir: Path) -> None:
    labels = layer_labels(read(stub_ir))
    # The first stage's heads are in no file: nothing final comes of them.
    assert sorted(labels.values()) == ["body.0", "body.2", "deep", "fields.1", "heat.1", "stem.0"]


def test_first_layers_and_heads_of_the_stub(stub_ir: Path) -> None:
    model = read(stub_ir)
    labels = layer_labels(model)
    assert [labels[name] for name in first_layers(model)] == ["stem.0"]
    assert {labels[name] for name in head_layers(model)} == {"heat.1", "fields.1"}


def test_heads_of_earlier_stages_are_heads_and_other_layers_of_so_many_channels_are_not() -> None:
    model = two_stages(beside=True)
    assert first_layers(model, ["maps"]) == ("features",)
    assert head_layers(model, ["maps"]) == ("early", "late")


def test_all_layers_are_quantised_and_the_model_stays_as_it_was(stub_ir: Path) -> None:
    model = read(stub_ir)
    before = run(model, IMAGES[0])
    quantised = quantise(model, IMAGES)
    assert set(states(quantised).values()) == {True}
    assert set(states(model).values()) == {False}
    for name, maps in run(model, IMAGES[0]).items():
        np.testing.assert_array_equal(maps, before[name])
    after = run(quantised, IMAGES[0])
    for name, maps in before.items():
        error = np.linalg.norm(after[name] - maps) / np.linalg.norm(maps)
        assert 0 < error < 0.05


@pytest.mark.parametrize("kept", [["stem.0"], ["heat.1", "fields.1"]])
def test_layers_to_keep_stay_in_floating_point_and_no_others(stub_ir: Path, kept: list[str]) -> None:
    model = read(stub_ir)
    names = [name for name, label in layer_labels(model).items() if label in kept]
    found = states(quantise(model, IMAGES, keep=names))
    assert sorted(label for label, small in found.items() if not small) == sorted(kept)


def test_what_only_other_outputs_need_stays_in_floating_point() -> None:
    model = two_stages(beside=True)
    assert "other" not in [op.get_friendly_name() for op in layers_of(model, ["maps"])]
    found = states(quantise(model, IMAGES, outputs=["maps"]))
    assert [label for label, small in found.items() if not small] == ["other"]


def test_gates_are_products_of_what_is_computed() -> None:
    import openvino
    from openvino import opset8

    assert not has_gates(two_stages())
    # Planted, its maps are multiplied with constants.
    assert not has_gates(two_stages(planted=60.0))
    image = opset8.parameter([-1, 3, -1, -1], np.float32, name="images")
    maps = convolution(image, 4, "maps")
    by_size = opset8.multiply(maps, opset8.convert(opset8.shape_of(maps), "f32"))
    assert not has_gates(openvino.Model([opset8.result(by_size)], [image], "by-size"))
    gated = opset8.multiply(maps, opset8.sigmoid(convolution(maps, 1, "gate")))
    assert has_gates(openvino.Model([opset8.result(gated)], [image], "gated"))


@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_below_zero_are_as_asked_for(symmetric: bool) -> None:
    import openvino
    from openvino import opset8

    image = opset8.parameter([-1, 3, -1, -1], np.float32, name="images")
    lopsided = opset8.elu(convolution(image, 4, "first", size=3), 0.1)
    maps = convolution(lopsided, 3, "second", seed=1)
    maps.output(0).set_names({"maps"})
    model = openvino.Model([opset8.result(maps)], [image], "lopsided")
    quantised = quantise(model, IMAGES, symmetric=symmetric)
    second = next(op for op in quantised.get_ops() if op.get_friendly_name().startswith("second"))
    steps = second.input_value(0).get_node()
    assert steps.get_type_name() == "FakeQuantize"
    low, high = (float(steps.input_value(port).get_node().get_data().ravel()[0]) for port in (1, 2))
    assert low < 0 < high
    assert (-low > 0.9 * high) == symmetric
    before, after = run(model, IMAGES[0])["maps"], run(quantised, IMAGES[0])["maps"]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_a_written_file_runs_as_int8_on_any_size_and_keeps_its_metadata(
    stub_ir: Path, pose: PoseSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import openvino

    quantised = quantise(read(stub_ir), IMAGES)
    assert capsys.readouterr().out == ""
    openvino.save_model(quantised, tmp_path / "int8.xml", compress_to_fp16=False)
    whole, runner = open_runner(stub_ir, threads=1), open_runner(tmp_path / "int8.xml", threads=1)
    assert (whole.precision, runner.precision) == ("fp32", "int8")
    assert runner.pose == pose
    assert json.loads(read(tmp_path / "int8.xml").get_rt_info(["compress", "network"]).astype(str))["name"] == "stub"
    for shape in ((1, 3, 64, 96), (2, 3, 40, 104)):
        images = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
        for name, maps in whole.run(images).items():
            given = runner.run(images)[name]
            assert given.shape == maps.shape
            assert np.linalg.norm(given - maps) < 0.1 * np.linalg.norm(maps)


def test_the_layer_whose_weights_round_worst_is_found() -> None:
    errors = layer_errors(two_stages(planted=60.0), IMAGES, outputs=["maps"])
    assert list(errors) == ["features", "narrow", "wide", "early", "middle", "late"]
    assert max(errors, key=lambda name: errors[name]) == "middle"
    even = layer_errors(two_stages(), IMAGES, outputs=["maps"])
    assert errors["middle"] > 10 * even["middle"]
    assert all(0 < error < 0.01 for error in even.values())


def test_ranking_leaves_the_model_as_it_was_and_counts_its_layers() -> None:
    model = two_stages()
    before, done = run(model, IMAGES[0])["maps"], []
    layer_errors(model, IMAGES[:1], progress=done.append)
    assert done == [1] * 6
    assert [port.get_any_name() for port in model.outputs] == ["maps"]
    np.testing.assert_array_equal(run(model, IMAGES[0])["maps"], before)


def test_a_layer_of_zeros_is_quantised_without_harm() -> None:
    from openvino import opset8

    model = two_stages()
    weights = next(op for op in model.get_ops() if op.get_friendly_name() == "module.wide.weight")
    weights.output(0).replace(opset8.constant(np.zeros((6, 3, 1, 1), np.float32)).output(0))
    assert layer_errors(model, IMAGES[:1])["wide"] == 0


def test_without_images_there_is_nothing_to_calibrate_with(stub_ir: Path) -> None:
    with pytest.raises(UsageError, match="images to calibrate with"):
        quantise(read(stub_ir), [])


def test_where_nncf_is_absent_that_is_said(stub_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(RuntimeAbsent, match=r"pip install 'pose-compress\[int8\]'"):
        quantise(read(stub_ir), IMAGES)
