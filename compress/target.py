"""Where a network runs: runtime, device and precision, written as one word such as ``openvino-cpu-int8``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compress.errors import UsageError

#: Runtimes with the devices that each can use.
DEVICES = {"torch": ("cpu", "cuda"), "onnxruntime": ("cpu", "cuda"), "openvino": ("cpu", "gpu")}
RUNTIMES = tuple(DEVICES)
PRECISIONS = ("fp32", "bf16", "fp16")

#: Targets that are timed unless others are named; those that this machine lacks are reported as absent.
DEFAULT_RUNTIMES = ("torch-cpu", "onnxruntime-cpu", "openvino-cpu", "torch-cuda")

_WORD = re.compile(r"([a-z]+)-([a-z]+)(-int8)?(?:-([a-z0-9]+))?")


@dataclass(frozen=True)
class Target:
    """A runtime on a device in a precision.

    Attributes
    ----------
    runtime : str
        One of `RUNTIMES`.
    device : str
        One of the runtime's `DEVICES`.
    precision : str
        One of `PRECISIONS`: the arithmetic of everything that is not quantised.
    int8 : bool
        Whether layers are quantised to INT8 (OpenVINO only).
    """

    runtime: str
    device: str
    precision: str = "fp32"
    int8: bool = False

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``RUNTIME-DEVICE[-int8][-PRECISION]``, such as ``openvino-cpu``, ``torch-cuda-fp16``.

        Raises
        ------
        UsageError
            If the runtime, device or precision is unknown, or INT8 is asked of another runtime than OpenVINO.
        """
        words = _WORD.fullmatch(text.strip().lower())
        runtime, device, int8, precision = words.groups() if words else ("", "", None, None)
        known = device in DEVICES.get(runtime, ()) and precision in (None, *PRECISIONS)
        if not known or (int8 and runtime != "openvino"):
            raise UsageError(
                "unknown target",
                found=text,
                hint=f"Known: {', '.join(targets())}, each also with -bf16 or -fp16 where the runtime supports it; "
                "OpenVINO also with -int8 or -int8-bf16",
            )
        return cls(runtime, device, precision or "fp32", int8 is not None)

    def __str__(self) -> str:
        """The word that `parse` reads."""
        words = [self.runtime, self.device, *["int8"] * self.int8, *[self.precision] * (self.precision != "fp32")]
        return "-".join(words)


def targets() -> tuple[str, ...]:
    """All runtimes and devices, in FP32."""
    return tuple(str(Target(runtime, device)) for runtime, devices in DEVICES.items() for device in devices)
