"""Training, fine-tuning and distillation of pose networks: one loop for all three, on the CPU and on CUDA."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.data.sample import Dataset
from compress.errors import CheckpointError, CompressError, FileError, RuntimeAbsent, UsageError
from compress.pose.spec import PoseSpec
from compress.training.batches import Batch, Examples, load_batches, normalise
from compress.training.distil import Distiller, Taps
from compress.training.freezing import find_frozen, parameter_groups, trained_parameters
from compress.training.losses import Loss, add_losses, pose_loss
from compress.training.options import FineTuneOptions, learning_rate
from compress.training.state import fingerprint, random_state, read_state, set_random_state, write_state

__all__ = ["FineTuneOptions", "FineTuneResult", "StepLog", "finetune"]

#: Steps over which the speed is averaged.
_SPEED_WINDOW = 20

_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class StepLog:
    """One step of training.

    Attributes
    ----------
    step : int
        Number of the step, from 1.
    steps : int
        Steps in all.
    loss : float
        Loss before the step, the sum of ``parts``.
    parts : dict of str to float
        Weighted summands: ``labels.heatmaps``, ``maps.pafs``, ``features.<module>`` and so on.
    learning_rate : float
        Learning rate of the step.
    images_per_second : float
        Over the last steps, loading included, evaluation not.
    score : float or None
        Score after the step, where it was evaluated.
    best : bool
        Whether that is the best score so far, so that these weights are kept.
    """

    step: int
    steps: int
    loss: float
    parts: dict[str, float]
    learning_rate: float
    images_per_second: float
    score: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Best:
    """The best evaluation and the step it came after."""

    step: int
    score: float


@dataclass(frozen=True)
class FineTuneResult:
    """What training gave.

    Attributes
    ----------
    module : Module
        A new network in eval mode on the CPU: the best-scoring weights if there was an evaluation, otherwise the
        last.
    log : tuple of StepLog
        Every step.
    scores : tuple of (int, float)
        Every evaluation: steps done, 0 before training, and the score.
    best : Best or None
        Where the weights come from; step 0 means that training never improved on the start.
    distilled : tuple of str
        Submodules whose features were compared with the teacher's.
    """

    module: nn.Module
    log: tuple[StepLog, ...]
    scores: tuple[tuple[int, float], ...]
    best: Best | None
    distilled: tuple[str, ...]


def finetune(
    module: nn.Module,
    data: Dataset,
    options: FineTuneOptions,
    *,
    pose: PoseSpec,
    teacher: nn.Module | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    on_step: Callable[[StepLog], None] | None = None,
    state_path: Path | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
) -> FineTuneResult:
    """Train a network on annotations, on a teacher's outputs, or on both.

    Parameters
    ----------
    module : Module
        The network to start from; stays as it is.
    data : Dataset
        Images, with or without annotations. With annotations, ``options.label_weight`` says how much they count.
    options : FineTuneOptions
        How to train.
    pose : PoseSpec
        What the network expects and gives.
    teacher : Module, optional
        A network with the same maps; see `compress.training.distil`.
    evaluate : callable, optional
        Gives a network in eval mode a score; more is better. Called before the first step, every
        ``options.evaluate_every`` steps and at the end.
    on_step : callable, optional
        Told of every step, after its evaluation and after the training state is on disk.
    state_path : Path, optional
        Where the training state is kept. An older one there is replaced.
    resume : bool
        Go on from that state. On the same device the weights become those of a run that was never stopped.
    device : str or device
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    FineTuneResult
        The trained network and how it came about.

    Raises
    ------
    DataError
        If there is neither an annotation to train on nor a teacher.
    NetworkError
        If the teacher has other maps, or a pattern to freeze matches nothing.
    UsageError
        If the crop does not fit the stride, or the state was made under other conditions.
    FileError
        If there is no state to resume from.
    CompressError
        If loss or gradient are no numbers any more.
    """
    if resume and state_path is None:
        raise FileError("there is no training state to resume from", way_out="Name the file, or start without --resume")
    _check_device(torch.device(device))
    with _own_randomness(torch.device(device), options.seed):
        run = _Run(module, data, options, pose, teacher, torch.device(device))
        if resume and state_path is not None:
            run.restore(read_state(state_path, run.conditions))
        elif evaluate is not None:
            run.score(evaluate)
        _train(run, evaluate, on_step, state_path)
        return run.result()


def _train(
    run: _Run,
    evaluate: Callable[[nn.Module], float] | None,
    on_step: Callable[[StepLog], None] | None,
    state_path: Path | None,
) -> None:
    """All steps that are left."""
    options = run.options
    batches = load_batches(
        run.examples,
        batch_size=options.batch_size,
        start=run.step,
        steps=options.steps,
        workers=options.workers,
        pin=run.device.type == "cuda",
    )
    speed: deque[float] = deque(maxlen=_SPEED_WINDOW)
    began = time.perf_counter()
    for batch in batches:
        rate = learning_rate(run.step, options)
        loss, parts = run.train_step(batch.to(run.device), rate, state_path)
        speed.append(time.perf_counter() - began)
        last = run.step == options.steps
        score: tuple[float | None, bool] = (None, False)
        if evaluate is not None and (last or _due(run.step, options.evaluate_every)):
            score = run.score(evaluate)
        per_second = options.batch_size * len(speed) / sum(speed)
        entry = StepLog(run.step, options.steps, loss, parts, rate, per_second, *score)
        run.log.append(entry)
        if state_path is not None and (last or _due(run.step, options.checkpoint_every)):
            write_state(state_path, run.state())
            run.saved = run.step
        if on_step is not None:
            on_step(entry)
        began = time.perf_counter()


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators for the block and put them back after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


class _Run:
    """A network in training with everything that changes on the way."""

    def __init__(
        self,
        module: nn.Module,
        data: Dataset,
        options: FineTuneOptions,
        pose: PoseSpec,
        teacher: nn.Module | None,
        device: torch.device,
    ) -> None:
        if any(n % pose.stride for n in options.size):
            raise UsageError(f"the training crop must be a multiple of the stride {pose.stride}", found=options.size)
        self.options, self.pose, self.device = options, pose, device
        labels = options.label_weight > 0 and (data.annotated or teacher is None)
        if not labels and teacher is None:
            raise UsageError(
                "there is nothing to learn from: annotations have no weight and there is no teacher",
                way_out="Give a teacher, or a label_weight above 0",
            )
        self.examples = Examples(
            data,
            pose,
            size=options.size,
            augmentation=options.augmentation,
            seed=options.seed,
            labels=labels,
            sigma=options.sigma,
        )
        self.conditions = {
            **options.to_dict(),
            "data": data.name,
            "images": len(data),
            "teacher": None if teacher is None else fingerprint(teacher),
        }
        layout = torch.channels_last
        self.module = copy.deepcopy(module).to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.frozen = find_frozen(self.module, options.freeze)
        self.trained = trained_parameters(self.module, self.frozen)
        self.distiller = None
        if teacher is not None:
            self.distiller = Distiller(self.module, teacher, options.distil).to(device, layout)
        self.average = None if options.ema is None else copy.deepcopy(self.module).requires_grad_(False)
        self.amp = _amp_type(options.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp is torch.float16)
        self.optimizer = torch.optim.Adam(parameter_groups(self.trained, options), fused=True)
        self.step = 0
        self.saved: int | None = None
        self.log: list[StepLog] = []
        self.scores: list[tuple[int, float]] = []
        self.best: Best | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self._set_modes()

    @property
    def judged(self) -> nn.Module:
        """The network that is scored and returned: the moving average where there is one."""
        return self.module if self.average is None else self.average

    def _set_modes(self) -> None:
        self.module.train()
        for part in self.frozen:
            part.eval()
        if self.options.freeze_statistics:
            for part in self.module.modules():
                if isinstance(part, _NORMS):
                    part.eval()

    def train_step(self, batch: Batch, rate: float, state_path: Path | None) -> tuple[float, dict[str, float]]:
        """Forward, backward and one optimizer step; the loss before it and its parts."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch)
        total, *values = torch.stack([loss.total.detach(), *loss.parts.values()]).tolist()
        if not math.isfinite(total):
            raise self._diverged(f"the loss is {total}", state_path)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss.total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, self.options.clip or math.inf)
        # With float16 the scaler leaves out a step that overflowed; without it such a step would destroy the weights.
        if not self.scaler.is_enabled() and not math.isfinite(float(norm)):
            raise self._diverged(f"the gradient's norm is {float(norm)}", state_path)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._update_average()
        return total, dict(zip(loss.parts, values, strict=True))

    def _loss(self, batch: Batch) -> Loss:
        images = normalise(batch.images, self.pose)
        points = self.distiller.points if self.distiller else ()
        with (
            torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None),
            Taps(self.module, points) as taps,
        ):
            stages = self.module(images)
            losses = {}
            if batch.targets:
                losses["labels"] = (self.options.label_weight, pose_loss(stages, batch.targets, batch.mask))
            if self.distiller:
                losses["teacher"] = (1.0, self.distiller(images, stages, taps.features))
        return add_losses(losses)

    def _diverged(self, what: str, state_path: Path | None) -> CompressError:
        way_out = f"Lower the learning rate (it was {self.options.learning_rate:g})"
        if self.saved is not None:
            way_out += f"; the training state of step {self.saved} is kept in {state_path}"
        return CompressError(f"training diverged at step {self.step + 1}: {what}", way_out=way_out)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None or self.options.ema is None:
            return
        # Early on a long average would hold little but the start.
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for mean, value in zip(self.average.buffers(), self.module.buffers(), strict=True):
            mean.copy_(value)

    def score(self, evaluate: Callable[[nn.Module], float]) -> tuple[float, bool]:
        """Score the network and keep its weights if none was better; the score, and whether they were kept."""
        judged = self.judged.eval()
        with torch.no_grad():
            score = float(evaluate(judged))
        self._set_modes()
        self.scores.append((self.step, score))
        # Of two equal scores the later counts: its loss is lower.
        # Of two equal scores the later counts: its loss is lower.
        better = self.best is None or score >= self.best.score or math.isnan(self.best.score)
        if better:
            self.best = Best(self.step, score)
            self.best_weights = {name: value.cpu().clone() for name, value in judged.state_dict().items()}
        return score, better

    def state(self) -> dict[str, Any]:
        """Everything that changes, as plain containers and tensors."""
        return {
            "step": self.step,
            "conditions": self.conditions,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.average is None else self.average.state_dict(),
            "best": None if self.best is None else {**asdict(self.best), "weights": self.best_weights},
            "scores": self.scores,
            "log": [asdict(entry) for entry in self.log],
            "random": random_state(self.device),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        try:
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["ema"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the training state is of another network: {error}", way_out="Start again without --resume"
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        self.step = self.saved = state["step"]
        self.log = [StepLog(**entry) for entry in state["log"]]
        self.scores = [(step, score) for step, score in state["scores"]]
        if state["best"] is not None:
            self.best = Best(state["best"]["step"], state["best"]["score"])
            self.best_weights = state["best"]["weights"]
        set_random_state(state["random"], self.device)

    def result(self) -> FineTuneResult:
        """The outcome."""
        module = copy.deepcopy(self.judged).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if self.best_weights is not None:
            module.load_state_dict(self.best_weights)
        points = self.distiller.points if self.distiller else ()
        return FineTuneResult(
            module.requires_grad_(True).eval(), tuple(self.log), tuple(self.scores), self.best, points
        )


def _check_device(device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        raise RuntimeAbsent("training runs on the CPU or on CUDA", found=str(device))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeAbsent("there is no CUDA device", found=str(device), way_out="Use --device cpu")


def _amp_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The type that the forward pass computes in, None for float32."""
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if amp == "fp16" and device.type == "cpu":
        raise UsageError("float16 training needs a GPU", found=amp, way_out="Use bf16 or off on the CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
