"""The loop that both stages share: epochs of optimizer steps, validation, the log, and exact resume.

A training script brings a model, its optimizer, schedule and scaler, and one function

    loss_fn(network, batch) -> (mean_loss, weight)    # weight: how many patches or tokens the mean is over

and writes its loop over epochs itself; `Trainer` does what lies inside, and `Stepper` what lies inside a
step.  Training and validation call the same `loss_fn`, and every reported loss is the mean over all patches
or tokens, not a mean of batch means.

Where a run stands is one object, `Progress`.  Everything random is a pure function of the seed and of that
position (training/sampling.py), so a run that goes on from a checkpoint equals one that never stopped.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
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
from support.configuration import config_to_dict
from support.devices import autocast
from support.errors import RunError, UsageError
from support.progress_bars import progress_bar
from training import checkpoints
from training.config import in_mid_epoch
from training.contents import restoring
from training.network import Network
from training.optimizer import WeightAverage, restore_moments
from training.progress import Progress, Queued, Report, epoch_line, reason_to_end, write_log
from training.run import Run, first_line
from training.sampling import mix
from training.step import Stepper, to_device


class Trainer:
    """Trains one model.  As a context manager it saves the run when a signal or an error stops it.

    Args:
        run: from `open_run`; its folder is taken here.
        model: the module to train, on the run's device.
        stepper: takes its steps; knows loss and optimizer.
        train_loader: loader of the training split, shuffled, with an `EpochSampler`.
        val_loader: loader of the validation split in fixed order.
        contents: what a checkpoint holds beside the run itself, so that it can be used alone.
        trained: the model's first weights are to stay in the running mean of the weights.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        stepper: Stepper,
        train_loader: DataLoader,
        val_loader: DataLoader,
        contents: dict[str, Any],
        trained: bool = False,
    ):
        self.run, self.config, self.folder, self.device = run, run.config, run.folder, run.device
        self.model, self.stepper, self.optimizer = model, stepper, stepper.optimizer
        self.train_loader, self.val_loader = train_loader, val_loader
        self.contents = {"config": config_to_dict(run.config), **contents}
        decay = self.config.ema_decay
        self.average = WeightAverage(model, decay, trained) if decay else None
        stepper.average = self.average
        self.sampler = train_loader.batch_sampler
        self.steps_per_epoch = self.sampler.steps
        self.progress = Progress()
        self.network = Network(
            model,
            run.config.compile,
            run.device,
            uneven=run.config.STAGE == "captioner",
            accumulation_steps=run.config.accumulation_steps,
        )
        self.lag = 1 if run.device.type == "cuda" else 0  # steps queued on the device before a report is read
        self._queue: deque[Queued] = deque()
        self._ending: tuple[int, Exception] | None = None  # after which step to raise what
        self._last_save = time.monotonic()
        self._newest: Path | None = None  # checkpoint written, or resumed with the same configuration
        if run.checkpoint is not None:
            with restoring(run.checkpoint_path, self.optimizer):
                self._restore(run.checkpoint)
            if run.checkpoint["config"] == self.contents["config"]:
                self._newest = run.checkpoint_path.resolve()
        run.take_folder()  # which all processes leave together: each has read its checkpoint
        if distributed.is_main():
            checkpoints.prepare(self.folder, run.checkpoint_path)
            print(first_line(run, model, train_loader.dataset), flush=True)

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
        self.network.prepare()
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
            "learning_rate": config.learning_rate * self.stepper.scheduler(progress.epoch + 1),
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
                loss, weight = self.stepper.loss_fn(self.network.current, to_device(batch, self.device))
            sums += torch.stack([loss.double() * weight, weight.double()])
        loss_sum, weight_sum = distributed.total(sums).tolist()
        return {"val_loss": loss_sum / weight_sum if weight_sum else math.nan}

    def mean_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the running mean of its weights, if the run keeps one."""
        return self.average.in_place() if self.average else nullcontext()

    def end_epoch(self, figures: dict[str, Any]) -> None:
        """Ends the epoch: enters its figures, saves, prunes, prints its line and writes the logs."""
        progress, unit = self.progress, self.train_loader.dataset.unit
        seconds = round(progress.seconds, 2)
        progress.finish_epoch()
        progress.history.append({"epoch": progress.epoch, **figures, "seconds": seconds})
        self.save()
        if distributed.is_main():
            write_log(self.folder / "log.jsonl", progress.history)
            print(epoch_line(progress.history[-1], self.config.total_epochs, unit), flush=True)
        if self.run.board:
            self.run.board.figures(progress.history[-1], self.optimizer, unit)

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
                "stage": self.config.STAGE,
                **self.contents,
                **self._weights(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.stepper.scaler.state_dict(),
                "progress": asdict(self.progress),
                "samples": len(self.train_loader.dataset),
            },
        )
        self._newest = path.resolve()
        checkpoints.prune(self.folder, path, self.config.keep_checkpoints, self.progress.history)

    def _weights(self) -> dict[str, Any]:
        """What a checkpoint holds of the weights: those to use, and those to train on if they are others."""
        if self.average is None:
            return {"model": self.model.state_dict()}
        return {
            "model": self.average.state_dict(),
            "last_weights": self.model.state_dict(),
            "averaged_steps": self.average.steps,
        }

    # --- steps and their reports ---

    def _steps_left(self) -> range:
        """The numbers of the steps still to do in the current epoch.

        They are none where an earlier run did all of them, however many that was with its batch size.
        """
        return range(0) if self.progress.trained else range(self.progress.step, self.steps_per_epoch)

    def queue_step(self, number: int, micro_batches: list[NamedTuple]) -> None:
        """Sends one optimizer step to the device; its report waits to be read."""
        plan = self.sampler.micro_batches(number)
        for batch, planned in zip(micro_batches, plan):
            for why in batch.unreadable if planned.real else ():
                tqdm.write(f"warning: left out: {why}", file=sys.stderr)
        self.model.train()
        seed = mix(self.config.seed, self.progress.epoch, number, distributed.rank())
        epochs = self.progress.epoch + number / self.steps_per_epoch
        try:
            report = self.stepper.step(self.network.current, micro_batches, plan, seed, epochs)
        except torch.OutOfMemoryError as error:
            or_less = " or set cache_images: false" if self.config.cache_images else ""
            raise RunError(
                f"the GPU cannot hold {len(plan[0].indices)} samples at once: raise "
                f"accumulation_steps{or_less} in your YAML file, which changes no more than dropout's draws "
                "and the size of a contrastive loss's comparisons, and go on with -c last --config FILE"
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
                why = queued.why_skipped(report)
                tqdm.write(
                    f"epoch {progress.epoch + 1}, step {progress.step}: skipped: {why}", file=sys.stderr
                )
        reason = reason_to_end(report, progress, self.config, self.train_loader.dataset)
        if reason and self._ending is None:
            self._ending = queued.number + self.lag, reason

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
        foreseen = isinstance(error, RunError | interrupts.Interrupted) or left_alone
        if foreseen and not self.stepper.updating:  # or weights have moved, and the step is not counted
            self.save()
        if left_alone:
            interrupts.check()
            raise RunError(
                "another process of this run ended before its time: its message says why"
            ) from error

    # --- small parts ---

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
            self.model.load_state_dict(state.get("last_weights", state["model"]))
            if self.average:
                self.average.load_state_dict(state["model"], state.get("averaged_steps", 0))
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
