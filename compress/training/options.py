"""Options of training and fine-tuning, and the learning rate they stand for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compress.data.augment import Augmentation
from compress.errors import UsageError
from compress.training.distil import DistilWeights

#: Options that change how fast a run is or what it keeps on the way, but not the weights it ends with.
EXECUTION_ONLY = ("workers", "checkpoint_every")


@dataclass(frozen=True)
class FineTuneOptions:
    """How a network is trained.

    Attributes
    ----------
    steps : int
        Optimizer steps.
    batch_size : int
        Images a step.
    size : (int, int)
        Height and width of the training crops in pixels, multiples of the network's stride.
    learning_rate : float
        Highest learning rate of Adam.
    warmup : float
        Share of the steps over which the learning rate rises linearly.
    schedule : str
        What follows the warm-up: ``"cosine"`` falls to ``final_rate``, ``"constant"`` stays.
    final_rate : float
        Last learning rate of the cosine, as a share of the highest.
    weight_decay : float
        L2 penalty of convolution and matrix weights; biases and normalisation have none.
    clip : float or None
        Largest norm of the gradient of all parameters together.
    freeze : tuple of str
        Names or patterns of modules whose parameters and statistics stay as they are.
    freeze_statistics : bool
        Keep the running statistics of all batch normalisation, and normalise with them.
    amp : str
        Arithmetic of the forward pass: ``"auto"`` (on CUDA bfloat16, or float16 on older GPUs; float32 on the CPU),
        ``"off"``, ``"bf16"`` or ``"fp16"``.
    label_weight : float
        Weight of the loss against annotations; 0 leaves them unused.
    distil : DistilWeights
        Weights of the loss against a teacher.
    augmentation : Augmentation
        How samples are varied.
    sigma : float or None
        Standard deviation of the heatmaps' peaks in input pixels; None: `compress.training.batches.default_sigma`.
    ema : float or None
        Decay of an exponential moving average of the weights, which then is what is scored and returned.
    workers : int
        Processes that load data.
    seed : int
        Seed of order, augmentation and whatever is random in the network.
    evaluate_every, checkpoint_every : int or None
        Steps between evaluations and between writings of the training state; None: at the end only.

    Raises
    ------
    UsageError
        If a number has no meaning.
    """

    steps: int
    batch_size: int = 16
    size: tuple[int, int] = (256, 256)
    learning_rate: float = 1e-3
    warmup: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    final_rate: float = 0.01
    weight_decay: float = 0.0
    clip: float | None = None
    freeze: tuple[str, ...] = ()
    freeze_statistics: bool = False
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    label_weight: float = 1.0
    distil: DistilWeights = field(default_factory=DistilWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    sigma: float | None = None
    ema: float | None = None
    workers: int = 2
    seed: int = 0
    evaluate_every: int | None = None
    checkpoint_every: int | None = 200

    def __post_init__(self) -> None:
        checks = (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("size", len(self.size) == 2 and min(self.size) >= 8, "a height and a width of at least 8 pixels"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0"),
            ("warmup", 0 <= self.warmup <= 1, "a share of the steps from 0 to 1"),
            ("schedule", self.schedule in ("cosine", "constant"), "cosine or constant"),
            ("final_rate", 0 <= self.final_rate <= 1, "a share from 0 to 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("clip", self.clip is None or self.clip > 0, "a number above 0, or nothing"),
            ("amp", self.amp in ("auto", "off", "bf16", "fp16"), "auto, off, bf16 or fp16"),
            ("label_weight", 0 <= self.label_weight < math.inf, "0 or more"),
            ("sigma", self.sigma is None or 0 < self.sigma < math.inf, "a number of pixels above 0, or nothing"),
            ("ema", self.ema is None or 0 < self.ema < 1, "a decay between 0 and 1, or nothing"),
            ("workers", self.workers >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
            ("evaluate_every", self.evaluate_every is None or self.evaluate_every >= 1, "at least 1, or nothing"),
            ("checkpoint_every", self.checkpoint_every is None or self.checkpoint_every >= 1, "at least 1, or nothing"),
        )
        for name, good, wanted in checks:
            if not good:
                raise UsageError(f"the training option {name} must be {wanted}", found=getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers with one flat key an option, such as ``augmentation.scale``."""
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f"{key}.{inner}": item for inner, item in value.items()}
            else:
                flat[key] = value
        return flat


def learning_rate(step: int, options: FineTuneOptions) -> float:
    """The learning rate of a step, counted from 0: a linear rise, then a cosine (SGDR without restarts) or none."""
    warm = round(options.warmup * options.steps)
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    if options.schedule == "constant":
        return options.learning_rate
    progress = (step - warm) / max(1, options.steps - warm - 1)
    share = options.final_rate + (1 - options.final_rate) * (1 + math.cos(math.pi * progress)) / 2
    return options.learning_rate * share
