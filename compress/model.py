"""A network to compress, with everything that is known of it: the noun that every public function takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from compress.network.inputs import Inputs, InputSpec, with_size
from compress.network.layers import Cost, LayerIndex
from compress.network.outputs import BY_STRUCTURE, Outputs, Tensors, run
from compress.network.source import NetworkSpec
from compress.planning.plan import Plan
from compress.pose.spec import PoseSpec
from compress.surgery.edits import Edit


@dataclass(frozen=True)
class Model:
    """A network to compress.

    `compress.load` and `compress.wrap` make one; it is never changed, every step gives a new one.

    Attributes
    ----------
    module : nn.Module
        The network in evaluation mode, yours to use.
    source : NetworkSpec
        How the network before its first edit is built.
    inputs : tuple of InputSpec
        What it reads; costs are counted at these shapes.
    outputs : Outputs
        How its return value is read.
    pose : PoseSpec or None
        What a pose network expects and gives; None for any other network, which has no keypoint scores.
    edits : tuple of Edit
        Structural changes in the order in which they were made.
    history : tuple of dict
        What was done to it, one plain record for each step.
    plan : Plan or None
        Of its last factorization.
    label : str
        What tables call it: the file's stem, or the network's name.
    """

    module: nn.Module
    source: NetworkSpec
    inputs: tuple[InputSpec, ...]
    outputs: Outputs = BY_STRUCTURE
    pose: PoseSpec | None = None
    edits: tuple[Edit, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    plan: Plan | None = None
    label: str = ""
    _indices: dict[tuple[InputSpec, ...], LayerIndex] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.source.name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image at which costs are counted; the last two sizes of the first input."""
        shape = self.inputs[0].shape
        return shape[-2], shape[-1]

    @property
    def layers(self) -> LayerIndex:
        """Every convolution and linear layer with shapes, calls and costs; from one run, made once."""
        if self.inputs not in self._indices:
            self._indices[self.inputs] = LayerIndex.of(self.module, self.inputs)
        return self._indices[self.inputs]

    @property
    def cost(self) -> Cost:
        """Parameters, MACs and bytes of the network."""
        return self.layers.cost

    def at_size(self, size: tuple[int, int] | None) -> Model:
        """The same model, its costs counted at another height and width of the image; None leaves it as it is."""
        return self if size is None or size == self.size else replace(self, inputs=with_size(self.inputs, size))

    def run(self, inputs: Inputs) -> Tensors:
        """Final outputs by name."""
        return run(self.module, inputs, self.outputs)

    def derive(self, module: nn.Module, *, edits: Sequence[Edit] = (), plan: Plan | None = None, **entry: Any) -> Model:
        """The model of a network that was made from this one.

        Parameters
        ----------
        module : nn.Module
            The network, edited or trained.
        edits : sequence of Edit
            The edits made since, in their order.
        plan : Plan, optional
            Of a factorization; without it the plan stays.
        **entry
            Plain values to add to the history as one record.
        """
        return replace(
            self,
            module=module.eval(),
            edits=(*self.edits, *edits),
            history=(*self.history, entry) if entry else self.history,
            plan=self.plan if plan is None else plan,
            _indices={},
        )


def cost(model: Model, size: tuple[int, int] | None = None) -> Cost:
    """Parameters, MACs and bytes of a model.

    Parameters
    ----------
    model : Model
        The network.
    size : (int, int), optional
        Height and width of the image in pixels; the model's own by default.
    """
    return model.at_size(size).cost
