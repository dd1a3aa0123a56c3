"""Write the blocks of counts on the papers' pages (compress/zoo/papers) anew: `python benchmarks/paper_pages.py`."""

from __future__ import annotations

from compress.files import write_text
from compress.zoo.explanation import pages, with_counts


def main() -> None:
    for page in pages():
        text = page.path.read_text(encoding="utf-8")
        counted = with_counts(text)
        if counted != text:
            write_text(page.path, counted, force=True)
            print(f"{page.path.name}: counts written")


if __name__ == "__main__":
    main()
