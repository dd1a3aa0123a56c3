"""Accuracy at equal MACs: this project and the alternatives in one table and one figure.

    python benchmarks/quality.py --assets DIR [--rows budgets,ratios,...] [--recover-steps N] -o FILE.csv

The folder holds `weights/human-pose-estimation-0001`, `images/coco/train2017` (fitted to, without labels),
`images/coco/val2017` with `annotations/person_keypoints_val2017_subset.json` (scored), and `images/lspet400` (for the
recovery, with train2017). `--checkpoint`, `--data`, `--calibrate-data` and `--recover-data` name others; without any
the default network meets drawn people.

Rows: `budgets` and `ratios` are ours (forms and ranks by a budget; Tucker-2 of the kxk convolutions at one ratio, from
weights alone and fitted to data), and so is `without_cp` (budgets that may not choose the CP form); `tensorly` is
Tucker-2 of the same layers by `partial_tucker`; `vbmf` EVBMF ranks; `pruning` channel pruning by torch-pruning, by norm
and by Taylor importance; `int8` NNCF post-training quantisation on OpenVINO; `stage` the network with one refinement
stage removed. All get the same MACs budget where they can meet one; a row of a network that can't be made says why.

AP is OKS AP of all annotated images at the input's height, with 95 % bootstrap intervals over images, of the difference
to the original over the same draws; map errors are relative squared errors of the final outputs on these images. With
`--recover-steps` each network is scored again after the same distillation without labels: same loop, steps and images,
the backbone (`--freeze`) frozen except in pruned networks, where it lost channels; INT8 networks are not trained.

Rows are written as they come, and rows that are there already are not computed again; delete a line to renew it. The
table and the figure beside the file are made from it at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from quality_table import ORIGINAL, Row, draw, markdown, read_rows, write_rows
from rivals import Pruning, by_tensorly, quantised, stage_fewer, uniform_plan
from torch import Tensor, nn

from compress.checkpoint.load import create, load
from compress.compression.budgets import within_cost
from compress.compression.calibration import calibrate, calibrated_curves
from compress.compression.problem import BudgetProblem
from compress.data.augment import Augmentation
from compress.data.limited import Limited
from compress.data.sample import Dataset
from compress.data.source import open_data
from compress.errors import CompressError
from compress.evaluation.inputs import calibration_inputs
from compress.evaluation.score import EvaluationOptions, evaluate_dataset
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import write_ir
from compress.files import write_text
from compress.forms.registry import FORMS
from compress.measure.gate import never_slower
from compress.model import Model
from compress.network.inputs import batched
from compress.planning.budget import Budget
from compress.planning.budgeted import eligible
from compress.planning.plan import Plan
from compress.planning.policies import Vbmf, make_plan
from compress.planning.selection import Selection
from compress.pose.metrics.ap_interval import Matches, ap_difference, ap_interval, match_people
from compress.pose.views import View
from compress.progress import Silent
from compress.runtime.openvino_runner import OpenVinoRunner
from compress.runtime.runner import Array, ArrayInputs, Runner
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.data_aware import factorize_with_data
from compress.surgery.factorize import factorize
from compress.training.loop import train
from compress.training.options import FineTuneOptions

REAL = "human-pose-estimation-0001"
REAL_BUDGETS = ("6.5G", "5.9G", "5.28G", "4.63G", "4G", "3.5G")
SHARES = ("0.85", "0.77", "0.69", "0.6", "0.52", "0.455")


@dataclass(frozen=True)
class Made:
    """A compressed network, its runner where that is not torch, and whether it may be trained and frozen."""

    module: nn.Module
    runner: Runner | None = None
    trainable: bool = True
    freeze: bool = True


class RecordingRunner:
    """A runner that keeps its outputs, or compares them with the original's on the same images."""

    def __init__(self, runner: Runner, wanted: list[dict[str, Array]] | None = None) -> None:
        self.name, self.device, self.precision = runner.name, runner.device, runner.precision
        self.threads, self.pose = runner.threads, runner.pose
        self.maps: list[dict[str, Array]] = []
        self._runner, self._wanted, self._done = runner, wanted, 0
        self._lost: dict[str, float] = defaultdict(float)
        self._whole: dict[str, float] = defaultdict(float)

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Outputs by name; see `compress.runtime.runner.Runner.run`."""
        maps = self._runner.run(inputs)
        if self._wanted is None:
            self.maps.append(maps)
            return maps
        for name, wanted in self._wanted[self._done].items():
            self._lost[name] += float(np.square(maps[name] - wanted, dtype=np.float64).sum())
            self._whole[name] += float(np.square(wanted, dtype=np.float64).sum())
        self._done += 1
        return maps

    def errors(self) -> dict[str, float]:
        """Relative squared error of each output."""
        return {name: self._lost[name] / (self._whole[name] or 1.0) for name in self._lost}

    def close(self) -> None:
        """Free the resources of the runtime."""
        self._runner.close()


class QualityRun:
    """The original, the images, and the rows so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        model = _model(options)
        height, width = options.input.split("x") if options.input else _own_size(model)
        self.size = (int(height), int(width))
        self.model = model.at_size(self.size)
        self.module, self.name = model.module, model.name
        data = _data(options)
        self.dataset: Dataset = Limited(data, options.limit) if options.limit else data
        self.total = self.model.cost.macs
        self.budgets = options.budget or (REAL_BUDGETS if self.name == REAL else SHARES)
        self.rows: list[Row] = read_rows(options.output)

    def macs(self, budget: str) -> float:
        """The MACs of a budget."""
        return Budget.parse(f"macs={budget}").bound(self.total)

    @cached_property
    def images(self) -> list[Tensor]:
        """Images for factors, importances and INT8 calibration."""
        count = min(self.options.calibrate, self.options.limit or self.options.calibrate)
        dataset = open_data(_named(self.options, "calibrate_data", "synthetic:1:64", "images/coco/train2017"))
        inputs = calibration_inputs(dataset, self.model, max(2, count), self.size[0])
        return [batched(image) for image in inputs]

    @cached_property
    def original(self) -> tuple[Matches, list[dict[str, Array]]]:
        """The people that the original finds, and its outputs."""
        recording = RecordingRunner(TorchRunner.of(self.model))
        return self._find(recording), recording.maps

    @cached_property
    def exported(self) -> OpenVinoRunner:
        """The original on OpenVINO."""
        return self._export(self.module, "original")

    def _find(self, runner: Runner) -> Matches:
        found = evaluate_dataset(self.dataset, runner, EvaluationOptions(view=View(self.size[0])))
        ids = [self.dataset[index].image_id for index in range(len(self.dataset))]
        return match_people(self.dataset.ground_truth(), found.detections, ids)

    def _export(self, module: nn.Module, name: str) -> OpenVinoRunner:
        path = self.folder / f"{name}.onnx"
        write_ir(export_onnx(self.model.derive(module), path, force=True), path.with_suffix(".xml"))
        return OpenVinoRunner(path.with_suffix(".xml"))

    def known(self, method: str, setting: str, steps: int = 0) -> bool:
        """Whether that row is there already."""
        return any((x["method"], x["setting"], int(x["steps"])) == (method, setting, steps) for x in self.rows)

    def add(self, method: str, setting: str, make: Callable[[], Made]) -> None:
        """Make a network, score it before and after recovery, write its rows."""
        wanted = [s for s in sorted({0, self.options.recover_steps}) if not self.known(method, setting, s)]
        if method == ORIGINAL:
            wanted = [s for s in wanted if not s]
        made, start = None, time.perf_counter()
        for steps in wanted:
            row = {"method": method, "setting": setting, "steps": steps}
            try:
                made = made or make()
                if steps and not made.trainable:
                    continue
                module = self.recovered(made) if steps else made.module
                seconds = time.perf_counter() - start
                facts = self.measure(module, made.runner) | {"seconds": f"{seconds:.0f}"}
            except Exception as error:  # a rival that can't be made or run says so in its row
                what = error.cause if isinstance(error, CompressError) else f"{type(error).__name__}: {error}"
                facts = {"note": " ".join(what.split())[:200]}
            print(row | facts, flush=True)
            self.rows.append({name: str(value) for name, value in (row | facts).items()})
            write_rows(self.options.output, self.rows)
            self.rows = read_rows(self.options.output)
            if made is None:
                return

    def measure(self, module: nn.Module, runner: Runner | None) -> dict[str, str]:
        """Costs, AP, errors of the maps, and latency if that is asked for."""
        matches, maps = self.original
        recording = RecordingRunner(runner or TorchRunner.of(self.model.derive(module)), maps)
        found = self._find(recording)
        ap, difference = ap_interval(found), ap_difference(matches, found)
        counted = self.model.derive(module).cost
        facts = {"gmacs": f"{counted.macs / 1e9:.3f}", "params": str(counted.params)}
        facts |= {"AP": f"{ap.value:.4f}", "low": f"{ap.low:.3f}", "high": f"{ap.high:.3f}"}
        facts |= {"dlow": f"{difference.low:.3f}", "dhigh": f"{difference.high:.3f}"}
        facts |= {kind: f"{value:.5f}" for kind, value in recording.errors().items() if kind in ("heatmaps", "pafs")}
        if self.options.latency:
            timed = runner or self._export(module, "result")
            gate = never_slower(self.exported, timed, self.model.inputs)
            ends = {"llow": f"{gate.interval[0]:.3f}", "lhigh": f"{gate.interval[1]:.3f}"}
            facts |= {"latency": f"{gate.ratio:.3f}", **ends}
        return facts

    def recovered(self, made: Made) -> nn.Module:
        """The network after a short distillation without labels."""
        names = [name for name, _ in made.module.named_modules()]
        frozen = [x for x in self.options.freeze if made.freeze and any(fnmatchcase(name, x) for name in names)]
        options = FineTuneOptions(
            steps=self.options.recover_steps,
            batch_size=self.options.recover_batch,
            size=(256, 256),
            learning_rate=self.options.recover_rate,
            freeze=tuple(frozen),
            label_weight=0.0,
            augmentation=Augmentation(rotate=15.0),
            amp=self.options.recover_amp,
            checkpoint_every=None,
        )
        folders = ("images/coco/train2017", "images/lspet400")
        data = open_data(_named(self.options, "recover_data", "synthetic:2:500", *folders))
        return train(self.model.derive(made.module), data, options, teacher=self.model).module


def budgets(run: QualityRun) -> None:
    """Ours: forms and ranks by a budget of MACs."""
    _by_budget(run, "budget, data-aware", None)


def without_cp(run: QualityRun) -> None:
    """The same without the CP form, to show what that form is worth."""
    _by_budget(run, "budget, without the CP form", [name for name in FORMS if name != "cp_separable"])


def _by_budget(run: QualityRun, method: str, forms: Sequence[str] | None) -> None:
    @cache
    def problem() -> BudgetProblem:  # statistics and curves are the same for all budgets
        selection = Selection(pointwise=True)
        calibration, curves = calibrated_curves(run.model, selection, run.images, Silent(), methods=forms)
        return BudgetProblem(run.model, curves, calibration, run.options.rounds)

    def made(text: str) -> Made:
        return Made(within_cost(problem(), Budget.parse(text), Silent())[0].module)

    for budget in run.budgets:
        run.add(method, f"macs={budget}", partial(made, f"macs={budget}"))


def ratios(run: QualityRun) -> None:
    """Ours: the paper's form, Tucker-2 of kxk convolutions at one ratio, weights alone and fitted to data."""
    _uniform(run, "ratio, weights alone", lambda plan: factorize(run.module, plan).module)
    _uniform(run, "ratio, data-aware", partial(_fitted, run))


def tensorly(run: QualityRun) -> None:
    """The implementation that is copied most."""
    _uniform(run, "tensorly partial_tucker", partial(by_tensorly, run.module))


def _uniform(run: QualityRun, method: str, make: Callable[[Plan], nn.Module]) -> None:
    for budget in run.budgets:
        setting = f"macs={budget}"
        try:
            share, plan = uniform_plan(run.module, run.name, run.size, run.macs(budget))
            setting = str(share)
        except CompressError as error:
            run.add(method, setting, partial(_refused, error))
            continue
        run.add(method, setting, partial(_made, make, plan))


def _made(make: Callable[[Plan], nn.Module], plan: Plan) -> Made:
    return Made(make(plan))


def _refused(error: CompressError) -> Made:
    raise error


def vbmf(run: QualityRun) -> None:
    """EVBMF ranks, which have MACs of their own."""
    plan = make_plan(run.module, Vbmf(), network=run.name, input_size=run.size)
    run.add("EVBMF, weights alone", "vbmf", lambda: Made(factorize(run.module, plan).module))
    run.add("EVBMF, data-aware", "vbmf", lambda: Made(_fitted(run, plan)))


def pruning(run: QualityRun) -> None:
    """Channels left out, the same share of each layer by norm, or the least important of all."""

    def made(found: list[Pruning], importance: str, macs: float) -> Made:
        if not found:  # one course of pruning passes by all budgets
            found.append(Pruning(run.module, run.size, run.images, taylor=importance == "taylor"))
        return Made(found[0].to(macs), freeze=False)

    for method, importance in (("torch-pruning, L2 norm", "norm"), ("torch-pruning, Taylor", "taylor")):
        found: list[Pruning] = []
        for budget in run.budgets:
            run.add(method, f"macs={budget}", partial(made, found, importance, run.macs(budget)))


def int8(run: QualityRun) -> None:
    """INT8 by NNCF on OpenVINO."""

    def made() -> Made:
        runner = quantised(run.model, run.images, run.folder)
        return Made(run.module, runner, trainable=False)

    run.add("NNCF INT8", "post-training", made)


def stage(run: QualityRun) -> None:
    """The network without its last refinement stage."""
    run.add("one stage removed", "-1", lambda: Made(stage_fewer(run.module)))


def _fitted(run: QualityRun, plan: Plan) -> nn.Module:
    names, _ = eligible(run.model.layers, Selection(pointwise=True))
    changed = {entry.name for entry in plan.changed}
    aware = [name for name in names if name in changed]
    calibration = calibrate(run.module, run.model.outputs, run.images, aware, Silent())
    return factorize_with_data(run.module, plan, calibration, rounds=run.options.rounds).module


def _own_size(model: Model) -> tuple[int, int]:
    return (256, 456) if model.name == REAL else model.size


def _model(options: argparse.Namespace) -> Model:
    if options.checkpoint:
        return load(options.checkpoint)
    if options.assets:
        return load(options.assets / "weights" / REAL / f"{REAL}.pth")
    return create("default")


def _data(options: argparse.Namespace) -> Dataset:
    if options.assets and not (options.data or options.annotations):
        file = options.assets / "annotations" / "person_keypoints_val2017_subset.json"
        return open_data(None, annotations=file, images=options.assets / "images" / "coco" / "val2017")
    if options.annotations or options.images:
        return open_data(options.data, annotations=options.annotations, images=options.images)
    return open_data(options.data or "synthetic:0:100")


def _named(options: argparse.Namespace, key: str, drawn: str, *folders: str) -> str:
    """The data that an option names, or those of the assets, or drawn people."""
    real = "images:" + ",".join(str(options.assets / folder) for folder in folders) if options.assets else drawn
    return str(getattr(options, key) or real)


#: All sections by name, the quick ones first.
SECTIONS = {x.__name__: x for x in (stage, tensorly, int8, vbmf, ratios, budgets, without_cp, pruning)}


def main() -> None:
    """Run the asked sections and make the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--assets", type=Path, help="folder of real weights and images")
    add("--checkpoint", type=Path, help="another network")
    add("--data", help="annotated images to score, as for compress --data")
    add("--annotations", type=Path, help="or their COCO file")
    add("--images", type=Path, help="and their folder")
    add("--calibrate-data", help="images to fit to, as for compress --data; labels are not read")
    add("--calibrate", type=int, default=64, help="maximum number of them")
    add("--recover-data", help="images to recover on, as for compress --data; labels are not read")
    add("--recover-steps", type=int, default=0, help="0: no recovery")
    add("--recover-rate", type=float, default=2e-4, help="highest learning rate")
    add("--recover-batch", type=int, default=8)
    add("--recover-amp", choices=("auto", "off", "bf16", "fp16"), default="auto", help="its arithmetic")
    add("--freeze", nargs="*", default=["model"], help="modules that recovery leaves alone")
    add("--budget", nargs="+", help="MACs, falling: 5.28G, or shares such as 0.69")
    add("--rounds", type=int, default=12, help="as of compress factorize")
    add("--input", help="HEIGHTxWIDTH that MACs and latency are of; AP is at this height")
    add("--limit", type=int, help="maximum number of scored and calibration images")
    add("--latency", action="store_true", help="time each network beside the original on OpenVINO, interleaved")
    add("--rows", default=",".join(SECTIONS), help=f"sections to run: {', '.join(SECTIONS)}")
    add("-o", "--output", type=Path, required=True, help="CSV file; one for each network and data")
    options = parser.parse_args()
    sections = options.rows.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        run = QualityRun(options, Path(folder))
        run.add(ORIGINAL, "-", lambda: Made(run.module, trainable=False))
        for name in sections:
            SECTIONS[name](run)
    write_text(options.output.with_suffix(".md"), markdown(run.rows))
    draw(run.rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
