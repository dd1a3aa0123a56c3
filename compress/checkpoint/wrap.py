"""Any ``nn.Module`` as a `Model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compress.checkpoint.bare import bare
from compress.checkpoint.interface import find_interface
from compress.checkpoint.own_code import own_name
from compress.errors import NetworkError
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.inputs import read_example
from compress.network.layers import refuse_lazy
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec


def wrap(
    net: nn.Module, example: Any, pose: PoseSpec | Mapping[str, Any] | None = None, name: str | None = None
) -> Model:
    """Make a model of any network.

    Parameters
    ----------
    net : nn.Module
        The network. Its forward may return a tensor, or a tuple, list or dict of tensors, nested in any way; a list of
        dicts with the same keys is a list of supervised stages. The network stays as it is: a copy on the CPU in
        evaluation mode is taken, without wrappers such as ``DataParallel``, ``torch.compile`` or ``AveragedModel``.
    example : tuple of int, Tensor, or a sequence of these
        The shape of its input, batch first, such as ``(1, 3, 256, 192)``, or an input; several for a network with
        several inputs. Costs are counted for a batch of one.
    pose : PoseSpec or mapping, optional
        What a pose network expects and gives. Without it everything but keypoint scores works.
    name : str, optional
        What tables call it; the name of its class by default.

    Returns
    -------
    Model
        `compress.save` writes it; ``compress.load(path, network=MyNet)`` needs the class or a factory.

    Raises
    ------
    NetworkError
        If ``net`` is no module, has weights without values, can't be copied, fails on the example, or returns no
        tensors or others than the pose specification needs.
    """
    if not isinstance(net, nn.Module):
        inner = next((key for key in ("ema", "module", "model") if isinstance(getattr(net, key, None), nn.Module)), "")
        raise NetworkError(
            "only a torch.nn.Module can be wrapped",
            found=type(net).__name__,
            hint=f"Wrap its attribute {inner}" if inner else "Files are for compress.load",
        )
    if isinstance(net, torch.jit.ScriptModule):
        raise NetworkError(
            "a TorchScript module can't be compressed", found=type(net).__name__, hint="Wrap the module it came from"
        )
    inputs = read_example(example)
    refuse_lazy(net)
    absent = [key for key, tensor in net.state_dict().items() if tensor.is_meta]
    if absent:
        raise NetworkError(
            "the network has weights without values (on the meta device)",
            found=", ".join(absent[:3]),
            hint="Load its weights first",
        )
    try:
        module = bare(duplicate(net)).cpu().eval()
    except Exception as error:  # whatever the network's code raises
        raise NetworkError(
            f"the network can't be copied: {type(error).__name__}: {error}", hint="Wrap it as it is before training"
        ) from error
    pose = PoseSpec.from_dict(pose) if isinstance(pose, Mapping) else pose
    found = find_interface(module, inputs, pose)
    source = NetworkSpec(own_name(module))
    entry = {"command": "wrap", "network": source.name}
    return Model(
        module, source, found.inputs, found.outputs, found.pose, history=(entry,), label=name or type(module).__name__
    )
