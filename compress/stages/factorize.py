"""Factorize the convolutions of a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from compress.checkpoint import Checkpoint, save_checkpoint, snapshot
from compress.errors import RankError, UsageError
from compress.files import read_bytes, refuse_existing, write_text
from compress.model.cost import cost
from compress.plan import Plan
from compress.ranks.fixed import Energy, Policy, Ratio, Selection, Vbmf, check_plan, make_plan, parse_ratio
from compress.stages.base import Progress, StageResult, option
from compress.stages.models import ModelOptions, SizeOptions, counting_size, load
from compress.stages.registry import Stage
from compress.surgery.edits import FactorizeEdit
from compress.surgery.factorize import factorize


class FactorizeOptions(ModelOptions, SizeOptions):
    """Options of `compress factorize`."""

    ratio: str | None = option(None, "Share of channels kept on mode 3 and mode 4, such as 1/3 or 0.25", flag="-r")
    rank: Literal["vbmf"] | None = option(None, "Rank policy: vbmf takes the global analytic VBMF ranks")
    weaken: float = option(1.0, "With --rank vbmf: 1 takes its ranks, smaller values move them towards full rank")
    rank_zero: Literal["skip", "min_rank"] = option("skip", "With --rank vbmf: what to do where it finds rank 0")
    energy: float | None = option(None, "Smallest ranks that keep this share of squared singular values per mode")
    plan: Path | None = option(None, "Apply a plan, perhaps edited by hand, instead of choosing ranks")
    include: tuple[str, ...] = option((), "Only layers of this name or pattern; repeat for more")
    exclude: tuple[str, ...] = option((), "Leave out layers of this name or pattern; repeat for more")
    pointwise: bool = option(False, "Factorize 1x1 convolutions and linear layers too (by SVD)")
    save_plan: Path | None = option(None, "Write the plan as JSON", output=True)
    dry_run: bool = option(False, "Show what would be done and write no checkpoint")
    output: Path | None = option(
        None, "Checkpoint to write (default: beside the model, -factorized added)", flag="-o", output=True
    )
    force: bool = option(False, "Replace existing outputs")


def read_policy(options: FactorizeOptions) -> Policy:
    """The one rank policy that the options name."""
    given = [
        name
        for name, value in (("--ratio", options.ratio), ("--rank", options.rank), ("--energy", options.energy))
        if value is not None
    ]
    if len(given) != 1:
        raise UsageError(
            "choose one of --ratio, --rank, --energy and --plan", found=" and ".join(given) if given else "none of them"
        )
    if options.rank is None and (options.weaken != 1.0 or options.rank_zero != "skip"):
        raise UsageError("--weaken and --rank-zero belong to --rank vbmf", found=given[0])
    if options.ratio is not None:
        return Ratio(parse_ratio(options.ratio))
    if options.energy is not None:
        return Energy(options.energy)
    return Vbmf(options.weaken, options.rank_zero)


def _choose(options: FactorizeOptions, checkpoint: Checkpoint, module: Any, size: tuple[int, int]) -> Plan:
    name = checkpoint.network.name
    if options.plan is not None:
        clash = [
            flag
            for flag, value in (
                ("--ratio", options.ratio),
                ("--rank", options.rank),
                ("--energy", options.energy),
                ("--include", options.include),
                ("--exclude", options.exclude),
                ("--pointwise", options.pointwise),
            )
            if value
        ]
        if clash:
            raise UsageError("--plan says all there is to say of layers and ranks", found=f"--plan with {clash[0]}")
        text = read_bytes(options.plan, "plan").decode("utf-8", errors="replace")
        return check_plan(Plan.from_json(text), module, network=name, input_size=size)
    selection = Selection(options.include, options.exclude, options.pointwise)
    return make_plan(module, read_policy(options), selection, network=name, input_size=size)


def run(options: FactorizeOptions, progress: Progress) -> StageResult:
    """Choose ranks, factorize, and write the smaller network."""
    if options.plan is None:
        read_policy(options)
    output = options.output or options.model.with_name(f"{options.model.stem}-factorized.pt")
    for path in (None if options.dry_run else output, options.save_plan):
        if path is not None:
            refuse_existing(path, options.force)
    checkpoint = load(options)
    module = checkpoint.build()
    size = counting_size(checkpoint, options.input)
    plan = _choose(options, checkpoint, module, size)
    with progress.bar("Tucker-2", None):
        done = factorize(module, plan)
    before, after = cost(module, size), cost(done.module, size)
    record: dict[str, Any] = {
        "output": None if options.dry_run else str(output),
        "network": checkpoint.network.name,
        "input": list(size),
        "policy": dict(plan.policy),
        "params": [before.params, after.params],
        "macs": [before.macs, after.macs],
        "size_bytes": [before.size_bytes, after.size_bytes],
        "layers": [asdict(layer) for layer in done.plan.layers],
    }
    files: list[Path] = []
    if options.save_plan is not None:
        write_text(options.save_plan, done.plan.to_json(), force=options.force)
        files.append(options.save_plan)
    if not options.dry_run:
        if not done.plan.changed:
            raise RankError(
                "no layer would be factorized, so there is nothing to write",
                way_out="See --dry-run for the reason of each layer",
            )
        smaller = snapshot(
            checkpoint,
            done.module,
            edits=(FactorizeEdit.from_plan(done.plan),),
            command="factorize",
            policy=dict(plan.policy),
            layers=[asdict(layer) for layer in done.plan.layers],
        )
        save_checkpoint(smaller, output, force=options.force)
        files.append(output)
    return StageResult(record, tuple(files))


STAGE = Stage(FactorizeOptions, run, "compress factorize model.pt --ratio 1/3 -o small.pt")
