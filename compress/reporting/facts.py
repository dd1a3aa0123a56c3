"""What is known of each model in a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from compress.errors import RuntimeAbsent
from compress.measure.benchmark import TimingRow
from compress.measure.labelled import LabelledModel
from compress.measure.roofline import file_loads
from compress.network.inputs import InputSpec
from compress.network.layers import count_flops
from compress.planning.plan import LayerPlan

#: Steps of a history that train weights.
_TRAINING = ("finetune", "train")


@dataclass(frozen=True)
class ModelFacts:
    """All that is known of one model.

    Attributes
    ----------
    label : str
        Short name in tables and figures.
    file : str
        Name of its file; empty for a model in memory.
    params : int or None
        Number of parameters; None for an exported file.
    macs : int or None
        Executed multiply-adds of convolution and linear layers at the report's input size; None if not known.
    size_bytes : int
        Bytes of its weights, or of an exported file.
    edits : tuple of str
        Changes of its structure.
    tuned : bool
        Whether it was fine-tuned after its last edit.
    before : str or None
        Label of the same network before its fine-tuning, where that is part of the report.
    metrics : mapping of str to float
        Keypoint metrics, the headline first; empty without a pose network or annotations.
    output_error : float or None
        Largest relative squared error of a final output against the first model's, where there are no keypoint metrics.
    latency : mapping of str to TimingRow
        By runtime.
    layers : tuple of LayerPlan
        The layers of its last factorization.
    """

    label: str
    file: str
    params: int | None
    macs: int | None
    size_bytes: int
    edits: tuple[str, ...] = ()
    tuned: bool = False
    before: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    output_error: float | None = None
    latency: Mapping[str, TimingRow] = field(default_factory=dict)
    layers: tuple[LayerPlan, ...] = ()

    @property
    def flops(self) -> int | None:
        """Floating-point operations, twice the MACs."""
        return None if self.macs is None else count_flops(self.macs)

    @property
    def metric(self) -> str:
        """Name of the headline metric; AP if there is none."""
        return next(iter(self.metrics), "AP")

    @property
    def accuracy(self) -> float | None:
        """The headline metric."""
        return self.metrics.get(self.metric)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        plain = replace(self, latency={}, layers=())
        return asdict(plain) | {
            "flops": self.flops,
            "latency": {runtime: row.to_dict() for runtime, row in self.latency.items()},
            "layers": [asdict(layer) for layer in self.layers],
        }


def model_facts(entry: LabelledModel, inputs: Sequence[InputSpec]) -> ModelFacts:
    """Costs and history of a model at the shapes of its inputs, before anything is measured."""
    file = "" if entry.path is None else entry.path.name
    if entry.model is None:
        return _file_facts(entry, file, inputs)
    model = replace(entry.model, inputs=tuple(inputs))
    steps = [step.get("command") for step in model.history]
    return ModelFacts(
        label=entry.label,
        file=file,
        params=model.cost.params,
        macs=model.cost.macs,
        size_bytes=model.cost.size_bytes,
        edits=tuple(json.dumps(edit.to_dict(), sort_keys=True) for edit in model.edits),
        tuned=bool(model.edits) and bool(steps) and steps[-1] in _TRAINING,
        layers=() if model.plan is None else model.plan.layers,
    )


def _file_facts(entry: LabelledModel, file: str, inputs: Sequence[InputSpec]) -> ModelFacts:
    assert entry.path is not None
    weights = [entry.path.with_suffix(".bin")] if entry.path.suffix == ".xml" else []
    try:
        macs = sum(layer.macs for layer in file_loads(entry.path, inputs))
    except RuntimeAbsent:  # files are read by OpenVINO
        macs = None
    return ModelFacts(entry.label, file, None, macs, sum(path.stat().st_size for path in (entry.path, *weights)))


def pair_tuned(models: Sequence[ModelFacts]) -> tuple[ModelFacts, ...]:
    """Give each fine-tuned network the label of the same structure before its fine-tuning, where that is included."""
    untuned = {model.edits: model.label for model in models if not model.tuned}
    return tuple(replace(m, before=untuned.get(m.edits)) if m.tuned else m for m in models)
