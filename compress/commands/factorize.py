"""`compress factorize`: factorize the convolutions and linear layers of a network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.commands.base import Command, Result, plain
from compress.commands.fields import option
from compress.commands.options import DataOptions, ModelOptions, SizeOptions, load_model, open_dataset
from compress.errors import UsageError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.compression.factorize import Factorization, Policy
    from compress.compression.reached import Reached
    from compress.planning.policies import Vbmf


class FactorizeOptions(ModelOptions, SizeOptions, DataOptions):
    """Options of `compress factorize`."""

    ratio: str | None = option(None, "Share of channels kept on mode 3 and mode 4, such as 1/3 or 0.25", flag="-r")
    rank: Literal["vbmf"] | None = option(None, "Rank policy: vbmf takes the ranks of global analytic VBMF")
    weaken: float = option(1.0, "With --rank vbmf: 1 takes its ranks, smaller values move them towards full rank")
    rank_zero: Literal["skip", "min_rank"] = option("skip", "With --rank vbmf: what to do where it finds rank 0")
    clamp: str | None = option(None, "With --rank vbmf: least and largest share of the channels, such as 1/4,1/3")
    energy: float | None = option(None, "Smallest ranks that keep this share of squared singular values per mode")
    budget: str | None = option(
        None,
        "Forms and ranks within a budget: macs=0.5, params=, size= (shares, or 4G, 2M), error= (of the outputs), "
        "drop= (AP on --data), latency=0.6@openvino-cpu or @openvino-cpu-int8",
        flag="-b",
    )
    prior: Literal["vbmf"] | None = option(None, "With --budget: no rank below that of VBMF")
    align: str | None = option(None, "With --budget: ranks in multiples of N, or auto for this machine's vector width")
    plan: Path | None = option(None, "Apply a plan, perhaps edited by hand, instead of choosing ranks")
    calibrate: int = option(64, "Images of --data that factors are fitted to")
    factors: Literal["data", "weights"] = option(
        "data", "What ranks and factors are computed from; with weights, --data is used by --reconstruct only"
    )
    fit_groups: int = option(
        12,
        "Groups of layers that are fitted one after the other; 0 fits all to the inputs of the original",
        old="rounds",
    )
    include: tuple[str, ...] = option((), "Only layers of this name or pattern; repeat for more")
    exclude: tuple[str, ...] = option((), "Leave out layers of this name or pattern; repeat for more")
    pointwise: bool = option(
        False, "Factorize 1x1 convolutions and linear layers too; under a --budget they always are"
    )
    reconstruct: int = option(0, "Then train each block of layers for N steps to match the original block's output")
    again: bool = option(False, "First multiply the factors of an earlier factorization back into kernels")
    fold: bool = option(False, "First fold batch normalisation, and 1x1 after 1x1, into the preceding convolution")
    save_plan: Path | None = option(None, "Write the plan as JSON", output=True)
    dry_run: bool = option(False, "Show what would be done without writing a model")
    output: Path | None = option(
        None, "Model to write (default: beside the model, -factorized added to its name)", flag="-o", output=True
    )
    force: bool = option(False, "Replace existing outputs")


@dataclass(frozen=True)
class FactorizeResult(Result):
    """The factorization, and the model that was written."""

    output: str | None
    done: Factorization

    @property
    def record(self) -> dict[str, Any]:
        """Costs before and after, the layers, and what was measured."""
        done, before, after = self.done, self.done.before, self.done.after
        height, width = done.plan.input_size
        record = {
            "output": self.output,
            "network": done.model.name,
            "input": [height, width],
            "policy": dict(done.plan.policy),
            "params": [before.params, after.params],
            "macs": [before.macs, after.macs],
            "size_bytes": [before.size_bytes, after.size_bytes],
            "layers": plain(done.plan.layers),
            "notices": list(done.notices),
        }
        if done.noise is not None:
            record["noise"] = plain(dict(done.noise))
        if done.reached is not None:
            record["budget"] = plain(done.reached.to_dict())
        if done.output_error is not None:
            record["map_error"] = dict(done.output_error)
        return record

    @property
    def summary(self) -> str:
        """The change in cost."""
        from compress.commands.terminal import giga, millions, share

        before, after = self.done.before, self.done.after
        return (
            f"{self.output or 'nothing written (--dry-run)'}: parameters {millions(before.params)} -> "
            f"{millions(after.params)} ({share(before.params, after.params)}), MACs {giga(before.macs)} -> "
            f"{giga(after.macs)} ({share(before.macs, after.macs)})"
        )

    def show(self) -> None:
        """Print changed layers, the reasons of the others, and totals."""
        from compress.commands.terminal import giga, print_lines, print_table, share

        print_table(
            "Factorized layers",
            ["layer", "form", "ranks", "params", "MACs", "MACs kept", "kernel error", "output error"],
            [
                (
                    layer.name,
                    layer.method,
                    ", ".join(map(str, layer.ranks)),
                    f"{layer.params[0]} -> {layer.params[1]}",
                    f"{giga(layer.macs[0])} -> {giga(layer.macs[1])}",
                    share(*layer.macs),
                    "-" if layer.error is None else f"{layer.error:.3f}",
                    "-" if layer.output_error is None else f"{layer.output_error:.4f}",
                )
                for layer in self.done.plan.changed
            ],
            left=2,
        )
        print_lines(*_notes(self.done), self.summary)


def _notes(done: Factorization) -> list[str]:
    """Why layers are kept, notices, VBMF noise, the budget and the errors."""
    from compress.planning.plan import REASONS

    kept = Counter(layer.reason for layer in done.plan.layers if layer.method == "keep")
    lines = [f"{count} layer(s) {REASONS[reason]}" for reason, count in kept.most_common()]
    lines += [f"note: {notice}" for notice in done.notices]
    for name, noise in (done.noise or {}).items():
        lines.append(
            f"{name}: VBMF noise {noise.mode3:.2e} along mode 3, {noise.mode4:.2e} along mode 4; root mean square of "
            f"the kernel {noise.kernel:.2e}"
        )
    if done.reached is not None:
        lines.append(_budget_line(done.reached))
    if done.output_error is not None:
        errors = ", ".join(f"{name} {value:.4f}" for name, value in done.output_error.items())
        lines.append(f"relative squared error of the final outputs: {errors}")
    return lines


def _budget_line(reached: Reached) -> str:
    """What was asked of a budget, predicted and reached."""
    line = (
        f"budget {reached.budget}: asked {reached.asked:.4g}, predicted {reached.predicted:.4g}, "
        f"reached {reached.reached:.4g} (original {reached.original:.4g})"
    )
    if reached.gate is None:
        return line
    gate = reached.gate.to_dict()
    low, high = gate["interval"]
    kept = "" if gate["verdict"] == "faster" else "; the network stays as it was"
    return (
        f"{line}; against the original, interleaved: x{gate['ratio']:.3f} of its time "
        f"(95 % interval {low:.3f} to {high:.3f}): {gate['verdict']}{kept}"
    )


def read_policy(options: FactorizeOptions) -> Policy:
    """The one policy that the options name."""
    from compress.files import read_text
    from compress.planning.budget import Budget
    from compress.planning.plan import Plan
    from compress.planning.policies import Energy, Ratio

    names = ("ratio", "rank", "energy", "budget", "plan")
    named = [f"--{name}" for name in names if getattr(options, name) is not None]
    if len(named) != 1:
        raise UsageError(
            "choose one of --ratio, --rank, --energy, --budget and --plan", found=" and ".join(named) or "none of them"
        )
    if options.rank is None and (options.weaken != 1.0 or options.rank_zero != "skip" or options.clamp):
        raise UsageError("--weaken, --rank-zero and --clamp need --rank vbmf", found=named[0])
    if options.budget is None and (options.prior is not None or options.align is not None):
        raise UsageError("--prior and --align belong to --budget", found=named[0])
    if options.plan is not None:
        return Plan.from_json(read_text(options.plan, "plan"))
    if options.budget is not None:
        return Budget.parse(options.budget)
    if options.ratio is not None:
        return Ratio.parse(options.ratio)
    return _vbmf(options) if options.energy is None else Energy(options.energy)


def _vbmf(options: FactorizeOptions) -> Vbmf:
    from compress.planning.policies import Vbmf, read_share

    if options.clamp is None:
        return Vbmf(options.weaken, options.rank_zero)
    low, comma, high = options.clamp.partition(",")
    if not comma:
        raise UsageError("--clamp takes two shares", found=options.clamp, hint="For example --clamp 1/4,1/3")
    return Vbmf(options.weaken, options.rank_zero, (read_share(low), read_share(high)))


def run(options: FactorizeOptions, progress: Progress) -> FactorizeResult:
    """Choose ranks, factorize, and write the smaller network."""
    from compress.checkpoint.save import save
    from compress.compression.factorize import factorize_model
    from compress.compression.options import FactorizeOptions as Conditions
    from compress.files import refuse_existing, write_text

    policy = read_policy(options)
    output = options.output or options.model.with_name(f"{options.model.stem}-factorized.pt")
    for path in (None if options.dry_run else output, options.save_plan):
        if path is not None:
            refuse_existing(path, options.force)
    conditions = Conditions(
        include=options.include,
        exclude=options.exclude,
        pointwise=options.pointwise,
        calibrate=options.calibrate,
        factors=options.factors,
        rounds=options.fit_groups,
        reconstruct=options.reconstruct,
        again=options.again,
        fold=options.fold,
        align=options.align,
        prior=options.prior,
        size=options.input,
    )
    images = open_dataset(options) if options.has_data else None
    done = factorize_model(load_model(options), policy, images=images, options=conditions, progress=progress)
    written = []
    if options.save_plan is not None:
        write_text(options.save_plan, done.plan.to_json(), force=options.force)
        written.append(options.save_plan)
    if options.dry_run:
        return FactorizeResult(None, done, written=tuple(written))
    done.require_change()
    save(done.model, output, force=options.force)
    return FactorizeResult(str(output), done, written=(*written, output))


COMMAND = Command(FactorizeOptions, run, "compress factorize model.pt --ratio 1/3 -o small.pt")
