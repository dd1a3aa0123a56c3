from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compress.errors import CheckpointError, NetworkError, RuntimeAbsent, UsageError
from compress.exporters.to_onnx import export_onnx
from compress.forms.registry import FORMS
from compress.measure import layer_latency
from compress.measure.latency_cache import cache_file, cache_folder, load_measured, settings_key
from compress.measure.latency_table import ORIGINAL, Curve, LatencyTable
from compress.measure.layer_latency import VariantTimingOptions, measure_variants, spread_variants
from compress.measure.on_target import open_on_target
from compress.measure.recording_runners import OpenVinoRecorder, Stopwatch
from compress.measure.timing_graph import Settings, TimingGraph
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.inputs import image_input
from compress.network.layers import list_layers
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.runtime.onnx_runner import OnnxRunner
from compress.surgery.substitute import factorize_in_place
from compress.target import Target

SIZE = (32, 40)
POSE = PoseSpec()
TARGETS = (
    Target("torch", "cpu"), Target("onnxruntime", "cpu"), Target("openvino", "cpu"),
    Target("openvino", "cpu", int8=True),
)  # fmt: skip
SETTINGS: dict[str, Settings] = {
    "narrow": {"body.0": ("tucker2", (8, 4)), "body.3": ("tucker1_in", (4,)), "point": ("svd", (8,))},
    "wide": {"body.0": ("tucker2", (16, 16)), "body.3": ("spatial_vh", (8,))},
}


class Tiny(nn.Module):
    """Strides, dilation, a layer called twice, a batch normalisation, a 1x1 and a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 8, 1), nn.ReLU())
        body = [nn.Conv2d(24, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 2, 2)]
        self.body = nn.Sequential(*body)
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.point = nn.Conv2d(24, 24, 1)
        self.heat, self.pafs = nn.Conv2d(24, 19, 1), nn.Conv2d(24, 38, 1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        x = self.body(self.stem(images)).relu()
        x = self.point(self.point(self.depthwise(x)).relu())
        return [{"heatmaps": self.heat(x), "pafs": self.pafs(x)}]


def model_of(network: nn.Module) -> Model:
    return Model(network, NetworkSpec("tests:Tiny"), image_input(SIZE), pose=POSE)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture(scope="module", params=TARGETS, ids=str)
def table(request: pytest.FixtureRequest, network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    folder = tmp_path_factory.mktemp("cache")
    return measure(network, SETTINGS, target=request.param, cache=folder)


def measure(network: nn.Module, variants: dict[str, Settings], **options: Any) -> LatencyTable:
    values: dict[str, Any] = {"threads": 1, "rounds": 4, "align": 4, **options}
    target, progress = values.pop("target", TARGETS[0]), values.pop("progress", None)
    return measure_variants(
        model_of(network), target, variants, options=VariantTimingOptions(**values), progress=progress
    )


def test_times_of_all_layers_and_the_rest_add_up_to_the_whole(table: LatencyTable, network: nn.Module) -> None:
    assert set(table.layers_ms) == {layer.name for layer in list_layers(network, SIZE)}
    assert min(table.layers_ms.values()) >= 0
    assert sum(table.layers_ms.values()) + table.rest_ms == pytest.approx(table.original_ms)
    assert table.total_ms({}) == pytest.approx(table.original_ms)
    assert table.whole_ms[ORIGINAL] == table.original_ms


def test_each_form_has_a_time_for_each_step(table: LatencyTable) -> None:
    for settings in SETTINGS.values():
        for name, (method, ranks) in settings.items():
            assert len(table.curves[name, method]) == len(ranks) + 1
            assert table.latency_ms(name, method, ranks) >= 0
    expected = table.original_ms - table.layers_ms["point"] + table.latency_ms("point", "svd", (8,))
    assert table.total_ms({"point": ("svd", (8,))}) == pytest.approx(expected)


def test_more_ranks_never_take_less_time_and_ranks_within_a_vector_cost_the_same(table: LatencyTable) -> None:
    times = [table.latency_ms("body.0", "tucker2", (rank, rank)) for rank in range(1, 25)]
    assert times == sorted(times)
    assert times[4] == times[5] == times[7]


def test_a_form_that_was_not_timed_is_refused(table: LatencyTable) -> None:
    with pytest.raises(UsageError, match="not timed"):
        table.latency_ms("body.0", "tucker1_out", (4,))


def test_nothing_is_measured_twice(network: nn.Module, tmp_path: Path) -> None:
    rounds: list[int] = []

    def count(done: int, most: int) -> None:
        rounds.append(done)

    first = measure(network, SETTINGS, cache=tmp_path, progress=count)
    assert rounds == [1, 2, 3, 4]
    again = measure(network, SETTINGS, cache=tmp_path, progress=count)
    assert len(rounds) == 4
    assert again.whole_ms == first.whole_ms
    assert again.layers_ms == first.layers_ms
    measure(network, {**SETTINGS, "new": {"point": ("svd", (4,))}}, cache=tmp_path, progress=count)
    assert len(rounds) == 8
    measure(network, SETTINGS, cache=tmp_path, threads=2, progress=count)
    assert len(rounds) == 12


def test_measuring_again_keeps_all_other_measurements(network: nn.Module, tmp_path: Path) -> None:
    measure(network, SETTINGS, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    before = load_measured(path)
    measure(network, {"narrow": SETTINGS["narrow"]}, cache=tmp_path, fresh=True)
    after = load_measured(path)
    assert after.keys() == before.keys()
    assert after[settings_key(SETTINGS["wide"])] == before[settings_key(SETTINGS["wide"])]
    assert after[settings_key(SETTINGS["narrow"])] != before[settings_key(SETTINGS["narrow"])]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"variants": {"a": {"whole_ms": -1}}}', "\x00\xff", '{"variants": 3}']
)
def test_a_damaged_cache_counts_as_none_and_is_replaced(network: nn.Module, tmp_path: Path, content: str) -> None:
    path = cache_file(tmp_path, list_layers(network, SIZE), SIZE, TARGETS[0], 1)
    path.write_text(content)
    assert load_measured(path) == {}
    measure(network, {"one": SETTINGS["wide"]}, cache=tmp_path, rounds=1)
    assert settings_key(SETTINGS["wide"]) in load_measured(path)


def test_a_cache_that_cannot_be_written_is_ignored(network: nn.Module, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    assert measure(network, {}, cache=blocked, rounds=1).original_ms > 0


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("COMPRESS_CACHE", raising=False)
    assert cache_folder() == tmp_path / "compress"
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_files_of_other_settings_have_other_names(network: nn.Module, tmp_path: Path) -> None:
    layers = list_layers(network, SIZE)
    names = {
        cache_file(tmp_path, found, size, target, threads)
        for found in (layers, layers[:-1])
        for size in (SIZE, (64, 40))
        for target in TARGETS
        for threads in (None, 1)
    }
    assert len(names) == 32
    assert {path.parent for path in names} == {tmp_path}


def test_large_networks_are_measured_in_groups(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_latency, "HELD_BYTES", 1)
    rounds: list[tuple[int, int]] = []
    table = measure(network, SETTINGS, cache=tmp_path, progress=lambda done, most: rounds.append((done, most)))
    assert rounds == [(done, 8) for done in range(1, 9)]
    assert table.whole_ms.keys() == {ORIGINAL, *SETTINGS}


def test_spread_variants_contain_every_form_of_every_layer_and_can_be_built(network: nn.Module) -> None:
    layers = list_layers(network, SIZE)
    names = ("body.0", "body.3", "point")
    variants = spread_variants(layers, names, align=4)
    seen = {(name, *setting) for settings in variants.values() for name, setting in settings.items()}
    methods = {name: {method for found, method, _ in seen if found == name} for name in names}
    assert methods["body.0"] == methods["body.3"] == set(FORMS) - {"svd"}
    assert methods["point"] == {"svd"}
    assert all(rank % 4 == 0 for _, _, ranks in seen for rank in ranks)
    for settings in variants.values():
        assert set(settings) == set(names)
        factorize_in_place(duplicate(network, "meta"), settings)
    chosen = spread_variants(layers, names, align=4, methods=("svd",))
    assert {name for settings in chosen.values() for name in settings} == {"point"}
    assert spread_variants(layers, (), align=4) == {}


def test_layers_narrower_than_a_step_are_measured_too(network: nn.Module) -> None:
    layers = list_layers(network, SIZE)
    variants = spread_variants(layers, ("body.0", "heat"), align=64)
    assert {name for settings in variants.values() for name in settings} == {"body.0", "heat"}
    for settings in variants.values():
        factorize_in_place(duplicate(network, "meta"), settings)


def test_timed_graphs_have_the_operations_of_exported_networks(network: nn.Module, tmp_path: Path) -> None:
    graph = TimingGraph(model_of(network))
    assert {name: len(places) for name, places in graph.placed.items()}["point"] == 2
    for settings in SETTINGS.values():
        made = graph.make(settings)
        path = tmp_path / "made.onnx"
        path.write_bytes(made.data)
        factorized = factorize_in_place(duplicate(network), settings)
        exported = onnx.load(str(export_onnx(model_of(factorized), tmp_path / "exported.onnx", force=True)))
        assert sorted(convolutions(onnx.load(str(path)))) == sorted(convolutions(exported))
        maps = OnnxRunner(path).run(np.zeros((1, 3, *SIZE), np.float32))
        assert [maps[name].shape for name in POSE.outputs] == [(1, 19, 4, 5), (1, 38, 4, 5)]
        steps = set(made.nodes.values())
        assert {(name, len(ranks)) for name, (_, ranks) in settings.items()} <= steps


def convolutions(model: onnx.ModelProto) -> list[tuple[Any, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted = ("strides", "pads", "dilations", "group")
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            values = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute if x.name in wanted}
            found.append((shapes[node.input[1]], *(str(values.get(name)) for name in wanted), len(node.input)))
    return found


def test_curves_are_linear_between_points_and_rise_beyond_them() -> None:
    curve = Curve(np.array([4.0, 8.0, 16.0]), np.array([1.0, 2.0, 2.5]))
    assert [curve.at(work) for work in (4, 6, 8, 12, 16, 24)] == pytest.approx([1, 1.5, 2, 2.25, 2.5, 3.0])
    assert 0 < curve.at(1) < 1
    single = Curve(np.array([4.0]), np.array([1.0]))
    assert [single.at(work) for work in (2, 4, 8)] == pytest.approx([0.5, 1, 2])


@pytest.mark.parametrize("target", TARGETS[2:], ids=str)
def test_each_layer_of_a_timed_graph_runs_in_the_arithmetic_of_its_target(target: Target, network: nn.Module) -> None:
    made = TimingGraph(model_of(network)).make(SETTINGS["narrow"])
    runner = OpenVinoRecorder(made, image_input(SIZE), target, 1, Stopwatch())
    runner.run(np.zeros((1, 3, *SIZE), np.float32))
    kinds = runner.executed_types()
    assert set(kinds) == set(made.nodes.values())
    arithmetic = {kind.rpartition("_")[2].lower() for kind in kinds.values()}
    assert arithmetic <= ({"i8", "u8"} if target.int8 else {"f32"}), kinds
    runner.close()


@pytest.mark.parametrize("target", TARGETS[1:], ids=str)
def test_an_exported_network_opens_on_its_target(target: Target, network: nn.Module, tmp_path: Path) -> None:
    path = export_onnx(model_of(network), tmp_path / "network.onnx")
    runner = open_on_target(path, target, SIZE, threads=1)
    assert (runner.name, runner.threads) == (target.runtime, 1)
    assert runner.precision == ("int8" if target.int8 else "fp32")
    maps = runner.run(np.zeros((1, 3, *SIZE), np.float32))
    assert [maps[name].shape for name in POSE.outputs] == [(1, 19, 4, 5), (1, 38, 4, 5)]
    runner.close()


def test_invalid_arguments_are_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        measure(network, {}, cache=tmp_path, rounds=0)
    with pytest.raises(UsageError, match="can't have this label"):
        measure(network, {ORIGINAL: {}}, cache=tmp_path)
    with pytest.raises(CheckpointError, match="does not have"):
        measure(network, {"one": {"nowhere": ("svd", (1,))}}, cache=tmp_path)
    with pytest.raises(CheckpointError, match="can't have these ranks"):
        measure(network, {"one": {"point": ("svd", (500,))}}, cache=tmp_path)
    with pytest.raises(NetworkError, match="no node"):
        measure(network, {"one": {"nowhere": ("svd", (1,))}}, cache=tmp_path, target=TARGETS[1])
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_the_machine_lacks_is_refused(network: nn.Module, tmp_path: Path) -> None:
    for target in (Target("onnxruntime", "cpu", "bf16"), Target("torch", "cpu", "fp16")):
        with pytest.raises(RuntimeAbsent):
            measure(network, {}, cache=tmp_path, target=target)


@pytest.mark.parametrize("target", TARGETS[1:], ids=str)
def test_layers_that_are_not_in_the_exported_graph_are_left_out(target: Target, tmp_path: Path) -> None:
    class Supervised(Tiny):
        """With an early stage that the final outputs do not need."""

        def __init__(self) -> None:
            super().__init__()
            self.early = nn.Conv2d(24, 24, 3, padding=1)

        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            early = self.early(self.stem(images))
            return [{"heatmaps": early, "pafs": early}, *super().forward(images)]

    variants: dict[str, Settings] = {
        name: {**settings, "early": ("tucker2", (8, 8))} for name, settings in SETTINGS.items()
    }
    table = measure(Supervised().eval(), variants, target=target, cache=tmp_path)
    assert set(table.whole_ms) == {ORIGINAL, *variants}
    assert "early" not in table.layers_ms
    assert table.latency_ms("body.0", "tucker2", (8, 4)) > 0
    with pytest.raises(UsageError, match="not timed"):
        table.latency_ms("early", "tucker2", (8, 8))
