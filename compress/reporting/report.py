"""A report that compares an original with compressed networks: measured, drawn and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.checkpoint.own_code import Network
from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.data.source import images
from compress.errors import NetworkError
from compress.evaluation.evaluate import evaluate
from compress.evaluation.score import EvaluationOptions, Score, evaluate_dataset
from compress.files import refuse_existing, write_text
from compress.measure.benchmark import Benchmark, BenchmarkOptions, benchmark, benchmark_inputs
from compress.measure.labelled import LabelledModel, ModelLike, label_models
from compress.measure.machine import Machine
from compress.network.inputs import InputSpec
from compress.pose.decoders.base import Decoder
from compress.pose.decoders.registry import get_decoder, option_names
from compress.pose.spec import PoseSpec
from compress.pose.views import View
from compress.progress import Progress, Silent
from compress.reporting.facts import ModelFacts, model_facts, pair_tuned
from compress.reporting.rendering import render
from compress.reporting.scenes import draw_scenes
from compress.reporting.tables import OPERATIONS
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner
from compress.target import Target
from compress.training.curve import draw_curve

#: Names of the files of a report.
FILES = ("report.html", "report.md", "report.csv", "report.json")


@dataclass(frozen=True)
class ReportOptions:
    """What is measured, and how.

    Attributes
    ----------
    runtimes : sequence of str or Target or None
        What models are timed on; the default of `compress.benchmark` otherwise.
    size : (int, int) or None
        H and W at which MACs are counted and latencies measured; the first model's own otherwise.
    threads : int or None
        CPU threads; each runtime's default otherwise.
    rounds : int
        Maximum number of timing rounds.
    max_seconds : float
        Start no timing round after this many seconds.
    network : str or callable or None
        The network of checkpoints and files that don't name it; see `compress.load`.
    view : View
        How networks look at images: height, flip test, scales.
    decoder_options : mapping
        Options of decoders; each decoder takes those that it has.
    strict : bool
        Whether an unreadable image is an error; otherwise it is skipped.
    pictures : int
        Number of images on which the people of all models are drawn.
    command : str
        What makes the report again; shown at its end.
    """

    runtimes: Sequence[str | Target] | None = None
    size: tuple[int, int] | None = None
    threads: int | None = None
    rounds: int = 200
    max_seconds: float = 60.0
    network: Network | None = None
    view: View = field(default_factory=View)
    decoder_options: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    pictures: int = 4
    command: str = ""

    def decoder(self, pose: PoseSpec) -> Decoder:
        """The decoder of a pose specification with those options that it has."""
        known = option_names(pose)
        return get_decoder(pose, **{name: value for name, value in self.decoder_options.items() if name in known})


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes
    ----------
    title : str
        Heading.
    command : str
        What makes this report again.
    conditions : mapping of str to str
        Machine, data, input size and conventions under which the numbers hold.
    models : tuple of ModelFacts
        The original first.
    scenes : tuple of (str, bytes)
        Name and PNG of images with the people of all models side by side.
    absent : tuple of str
        Requested runtimes that this machine does not have.
    curves : tuple of (str, bytes)
        Label and PNG of the training curve of each model that has one.
    """

    title: str
    command: str
    conditions: Mapping[str, str]
    models: tuple[ModelFacts, ...]
    scenes: tuple[tuple[str, bytes], ...] = ()
    absent: tuple[str, ...] = ()
    curves: tuple[tuple[str, bytes], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON, without pictures."""
        return {
            "title": self.title,
            "command": self.command,
            "conditions": dict(self.conditions),
            "absent": list(self.absent),
            "models": [model.to_dict() for model in self.models],
        }

    def save(self, folder: str | Path, force: bool = False) -> tuple[Path, ...]:
        """Write ``report.html``, ``report.md``, ``report.csv`` and ``report.json`` into a folder.

        Returns
        -------
        tuple of Path
            The files, the HTML first.

        Raises
        ------
        FileError
            If one of them exists and ``force`` is false; then none is written.
        """
        folder = Path(folder)
        check_folder(folder, force)
        texts = render(self)
        for name, text in texts.items():
            write_text(folder / name, text, force=force)
        return tuple(folder / name for name in texts)

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        return render(self)["report.html"]


def check_folder(folder: Path, force: bool) -> None:
    """Raise `FileError` if a file of a report exists and ``force`` is false: before any work, all or none."""
    for name in FILES:
        refuse_existing(folder / name, force)


def report(
    models: Sequence[ModelLike],
    data: Any = None,
    *,
    options: ReportOptions | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure models beside the first of them: costs, latency, accuracy on data, and poses on some images.

    Parameters
    ----------
    models : sequence of Model, path, or (label, Model or path)
        The first is the original. Paths name checkpoints, ``.onnx`` or ``.xml`` files.
    data : object, optional
        A data set or images, as `compress.images` takes them. Pose networks are scored on annotated data; where there
        is no score, final outputs are compared with those of the first model.
    options : ReportOptions, optional
        Runtimes, rounds, decoding and pictures.
    progress : Progress, optional
        Receives messages and progress bars.

    Returns
    -------
    Report
        To be saved by its ``save(folder)``.

    Raises
    ------
    CompressError
        If a model or the data can't be read, or no runtime can run the models.
    """
    options, progress = options or ReportOptions(), progress or Silent()
    entries = label_models(models, options.network)
    source = None if data is None else images(data)
    timing = BenchmarkOptions(
        size=options.size or _counting_size(entries[0]),
        threads=options.threads,
        rounds=options.rounds,
        max_seconds=options.max_seconds,
        network=options.network,
        roofline=False,
    )
    inputs = benchmark_inputs(entries[0], timing)
    scores, scenes = _find_people(entries, source, options, progress)
    errors = {} if source is None else _output_errors(entries, scores, source, options, progress)
    timed = benchmark([_timed(entry) for entry in entries], options.runtimes, options=timing, progress=progress)
    facts = [
        replace(
            model_facts(entry, inputs),
            metrics=dict(scores[entry.label].metrics) if entry.label in scores else {},
            output_error=errors.get(entry.label),
            latency={row.label: row for row in timed.rows if row.model == entry.label},
        )
        for entry in entries
    ]
    return Report(
        title=f"{_network_name(entries[0])}: original against compressed",
        command=options.command or f"compress.report([{', '.join(repr(entry.label) for entry in entries)}])",
        conditions=_conditions(entries[0], inputs, timed, source, scores, options),
        models=pair_tuned(facts),
        scenes=scenes,
        absent=timed.absent,
        curves=_curves(entries),
    )


def _counting_size(first: LabelledModel) -> tuple[int, int] | None:
    """The size at which the first model's costs are counted, if it reads an image."""
    return first.model.size if first.model is not None and len(first.model.inputs[0].shape) == 4 else None


def _timed(entry: LabelledModel) -> ModelLike:
    source = entry.model or entry.path
    assert source is not None
    return entry.label, source


def _network_name(entry: LabelledModel) -> str:
    return entry.label if entry.model is None else entry.model.name


def _find_people(
    entries: Sequence[LabelledModel], source: Dataset | Tensors | None, options: ReportOptions, progress: Progress
) -> tuple[dict[str, Score], tuple[tuple[str, bytes], ...]]:
    """Scores of all pose networks by label, where there are annotations, and pictures of what they find."""
    scores: dict[str, Score] = {}
    scenes: tuple[tuple[str, bytes], ...] = ()
    if source is None or isinstance(source, Tensors):
        return scores, scenes
    with ExitStack() as stack:
        runners = _pose_runners(entries, options, stack)
        if source.annotated:
            scores = _scores(runners, source, options, progress)
        if options.pictures and runners:
            scenes = draw_scenes(
                runners, source, options.pictures, decoder=options.decoder, view=options.view, strict=options.strict
            )
    return scores, scenes


def _pose_runners(entries: Sequence[LabelledModel], options: ReportOptions, stack: ExitStack) -> dict[str, Runner]:
    """Runners of all models that have a pose specification, by label: torch in FP32, or the file's own runtime."""
    runners: dict[str, Runner] = {}
    for entry in entries:
        source = entry.model or entry.path
        assert source is not None
        runner = open_runner(source, threads=options.threads, network=options.network)
        stack.callback(runner.close)
        if runner.pose is not None:
            runners[entry.label] = runner
    return runners


def _scores(
    runners: Mapping[str, Runner], dataset: Dataset, options: ReportOptions, progress: Progress
) -> dict[str, Score]:
    scores = {}
    for label, runner in runners.items():
        assert runner.pose is not None
        with progress.bar(f"evaluate {label}", len(dataset)) as advance:
            how = EvaluationOptions(decoder=options.decoder(runner.pose), view=options.view, strict=options.strict)
            scores[label] = evaluate_dataset(dataset, runner, how, progress=_step(advance)).score
    return scores


def _output_errors(
    entries: Sequence[LabelledModel],
    scored: Collection[str],
    source: Dataset | Tensors,
    options: ReportOptions,
    progress: Progress,
) -> dict[str, float]:
    """The largest relative squared error of an output against the first model, of each model without a score."""
    reference, *others = entries
    if reference.model is None:
        return {}
    errors: dict[str, float] = {}
    for entry in others:
        model = entry.model or entry.path
        if model is None or entry.label in scored:
            continue
        try:
            difference = evaluate(
                model,
                source,
                difference=reference.model,
                options=EvaluationOptions(view=options.view),
                progress=progress,
            )
        except NetworkError as error:  # another kind of network
            progress.say(f"{entry.label} is not compared with {reference.label}: {error.cause}")
            continue
        errors[entry.label] = difference.largest
    return errors


def _step(advance: Callable[..., None]) -> Callable[[int, int], None]:
    return lambda done, total: advance(1)


def _curves(entries: Sequence[LabelledModel]) -> tuple[tuple[str, bytes], ...]:
    """The training curve of each checkpoint that has a log beside it."""
    drawn = [(entry.label, draw_curve(entry.path)) for entry in entries if entry.path is not None and entry.model]
    return tuple((label, png) for label, png in drawn if png is not None)


def _conditions(
    first: LabelledModel,
    inputs: Sequence[InputSpec],
    timed: Benchmark,
    source: Dataset | Tensors | None,
    scores: Mapping[str, Score],
    options: ReportOptions,
) -> dict[str, str]:
    shape = inputs[0].shape
    size = f"{shape[2]}x{shape[3]}" if len(shape) == 4 else "x".join(map(str, shape))
    conditions = {
        "network": _network_name(first),
        "MACs": f"{OPERATIONS}; at {size}",
        **_machine_conditions(timed.machine),
        "latency": f"network alone, batch 1, {size}, fp32 unless the runtime says otherwise; interleaved "
        "rounds, median; speed-ups within rounds with 95 % bootstrap intervals",
    }
    if source is not None:
        pose = None if first.model is None else first.model.pose
        height = options.view.height or (None if pose is None else pose.height)
        conditions["data"] = f"{source.name}, {len(source)} images" + (f" at height {height}" if height else "")
        conventions = dict.fromkeys(score.convention for score in scores.values())
        conditions["accuracy"] = ("; ".join(conventions) or "none") + ", torch fp32"
    return conditions


def _machine_conditions(machine: Machine) -> dict[str, str]:
    return {
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb} GiB, {machine.os}",
        "instruction sets": ", ".join(machine.instruction_sets),
        "GPU": machine.gpu,
        "software": f"Python {machine.python}, torch {machine.torch}, OpenVINO {machine.openvino}, "
        f"onnxruntime {machine.onnxruntime}",
    }
