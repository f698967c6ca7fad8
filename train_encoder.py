"""Pre-trains the ViT inside a masked autoencoder, on images alone (He et al. 2021).

    python train_encoder.py                       the write-up's ViT-B/16 on COCO
    python train_encoder.py -c last               go on from the newest checkpoint (or name one)
    python train_encoder.py --images DIR ...      on any folders of images, sub-folders included
    python train_encoder.py --sample              a small ViT on the drawn sample data set, minutes on a CPU
    python train_encoder.py --config recipes/modern/mae_config.yaml --set learning_rate=3e-4
    torchrun --nproc_per_node=8 train_encoder.py  the same on eight GPUs

At the end of every epoch it saves `checkpoints/encoder/checkpoint{N}.pt`, N being the epochs completed, and
writes `log.jsonl` beside it.  SIGTERM and Ctrl-C save and end the run; `-c last` goes on exactly there.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from coco_loader import LoaderOptions, get_coco_loader
from coco_samples import ImageBatch
from contrastive import contrastive_loss, recolored
from image_captioner import (
    AutoEncoderShape,
    ImageAutoEncoder,
    masked_pixels,
    normalize_patches,
    random_masking,
)
from image_transforms import EvaluationTransform, TrainingTransform, normalize
from own_data.images_only import add_images_options, open_images, require_one_source
from paths import paths_from_options
from reconstruction import (
    Reconstruction,
    ReconstructionConfig,
    Reconstructor,
    new_auto_encoder,
    require_auto_encoder,
)
from support import command_line, distributed
from support.configuration import bounded
from support.files import require_unix
from training.config import TrainingConfig
from training.loop import Trainer
from training.optimizer import new_optimizer, warmup_then_cosine
from training.run import open_run
from training.step import Stepper, gradient_scaler


@dataclass(frozen=True, kw_only=True)
class MaeConfig(ReconstructionConfig, TrainingConfig):
    """The keys of `mae_config.yaml`."""

    STAGE, FILE, SHAPE = "encoder", "mae_config", AutoEncoderShape
    KEPT_KEYS = (*TrainingConfig.KEPT_KEYS, "contrastive_weight")
    EPOCH_KEYS = (*TrainingConfig.EPOCH_KEYS, "splits", "crops_per_image")

    splits: tuple[Literal["train", "val", "unlabeled"], ...]  # whose images to train on
    crops_per_image: int = bounded(at_least=1, at_most=1000)  # in an epoch, each a sample of its own

    def __post_init__(self) -> None:
        ReconstructionConfig.__post_init__(self)
        TrainingConfig.__post_init__(self)
        if not self.splits:
            raise ValueError("splits: expected at least one of train, val, unlabeled; got none")


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Pre-train the ViT inside a masked autoencoder.")
    parser.add_argument("-c", dest="checkpoint", metavar="CKPT", help="go on from a path, a name, or `last`")
    command_line.add_training_options(parser)
    add_images_options(parser)
    options = parser.parse_args(arguments)
    require_one_source(options)
    require_unix("training")
    with distributed.process_group(training=True) as device:
        train(options, device)


def train(options: argparse.Namespace, device: torch.device) -> None:
    """One run from the options of the command line to the last checkpoint."""
    # 1. Hyperparameters, device, checkpoint

    paths = paths_from_options(options)
    run = open_run(options, paths, MaeConfig, require_auto_encoder, device, open_data=open_images)
    config = run.config
    if run.is_complete(options.epochs):
        return

    # 2. The elements of the training loop

    auto_encoder = new_auto_encoder(config).to(device)
    groups = [{"params": list(auto_encoder.parameters()), "base_lr": config.learning_rate}]
    optimizer = new_optimizer(auto_encoder, groups, config)
    scheduler = warmup_then_cosine(config)
    scaler = gradient_scaler(config, device)
    loss_fn = partial(two_task_loss if config.contrastive_weight else reconstruction_loss, config=config)
    stepper = Stepper(loss_fn, optimizer, scheduler, scaler, config, device)

    splits = run.data.splits_with_images(config.splits)
    data = run.data.for_training(splits, config.image_size, run.checkpoint)
    crops = {"crops_per_image": config.crops_per_image, "crop_pairs": config.contrastive_weight > 0}
    shared = LoaderOptions.of_run(config, options.subset, **crops)
    loading = {"num_workers": config.num_workers, "mode": "image_only", "data": data, "options": shared}
    train_transform = TrainingTransform(config.image_size, config.crop_scale)
    val_transform = EvaluationTransform(config.image_size)
    train_loader = get_coco_loader(splits, config.batch_size, train_transform, shuffle=True, **loading)
    val_loader = get_coco_loader("val", config.batch_size, val_transform, **loading)
    trainer = Trainer(run, auto_encoder, stepper, train_loader, val_loader, data.facts())

    # 3. The training loop

    if not options.images and len(splits) < len(config.splits) and distributed.is_main():
        where = run.paths["data"]
        print(f"splits: {where} has no unlabeled images: training on {', '.join(splits)}", flush=True)
    with run.lock, train_loader, val_loader, trainer:
        for epoch in trainer.epochs(options.epochs):
            figures = trainer.train()
            with trainer.mean_weights():
                figures |= trainer.validate()
                shown = first_reconstructions(auto_encoder, val_loader, config) if run.board else None
            trainer.end_epoch(figures)
            if run.board:
                run.board.pictures("reconstructions", shown[:4], epoch)


def first_reconstructions(
    auto_encoder: ImageAutoEncoder, loader: DataLoader, config: MaeConfig, count: int = 4
) -> Reconstruction:
    """Of the validation split's first images, under the same masks each time, to watch them change."""
    items = [loader.dataset[index] for index in range(min(count, len(loader.dataset)))]
    device = auto_encoder.decoder.mask_token.device
    transform = loader.dataset.transform
    reconstructor = Reconstructor(
        auto_encoder, transform, config.masking_ratio, config.normalize_targets, device
    )
    return reconstructor.reconstruct(torch.stack([item.image for item in items]))


def reconstruction_loss(
    network: nn.Module, batch: ImageBatch, config: MaeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error of the masked patches' pixels (He et al. 2021, section 3).

    Returns:
        The mean, and how many patches it is over.
    """
    images = normalize(batch.images)  # (B, 3, H, W)
    kept, masked = random_masking(batch.seeds, config.num_patches, config.masking_ratio)  # (B, K), (B, M)
    return reconstruction_error(network(images, kept, masked), images, masked, config)


def reconstruction_error(
    predicted: torch.Tensor, images: torch.Tensor, masked: torch.Tensor, config: MaeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of predicted patches (B, M, P·P·3); see `reconstruction_loss`."""
    target = masked_pixels(images, masked, config.patch_size)  # (B, M, P·P·3)
    if config.normalize_targets:
        target, _, _ = normalize_patches(target)
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))  # no sum in bfloat16
    loss = F.mse_loss(predicted, target.to(predicted.dtype))
    return loss, loss.new_full((), masked.numel())


def two_task_loss(
    network: nn.Module, batch: ImageBatch, config: MaeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of recoloured pairs of crops, and `contrastive_weight` times `contrastive_loss`.

    In validation it is `reconstruction_loss`, which thus can be compared whatever the weight is.
    """
    if not network.training:
        return reconstruction_loss(network, batch, config)
    images = normalize(recolored(batch.images, batch.seeds))  # (2B, 3, H, W)
    kept, masked = random_masking(batch.seeds, config.num_patches, config.masking_ratio)
    predicted, projected = network(images, kept, masked, project=True)
    loss, patches = reconstruction_error(predicted, images, masked, config)
    return loss + config.contrastive_weight * contrastive_loss(projected), patches


if __name__ == "__main__":
    command_line.run(main)
