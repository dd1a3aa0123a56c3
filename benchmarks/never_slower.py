"""Every network under a latency budget: is the result ever slower than the original?

    python benchmarks/never_slower.py [--budget 0.7] [--target openvino-cpu --target openvino-cpu-bf16] [-o FILE.csv]

Networks have random weights (their values do not change how long they take) and their own input size, or half of it
with --half; curves come from weights alone. Each network is compressed for the budget as `compress factorize --budget
latency=` does it: layers are timed inside the running network, the plan is timed and corrected, and the result is timed
interleaved with the original. That gives the verdict; a network that is not faster is returned unchanged.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

from compress.checkpoint.load import create
from compress.compression.factorize import factorize_model
from compress.compression.options import FactorizeOptions
from compress.errors import CompressError
from compress.measure.machine import describe
from compress.zoo.registry import entries, get_entry

COLUMNS = (
    "network", "input", "target", "budget", "original_ms", "predicted_ms", "planned_ms", "result_ms", "ratio", "low",
    "high", "verdict", "layers", "seconds",
)  # fmt: skip


def measure(name: str, target: str, share: float, half: bool) -> dict[str, object]:
    """One row."""
    height, width = get_entry(name).input_size
    size = (max(64, height // 64 * 32), max(64, width // 64 * 32)) if half else (height, width)
    row: dict[str, object] = {
        "network": name, "input": f"{size[0]}x{size[1]}", "target": target, "budget": share,
    }  # fmt: skip
    model = create(name, {}, seed=0, trained=False)
    start = time.perf_counter()
    try:
        done = factorize_model(model, budget=f"latency={share}@{target}", options=FactorizeOptions(size=size))
    except CompressError as error:
        return row | {"verdict": f"refused: {error.cause}", "seconds": round(time.perf_counter() - start)}
    reached = done.reached
    assert reached is not None  # under a budget
    gate = reached.gate
    assert gate is not None  # under a budget of latency
    unchanged = "" if gate.verdict == "faster" else "; returned unchanged"
    return row | {
        "original_ms": round(reached.original, 2),
        "predicted_ms": round(reached.predicted, 2),
        "planned_ms": round(reached.planned or 0.0, 2),
        "result_ms": round(reached.reached, 2),
        "ratio": round(gate.ratio, 3),
        "low": round(gate.interval[0], 3),
        "high": round(gate.interval[1], 3),
        "verdict": gate.verdict + unchanged,
        "layers": len(done.plan.changed),
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    """Measure, print and write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", help="only these; repeat for more (default: all)")
    parser.add_argument("--target", action="append", help="as in --budget latency=...@TARGET; repeat for more")
    parser.add_argument("--budget", type=float, default=0.7, help="share of the original's latency")
    parser.add_argument("--half", action="store_true", help="half of each network's input size, in steps of 32")
    parser.add_argument("-o", "--output", type=Path, help="CSV to write")
    options = parser.parse_args()
    names = options.network or [entry.name for entry in entries()]
    rows = []
    print(json.dumps(describe().to_dict()))
    for name in names:
        for target in options.target or ["openvino-cpu", "openvino-cpu-bf16"]:
            rows.append(measure(name, target, options.budget, options.half))
            print(rows[-1], flush=True)
            if options.output:
                with options.output.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main()
