"""`compress report`: compare an original with compressed networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.commands.base import Command, Result
from compress.commands.fields import option
from compress.commands.options import (
    DataOptions,
    NetworkOptions,
    SizeOptions,
    TimingOptions,
    ViewOptions,
    decoder_overrides,
    open_dataset,
    view_of,
)
from compress.progress import Progress


class ReportOptions(NetworkOptions, DataOptions, ViewOptions, SizeOptions, TimingOptions):
    """Options of `compress report`."""

    original: Path = option(..., "Original model", positional=True)
    variants: tuple[Path, ...] = option((), "Compressed models: checkpoints, .onnx, .xml", positional=True)
    pictures: int = option(4, "Images on which the poses of all models are drawn side by side")
    output: Path = option(Path("report"), "Folder for report.html, .md, .csv and .json", flag="-o", output=True)
    force: bool = option(False, "Replace an existing report")


@dataclass(frozen=True)
class ReportResult(Result):
    """The files of the report, and the costs and accuracy of each model."""

    html: str
    files: tuple[str, ...]
    models: tuple[dict[str, Any], ...]

    @property
    def summary(self) -> str:
        """Where the page is."""
        return f"report: {self.html}"

    def show(self) -> None:
        """Print the summary."""
        from compress.commands.terminal import print_lines

        print_lines(self.summary)


def command_line(options: ReportOptions) -> str:
    """The command that makes the report again, from the folder of the models."""
    words = ["compress report", options.original.name, *(path.name for path in options.variants)]
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if name in ("original", "variants", "output", "force") or value == field.default:
            continue
        flag = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, tuple) and name != "input" else [value]:
            shown = "x".join(map(str, item)) if isinstance(item, tuple) else item
            words.append(flag if shown is True else f"{flag} {shown}")
    return " ".join([*words, "-o", options.output.name])


def run(options: ReportOptions, progress: Progress) -> ReportResult:
    """Measure everything that was asked for and write the report."""
    from compress.reporting.report import ReportOptions as Conditions
    from compress.reporting.report import check_folder, report

    check_folder(options.output, options.force)
    conditions = Conditions(
        runtimes=options.runtime,
        size=options.input,
        threads=options.threads,
        rounds=options.rounds,
        max_seconds=options.max_seconds,
        network=options.network,
        view=view_of(options),
        decoder_options=decoder_overrides(options),
        strict=options.strict,
        pictures=options.pictures,
        command=command_line(options),
    )
    data = open_dataset(options) if options.has_data else None
    done = report((options.original, *options.variants), data, options=conditions, progress=progress)
    files = done.save(options.output, force=options.force)
    models = tuple(
        {"label": m.label, "params": m.params, "macs": m.macs, "metric": m.metric, m.metric: m.accuracy}
        for m in done.models
    )
    return ReportResult(str(files[0]), tuple(map(str, files)), models, written=files)


COMMAND = Command(ReportOptions, run, "compress report model.pt small.pt --data synthetic:1000:100 -o report")
