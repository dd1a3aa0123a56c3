"""Options of training and fine-tuning, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from compress.data.augment import Augmentation
from compress.errors import UsageError
from compress.training.distil import DistilWeights

Optimizer = Literal["adam", "adamw", "sgd", "rmsprop"]
JointWeights = Literal["plain", "partial"]
PlateauMetric = Literal["score", "loss"]
Schedule = Literal["cosine", "constant", "step", "poly", "exponential", "plateau"]

#: Options that affect how a run is executed, but not the weights that it ends with.
EXECUTION_ONLY = ("workers", "checkpoint_every", "device")


@dataclass(frozen=True)
class FineTuneOptions:
    """How a network is trained.

    Attributes
    ----------
    steps : int
        Optimizer steps.
    batch_size : int
        Images per step, of all processes together.
    accumulate : int
        Gradient accumulation: the number of pieces in which a process computes its share of a batch, to save memory.
        Batch normalisation sees one piece at a time.
    size : (int, int) or None
        Height and width of the training crops in pixels, multiples of the network's stride; None: the network's own
        input size.
    optimizer : str
        ``"adam"``, ``"adamw"``, ``"sgd"`` or ``"rmsprop"``: see `compress.training.optimizers`.
    momentum : float
        Of SGD and RMSprop.
    learning_rate : float
        Highest learning rate.
    warmup : float
        Share of the steps over which the learning rate rises linearly.
    warmup_steps : int or None
        The same in steps, instead of ``warmup``.
    schedule : str
        Learning rate after the warm-up: ``"cosine"``, ``"poly"`` and ``"exponential"`` decay to ``final_rate``,
        ``"step"`` drops at the ``milestones``, ``"plateau"`` drops when the score or the loss stops improving,
        ``"constant"`` does not change.
    final_rate : float
        Last learning rate of the decaying schedules, as a share of the highest.
    milestones : tuple of int
        Steps, ascending, at which the rate of ``"step"`` drops.
    gamma : tuple of float
        Factor of the rate at each milestone, or one for all; also the factor of ``"plateau"``.
    power : float
        Exponent of ``"poly"``.
    patience : int
        Evaluations without improvement that ``"plateau"`` tolerates before the rate drops.
    threshold : float
        Smallest improvement that counts for ``"plateau"``: of the score as it is, of the loss as a share of the lowest.
    plateau_metric : str
        What ``"plateau"`` watches: the validation ``"score"``, or the training ``"loss"``, averaged over the steps
        between evaluations, with or without validation data.
    max_drops : int or None
        Most drops of ``"plateau"``; None: any number.
    weight_decay : float
        L2 penalty of convolution and matrix weights; biases and normalisation have none.
    clip : float or None
        Largest norm of the whole gradient.
    freeze : tuple of str
        Names or patterns of modules whose parameters and running statistics are not changed.
    freeze_statistics : bool
        Keep the running statistics of all batch normalisation layers, and normalise with them.
    amp : str
        Arithmetic of the forward pass: ``"auto"`` (on CUDA bfloat16, or float16 on older GPUs; float32 on the CPU),
        ``"off"``, ``"bf16"`` or ``"fp16"``.
    loss_kernel : float or None
        Width of the Gaussian kernel distance between outputs and targets (`compress.training.losses.masked_squares`);
        None: their squared error.
    label_weight : float
        Weight of the loss against annotations; 0 ignores them.
    joint_weights : str
        Weights of the joints of networks that see one person at a time: ``"plain"`` is the mean square error, 1 for
        annotated joints; ``"partial"`` the partial loss of RePose (`compress.training.losses.partial_weights`). Joints
        without an annotation have weight 0 in both.
    distil : DistilWeights
        Weights of the loss against a teacher.
    augmentation : Augmentation
        Random variation of the samples.
    sigma : float or None
        Standard deviation of the heatmaps' peaks in input pixels; None: the decoder's ``default_sigma``.
    overlap : str or None
        Targets where people overlap, ``"lightweight"`` or ``"cao"``, for networks that find several people
        (`compress.pose.decoders.paf.PafDecoder`); None: as the decoder's option says.
    ema : float or None
        Decay of an exponential moving average of the weights, which is then scored and returned.
    factor_rate : float
        Factor of the learning rate of the factors of factorized layers.
    stop_after : int or None
        Early stopping: evaluations since the best score after which training ends.
    recalibrate_norms : int
        Batches on which the running statistics of batch normalisation are recomputed before each evaluation and at
        the end; 0 keeps those gathered in training.
    rollbacks : int
        On a NaN or infinite loss, training rolls back to the last good state and halves the learning rate, this many
        times at most.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    workers : int
        Processes that load data.
    seed : int
        Seed of the order, the augmentation and all randomness in the network.
    evaluate_every, checkpoint_every : int or None
        Steps between evaluations and between writes of the training state; None: at the end only.

    Raises
    ------
    UsageError
        If a value is out of range.
    """

    steps: int
    batch_size: int = 16
    accumulate: int = 1
    size: tuple[int, int] | None = None
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
    plateau_metric: PlateauMetric = "score"
    max_drops: int | None = None
    weight_decay: float = 0.0
    clip: float | None = None
    freeze: tuple[str, ...] = ()
    freeze_statistics: bool = False
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    loss_kernel: float | None = None
    label_weight: float = 1.0
    joint_weights: JointWeights = "plain"
    distil: DistilWeights = field(default_factory=DistilWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    sigma: float | None = None
    overlap: Literal["lightweight", "cao"] | None = None
    ema: float | None = None
    factor_rate: float = 1.0
    stop_after: int | None = None
    recalibrate_norms: int = 0
    rollbacks: int = 3
    device: str = "cpu"
    workers: int = 2
    seed: int = 0
    evaluate_every: int | None = None
    checkpoint_every: int | None = 200

    def __post_init__(self) -> None:
        checks = (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("size", self._fits(), "a height and a width of at least 8 pixels"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0"),
            ("warmup", 0 <= self.warmup <= 1, "a share of the steps from 0 to 1"),
            ("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "0 or more, or None"),
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
            ("plateau_metric", self.plateau_metric in get_args(PlateauMetric), "score or loss"),
            ("max_drops", self.max_drops is None or self.max_drops >= 0, "0 or more, or None"),
            ("evaluate_every", self._watches(), "set for a plateau of the loss"),
            ("loss_kernel", self.loss_kernel is None or 0 < self.loss_kernel < math.inf, "a width above 0, or None"),
            ("overlap", self.overlap in ("lightweight", "cao", None), "lightweight, cao or None"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("clip", self.clip is None or self.clip > 0, "a number above 0, or None"),
            ("amp", self.amp in ("auto", "off", "bf16", "fp16"), "auto, off, bf16 or fp16"),
            ("joint_weights", self.joint_weights in get_args(JointWeights), "plain or partial"),
            ("label_weight", 0 <= self.label_weight < math.inf, "0 or more"),
            ("sigma", self.sigma is None or 0 < self.sigma < math.inf, "a number of pixels above 0, or None"),
            ("ema", self.ema is None or 0 < self.ema < 1, "a decay between 0 and 1, or None"),
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("factor_rate", 0 < self.factor_rate < math.inf, "a number above 0"),
            ("stop_after", self.stop_after is None or self.stop_after >= 1, "at least 1, or None"),
            ("recalibrate_norms", self.recalibrate_norms >= 0, "0 or more"),
            ("rollbacks", self.rollbacks >= 0, "0 or more"),
            ("workers", self.workers >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
            ("evaluate_every", self.evaluate_every is None or self.evaluate_every >= 1, "at least 1, or None"),
            ("checkpoint_every", self.checkpoint_every is None or self.checkpoint_every >= 1, "at least 1, or None"),
        )
        for name, good, wanted in checks:
            if not good:
                raise UsageError(f"the training option {name} must be {wanted}", found=getattr(self, name))

    def _fits(self) -> bool:
        return self.size is None or (len(self.size) == 2 and min(self.size) >= 8)

    def _ascend(self) -> bool:
        marks = self.milestones
        return list(marks) == sorted(marks) and (bool(marks) or self.schedule != "step")

    def _falls(self) -> bool:
        many = len(self.milestones) if self.schedule == "step" else 1
        return len(self.gamma) in (1, many) and all(0 < factor <= 1 for factor in self.gamma)

    def _watches(self) -> bool:
        by_loss = self.schedule == "plateau" and self.plateau_metric == "loss"
        return not by_loss or self.evaluate_every is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers with a flat key for each option, such as ``augmentation.scale``."""
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f"{key}.{inner}": item for inner, item in value.items()}
            else:
                flat[key] = value
        return flat


def learning_rate(step: int, options: FineTuneOptions, scores: Sequence[tuple[int, float]] = ()) -> float:
    """The learning rate of a step: a linear warm-up, then the schedule.

    Parameters
    ----------
    step : int
        Number of the step, from 0.
    options : FineTuneOptions
        Rate, warm-up and schedule. The cosine is that of SGDR (Loshchilov and Hutter, 2017, equation 5) without
        restarts; ``poly`` decays as ``(1 - progress) ** power``.
    scores : sequence of (int, float)
        Evaluations so far, steps completed and score, or loss for ``plateau_metric="loss"``; only ``plateau`` depends
        on them.
    """
    warm = round(options.warmup * options.steps) if options.warmup_steps is None else options.warmup_steps
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    return options.learning_rate * _share(step, warm, options, scores)


def _share(step: int, warm: int, options: FineTuneOptions, scores: Sequence[tuple[int, float]]) -> float:
    """The rate after the warm-up, as a share of the highest."""
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
    """How often more than ``patience`` evaluations in a row brought no improvement, ``max_drops`` at most.

    The count of evaluations restarts each time. Scores are losses for ``plateau_metric="loss"``.
    """
    best: float | None = None
    waited, plateaus = 0, 0
    for score in scores:
        if best is None or _improves(score, best, options):
            best, waited = score, 0
        else:
            waited += 1
        if waited > options.patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus if options.max_drops is None else min(plateaus, options.max_drops)


def _improves(value: float, best: float, options: FineTuneOptions) -> bool:
    if options.plateau_metric == "loss":
        return value < best * (1 - options.threshold)
    return value > best + options.threshold


def interval_losses(losses: Sequence[float], every: int) -> list[tuple[int, float]]:
    """The mean loss of each whole interval of ``every`` steps, and the number of steps completed at its end."""
    ends = range(every, len(losses) + 1, every)
    return [(end, math.fsum(losses[end - every : end]) / every) for end in ends]
