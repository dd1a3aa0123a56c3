"""The log of a training run: JSON lines in a file, and TensorBoard for those who have it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from compress.errors import FileError, RuntimeAbsent
from compress.files import write_text
from compress.training.results import Event, StepLog


class RunLog:
    """Writes a run down while it happens; a context manager, which opens the file.

    A line is a step (``step``, ``loss``, ``parts``, ``learning_rate``, ``images_per_second``, where there was an
    evaluation ``score`` and ``best``) or an event (``event``, ``step``, ``text`` and what else belongs to it). After a
    ``rollback`` the lines of the steps that were taken back still stand above it. What is not finite is null.

    Parameters
    ----------
    path : Path
        File to write.
    resume : bool
        Whether to go on in it, from where an event of the kind ``resume`` will say; otherwise it is replaced.
    tensorboard : Path, optional
        Folder for TensorBoard's event files.

    Raises
    ------
    FileError
        If the file can't be written.
    RuntimeAbsent
        If TensorBoard is asked for and not installed.
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
        """Take back the lines after a step, and what a kill left half-written."""
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
            "TensorBoard is not installed", found=str(folder), hint="pip install 'compress[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut off, as a kill leaves it, is left out.

    Raises
    ------
    FileError
        If it can't be read, or another line is none of a log.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"the log can't be read: {error}", found=str(path)) from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["step"], int):
                raise TypeError("its step is no number")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise FileError(f"line {number} is none of a training log: {error}", found=str(path)) from error
        found.append(entry)
    return found


def steps_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that a run consists of, in order: without those that were taken back."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        if line.get("event") == "rollback":
            kept = [step for step in kept if step["step"] <= line["step"]]
        elif "event" not in line:
            kept.append(line)
    return kept
