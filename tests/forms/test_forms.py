"""What every form promises: true costs, exact full ranks, round trips through layers and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.checkpoint.wrap import wrap
from compress.decomposition.fitting import Fit
from compress.decomposition.metric import Metric
from compress.decomposition.problems import Problems
from compress.errors import PlanError
from compress.forms.base import Form, LayerFactors, Point, Ranks, Shape, Step
from compress.forms.modules import FactorizedLayer, placement
from compress.forms.registry import FORMS, form_of, forms_for, get_form, is_factorized
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerIndex, LayerInfo, list_layers
from compress.planning.budgeted import plan_within, weight_curves
from compress.planning.plan import LayerPlan, Plan
from compress.planning.selection import Selection
from compress.surgery.edits import FactorizeEdit, apply_edits, edit_from_dict
from compress.surgery.factorize import decompose, factorize

SIZE = (14, 12)
LAYERS: dict[str, nn.Module] = {
    "square": nn.Conv2d(12, 10, 3, padding=1),
    "strided": nn.Conv2d(6, 14, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "row": nn.Conv2d(10, 8, (1, 5), padding="same", padding_mode="reflect", bias=False),
    "pointwise": nn.Conv2d(12, 9, 1, stride=2),
    "grouped": nn.Conv2d(8, 12, 3, groups=2, padding=1),
    "transposed": nn.ConvTranspose2d(10, 8, 4, stride=2, padding=1),
}
CASES = [(name, form) for name, layer in LAYERS.items() for form in (f.name for f in forms_for(
    list_layers(layer, SIZE, layer.in_channels)[0]  # type: ignore[arg-type]
))]  # fmt: skip


def known(name: str) -> tuple[nn.Module, LayerInfo, Tensor]:
    layer: Any = LAYERS[name]
    torch.manual_seed(0)
    (info,) = list_layers(layer, SIZE, layer.in_channels)
    return layer, info, torch.randn(2, layer.in_channels, *SIZE)


def ranks_of(form: Form, info: LayerInfo, share: float) -> Ranks:
    shape = layer_kernel(info)
    return form.clip(shape, tuple(max(1, round(share * rank)) for rank in form.max_ranks(shape)))


def installed(layer: nn.Module, form: Form, ranks: Ranks) -> FactorizedLayer:
    """The layer in a form, its factors from the weights alone."""
    new = form.build(layer, ranks)
    factors = form.decompose(layer, ranks)
    for name, values in factors.parts.items():
        weight = new.get_submodule(name).get_parameter("weight")
        weight.data = values.reshape(weight.shape).to(weight.dtype)
    new.get_submodule("expand").register_parameter("bias", layer.bias)  # type: ignore[arg-type]
    return new


def test_one_form_of_each_layer_is_usual_and_it_comes_first() -> None:
    for name in LAYERS:
        _, info, _ = known(name)
        assert [form.usual for form in forms_for(info)] == [True, *[False] * (len(forms_for(info)) - 1)]
    assert {name for name, _ in CASES} == set(LAYERS)
    assert {form for _, form in CASES} == set(FORMS)
    depthwise = list_layers(nn.Conv2d(6, 6, 3, groups=6), SIZE, 6)[0]
    assert forms_for(depthwise) == ()


@pytest.mark.parametrize(("name", "method"), CASES)
def test_at_full_ranks_a_layer_stays_what_it_is(name: str, method: str) -> None:
    layer, info, x = known(name)
    form = get_form(method)
    new = installed(layer, form, form.max_ranks(layer_kernel(info)))
    torch.testing.assert_close(new(x), layer(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_costs_are_those_of_the_built_layer(name: str, method: str) -> None:
    layer, info, _ = known(name)
    form = get_form(method)
    ranks = ranks_of(form, info, 0.5)
    new = form.build(layer, ranks)
    index = list_layers(new, SIZE, layer.in_channels)  # type: ignore[arg-type]
    assert form.cost(info, ranks) == (index.cost.params, index.cost.macs)
    assert [(step.name, step.weights, step.macs) for step in form.steps(info, ranks)] == [
        (part.name, math.prod(part.weight_shape), part.macs) for part in index
    ]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_decompose_build_and_compose_agree(name: str, method: str) -> None:
    layer, info, x = known(name)
    form = get_form(method)
    new = installed(layer, form, ranks_of(form, info, 0.5))
    assert is_factorized(new)
    assert form_of(new) is form
    whole = form.compose(new)
    assert type(whole) is type(layer)
    torch.testing.assert_close(whole(x), new(x), rtol=1e-4, atol=1e-5)
    weight, made = layer.get_parameter("weight"), whole.get_parameter("weight")
    error = form.decompose(layer, ranks_of(form, info, 0.5)).error
    assert float((weight - made).detach().norm() / weight.detach().norm()) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_errors_fall_with_rank(name: str, method: str) -> None:
    layer, info, _ = known(name)
    form = get_form(method)
    errors = [form.decompose(layer, ranks_of(form, info, share)).error for share in (0.1, 0.3, 0.6, 1.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_onnx_steps_give_what_the_layer_gives(name: str, method: str, tmp_path: Path) -> None:
    """The graph that is timed computes the layer, padding apart that is an operator of its own."""
    runtime = pytest.importorskip("onnxruntime")
    layer, info, x = known(name)
    form = get_form(method)
    new = installed(layer, form, ranks_of(form, info, 0.5))
    if name == "row":
        x = nn.functional.pad(x, (2, 2, 0, 0), mode="reflect")
    operator = "ConvTranspose" if isinstance(layer, nn.ConvTranspose2d) else "Conv"
    nodes, weights, value = [], [], "x"
    parts = list(new.children())
    for index, (step, part) in enumerate(zip(form.onnx_steps(new, operator), parts, strict=True)):
        weight = part.get_parameter("weight").detach()
        assert step.weight_shape == tuple(weight.shape)
        weights.append(onnx.numpy_helper.from_array(weight.numpy(), f"w{index}"))
        nodes.append(helper.make_node(step.operator, [value, f"w{index}"], [f"y{index}"], **step.attributes))
        value = f"y{index}"
    graph = helper.make_graph(
        nodes,
        "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    bias = parts[-1].bias
    expected = new(known(name)[2]) - (0 if bias is None else bias[:, None, None])  # type: ignore[index]
    torch.testing.assert_close(torch.from_numpy(found), expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "method"), [case for case in CASES if case[0] not in ("grouped", "transposed")])
def test_a_fit_and_its_curve_are_of_the_same_metric(name: str, method: str) -> None:
    layer, _, _ = known(name)
    kernel = layer.get_parameter("weight").detach().double()
    x = torch.randn(kernel[0].numel(), 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metric = Metric.of(x @ x.T / 300, outputs_count=len(kernel))
    problems = Problems(kernel, metric)
    form = get_form(method)
    # One quick fit gives the whole curve of CP, which therefore lies somewhat above the errors of single fits.
    low, high = (0.9, 1.7) if method == "cp_separable" else (1 - 1e-5, 1 + 1e-5)
    points = list(form.curve(problems, align=2))
    assert len(points) > 1
    energy = float(((metric.outputs @ kernel.flatten(1)) * (kernel.flatten(1) @ metric.inputs)).sum())
    for point in points[:: max(1, len(points) // 4)]:
        if form.clip(tuple(kernel.shape), point.ranks) == point.ranks:
            error = form.fit(problems, point.ranks, sweeps=0).error
            assert low * error - 1e-7 <= point.error / energy <= high * error + 1e-7


class Net(nn.Module):
    """A network whose body is worth factorizing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.body = nn.Conv2d(24, 32, 3, padding=1)
        self.head = nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))))  # type: ignore[no-any-return]


def plan_of(method: str, ranks: Ranks) -> Plan:
    return Plan("net", SIZE, (LayerPlan("body", method, ranks, "plan", (0, 0), (0, 0)),))


def test_a_separable_layer_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = wrap(Net().eval(), (1, 3, *SIZE), name="net")
    done = factorize(model.module, plan_of("cp_separable", (40,)))
    assert done.plan.changed[0].error is not None
    small = model.derive(done.module, edits=[FactorizeEdit.from_plan(done.plan)], plan=done.plan)
    save(small, tmp_path / "small.pt")
    again = load(tmp_path / "small.pt", network=Net)
    x = torch.randn(1, 3, *SIZE)
    assert torch.equal(again.module(x), done.module(x))
    assert form_of(again.module.get_submodule("body")) is get_form("cp_separable")
    assert done.layers.cost == again.cost


def test_a_budget_may_choose_the_separable_form() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    factors = [torch.randn(20, size) for size in (16, 16, 9)]
    module[0].weight.data = torch.einsum("rt,rs,rp->tsp", *factors).reshape(16, 16, 3, 3)
    layers = LayerIndex(list_layers(module, SIZE, 16))
    layers.by_name = {"0": layers[0]}
    curves = weight_curves(module, layers, Selection(include=("0",)))
    total = layers[0].macs
    planned = plan_within(curves, 0.5 * total, lambda _, x: x.macs, network="net", input_size=SIZE)
    assert [entry.method for entry in planned.plan.changed] == ["cp_separable"]
    others = weight_curves(module, layers, Selection(include=("0",)), methods=set(FORMS) - {"cp_separable"})
    rival = plan_within(others, 0.5 * total, lambda _, x: x.macs, network="net", input_size=SIZE)
    assert planned.error < 0.8 * rival.error


def test_unknown_forms_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(PlanError, match=r"similar: tucker2.*'tucker_2'.*cp_separable"):
        get_form("tucker_2")


class MeanForm(Form):
    """A toy: the mean kernel over all places, at rank 1, then the output channels."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "1x1 of rank r, then kxk that repeats it"

    def applies(self, shape: Shape, kind: str, groups: int) -> bool:
        return kind == "conv" and groups == 1 and math.prod(shape[2:]) > 1

    def max_ranks(self, shape: Shape) -> Ranks:
        return (shape[0],)

    def steps(self, layer: LayerInfo, ranks: Ranks) -> tuple[Step, ...]:
        outputs, inputs, *places = layer_kernel(layer)
        reduce, expand = inputs * ranks[0], outputs * ranks[0] * math.prod(places)
        return (
            Step("reduce", reduce, reduce * layer.input_positions),
            Step("expand", expand, expand * layer.output_positions),
        )

    def build(self, layer: Any, ranks: Ranks, device: torch.device | None = None) -> FactorizedLayer:
        place = placement(layer, device)
        options: dict[str, Any] = {"padding": layer.padding, "bias": layer.bias is not None}
        steps = {
            "reduce": nn.Conv2d(layer.in_channels, ranks[0], 1, bias=False, **place),
            "expand": nn.Conv2d(ranks[0], layer.out_channels, layer.kernel_size, **options, **place),
        }
        return FactorizedLayer(self.name, layer, steps)

    def fit(self, problems: Problems, ranks: Ranks, sweeps: int = 2) -> Fit:
        kernel = problems.weight.double()
        reduce = torch.linalg.svd(kernel.mean((2, 3)), full_matrices=False).Vh[: ranks[0]]
        expand = torch.einsum("tsij,rs->trij", kernel, reduce)
        made = torch.einsum("trij,rs->tsij", expand, reduce)
        error = float((made - kernel).square().sum() / kernel.square().sum())
        return Fit({"reduce": reduce, "expand": expand}, made.flatten(1), error)

    def curve(self, problems: Problems, align: int) -> Iterator[Point]:
        for rank in (4, 8, 12):
            yield Point((rank,), 1e-9 / rank)  # better than any other


def test_a_form_is_one_entry_of_the_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Planned, chosen by a budget, factorized, saved as an edit, replayed and composed."""
    record = FactorizeEdit({"body": ("toy", (4,))}).to_dict()
    with pytest.raises(Exception, match="can't be read at layer body"):
        edit_from_dict(record)
    monkeypatch.setitem(FORMS, "toy", MeanForm())
    torch.manual_seed(0)
    module = Net().eval()
    layers = list_layers(module, SIZE)
    curves = weight_curves(module, layers, Selection())
    total = float(sum(x.macs for x in layers if x.name in curves.candidates))
    planned = plan_within(curves, 0.7 * total, lambda _, x: x.macs, network="net", input_size=SIZE).plan
    assert [entry.method for entry in planned.changed] == ["toy"]
    assert Plan.from_json(planned.to_json()) == planned
    done = factorize(module, planned, layers=layers)
    factors: LayerFactors = decompose(module.body, planned.changed[0])
    assert done.plan.changed[0].error == pytest.approx(factors.error)

    model = wrap(module, (1, 3, *SIZE), name="net")
    save(model.derive(done.module, edits=[FactorizeEdit.from_plan(done.plan)]), tmp_path / "toy.pt")
    again = load(tmp_path / "toy.pt", network=Net).module
    x = torch.randn(1, 3, *SIZE)
    assert torch.equal(again(x), done.module(x))
    whole = get_form("toy").compose(again.get_submodule("body"))
    torch.testing.assert_close(whole(torch.ones(1, 24, 5, 5)), again.get_submodule("body")(torch.ones(1, 24, 5, 5)))
    assert isinstance(apply_edits(Net(), [edit_from_dict(record)]).get_submodule("body"), FactorizedLayer)
