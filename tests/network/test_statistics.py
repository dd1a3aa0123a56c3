"""Sensitivities, moments and directional errors against what they are estimates of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import DataError, NetworkError
from compress.network import moments, statistics
from compress.network.inputs import Inputs, call
from compress.network.moments import Moments, gather_moments, in_groups
from compress.network.output_error import BACKGROUND, output_errors, output_scales, output_weights
from compress.network.recording import recorded
from compress.network.statistics import (
    WEIGHT_FLOOR,
    Change,
    SampledPositions,
    Sampling,
    Sensitivity,
    directional_errors,
    measure_sensitivity,
)


def pictures(count: int, size: tuple[int, int] = (9, 8), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, *size, generator=generator) for _ in range(count)]


class Net(nn.Module):
    """Layers in a row and one kind of map."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"maps": self.body(x)}]


class Twice(nn.Module):
    """A layer that is called twice, once on a smaller image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.shared(self.stem(x)).relu()
        return [{"maps": self.shared(functional.avg_pool2d(x, 2))}]


class Rows(nn.Module):
    """A linear layer over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"maps": self.linear(x.movedim(1, -1)).movedim(-1, 1)}]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def small() -> nn.Module:
    return Net(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 2, stride=2))


def everywhere(
    module: nn.Module, images: Sequence[Inputs], names: Sequence[str], weight: float | None = None
) -> dict[str, Sensitivity]:
    """All positions of all calls, with random weights or the one given."""
    generator = torch.Generator().manual_seed(9)
    places: dict[str, list[tuple[SampledPositions, ...]]] = {name: [] for name in names}
    for image in images:
        with recorded(module, names, outputs=True) as calls:
            call(module, image)
        for name in names:
            linear = isinstance(module.get_submodule(name), nn.Linear)
            counts = [x.output[..., 0].numel() if linear else x.output[:, 0].numel() for x in calls[name]]
            random = [torch.rand(n, generator=generator) + 0.1 for n in counts]
            weights = random if weight is None else [torch.full((n,), weight) for n in counts]
            places[name].append(tuple(SampledPositions(torch.arange(len(x)).int(), x) for x in weights))
    return {name: Sensitivity(torch.eye(1), tuple(listed)) for name, listed in places.items()}


def patches_by_torch(given: Tensor, layer: Any) -> Tensor:
    """Patches (D, positions) that the layer itself reads: its outputs with a kernel for each number in a patch."""
    if isinstance(layer, nn.Linear):
        return given.flatten(0, -2).T
    size = layer.weight[0].numel()
    reader = nn.Conv2d(
        layer.in_channels, size, layer.kernel_size, layer.stride, layer.padding, layer.dilation, 1, False,
        layer.padding_mode,
    )  # fmt: skip
    reader.weight.data = torch.eye(size).view(size, *layer.weight.shape[1:])
    with torch.no_grad():
        return reader(given)[0].flatten(1)


def moments_by_hand(
    original: nn.Module, compressed: nn.Module, images: Sequence[Tensor], seen: Sensitivity, name: str
) -> Moments:
    """Weighted moments over all positions, two passes, in float64."""
    layer = original.get_submodule(name)
    xs, ys, ws = [], [], []
    for image, places in zip(images, seen.positions, strict=True):
        with torch.no_grad(), recorded(compressed, [name], inputs=True) as read:
            compressed(image)
        with torch.no_grad(), recorded(original, [name], outputs=True) as wanted:
            original(image)
        for given, target, place in zip(read[name], wanted[name], places, strict=True):
            x, y = patches_by_torch(given.input, layer), target.output
            y = y.flatten(0, -2).T if isinstance(layer, nn.Linear) else y[0].flatten(1)
            xs.append(x[:, place.index.long()])
            ys.append(y[:, place.index.long()])
            ws.append(place.weight)
    x, y, w = (torch.cat(listed, -1).double() for listed in (xs, ys, ws))
    w = w / w.sum()
    mean, target_mean = x @ w, y @ w
    x, y = x - mean[:, None], y - target_mean[:, None]
    return Moments(mean, (x * w) @ x.T, target_mean, (y * w) @ x.T, x.shape[1])


def assert_same_moments(found: Moments, expected: Moments, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for name in ("mean", "covariance", "target_mean", "cross"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=rtol, atol=atol)
    assert found.samples == expected.samples


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (2, 3), "padding": (2, 1), "stride": (2, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2},
        {"kernel_size": (4, 2), "padding": "same", "dilation": (1, 3)},
        {"kernel_size": (1, 4), "padding": "same", "padding_mode": "circular"},
        {"kernel_size": 3, "padding": "valid", "stride": 3},
        {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
        {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "replicate", "bias": False},
        {"kernel_size": 1, "stride": 2},
    ],
    ids=str,
)
def test_moments_of_a_convolution_are_those_of_all_its_patches(options: dict[str, Any]) -> None:
    module = seeded(lambda: Net(nn.Conv2d(3, 5, **options)))
    images = [*pictures(2), *pictures(1, (12, 7), seed=1)]
    seen = everywhere(module, images, ["body.0"])
    found = dict(gather_moments(module, module, images, seen, ["body.0"]))["body.0"]
    assert found.covariance.dtype == torch.float64
    assert_same_moments(found, moments_by_hand(module, module, images, seen["body.0"], "body.0"))


@pytest.mark.parametrize(("make", "name"), [(Rows, "linear"), (Twice, "shared"), (Twice, "stem")])
def test_moments_of_linear_and_shared_layers(make: Callable[[], nn.Module], name: str) -> None:
    module, images = seeded(make), pictures(3)
    seen = everywhere(module, images, [name])
    found = dict(gather_moments(module, module, images, seen, [name]))[name]
    assert_same_moments(found, moments_by_hand(module, module, images, seen[name], name))


def test_asymmetric_moments_take_inputs_of_one_network_and_outputs_of_the_other() -> None:
    module, images = seeded(small), pictures(3)
    compressed = seeded(small)
    with torch.no_grad():
        compressed.body[0].weight.mul_(0.5)
    names = ["body.0", "body.2"]
    seen = everywhere(module, images, names)
    found = dict(gather_moments(module, compressed, images, seen, names))
    for name in names:
        assert_same_moments(found[name], moments_by_hand(module, compressed, images, seen[name], name))
    plain = dict(gather_moments(module, module, images, seen, names))["body.2"]
    assert torch.equal(found["body.2"].target_mean, plain.target_mean)
    assert not torch.allclose(found["body.2"].mean, plain.mean)


def test_moments_of_the_own_outputs_are_the_kernel_times_the_covariance() -> None:
    module, images = seeded(small), pictures(4)
    seen = measure_sensitivity(module, images, ["body.0", "body.2"], sampling=Sampling(positions=20))
    for name, found in gather_moments(module, module, images, seen, ["body.0", "body.2"]):
        weight = module.get_submodule(name).weight.detach().double().flatten(1)
        torch.testing.assert_close(found.cross, weight @ found.covariance, rtol=1e-4, atol=1e-5)
        assert torch.linalg.eigvalsh(found.covariance)[0] > -1e-5


def test_a_large_mean_leaves_the_covariance_alone() -> None:
    module, images = seeded(lambda: Net(nn.Conv2d(3, 5, 3))), [image + 100 for image in pictures(8, (20, 20))]
    seen = everywhere(module, images, ["body.0"])
    found = dict(gather_moments(module, module, images, seen, ["body.0"]))["body.0"]
    assert_same_moments(found, moments_by_hand(module, module, images, seen["body.0"], "body.0"), 1e-3, 1e-3)


def test_only_so_many_positions_are_read_and_every_image_counts() -> None:
    module, images = seeded(small), pictures(5)
    seen = measure_sensitivity(module, images, ["body.0"], sampling=Sampling(positions=10))["body.0"]
    assert len(seen.positions) == 5
    for (places,) in seen.positions:
        assert 9 <= len(places.index) <= 11
        assert len(set(places.index.tolist())) == len(places.index)
        assert (places.weight > 0).all()
    found = dict(gather_moments(module, module, images, {"body.0": seen}, ["body.0"]))["body.0"]
    assert found.samples == sum(len(places.index) for (places,) in seen.positions)


def test_positions_are_drawn_without_bias() -> None:
    # Of a network that is its last layer alone the gradients are known: the weight of each cell, whatever the signs.
    module, images = seeded(lambda: Net(nn.Conv2d(3, 1, 1))), pictures(2)
    for image in images:
        image[..., 2:, 2:] = 0
    module.body[0].bias.data.zero_()
    scales = output_scales(module, images)
    totals = [torch.zeros(72), torch.zeros(72)]
    turns = 300
    for seed in range(turns):
        seen = measure_sensitivity(module, images, ["body.0"], sampling=Sampling(probes=1, positions=12, seed=seed))[
            "body.0"
        ]
        for total, (places,) in zip(totals, seen.positions, strict=True):
            total[places.index.long()] += places.weight / turns
    for total, image in zip(totals, images, strict=True):
        with torch.no_grad():
            weight = output_weights("maps", module(image)[0], scales).flatten().square()
        assert weight.unique().numel() == 2
        expected = weight / weight.mean() + WEIGHT_FLOOR
        near = weight == weight.max()
        assert float(total[near].sum()) == pytest.approx(float(expected[near].sum()), rel=0.02)
        assert float(total[~near].sum()) == pytest.approx(float(expected[~near].sum()), rel=0.25)
        torch.testing.assert_close(total[near], expected[near], rtol=0.4, atol=0)


def jacobian(module: nn.Module, image: Tensor, name: str) -> Tensor:
    """Derivative of all map cells by a layer's output, (cells, T, positions)."""
    layer = module.get_submodule(name)
    shape = recorded_shape(module, image, name)

    def shifted(shift: Tensor) -> Tensor:
        handle = layer.register_forward_hook(lambda _, given, output: output + shift)
        try:
            return module(image)[-1]["maps"].flatten()
        finally:
            handle.remove()

    found: Tensor = torch.autograd.functional.jacobian(shifted, torch.zeros(shape))
    return found.flatten(3)[:, 0]


def recorded_shape(module: nn.Module, image: Tensor, name: str) -> torch.Size:
    with torch.no_grad(), recorded(module, [name], outputs=True) as calls:
        module(image)
    return calls[name][0].output.shape


def cell_weights(module: nn.Module, images: Sequence[Tensor], image: Tensor) -> Tensor:
    """What each map cell weighs, flattened as the maps are."""
    with torch.no_grad():
        maps = module(image)[-1]
        weight = output_weights("maps", maps, output_scales(module, images))
    return weight.expand_as(maps["maps"]).flatten()


def test_the_sensitivity_is_that_of_the_final_maps() -> None:
    module, images = seeded(small), pictures(2, (6, 6))
    found = measure_sensitivity(module, images, ["body.0", "body.2"], sampling=Sampling(probes=600))
    for name in ("body.0", "body.2"):
        expected = torch.zeros_like(found[name].outputs)
        for image in images:
            slopes = jacobian(module, image, name) * cell_weights(module, images, image)[:, None, None]
            expected += torch.einsum("ctp,cup->tu", slopes, slopes).double() / len(images)
        assert float((found[name].outputs - expected).norm()) < 0.08 * float(expected.norm())


def test_directional_errors_are_those_of_small_changes() -> None:
    module, images = seeded(small).double(), [x.double() for x in pictures(2, (6, 6))]
    generator = torch.Generator().manual_seed(3)
    changes = {}
    for name in ("body.0", "body.2"):
        weight, bias = module.get_submodule(name).weight, module.get_submodule(name).bias
        shifts = [
            Change(
                torch.randn(weight.flatten(1).shape, generator=generator), torch.randn(bias.shape, generator=generator)
            )
            for _ in range(2)
        ]
        changes[name] = [*shifts, Change(torch.zeros_like(shifts[0].weight), torch.zeros_like(shifts[0].bias))]
    found = directional_errors(module, images, changes, probes=500)
    scale = 1e-5
    for name, listed in changes.items():
        layer = module.get_submodule(name)
        assert found[name][2] == 0
        for change, error in zip(listed[:2], found[name], strict=False):
            expected = 0.0
            for image in images:
                weights = cell_weights(module, images, image)
                with torch.no_grad():
                    before = module(image)[-1]["maps"].flatten()
                    layer.weight += scale * change.weight.view(layer.weight.shape)
                    layer.bias += scale * change.bias
                    after = module(image)[-1]["maps"].flatten()
                    layer.weight -= scale * change.weight.view(layer.weight.shape)
                    layer.bias -= scale * change.bias
                expected += float(((after - before) / scale * weights).square().sum()) / len(images)
            assert error == pytest.approx(expected, rel=0.15)


def test_changes_of_shared_and_bias_free_layers_are_judged() -> None:
    module, images = seeded(Twice), pictures(2, (6, 6))
    shared = module.get_submodule("shared").weight
    change = Change(0.1 * shared.detach().flatten(1), torch.zeros(4))
    stem = Change(torch.zeros(4, 3), torch.ones(4))
    found = directional_errors(module, images, {"shared": [change], "stem": [stem], "none": []}, probes=40)
    assert found["none"] == []
    assert found["shared"][0] > 0
    assert found["stem"][0] > 0
    double = Change(2 * change.weight, change.bias)
    again = directional_errors(module, images, {"shared": [double]}, probes=40)
    assert again["shared"][0] == pytest.approx(4 * found["shared"][0], rel=1e-4)


def test_equal_seeds_give_equal_results() -> None:
    module, images = seeded(small), pictures(3)
    names = ["body.0", "body.2"]
    one, two, other = (
        measure_sensitivity(module, images, names, sampling=Sampling(positions=9, seed=seed)) for seed in (5, 5, 6)
    )
    for name in names:
        assert torch.equal(one[name].outputs, two[name].outputs)
        assert not torch.equal(one[name].outputs, other[name].outputs)
        for (a,), (b,) in zip(one[name].positions, two[name].positions, strict=True):
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.weight, b.weight)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    measure_sensitivity(module, images, names, sampling=Sampling(positions=9))
    assert torch.equal(torch.rand(2), expected)


def test_activations_in_place_change_nothing() -> None:
    def make(inplace: bool) -> nn.Module:
        return Net(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.Conv2d(4, 4, 1), nn.SiLU(inplace=inplace))

    images, names = pictures(3), ["body.0", "body.2"]
    plain, inplace = (seeded(lambda inplace=inplace: make(inplace)) for inplace in (False, True))
    expected, found = (measure_sensitivity(module, images, names) for module in (plain, inplace))
    moments = [
        dict(gather_moments(module, module, images, seen, names))
        for module, seen in ((plain, expected), (inplace, found))
    ]
    for name in names:
        assert torch.equal(found[name].outputs, expected[name].outputs)
        assert_same_moments(moments[1][name], moments[0][name])


def test_layers_are_told_in_the_order_in_which_they_run_and_unused_ones_left_out() -> None:
    module = seeded(Twice)
    module.spare = nn.Conv2d(3, 3, 1)
    images = pictures(2)
    found = measure_sensitivity(module, images, ["spare", "shared", "stem"])
    assert list(found) == ["stem", "shared"]
    assert [len(places) for places in found["shared"].positions] == [2, 2]


def test_nothing_is_left_on_the_network() -> None:
    module, images = seeded(small), pictures(2)
    module.body[0].weight.requires_grad_(False)
    change = Change(torch.ones(4, 27), torch.ones(4))
    seen = measure_sensitivity(module, images, ["body.0", "body.2"])
    dict(gather_moments(module, module, images, seen, ["body.0"]))
    directional_errors(module, images, {"body.0": [change]})
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True]
    assert not any(part._forward_hooks for part in module.modules())


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 5:
            raise ValueError("no such size")
        return x


def test_nothing_is_left_on_a_network_that_fails() -> None:
    module = seeded(lambda: Net(nn.Conv2d(3, 4, 1), Failing()))
    module.body[0].weight.requires_grad_(False)
    good, bad = pictures(2), pictures(1, (5, 5), seed=1)
    many = [*good * 20, *bad]  # output_scales looks at every second only
    seen = measure_sensitivity(module, good, ["body.0"])
    change = Change(torch.ones(4, 3), torch.ones(4))
    for fail in (
        lambda: measure_sensitivity(module, [*good, good[0], *bad], ["body.0"]),
        lambda: dict(gather_moments(
            seeded(lambda: Net(nn.Conv2d(3, 4, 1))), module, [good[0], *bad],
            {"body.0": Sensitivity(seen["body.0"].outputs, (*seen["body.0"].positions[:1], ()))}, ["body.0"],
        )),
        lambda: directional_errors(module, many, {"body.0": [change]}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="no such size"):
            fail()
        assert not any(part._forward_hooks for part in module.modules())
        assert not module.body[0].weight.requires_grad
        assert module.body[0].weight.grad is None


@pytest.mark.parametrize("images", [[], pictures(1), pictures(1) * 5], ids=["none", "one", "alike"])
def test_images_that_do_not_differ_are_refused(images: list[Tensor]) -> None:
    with pytest.raises(DataError, match="two different images") as caught:
        measure_sensitivity(seeded(small), images, ["body.0"])
    assert caught.value.hint


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_outputs_that_are_zero_are_refused(value: float) -> None:
    module = seeded(small)
    with torch.no_grad():
        for parameter in module.body[2].parameters():
            parameter.fill_(value)
    with pytest.raises(DataError, match="zero or not finite"):
        measure_sensitivity(module, pictures(2), ["body.0"])


def test_a_network_whose_outputs_are_detached_is_refused() -> None:
    class Detached(Net):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"maps": super().forward(x)[0]["maps"].detach()}]

    with pytest.raises(NetworkError, match="no gradient"):
        measure_sensitivity(seeded(lambda: Detached(nn.Conv2d(3, 2, 1))), pictures(2), ["body.0"])


class Coordinates(nn.Module):
    """Two inputs, and a nested mix of points, maps and integer labels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 + 2, 6)

    def forward(self, image: Tensor, hint: Tensor) -> dict[str, object]:
        maps = self.conv(image).relu()
        points = self.head(torch.cat([maps.mean((2, 3)), hint], 1)).view(-1, 3, 2)
        return {"points": points, "more": (maps, points.argmax(1))}


def pairs(count: int, batch: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.rand(batch, 1, 6, 5, generator=generator), torch.rand(batch, 2, generator=generator))
        for _ in range(count)
    ]


def test_any_outputs_and_several_inputs_have_sensitivities_and_errors() -> None:
    module, inputs = seeded(Coordinates), pairs(3)
    scales = output_scales(module, inputs)
    assert list(scales) == ["points", "more.0"]
    raw = module(*inputs[0])
    final = {"points": raw["points"], "more.0": raw["more"][0]}
    weight = output_weights("points", final, scales)
    assert weight.dim() == 0, "points count uniformly"
    energy = torch.stack([module(*x)["points"].square().sum() for x in inputs]).mean()
    assert float(weight) == pytest.approx(float(energy.detach().rsqrt()))

    change = Change(torch.zeros(6, 6), torch.eye(6)[0] * 1e-3)
    found = directional_errors(module, inputs, {"head": [change]}, probes=4)["head"][0]
    changed = seeded(Coordinates)
    with torch.no_grad():
        changed.head.bias += change.bias
    errors = output_errors(module, changed, inputs)
    assert errors["more.0"] == 0.0
    assert errors["points"] == pytest.approx(found, rel=1e-3)
    sensitivity = measure_sensitivity(module, inputs, ["conv", "head"], sampling=Sampling(probes=4))
    assert list(sensitivity) == ["conv", "head"]
    assert float(sensitivity["head"].outputs[0, 0]) * 1e-6 == pytest.approx(found, rel=1e-3)


def test_moments_of_a_batch_are_those_of_its_images() -> None:
    module, single = seeded(Coordinates), pairs(4)
    batch = [tuple(torch.cat(part) for part in zip(*single[i : i + 2], strict=True)) for i in (0, 2)]
    whole, parts = (
        dict(gather_moments(module, module, x, everywhere(module, x, ["conv"], weight=1.0), ["conv"]))["conv"]
        for x in (batch, single)
    )
    assert whole.samples == parts.samples == 4 * 30
    torch.testing.assert_close(whole.covariance, parts.covariance)
    torch.testing.assert_close(whole.cross, parts.cross)


def test_no_layers_give_no_statistics() -> None:
    module, images = seeded(small), pictures(2)
    assert measure_sensitivity(module, images, []) == {}
    assert directional_errors(module, images, {"body.0": []}) == {"body.0": []}


def test_progress_is_told_of_every_image() -> None:
    told: list[tuple[int, int]] = []
    measure_sensitivity(seeded(small), pictures(3), ["body.0"], progress=lambda *x: told.append(x))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_layers_are_grouped_by_number_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Net(*(nn.Conv2d(4, 4, 1) for _ in range(5)))
    names = [f"body.{place}" for place in range(5)]
    assert list(in_groups(module, names, 2)) == [names[:2], names[2:4], names[4:]]
    assert list(in_groups(module, names, 9)) == [names]
    assert list(in_groups(module, [], 9)) == []
    monkeypatch.setattr(moments, "MEMORY", 3 * 4 * 16)
    assert list(in_groups(module, names, 9)) == [names[:3], names[3:]]
    monkeypatch.setattr(moments, "MEMORY", 1)
    assert list(in_groups(module, names, 9)) == [[name] for name in names]


class Flat(nn.Module):
    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"flat": torch.full((1, 1, 4, 4), 3.0), "dead": torch.zeros(1, 1, 4, 4)}]


def test_foreground_weighs_more_and_a_perfect_copy_has_no_error() -> None:
    class Dot(nn.Module):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            dot = torch.zeros(1, 1, 9, 9)
            dot[0, 0, 4, 4] = 2.0
            return [{"dot": dot + 0 * x.sum(), "background": 2 - dot + 0 * x.sum()}]

    images = pictures(2)
    scales = output_scales(Dot(), images)
    assert scales["dot"].peak == 2
    assert scales["dot"].energy == 4
    assert scales["background"].energy == pytest.approx(8 * 4)
    weights = output_weights("dot", Dot()(images[0])[0], scales)[0, 0] * scales["dot"].energy ** 0.5
    expected = torch.full((9, 9), BACKGROUND)
    expected[3:6, 3:6] = 1
    torch.testing.assert_close(weights, expected)
    module = seeded(small)
    assert output_errors(module, seeded(small), images) == {"maps": 0.0}
    # Strong everywhere and nowhere: the first weighs by its whole energy, the other nothing.
    flat = output_scales(Flat(), images)
    torch.testing.assert_close(output_weights("flat", Flat()(images[0])[0], flat), torch.full((1, 1, 4, 4), 1 / 12))
    assert not output_weights("dead", Flat()(images[0])[0], flat).any()
    module.body[2].weight.data *= 0
    module.body[2].bias.data *= 0
    assert output_errors(seeded(small), module, images)["maps"] == pytest.approx(1)


def test_covariances_in_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = seeded(small), pictures(2)
    seen = everywhere(module, images, ["body.2"])
    whole = dict(gather_moments(module, module, images, seen, ["body.2"]))["body.2"]
    monkeypatch.setattr(moments, "BLOCK", 5)
    found = dict(gather_moments(module, module, images, seen, ["body.2"]))["body.2"]
    assert len(found.covariance) % 5 > 0
    torch.testing.assert_close(found.covariance, whole.covariance)


def test_outputs_that_were_kept_serve_as_well_as_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module, other, images = seeded(small), small().eval(), pictures(3)
    names = ["body.0", "body.2"]
    kept = measure_sensitivity(module, images, names, sampling=Sampling(positions=20))
    values = [place.target.numel() for x in kept.values() for calls in x.positions for place in calls]  # type: ignore[union-attr]
    monkeypatch.setattr(statistics, "TARGET_BYTES", 4 * sum(values) - 1)
    forgotten = measure_sensitivity(module, images, names, sampling=Sampling(positions=20))
    assert all(place.target is None for x in forgotten.values() for calls in x.positions for place in calls)
    again = dict(gather_moments(module, other, images, forgotten, names))
    for name, found in gather_moments(module, other, images, kept, names):
        for attribute in ("mean", "covariance", "target_mean", "cross"):
            torch.testing.assert_close(getattr(found, attribute), getattr(again[name], attribute))
        assert found.samples == again[name].samples


def test_long_patches_are_looked_at_in_fewer_places_but_never_in_fewer_than_they_are_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, images = seeded(small), pictures(2)
    length = module.get_submodule("body.0").weight[0].numel()
    for work, expected in ((0.0, length), (length**2 * 60.0, 60)):
        monkeypatch.setattr(statistics, "COVARIANCE_MACS", work)
        seen = measure_sensitivity(module, images, ["body.0"], sampling=Sampling(positions=1000))["body.0"]
        drawn = sum(len(place.index) for places in seen.positions for place in places)
        assert length < 60 < 2 * 72
        assert drawn == pytest.approx(expected, abs=3)
