"""Graphs for timing alone: an exported network whose layers are swapped for factorized forms.

Exporting each variant of a network would take seconds apiece. The network is exported once instead, and the nodes of
its layers are replaced in the exported graph by the steps of the form, with random weights: their values do not change
how long they take.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from compress.errors import NetworkError
from compress.exporters.to_onnx import export_onnx
from compress.forms.onnx_steps import OnnxStep
from compress.forms.registry import get_form
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.layers import LayerInfo
from compress.surgery.substitute import factorize_in_place

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

#: What layers become: layer name to (method, ranks).
Settings = Mapping[str, tuple[str, tuple[int, ...]]]

#: A step of a layer's form: layer name and place in the form, 0 for a layer as it is.
Step = tuple[str, int]

_CONVS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class TimedModel:
    """A graph of which each step of each layer can be identified in a runtime's records.

    Attributes
    ----------
    data : bytes
        ONNX.
    nodes : mapping of str to Step
        By name of the node.
    outputs : mapping of str to Step
        By name of the value that a node computes once the operations after it are fused into it.
    """

    data: bytes
    nodes: Mapping[str, Step]
    outputs: Mapping[str, Step]


class TimingGraph:
    """An exported network, from which timed graphs are made.

    Parameters
    ----------
    model : Model
        The network; it is only read.

    Attributes
    ----------
    placed : mapping of str to tuple of int
        For each layer the places of its nodes in the graph, one for each call. Layers that the exporter has merged
        into others are missing.
    """

    def __init__(self, model: Model) -> None:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = export_onnx(model, Path(folder) / "network.onnx")
            self._model = onnx.load(str(path))
        self._skeleton = duplicate(model.module, "meta")
        self.placed: Mapping[str, tuple[int, ...]] = _place(self._model, model.module, model.layers)

    def write(self, path: Path) -> None:
        """Write the network as it is, as ONNX."""
        path.write_bytes(self._model.SerializeToString())

    def make(self, settings: Settings, *, seed: int = 0) -> TimedModel:
        """The graph with some layers in other forms.

        Parameters
        ----------
        settings : mapping
            Layers to replace. Without any it is the network itself.
        seed : int
            Of the random weights.

        Raises
        ------
        NetworkError
            If a layer has no node of its own.
        CheckpointError
            If a layer can't have that form.
        """
        import onnx

        lost = next((name for name in settings if name not in self.placed), None)
        if lost is not None:
            raise NetworkError("the exported graph has no node of this layer alone", found=lost)
        factorized = factorize_in_place(duplicate(self._skeleton, "meta"), settings)
        owner = {place: name for name, places in self.placed.items() for place in places}
        random = np.random.default_rng(seed)
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        nodes: list[NodeProto] = []
        steps: dict[str, Step] = {}
        weights: list[TensorProto] = []
        for place, node in enumerate(self._model.graph.node):
            name = owner.get(place)
            if name is None:
                nodes.append(node)
                continue
            made: list[NodeProto] = [node]
            new: list[TensorProto] = []
            if name in settings:
                layer = factorized.get_submodule(name)
                form_steps = get_form(settings[name][0]).onnx_steps(layer, node.op_type)
                made, new = _form_nodes(node, form_steps, f"step-{place}", random)
            for index, part in enumerate(made):
                part.name = f"step-{place}-{index}-"
                steps[part.name] = (name, index)
            nodes += made
            weights += new
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(weights)
        _drop_unused(model)
        return TimedModel(model.SerializeToString(), steps, dict(_fused_outputs(model, steps)))


def _place(model: ModelProto, module: nn.Module, layers: Sequence[LayerInfo]) -> dict[str, tuple[int, ...]]:
    """Nodes of each layer, found by the name of their weight, or by its values where it was transposed."""
    from onnx import numpy_helper

    by_weight: dict[str, list[int]] = {}
    for place, node in enumerate(model.graph.node):
        if node.op_type in (*_CONVS, "Gemm", "MatMul") and len(node.input) > 1:
            by_weight.setdefault(node.input[1], []).append(place)
    names = {f"module.{alias}.weight": layer.name for layer in layers for alias in (layer.name, *layer.aliases)}
    placed: dict[str, list[int]] = {}
    for weight, places in by_weight.items():
        if weight in names:
            placed.setdefault(names[weight], []).extend(places)
    linear = [layer for layer in layers if layer.kind == "linear" and layer.name not in placed]
    for tensor in model.graph.initializer if linear else ():
        if tensor.name not in by_weight or tensor.name in names:
            continue
        values = numpy_helper.to_array(tensor)
        for layer in linear:
            weight_values = module.get_submodule(layer.name).get_parameter("weight").detach().cpu().numpy()
            if layer.name not in placed and np.array_equal(values, weight_values.T):
                placed[layer.name] = by_weight[tensor.name]
                break
    return {name: tuple(places) for name, places in placed.items()}


def _form_nodes(
    node: NodeProto, steps: Sequence[OnnxStep], prefix: str, random: np.random.Generator
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes, and the weights, of a form in the place of a node."""
    from onnx import helper, numpy_helper

    nodes, weights, value = [], [], node.input[0]
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        array = random.standard_normal(step.weight_shape, dtype=np.float32)
        array /= np.float32(math.sqrt(max(1, math.prod(step.weight_shape[1:]))))
        weight = f"{prefix}-weight-{index}"
        weights.append(numpy_helper.from_array(array, weight))
        inputs = [value, weight, *(node.input[2:] if last else ())]
        value = node.output[0] if last else f"{prefix}-value-{index}"
        nodes.append(helper.make_node(step.operator, inputs, [value], **step.attributes))
    return nodes, weights


def _drop_unused(model: ModelProto) -> None:
    used = {value for node in model.graph.node for value in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]


def _fused_outputs(model: ModelProto, steps: Mapping[str, Step]) -> Iterator[tuple[str, Step]]:
    """Each value with the step that it comes from through operations on the first input alone."""
    found: dict[str, Step] = {}
    for node in model.graph.node:
        step = steps.get(node.name) or (found.get(node.input[0]) if node.input else None)
        if step is not None:
            found[node.output[0]] = step
            yield node.output[0], step
