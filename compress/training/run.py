"""A network in training with everything that changes on the way: what a step does, what is kept, what is given back."""

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

from compress.data.sample import Dataset
from compress.errors import CheckpointError, CompressError, UsageError
from compress.pose.spec import PoseSpec
from compress.training.batches import Batch, Examples, load_batches, normalise
from compress.training.distil import Distiller, Taps
from compress.training.freezing import find_frozen, parameter_groups, trained_parameters
from compress.training.losses import Loss, add_losses, pose_loss
from compress.training.norms import NORMS, recalibrate, share_norms
from compress.training.optimizers import build_optimizer
from compress.training.options import FineTuneOptions
from compress.training.processes import Processes
from compress.training.results import Best, FineTuneResult, StepLog
from compress.training.state import fingerprint, random_state, set_random_state
from compress.training.watchdog import Diverged, Rollback, Watchdog


class Run:
    """A network in training.

    Parameters are those of `compress.training.loop.finetune`. All processes of a run hold the same weights at all
    times, because they begin with the same and move by the same gradients.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Dataset,
        options: FineTuneOptions,
        pose: PoseSpec,
        teacher: nn.Module | None,
        processes: Processes,
    ) -> None:
        if any(n % pose.stride for n in options.size):
            raise UsageError(f"the training crop must be a multiple of the stride {pose.stride}", found=options.size)
        pieces = processes.count * options.accumulate
        if options.batch_size % pieces:
            raise UsageError(
                f"a batch must divide evenly into {pieces} pieces ({processes.count} processes x accumulate "
                f"{options.accumulate})",
                found=options.batch_size,
                hint=f"Take a batch_size that is a multiple of {pieces}",
            )
        self.options, self.pose, self.processes, self.device = options, pose, processes, processes.device
        labels = options.label_weight > 0 and (data.annotated or teacher is None)
        if not labels and teacher is None:
            raise UsageError(
                "there is nothing to learn from: annotations have no weight and there is no teacher",
                hint="Give a teacher, or a label_weight above 0",
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
        layout, device = torch.channels_last, self.device
        self.start = module
        self.module = copy.deepcopy(module).to(device=device, memory_format=layout)  # type: ignore[call-overload]
        if processes.count > 1:
            share_norms(self.module)
        self.frozen = find_frozen(self.module, options.freeze)
        self.trained = trained_parameters(self.module, self.frozen)
        self.distiller = None
        if teacher is not None:
            self.distiller = Distiller(self.module, teacher, options.distil, mean=processes.mean).to(device, layout)
        self.average = None if options.ema is None else copy.deepcopy(self.module).requires_grad_(False)
        self.amp = _amp_type(options.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp is torch.float16)
        self.optimizer = build_optimizer(parameter_groups(self.module, self.trained, options), options)
        self.watchdog = Watchdog(options.rollbacks)
        self.step = 0
        self.saved: int | None = None
        self.log: list[StepLog] = []
        self.scores: list[tuple[int, float]] = []
        self.best: Best | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self._kept_best: tuple[Best | None, dict[str, Tensor] | None] = (None, None)
        self._set_modes()

    @property
    def judged(self) -> nn.Module:
        """The network that is scored and returned: the moving average where there is one."""
        return self.module if self.average is None else self.average

    @property
    def stopped_early(self) -> bool:
        """Whether the last evaluations were none of them as good as the best."""
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
        """Submodules that run as in use also in training, so that their statistics stay."""
        fixed = list(self.frozen)
        if self.options.freeze_statistics:
            fixed += [part for part in self.module.modules() if isinstance(part, NORMS)]
        return fixed

    def load(self) -> Iterator[list[Batch]]:
        """What is left of the sequence of batches: this process's pieces of each."""
        pieces = self._load(self.step, self.options.steps)
        while step := list(itertools.islice(pieces, self.options.accumulate)):
            yield step

    def _load(self, start: int, steps: int) -> Iterator[Batch]:
        options, processes = self.options, self.processes
        return load_batches(
            self.examples,
            batch_size=options.batch_size,
            start=start,
            steps=steps,
            workers=options.workers,
            pin=self.device.type == "cuda",
            pieces=options.accumulate,
            share=(processes.number, processes.count),
        )

    def train_step(self, pieces: Sequence[Batch], rate: float) -> tuple[float, dict[str, float]]:
        """Forward and backward of each piece, and one optimizer step; the loss before it and its parts.

        Raises
        ------
        Diverged
            If the loss or the gradient is no number.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        found: list[Tensor] = []
        names: list[str] = []
        for piece in pieces:
            loss = self._loss(piece.to(self.device))
            names = list(loss.parts)
            found.append(torch.stack([loss.total.detach(), *loss.parts.values()]))
            self.scaler.scale(loss.total / len(pieces)).backward()
        total, *values = self.processes.mean(torch.stack(found).mean(0)).tolist()
        if not math.isfinite(total):
            raise Diverged(f"the loss is {total}")
        self.processes.average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, self.options.clip or math.inf)
        # With float16 the scaler leaves out a step that overflowed; without it such a step would destroy the weights.
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

    def _loss(self, batch: Batch) -> Loss:
        images = normalise(batch.images, self.pose)
        points = self.distiller.points if self.distiller else ()
        with self._arithmetic(), Taps(self.module, points) as taps:
            stages = self.module(images)
            losses = {}
            if batch.targets:
                losses["labels"] = (self.options.label_weight, pose_loss(stages, batch.targets, batch.mask))
            if self.distiller:
                losses["teacher"] = (1.0, self.distiller(images, stages, taps.features))
        return add_losses(losses)

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
        """Compute the statistics of the judged network anew on the first batches, always the same, if asked to."""
        count = self.options.recalibrate_norms
        if count == 0:
            return
        names = {part: name for name, part in self.module.named_modules()}
        fixed = [self.judged.get_submodule(names[part]) for part in self._fixed_parts()]
        images = (normalise(piece.images.to(self.device), self.pose) for piece in self._load(0, count))
        with self._arithmetic():
            recalibrate(self.judged, images, fixed)

    def keep(self) -> None:
        """Keep this step in memory to go back to."""
        self.watchdog.keep({**self._changing(), "log": len(self.log), "scores": len(self.scores)})
        # These are replaced and never changed, so that they need not be copied.
        self._kept_best = (self.best, self.best_weights)

    def roll_back(self, trouble: Diverged, state_path: Path | None) -> Rollback:
        """Go back to what was kept, to go on more slowly.

        Raises
        ------
        CompressError
            If that has been tried often enough.
        """
        step = self.step + 1
        found = self.watchdog.roll_back(trouble, step, self._return)
        if found is not None:
            return found
        hint = f"Lower the learning rate (it was {self.options.learning_rate:g})"
        if self.watchdog.returns:
            tries = self.watchdog.returns
            hint += f"; going back {tries} time{'s' * (tries > 1)} and halving it each time was not enough"
        if self.saved is not None:
            hint += f"; the training state of step {self.saved} is kept in {state_path}"
        raise CompressError(f"training diverged at step {step}: {trouble}", hint=hint)

    def _return(self, state: dict[str, Any]) -> int:
        self._take(state)
        del self.log[state["log"] :], self.scores[state["scores"] :]
        self.best, self.best_weights = self._kept_best
        set_random_state(state["random"], self.device)
        return self.step

    def _changing(self) -> dict[str, Any]:
        """What a step changes, of this process; the tensors themselves."""
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
        """Everything that changes, of all processes, as plain containers and tensors; all of them must call it."""
        changing = self._changing()
        return {
            **changing,
            "random": self.processes.gather(changing["random"]),
            "conditions": self.conditions,
            "best": None if self.best is None else {**asdict(self.best), "weights": self.best_weights},
            "scores": self.scores,
            "log": [asdict(entry) for entry in self.log],
            "rollbacks": self.watchdog.returns,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave, whatever the number of processes then and now."""
        try:
            self._take(state)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the training state is of another network: {error}", hint="Start again without --resume"
            ) from error
        self.saved = self.step
        self.log = [StepLog(**entry) for entry in state["log"]]
        self.scores = [(step, score) for step, score in state["scores"]]
        self.watchdog.returns = state["rollbacks"]
        if state["best"] is not None:
            self.best = Best(state["best"]["step"], state["best"]["score"])
            self.best_weights = state["best"]["weights"]
        if self.processes.number < len(state["random"]):
            set_random_state(state["random"][self.processes.number], self.device)
        else:
            torch.manual_seed(process_seed((self.options.seed, self.step), self.processes.number))

    def result(self) -> FineTuneResult:
        """The outcome."""
        if self.best_weights is None:
            self.recalibrate()
        # Not a copy of the trained one: of several processes that has layers that only they can run.
        module = copy.deepcopy(self.start).to("cpu")
        module.load_state_dict(self.judged.state_dict() if self.best_weights is None else self.best_weights)
        return FineTuneResult(
            module.requires_grad_(True).eval(),
            tuple(self.log),
            tuple(self.scores),
            self.best,
            self.distiller.points if self.distiller else (),
            self.watchdog.returns,
        )


def process_seed(seed: Sequence[int], number: int) -> int:
    """A seed for what is random in the network in a process, such as dropout; the first one's is the run's own."""
    if number == 0 and len(seed) == 1:
        return seed[0]
    return int(np.random.SeedSequence((*seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _amp_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The type that the forward pass computes in, None for float32."""
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if amp == "fp16" and device.type == "cpu":
        raise UsageError("float16 training needs a GPU", found=amp, hint="Use bf16 or off on the CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
