"""Bring a network to a latency that is measured where it will run, and say so clearly if that is impossible.

``python examples/latency_budget.py [TARGET]``; the target is a runtime and device such as ``openvino-cpu`` (default),
``torch-cpu`` or ``openvino-cpu-int8``.
"""

from __future__ import annotations

import sys

import compress
from compress.errors import Infeasible


def main(target: str = "openvino-cpu") -> None:
    """Ask for 70 % of the time; if that can't be met, for the nearest budget that can."""
    model = compress.create("default").at_size((128, 128))
    people = compress.images("synthetic:7:8")
    try:
        small = compress.factorize(model, budget=f"latency=0.7@{target}", images=people)
    except Infeasible as refusal:
        print(refusal)
        small = compress.factorize(model, budget=refusal.nearest, images=people)
    timing = compress.benchmark([("original", model), ("compressed", small)], runtimes=[target])
    for row in timing.rows:
        print(f"{row.model}: {row.latency_ms:.2f} ms on {row.target}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
