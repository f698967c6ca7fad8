"""How fast both stages train: whole optimizer steps, without the loading of pictures.

Ours is the training scripts' own step (`Stepper`): pixels from uint8, masks, forward and backward pass,
the gradient's norm, AdamW.  The peers take their images normalized already, which costs them nothing here.
All read what each step came to, as their scripts do: on a GPU ours when the next step is under way.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat

import torch
from torch import nn

from benchmarks import floor, sizes
from benchmarks.measuring import Contestant, Row, Setting, compare
from benchmarks.peers import huggingface, original
from coco_samples import CaptionBatch, ImageBatch
from image_captioner import ImageAutoEncoder, build_captioner
from support import memory
from train_captioner import CaptionerConfig, caption_loss, parameter_groups, unfreeze
from train_encoder import MaeConfig, reconstruction_loss
from training.config import TrainingConfig
from training.network import wrap
from training.optimizer import new_optimizer, warmup_then_cosine
from training.progress import PendingReport
from training.sampling import MicroBatch
from training.step import LossFunction, Stepper, gradient_scaler

Network = Callable[[nn.Module], nn.Module]

CAPTIONS = 5  # of each image


def rows(setting: Setting) -> Iterator[Row]:
    """A step of each stage, beside the peers'."""
    yield from mae_rows(setting)
    yield from captioner_rows(setting, all_learn=False)
    yield from captioner_rows(setting, all_learn=True)


def mae_rows(setting: Setting) -> list[Row]:
    config, count = sizes.mae_config(setting), 64 if setting.on_gpu else 16
    batch = sizes.image_batch(setting, count)
    contestants = [Contestant("ours", lambda: mae_step(setting, config, batch))]
    if setting.original:
        contestants += original.in_each_precision(
            setting, lambda chosen: original.mae_step(chosen, config, batch)
        )
    if setting.transformers:
        contestants.append(huggingface.mae_step(setting, config, batch))
    return compare(
        setting, "MAE step, ViT-B/16 at 224 pixels", f"{count} images", "images/s", count, contestants,
        floor.mae_step(config, count),
    )  # fmt: skip


def captioner_rows(setting: Setting, all_learn: bool) -> list[Row]:
    config, mae = sizes.captioner_config(setting), sizes.mae_config(setting)
    count = 64 if setting.on_gpu else 4
    pairs = count * CAPTIONS
    batch = sizes.caption_batch(setting, count, CAPTIONS)
    contestants = [Contestant("ours", lambda: captioner_step(setting, config, mae, batch, all_learn))]
    if setting.original:
        one_by_one = batch._replace(images=batch.images.repeat_interleave(CAPTIONS, dim=0))
        contestants += original.in_each_precision(
            setting, lambda chosen: original.captioner_step(chosen, config, mae, one_by_one, all_learn)
        )
    return compare(
        setting,
        f"captioner step, {'all layers learn' if all_learn else 'encoder frozen'}",
        f"{pairs} pairs of {count} images, {sizes.TOKENS} tokens",
        "pairs/s",
        pairs,
        contestants,
        floor.captioner_step(config, mae, count, CAPTIONS, sizes.TOKENS, all_learn),
    )


def curves(setting: Setting) -> Iterator[Row]:
    """The cost of a step against the batch and the length of the captions, ours alone."""
    config, mae = sizes.captioner_config(setting), sizes.mae_config(setting)
    for count in (16, 64, 256) if setting.on_gpu else (1, 2, 4, 8):
        batch = sizes.image_batch(setting, count)
        yield from compare(
            setting, "MAE step against the batch", f"{count} images", "images/s", count,
            [Contestant("ours", lambda batch=batch: mae_step(setting, mae, batch))],
            floor.mae_step(mae, count),
        )  # fmt: skip
    count = 64 if setting.on_gpu else 2
    for tokens in (8, 14, 24, 48):
        batch = sizes.caption_batch(setting, count, CAPTIONS, tokens)
        yield from compare(
            setting, "captioner step, encoder frozen, against the captions' length",
            f"{count * CAPTIONS} pairs of {count} images, {tokens} tokens", "pairs/s", count * CAPTIONS,
            [Contestant("ours", lambda batch=batch: captioner_step(setting, config, mae, batch, False))],
            floor.captioner_step(config, mae, count, CAPTIONS, tokens, False),
        )  # fmt: skip


# --- ours ---


def mae_step(
    setting: Setting, config: MaeConfig, batch: ImageBatch, network: Network | None = None
) -> Callable[..., object]:
    """The first stage's step as train_encoder.py sets it up; see `step`.

    Args:
        network: makes of the model what is called in its place; None: what the script makes.
    """
    model = ImageAutoEncoder(config)
    model.to(setting.device).train()
    network = (network or partial(prepared, setting=setting))(model)
    groups = [{"params": list(model.parameters()), "base_lr": config.learning_rate}]
    return step(
        setting, network, partial(reconstruction_loss, config=config),
        new_optimizer(model, groups, config), config, batch,
    )  # fmt: skip


def captioner_step(
    setting: Setting, config: CaptionerConfig, mae: MaeConfig, batch: CaptionBatch, all_learn: bool,
    network: Network | None = None,
) -> Callable[..., object]:  # fmt: skip
    """The second stage's step as train_captioner.py sets it up, in its first epoch or in its last."""
    model = build_captioner(mae, config)
    model.to(setting.device).train()
    groups = parameter_groups(model, config.learning_rate, config.layer_decay)
    unfreeze(groups, len(groups) if all_learn else 1)
    network = (network or partial(prepared, setting=setting, uneven=True))(model)
    return step(
        setting, network, partial(caption_loss, pad_id=sizes.PAD_ID, label_smoothing=config.label_smoothing),
        new_optimizer(model, groups, config), config, batch,
    )  # fmt: skip


def prepared(model: nn.Module, setting: Setting, uneven: bool = False) -> nn.Module:
    """What the training loop calls in the model's place: compiled and distributed where the scripts do so."""
    return wrap(model, True, setting.device, uneven)


def step(
    setting: Setting, network: nn.Module, loss_fn: LossFunction, optimizer: torch.optim.Optimizer,
    config: TrainingConfig, batch: ImageBatch | CaptionBatch,
) -> Callable[..., object]:  # fmt: skip
    """One optimizer step after the other, as a function of two arguments, which both may be left out.

    They are the `lag`, after how many more steps a step's report is read, by default as in `Trainer`; and
    where batches come from, by default the same one again and again.
    """
    memory.keep_freed(setting.device)  # of this process, so the peers gain as much; see --peers-alone
    count = len(batch.images)
    config = replace(config, batch_size=count)
    schedule, scaler = warmup_then_cosine(config), gradient_scaler(config, setting.device)
    stepper = Stepper(loss_fn, optimizer, schedule, scaler, config, setting.device)
    plan = [MicroBatch(list(range(count)), real=True)]
    queue: deque[PendingReport] = deque()

    def run(lag: int = int(setting.on_gpu), batches: Iterator[ImageBatch] = repeat(batch)) -> None:  # noqa: B008
        queue.append(stepper.step(network, [next(batches)], plan, config.seed, epochs=0.0))
        while len(queue) > lag:
            queue.popleft().read()

    return run
