"""Factorize the convolutions of a network."""

from __future__ import annotations

from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from compress.checkpoint.save import save
from compress.commands.base import StageResult, option
from compress.commands.options import DataOptions, ModelOptions, SizeOptions, counting_size, load_model, open_dataset
from compress.commands.registry import Stage
from compress.compression.budgets import BudgetRequest, by_budget
from compress.compression.calibration import calibrate, calibration_images, doubts
from compress.decomposition.evbmf import evbmf_kernel
from compress.errors import RankError, UsageError
from compress.files import read_bytes, refuse_existing, write_text
from compress.model import Model
from compress.network.cost import cost
from compress.network.factors import group_kernels
from compress.network.layers import kind_of, list_layers
from compress.network.output_error import map_errors
from compress.planning.budget import Budget
from compress.planning.budgeted import eligible
from compress.planning.check import check_plan
from compress.planning.plan import Plan
from compress.planning.policies import Energy, Policy, Ratio, Vbmf, make_plan, read_share
from compress.planning.selection import Selection
from compress.progress import Progress
from compress.surgery.compose import compose
from compress.surgery.data_aware import factorize_with_data
from compress.surgery.edits import Edit, FactorizeEdit
from compress.surgery.factorize import Factorized, factorize
from compress.surgery.fold import fold
from compress.training.reconstruct import ReconstructOptions, reconstruct

#: Calibration images on which final maps are compared at the end.
COMPARED = 24


class FactorizeOptions(ModelOptions, SizeOptions, DataOptions):
    """Options of `compress factorize`."""

    ratio: str | None = option(None, "Share of channels kept on mode 3 and mode 4, such as 1/3 or 0.25", flag="-r")
    rank: Literal["vbmf"] | None = option(None, "Rank policy: vbmf takes the global analytic VBMF ranks")
    weaken: float = option(1.0, "With --rank vbmf: 1 takes its ranks, smaller values move them towards full rank")
    rank_zero: Literal["skip", "min_rank"] = option("skip", "With --rank vbmf: what to do where it finds rank 0")
    clamp: str | None = option(None, "With --rank vbmf: least and largest share of the channels, such as 1/4,1/3")
    energy: float | None = option(None, "Smallest ranks that keep this share of squared singular values per mode")
    budget: str | None = option(
        None,
        "Forms and ranks by a budget: macs=0.5, params=, size= (shares, or 4G, 2M), error= (of the final maps), "
        "drop= (AP on --data), latency=0.6@openvino-cpu or @openvino-cpu-int8",
        flag="-b",
    )
    prior: Literal["vbmf"] | None = option(None, "With --budget: no rank below what VBMF finds")
    align: str | None = option(None, "With --budget: ranks in steps of N, or auto for those of the machine")
    plan: Path | None = option(None, "Apply a plan, perhaps edited by hand, instead of choosing ranks")
    calibrate: int = option(64, "Images of --data that factors are fitted to")
    factors: Literal["data", "weights"] = option(
        "data", "What ranks and factors come from; with weights the images of --data are for --reconstruct alone"
    )
    rounds: int = option(
        12, "Groups of layers that are fitted one after the other; 0 fits all to the original's inputs"
    )
    include: tuple[str, ...] = option((), "Only layers of this name or pattern; repeat for more")
    exclude: tuple[str, ...] = option((), "Leave out layers of this name or pattern; repeat for more")
    pointwise: bool = option(False, "Factorize 1x1 convolutions and linear layers too (by SVD); a --budget always may")
    reconstruct: int = option(0, "Then train each block of layers for so many steps to give what the original's gives")
    again: bool = option(False, "First multiply the factors of an earlier factorization back into kernels")
    fold: bool = option(False, "First fold batch normalisation, and 1x1 after 1x1, into the convolution before it")
    save_plan: Path | None = option(None, "Write the plan as JSON", output=True)
    dry_run: bool = option(False, "Show what would be done and write no checkpoint")
    output: Path | None = option(
        None, "Model to write (default: beside the model, -factorized added)", flag="-o", output=True
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
            "choose one of --ratio, --rank, --energy, --budget and --plan",
            found=" and ".join(given) if given else "none of them",
        )
    if options.rank is None and (options.weaken != 1.0 or options.rank_zero != "skip" or options.clamp):
        raise UsageError("--weaken, --rank-zero and --clamp belong to --rank vbmf", found=given[0])
    if options.ratio is not None:
        return Ratio(options.ratio)
    if options.energy is not None:
        return Energy(options.energy)
    return Vbmf(options.weaken, options.rank_zero, _read_clamp(options.clamp))


def _read_clamp(text: str | None) -> tuple[Fraction, Fraction] | None:
    if text is None:
        return None
    low, comma, high = text.partition(",")
    if not comma:
        raise UsageError("--clamp takes two shares", found=text, hint="For example --clamp 1/4,1/3")
    return read_share(low), read_share(high)


def _choose(options: FactorizeOptions, checkpoint: Model, module: Any, size: tuple[int, int]) -> Plan:
    name = checkpoint.source.name
    if options.plan is not None:
        clash = [
            flag
            for flag, value in (
                ("--ratio", options.ratio),
                ("--rank", options.rank),
                ("--energy", options.energy),
                ("--budget", options.budget),
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


def _check(options: FactorizeOptions) -> None:
    """Refuse options that do not go together, before any work."""
    if options.reconstruct < 0 or (options.reconstruct and not options.has_data):
        raise UsageError("--reconstruct takes a number of steps, and images by --data", found=options.reconstruct)
    if options.budget is None:
        if options.prior is not None or options.align is not None:
            raise UsageError("--prior and --align belong to --budget", found="no --budget")
        if options.plan is None:
            read_policy(options)
        return
    Budget.parse(options.budget)
    clash = [name for name in ("ratio", "rank", "energy", "plan") if getattr(options, name) is not None]
    if clash:
        raise UsageError(
            "choose one of --ratio, --rank, --energy, --budget and --plan", found=f"--budget and --{clash[0]}"
        )


def _apply(module: nn.Module, plan: Plan, images: list[Tensor], rounds: int, progress: Progress) -> Factorized:
    """Factorize as planned, from data where there is any."""
    if not images:
        with progress.bar("Tucker-2", None):
            return factorize(module, plan)
    names, _ = eligible(list_layers(module, plan.input_size), Selection(pointwise=True))
    changed = {entry.name for entry in plan.changed}
    calibration = calibrate(module, images, [name for name in names if name in changed], progress)
    with progress.bar("fitting layers", len(changed)) as advance:
        return factorize_with_data(module, plan, calibration, rounds=rounds, progress=lambda *_: advance(1))


def _reconstruct(
    module: nn.Module, done: Factorized, images: list[Tensor], steps: int, progress: Progress
) -> tuple[Factorized, str]:
    """Train the blocks of the result, and what that gave."""
    with progress.bar("reconstructing blocks", None):
        found = reconstruct(done.module, module, images, ReconstructOptions(steps=steps))
    before, after = (sum(getattr(block, name) for block in found.blocks) for name in ("before", "after"))
    told = (
        f"{len(found.blocks)} blocks reconstructed: sum of their errors on images left out {before:.4f} -> {after:.4f}"
    )
    return replace(done, module=found.module), told


def _noise(module: nn.Module, plan: Plan) -> dict[str, dict[str, float]]:
    """Standard deviation of the noise that VBMF sees along mode 3 and mode 4, beside that of the kernel."""
    found = {}
    for entry in plan.layers:
        if entry.method != "keep" or entry.reason == "rank_zero":
            layer = module.get_submodule(entry.name)
            weight = layer.get_parameter("weight").detach()
            kernel = group_kernels(weight, str(kind_of(layer)), int(getattr(layer, "groups", 1)))[0]
            first, last = evbmf_kernel(kernel.flatten(1) if kernel[0, 0].numel() == 1 else kernel)
            found[entry.name] = {
                "mode3": first.noise_variance**0.5,
                "mode4": last.noise_variance**0.5,
                "kernel": float(kernel.double().square().mean().sqrt()),
            }
    return found


def run(options: FactorizeOptions, progress: Progress) -> StageResult:
    """Choose ranks, factorize, and write the smaller network."""
    _check(options)
    output = options.output or options.model.with_name(f"{options.model.stem}-factorized.pt")
    for path in (None if options.dry_run else output, options.save_plan):
        if path is not None:
            refuse_existing(path, options.force)
    checkpoint = load_model(options)
    module = checkpoint.module
    size = counting_size(checkpoint, options.input)
    before = cost(module, size)
    composed = compose(module) if options.again else None
    module = module if composed is None else composed.module
    folded = fold(module, size) if options.fold else None
    module = module if folded is None else folded.module
    dataset = open_dataset(options) if options.has_data else None
    notices = []
    if options.budget is not None and (dataset is None or options.factors == "weights"):
        notices.append("factors come from weights alone and all layers count alike")
    images = [] if dataset is None else calibration_images(dataset, checkpoint.pose, size[0], options.calibrate)
    if images:
        notices += doubts(module, checkpoint.pose, images)
    fitted = images if options.factors == "data" else []
    reached: dict[str, Any] | None = None
    if options.budget is not None:
        request = BudgetRequest(
            Budget.parse(options.budget),
            Selection(options.include, options.exclude, pointwise=True),
            align=options.align,
            prior=options.prior,
            rounds=options.rounds,
        )
        done, reached = by_budget(checkpoint, module, size, request, fitted, dataset, progress)
    else:
        plan = _choose(options, checkpoint, module, size)
        done = _apply(module, plan, fitted, options.rounds, progress)
    plan = done.plan
    if options.reconstruct and done.plan.changed:
        done, told = _reconstruct(module, done, images, options.reconstruct, progress)
        notices.append(told)
    if composed is not None:
        notices.append(f"{len(composed.edit.layers)} factorized layers multiplied out first")
    if folded is not None:
        notices.append(f"{len(folded.edit.pairs)} layers folded into the convolution before them")
    if fitted:
        notices.append(f"factors fitted to {len(fitted)} images of {dataset.name}")  # type: ignore[union-attr]
    after = cost(done.module, size)
    record: dict[str, Any] = {
        "output": None if options.dry_run else str(output),
        "network": checkpoint.source.name,
        "input": list(size),
        "policy": dict(plan.policy),
        "params": [before.params, after.params],
        "macs": [before.macs, after.macs],
        "size_bytes": [before.size_bytes, after.size_bytes],
        "layers": [asdict(layer) for layer in done.plan.layers],
        "notices": notices,
    }
    if options.rank == "vbmf":
        record["noise"] = _noise(module, plan)
    if reached is not None:
        record["budget"] = reached
    if images:
        record["map_error"] = map_errors(module, done.module, images[:COMPARED])
    files: list[Path] = []
    if options.save_plan is not None:
        write_text(options.save_plan, done.plan.to_json(), force=options.force)
        files.append(options.save_plan)
    if not options.dry_run:
        if not done.plan.changed and reached is None:
            raise RankError(
                "no layer would be factorized, so there is nothing to write",
                hint="See --dry-run for the reason of each layer",
            )
        edits: list[Edit] = []
        if composed is not None and composed.edit.layers:
            edits.append(composed.edit)
        if folded is not None and folded.edit.pairs:
            edits.append(folded.edit)
        if done.plan.changed:
            edits.append(FactorizeEdit.from_plan(done.plan, done.biases))
        smaller = checkpoint.derive(
            done.module,
            edits=tuple(edits),
            command="factorize",
            policy=dict(plan.policy),
            layers=[asdict(layer) for layer in done.plan.layers],
        )
        save(smaller, output, force=options.force)
        files.append(output)
    return StageResult(record, tuple(files))


STAGE = Stage(FactorizeOptions, run, "compress factorize model.pt --ratio 1/3 -o small.pt")
