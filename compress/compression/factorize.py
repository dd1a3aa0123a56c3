"""Planning and factorizing a model: `compress.plan` and `compress.factorize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from compress.compression.budgets import Scorer, alignment, considered_forms, within_budget
from compress.compression.calibration import CalibrationImages, calibrate, calibrated_curves, doubts, read_images
from compress.compression.options import FactorizeOptions
from compress.compression.problem import BudgetProblem
from compress.compression.reached import Reached
from compress.compression.scoring import metric_of
from compress.data.source import images as open_images
from compress.errors import RankError, UsageError
from compress.model import Model
from compress.network.cost import Cost
from compress.network.inputs import Inputs
from compress.network.output_error import output_errors
from compress.planning.budget import Budget
from compress.planning.budgeted import eligible, weight_curves, with_prior
from compress.planning.check import check_plan
from compress.planning.noise import LayerNoise, layer_noise
from compress.planning.plan import Plan
from compress.planning.policies import Energy, Ratio, Vbmf, make_plan
from compress.planning.selection import Selection
from compress.progress import Progress, Silent
from compress.surgery.compose import compose
from compress.surgery.data_aware import factorize_with_data
from compress.surgery.edits import Edit, FactorizeEdit
from compress.surgery.factorize import Factorized
from compress.surgery.factorize import factorize as factorize_module
from compress.surgery.fold import fold
from compress.training.reconstruct import ReconstructOptions, reconstruct

#: Who chooses the ranks.
Policy = Ratio | Vbmf | Energy | Budget | Plan


@dataclass(frozen=True)
class Factorization:
    """A factorized model, and everything that a report needs to know of it.

    Attributes
    ----------
    model : Model
        The new model, with its plan, edits and history.
    before, after : Cost
        Of the model that was given and of the new one, at the same input size.
    plan : Plan
        Form, ranks, costs, errors and reason of each layer.
    reached : Reached or None
        What was asked, predicted and reached, under a budget.
    notices : tuple of str
        Warnings, and what was done beside the factorization.
    output_error : dict of str to float, or None
        Relative squared error of each final output on images, where there are any.
    noise : dict of str to LayerNoise, or None
        What VBMF estimates for each layer, if it chose the ranks.
    """

    model: Model
    before: Cost
    after: Cost
    plan: Plan
    reached: Reached | None = None
    notices: tuple[str, ...] = ()
    output_error: Mapping[str, float] | None = None
    noise: Mapping[str, LayerNoise] | None = None

    def require_change(self) -> None:
        """Raise `RankError` if no layer was factorized although no budget was asked for."""
        if not self.plan.changed and self.reached is None:
            raise RankError(
                "no layer would be factorized, so there is nothing to write",
                hint="The plan gives the reason for each layer: --dry-run, or print(compress.plan(...))",
            )


def plan(
    model: Model,
    policy: Policy | None = None,
    *,
    ratio: Fraction | float | str | None = None,
    budget: Budget | str | None = None,
    images: Any = None,
    options: FactorizeOptions | None = None,
    progress: Progress | None = None,
) -> Plan:
    """What `factorize` would do: form, ranks, costs, errors and reason of each layer; parameters as there.

    Under a budget, or with images, the network is built to measure it, so this takes as long as `factorize`.
    """
    done = factorize_model(model, policy, ratio=ratio, budget=budget, images=images, options=options, progress=progress)
    return done.plan


def factorize(
    model: Model,
    policy: Policy | None = None,
    *,
    ratio: Fraction | float | str | None = None,
    budget: Budget | str | None = None,
    images: Any = None,
    options: FactorizeOptions | None = None,
    progress: Progress | None = None,
) -> Model:
    """Replace layers of a model by smaller ones: Tucker-2 or another form, of the ranks that a policy chooses.

    Parameters
    ----------
    model : Model
        The model; it stays as it was.
    policy : Ratio, Vbmf, Energy, Budget or Plan, optional
        Who chooses the ranks; exactly one of this, ``ratio`` and ``budget``.
    ratio : Fraction, float or str, optional
        Share of the channels that ranks keep, such as ``"1/3"``; stands for ``Ratio(ratio)``.
    budget : Budget or str, optional
        A bound for the whole network, such as ``"macs=0.5"`` or ``"latency=0.7@openvino-cpu"``.
    images : object, optional
        Images to fit factors to, as of `compress.images`; without them factors come from the weights alone. A budget
        of accuracy needs annotated ones.
    options : FactorizeOptions, optional
        Everything else.
    progress : Progress, optional
        Receives every step.

    Returns
    -------
    Model
        With ``plan``, one more edit and one more record in its history.

    Raises
    ------
    UsageError
        If there is not exactly one policy, or options do not go together.
    RankError
        If no layer would be factorized, or a weight has non-finite values.
    Infeasible
        If a budget can't be met; ``nearest`` is the nearest one that can.
    PlanError
        If a plan does not fit the model.
    NetworkError
        If the network's code does not work with a replaced layer.
    DataError
        If the images can't be used.
    """
    done = factorize_model(model, policy, ratio=ratio, budget=budget, images=images, options=options, progress=progress)
    done.require_change()
    return done.model


def factorize_model(
    model: Model,
    policy: Policy | None = None,
    *,
    ratio: Fraction | float | str | None = None,
    budget: Budget | str | None = None,
    images: Any = None,
    options: FactorizeOptions | None = None,
    progress: Progress | None = None,
) -> Factorization:
    """As `factorize`, with costs, notices and errors; a result in which no layer changed is returned as well."""
    options, progress = options or FactorizeOptions(), progress or Silent()
    policy = read_policy(policy, ratio, budget)
    _check_options(policy, options, images)
    given = model.at_size(options.size)
    prepared = _prepare(given, options)
    source = None if images is None else open_images(images)
    calibration = None if source is None else read_images(source, given, options.calibrate, progress)
    fitted = calibration.fitted if calibration is not None and options.factors == "data" else ()
    notices = []
    if isinstance(policy, Budget) and not fitted:
        notices.append("factors come from weights alone and all layers count alike")
    if calibration is not None:
        notices += doubts(prepared.model, calibration.fitted)
    reached = None
    if isinstance(policy, Budget):
        score = _scorer(prepared.model, source, progress)
        done, reached = _by_budget(prepared.model, policy, fitted, score, options, progress)
    else:
        done = _by_plan(prepared.model, _choose(prepared.model, policy, options), fitted, options.rounds, progress)
    if calibration is not None and options.reconstruct and done.plan.changed:
        done, notice = _reconstruct(prepared.model, done, calibration.fitted, options.reconstruct, progress)
        notices.append(notice)
    notices += prepared.notices
    if calibration is not None and fitted:
        notices.append(f"factors fitted to {len(fitted)} images of {calibration.name}")
    edit = (FactorizeEdit.from_plan(done.plan, done.biases),) if done.plan.changed else ()
    smaller = prepared.model.derive(
        done.module,
        edits=edit,
        plan=done.plan,
        command="factorize",
        policy=dict(done.plan.policy),
        layers=[asdict(layer) for layer in done.plan.layers],
    )
    errors = None
    if calibration is not None:
        errors = output_errors(prepared.model.module, done.module, calibration.compared, model.outputs)
        notices += _comparison_notice(calibration, bool(fitted) or options.reconstruct > 0)
    return Factorization(
        model=replace(smaller, inputs=model.inputs, _indices={}),
        before=given.cost,
        after=done.layers.cost,
        plan=done.plan,
        reached=reached,
        notices=tuple(notices),
        output_error=errors,
        noise=layer_noise(prepared.model.module, done.plan) if isinstance(policy, Vbmf) else None,
    )


def read_policy(
    policy: Policy | None, ratio: Fraction | float | str | None = None, budget: Budget | str | None = None
) -> Policy:
    """The one policy that is given as an object, a ratio or a budget.

    Raises
    ------
    UsageError
        If none or several are given, or the policy is of another type.
    RankError
        If a ratio or budget can't be read.
    """
    given = {"a policy": policy, "ratio": ratio, "budget": budget}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise UsageError(
            "give exactly one of a policy, ratio and budget",
            found=" and ".join(named) or "none of them",
            hint='For example ratio="1/3", budget="macs=0.5", or compress.Vbmf()',
        )
    if ratio is not None:
        return Ratio(ratio)
    if budget is not None:
        return Budget.parse(budget)
    if not isinstance(policy, Policy):
        raise UsageError(
            "a policy is a Ratio, Vbmf, Energy, Budget or Plan",
            found=policy if isinstance(policy, str) else type(policy).__name__,
            hint='For a share of the channels ratio="1/3", for a budget budget="macs=0.5"',
        )
    return policy


def _check_options(policy: Policy, options: FactorizeOptions, images: Any) -> None:
    """Refuse options that do not go together, before any work."""
    if options.reconstruct and images is None:
        raise UsageError("reconstruction needs images", found=options.reconstruct, hint="Give images, or --data")
    if not isinstance(policy, Budget) and (options.prior is not None or options.align is not None):
        raise UsageError("prior and align belong to a budget", found="no budget")
    if isinstance(policy, Plan):
        clash = [name for name in ("include", "exclude", "pointwise") if getattr(options, name)]
        if clash:
            raise UsageError("a plan already says which layers are replaced", found=f"a plan with {clash[0]}")


@dataclass(frozen=True)
class _Prepared:
    """The model that is factorized: with composed factors and folded layers, and what to say of these."""

    model: Model
    notices: tuple[str, ...]


def _prepare(model: Model, options: FactorizeOptions) -> _Prepared:
    """Multiply out earlier factors and fold layers, as the options ask."""
    notices = []
    if options.again:
        composed = compose(model.module)
        edits: tuple[Edit, ...] = (composed.edit,) if composed.edit.layers else ()
        model = model.derive(composed.module, edits=edits)
        notices.append(f"{len(composed.edit.layers)} factorized layers multiplied out first")
    if options.fold:
        folded = fold(model.module, model.size, inputs=model.inputs)
        edits = (folded.edit,) if folded.edit.pairs else ()
        model = model.derive(folded.module, edits=edits)
        notices.append(f"{len(folded.edit.pairs)} layers folded into the convolution before them")
        notices += [f"{first}: not folded, its weight is derived from other tensors" for first, _ in folded.skipped]
    return _Prepared(model, tuple(notices))


def _choose(model: Model, policy: Ratio | Vbmf | Energy | Plan, options: FactorizeOptions) -> Plan:
    if isinstance(policy, Plan):
        return check_plan(policy, model.module, model.name, model.size, model.layers)
    selection = Selection(options.include, options.exclude, options.pointwise)
    return make_plan(model.module, policy, selection, network=model.name, input_size=model.size, layers=model.layers)


def _by_plan(model: Model, chosen: Plan, images: tuple[Inputs, ...], rounds: int, progress: Progress) -> Factorized:
    """Factorize as planned, from data if there is any."""
    if not images:
        with progress.bar("Tucker-2", None):
            return factorize_module(model.module, chosen, model.inputs, layers=model.layers)
    names, _ = eligible(model.layers, Selection(pointwise=True))
    changed = {entry.name for entry in chosen.changed}
    calibration = calibrate(model.module, model.outputs, images, [name for name in names if name in changed], progress)
    with progress.bar("fitting layers", len(changed)) as advance:
        return factorize_with_data(
            model.module,
            chosen,
            calibration,
            rounds=rounds,
            inputs=model.inputs,
            layers=model.layers,
            progress=lambda *_: advance(1),
        )


def _by_budget(
    model: Model,
    budget: Budget,
    images: tuple[Inputs, ...],
    score: Scorer | None,
    options: FactorizeOptions,
    progress: Progress,
) -> tuple[Factorized, Reached]:
    """The network for a budget, and the record of what was reached."""
    selection = Selection(options.include, options.exclude, pointwise=True)
    align = alignment(options.align, budget)
    calibration = None
    if images:
        calibration, curves = calibrated_curves(model, selection, images, progress, align, considered_forms(budget))
    else:
        curves = weight_curves(model.module, model.layers, selection, align=align, methods=considered_forms(budget))
    if options.prior == "vbmf":
        curves = with_prior(model.module, curves)
    problem = BudgetProblem(model, curves, calibration, options.rounds)
    done, reached = within_budget(problem, budget, progress, score=score, align=align)
    policy = {"budget": str(budget), "align": align, "prior": options.prior, **selection.to_dict()}
    return replace(done, plan=replace(done.plan, policy=policy)), reached


def _scorer(model: Model, data: Any, progress: Progress) -> Scorer | None:
    """Accuracy on annotated data; None without annotations or for a network without pose specification."""
    if model.pose is None or not getattr(data, "annotated", False):
        return None
    return lambda module: metric_of(model, module, data, progress)[1]


def _reconstruct(
    model: Model, done: Factorized, images: tuple[Inputs, ...], steps: int, progress: Progress
) -> tuple[Factorized, str]:
    """Train the blocks of the result, and a notice of what that changed."""
    with progress.bar("reconstructing blocks", None):
        result = reconstruct(done.module, model.module, images, ReconstructOptions(steps=steps), outputs=model.outputs)
    before, after = (sum(getattr(block, name) for block in result.blocks) for name in ("before", "after"))
    notice = (
        f"{len(result.blocks)} blocks reconstructed: sum of their errors on images left out {before:.4f} -> {after:.4f}"
    )
    return replace(done, module=result.module), notice


def _comparison_notice(images: CalibrationImages, fitted: bool) -> list[str]:
    """On which images the errors of the outputs were measured."""
    if not fitted:
        return [f"map error measured on {len(images.compared)} images"]
    if images.held_out:
        return [f"map error measured on {len(images.compared)} images that factors were not fitted to"]
    return ["map error measured on the images that factors were fitted to"]
