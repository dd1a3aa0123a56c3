"""The papers' pages: complete, of this code, and found by the name of a network."""

from __future__ import annotations

import importlib
import math
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from compress.commands.registry import SUMMARIES, get_command
from compress.data.augment import Augmentation
from compress.errors import CompressError
from compress.training.options import FineTuneOptions
from compress.zoo.attention import KINDS
from compress.zoo.explanation import PAPERS, WIDTH, Page, explain, pages, read_page, with_counts
from compress.zoo.registry import entries, get_entry

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "papers.md"
PAGES = {page.path.name: page.path.read_text(encoding="utf-8") for page in pages()}
NAMES = [entry.name for entry in entries()]

#: Tables, figures and equations of the papers.
PARTS = {
    "000-attention-cpm.md": (
        *(f"Table {n}" for n in ("I", "II", "III")),
        *(f"Figure {n}" for n in (1, 2, 3)),
        *(f"Equation {n}" for n in (*range(1, 12), 14)),
    ),
    "001-cbam-lite-hrnet.md": ("Table I", "Table II", "Figure 1", "Figure 2", "Equation 1", "Equation 2"),
    "002-esa.md": (
        *(f"Table {n}" for n in (1, 2)), *(f"Figure {n}" for n in (1, 2, 3)), *(f"Equation {n}" for n in (1, 2))
    ),
    "003-repose.md": (
        *(f"Table {n}" for n in range(1, 8)),
        *(f"Figure {n}" for n in range(1, 6)),
        *(f"Equation {n}" for n in (1, 2, 3)),
        *(f"Footnote {n}" for n in (1, 2, 3)),
    ),
    "004-context-cpm.md": (*(f"Table {n}" for n in range(1, 6)), *(f"Figure {n}" for n in range(1, 10))),
}  # fmt: skip


def items(text: str) -> list[str]:
    """The items of a page's lists that begin with a part of the paper."""
    return [
        " ".join(item.split())
        for item in re.findall(r"^- \*\*.*?(?=^- |^#|^$)", text, flags=re.MULTILINE | re.DOTALL)
    ]  # fmt: skip


def find(name: str) -> object:
    """What a dotted name stands for; raises where it stands for nothing."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise ImportError(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_explained_by_a_page_that_names_it(name: str) -> None:
    text = explain(name)
    assert f"`{name}`" in text
    assert "<!--" not in text
    assert text.startswith("# ")


def test_only_sections_on_a_network_explain_it() -> None:
    assert "## `esa-prev`" in explain("esa-prev")
    assert "## `esa-prev`" not in explain("esa")
    assert "## Attention" in explain("esa")
    assert "transposed convolutions" in explain("simple-baseline-mpii")
    assert "transposed convolutions" not in explain("hrnet")


def test_pages_name_only_networks_that_exist() -> None:
    for page in pages():
        assert page.networks
        for name in page.networks:
            get_entry(name)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(CompressError, match="unknown network"):
        explain("reposes")


def test_a_section_is_that_of_the_networks_in_its_heading(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Title\n\nNetworks: `a`,\n`b`.\n\nWith `c`.\n\n## All, `c`\n\nx\n\n## `b` alone\n\ny\n")
    page: Page = read_page(path)
    assert page.networks == ("a", "b")
    assert [section.networks for section in page.sections] == [("a", "b"), ("a", "b"), ("b",)]
    assert "".join(section.text for section in page.sections) == path.read_text()


@pytest.mark.parametrize(("page", "part"), [(page, part) for page, parts in PARTS.items() for part in parts])
def test_every_table_figure_and_equation_is_on_its_page(page: str, part: str) -> None:
    assert any(f"**{part}**" in item for item in items(PAGES[page]))


@pytest.mark.parametrize("page", PARTS)
def test_every_part_has_a_place_or_a_reason_for_its_absence(page: str) -> None:
    assert not [item for item in items(PAGES[page]) if not re.search(r"`|eft out", item)]


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_code_exists(page: str) -> None:
    names = re.findall(r"`(compress(?:\.\w+)+)`", PAGES[page])
    assert names
    for name in names:
        find(name)


@pytest.mark.parametrize("page", PAGES)
def test_every_recipe_and_script_exists(page: str) -> None:
    for name in re.findall(r"(?:recipes|benchmarks)/[\w.-]+\.(?:toml|py|md)", PAGES[page]):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists_with_its_flags(page: str) -> None:
    for line in re.findall(r"`compress ([a-z][^`]*)`", PAGES[page].replace("\n  ", " ")):
        command, *words = line.split()
        if command in ("run", "sweep"):
            continue
        assert command in SUMMARIES, line
        flags = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        assert flags <= set(get_command(command).options.model_fields), line


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_to_do(page: str) -> None:
    assert "TODO" not in PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_every_swept_name_is_a_variable_of_the_recipe(page: str) -> None:
    text = " ".join(PAGES[page].split())
    swept = [*re.finditer(r"`compress (?:sweep|run) (recipes/[\w.-]+)([^`]*)`", text)]
    for command in swept:
        variables = tomllib.loads((ROOT / command[1]).read_text(encoding="utf-8"))["variables"]
        inside = re.findall(r"--(?:over|set) ([a-z_]\w*)=", command[2])
        # Where a sweep stands above the list for all of its tables, the items name what is swept.
        after = re.findall(r"--(?:over|set) ([a-z_]\w*)=", text) if "NAME=VALUES" in command[2] else []
        assert {*inside, *after} <= set(variables), command[0]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.path.name)
def test_every_option_exists(page: Page) -> None:
    known = {option for name in page.networks for option in get_entry(name).options}
    known |= {field.name for options in (FineTuneOptions, Augmentation) for field in fields(options)}
    text = " ".join(PAGES[page.path.name].split())
    for named in re.findall(r"[Oo]ptions? ((?:`\w+`(?:, | and | or )?)+)", text):
        for option in re.findall(r"`(\w+)`", named):
            assert option in known, option


def test_every_kind_of_attention_that_is_named_exists() -> None:
    for text in PAGES.values():
        assert set(re.findall(r"kind `(\w+)`", text)) <= set(KINDS)


@pytest.mark.parametrize("path", [INDEX, *sorted(PAPERS.glob("*.md"))], ids=lambda path: path.name)
def test_lines_fit_a_terminal(path: Path) -> None:
    assert all(len(line) <= WIDTH for line in path.read_text(encoding="utf-8").splitlines())


def test_the_index_links_every_page() -> None:
    linked = re.findall(
        r"^\[.*\]: \.\./compress/zoo/papers/(.*)$", INDEX.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert linked == sorted(PAGES)


def test_a_block_of_counts_is_written_anew() -> None:
    page = "a\n<!-- counts: default -->\nold\n<!-- end of counts -->\nb\n"
    new = (
        "a\n<!-- counts: default -->\n\n- `default` at 256x256: 0.870 M parameters, 0.917 GMAC = 1.834 GFLOPs.\n\n"
        "<!-- end of counts -->\nb\n"
    )
    assert with_counts(page) == new
    assert with_counts(new) == new


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_counts_are_those_of_the_networks(page: str) -> None:
    assert with_counts(PAGES[page]) == PAGES[page], "run python benchmarks/paper_pages.py"


@pytest.mark.parametrize(("side", "chance"), [(8, 0.78), (16, 0.30)])
def test_the_chance_that_keypoints_share_a_cell(side: int, chance: float) -> None:
    joints, cells = 14, side**2
    assert 1 - math.perm(cells, joints) / cells**joints == pytest.approx(chance, abs=0.005)
