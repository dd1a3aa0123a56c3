"""The tables of `compress benchmark`."""

from __future__ import annotations

from typing import Any

from compress.commands.table import print_lines, print_table

Record = dict[str, Any]

_MIB = 2**20


def show_benchmark(record: Record) -> None:
    """Latencies with the ratio to the first model on the same runtime, what else was measured, and what is absent."""
    machine = record["machine"]
    title = f"{machine['cpu']}, {machine['cores']} cores, GPU: {machine['gpu']}"
    if record["torch"] != "plain":
        title += f"; torch: {record['torch']}"
    print_table(title, *_latency(record["rows"]), left=4)
    print_table("What each takes, and what the machine allows", *_cost(record), left=2)
    print_lines(_notes(record))


def _latency(rows: list[Record]) -> tuple[list[str], list[list[str]]]:
    columns = [
        "model", "runtime", "device", "precision", "size", "batch", "threads", "median ms", "95 % interval", "p90 ms",
        "p99 ms", "fps", "speed-up", "verdict",
    ]  # fmt: skip
    on_gpu = any(row["device_ms"] is not None for row in rows)
    if on_gpu:
        columns.insert(8, "on GPU ms")
    cells = []
    for row in rows:
        line = [
            row["model"],
            row["runtime"],
            row["device"],
            row["precision"],
            f"{row['height']}x{row['width']}",
            str(row["batch"]),
            str(row["threads"]),
            f"{row['latency_ms']:.2f}",
            "{:.2f} to {:.2f}".format(*row["interval_ms"]),
            f"{row['p90_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['fps']:.1f}",
            "-" if row["speedup"] is None else "{:.2f} ({:.2f} to {:.2f})".format(*row["speedup"]),
            row["verdict"] or "-",
        ]
        if on_gpu:
            line.insert(8, "-" if row["device_ms"] is None else f"{row['device_ms']:.2f}")
        cells.append(line)
    return columns, cells


def _cost(record: Record) -> tuple[list[str], list[list[str]]]:
    columns = ["model", "runtime", "precision", "file MB"]
    alone = any("isolated" in row for row in record["rows"])
    roofline = "ceilings" in record
    if alone:
        columns += ["peak memory MB", "of it the model's", "open ms", "first ms"]
    if roofline:
        columns += ["GMAC", "moved MB", "least ms", "bound by memory", "share reached"]
    cells = []
    for row in record["rows"]:
        line = [row["model"], row["label"], row["precision"], f"{row['size_bytes'] / _MIB:.2f}"]
        if alone:
            line += [f"{row['isolated'][key]:.1f}" for key in ("peak_mb", "model_mb", "open_ms", "first_ms")]
        if roofline:
            line += _roofline(row["roofline"])
        cells.append(line)
    return columns, cells


def _roofline(found: Record | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    return [
        f"{found['macs'] / 1e9:.3f}",
        f"{found['bytes_moved'] / _MIB:.1f}",
        f"{found['least_ms']:.2f}",
        f"{found['memory_share']:.0%}",
        f"{found['share']:.0%}",
    ]


def _notes(record: Record) -> list[str]:
    """Measured ceilings, and what is not there."""
    lines = []
    for found in record.get("ceilings", []):
        rates = found["bytes_per_s"]
        lines.append(
            f"ceilings, {found['device']} {found['precision']}, {found['threads']} thread(s): "
            f"{found['macs_per_s'] / 1e9:.4g} GMAC/s, copies {rates[0][1] / 1e9:.3g} GB/s in blocks of "
            f"{rates[0][0] / _MIB:g} MB, {rates[-1][1] / 1e9:.3g} GB/s of {rates[-1][0] / _MIB:g} MB"
        )
    if any((row.get("roofline") or {"share": 0})["share"] > 1 for row in record["rows"]):
        lines.append("a share above 100 %: something else used the machine while its ceilings were measured")
    return lines + [f"not present: {absent}" for absent in record["absent"]]
