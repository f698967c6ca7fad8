"""The loop that both stages share: optimizer steps, validation, the log, and exact resume.

A training script brings a model, its optimizer and one function

    loss_fn(batch) -> (mean_loss, weight)    # weight: how many patches or tokens the mean is over

and writes its loop over epochs itself; `Trainer` does what lies inside.  Training and validation call the
same `loss_fn`, and every reported loss is the mean over all patches or tokens, not a mean of batch means.

Where a run stands is one object, `Progress`.  Everything random is a pure function of the seed and of that
position (support/randomness.py), so a run that goes on from a checkpoint equals one that never stopped.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from support import checkpoints, distributed, interrupts
from support.devices import autocast, choose_precision
from support.errors import RunError, UsageError
from support.logbook import write_log
from support.randomness import mix
from support.schedule import learning_rate_factor
from support.training_config import TrainingConfig


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps of the current epoch done; a step is one global batch
    updates: int = 0  # optimizer steps taken in all: the schedule's clock, which a skipped step leaves alone
    bad_steps: int = 0  # skipped in a row
    skipped: int = 0  # skipped in this epoch
    loss_sum: float = 0.0  # of the current epoch, over `weight` patches or tokens
    weight: float = 0.0
    seconds: float = 0.0  # spent training in the current epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch, as in log.jsonl


class Trainer:
    """Trains one model.  As a context manager it saves the run when a signal stops it.

    Args:
        stage: "encoder" or "captioner"; stands in the checkpoints.
        model: the module to train, on `device`.
        loss_fn: one forward pass and its loss; it calls `trainer.network`, not the model itself.
        optimizer: its groups carry their full rate as `base_lr`.
        config: the run's settings.
        train_loader: loader of the training split, shuffled, with an `EpochSampler`.
        val_loader: loader of the validation split in fixed order.
        folder: where checkpoints and `log.jsonl` go.
        contents: what a checkpoint holds beside the run itself, so that it can be used alone.
        resumed: the checkpoint file to go on from; None starts anew.
        resume: what that file holds.
    """

    def __init__(
        self,
        *,
        stage: str,
        model: nn.Module,
        loss_fn: Callable[[NamedTuple], tuple[torch.Tensor, torch.Tensor]],
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        train_loader: DataLoader,
        val_loader: DataLoader,
        folder: Path,
        contents: dict[str, Any],
        device: torch.device,
        resumed: Path | None = None,
        resume: dict[str, Any] | None = None,
    ):
        self.stage, self.model, self.loss_fn, self.optimizer = stage, model, loss_fn, optimizer
        self.config, self.contents, self.folder, self.device = config, contents, folder, device
        self.train_loader, self.val_loader = train_loader, val_loader
        self.precision = choose_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.sampler = train_loader.batch_sampler
        self.steps_per_epoch = self.sampler.steps
        self.progress = Progress()
        self.network = self.model
        self._last_save = time.monotonic()
        if resume is not None:
            self._restore(resume)
        distributed.wait_for_all()  # every process has read its checkpoint before the folder changes
        if distributed.is_main():
            checkpoints.prepare(folder, resumed)

    # --- the loop's parts, in the order in which a script calls them ---

    def epochs(self, until: int | None) -> Iterator[int]:
        """The numbers of the epochs still to do, from 1; a half-done one comes first.

        Args:
            until: stop when so many are completed in all; None does the whole schedule.
        """
        last = self.config.total_epochs if until is None else until
        while self.progress.epoch < last:
            yield self.progress.epoch + 1

    def train(self) -> dict[str, float]:
        """Does what is left of the current epoch; returns the epoch's training figures."""
        progress, config = self.progress, self.config
        self.prepare_network()
        self.sampler.set_epoch(progress.epoch, start_step=progress.step)
        batches = iter(self.train_loader)
        bar = tqdm(
            total=self.steps_per_epoch, initial=progress.step, desc=f"epoch {progress.epoch + 1}",
            unit="step", leave=False, dynamic_ncols=True, disable=None if distributed.is_main() else True,
        )  # fmt: skip
        started = time.perf_counter() - progress.seconds
        with bar:
            while progress.step < self.steps_per_epoch:
                loss, stop = self.step(list(islice(batches, config.accumulation_steps)))
                progress.seconds = time.perf_counter() - started
                if stop:
                    raise interrupts.Interrupted(interrupts.received() or signal.SIGTERM)
                bar.update()
                bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                self._save_if_due()
        return {
            "train_loss": progress.loss_sum / progress.weight if progress.weight else math.nan,
            "learning_rate": self._rate() * config.learning_rate,
            "samples_per_second": len(self.train_loader.dataset) / progress.seconds,
            "skipped_steps": progress.skipped,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean loss over the validation split, by the same `loss_fn` as in training."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in tqdm(
            self.val_loader, desc="validation", leave=False, disable=None if distributed.is_main() else True
        ):
            interrupts.check()
            with autocast(self.device, self.precision):
                loss, weight = self.loss_fn(to_device(batch, self.device))
            sums += torch.stack([loss.double() * weight, weight.double()])
        loss_sum, weight_sum = distributed.total(sums).tolist()
        return {"val_loss": loss_sum / weight_sum if weight_sum else math.nan}

    def complete(self, figures: dict[str, Any]) -> None:
        """Ends the epoch: enters its figures, saves, prunes, and writes the log."""
        progress = self.progress
        progress.epoch += 1
        progress.history.append({"epoch": progress.epoch, **figures, "seconds": round(progress.seconds, 2)})
        progress.step = progress.skipped = 0
        progress.loss_sum = progress.weight = progress.seconds = 0.0
        self.save()
        if distributed.is_main():
            write_log(self.folder / "log.jsonl", progress.history)

    def save(self) -> None:
        """Writes a checkpoint of this moment and prunes the old ones; only the main process does."""
        self._last_save = time.monotonic()
        if not distributed.is_main():
            return
        path = self.folder / checkpoints.name(self.progress.epoch, self.progress.step)
        checkpoints.save(
            path,
            {
                "schema": checkpoints.SCHEMA,
                "stage": self.stage,
                **self.contents,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": asdict(self.progress),
                "samples": len(self.train_loader.dataset),
            },
        )
        checkpoints.prune(self.folder, path, self.config.keep_checkpoints, self.progress.history)

    # --- interruption ---

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Saves when a signal stops the run.  A rank that left first shows here as a broken connection."""
        if error is None or interrupts.received() is None:
            return
        self.save()
        if not isinstance(error, interrupts.Interrupted):
            interrupts.check()

    # --- one optimizer step ---

    def step(self, micro_batches: list[NamedTuple]) -> tuple[float, bool]:
        """One optimizer step on one global batch, never on NaN or infinity.

        Returns:
            The batch's mean loss, and whether a process has been asked to stop.
        """
        progress, config = self.progress, self.config
        self.model.train()
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        torch.manual_seed(mix(config.seed, progress.epoch, progress.step, distributed.rank()))  # dropout

        # Every process adds up gradients of loss sums; a division by the global weight makes them the mean's.
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, weight, stop asked for
        plan = self.sampler.micro_batches(progress.step)
        for number, (batch, planned) in enumerate(zip(micro_batches, plan, strict=True), 1):
            with self._synchronised(number == len(micro_batches)):
                with autocast(self.device, self.precision):
                    loss, weight = self.loss_fn(to_device(batch, self.device))
                weight = weight * planned.real  # 0 for a stand-in: there are fewer samples than processes
                self.scaler.scale(loss * (weight / config.batch_size)).backward()
            sums[:2] += torch.stack([loss.detach().double() * weight, weight.double()])
        sums[2] = interrupts.received() is not None
        loss_sum, weight_sum, stop = distributed.total(sums).tolist()

        norm = self._mean_gradient(config.batch_size * distributed.world_size() / max(weight_sum, 1.0))
        if torch.isfinite(norm) and loss_sum - loss_sum == 0:
            self.scaler.step(self.optimizer)
            progress.updates += 1
            progress.bad_steps = 0
            progress.loss_sum += loss_sum
            progress.weight += weight_sum
        else:
            self._skip(micro_batches, loss_sum / max(weight_sum, 1.0), float(norm))
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        return loss_sum / max(weight_sum, 1.0), stop > 0

    def _mean_gradient(self, factor: float) -> torch.Tensor:
        """Scales the summed gradients to those of the mean, clips them, and returns their norm."""
        self.scaler.unscale_(self.optimizer)
        gradients = [
            p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        torch._foreach_mul_(gradients, factor)
        norm = nn.utils.get_total_norm(gradients)
        if self.config.gradient_clip is not None:
            torch._foreach_mul_(gradients, torch.clamp(self.config.gradient_clip / (norm + 1e-6), max=1.0))
        return norm

    def _skip(self, micro_batches: list[NamedTuple], loss: float, norm: float) -> None:
        progress = self.progress
        progress.bad_steps += 1
        progress.skipped += 1
        ids = [i for batch in micro_batches for i in batch.image_ids.tolist()]
        tqdm.write(
            f"epoch {progress.epoch + 1}, step {progress.step + 1}: loss {loss}, gradient norm {norm}: "
            f"skipped; images {ids}",
            file=sys.stderr,
        )
        if progress.bad_steps >= self.config.max_bad_steps:
            self.save()
            raise RunError(
                f"{progress.bad_steps} steps in a row had a loss or gradient that is not finite, the last at "
                f"epoch {progress.epoch + 1}, step {progress.step + 1}; try a lower learning_rate, a "
                "gradient_clip, or precision float32, and go on with -c last"
            )

    # --- small parts ---

    def _rate(self) -> float:
        config = self.config
        return learning_rate_factor(
            self.progress.updates,
            updates_per_epoch=self.steps_per_epoch,
            warmup_epochs=config.warmup_epochs,
            total_epochs=config.total_epochs,
            start_factor=config.start_factor,
            floor=config.min_learning_rate / config.learning_rate,
        )

    def prepare_network(self) -> None:
        """Wraps the model for compilation and for many processes; anew each epoch, as groups get unfrozen."""
        self.network = self.model
        if self.config.compile and self.device.type == "cuda":
            self.network = torch.compile(self.network)
        if distributed.world_size() > 1:
            self.network = nn.parallel.DistributedDataParallel(self.network, broadcast_buffers=False)

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Gradients travel between processes only with the last micro-batch of a step."""
        if last or distributed.world_size() == 1:
            return nullcontext()
        return self.network.no_sync()

    def _save_if_due(self) -> None:
        if time.monotonic() - self._last_save > 60 * self.config.checkpoint_minutes:
            self.save()

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            progress = Progress(**state["progress"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"the checkpoint does not fit this model: {error}") from error
        samples = len(self.train_loader.dataset)
        if progress.step and state["samples"] != samples:
            raise UsageError(
                f"the checkpoint stands in the middle of an epoch of {state['samples']} samples, the data "
                f"has {samples}; use the same data and the same -s, or a checkpoint from the end of an epoch"
            )
        self.progress = progress


def to_device(batch: NamedTuple, device: torch.device) -> NamedTuple:
    """The batch with its tensors on `device`; lists stay as they are."""
    return type(batch)(
        *(item.to(device, non_blocking=True) if torch.is_tensor(item) else item for item in batch)
    )
