"""A network in training with all its state: one step, scoring, rollback, and what a training state holds."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import CheckpointError, CompressError, UsageError
from compress.model import Model
from compress.network.inputs import Inputs, call
from compress.training.batches import Batch, Span
from compress.training.distil import Distiller, FeatureRecorder
from compress.training.freezing import find_frozen, parameter_groups, trained_parameters
from compress.training.losses import Loss, add_losses, pose_loss
from compress.training.norms import NORMS, recalibrate, synchronise_norms
from compress.training.optimizers import build_optimizer
from compress.training.options import FineTuneOptions, interval_losses
from compress.training.processes import ProcessGroup
from compress.training.results import Best, FineTuneResult, StepLog
from compress.training.state import fingerprint, random_state, set_random_state
from compress.training.training_set import TrainingSet
from compress.training.watchdog import Diverged, Rollback, Watchdog


class Run:
    """A network in training.

    Parameters are those of `compress.training.loop.train`. All processes of a run hold the same weights at all times,
    because they start from the same ones and apply the same gradients.
    """

    def __init__(
        self,
        model: Model,
        training_set: TrainingSet,
        options: FineTuneOptions,
        teacher: Model | None,
        group: ProcessGroup,
    ) -> None:
        pieces = group.count * options.accumulate
        if options.batch_size % pieces:
            raise UsageError(
                f"a batch must divide evenly into {pieces} pieces ({group.count} processes x accumulate "
                f"{options.accumulate})",
                found=options.batch_size,
                hint=f"Take a batch_size that is a multiple of {pieces}",
            )
        self.options, self.source, self.group, self.device = options, training_set.source, group, group.device
        self.conditions = {
            **options.to_dict(),
            **training_set.conditions,
            "teacher": None if teacher is None else fingerprint(teacher.module),
        }
        layout, device = torch.channels_last, self.device
        self.start, self.outputs = model.module, model.outputs
        self.module = copy.deepcopy(model.module).to(device=device, memory_format=layout)  # type: ignore[call-overload]
        if group.count > 1:
            synchronise_norms(self.module)
        self.frozen = find_frozen(self.module, options.freeze)
        self.trained = trained_parameters(self.module, self.frozen)
        self.distiller = None
        if teacher is not None:
            distiller = Distiller(model, teacher, options.distil, training_set.inputs, mean=group.mean)
            self.distiller = distiller.to(device, layout)
        self.average = None if options.ema is None else copy.deepcopy(self.module).requires_grad_(False)
        self.amp = _amp_type(options.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp is torch.float16)
        self.optimizer = build_optimizer(parameter_groups(self.module, self.trained, options), options)
        self.watchdog = Watchdog(options.rollbacks)
        self.step = 0
        self.saved: int | None = None
        self.log: list[StepLog] = []
        self.scores: list[tuple[int, float]] = []
        self._losses: list[tuple[int, float]] = []
        self.best: Best | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self._kept_best: tuple[Best | None, dict[str, Tensor] | None] = (None, None)
        self._set_modes()

    @property
    def judged(self) -> nn.Module:
        """The network that is scored and returned: the moving average if there is one."""
        return self.module if self.average is None else self.average

    @property
    def stopped_early(self) -> bool:
        """Whether none of the last evaluations was as good as the best."""
        if self.options.stop_after is None or self.best is None:
            return False
        return sum(step > self.best.step for step, _ in self.scores) >= self.options.stop_after

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.options.steps or self.stopped_early

    def _set_modes(self) -> None:
        self.module.train()
        for part in self._fixed_parts():
            part.eval()

    def _fixed_parts(self) -> list[nn.Module]:
        """Submodules that run in eval mode during training, so that their statistics do not change."""
        fixed = list(self.frozen)
        if self.options.freeze_statistics:
            fixed += [part for part in self.module.modules() if isinstance(part, NORMS)]
        return fixed

    @property
    def watched(self) -> list[tuple[int, float]]:
        """What the schedule ``plateau`` watches: completed steps, and score or mean loss since the last evaluation."""
        return self._losses if self.options.plateau_metric == "loss" else self.scores

    def note(self, entry: StepLog) -> None:
        """Add a step to the log."""
        self.log.append(entry)
        if self.options.evaluate_every is not None and self.step % self.options.evaluate_every == 0:
            self._average_losses()

    def _average_losses(self) -> None:
        every = self.options.evaluate_every
        self._losses = [] if every is None else interval_losses([entry.loss for entry in self.log], every)

    def load(self) -> Iterator[list[Batch]]:
        """This process's pieces of each remaining batch."""
        pieces = self._load(self.step, self.options.steps)
        while step := list(itertools.islice(pieces, self.options.accumulate)):
            yield step

    def _load(self, start: int, steps: int) -> Iterator[Batch]:
        options, group = self.options, self.group
        span = Span(
            batch_size=options.batch_size,
            start=start,
            steps=steps,
            pieces=options.accumulate,
            share=(group.number, group.count),
            workers=options.workers,
            pin=self.device.type == "cuda",
        )
        return self.source.batches(span)

    def train_step(self, pieces: Sequence[Batch], rate: float) -> tuple[float, dict[str, float]]:
        """Forward and backward pass of each piece, then one optimizer step; the loss before it, and its terms.

        Raises
        ------
        Diverged
            If the loss or the gradient is NaN or infinite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        names: list[str] = []
        for piece in pieces:
            loss = self._loss(piece.to(self.device))
            names = list(loss.parts)
            losses.append(torch.stack([loss.total.detach(), *loss.parts.values()]))
            self.scaler.scale(loss.total / len(pieces)).backward()
        total, *values = self.group.mean(torch.stack(losses).mean(0)).tolist()
        if not math.isfinite(total):
            raise Diverged(f"the loss is {total}")
        self.group.average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, self.options.clip or math.inf)
        # With float16 the scaler skips a step that overflowed; without it such a step would destroy the weights.
        if not self.scaler.is_enabled() and not math.isfinite(float(norm)):
            raise Diverged(f"the gradient's norm is {float(norm)}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._update_average()
        return total, dict(zip(names, values, strict=True))

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            yield

    def _inputs(self, batch: Batch) -> Inputs:
        return self.source.network_inputs(batch)

    def _loss(self, batch: Batch) -> Loss:
        inputs = self._inputs(batch)
        points = self.distiller.points if self.distiller else ()
        with self._arithmetic(), FeatureRecorder(self.module, points) as recorder:
            stages = self.outputs.read(call(self.module, inputs))
            losses = {}
            if batch.targets:
                loss = pose_loss(stages, batch.targets, batch.mask, self.options.loss_kernel)
                losses["labels"] = (self.options.label_weight, loss)
            if self.distiller:
                losses["teacher"] = (1.0, self.distiller(inputs, stages, recorder.features))
        return add_losses(losses)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None or self.options.ema is None:
            return
        # Early on, a long average would contain little but the initial weights.
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for mean, value in zip(self.average.buffers(), self.module.buffers(), strict=True):
            mean.copy_(value)

    def score(self, evaluate: Callable[[nn.Module], float]) -> tuple[float, bool]:
        """Score the network and keep its weights if no score was better; the score, and whether they were kept."""
        self.recalibrate()
        judged = self.judged.eval()
        with torch.no_grad():
            score = float(evaluate(judged))
        self._set_modes()
        self.scores.append((self.step, score))
        # Of two equal scores the later counts: its loss is lower.
        better = self.best is None or score >= self.best.score or math.isnan(self.best.score)
        if better:
            self.best = Best(self.step, score)
            self.best_weights = {name: value.cpu().clone() for name, value in judged.state_dict().items()}
        return score, better

    def recalibrate(self) -> None:
        """Recalibrate the statistics of the judged network on the first batches, always the same, if so configured."""
        count = self.options.recalibrate_norms
        if count == 0:
            return
        names = {part: name for name, part in self.module.named_modules()}
        fixed = [self.judged.get_submodule(names[part]) for part in self._fixed_parts()]
        batches = (self._inputs(piece.to(self.device)) for piece in self._load(0, count))
        with self._arithmetic():
            recalibrate(self.judged, batches, fixed)

    def keep(self) -> None:
        """Copy the state at this step, to roll back to."""
        self.watchdog.keep({**self._changing(), "log": len(self.log), "scores": len(self.scores)})
        # These are replaced and never modified, so they need no copy.
        self._kept_best = (self.best, self.best_weights)

    def roll_back(self, cause: Diverged, state_path: Path | None) -> Rollback:
        """Restore the copied state, to continue at a lower learning rate.

        Raises
        ------
        CompressError
            If no rollback is left.
        """
        step = self.step + 1
        rollback = self.watchdog.roll_back(cause, step, self._restore_copy)
        if rollback is not None:
            return rollback
        hint = f"Lower the learning rate (it was {self.options.learning_rate:g})"
        if self.watchdog.rollbacks:
            count = self.watchdog.rollbacks
            hint += f"; {count} rollback{'s' * (count > 1)}, each halving it, did not help"
        if self.saved is not None:
            hint += f"; the training state of step {self.saved} is kept in {state_path}"
        raise CompressError(f"training diverged at step {step}: {cause}", hint=hint)

    def _restore_copy(self, state: dict[str, Any]) -> int:
        self._take(state)
        del self.log[state["log"] :], self.scores[state["scores"] :]
        self._average_losses()
        self.best, self.best_weights = self._kept_best
        set_random_state(state["random"], self.device)
        return self.step

    def _changing(self) -> dict[str, Any]:
        """What a step changes in this process; not copied."""
        return {
            "step": self.step,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.average is None else self.average.state_dict(),
            "random": random_state(self.device),
        }

    def _take(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def state(self) -> dict[str, Any]:
        """The complete state of all processes as plain containers and tensors; every process must call it."""
        changing = self._changing()
        return {
            **changing,
            "random": self.group.gather(changing["random"]),
            "conditions": self.conditions,
            "best": None if self.best is None else {**asdict(self.best), "weights": self.best_weights},
            "scores": self.scores,
            "log": [asdict(entry) for entry in self.log],
            "rollbacks": self.watchdog.rollbacks,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`; the number of processes may differ."""
        try:
            self._take(state)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the training state is of another network: {error}", hint="Start again without --resume"
            ) from error
        self.saved = self.step
        self.log = [StepLog(**entry) for entry in state["log"]]
        self._average_losses()
        self.scores = [(step, score) for step, score in state["scores"]]
        self.watchdog.rollbacks = state["rollbacks"]
        if state["best"] is not None:
            self.best = Best(state["best"]["step"], state["best"]["score"])
            self.best_weights = state["best"]["weights"]
        if self.group.number < len(state["random"]):
            set_random_state(state["random"][self.group.number], self.device)
        else:
            torch.manual_seed(process_seed((self.options.seed, self.step), self.group.number))

    def result(self) -> FineTuneResult:
        """The outcome."""
        if self.best_weights is None:
            self.recalibrate()
        # Not a copy of the trained module: in a group its layers of batch normalisation need the other processes.
        module = copy.deepcopy(self.start).to("cpu")
        module.load_state_dict(self.judged.state_dict() if self.best_weights is None else self.best_weights)
        return FineTuneResult(
            module.requires_grad_(True).eval(),
            tuple(self.log),
            tuple(self.scores),
            self.best,
            self.distiller.points if self.distiller else (),
            self.watchdog.rollbacks,
        )


def process_seed(seed: Sequence[int], number: int) -> int:
    """Seed of a process for randomness inside the network, such as dropout; the first process has the run's own."""
    if number == 0 and len(seed) == 1:
        return seed[0]
    return int(np.random.SeedSequence((*seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _amp_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The data type of the forward pass, None for float32."""
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if amp == "fp16" and device.type == "cpu":
        raise UsageError("float16 training needs a GPU", found=amp, hint="Use bf16 or off on the CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
