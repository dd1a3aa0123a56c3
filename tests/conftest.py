"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """One thread a process: the suite runs several processes side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights, images and annotations."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("COMPRESS_ASSETS", root.parent / "shared" / "assets"))
    if not (folder / "INDEX.md").is_file():
        pytest.skip(f"the real assets are not at {folder}; set COMPRESS_ASSETS")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: at the end they would keep one process busy while the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run if tests of the real network had to be left out where they are demanded."""
    if os.environ.get("COMPRESS_REQUIRE_ASSETS") and getattr(session.config, "workerinput", None) is None:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        skipped = [r for r in (reporter.stats.get("skipped", []) if reporter else []) if "real" in r.keywords]
        if skipped and exitstatus == 0:
            reporter.write_line(f"{len(skipped)} test(s) of the real network were skipped, and none may be")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
