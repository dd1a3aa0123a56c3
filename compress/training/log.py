"""The log of a training run: JSON lines in a file, and TensorBoard event files if requested."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from compress.errors import FileError, RuntimeAbsent
from compress.files import write_text
from compress.progress import Progress
from compress.training.results import Event, StepLog


def log_path(model: Path) -> Path:
    """Where the log of the run is written that writes this model file."""
    return model.with_name(f"{model.stem}.log.jsonl")


class RunLog:
    """Writes the log of a run line by line; a context manager, which opens the file.

    A line is a step (``step``, ``loss``, ``parts``, ``learning_rate``, ``images_per_second``, after an evaluation also
    ``score`` and ``best``) or an event (``event``, ``step``, ``text`` and its values). The steps undone by a
    ``rollback`` remain above it. Values that are not finite are null.

    Parameters
    ----------
    path : Path
        File to write.
    resume : bool
        Whether to append to an existing log, from the step that an event of the kind ``resume`` names; otherwise it
        is replaced.
    tensorboard : Path, optional
        Folder for TensorBoard's event files.

    Raises
    ------
    FileError
        If the file can't be written.
    RuntimeAbsent
        If TensorBoard is requested and not installed.
    """

    def __init__(self, path: Path, *, resume: bool = False, tensorboard: Path | None = None) -> None:
        self.path = path
        self._writer = None if tensorboard is None else _open_tensorboard(tensorboard)
        if not (resume and path.exists()):
            write_text(path, "")
        self._open()

    def _open(self) -> None:
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise FileError(f"the log can't be written: {error.strerror or error}", found=str(self.path)) from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def step(self, entry: StepLog) -> None:
        """Write a step."""
        line = {key: value for key, value in asdict(entry).items() if key != "steps"}
        if entry.score is None:
            del line["score"], line["best"]
        self._write(line)
        if self._writer is not None:
            values = {"loss": entry.loss, "learning_rate": entry.learning_rate, "score": entry.score}
            values |= {f"loss/{name}": value for name, value in entry.parts.items()}
            values["images_per_second"] = entry.images_per_second
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, entry.step)

    def event(self, event: Event) -> None:
        """Write an event."""
        if event.kind == "resume":
            self._rewind(event.step)
        self._write({"event": event.kind, "step": event.step, "text": event.text, **event.values})
        if self._writer is not None:
            self._writer.add_text("events", f"{event.kind}: {event.text}", event.step)

    def _rewind(self, step: int) -> None:
        """Remove the lines after a step, and a last one that an interruption left incomplete."""
        lines = read_log(self.path)
        marks = [number for number, line in enumerate(lines, 1) if "event" not in line and line["step"] == step]
        kept = lines[: marks[-1]] if marks else [line for line in lines if line["step"] <= step]
        self._file.close()
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._open()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
        self._file.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeAbsent(
            "TensorBoard is not installed", found=str(folder), hint="pip install 'pose-compress[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without a last one that an interruption left incomplete.

    Raises
    ------
    FileError
        If the file can't be read, or any other line is not that of a log.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"the log can't be read: {error}", found=str(path)) from error
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["step"], int):
                raise TypeError("its step is not an integer")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise FileError(f"line {number} is not that of a training log: {error}", found=str(path)) from error
        entries.append(entry)
    return entries


def steps_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a run in order, without those that a rollback undid."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        if line.get("event") == "rollback":
            kept = [step for step in kept if step["step"] <= line["step"]]
        elif "event" not in line:
            kept.append(line)
    return kept


class RunMonitor:
    """Reports the steps and events of a run to the user and the log.

    Parameters
    ----------
    progress : Progress
        Where lines that stay are printed.
    advance : callable
        Advances the progress bar.
    log : RunLog or None
        None in processes that write no files.
    """

    def __init__(self, progress: Progress, advance: Callable[..., None], log: RunLog | None) -> None:
        self._progress, self._advance, self._log = progress, advance, log

    def step(self, entry: StepLog) -> None:
        """Report a step."""
        if self._log is not None:
            self._log.step(entry)
        if entry.score is not None:
            self._progress.say(f"step {entry.step}: score {entry.score:.3f}" + (" (best)" if entry.best else ""))
        self._advance(1, f"loss {entry.loss:.4g}  lr {entry.learning_rate:.2g}  {entry.images_per_second:.0f} images/s")

    def event(self, event: Event) -> None:
        """Report an event."""
        if self._log is not None:
            self._log.event(event)
        self._progress.say(event.text)
        if event.kind == "resume":
            self._advance(event.step)
        if event.kind == "rollback":
            self._advance(event.step - event.values["failed"] + 1)
