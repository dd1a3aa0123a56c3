"""Layers of an OpenVINO model: operations with weights, and what lies between them.

A layer here is a convolution of any kind or a matrix product with a constant. It goes by the name of its operation,
which `layer_labels` translates to the network's own name of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: Operations with weights, and the axes of the weights that number output channels.
CHANNEL_AXES: dict[str, tuple[int, ...]] = {
    "Convolution": (0,),
    "GroupConvolution": (0, 1),
    "ConvolutionBackpropData": (1,),
    "MatMul": (),
}

#: Operations that change neither values nor channels between a layer and what its result is for.
_PLAIN = {"Add", "Reshape", "Squeeze", "Unsqueeze", "Convert", "FakeQuantize"}

#: What may lie between a layer and the constant that holds its weights.
_STORED = _PLAIN | {"Multiply", "Subtract"}


def layers_of(model: Any, outputs: Iterable[str] = ()) -> list[Any]:
    """Layers in the order in which they run; only those that these outputs need, if any are named."""
    aside = beside(model, outputs)
    return [op for op in model.get_ordered_ops() if weights_of(op) is not None and op.get_friendly_name() not in aside]


def weights_of(op: Any) -> Any:
    """The constant that holds an operation's weights; None if it is no layer."""
    if op.get_type_name() not in CHANNEL_AXES or op.get_input_size() < 2:
        return None
    node = op.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        if node.get_type_name() not in _STORED:
            return None
        node = node.input_value(0).get_node()
    return node


def has_gates(model: Any) -> bool:
    """Whether maps are multiplied with what the network computes from them, as attention blocks do."""
    computed: set[str] = set()
    for op in model.get_ordered_ops():
        sources = [port.get_node().get_name() in computed for port in op.input_values()]
        if op.get_type_name() == "Multiply" and all(sources):
            return True
        if op.get_type_name() == "Parameter" or (any(sources) and op.get_type_name() != "ShapeOf"):
            computed.add(op.get_name())
    return False


def is_quantised(op: Any) -> bool:
    """Whether a layer's weights are stored in INT8."""
    return weights_of(op).get_element_type().get_type_name() in ("i8", "u8")


def layer_labels(model: Any) -> dict[str, str]:
    """The name of each layer: the network's own where the weights have it, else the operation's."""
    labels = {}
    for op in layers_of(model):
        name, weights = op.get_friendly_name(), weights_of(op).get_friendly_name()
        own = weights.removesuffix(".weight").removeprefix("module.")
        labels[name] = own if weights.endswith(".weight") else name.removesuffix("/WithoutBiases")
    return labels


def first_layers(model: Any, outputs: Iterable[str] = ()) -> tuple[str, ...]:
    """Layers that read the image itself: no other layer lies before them."""
    return tuple(
        op.get_friendly_name() for op in layers_of(model, outputs) if not _nearest(op.input_value(0).get_node())
    )


def head_layers(model: Any, outputs: Iterable[str] = ()) -> tuple[str, ...]:
    """Layers that return the final outputs, and those of earlier stages that return the same kinds of maps.

    An earlier one has as many channels as a final one, and its result goes to a concatenation without an activation.
    """
    final = {op.get_name(): op for result in _results(model, outputs) for op in _nearest(result)}
    counts = {_channels(op) for op in final.values()}
    return tuple(
        op.get_friendly_name()
        for op in layers_of(model, outputs)
        if op.get_name() in final or (_channels(op) in counts and "Concat" in _uses(op))
    )


def beside(model: Any, outputs: Iterable[str]) -> set[str]:
    """Names of operations, constants left out, that none of these outputs needs; none if no output is named."""
    names = set(outputs)
    if not names:
        return set()
    left = _results(model, names)
    needed = {op.get_name() for op in left}
    while left:
        for value in left.pop().input_values():
            node = value.get_node()
            if node.get_name() not in needed:
                needed.add(node.get_name())
                left.append(node)
    return {
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_name() not in needed and op.get_type_name() not in ("Constant", "Result")
    }


def _results(model: Any, outputs: Iterable[str]) -> list[Any]:
    names = set(outputs)
    return [r for r in model.get_results() if not names or names & set(r.input_value(0).get_names())]


def _nearest(node: Any) -> list[Any]:
    """The layers nearest before a node, itself included, on each way to the inputs."""
    found, seen, left = [], {node.get_name()}, [node]
    while left:
        op = left.pop()
        if weights_of(op) is not None:
            found.append(op)
            continue
        for value in op.input_values():
            source = value.get_node()
            if source.get_name() not in seen:
                seen.add(source.get_name())
                left.append(source)
    return found


def _uses(op: Any) -> set[str]:
    """Kinds of operations that take a layer's result, plain steps such as adding the bias left out."""
    kinds: set[str] = set()
    seen: set[str] = set()
    left = [op]
    while left:
        for value in left.pop().outputs():
            for target in value.get_target_inputs():
                node = target.get_node()
                kinds.add(node.get_type_name())
                if node.get_type_name() in _PLAIN and node.get_name() not in seen:
                    seen.add(node.get_name())
                    left.append(node)
    return kinds


def _channels(op: Any) -> int | None:
    shape = op.output(0).get_partial_shape()
    if shape.rank.is_dynamic or len(shape) < 2 or shape[1].is_dynamic:
        return None
    return int(shape[1].get_length())
