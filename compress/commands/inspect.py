"""`compress inspect`: layers, why one can't be factorized, keypoint sensitivity, and the empirical receptive field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.commands.base import Command, Result
from compress.commands.fields import option
from compress.commands.options import DataOptions, ModelOptions, SizeOptions, open_dataset, sized_model
from compress.errors import UsageError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.compression.inspection import LayerReport
    from compress.compression.keypoint_sensitivity import KeypointSensitivity, LayerShift
    from compress.model import Model
    from compress.network.receptive_field import FieldSize

#: Images on which sensitivity is measured where --limit does not say.
SENSITIVITY_IMAGES = 12

#: Inputs over which a receptive field is averaged where --limit does not say.
FIELD_INPUTS = 4


class InspectOptions(ModelOptions, SizeOptions, DataOptions):
    """Options of `compress inspect`."""

    sensitivity: bool = option(
        False,
        "Factorize each layer alone and measure how far keypoints move on --data "
        f"({SENSITIVITY_IMAGES} images, or --limit)",
    )
    share: tuple[str, ...] = option(
        ("3/4", "1/2", "1/3", "1/4"), "With --sensitivity: shares of full rank; repeat for more"
    )
    height: int | None = option(
        None, "With --sensitivity: height that images are scaled to (default: the network's own)"
    )
    include: tuple[str, ...] = option((), "With --sensitivity: only layers of this name or pattern; repeat for more")
    exclude: tuple[str, ...] = option((), "With --sensitivity: not layers of this name or pattern; repeat for more")
    receptive_field: bool = option(
        False,
        "Measure which pixels the outputs depend on, over random inputs or images of --data "
        f"({FIELD_INPUTS}, or --limit)",
    )
    field_method: Literal["gradient", "occlusion"] = option(
        "gradient",
        "With --receptive-field: the gradient of the centre cell, or the change of the maps when an 11x11 window of "
        "random values hides a place",
    )
    joint: str | None = option(None, "With --receptive-field: only the heatmap of this joint")
    plot: Path | None = option(None, "With --sensitivity or --receptive-field: write a figure (.png)", output=True)
    force: bool = option(False, "Replace an existing figure")


@dataclass(frozen=True)
class InspectResult(Result):
    """The network, its layers, and where asked for their sensitivity or the receptive field."""

    network: str
    options: dict[str, Any]
    input: tuple[int, int]
    params: int
    macs: int
    size_bytes: int
    edits: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    layers: tuple[LayerReport, ...]
    sensitivity: KeypointSensitivity | None = None
    receptive_field: FieldSize | None = None

    @property
    def summary(self) -> str:
        """The network's cost."""
        from compress.commands.terminal import giga, millions

        return f"{self.network}: {millions(self.params)} parameters, {giga(self.macs)}MACs"

    def show(self) -> None:
        """Print all layers."""
        from compress.commands.terminal import giga, millions, print_table
        from compress.network.layers import count_flops

        print_table(
            f"{self.network} at {'x'.join(map(str, self.input))}: {millions(self.params)} parameters, "
            f"{giga(self.macs)}MACs, {giga(count_flops(self.macs))}FLOPs (2 x MACs)",
            ["layer", "kind", "why not factorized", "shape", "stride", "groups", "params", "MACs", "FLOPs", "share",
             "VBMF r3, r4"],
            [
                (
                    layer.name,
                    layer.kind,
                    (layer.why or "").removeprefix("kept: "),
                    "x".join(map(str, layer.shape)),
                    "x".join(map(str, layer.stride)),
                    layer.groups,
                    layer.params,
                    giga(layer.macs),
                    giga(count_flops(layer.macs)),
                    f"{layer.share:.1%}",
                    ", ".join(map(str, layer.vbmf_ranks)) if layer.vbmf_ranks else "-",
                )
                for layer in self.layers
            ],
            left=3,
        )  # fmt: skip
        if self.sensitivity is not None:
            show_sensitivity(self.sensitivity)
        if self.receptive_field is not None:
            from compress.commands.terminal import print_lines

            print_lines(describe_field(self.receptive_field))


def describe_field(field: FieldSize) -> str:
    """The extent of a receptive field in one line."""
    height, width = field.support
    return (
        f"receptive field by {field.method} over {field.inputs} inputs: {height}x{width} pixels with any influence, "
        f"effective field of {field.effective:.0f}x{field.effective:.0f} pixels ({field.share:.1%} of the image)"
    )


def show_sensitivity(result: KeypointSensitivity) -> None:
    """Print how far keypoints move for each layer and rank."""
    from compress.commands.terminal import print_table, share

    print_table(
        f"Each layer factorized alone, against the {result.people} people ({result.joints} joints) that the original "
        f"finds in {result.images} images of {result.data} at height {result.height}",
        ["layer", "form", "share", "ranks", "MACs kept", "moved (px)", "OKS loss", "joints lost", "people lost",
         "people new", "worst joint"],
        [
            (
                row.name,
                row.method,
                row.share,
                ", ".join(map(str, row.ranks)),
                share(*row.macs),
                "-" if row.pixels is None else f"{row.pixels:.2f}",
                f"{row.loss:.4f}",
                row.lost_joints,
                row.lost_people,
                row.new_people,
                "{} {:.3f}".format(*_worst_joint(row)),
            )
            for row in result.rows
        ],
        left=2,
    )  # fmt: skip


def _worst_joint(row: LayerShift) -> tuple[str, float]:
    losses = [(joint, shift.loss) for joint, shift in row.joints.items() if shift.loss is not None]
    return max(losses, key=lambda loss: loss[1])


def _check(options: InspectOptions) -> None:
    """Refuse options that do not go together, before any work."""
    from compress.files import refuse_existing
    from compress.planning.policies import Ratio

    if options.sensitivity and options.receptive_field:
        raise UsageError("--sensitivity and --receptive-field are measured one at a time", found="both")
    if not options.receptive_field and options.joint is not None:
        raise UsageError("--joint needs --receptive-field", found="no --receptive-field")
    if not options.sensitivity and not options.receptive_field:
        needs = {"--data": options.has_data, "--plot": options.plot is not None, "--include": options.include}
        named = [name for name, value in needs.items() if value]
        if named:
            raise UsageError(f"{named[0]} needs --sensitivity or --receptive-field", found="neither")
        return
    for text in options.share:
        Ratio(text)
    if options.sensitivity and not options.has_data:
        raise UsageError(
            "--sensitivity needs images", found="no --data", hint="images:DIR without annotations is enough"
        )
    if options.plot is not None:
        if options.plot.suffix.lower() != ".png":
            raise UsageError("the figure must be a .png file", found=str(options.plot))
        refuse_existing(options.plot, options.force)


def _measure(options: InspectOptions, model: Model, progress: Progress) -> KeypointSensitivity:
    """The keypoint sensitivity of each layer; writes the figure."""
    from compress.compression.keypoint_sensitivity import keypoint_sensitivity
    from compress.files import atomic_path
    from compress.planning.selection import Selection
    from compress.reporting.figures import sensitivity_map

    limit = SENSITIVITY_IMAGES if options.limit is None else options.limit
    dataset = open_dataset(options.model_copy(update={"limit": limit}))
    selection = Selection(options.include, options.exclude, pointwise=True)
    result = keypoint_sensitivity(
        model, dataset, options.share, selection=selection, height=options.height, progress=progress
    )
    if options.plot is not None:
        with atomic_path(options.plot, force=options.force) as temporary:
            rows = result.to_dict()["rows"]
            temporary.write_bytes(sensitivity_map(rows, result.shares, result.joint_names))
    return result


def _measure_field(options: InspectOptions, model: Model, progress: Progress) -> FieldSize:
    """The receptive field; writes the figure."""
    from compress.compression.receptive_field import measure_receptive_field
    from compress.files import atomic_path
    from compress.reporting.figures import receptive_field_map

    count = FIELD_INPUTS if options.limit is None else options.limit
    dataset = open_dataset(options.model_copy(update={"limit": count})) if options.has_data else None
    measured = measure_receptive_field(
        model, dataset, method=options.field_method, joint=options.joint, count=count, progress=progress
    )
    if options.plot is not None:
        title = f"{model.name}, {options.joint or measured.field.size.output}, by {options.field_method}"
        with atomic_path(options.plot, force=options.force) as temporary:
            temporary.write_bytes(receptive_field_map(measured.field.shade, measured.image, title))
    return measured.field.size


def run(options: InspectOptions, progress: Progress) -> InspectResult:
    """List the layers with their costs, VBMF ranks and, where asked for, sensitivity or receptive field."""
    from compress.compression.inspection import inspect_layers

    _check(options)
    model = sized_model(options, options.input)
    layers = inspect_layers(model, progress)
    sensitivity = _measure(options, model, progress) if options.sensitivity else None
    field = _measure_field(options, model, progress) if options.receptive_field else None
    return InspectResult(
        network=model.name,
        options=dict(model.source.options),
        input=model.size,
        params=model.cost.params,
        macs=model.cost.macs,
        size_bytes=model.cost.size_bytes,
        edits=tuple(edit.to_dict()["kind"] for edit in model.edits),
        history=model.history,
        layers=layers,
        sensitivity=sensitivity,
        receptive_field=field,
        written=() if options.plot is None else (options.plot,),
    )


COMMAND = Command(InspectOptions, run, "compress inspect model.pt")
