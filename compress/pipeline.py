"""Run a recipe; stages whose inputs, options and outputs have not changed are skipped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import __version__
from compress.commands.base import CommandOptions
from compress.commands.fields import DataText, NetworkText, extras
from compress.commands.registry import get_command
from compress.files import write_text
from compress.progress import Progress
from compress.recipe import Recipe, Step

#: A file up to this many bytes in a data set counts with its content, a larger one with its size and time.
SMALL_FILE = 1 << 20

#: In a folder whose small files hold more than this many bytes together, they count with size and time too.
SMALL_FOLDER = 64 << 20


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes
    ----------
    stage : str
        Name of its command.
    skipped : bool
        Whether it had been run before.
    record : dict
        What the command prints with ``--json``.
    files : tuple of Path
        Files that it wrote.
    summary : str
        The result in one line.
    """

    stage: str
    skipped: bool
    record: dict[str, Any]
    files: tuple[Path, ...]
    summary: str


def run_recipe(
    recipe: Recipe, progress: Progress, *, force: bool = False, done: Callable[[int, StepReport], None] | None = None
) -> tuple[StepReport, ...]:
    """Run the steps in order.

    Parameters
    ----------
    recipe : Recipe
        The pipeline.
    progress : Progress
        Receives messages and progress of the stages.
    force : bool
        Run every step, finished or not.
    done : callable, optional
        Called with the number (from 1) and the report of each step.

    Returns
    -------
    tuple of StepReport
        One for each step.
    """
    reports = []
    for number, step in enumerate(recipe.steps, 1):
        stamp = recipe.folder / ".stages" / f"{number:02d}-{step.stage}.json"
        digest = digest_of(step)
        report = None if force else _finished(stamp, digest, step)
        if report is None:
            report = _run(step, stamp, digest, progress, resume=not force)
        reports.append(report)
        if done is not None:
            done(number, report)
    return tuple(reports)


def _run(step: Step, stamp: Path, digest: str, progress: Progress, *, resume: bool) -> StepReport:
    """Run a step, continue it where it was interrupted, and record that it is finished."""
    started = stamp.with_suffix(".started")
    options = step.options
    if resume and options.can_resume() and _read(started) == digest:
        progress.say(f"{step.stage}: resuming the interrupted run")
        options = options.model_copy(update={"resume": True})
    write_text(started, digest)
    result = get_command(step.stage).run(options, progress)
    started.unlink()
    report = StepReport(step.stage, False, result.record, result.written, result.summary)
    files = {str(path): _fingerprint(path) for path in report.files}
    record = {"digest": digest, "files": files, "record": report.record, "summary": report.summary}
    write_text(stamp, json.dumps(record, indent=1))
    return report


def _finished(stamp: Path, digest: str, step: Step) -> StepReport | None:
    """The report of an earlier run of a step, if its inputs were the same and its outputs are untouched."""
    try:
        record = json.loads(stamp.read_text(encoding="utf-8"))
        files = {Path(name): fingerprint for name, fingerprint in record["files"].items()}
        if record["digest"] != digest or any(_fingerprint(path) != written for path, written in files.items()):
            return None
        return StepReport(step.stage, True, record["record"], tuple(files), record["summary"])
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def digest_of(step: Step) -> str:
    """Hash of everything that a step depends on: program version, options, and the files that it reads."""
    lines = [__version__, step.stage, step.options.model_dump_json()]
    lines += [f"{path} {_fingerprint(path)}" for path in _files(step.options)]
    lines += [f"{path} {_data_fingerprint(path)}" for path in _data(step.options)]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _inputs(options: CommandOptions) -> Iterator[Any]:
    """Values of all options that are not outputs, those of tuples one by one."""
    for name, field in type(options).model_fields.items():
        if not extras(field).get("output"):
            value = getattr(options, name)
            yield from value if isinstance(value, tuple) else (value,)


def _files(options: CommandOptions) -> Iterator[Path]:
    """Files and folders that options name for reading, besides data sets."""
    for value in _inputs(options):
        if isinstance(value, Path):
            yield value
        elif isinstance(value, NetworkText) and value.file is not None:
            yield value.file


def _data(options: CommandOptions) -> Iterator[Path]:
    """Files and folders of the data sets that options name."""
    for value in _inputs(options):
        if isinstance(value, DataText):
            yield from value.reads(getattr(options, "split", None))


def _fingerprint(path: Path) -> str:
    """Hash of a file's content; of a folder as of data."""
    return _hash_content(path) if path.is_file() else _data_fingerprint(path)


def _data_fingerprint(path: Path) -> str:
    """Hash of a file or of all files in a folder, cheap for large ones: see `SMALL_FILE`."""
    if path.is_file():
        return _state(path, path.stat(), small=True)
    if not path.is_dir():
        return "absent"
    files = [(file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    small = sum(stat.st_size for _, stat in files if stat.st_size <= SMALL_FILE) <= SMALL_FOLDER
    lines = [f"{file.relative_to(path)} {_state(file, stat, small=small)}" for file, stat in files]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _state(file: Path, stat: os.stat_result, *, small: bool) -> str:
    """What a file of a data set counts with."""
    return _hash_content(file) if small and stat.st_size <= SMALL_FILE else f"{stat.st_size} {stat.st_mtime_ns}"


def _hash_content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
