"""Records of stages as tables for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.commands.show_benchmark import show_benchmark
from compress.commands.show_int8 import show_int8
from compress.commands.show_predict import predict_headline, show_predict
from compress.commands.table import console, print_table
from compress.network.conventions import CONVENTIONS
from compress.planning.plan import REASONS

Record = dict[str, Any]


def millions(count: float) -> str:
    """``4.092 M``."""
    return f"{count / 1e6:.3f} M"


def giga(count: float) -> str:
    """``7.656 G``; small networks in millions."""
    return f"{count / 1e9:.3f} G" if count >= 1e8 else f"{count / 1e6:.1f} M"


def _share(before: float, after: float) -> str:
    return f"{after / before:.3f}" if before else "-"


def show_networks(record: Record) -> None:
    """The table of networks, and why counts differ from printed ones."""
    rows = record["networks"]
    print_table(
        "Networks (MACs: executed multiply-adds of convolution and linear layers)",
        ["name", "paper", "input", "params", "MACs", "printed params", "printed operations", "deviation"],
        [
            (
                row["name"].replace("[", "\\["),
                row["paper"],
                "x".join(map(str, row["input"])),
                millions(row["params"]),
                giga(row["macs"]),
                *_printed(row["published"] or {}),
                ", ".join(f"{value:+.1%}" for value in row["deviation"].values() if value is not None) or "-",
            )
            for row in rows
        ],
        left=2,
    )
    out = console()
    for row in rows:
        if row["published"] and row["published"]["reason"]:
            out.print(f"{row['name']}: {row['published']['reason']}", markup=False, soft_wrap=True)
    used = {row["published"]["convention"] for row in rows if row["published"]}
    for convention in CONVENTIONS.values():
        if convention.name in used:
            out.print(f"{convention.name}: {convention.summary}", markup=False, soft_wrap=True)


def _printed(published: Record) -> tuple[str, str]:
    """Parameters and operations as a paper has them."""
    params, operations = published.get("params"), published.get("operations")
    return (
        "-" if params is None else f"{params / 1e6:g} M",
        "-" if operations is None else f"{operations:g} {published['unit']} ({published['convention']})",
    )


def show_init(record: Record) -> None:
    """One line."""
    console().print(headline("init", record), markup=False, soft_wrap=True)


def show_inspect(record: Record) -> None:
    """All layers."""
    size = "x".join(map(str, record["input"]))
    print_table(
        f"{record['network']} at {size}: {millions(record['params'])} parameters, {giga(record['macs'])}MACs",
        ["layer", "kind", "why not factorized", "shape", "stride", "groups", "params", "MACs", "share", "VBMF r3, r4"],
        [
            (
                row["name"],
                row["kind"],
                (row["why"] or "").removeprefix("kept: "),
                "x".join(map(str, row["shape"])),
                "x".join(map(str, row["stride"])),
                row["groups"],
                row["params"],
                giga(row["macs"]),
                f"{row['share']:.1%}",
                ", ".join(map(str, row["vbmf_ranks"])) if row["vbmf_ranks"] else "-",
            )
            for row in record["layers"]
        ],
        left=3,
    )
    if "sensitivity" in record:
        show_sensitivity(record["sensitivity"])


def show_sensitivity(record: Record) -> None:
    """What each layer is worth in keypoints, at each rank."""
    print_table(
        f"Each layer factorized alone, against the original's own {record['people']} people "
        f"({record['joints']} joints) in {record['images']} images of {record['data']} at height {record['height']}",
        ["layer", "method", "share", "ranks", "MACs kept", "moved (px)", "OKS loss", "joints lost", "people lost",
         "people new", "worst joint"],
        [
            (
                row["name"],
                row["method"],
                row["share"],
                ", ".join(map(str, row["ranks"])),
                _share(*row["macs"]),
                "-" if row["pixels"] is None else f"{row['pixels']:.2f}",
                f"{row['loss']:.4f}",
                row["lost_joints"],
                row["lost_people"],
                row["new_people"],
                "{} {:.3f}".format(*max(_joint_losses(row), key=lambda found: found[1])),
            )
            for row in record["rows"]
        ],
        left=2,
    )  # fmt: skip


def _joint_losses(row: Record) -> list[tuple[str, float]]:
    return [(joint, found["loss"]) for joint, found in row["joints"].items() if found["loss"] is not None]


def show_factorize(record: Record) -> None:
    """Changed layers, the reasons of the others, totals."""
    changed = [row for row in record["layers"] if row["method"] != "keep"]
    kept: dict[str, int] = {}
    for row in record["layers"]:
        if row["method"] == "keep":
            kept[row["reason"]] = kept.get(row["reason"], 0) + 1
    print_table(
        "Factorized layers",
        ["layer", "method", "ranks", "params", "MACs", "MACs kept", "kernel error", "output error"],
        [
            (
                row["name"],
                row["method"],
                ", ".join(map(str, row["ranks"])),
                f"{row['params'][0]} -> {row['params'][1]}",
                f"{giga(row['macs'][0])} -> {giga(row['macs'][1])}",
                _share(*row["macs"]),
                "-" if row["error"] is None else f"{row['error']:.3f}",
                "-" if row["output_error"] is None else f"{row['output_error']:.4f}",
            )
            for row in changed
        ],
        left=2,
    )
    out = console()
    lines = [f"{count} layer(s) {REASONS[reason]}" for reason, count in sorted(kept.items(), key=lambda x: -x[1])]
    lines += [f"note: {notice}" for notice in record["notices"]]
    for name, noise in record.get("noise", {}).items():
        lines.append(
            f"{name}: VBMF sees noise of {noise['mode3']:.2e} along mode 3 and {noise['mode4']:.2e} along mode 4; "
            f"the kernel's mean square root is {noise['kernel']:.2e}"
        )
    if "budget" in record:
        lines.append(_spent(record["budget"]))
    if "map_error" in record:
        errors = ", ".join(f"{kind} {value:.4f}" for kind, value in record["map_error"].items())
        lines.append(f"relative squared error of the final maps on calibration images: {errors}")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    out.print(headline("factorize", record), markup=False, soft_wrap=True)


def _spent(budget: Record) -> str:
    """What was asked of a budget, predicted and reached."""
    line = (
        f"budget {budget['budget']}: asked {budget['asked']:.4g}, predicted {budget['predicted']:.4g}, "
        f"reached {budget['reached']:.4g} (original {budget['original']:.4g})"
    )
    gate = budget.get("gate")
    if gate is None:
        return line
    low, high = gate["interval"]
    kept = "" if gate["verdict"] == "faster" else "; the network stays as it was"
    return (
        f"{line}; against the original, interleaved: x{gate['ratio']:.3f} of its time "
        f"(95 % interval {low:.3f} to {high:.3f}): {gate['verdict']}{kept}"
    )


def show_search(record: Record) -> None:
    """The points to choose from, beside the original."""
    original, metric = record["original"], record["original"]["metric"]

    def scored(value: float | None) -> list[str]:
        return [] if metric is None or value is None else [f"{value:.3f}"]

    points = sorted((row for row in record["trials"] if row["front"]), key=lambda row: row["cost"])
    whole = ["original", "-", "-", millions(original["params"]), giga(original["macs"]), "1.000", "0", "-"]
    print_table(
        f"{record['network']} at {'x'.join(map(str, record['input']))}, {record['budget']}: what no other point beats",
        ["checkpoint", "forms", f"cost ({record['unit']})", "params", "MACs", "MACs kept", "map error", "recovered",
         *([] if metric is None else [metric])],
        [
            [*whole, *scored(original["score"])],
            *(
                [
                    row["checkpoint"],
                    row["forms"],
                    f"{row['cost']:.4g}",
                    millions(row["params"]),
                    giga(row["macs"]),
                    _share(original["macs"], row["macs"]),
                    f"{row['map_error']:.4f}",
                    "yes" if row["tuned"] else "no",
                    *scored(row["score"]),
                ]
                for row in points
            ),
        ],
        left=2,
    )  # fmt: skip
    console().print(headline("search", record), markup=False, soft_wrap=True)


def show_attention(record: Record) -> None:
    """Each block, and which weights it kept."""
    print_table(
        f"Attention blocks, now {record['kind']}",
        ["block", "was", "channels", "reduction", "weights carried over"],
        [
            (
                row["name"],
                row["was"] or "(inserted)",
                row["channels"],
                row["reduction"],
                ", ".join(row["carried"]) or ("none: starts as the identity" if record["identity"] else "none"),
            )
            for row in record["blocks"]
        ],
        left=2,
    )
    console().print(headline("attention", record), markup=False, soft_wrap=True)


def show_train(record: Record) -> None:
    """Loss and score, first and last."""
    console().print(headline("finetune", record), markup=False, soft_wrap=True)


def show_evaluate(record: Record) -> None:
    """All metrics and the conditions they hold under."""
    print_table(
        f"{record['model']} on {record['data']}: {record['images']} images at height {record['height']}, "
        f"{record['runtime']} {record['device']} {record['precision']}, {record['seconds']:.1f} s; "
        f"{record['convention']}",
        list(record["metrics"]),
        [[f"{value:.3f}" for value in record["metrics"].values()]],
        left=0,
    )


def show_export(record: Record) -> None:
    """Files and how far they are from the network; for INT8 what it loses."""
    if record["parity"]:
        print_table(
            "Exported files, checked against torch",
            ["file", "precision", "max map error", "keypoints compared", "max moved (px)", "bytes"],
            [
                (
                    row["file"],
                    row["precision"],
                    f"{row['max_error']:.2e}",
                    row["keypoints"],
                    f"{row['moved_px_max']:.3f}",
                    row["size_bytes"],
                )
                for row in record["parity"]
            ],
            left=2,
        )
    if "int8" in record:
        show_int8(record["int8"])


def show_report(record: Record) -> None:
    """The files of the report."""
    console().print(headline("report", record), markup=False, soft_wrap=True)


_SHOW: dict[str, Callable[[Record], None]] = {
    "networks": show_networks,
    "init": show_init,
    "inspect": show_inspect,
    "factorize": show_factorize,
    "search": show_search,
    "attention": show_attention,
    "train": show_train,
    "finetune": show_train,
    "evaluate": show_evaluate,
    "predict": show_predict,
    "export": show_export,
    "benchmark": show_benchmark,
    "report": show_report,
}


def show(stage: str, record: Record) -> None:
    """Print the record of a stage."""
    _SHOW[stage](record)


def headline(stage: str, record: Record) -> str:
    """A record in one line, for the log of a recipe and the end of a command."""
    if stage == "init":
        return f"{record['output']}: {record['network']}, {'trained' if record['trained'] else 'random'} weights"
    if stage == "inspect":
        return f"{record['network']}: {millions(record['params'])} parameters, {giga(record['macs'])}MACs"
    if stage == "factorize":
        output = record["output"] or "nothing written (--dry-run)"
        return (
            f"{output}: parameters {millions(record['params'][0])} -> {millions(record['params'][1])} "
            f"({_share(*record['params'])}), MACs {giga(record['macs'][0])} -> {giga(record['macs'][1])} "
            f"({_share(*record['macs'])})"
        )
    if stage == "search":
        tried, kept = len(record["trials"]), sum(row["front"] for row in record["trials"])
        left = f", {len(record['left'])} left for --resume" if record["left"] else ""
        return f"{record['output']}: {kept} point(s) to choose from, {tried} tried{left}"
    if stage == "attention":
        return (
            f"{record['output']}: {len(record['blocks'])} block(s) {record['kind']}, parameters "
            f"{millions(record['params'][0])} -> {millions(record['params'][1])}, "
            f"MACs {giga(record['macs'][0])} -> {giga(record['macs'][1])}"
        )
    if stage in ("train", "finetune"):
        text = f"{record['output']}: {record['steps']} steps, loss {record['loss'][0]:.4g} -> {record['loss'][1]:.4g}"
        if record["score"] is not None:
            text += f", score {record['score'][0]:.3f} -> {record['score'][1]:.3f}"
        return text
    if stage == "evaluate":
        metric, value = next(iter(record["metrics"].items()))
        return f"{record['model']}: {metric} {value:.3f} on {record['data']}, {record['images']} images"
    if stage == "predict":
        return predict_headline(record)
    if stage == "export":
        return ", ".join(record["files"])
    if stage == "benchmark":
        return f"{len(record['rows'])} measurements"
    if stage == "report":
        return f"report: {record['html']}"
    return f"{len(record['networks'])} networks"
