"""Calling the program in this process, as a terminal would."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import pytest

from compress import cli


class Outcome(NamedTuple):
    """Exit code and output of one call."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed with ``--json``."""
        return json.loads(self.out)


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> Outcome:
    """Call ``compress`` with arguments."""
    monkeypatch.setattr(sys, "argv", ["compress", *map(str, words)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)
