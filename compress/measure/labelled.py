"""Models under the names that tables and figures show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint.load import load
from compress.checkpoint.own_code import Network
from compress.errors import UsageError
from compress.model import Model
from compress.runtime.opening import runtime_of

#: A model, the path of a checkpoint, ``.onnx`` or ``.xml`` file, or either with a label of one's own.
ModelLike = Model | str | Path | tuple[str, Model | str | Path]


@dataclass(frozen=True)
class LabelledModel:
    """A model and its label.

    Attributes
    ----------
    label : str
        Unique among the models of one table.
    model : Model or None
        None for an exported file, which only its runtime can run.
    path : Path or None
        The file, where it came from one.
    """

    label: str
    model: Model | None
    path: Path | None

    @property
    def runtime(self) -> str | None:
        """The only runtime that can run it; None for a model, which any can."""
        return None if self.path is None or self.model is not None else runtime_of(self.path)


def label_models(
    models: Sequence[ModelLike], network: Network | None = None, *, suffixes: bool = False
) -> tuple[LabelledModel, ...]:
    """Load the models that are given as paths, and give each a label.

    Parameters
    ----------
    models : sequence of model, path, or (label, model or path)
        Labels of paths are the file's stem or, if two agree, the whole path; those of models are their own label and,
        if two agree, the last step of their history.
    network : str or callable, optional
        The network of checkpoints that don't name it; see `compress.load`.
    suffixes : bool
        Keep the suffix in labels of paths.

    Raises
    ------
    UsageError
        If there is no model, or two have the same label.
    CompressError
        If a checkpoint can't be loaded.
    """
    if not models:
        raise UsageError("no model is given", hint="Name at least one")
    plain = [_plain_label(item, suffixes) for item in models]
    counts = Counter(plain)
    labels: list[str] = []
    for item, label in zip(models, plain, strict=True):
        chosen = label if counts[label] == 1 else _longer_label(item, label, suffixes)
        number = 2
        while chosen in labels and not isinstance(item, tuple):
            chosen, number = f"{label} ({number})", number + 1
        labels.append(chosen)
    if len(set(labels)) < len(labels):
        raise UsageError("two models have the same label", found=Counter(labels).most_common(1)[0][0])
    return tuple(_read(label, item, network) for label, item in zip(labels, models, strict=True))


def _plain_label(item: ModelLike, suffixes: bool) -> str:
    if isinstance(item, tuple):
        return item[0]
    if isinstance(item, Model):
        return item.label or item.name
    return Path(item).name if suffixes else Path(item).stem


def _longer_label(item: ModelLike, label: str, suffixes: bool) -> str:
    if isinstance(item, tuple):
        return label
    if isinstance(item, Model):
        step = item.history[-1].get("command") if item.history else None
        return label if step in (None, "init", "wrap") else f"{label} ({step})"
    return str(Path(item) if suffixes else Path(item).with_suffix(""))


def _read(label: str, item: ModelLike, network: Network | None) -> LabelledModel:
    source = item[1] if isinstance(item, tuple) else item
    if isinstance(source, Model):
        return LabelledModel(label, source, None)
    path = Path(source)
    return LabelledModel(label, load(path, network) if runtime_of(path) == "torch" else None, path)
