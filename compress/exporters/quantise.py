"""An OpenVINO model in INT8, by NNCF's post-training quantisation, and the error of each of its layers."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from compress.errors import RuntimeAbsent, UsageError
from compress.exporters.ir_layers import CHANNEL_AXES, beside, has_gates, layers_of, weights_of
from compress.runtime.openvino_runner import compile_model, open_core
from compress.runtime.runner import Array, ArrayInputs

#: Set before NNCF is first imported, this keeps it from reporting each use to a server.
_NO_REPORTS = "NNCF_CI"


def quantise(
    model: Any,
    images: Sequence[ArrayInputs],
    *,
    keep: Iterable[str] = (),
    outputs: Iterable[str] = (),
    symmetric: bool = False,
) -> Any:
    """A copy of an OpenVINO model whose layers compute in INT8.

    Parameters
    ----------
    model : openvino.Model
        In floating point; it stays as it was.
    images : sequence of array, shape (1, C, H, W), float32, or of tuples of arrays
        Prepared as the model takes them: ranges of activations and corrections of biases come from all of them.
    keep : iterable of str
        Names of operations that stay in floating point.
    outputs : iterable of str
        Names of the outputs that count; what only others need stays in floating point. All by default.
    symmetric : bool
        Whether activations that go below zero are quantised symmetrically. The steps are up to twice as coarse, but
        where maps are multiplied with gates one pass over each product is saved.

    Returns
    -------
    openvino.Model
        Asymmetric activations unless asked otherwise, symmetric weights for each output channel, biases corrected.
        Metadata stay.

    Raises
    ------
    RuntimeAbsent
        If NNCF is not installed.
    UsageError
        If there are no images.
    """
    if not images:
        raise UsageError("quantisation needs images to calibrate with", hint="Name a data set with --data")
    ignored = sorted({*keep, *beside(model, outputs)})
    return _quantised(model, images, ignored, symmetric, fast=False)


def quantise_for_timing(model: Any, size: tuple[int, int]) -> Any:
    """A copy in INT8 that takes the time of a quantised model, and serves no other purpose.

    Its ranges come from one image of noise, and biases are not corrected: the values do not change the time.
    Activations are symmetric where `compress export --int8` would try that first.

    Parameters
    ----------
    model : openvino.Model
        In floating point; it stays as it was.
    size : (int, int)
        H and W of the image.

    Raises
    ------
    RuntimeAbsent
        If NNCF is not installed.
    """
    random = np.random.default_rng(0)
    noise = tuple(
        random.random(_example_shape(port, size), dtype=np.float32) - np.float32(0.5) for port in model.inputs
    )
    return _quantised(model, [noise if len(noise) > 1 else noise[0]], (), has_gates(model), fast=True)


def _example_shape(port: Any, size: tuple[int, int]) -> tuple[int, ...]:
    """A shape that an input takes: batch 1, and the sides of an image where they are free."""
    shape = port.get_partial_shape()
    free = (1, 1, *size) if len(shape) == 4 else (1,) * len(shape)
    return tuple(int(side.get_length()) if side.is_static else own for side, own in zip(shape, free, strict=True))


def _quantised(
    model: Any, images: Sequence[ArrayInputs], ignored: Sequence[str], symmetric: bool, *, fast: bool
) -> Any:
    nncf = _import_nncf()
    presets = nncf.QuantizationPreset
    # NNCF writes its progress and its advice to stdout, which may carry a record.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(list(images)),
            # Activations that go below zero (ELU) cost symmetric ones half of their steps.
            preset=presets.PERFORMANCE if symmetric else presets.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=list(ignored)) if ignored else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=fast),
        )


def layer_errors(
    model: Any,
    images: Sequence[ArrayInputs],
    *,
    outputs: Iterable[str] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Error of the outputs if a single layer computes in INT8.

    Weights are rounded for each output channel, and activations between the least and the largest value that they take
    on the images, as quantisation does before its corrections.

    Parameters
    ----------
    model : openvino.Model
        In floating point; it stays as it was.
    images : sequence of array, shape (1, C, H, W), float32, or of tuples of arrays
        A few.
    outputs : iterable of str
        Names of the outputs that count; all by default.
    progress : callable
        Called as ``progress(1)`` after each layer.

    Returns
    -------
    dict of str to float
        By the name of each layer's operation: relative squared error of each output over all images, averaged over
        the outputs.
    """
    names = tuple(outputs) or tuple(port.get_any_name() for port in model.outputs)
    layers = [op.get_friendly_name() for op in layers_of(model, names)]
    ranges = _input_ranges(model, images, layers)
    wanted = _run(model, images, names)
    errors = {}
    for layer in layers:
        errors[layer] = _error(_run(_rounded(model, layer, ranges[layer]), images, names), wanted)
        progress(1)
    return errors


def _import_nncf() -> Any:
    before = os.environ.get(_NO_REPORTS)
    try:
        if "nncf" not in sys.modules:
            os.environ[_NO_REPORTS] = before or "1"
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf
    except ImportError as error:
        raise RuntimeAbsent(
            "NNCF, which quantises, is not installed", hint="pip install 'pose-compress[int8]', or pip install nncf"
        ) from error
    finally:
        if before is None:
            os.environ.pop(_NO_REPORTS, None)
    return nncf


def _run(model: Any, images: Sequence[ArrayInputs], names: Sequence[str]) -> list[list[Array]]:
    """Outputs for each image, in the order of the names."""
    compiled = compile_model(open_core("cpu"), model, "cpu", "fp32", None)
    found = []
    for image in images:
        maps = compiled(_fed(image))
        found.append([np.array(maps[compiled.output(name)], dtype=np.float32) for name in names])
    return found


def _fed(image: ArrayInputs) -> list[Any]:
    return list(image) if isinstance(image, tuple) else [image]


def _error(found: Sequence[Sequence[Array]], wanted: Sequence[Sequence[Array]]) -> float:
    errors = []
    for kind in range(len(wanted[0])):
        energy = sum(float(np.square(maps[kind], dtype=np.float64).sum()) for maps in wanted)
        off = sum(
            float(np.square(a[kind] - b[kind], dtype=np.float64).sum()) for a, b in zip(found, wanted, strict=True)
        )
        errors.append(off / max(energy, 1e-30))
    return float(np.mean(errors))


def _input_ranges(model: Any, images: Sequence[ArrayInputs], layers: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Least and largest value that each layer reads."""
    from openvino import opset8

    copy = model.clone()
    named = {op.get_friendly_name(): op for op in copy.get_ops()}
    ends: list[Any] = []
    for layer in layers:
        source = named[layer].input_value(0)
        axes = np.arange(source.get_partial_shape().rank.get_length())
        for reduce in (opset8.reduce_min, opset8.reduce_max):
            ends.append(reduce(source, axes).output(0))
    before = len(copy.outputs)
    copy.add_outputs(ends)
    compiled = compile_model(open_core("cpu"), copy, "cpu", "fp32", None)
    rows = []
    for image in images:
        found = compiled(_fed(image))
        rows.append([float(found[before + index]) for index in range(len(ends))])
    table = np.array(rows).reshape(len(images), len(layers), 2)
    low, high = table[..., 0].min(axis=0), table[..., 1].max(axis=0)
    return {layer: (float(a), float(b)) for layer, a, b in zip(layers, low, high, strict=True)}


def _rounded(model: Any, layer: str, ends: tuple[float, float]) -> Any:
    """A copy in which one layer reads and multiplies in INT8."""
    from openvino import opset8

    copy = model.clone()
    op = next(op for op in copy.get_ops() if op.get_friendly_name() == layer)
    low, high = (np.float32(end) for end in (min(ends[0], 0.0), max(ends[1], 0.0)))
    if high > low:
        steps = opset8.fake_quantize(op.input_value(0), low, high, low, high, 256)
        op.input(0).replace_source_output(steps.output(0))
    constant = weights_of(op)
    weights = np.asarray(constant.get_data(), dtype=np.float32)
    others = tuple(axis for axis in range(weights.ndim) if axis not in CHANNEL_AXES[op.get_type_name()])
    step = np.abs(weights).max(axis=others, keepdims=True) / 127
    step[step == 0] = 1
    constant.output(0).replace(opset8.constant(np.rint(weights / step) * step, dtype=np.float32).output(0))
    return copy
