"""Starting a network from the weights of a pretrained classification network: its trunk is loaded, the rest is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compress.checkpoint.reading import read
from compress.checkpoint.weights import find_state, list_names, variants
from compress.errors import CheckpointError, CompressError, NetworkError
from compress.files import read_bytes
from compress.model import Model
from compress.zoo.trunks import Trunk, get_trunk, networks_with_trunks

#: Mean of the inputs of public classification networks, 0 to 255, RGB.
_IMAGENET = (123.675, 116.28, 103.53)


@dataclass(frozen=True)
class Backbone:
    """What was taken from a file of trunk weights.

    Attributes
    ----------
    model : Model
        The network with the trunk's weights; everything else as it was.
    kind : str
        The classification network.
    taken : tuple of str
        The network's tensors that were loaded.
    left : tuple of str
        The file's tensors that were not, such as those of the classifier.
    kept : tuple of str
        The network's tensors that keep the weights they had.
    notices : tuple of str
        What a reader of the weights should know.
    """

    model: Model
    kind: str
    taken: tuple[str, ...]
    left: tuple[str, ...]
    kept: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line on what was taken and left."""
        left = f"; left {_by_layer(self.left)} of the file" if self.left else ""
        return f"{self.kind}: took {len(self.taken)} tensors{left}; random are {_by_part(self.kept)}"


def load_backbone(model: Model, path: str | Path) -> Backbone:
    """Load the trunk of a network from a file of its classification network.

    Parameters
    ----------
    model : Model
        A registered network as it was created, without edits.
    path : str or Path
        A state dict in the layout of torchvision or timm, or that of the network's own release.

    Returns
    -------
    Backbone
        The model's history names the file.

    Raises
    ------
    NetworkError
        If the network has no such trunk.
    CheckpointError
        If the file is damaged, holds another network, or tensors of the trunk are missing or of another shape.
    FileError
        If there is no such file.
    """
    path = Path(path)
    trunk = get_trunk(model.source.name)
    if trunk is None or model.edits:
        raise NetworkError(
            "the network has no trunk for which public weights are known" if trunk is None
            else "a trunk is loaded before a network is changed",
            found=model.source.name,
            hint=f"Networks with one: {', '.join(networks_with_trunks())}",
        )  # fmt: skip
    content = read_bytes(path, "backbone weights")
    try:
        weights = find_state(read(content, path.suffix.lower()))
    except CompressError as error:
        raise type(error)(f"{path}: {error.cause}", found=error.found, hint=error.hint) from error
    candidates = [each.state for each in variants(weights)]
    state = max(candidates, key=lambda each: len(trunk.translate(each)))
    names = trunk.translate(state)
    expected = {name: value for name, value in model.module.state_dict().items() if trunk.owns(name)}
    given = {own: state[name] for name, own in names.items()}
    _refuse_misfit(path, trunk, given, expected, model)
    left = tuple(name for name in state if name not in names)
    return _loaded(model, path, trunk, given, left)


def _loaded(model: Model, path: Path, trunk: Trunk, given: Mapping[str, Tensor], left: tuple[str, ...]) -> Backbone:
    state = model.module.state_dict()
    kept = tuple(name for name in state if not trunk.owns(name))
    new = {name: value.detach().to(state[name].dtype) for name, value in given.items()}
    new |= {name: torch.zeros_like(state[name]) for name in state if trunk.owns(name) and name not in new}
    model.module.load_state_dict({**state, **new})
    notices = _notices(model)
    entry = {
        **(model.history[-1] if model.history else {}),
        "backbone": path.name,
        "backbone_kind": trunk.kind,
        "taken": len(given),
        "left": list(left),
    }
    changed = replace(model, history=(*model.history[:-1], entry))
    return Backbone(changed, trunk.kind, tuple(given), left, kept, notices)


def _notices(model: Model) -> tuple[str, ...]:
    """Public trunks were trained on RGB images normalised by ImageNet's statistics."""
    pose = model.pose
    if pose is None or (pose.color == "rgb" and tuple(pose.mean) == _IMAGENET):
        return ()
    return (
        f"the network reads {pose.color.upper()} images with mean {', '.join(f'{x:g}' for x in pose.mean)}; a trunk "
        "trained on RGB images normalised by ImageNet's statistics adapts in training",
    )


def _refuse_misfit(
    path: Path, trunk: Trunk, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: Model
) -> None:
    faults = {
        "missing": [name for name in expected if name not in given and not name.endswith("num_batches_tracked")],
        "unexpected": [f"{name} {tuple(value.shape)}" for name, value in given.items() if name not in expected],
        "of another shape or kind": [
            f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            for name, value in given.items()
            if name in expected
            and (value.shape != expected[name].shape
                 or value.is_floating_point() != expected[name].is_floating_point())
        ],
    }  # fmt: skip
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {list_names(names)}" for fault, names in faults.items() if names)
        raise CheckpointError(
            f"{path}: the weights do not fit the trunk of {model.source.name}, a {trunk.kind}: {listed}",
            found=f"{len(given)} tensors of such a trunk",
            hint="Take the file of that classification network, and set options such as the depth accordingly",
        )
    broken = [name for name, value in given.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: weights are not finite (NaN or infinity): {list_names(broken)}")


def _by_layer(names: Iterable[str]) -> str:
    """Names without the tensor, each once."""
    return list_names(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _by_part(names: Iterable[str]) -> str:
    """First parts of names, each once."""
    return list_names(dict.fromkeys(name.partition(".")[0] for name in names))
