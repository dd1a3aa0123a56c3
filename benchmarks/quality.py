"""Accuracy without training at equal MACs: ours beside what the world copies, one run, one table.

    python benchmarks/quality.py CHECKPOINT --calibrate-annotations FILE --calibrate-images DIR \
        --annotations FILE --images DIR [--input 256x456] [--rows budgets,ratios,...] -o FILE.csv

Rows: `budgets` and `ratios` are ours (data-aware, no labels); `tensorly` is weight-only Tucker-2 by
`tensorly.partial_tucker` at a uniform ratio; `vbmf` EVBMF ranks, weights alone and fitted to data; `pruning` uniform
channel pruning by torch-pruning (group L2 norm) at about the same MACs; `int8` NNCF post-training quantization with the
same images; `stage` the network with a stage fewer, where it returns more than one. AP is OKS AP of all annotated
images at the input's height, with the 95 % bootstrap interval over images of its difference to the original; map errors
are relative squared errors of the final maps on the same images. Rows are written as they come; with an existing file
only missing rows are computed. A figure is drawn beside the table.
"""

from __future__ import annotations

import argparse
import copy
import csv
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.checkpoint import Checkpoint, load_checkpoint
from compress.data.coco import CocoDataset
from compress.data.sample import iterate
from compress.evaluate import evaluate
from compress.export.to_onnx import export_onnx
from compress.export.to_openvino import write_ir
from compress.model.cost import cost
from compress.model.layers import list_layers
from compress.model.maps import map_errors
from compress.plan import Plan
from compress.pose.resampled_ap import average_precision, match_images
from compress.ranks.budget import parse_budget
from compress.ranks.budgeted import eligible
from compress.ranks.fixed import Ratio, Selection, Vbmf, make_plan, parse_ratio
from compress.runtime.openvino_runner import OpenVinoRunner
from compress.runtime.torch_runner import TorchRunner
from compress.stages.base import Silent
from compress.stages.budgeting import Work, within_cost
from compress.stages.calibration import calibrate, calibration_images, curves_of
from compress.surgery.data_aware import factorize_with_data
from compress.surgery.factorize import factorize
from compress.surgery.factorized import TuckerConv2d

BUDGETS = (6.5, 5.9, 5.28, 4.63, 4.0, 3.5)
COLUMNS = (
    "method", "setting", "gmacs", "params", "AP", "low", "high", "dAP", "dlow", "dhigh", "heatmaps", "pafs", "seconds",
)  # fmt: skip
DRAWS = 1000


class Bench:
    """The original, the images, and the rows so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.checkpoint: Checkpoint = load_checkpoint(options.checkpoint)
        self.module = self.checkpoint.build()
        height, width = options.input.split("x")
        self.size = (int(height), int(width))
        self.dataset = CocoDataset(options.annotations, options.images)
        calibration = CocoDataset(options.calibrate_annotations, options.calibrate_images)
        self.images = calibration_images(calibration, self.checkpoint.pose, self.size[0], options.calibrate)
        self.dev = calibration_images(self.dataset, self.checkpoint.pose, self.size[0], len(self.dataset))
        self.truth = self.dataset.ground_truth()
        self.ids = [sample.image_id for sample in iterate(self.dataset)]
        self.rows: list[dict[str, Any]] = []
        if options.output.exists():
            with options.output.open() as file:
                self.rows = list(csv.DictReader(file))
        self.draws = [np.random.default_rng(seed).choice(len(self.ids), len(self.ids)) for seed in range(DRAWS)]
        self.original: list[float] = []

    def known(self, method: str, setting: str) -> bool:
        """Whether that row is there already."""
        return any((row["method"], row["setting"]) == (method, setting) for row in self.rows)

    def score(self, runner: Any) -> tuple[float, list[float]]:
        """AP, and AP of the bootstrap draws."""
        found = evaluate(self.dataset, runner, height=self.size[0])
        matches = match_images(self.truth, found.detections)
        images = [matches[i] for i in self.ids]
        return found.score.metrics["AP"], [average_precision([images[i] for i in draw]) for draw in self.draws]

    def add(self, method: str, setting: str, make: Callable[[], tuple[nn.Module, Any]]) -> None:
        """Make a network, score it, write the row."""
        if self.known(method, setting):
            return
        start = time.perf_counter()
        try:
            module, runner = make()
        except Exception as error:  # a rival that can't run says so in its row
            self._write({"method": method, "setting": setting, "AP": f"{type(error).__name__}: {str(error)[:120]}"})
            return
        seconds = time.perf_counter() - start
        runner = runner or TorchRunner(module, self.checkpoint.pose)
        if not self.original:
            self.original = self.score(TorchRunner(self.module, self.checkpoint.pose))[1]
        ap, draws = self.score(runner)
        differences = np.array(draws) - np.array(self.original)
        counted = cost(module, self.size)
        macs = module.used_macs(self.size) if isinstance(module, _Earlier) else counted.macs
        errors = {} if runner.name != "torch" else map_errors(self.module, module, self.dev)
        low, high = np.percentile(draws, [2.5, 97.5])
        dlow, dhigh = np.percentile(differences, [2.5, 97.5])
        self._write(
            {
                "method": method, "setting": setting, "gmacs": f"{macs / 1e9:.3f}",
                "params": counted.params, "AP": f"{ap:.4f}", "low": f"{low:.3f}", "high": f"{high:.3f}",
                "dAP": f"{differences.mean():.4f}", "dlow": f"{dlow:.3f}", "dhigh": f"{dhigh:.3f}",
                **{kind: f"{value:.5f}" for kind, value in errors.items()}, "seconds": round(seconds),
            }
        )  # fmt: skip

    def _write(self, row: dict[str, Any]) -> None:
        print(row, flush=True)
        self.rows.append(row)
        with self.options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)


def budgets(bench: Bench) -> None:
    """Ours: forms and ranks by a budget of MACs."""
    wanted = [b for b in BUDGETS if not bench.known("budget, data-aware", f"macs={b:g}G")]
    if not wanted:
        return
    layers = list_layers(bench.module, bench.size)
    calibration, curves = curves_of(bench.module, layers, Selection(pointwise=True), bench.images, Silent())
    name = bench.checkpoint.network.name
    work = Work(bench.module, name, bench.size, curves, calibration, bench.options.rounds)
    for budget in wanted:
        text = f"macs={budget:g}G"
        bench.add(
            "budget, data-aware",
            text,
            lambda text=text: (within_cost(work, parse_budget(text), Silent())[0].module, None),
        )


def ratios(bench: Bench) -> None:
    """Ours: the paper's form, Tucker-2 of kxk convolutions at one ratio, weights alone and fitted to data."""
    for text in ("1/2", "1/3"):
        plan = _plan(bench, Ratio(parse_ratio(text)))
        bench.add("ratio, weights alone", text, lambda plan=plan: (factorize(bench.module, plan).module, None))
        bench.add("ratio, data-aware", text, lambda plan=plan: (_fitted(bench, plan), None))


def vbmf(bench: Bench) -> None:
    """EVBMF ranks."""
    plan = _plan(bench, Vbmf())
    bench.add("EVBMF, weights alone", "vbmf", lambda: (factorize(bench.module, plan).module, None))
    bench.add("EVBMF, data-aware", "vbmf", lambda: (_fitted(bench, plan), None))


def tensorly(bench: Bench) -> None:
    """What the world copies."""
    for text in ("1/2", "1/3"):
        plan = _plan(bench, Ratio(parse_ratio(text)))
        bench.add("tensorly partial_tucker", text, lambda plan=plan: (_by_tensorly(bench.module, plan), None))


def pruning(bench: Bench) -> None:
    """Channels left out by norm, the same share everywhere."""
    for share in (0.17, 0.28, 0.41):
        bench.add(
            "torch-pruning, group norm", f"{share:g} of channels", lambda share=share: (_pruned(bench, share), None)
        )


def int8(bench: Bench) -> None:
    """Eight bits by NNCF, run by OpenVINO."""
    bench.add("NNCF INT8", "post-training", lambda: (bench.module, _quantised(bench)))


def stage(bench: Bench) -> None:
    """The maps of the last stage but one."""
    bench.add("a stage fewer", "-1", lambda: (_Earlier(bench.module), None))


def _plan(bench: Bench, policy: Any) -> Plan:
    return make_plan(bench.module, policy, network=bench.checkpoint.network.name, input_size=bench.size)


def _fitted(bench: Bench, plan: Plan) -> nn.Module:
    names, _ = eligible(list_layers(bench.module, bench.size), Selection(pointwise=True))
    changed = {entry.name for entry in plan.changed}
    calibration = calibrate(bench.module, bench.images, [name for name in names if name in changed], Silent())
    return factorize_with_data(bench.module, plan, calibration, rounds=bench.options.rounds).module


def _by_tensorly(module: nn.Module, plan: Plan) -> nn.Module:
    from tensorly import set_backend
    from tensorly.decomposition import partial_tucker

    set_backend("pytorch")
    network = copy.deepcopy(module)
    for entry in plan.changed:
        layer = network.get_submodule(entry.name)
        r3, r4 = entry.ranks
        (core, (last, first)), _ = partial_tucker(layer.weight.detach(), rank=[r4, r3], modes=[0, 1], init="svd")
        new = TuckerConv2d(layer, (r3, r4))
        with torch.no_grad():
            new.reduce.weight.copy_(first.T[:, :, None, None])
            new.core.weight.copy_(core)
            new.expand.weight.copy_(last[:, :, None, None])
            if layer.bias is not None:
                new.expand.bias.copy_(layer.bias)
        parent, _, child = entry.name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)
    return network


def _pruned(bench: Bench, share: float) -> nn.Module:
    import torch_pruning

    network = copy.deepcopy(bench.module)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    example = torch.zeros(1, 3, *bench.size)
    maps = {value.shape[1] for value in network(example)[-1].values()}
    outputs = [x for x in network.modules() if isinstance(x, nn.Conv2d) and x.out_channels in maps]
    pruner = torch_pruning.pruner.BasePruner(
        network,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        ignored_layers=outputs,
        round_to=8,
        output_transform=lambda stages: sum(value.sum() for part in stages for value in part.values()),
    )
    pruner.step()
    return network.eval()


def _quantised(bench: Bench) -> OpenVinoRunner:
    import nncf
    import openvino

    folder = Path(tempfile.mkdtemp())
    write_ir(export_onnx(bench.module, bench.checkpoint.pose, folder / "m.onnx"), folder / "m.xml")
    data = nncf.Dataset([image.numpy() for image in bench.images])
    model = nncf.quantize(openvino.Core().read_model(folder / "m.xml"), data, subset_size=len(bench.images))
    openvino.save_model(model, folder / "int8.xml")
    return OpenVinoRunner(folder / "int8.xml")


class _Earlier(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        stages = self.network(images)
        if len(stages) < 2:
            raise ValueError("the network has a single stage")
        return stages[:-1]

    def used_macs(self, size: tuple[int, int]) -> int:
        """MACs of the layers that the earlier stage's maps depend on."""
        outputs: dict[str, torch.Tensor] = {}
        layers = {layer.name: layer for layer in list_layers(self.network, size)}
        handles = [
            self.network.get_submodule(name).register_forward_hook(
                lambda _, inputs, output, name=name: outputs.__setitem__(name, output)
            )
            for name in layers
        ]
        maps = self(torch.zeros(1, 3, 64, 64, requires_grad=True))[-1]
        for handle in handles:
            handle.remove()
        total = sum(value.sum() for value in maps.values())
        reached = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
        return sum(layers[name].macs for name, found in zip(outputs, reached, strict=True) if found is not None)


def rows() -> Iterator[Callable[[Bench], None]]:
    """All sections by name."""
    yield from (budgets, ratios, vbmf, tensorly, stage, int8, pruning)


def draw(path: Path, rows_: list[dict[str, Any]]) -> None:
    """AP by GMAC with the intervals of the difference to the original."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    good = [row for row in rows_ if row.get("gmacs")]
    original = next(float(row["AP"]) for row in good if row["method"] == "original")
    axes.axhline(original, color="0.6", linewidth=1, linestyle="--")
    for method in dict.fromkeys(row["method"] for row in good):
        points = sorted((float(r["gmacs"]), float(r["AP"]), float(r["dlow"]), float(r["dhigh"]), float(r["dAP"]))
                        for r in good if r["method"] == method)  # fmt: skip
        x, y = [p[0] for p in points], [p[1] for p in points]
        bars = [[p[4] - p[2] for p in points], [p[3] - p[4] for p in points]]
        axes.errorbar(x, y, yerr=bars, marker="o", capsize=3, linewidth=1.5, label=method)
    axes.set_xlabel("GMAC (executed, conv + linear)")
    axes.set_ylabel("OKS AP, no training")
    axes.set_ylim(bottom=-0.01)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the asked sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--calibrate-annotations", type=Path, required=True)
    parser.add_argument("--calibrate-images", type=Path, required=True)
    parser.add_argument("--calibrate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--input", default="256x456")
    parser.add_argument("--rows", default=",".join(section.__name__ for section in rows()), help="sections to run")
    parser.add_argument("-o", "--output", type=Path, required=True)
    bench = Bench(parser.parse_args())
    bench.add("original", "-", lambda: (bench.module, None))
    sections = {section.__name__: section for section in rows()}
    for name in bench.options.rows.split(","):
        sections[name](bench)
    draw(bench.options.output.with_suffix(".png"), bench.rows)


if __name__ == "__main__":
    main()
