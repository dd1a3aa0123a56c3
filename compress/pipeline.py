"""Run a recipe; stages whose inputs, options and outputs have not changed are skipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import __version__
from compress.commands.registry import get_stage
from compress.files import write_text
from compress.progress import Progress
from compress.recipe import Recipe, Step


@dataclass(frozen=True)
class StepReport:
    """What became of one step: its record, its files, and whether it was skipped as already done."""

    stage: str
    skipped: bool
    record: dict[str, Any]
    files: tuple[Path, ...]


def run_recipe(
    recipe: Recipe, progress: Progress, *, force: bool = False, done: Callable[[int, StepReport], None] | None = None
) -> tuple[StepReport, ...]:
    """Run the steps in order.

    Parameters
    ----------
    recipe : Recipe
        The pipeline.
    progress : Progress
        Where stages tell what they do.
    force : bool
        Run every step, finished or not.
    done : callable, optional
        Called with each step's number (from 1) and report.

    Returns
    -------
    tuple of StepReport
        One for each step.
    """
    reports = []
    for number, step in enumerate(recipe.steps, 1):
        stamp = recipe.folder / ".stages" / f"{number:02d}-{step.stage}.json"
        digest = _digest(step)
        report = None if force else _finished(stamp, digest, step)
        if report is None:
            started = stamp.with_suffix(".started")
            options = step.options
            if not force and options.can_resume() and _read(started) == digest:
                progress.say(f"{step.stage}: going on where it was interrupted")
                options = options.model_copy(update={"resume": True})
            write_text(started, digest)
            result = get_stage(step.stage).run(options, progress)
            started.unlink()
            report = StepReport(step.stage, False, result.record, result.files)
            record = {
                "digest": digest,
                "files": {str(path): _hash_path(path) for path in result.files},
                "record": result.record,
            }
            write_text(stamp, json.dumps(record, indent=1))
        reports.append(report)
        if done is not None:
            done(number, report)
    return tuple(reports)


def _finished(stamp: Path, digest: str, step: Step) -> StepReport | None:
    """The earlier report of a step, if it ran with the same inputs and its outputs are untouched."""
    try:
        record = json.loads(stamp.read_text(encoding="utf-8"))
        files = {Path(name): written for name, written in record["files"].items()}
        if record["digest"] != digest or any(_hash_path(path) != written for path, written in files.items()):
            return None
        return StepReport(step.stage, True, record["record"], tuple(files))
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _digest(step: Step) -> str:
    """Hash of everything a step depends on: program version, options and the content of the files it reads."""
    digest = hashlib.sha256(f"{__version__}\n{step.stage}\n{step.options.model_dump_json()}\n".encode())
    for path in _inputs(step):
        digest.update(f"{path}\n{_hash_path(path)}\n".encode())
    return digest.hexdigest()


def _inputs(step: Step) -> Iterator[Path]:
    for name, field in type(step.options).model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("output"):
            continue
        value = getattr(step.options, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path):
                yield item


def _hash_path(path: Path) -> str:
    """Hash of a file's content; of a folder, of the names, sizes and times of what lies in it."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if path.is_dir():
        entries = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in path.rglob("*") if p.is_file())
        return hashlib.sha256(repr(entries).encode()).hexdigest()
    return "absent"
