"""Options of training and fine-tuning, and the learning rate they stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from compress.data.augment import Augmentation
from compress.errors import UsageError
from compress.training.distil import DistilWeights

Optimizer = Literal["adam", "adamw", "sgd", "rmsprop"]
Schedule = Literal["cosine", "constant", "step", "poly", "exponential", "plateau"]

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
        Images a step, of all processes together.
    accumulate : int
        Pieces that a process computes its share of a batch in, one after another, where all of it does not fit into
        memory. Batch normalisation sees a piece at a time.
    size : (int, int)
        Height and width of the training crops in pixels, multiples of the network's stride.
    optimizer : str
        ``"adam"``, ``"adamw"``, ``"sgd"`` or ``"rmsprop"``: see `compress.training.optimizers`.
    momentum : float
        Of SGD and RMSprop.
    learning_rate : float
        Highest learning rate.
    warmup : float
        Share of the steps over which the learning rate rises linearly.
    warmup_steps : int or None
        The same in steps, in place of ``warmup``.
    schedule : str
        What follows the warm-up: ``"cosine"``, ``"poly"`` and ``"exponential"`` fall to ``final_rate``, ``"step"``
        falls at the ``milestones``, ``"plateau"`` where the score stays, ``"constant"`` stays.
    final_rate : float
        Last learning rate of those that fall all the way, as a share of the highest.
    milestones : tuple of int
        Steps, ascending, after which the rate of ``"step"`` is lower.
    gamma : tuple of float
        What it is multiplied by at each of them; a single one stands for all, and for the falls of ``"plateau"``.
    power : float
        Exponent of ``"poly"``.
    patience : int
        Evaluations without a better score after which, at the next such, the rate of ``"plateau"`` falls.
    threshold : float
        By how much a score has to be better to count for ``"plateau"``.
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
    factor_rate : float
        What the learning rate is multiplied by for the factors of factorized layers.
    stop_after : int or None
        Evaluations without a score as good as the best after which training ends.
    recalibrate_norms : int
        Batches on which the running statistics of batch normalisation are computed anew before each evaluation and at
        the end; 0 leaves those that training gathered.
    rollbacks : int
        Returns to the last good state, each with half the learning rate, before a run whose numbers are none gives up.
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
    accumulate: int = 1
    size: tuple[int, int] = (256, 256)
    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    learning_rate: float = 1e-3
    warmup: float = 0.05
    warmup_steps: int | None = None
    schedule: Schedule = "cosine"
    final_rate: float = 0.01
    milestones: tuple[int, ...] = ()
    gamma: tuple[float, ...] = (0.1,)
    power: float = 0.9
    patience: int = 5
    threshold: float = 0.0
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
    factor_rate: float = 1.0
    stop_after: int | None = None
    recalibrate_norms: int = 0
    rollbacks: int = 3
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
            ("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "0 or more, or nothing"),
            ("optimizer", self.optimizer in get_args(Optimizer), f"one of {', '.join(get_args(Optimizer))}"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and below 1"),
            ("schedule", self.schedule in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
            ("final_rate", 0 <= self.final_rate <= 1, "a share from 0 to 1"),
            ("final_rate", self.final_rate > 0 or self.schedule != "exponential", "above 0 for an exponential"),
            ("milestones", self._ascend(), "steps in ascending order, at least one for the schedule step"),
            ("gamma", self._falls(), "factors above 0 and up to 1: one, or one for each milestone"),
            ("power", 0 < self.power < math.inf, "a number above 0"),
            ("patience", self.patience >= 0, "0 or more"),
            ("threshold", 0 <= self.threshold < math.inf, "0 or more"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("clip", self.clip is None or self.clip > 0, "a number above 0, or nothing"),
            ("amp", self.amp in ("auto", "off", "bf16", "fp16"), "auto, off, bf16 or fp16"),
            ("label_weight", 0 <= self.label_weight < math.inf, "0 or more"),
            ("sigma", self.sigma is None or 0 < self.sigma < math.inf, "a number of pixels above 0, or nothing"),
            ("ema", self.ema is None or 0 < self.ema < 1, "a decay between 0 and 1, or nothing"),
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("factor_rate", 0 < self.factor_rate < math.inf, "a number above 0"),
            ("stop_after", self.stop_after is None or self.stop_after >= 1, "at least 1, or nothing"),
            ("recalibrate_norms", self.recalibrate_norms >= 0, "0 or more"),
            ("rollbacks", self.rollbacks >= 0, "0 or more"),
            ("workers", self.workers >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
            ("evaluate_every", self.evaluate_every is None or self.evaluate_every >= 1, "at least 1, or nothing"),
            ("checkpoint_every", self.checkpoint_every is None or self.checkpoint_every >= 1, "at least 1, or nothing"),
        )
        for name, good, wanted in checks:
            if not good:
                raise UsageError(f"the training option {name} must be {wanted}", found=getattr(self, name))

    def _ascend(self) -> bool:
        marks = self.milestones
        return list(marks) == sorted(marks) and (bool(marks) or self.schedule != "step")

    def _falls(self) -> bool:
        many = len(self.milestones) if self.schedule == "step" else 1
        return len(self.gamma) in (1, many) and all(0 < factor <= 1 for factor in self.gamma)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers with one flat key an option, such as ``augmentation.scale``."""
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f"{key}.{inner}": item for inner, item in value.items()}
            else:
                flat[key] = value
        return flat


def learning_rate(step: int, options: FineTuneOptions, scores: Sequence[tuple[int, float]] = ()) -> float:
    """The learning rate of a step: a linear rise, then what the schedule says.

    Parameters
    ----------
    step : int
        Number of the step, from 0.
    options : FineTuneOptions
        Rate, warm-up and schedule. The cosine is that of SGDR (Loshchilov and Hutter, 2017) without restarts; ``poly``
        falls as ``(1 - progress) ** power``.
    scores : sequence of (int, float)
        Evaluations so far, steps done and score: what ``plateau`` depends on, and nothing else does.
    """
    warm = round(options.warmup * options.steps) if options.warmup_steps is None else options.warmup_steps
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    return options.learning_rate * _share(step, warm, options, scores)


def _share(step: int, warm: int, options: FineTuneOptions, scores: Sequence[tuple[int, float]]) -> float:
    """The share of the highest rate after the warm-up."""
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "plateau":
        return options.gamma[0] ** count_plateaus([score for done, score in scores if done <= step], options)
    if options.schedule == "step":
        passed = sum(step >= mark for mark in options.milestones)
        factors = options.gamma * len(options.milestones) if len(options.gamma) == 1 else options.gamma
        return math.prod(factors[:passed])
    progress = min(1.0, (step - warm) / max(1, options.steps - warm - 1))
    if options.schedule == "exponential":
        return float(options.final_rate**progress)
    fallen = (1 + math.cos(math.pi * progress)) / 2 if options.schedule == "cosine" else (1 - progress) ** options.power
    return float(options.final_rate + (1 - options.final_rate) * fallen)


def count_plateaus(scores: Sequence[float], options: FineTuneOptions) -> int:
    """How often the score stayed for more than ``patience`` evaluations in a row; each time counting begins anew."""
    best, stayed, found = -math.inf, 0, 0
    for score in scores:
        if score > best + options.threshold or best == -math.inf:
            best, stayed = score, 0
        else:
            stayed += 1
        if stayed > options.patience:
            found, stayed = found + 1, 0
    return found
