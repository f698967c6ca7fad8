"""The loop that both stages share: epochs of optimizer steps, validation, the log, and exact resume.

A training script brings a model, its optimizer and one function

    loss_fn(batch) -> (mean_loss, weight)    # weight: how many patches or tokens the mean is over

and writes its loop over epochs itself; `Trainer` does what lies inside, and its `Stepper` what lies inside a
step.  Training and validation call the same `loss_fn`, and every reported loss is the mean over all patches
or tokens, not a mean of batch means.

Where a run stands is one object, `Progress`.  Everything random is a pure function of the seed and of that
position (training/sampling.py), so a run that goes on from a checkpoint equals one that never stopped.
"""

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from support import distributed, interrupts
from support.devices import autocast
from support.errors import RunError, UsageError
from support.progress_bars import progress_bar
from support.remedies import check_command
from training import checkpoints
from training.config import TrainingConfig, in_mid_epoch
from training.contents import restoring
from training.epoch_log import write_log
from training.network import wrap
from training.optimizer import restore_moments
from training.progress import Progress
from training.sampling import mix
from training.step import LossFunction, PendingReport, Report, Stepper, to_device


class Queued(NamedTuple):
    """A step on the device whose report has not been read."""

    number: int
    image_ids: list[torch.Tensor]  # of this process's micro-batches
    report: PendingReport


class Trainer:
    """Trains one model.  As a context manager it saves the run when a signal or an error stops it.

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
        loss_fn: LossFunction,
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
        self.sampler = train_loader.batch_sampler
        self.steps_per_epoch = self.sampler.steps
        self.stepper = Stepper(loss_fn, optimizer, config, device)
        self.progress = Progress()
        self._wrapped = self.model
        self._learning: tuple[bool, ...] | None = None  # which parameters did when it was wrapped
        self.lag = 1 if device.type == "cuda" else 0  # steps queued on the device before a report is read
        self._queue: deque[Queued] = deque()
        self._ending: tuple[int, Exception] | None = None  # after which step to raise what
        self._last_save = time.monotonic()
        self._newest: Path | None = None  # checkpoint written, or gone on from with the same configuration
        if resume is not None:
            with restoring(resumed, optimizer):
                self._restore(resume)
            if resume["config"] == contents["config"]:
                self._newest = resumed.resolve()
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
        """Does what is left of the current epoch, and saves it; returns the epoch's training figures.

        The epoch is on the disk before anything else runs: whatever fails in validation, a resume goes
        straight there.
        """
        progress, config = self.progress, self.config
        self.prepare_network()
        self.stepper.gradients_seen = False
        self.sampler.set_epoch(progress.epoch, start_step=progress.step)
        batches = iter(self.train_loader)
        started = time.perf_counter() - progress.seconds
        with self._bar(f"epoch {progress.epoch + 1}", "step", self.steps_per_epoch, progress.step) as bar:
            for number in self._steps_left():
                self.queue_step(number, list(islice(batches, config.accumulation_steps)))
                last = self._read_reports(self.lag)
                progress.seconds = time.perf_counter() - started
                bar.update()
                if last is not None:
                    bar.set_postfix_str(f"loss {last.loss:.4f}", refresh=False)
                self._end_if_due(number)
                self._save_if_due()
            self._read_reports(0)
            self._end_if_due(self.steps_per_epoch + self.lag)
        progress.trained = True
        self.save()
        taken = progress.step - progress.skipped
        return {
            "train_loss": progress.loss_sum / progress.weight if progress.weight else math.nan,
            "gradient_norm": progress.norm_sum / taken if taken else math.nan,
            "learning_rate": config.learning_rate * self.stepper.rate(progress.epoch + 1),
            "samples_per_second": len(self.train_loader.dataset) / max(progress.seconds, 1e-6),
            "skipped_steps": progress.skipped,
            "unreadable_samples": progress.unreadable,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean loss over the validation split, by the same `loss_fn` as in training."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in self._bar("validation", "batch", batches=self.val_loader):
            interrupts.check()
            with autocast(self.device, self.stepper.precision):
                loss, weight = self.loss_fn(to_device(batch, self.device))
            sums += torch.stack([loss.double() * weight, weight.double()])
        loss_sum, weight_sum = distributed.total(sums).tolist()
        return {"val_loss": loss_sum / weight_sum if weight_sum else math.nan}

    def end_epoch(self, figures: dict[str, Any]) -> None:
        """Ends the epoch: enters its figures, saves, prunes, and writes the log."""
        progress = self.progress
        seconds = round(progress.seconds, 2)
        progress.finish_epoch()
        progress.history.append({"epoch": progress.epoch, **figures, "seconds": seconds})
        self.save()
        if distributed.is_main():
            write_log(self.folder / "log.jsonl", progress.history)

    def save(self) -> None:
        """Writes a checkpoint of this moment, unless there is one, and prunes the old ones.

        Only the main process does.
        """
        self._last_save = time.monotonic()
        if not distributed.is_main():
            return
        self._read_reports(0)
        path = self.folder / checkpoints.name(self.progress.epoch, self.progress.step)
        if path.resolve() == self._newest:
            return
        checkpoints.save(
            path,
            {
                "schema": checkpoints.SCHEMA,
                "stage": self.stage,
                **self.contents,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.stepper.scaler.state_dict(),
                "progress": asdict(self.progress),
                "samples": len(self.train_loader.dataset),
            },
        )
        self._newest = path.resolve()
        checkpoints.prune(self.folder, path, self.config.keep_checkpoints, self.progress.history)

    # --- steps and their reports ---

    def _steps_left(self) -> range:
        """The numbers of the steps still to do in the current epoch.

        They are none where an earlier run did all of them, however many that was with its batch size.
        """
        return range(0) if self.progress.trained else range(self.progress.step, self.steps_per_epoch)

    def queue_step(self, number: int, micro_batches: list[NamedTuple]) -> None:
        """Sends one optimizer step to the device; its report waits to be read."""
        for why in (why for batch in micro_batches for why in batch.unreadable):
            tqdm.write(f"warning: left out: {why}", file=sys.stderr)
        self.model.train()
        seed = mix(self.config.seed, self.progress.epoch, number, distributed.rank())
        plan = self.sampler.micro_batches(number)
        epochs = self.progress.epoch + number / self.steps_per_epoch
        try:
            report = self.stepper.step(self.network, micro_batches, plan, seed, epochs)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"the GPU cannot hold {len(plan[0].indices)} samples at once: raise accumulation_steps "
                "in your YAML file, which changes no result, and go on with -c last --config FILE"
            ) from error
        self._queue.append(Queued(number, [batch.image_ids for batch in micro_batches], report))

    def _read_reports(self, waiting: int) -> Report | None:
        """Reads queued reports, leaving the newest `waiting` in the queue; returns the last one read."""
        report = None
        while len(self._queue) > waiting:
            queued = self._queue.popleft()
            report = queued.report.read()
            self._account(queued, report)
        return report

    def _account(self, queued: Queued, report: Report) -> None:
        """Enters a step into the run's figures, and notes if the run is to end.

        All processes read the same report but not in the same moment, and none may leave while others wait
        for it.  So they end after the step at which the last of them is sure to have read it.
        """
        progress = self.progress
        progress.step += 1
        progress.unreadable += int(report.unreadable)
        if report.taken:
            progress.updates += 1
            progress.bad_steps = 0
            progress.loss_sum += report.loss_sum
            progress.weight += report.weight
            progress.norm_sum += report.gradient_norm
        else:
            progress.skipped += 1
            progress.bad_steps += report.bad
            if report.bad or distributed.is_main():  # each process has bad images of its own to name
                why = self._why_skipped(queued, report)
                tqdm.write(
                    f"epoch {progress.epoch + 1}, step {progress.step}: skipped: {why}", file=sys.stderr
                )
        reason = self._reason_to_end(report)
        if reason and self._ending is None:
            self._ending = queued.number + self.lag, reason

    @staticmethod
    def _why_skipped(queued: Queued, report: Report) -> str:
        if report.empty:
            return "none of its images can be read"
        if report.overflow:
            return (
                f"its gradient is too large for float16 at a loss scale of {report.loss_scale:g}, which is "
                "halved; this is normal now and then"
            )
        ids = torch.cat(queued.image_ids).tolist()
        return f"loss {report.loss}, gradient norm {report.gradient_norm}; images {ids}"

    def _reason_to_end(self, report: Report) -> Exception | None:
        progress, config = self.progress, self.config
        samples = len(self.train_loader.dataset)
        allowed = int(config.max_bad_fraction * samples)
        if report.unreadable and progress.unreadable > allowed:
            return RunError(
                f"{progress.unreadable} of {samples} samples have pictures that cannot be read, and "
                f"max_bad_fraction {config.max_bad_fraction} allows {allowed}; list them with "
                f"`{check_command(self.train_loader.dataset.data.paths)}`, put whole files in their places "
                "and go on with -c last, or raise max_bad_fraction in your YAML file and go on with -c last "
                "--config FILE"
            )
        if progress.bad_steps >= config.max_bad_steps:
            return RunError(
                f"{progress.bad_steps} steps in a row had a loss or gradient that is not finite, the last at "
                f"epoch {progress.epoch + 1}, step {progress.step}; edit your YAML file: a lower "
                "learning_rate, a gradient_clip or precision float32, and go on with -c last --config FILE "
                "(without --config an edited file is not read), or with an earlier checkpoint"
            )
        if report.stop:
            return interrupts.Interrupted(interrupts.received() or signal.SIGTERM)
        return None

    def _end_if_due(self, number: int) -> None:
        if self._ending and number >= self._ending[0]:
            raise self._ending[1]

    # --- interruption ---

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Saves when a signal or a foreseen error stops the run.

        A process that left first shows in the others as a broken connection.
        """
        left_alone = distributed.is_broken_connection(error)
        if isinstance(error, RunError | interrupts.Interrupted) or left_alone:
            self.save()
        if left_alone:
            interrupts.check()
            raise RunError(
                "another process of this run ended before its time: its message says why"
            ) from error

    # --- small parts ---

    @property
    def network(self) -> nn.Module:
        """What `loss_fn` calls.  Validation takes the plain model: it is over before it would be compiled."""
        return self._wrapped if self.model.training else self.model

    def prepare_network(self) -> None:
        """Wraps the model for compilation and for many processes; anew if other parameters are to learn."""
        learning = tuple(parameter.requires_grad for parameter in self.model.parameters())
        if learning != self._learning:
            uneven = self.stage == "captioner"
            self._wrapped = wrap(self.model, self.config.compile, self.device, uneven)
            self._learning = learning

    def _bar(
        self, what: str, unit: str, total: int | None = None, done: int = 0, batches: DataLoader | None = None
    ) -> tqdm:
        """A progress bar, on a terminal and in the main process only."""
        hidden = not distributed.is_main()
        return progress_bar(
            batches, what=what, unit=unit, total=total, done=done, log=False, hidden=hidden, leave=False
        )

    def _save_if_due(self) -> None:
        if time.monotonic() - self._last_save > 60 * self.config.checkpoint_minutes:
            self.save()

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            progress = Progress(**state["progress"])
            self.model.load_state_dict(state["model"])
            restore_moments(self.optimizer, state["optimizer"])
            if state["scaler"]:  # empty where the run was not in float16 so far
                self.stepper.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"the checkpoint does not fit this model: {error}") from error
        samples = len(self.train_loader.dataset)
        if in_mid_epoch(state) and state["samples"] != samples:
            raise UsageError(
                f"the checkpoint stands in the middle of an epoch of {state['samples']} samples, the data "
                f"has {samples}; use the same data and the same -s, or a checkpoint from the end of an epoch"
            )
        if progress.bad_steps >= self.config.max_bad_steps:
            progress.bad_steps = 0  # they ended the run; it is tried anew
        progress.trained = progress.step > 0 and not in_mid_epoch(state)
        self.progress = progress
