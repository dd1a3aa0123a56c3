"""Tables, figures and files of a report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from compress.errors import FileError
from compress.measure.benchmark import TimingRow
from compress.measure.bootstrap import Speedup
from compress.measure.latency import Timing
from compress.planning.plan import LayerPlan
from compress.reporting import figures, tables
from compress.reporting.facts import ModelFacts, pair_tuned
from compress.reporting.rendering import verdict
from compress.reporting.report import Report
from compress.target import Target

#: The first colours of figures, BGR.
BLUE, ORANGE, GREEN, GREY = (180, 119, 31), (14, 127, 255), (44, 160, 44), (187, 187, 187)


def timed(label: str, latency_ms: float, speedup: Speedup | None, runtime: str = "openvino-cpu") -> TimingRow:
    target = Target.parse(runtime)
    timing = Timing(
        label, target.runtime, target.device, "fp32", 256, 192, 1, latency_ms, 1.2 * latency_ms, 1.3 * latency_ms,
        (0.9 * latency_ms, 1.1 * latency_ms), 1e3 / latency_ms, 30, 1,
    )  # fmt: skip
    return TimingRow(label, target, timing, 1000, speedup)


def facts(label: str, *, macs: int, ap: float | None, speedup: Speedup | None, **more: object) -> ModelFacts:
    row = timed(label, 10.0 / (speedup.median if speedup else 1.0), speedup)
    layers = (
        LayerPlan("stage.0", "tucker2", (4, 5), "ratio", (900, 300), (9000, 3000), 0.25),
        LayerPlan("stage.1", "tucker2", (4, 5), "ratio", (900, 300), (9000, 3000), 0.5),
        LayerPlan("stage.2", "keep", (), "depthwise", (90, 90), (900, 900)),
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
    faster, equal = Speedup(1.6, 1.5, 1.7, 30, 1e-6), Speedup(1.0, 0.9, 1.1, 30, 0.9)
    return (
        facts("original", macs=2_000_000_000, ap=0.8, speedup=None),
        facts("third", macs=1_000_000_000, ap=0.3, speedup=faster, edits=("e",)),
        facts("third-tuned", macs=1_500_000_000, ap=0.7, speedup=equal, edits=("e",), tuned=True, before="third"),
    )


def decoded(png: bytes | None) -> np.ndarray:
    assert png is not None
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def markers(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Centres (x, y) of the spots of exactly that colour, from left to right."""
    exact = (picture == np.array(colour)).all(axis=2).astype(np.uint8)
    count, _, stats, centres = cv2.connectedComponentsWithStats(exact)
    spots = [tuple(centres[index]) for index in range(1, count) if stats[index, cv2.CC_STAT_AREA] > 12]
    return np.array(sorted(spots)).reshape(-1, 2)


def test_summary_compares_with_the_first_and_shows_the_score_before_tuning() -> None:
    table = tables.summary(models())
    assert list(table["model"]) == ["original", "third", "third-tuned"]
    assert table["MACs ratio"].tolist() == [1.0, 0.5, 0.75]
    assert table["FLOPs"].tolist() == [2 * macs for macs in table["MACs"]] == [4e9, 2e9, 3e9]
    columns = list(table)
    assert columns.index("FLOPs") == columns.index("MACs") + 1
    assert table["AP before tuning"].iloc[2] == 0.3
    assert table["AP change"].iloc[2] == pytest.approx(-0.1)
    assert table["openvino-cpu speed-up"].iloc[1] == 1.6


def test_a_speed_up_whose_interval_contains_1_is_not_called_one() -> None:
    sentences = verdict(models())
    assert "openvino-cpu: faster, x1.60 (1.50 to 1.70)" in sentences[0]
    assert "openvino-cpu: no difference" in sentences[1]


def test_an_empty_report_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one model"):
        tables.summary([])


def test_few_rounds_and_missing_numbers_are_said_so() -> None:
    few = facts("few", macs=10**9, ap=0.5, speedup=Speedup(1.6, 1.5, 1.7, 9, 0.004))
    exported = ModelFacts("int8", "int8.xml", None, None, 10, output_error=0.0123)
    sentences = verdict([models()[0], few, exported])
    assert "openvino-cpu: too few rounds, x1.60" in sentences[0]
    assert sentences[1] == "int8: relative squared error of the outputs 1.23e-02."
    shown = tables.markdown(tables.summary([models()[0], exported]))
    assert [cell.strip() for cell in shown.splitlines()[-1].split("|")[1:6]] == ["int8", "-", "-", "-", "-"]
    assert "1.23e-02" in shown.splitlines()[-1]


def test_fine_tuned_networks_are_paired_with_the_same_structure() -> None:
    original = ModelFacts("original", "", 1, 1, 1)
    other = ModelFacts("other", "", 1, 1, 1, edits=("f",), tuned=True)
    small = ModelFacts("small", "", 1, 1, 1, edits=("e",))
    tuned = ModelFacts("tuned", "", 1, 1, 1, edits=("e",), tuned=True)
    assert [m.before for m in pair_tuned((original, small, tuned, other))] == [None, None, "small", None]


def test_trade_offs_have_a_point_for_each_model_at_the_place_of_its_numbers() -> None:
    picture = decoded(figures.trade_off(models(), ["openvino-cpu"]))
    spots = [markers(picture, colour) for colour in (BLUE, ORANGE, GREEN)]
    half = picture.shape[1] / 2
    left, right = ([found[(found[:, 0] < half) == side] for found in spots] for side in (True, False))
    # One point of each model in each of the two panels, and one more in the legend of the first.
    assert [len(found) for found in left] == [2, 2, 2]
    assert [len(found) for found in right] == [1, 1, 1]
    column = common_column(left)
    points = np.array([found[np.argmax(abs(found[:, 0] - column))] for found in left])
    accuracy = np.array([0.8, 0.3, 0.7])
    check_scale(points, np.array([2.0, 1.0, 1.5]), accuracy)
    check_scale(np.concatenate(right), np.array([10.0, 6.25, 10.0]), accuracy)


def common_column(places: list[np.ndarray]) -> float:
    """The x that all groups share: that of the legend."""
    return next(x for x, _ in places[0] if all((abs(other[:, 0] - x) < 2).any() for other in places[1:]))


def check_scale(points: np.ndarray, across: np.ndarray, up: np.ndarray) -> None:
    """Places in a picture are linear in the numbers, to a pixel."""
    for pixels, values, direction in ((points[:, 0], across, 1), (points[:, 1], up, -1)):
        slope, start = np.polyfit(values, pixels, 1)
        assert slope * direction > 0
        assert pixels == pytest.approx(slope * values + start, abs=1.5)


def test_kernel_errors_have_a_point_for_each_factorized_layer_of_untuned_models() -> None:
    picture = decoded(figures.kernel_errors(models()))
    spots = markers(picture, BLUE)
    # Layers with an error are two; the third point is in the legend. The tuned model is left out.
    assert len(spots) == 3
    assert len(markers(picture, ORANGE)) == 0
    (x1, y1), (x2, y2), (legend, _) = spots
    assert x1 + 100 < x2 < legend, "an error of 0.25 is far to the left of 0.5, and the legend beside the axes"
    assert y1 < y2, "layers are listed from the top"


def test_missing_facts_give_no_figures() -> None:
    bare = facts("x", macs=10**9, ap=None, speedup=None)
    assert figures.trade_off([bare], []) is None
    assert figures.kernel_errors([bare]) is None


def test_search_fronts_mark_dominated_and_tuned_points() -> None:
    points = [
        {"cost": 1.0, "map_error": 0.3, "score": 0.2, "front": True, "tuned": False},
        {"cost": 2.0, "map_error": 0.2, "score": 0.3, "front": False, "tuned": False},
        {"cost": 4.0, "map_error": 0.1, "score": 0.4, "front": True, "tuned": False},
    ]
    picture = decoded(figures.search_front(points, "GMACs", "AP"))
    half = picture.shape[1] / 2
    right = [spots[spots[:, 0] > half] for spots in (markers(picture, BLUE), markers(picture, GREY))]
    assert [len(spots) for spots in right] == [2, 1]
    check_scale(np.array([right[0][0], right[1][0], right[0][1]]), np.array([1.0, 2.0, 4.0]), np.array([0.2, 0.3, 0.4]))


def test_sensitivity_maps_have_a_cell_for_each_layer_and_share_darker_where_the_loss_is_larger() -> None:
    rows = [
        {"name": name, "share": share, "loss": loss, "joints": {"nose": {"loss": loss}, "wrist": {"loss": None}}}
        for name, losses in (("first", (0.0, 0.1)), ("second", (0.2, 0.4)))
        for share, loss in zip(("1/2", "1/4"), losses, strict=True)
    ]
    picture = decoded(figures.sensitivity_map(rows, ["1/2", "1/4"], ["nose", "wrist"]))
    # The largest loss is shown in the last colour of the map, in two cells: one by rank, and one by joint.
    from matplotlib import colormaps

    last, first = (tuple(round(255 * x) for x in colormaps["YlOrRd"](end)[2::-1]) for end in (1.0, 0.0))
    areas = [(picture == np.array(colour)).all(axis=2).sum() for colour in (last, first)]
    cells = cv2.connectedComponentsWithStats((picture == np.array(last)).all(axis=2).astype(np.uint8))[2]
    assert (cells[1:, cv2.CC_STAT_AREA] > 500).sum() == 2
    assert areas[1] > 500


def test_pictures_of_a_scene_stand_side_by_side_in_their_order() -> None:
    red, green = np.zeros((50, 40, 3), np.uint8), np.zeros((50, 40, 3), np.uint8)
    red[:, :, 2], green[:, :, 1] = 255, 255
    red[10:20, 8:16] = 255
    picture = decoded(figures.side_by_side([red, green], ["a", "b"], height=100))
    assert picture.shape == (124, 2 * 80 + 6, 3)
    assert picture[24 + 60, 40].tolist() == [0, 0, 255]
    assert picture[24 + 60, 86 + 40].tolist() == [0, 255, 0]
    assert picture[24 + 30, 24].tolist() == [255, 255, 255], "a detail keeps its place"
    assert (picture[:24, :80] < 100).all(axis=2).any(), "there is no label"


class Sources(HTMLParser):
    """Every address that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_self_contained_and_its_files_agree(tmp_path: Path) -> None:
    scene = figures.side_by_side([np.zeros((50, 40, 3), np.uint8)] * 2, ["a", "b"])
    report = Report(
        "A <title>", "compress report a.pt b.pt", {"machine": "one"}, models(), (("scene", scene),), ("gpu",)
    )
    files = report.save(tmp_path / "r")
    assert [path.name for path in files] == ["report.html", "report.md", "report.csv", "report.json"]
    page = files[0].read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) == 3  # two figures and one scene
    assert all(source.startswith("data:image/png;base64,") for source in sources.found)
    assert "A &lt;title&gt;" in page
    assert "compress report a.pt b.pt" in page
    record = json.loads(files[3].read_text())
    assert [model["label"] for model in record["models"]] == ["original", "third", "third-tuned"]
    assert record["models"][1]["flops"] == 2 * record["models"][1]["macs"] == 2_000_000_000
    assert record["models"][1]["latency"]["openvino-cpu"]["speedup"] == [1.6, 1.5, 1.7]
    assert record["models"][1]["layers"][0]["ranks"] == [4, 5]
    assert "FLOP count is twice that" in page
    for text in (page, files[1].read_text(), files[2].read_text()):
        assert "third-tuned" in text
    with pytest.raises(FileError, match="exists"):
        report.save(tmp_path / "r")
    report.save(tmp_path / "r", force=True)
