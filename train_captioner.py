"""Trains the captioner: the pre-trained ViT, unfrozen from the top, and a caption decoder.

    python train_captioner.py -p last             on the newest encoder of train_encoder.py (or name one)
    python train_captioner.py -c last             go on from the newest captioner checkpoint (or name one)
    python train_captioner.py --from-scratch      no pre-training, for comparison
    python train_captioner.py --self-critical -c last     then: learn from the score of its own captions
    python train_captioner.py --sample -p last    on the drawn sample data set, minutes on a CPU
    torchrun --nproc_per_node=8 train_captioner.py -p last

Every `eval_freq` epochs it captions the validation split by beam search and scores it with BLEU-4 and CIDEr,
without the consensus that the configuration may want of the finished captioner.
At the end of every epoch it saves `checkpoints/captioner/checkpoint{N}.pt`, all that caption.py needs.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from captioner import Captioner, CaptioningConfig, new_captioner, require_captioner, saved_encoder
from coco.data import CocoData, load_data_tokenizer
from coco.split_file import warn_of_other_split
from coco.tokenizer_choice import require_same_tokenizer, require_tokenizer_of, smaller_tokenizer
from coco_loader import ImgFirstDataset, LoaderOptions, get_coco_loader
from coco_samples import CaptionBatch
from evaluate_captioner import EvaluationConfig, caption_split, require_references, score_captions, scoring_of
from image_captioner import AutoEncoderShape, CaptionerShape, ImageEncoder, PatchChoice, visible_patches
from image_transforms import TrainingTransform, normalize
from images.image_folders import image_name
from paths import paths_from_options
from reconstruction import require_auto_encoder
from scoring.assessment import caption_statistics
from scoring.comparison import Scoring
from self_critical import image_loaders, new_critic
from support import command_line, distributed
from support.configuration import bounded, config_to_dict, load_config, positive
from support.errors import UsageError
from support.files import require_unix
from train_encoder import MaeConfig
from training import checkpoints
from training.config import TrainingConfig
from training.loading import Loader
from training.loop import Trainer
from training.optimizer import new_optimizer, warmup_then_cosine
from training.run import Run, open_run
from training.self_critical_run import open_stage
from training.step import Stepper, gradient_scaler
from transformer_components.encoder_decoder import TransformerEncoderDecoder
from transformer_components.sublayers import set_drop_path


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig(CaptioningConfig, EvaluationConfig, TrainingConfig):
    """The keys of `captioner_config.yaml`.  The encoder's shape comes from its checkpoint."""

    STAGE, FILE, SHAPE = "captioner", "captioner_config", CaptionerShape
    EPOCH_KEYS = (*TrainingConfig.EPOCH_KEYS, "captions_per_image", "length_buckets")

    # Captions per image in a batch; 1: plain (image, caption) pairs; more: each image is encoded once.
    captions_per_image: int = bounded(at_least=1, at_most=1000)
    length_buckets: bool  # batches of captions of similar length: less padding, less variety
    label_smoothing: float = bounded(at_least=0, below=1)
    # The epoch in which the top encoder layer starts to learn; each later one unfreezes one group more.
    # Below 1, several learn from the first epoch on.
    unfreeze_start_epoch: int
    layer_decay: float = bounded(
        above=0, at_most=1
    )  # learning rate of each group, relative to the group above it
    # Of the encoder's top layer, how often each sublayer is left out of a sample in training; 0 for the
    # lowest layer.
    drop_path: float = bounded(at_least=0, below=1)
    # Of an image's patches, the share that the encoder does not see in training, others each time.
    patch_dropout: float = bounded(at_least=0, below=1)
    eval_freq: int = positive()  # epochs between two BLEU-4 scores
    # Of the self-critical stage, see self_critical.py
    self_critical_epochs: int = positive()
    self_critical_learning_rate: float = positive()  # falls from there to 0
    self_critical_samples: int = bounded(at_least=2, at_most=1000)  # captions drawn of each image
    self_critical_ema_decay: float | None = bounded(at_least=0, below=1)  # null: as ema_decay


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Train the captioner on picture-caption pairs.")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "-p", dest="pretrained", metavar="CKPT", help="start on this encoder: a path, a name, or `last`"
    )
    start.add_argument("-c", dest="checkpoint", metavar="CKPT", help="go on from a path, a name, or `last`")
    start.add_argument(
        "--from-scratch",
        action="store_true",
        help="start on an untrained encoder; its sizes stand in the mae_config.yaml beside --config",
    )
    parser.add_argument(
        "--self-critical", action="store_true", help="learn from the score of own captions; begins with -c"
    )
    command_line.add_training_options(parser)
    options = parser.parse_args(arguments)
    if options.self_critical and not options.checkpoint:
        parser.error("--self-critical: name the captioner that it begins with, by -c")
    require_unix("training")
    with distributed.process_group(training=True) as device:
        train(options, device)


def train(options: argparse.Namespace, device: torch.device) -> None:
    """One run from the options of the command line to the last checkpoint."""
    # 1. Hyperparameters, device, checkpoint

    opening = open_stage if options.self_critical else open_run
    run = opening(options, paths_from_options(options), CaptionerConfig, require_captioner, device)
    config = run.config
    encoder, pretrained = choose_encoder(options, run)
    if run.is_complete(options.epochs):
        return
    from_scratch = run.checkpoint["from_scratch"] if run.checkpoint else options.from_scratch

    # 2. The elements of the training loop

    tokenizer = choose_tokenizer(run)
    # A consensus takes a minute or two of each evaluation, and tells little of how the training goes.
    captioner = new_captioner(replace(config, consensus_samples=0), encoder, tokenizer, device)
    if pretrained:
        load_encoder(captioner.model.encoder, pretrained["model"])
    set_drop_path(captioner.model.encoder.transformer.layers, config.drop_path)
    layer_decay = 1.0 if from_scratch else config.layer_decay
    groups = parameter_groups(captioner.model, config.learning_rate, layer_decay)
    optimizer = new_optimizer(captioner.model, groups, config)
    scheduler = warmup_then_cosine(config)
    data = run.data.for_training(["train"], encoder.image_size, run.checkpoint)
    visible = partial(visible_patches, num_patches=encoder.num_patches, dropout=config.patch_dropout)
    image_loader = reference_loader(config, data, captioner, options.subset)
    scoring = scoring_of(captioner, image_loader.dataset)
    critic = None
    if options.self_critical:
        critic = new_critic(captioner, data, config.self_critical_samples, visible, scoring)
    pair_loss = partial(
        caption_loss, pad_id=captioner.pad_id, label_smoothing=config.label_smoothing, visible=visible
    )
    loss_fn, make_loaders = (critic.loss, image_loaders) if critic else (pair_loss, pair_loaders)
    train_loader, val_loader = make_loaders(config, data, captioner, options.subset)
    scaler = gradient_scaler(config, device)
    stepper = Stepper(loss_fn, optimizer, scheduler, scaler, config, device, may_be_zero=critic is not None)
    contents = {
        "encoder": config_to_dict(encoder, AutoEncoderShape),
        "tokenizer": tokenizer.to_str(),
        "from_scratch": from_scratch,
        "self_critical": options.self_critical,
        **({"begun_with": run.checkpoint["begun_with"]} if critic and "begun_with" in run.checkpoint else {}),
        **data.facts(),
    }
    trainer = Trainer(
        run, captioner.model, stepper, train_loader, val_loader, contents, trained=critic is not None
    )

    # 3. The training loop

    if distributed.is_main():
        for note in scoring.notes:
            print(f"note: BLEU: {note}", file=sys.stderr, flush=True)
    with run.lock, train_loader, val_loader, image_loader, trainer:
        for epoch in trainer.epochs(options.epochs):
            unfrozen = max(0, epoch + 1 - config.unfreeze_start_epoch) + 1  # the decoder from the start
            unfreeze(groups, len(groups) if from_scratch or critic else unfrozen)
            figures = trainer.train()
            with trainer.mean_weights():
                figures |= trainer.validate()
                if critic:
                    figures |= critic.figures(figures)
                if epoch % config.eval_freq == 0 or epoch == config.total_epochs:
                    figures |= score_split(captioner, image_loader, scoring)
                examples = first_captions(captioner, image_loader.dataset) if distributed.is_main() else {}
            trainer.end_epoch(figures)
            if distributed.is_main():
                print("\n".join(f"    {name}: {text}" for name, text in examples.items()), flush=True)
                if run.board:
                    run.board.captions(examples, epoch)


def pair_loaders(
    config: CaptionerConfig, data: CocoData, captioner: Captioner, subset: float
) -> tuple[Loader, Loader]:
    """Loaders of the pairs to train on, and of those to validate on."""
    options = LoaderOptions.of_run(
        config,
        subset,
        length_buckets=config.length_buckets,
        context_length=config.context_length,
        pad_id=captioner.pad_id,
        captions_per_image=config.captions_per_image,
    )
    loading = {"num_workers": config.num_workers, "data": data, "options": options}
    train_transform = TrainingTransform(captioner.transform.size, config.crop_scale)
    train_loader = get_coco_loader("train", config.batch_size, train_transform, shuffle=True, **loading)
    return train_loader, get_coco_loader("val", config.batch_size, captioner.transform, **loading)


def reference_loader(config: CaptionerConfig, data: CocoData, captioner: Captioner, subset: float) -> Loader:
    """Loader of the images to caption for BLEU-4, with their captions."""
    loader = get_coco_loader(
        "val",
        config.eval_batch_size * distributed.world_size(),
        captioner.transform,
        config.num_workers,
        mode="image_first",
        data=data,
        options=LoaderOptions.of_run(config, subset),
    )
    require_references(loader.dataset)
    return loader


def score_split(captioner: Captioner, loader: Loader, scoring: Scoring) -> dict[str, float]:
    """BLEU-4 and CIDEr of the captions of an image-first loader, and how many of them differ."""
    captioned = caption_split(captioner, loader)
    statistics = caption_statistics(captioned.captions.values())
    if statistics.collapsed and distributed.is_main():
        print(statistics.warning(), file=sys.stderr, flush=True)
    scores = score_captions(captioned, scoring)
    return {
        "bleu4": scores["BLEU-4"],
        "cider": scores["CIDEr"],
        "distinct_captions": statistics.distinct,
    }


def first_captions(captioner: Captioner, dataset: ImgFirstDataset, count: int = 4) -> dict[str, str]:
    """The captions of a data set's first images, by name: always the same ones, to watch them change."""
    items = [dataset[index] for index in range(min(count, len(dataset)))]
    decoded = captioner.decode(torch.stack([item.image for item in items]))
    return {image_name(item.image_id): captioner.text(best) for item, (best, *_) in zip(items, decoded)}


def choose_encoder(
    options: argparse.Namespace, run: Run[CaptionerConfig]
) -> tuple[AutoEncoderShape, dict[str, Any] | None]:
    """The shape of the encoder, and the checkpoint that a new run takes its weights from, if from one."""
    if run.checkpoint:
        if run.checkpoint.get("self_critical") and not options.self_critical:
            raise UsageError(f"{run.checkpoint_path}: of the self-critical stage; go on with --self-critical")
        return saved_encoder(run.checkpoint_path, run.checkpoint), None
    require_tokenizer_of(run.data.split_file, options.split_file, run.paths)
    if options.from_scratch:
        beside = options.config and options.config.with_name(run.paths["mae_config"].name)
        file = beside if beside and beside.is_file() else run.paths["mae_config"]
        return load_config(file, MaeConfig), None
    path, pretrained = checkpoints.load_named(run.paths["encoder_checkpoints"], options.pretrained, "encoder")
    encoder = require_auto_encoder(path, pretrained)
    if distributed.is_main():
        warn_of_other_split(pretrained, run.data.split_file)
    return encoder, pretrained


def choose_tokenizer(run: Run[CaptionerConfig]) -> Tokenizer:
    """The tokenizer of the data; what a checkpoint has learned is bound to its pieces.

    Raises:
        UsageError: it is not that of the checkpoint, or not that of the processed captions, or larger than
            the configuration allows.
    """
    path, tokenizer = run.paths["tokenizer"], load_data_tokenizer(run.paths)
    allowed = run.config.vocabulary_size
    if run.checkpoint and run.checkpoint["tokenizer"] != tokenizer.to_str():
        raise UsageError(
            f"{path}: not the tokenizer of the checkpoint, so its captions are numbered otherwise; name "
            "the data root that the checkpoint was trained on with --data, or start anew with -p"
        )
    require_same_tokenizer(run.paths)
    if tokenizer.get_vocab_size() > allowed:
        raise UsageError(
            f"{path} has {tokenizer.get_vocab_size()} pieces, and vocabulary_size allows {allowed}: raise "
            f"it in a YAML that --config names{smaller_tokenizer(run.paths, allowed)}"
        )
    return tokenizer


def caption_loss(
    network: nn.Module,
    batch: CaptionBatch,
    pad_id: int,
    label_smoothing: float,
    visible: PatchChoice = lambda seeds: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each next token, with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        network: the model, compiled or distributed or neither.
        batch: images and captions.
        pad_id: the token that fills captions up.
        label_smoothing: the share of the probability that goes to all tokens alike.
        visible: chooses what the encoder sees in training; in validation it sees all.

    Returns:
        The mean, and how many tokens it is over: all but the padding.
    """
    inputs, labels = batch.tokens[:, :-1], batch.tokens[:, 1:]  # (B, T): the label of a token is the next one
    kept = visible(batch.seeds) if torch.is_grad_enabled() else None
    logits = network(normalize(batch.images), inputs, kept=kept)  # (B, T, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a sum over V is none for bfloat16
    loss = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=pad_id, label_smoothing=label_smoothing
    )
    return loss, (labels != pad_id).sum()


def parameter_groups(
    model: TransformerEncoderDecoder, learning_rate: float, decay: float
) -> list[dict[str, Any]]:
    """The decoder, the encoder's layers from the top down, the patch embedder.

    Returns:
        Groups for `new_optimizer`, in the order in which they are unfrozen.
    """
    encoder = model.encoder
    parts = [model.decoder, *reversed(encoder.transformer.layers), encoder.patch_embedding]
    groups = [
        {"params": list(part.parameters()), "base_lr": learning_rate * decay**depth}
        for depth, part in enumerate(parts)
    ]
    grouped = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in grouped]  # the final norm of a pre-norm encoder
    groups[1]["params"] += rest
    return groups


def unfreeze(groups: list[dict[str, Any]], count: int) -> None:
    """Lets the first `count` groups learn and keeps the others as they are."""
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            parameter.requires_grad_(number < count)


def load_encoder(encoder: ImageEncoder, auto_encoder: dict[str, torch.Tensor]) -> None:
    """Takes the ViT's weights out of the state of an `ImageAutoEncoder`."""
    prefix = "encoder."
    weights = {
        name.removeprefix(prefix): value for name, value in auto_encoder.items() if name.startswith(prefix)
    }
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"the encoder's checkpoint does not fit its own sizes: {error}") from error


if __name__ == "__main__":
    command_line.run(main)
