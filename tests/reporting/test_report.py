"""Tables, figures and files of a report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import FileError
from compress.reporting import figures, tables
from compress.reporting.html import Report, verdict, write_report
from compress.reporting.tables import ModelFacts


def facts(label: str, *, macs: int, ap: float | None, speedup: list[float] | None, **more: object) -> ModelFacts:
    row = {
        "latency_ms": 10.0 / (speedup[0] if speedup else 1.0),
        "interval_ms": [9.0, 11.0],
        "p90_ms": 12.0,
        "fps": 100.0,
        "speedup": speedup,
        "verdict": "faster" if speedup and speedup[1] > 1 else "no difference",
    }
    layers = (
        {
            "name": "stage.0",
            "method": "tucker2",
            "ranks": [4, 5],
            "reason": "ratio",
            "params": [900, 300],
            "macs": [9000, 3000],
            "error": 0.25,
        },
    )
    return ModelFacts(
        label=label,
        file=f"{label}.pt",
        params=macs // 1000,
        macs=macs,
        size_bytes=macs // 250,
        metrics={} if ap is None else {"AP": ap, "AP50": ap, "AR": ap},
        latency={"openvino-cpu": row},
        layers=layers if speedup else (),
        **more,  # type: ignore[arg-type]
    )


def models() -> tuple[ModelFacts, ...]:
    return (
        facts("original", macs=2_000_000_000, ap=0.8, speedup=None),
        facts("third", macs=1_000_000_000, ap=0.3, speedup=[1.6, 1.5, 1.7], edits=("e",)),
        facts(
            "third-tuned", macs=1_000_000_000, ap=0.7, speedup=[1.0, 0.9, 1.1], edits=("e",), tuned=True, before="third"
        ),
    )


def test_summary_compares_with_the_first_and_shows_the_score_before_tuning() -> None:
    table = tables.summary(models())
    assert list(table["model"]) == ["original", "third", "third-tuned"]
    assert table["MACs ratio"].tolist() == [1.0, 0.5, 0.5]
    assert table["AP before tuning"].iloc[2] == 0.3
    assert table["AP change"].iloc[2] == pytest.approx(-0.1)
    assert table["openvino-cpu speed-up"].iloc[1] == 1.6


def test_a_speed_up_whose_interval_holds_1_is_not_called_one() -> None:
    sentences = verdict(models())
    assert "openvino-cpu: faster, x1.60 (1.50 to 1.70)" in sentences[0]
    assert "openvino-cpu: no difference" in sentences[1]


def test_an_empty_report_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one model"):
        tables.summary([])


points = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=12)


@given(points)
def test_the_pareto_front_is_what_brute_force_finds(values: list[tuple[float, float]]) -> None:
    cost, accuracy = [c for c, _ in values], [a for _, a in values]
    front = figures.pareto_front(cost, accuracy)
    kept = {(cost[i], accuracy[i]) for i in front}
    for c, a in values:
        beaten = any((c2 <= c and a2 >= a) and (c2, a2) != (c, a) for c2, a2 in values)
        assert ((c, a) in kept) == (not beaten)
    assert [cost[i] for i in front] == sorted(cost[i] for i in front)


def test_figures_are_pictures_and_missing_facts_give_none() -> None:
    for png in (figures.trade_off(models(), ["openvino-cpu"]), figures.kernel_errors(models())):
        assert png is not None
        assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).std() > 1
    assert figures.trade_off([facts("x", macs=10**9, ap=None, speedup=None)], []) is None
    assert figures.kernel_errors([facts("x", macs=10**9, ap=None, speedup=None)]) is None


class Sources(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_self_contained_and_all_its_forms_agree(tmp_path: Path) -> None:
    scene = figures.side_by_side([np.zeros((50, 40, 3), np.uint8)] * 2, ["a", "b"])
    report = Report(
        "A <title>", "compress report a.pt b.pt", {"machine": "one"}, models(), (("scene", scene),), ("gpu",)
    )
    files = write_report(report, tmp_path / "r")
    assert [path.name for path in files] == ["report.html", "report.md", "report.csv", "report.json"]
    page = files[0].read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources.found)
    assert "A &lt;title&gt;" in page
    assert "compress report a.pt b.pt" in page
    record = json.loads(files[3].read_text())
    assert [model["label"] for model in record["models"]] == ["original", "third", "third-tuned"]
    for text in (page, files[1].read_text(), files[2].read_text()):
        assert "third-tuned" in text
    with pytest.raises(FileError, match="exists already"):
        write_report(report, tmp_path / "r")
    write_report(report, tmp_path / "r", force=True)
