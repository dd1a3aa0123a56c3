"""The papers' tables: transcription, links to networks, reasons, and cells that trained runs fill."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.errors import FileError, UsageError
from compress.network.conventions import CONVENTIONS
from compress.zoo.counts import NetworkCounts
from compress.zoo.published import PUBLISHED
from compress.zoo.registry import get_entry

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import paper_table  # noqa: E402
import paper_tables  # noqa: E402
import published_tables  # noqa: E402
import trained_results  # noqa: E402
from published_tables import Row, Table, papers  # noqa: E402

ALL = [(paper, table, row) for paper in papers() for table in paper.tables for row in table.rows]


def find(paper: str, table: str, label: str) -> Row:
    (row,) = (r for p, t, r in ALL if (p.number, t.name, r.label) == (paper, table, label))
    return row


@pytest.mark.parametrize(
    ("paper", "table", "label", "cells"),
    [
        ("000", "Table I", "OpenPose, 1312x772", {"ms": "320.18"}),
        ("000", "Table I", "Ours, 656x368; 1/3", {"ms": "51.26"}),
        ("000", "Table II", "Ours, AMD Ryzen 7 1700 3.5 GHz", {"fps": "13"}),
        ("000", "Table III", "OpenPose", {"AP50": "0.782", "AP75": "0.594", "AR50": "0.807", "AR75": "0.650"}),
        ("000", "Table III", "Ours; 1/4", {"AP50": "0.743", "AR75": "0.580"}),
        ("001", "Table I", "OurNet, 384x288", {"AP": "69.9", "AP75": "77.3", "APL": "77.0", "AR": "75.3"}),
        ("001", "Table I", "Lite-HRNet-18, 384x288", {"AP": "66.9", "APL": "72.2", "AR": "72.6"}),
        ("001", "Table II", "TokenPose", {"Head": "97.1", "Wrist": "95.9", "Mean": "90.2"}),
        ("002", "Table 1", "ResNet-101, 7x7", {"params": "51.3", "AP": "72.3"}),
        ("002", "Table 2", "Our + new AM, ResNet-50", {"params": "30.7", "APM": "69.0", "APL": "78.2", "AR": "76.9"}),
        ("002", "Table 2", "8-Stage Hourglass", {"params": "25.1", "AP": "66.9", "AP50": "-"}),
        ("003", "Table 1", "Fast Pose, CVPR 19", {"Hip": "91.9", "Mean": "90.80", "params": "3", "ops": "9"}),
        ("003", "Table 2", "RePose", {"Shoulder": "96.39", "Hip": "92.95", "Mean": "90.29", "ops": "13.5"}),
        ("003", "Table 3", "32x32", {"Leeds": "91.70", "MPII": "90.06", "params": "3.8", "ops": "17.8"}),
        ("003", "Table 4", "3", {"Leeds": "90.64", "MPII": "89.61", "params": "3.8", "ops": "13.3"}),
        ("003", "Table 5", "replace", {"Leeds": "90.29", "MPII": "88.94"}),
        ("003", "Table 6", "4", {"Leeds": "92.99", "MPII": "91.45", "params": "17.3", "ops": "61.4"}),
        ("003", "Table 7", "256x256, sigma 10", {"Leeds": "91.77", "MPII": "90.83", "ops": "49.5"}),
        ("004", "Table 1", "Baseline + body masking augmentation", {"PCKh": "82.39"}),
        ("004", "Table 2", "Baseline + U-shaped", {"Hip": "73.4", "Ankle": "80.2", "PCKh": "84.0"}),
        ("004", "Table 3", "Pyramid pooling", {"params": "0.2", "ops": "0.07"}),
        ("004", "Table 4", "Ours 2-stage", {"PCKh": "85.0", "Hip": "74.1", "ms": "6"}),
        ("004", "Table 5", "Yang et al., ICCV 17", {"AUC": "64.2", "ms": "64+", "PCKh": "92.0"}),
    ],
)  # fmt: skip
def test_cells_are_as_printed(paper: str, table: str, label: str, cells: dict[str, str]) -> None:
    row = find(paper, table, label)
    assert {column: row.cells[column] for column in cells} == cells


def test_means_of_repose_are_plain_means_of_the_seven_joints() -> None:
    """Also catches a wrong digit in the row."""
    for table in ("Table 1", "Table 2"):
        cells = list(find("003", table, "RePose").cells.values())
        assert sum(map(float, cells[:7])) / 7 == pytest.approx(float(cells[7]), abs=0.011)


@pytest.mark.parametrize(("paper", "table", "row"), ALL, ids=lambda part: getattr(part, "label", ""))
def test_every_row_is_linked_to_a_network_or_says_why_not(
    paper: published_tables.Paper, table: Table, row: Row
) -> None:
    assert bool(row.network) != bool(row.without)
    if row.network:
        assert len(row.input) == 2
        assert set(row.options) <= set(get_entry(row.network).options)
    if "ops" in table.columns:
        assert table.convention in CONVENTIONS


@pytest.mark.parametrize(("paper", "table", "row"), ALL, ids=lambda part: getattr(part, "label", ""))
def test_values_agree_with_those_of_the_list_of_networks(paper: published_tables.Paper, table: Table, row: Row) -> None:
    """The list has each number once, to one table's digits: 4 and 4.0 are the same."""
    for line in PUBLISHED:
        of_paper = line.where.split(",")[0] in ("ESA", "RePose", "global context CPM")
        if of_paper and (line.network, line.input_size, dict(line.options), line.part) == (
            row.network, row.input, dict(row.options), row.part
        ):  # fmt: skip
            pairs = ((row.cells.get("params", "-"), line.params), (row.cells.get("ops", "-"), line.operations))
            assert all(number is None or text == "-" or float(text) == number for text, number in pairs)


def test_every_network_of_the_speed_file_is_one_of_its_rows() -> None:
    speed, _ = paper_tables.read_speed(paper_tables.SPEED)
    keys = {(name, size) for name, size, _ in speed}
    assert {(row.speed, row.input) for _, _, row in ALL if row.speed} <= keys


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str, str], NetworkCounts]:
    return paper_tables.count_rows(papers())


@pytest.mark.slow
def test_every_count_is_within_rounding_or_has_a_reason(counts: dict[tuple[str, str, str], NetworkCounts]) -> None:
    rows = {(paper.number, table.name, row.label): row for paper, table, row in ALL if row.network}
    assert counts.keys() == rows.keys()
    assert [key for key, row in rows.items() if paper_tables.unexplained(row, counts[key])] == []


@pytest.mark.slow
def test_the_committed_tables_are_those_of_the_script(counts: dict[tuple[str, str, str], NetworkCounts]) -> None:
    speed, machine = paper_tables.read_speed(paper_tables.SPEED)
    command = "python benchmarks/paper_tables.py all"
    text = paper_tables.markdown(papers(), paper_tables.Ours(counts, speed, machine), command)
    assert (FOLDER / "results" / "paper-tables.md").read_text(encoding="utf-8") == text


def test_a_table_has_printed_values_above_ours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert paper_tables.main(["000", "-o", str(tmp_path / "t.md")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() == printed
    lines = printed.splitlines()
    at = lines.index("| Ours, 656x368; 1/3 | paper | 51.26 | 20 |  |  |  |  |")
    cells = [cell.strip() for cell in lines[at + 1].split("|")]
    _, rows = paper_table.read_csv(paper_tables.SPEED)
    (timed,) = (
        row for row in rows
        if row.key == ("attention CPM 1/3", "openvino-cpu", "") and row.size == (368, 656) and not row.people
    )  # fmt: skip
    assert float(cells[3]) == pytest.approx(float(timed.latency_ms), rel=0.005)
    assert float(cells[5]) == pytest.approx(timed.params / 1e6, abs=0.001)
    assert float(cells[6]) == pytest.approx(2 * timed.macs / 1e9, rel=0.005)
    widths = {line.count("|") for line in lines[at - 8 : at + 2] if line.startswith("|")}
    assert widths == {9}
    assert "AlphaPose" in printed


def test_the_saving_of_the_stages_is_the_published_one_and_has_its_reading() -> None:
    row = find("000", "Section IV, text", "OpenPose by ours")
    saving = paper_tables.reduction_of(row)
    assert saving.times == float(row.cells["times"])
    assert saving.reason


def entry(row: Row, **changes: object) -> trained_results.Trained:
    from compress.network.source import NetworkSpec
    from compress.zoo.registry import resolve

    options = resolve(NetworkSpec(row.network, dict(row.options))).options
    metrics = {"mean of 7": 0.5}
    made = trained_results.Trained("trained", row.network, options, 0, row.input, {}, "mpii:valid", metrics)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_scores_fill_the_row_of_their_network_data_and_options() -> None:
    row = find("003", "Table 3", "8x8")
    score = entry(row, options=dict(entry(row).options) | {"down": "stride2"})
    assert trained_results.find_score([score], row, "mpii", "mean of 7") == 0.5
    older = {name: value for name, value in score.options.items() if name not in ("heads", "projection")}
    assert trained_results.find_score([replace(score, options=older)], row, "mpii", "mean of 7") == 0.5
    others = [
        replace(score, data="synthetic:3:2"), replace(score, input=(256, 256)),
        replace(score, edits=3), replace(score, network="repose-256"),
        replace(score, options={**score.options, "coarse": 16}), replace(score, metrics={"PCKh@0.5": 0.5}),
    ]  # fmt: skip
    assert trained_results.find_score(others, row, "mpii", "mean of 7") is None


def test_columns_are_named_after_metrics_of_their_data() -> None:
    tables = {(paper.number, table.name): table for paper, table, _ in ALL}
    assert tables["003", "Table 1"].metric("Mean") == ("lsp", "PCK@0.2")
    assert tables["003", "Table 2"].metric("Mean") == ("mpii", "mean of 7")
    assert tables["001", "Table II"].metric("Mean") == ("mpii", "PCKh@0.5")
    assert tables["004", "Table 5"].metric("AUC") == ("mpii", "AUC")
    assert tables["004", "Table 2"].metric("Hip") == ("lip", "hip")
    assert tables["002", "Table 2"].metric("APM") == ("coco", "APM")


def test_scores_of_a_sweep_fill_the_row_of_their_variable() -> None:
    usual, wide = (find("003", "Table 7", f"128x128, sigma {sigma}") for sigma in (5, 10))
    swept = [entry(usual, variables={"sigma": "10"}), entry(usual, metrics={"mean of 7": 0.7})]
    assert trained_results.find_score(swept, usual, "mpii", "mean of 7") == 0.7
    assert trained_results.find_score(swept, wide, "mpii", "mean of 7") == 0.5
    masked = find("004", "Table 1", "Baseline + keypoints masking augmentation")
    made = {"data": "lip:val", "metrics": {"PCKh@0.5": 0.8}}
    bodies = entry(masked, variables={"body_mask": "0.5", "keypoint_mask": "0.5"}, **made)
    joints = entry(
        masked, variables={"body_mask": "0", "keypoint_mask": "0.5"}, **made | {"metrics": {"PCKh@0.5": 0.9}}
    )
    assert trained_results.find_score([bodies, joints], masked, "lip", "PCKh@0.5") == 0.9


def test_factorized_models_fill_their_row_by_name() -> None:
    row = find("000", "Table III", "Ours; 1/3")
    whole = entry(row, data="person_keypoints_val2017", metrics={"AP50": 0.4})
    whole = replace(whole, options={**whole.options, "ratio": None})
    tuned = replace(whole, label="third-tuned", edits=40, metrics={"AP50": 0.3})
    assert trained_results.find_score([whole, tuned], row, "coco", "AP50") == 0.3


def test_results_are_read_from_sweeps_and_reports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"blocks": 1, "width": 16, "backbone_scale": 0.25, "head_width": 16}
    save(create("default", small, trained=False), tmp_path / "a" / "trained.pt", force=False)
    (tmp_path / "a" / "report").mkdir()
    record = {
        "conditions": {"data": "mpii:valid, 3 images", "MACs": "counted; at 64x48"},
        "models": [{"file": "trained.pt", "metrics": {"AP": 0.1}}],
    }
    (tmp_path / "a" / "report" / "report.json").write_text(json.dumps(record))
    model = {
        "label": "x",
        "network": "esa",
        "options": {},
        "edits": 0,
        "input": [],
        "scores": [{"data": "d", "metrics": {"AP": 0.2}}],
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": [{"variables": {"depth": "50"}, "models": [model]}]}))
    swept, reported = trained_results.read_results(tmp_path)
    assert reported.input == (64, 48)
    assert (swept.network, swept.variables, swept.metrics) == ("esa", {"depth": "50"}, {"AP": 0.2})
    assert (reported.network, reported.options["blocks"], reported.metrics) == ("default", 1, {"AP": 0.1})


def test_unknown_papers_and_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="similar: repose"):
        papers("repos")
    with pytest.raises(FileError, match="no scores"):
        trained_results.read_results(tmp_path)
    (tmp_path / "x.toml").write_text('number = "9"\nname = "x"\ntitle = "x"\n[[table]]\nname = "T"\ntitle = "t"\n'
                                     'columns = "AP AR"\n[[table.row]]\nlabel = "r"\ncells = "1"\n')  # fmt: skip
    with pytest.raises(FileError, match="T, r has 1 cells for 2 columns"):
        published_tables.read_paper(tmp_path / "x.toml")
