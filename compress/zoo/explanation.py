"""The papers' pages: each of their parts, where it is in the code, how it is read, and what is left out.

The pages are Markdown files in ``compress/zoo/papers``. The line that begins with ``Networks:`` names the networks that
a page is about; a ``##`` section whose heading names networks concerns these alone, any other all of the page.
A block between ``<!-- counts: NAMES -->`` and ``<!-- end of counts -->`` lists the published counts of these networks
beside ours; `with_counts` writes it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compress.errors import NetworkError
from compress.network.conventions import CONVENTIONS
from compress.network.layers import count_flops
from compress.zoo.counts import NetworkCounts, count_networks, published_lines
from compress.zoo.registry import get_entry

#: Where the pages are.
PAPERS = Path(__file__).parent / "papers"

#: Longest line of a page.
WIDTH = 120

_NAME = re.compile(r"`([^`]+)`")
_COUNTS = re.compile(r"(<!-- counts: ([^>]+) -->\n).*?(<!-- end of counts -->\n)", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """A part of a page, from one ``##`` heading to the next.

    Attributes
    ----------
    text : str
        Heading and text.
    networks : tuple of str
        The networks that it concerns.
    """

    text: str
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """The page of a paper.

    Attributes
    ----------
    path : Path
        Its file.
    networks : tuple of str
        The networks that it is about.
    sections : tuple of Section
        Its title and introduction, then its sections.
    """

    path: Path
    networks: tuple[str, ...]
    sections: tuple[Section, ...]


def read_page(path: Path) -> Page:
    """Divide a page into its sections."""
    parts = re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    line = re.search(r"^Networks:.*?\n\n", parts[0], flags=re.MULTILINE | re.DOTALL)
    networks = tuple(_NAME.findall(line[0])) if line else ()
    sections = []
    for part in parts:
        named = _NAME.findall(part.partition("\n")[0])
        sections.append(Section(part, tuple(name for name in networks if name in named) or networks))
    return Page(path, networks, tuple(sections))


@cache
def pages() -> tuple[Page, ...]:
    """All pages, by name of file."""
    return tuple(read_page(path) for path in sorted(PAPERS.glob("*.md")))


def explain(network: str) -> str:
    """What the papers' pages say of a network: Markdown without comments, lines of at most `WIDTH` characters.

    Raises
    ------
    NetworkError
        If there is no such network, or no page names it.
    """
    get_entry(network)
    parts = [
        section.text for page in pages() if network in page.networks for section in page.sections
        if network in section.networks
    ]  # fmt: skip
    if not parts:
        raise NetworkError("no page explains this network", found=network)
    text = re.sub(r"<!--.*?-->\n\n?", "", "".join(parts), flags=re.DOTALL)
    return text.strip() + "\n"


def with_counts(text: str, count: Callable[[Sequence[str]], Iterable[NetworkCounts]] | None = None) -> str:
    """A page with its blocks of counts written anew.

    Parameters
    ----------
    text : str
        The page.
    count : callable, optional
        From names of networks to their counts; by default they are built and counted.
    """
    counted = count or _counts

    def block(match: re.Match[str]) -> str:
        lines = [line for row in counted(match[2].split()) for line in _described(row)]
        return "\n".join([match[1], *lines, "", match[3]])

    return _COUNTS.sub(block, text)


def _counts(networks: Sequence[str]) -> tuple[NetworkCounts, ...]:
    return count_networks([line for line in published_lines() if line[0].name in networks])


def _described(row: NetworkCounts) -> list[str]:
    """A line of a list for one row of counts."""
    size = "x".join(map(str, row.input))
    parts = [f"- `{row.name}` at {size}: {row.params / 1e6:.3f} M parameters"]
    found = row.published
    if found is not None and found.params is not None:
        parts.append(f"(printed {found.params / 1e6:g} M, {_percent(row.deviation.params)})")
    parts[-1] += ","
    parts.append(f"{row.macs / 1e9:.3f} GMAC = {count_flops(row.macs) / 1e9:.3f} GFLOPs")
    if found is not None and found.counted is not None:
        unit = CONVENTIONS[found.convention].unit
        parts.append(f"({found.counted:.4g} {unit} by the convention `{found.convention}`,")
        parts.append(f"printed {found.operations:g} {unit}, {_percent(row.deviation.operations)})")
    parts[-1] += "."
    if found is not None and found.reason:
        parts.append(f"{found.reason[0].upper()}{found.reason[1:]}.")
    return textwrap.wrap(" ".join(parts), WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _percent(share: float | None) -> str:
    """``+0.2 %``; never a negative zero."""
    return f"{100 * round(share or 0.0, 3) + 0.0:+.1f} %"
