"""What a run has to show: reconstructions of its autoencoder, its best and worst captions, where it looked.

The report, the notebooks and TensorBoard draw from here.

Shapes: B batch, N all patches, M masked patches, P patch side, H and W the model's picture size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from captioner import Attention, Captioner
from image_captioner import (
    ImageAutoEncoder,
    normalise_patches,
    patchify,
    random_masking,
    unnormalise_patches,
    unpatchify,
)
from image_transforms import EvaluationTransform, denormalize, load_image, normalize
from support.assessment import with_references
from support.checkpoints import existing, load_named
from support.configuration import bounded, config_from_dict, positive
from support.contents import require_weights
from support.files import replacing
from support.metrics import image_scores, image_statistics
from support.report import page
from support.scoring import OFFICIAL, Scoring
from transformer_components import StackConfig, evaluating

SHOWN_PICTURES = 4  # reconstructed
SHOWN_SIZE = 320  # pixels, side of a picture that is shown beside its caption


class Reconstruction(NamedTuple):
    """Four views of the same pictures, each (B, 3, H, W) uint8, and which patches were hidden."""

    original: Tensor
    masked: Tensor  # the hidden patches grey, as ImageNet's mean
    filled: Tensor  # the hidden patches as predicted, the others as they are
    full: Tensor  # every patch as predicted, though only hidden ones were ever trained for
    hidden: Tensor  # (B, M) int64, positions


@dataclass
class Reconstructor:
    """An autoencoder with what it takes to show what it learned."""

    model: ImageAutoEncoder
    transform: EvaluationTransform
    masking_ratio: float
    normalize_targets: bool
    device: torch.device

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, seeds: Sequence[int] | None = None) -> Reconstruction:
        """Hides patches of transformed pictures (B, 3, H, W) uint8, and predicts them.

        Where the model predicts normalised patches, the true mean and deviation of each are put back: they
        are no part of what it learned, and without them a reconstruction looks like noise.

        Args:
            images: the pictures.
            seeds: of each picture's mask; by default 0, 1, 2, ...
        """
        size = self.model.patch_size
        seeds = torch.tensor(range(len(images)) if seeds is None else seeds)
        pixels = normalize(images.to(self.device))  # (B, 3, H, W)
        patches = patchify(pixels, size)  # (B, N, P·P·3)
        kept, hidden = random_masking(seeds, patches.shape[1], self.masking_ratio)
        kept, hidden = kept.to(self.device), hidden.to(self.device)
        with evaluating(self.model):
            predicted = self.model(pixels, kept)  # (B, N, P·P·3)
        if self.normalize_targets:
            _, mean, deviation = normalise_patches(patches)
            predicted = unnormalise_patches(predicted, mean, deviation)
        is_hidden = torch.zeros(patches.shape[:2], dtype=torch.bool, device=self.device)
        is_hidden = is_hidden.scatter(1, hidden, True)[:, :, None]  # (B, N, 1)
        views = (
            patches,
            patches.masked_fill(is_hidden, 0),
            patches.where(~is_hidden, predicted),
            predicted,
        )
        return Reconstruction(*(denormalize(unpatchify(view, size)).cpu() for view in views), hidden.cpu())


@dataclass(frozen=True, kw_only=True)
class AutoEncoderConfig:
    """The keys of an encoder's configuration without which it cannot reconstruct."""

    image_size: int = positive()
    patch_size: int = positive()
    encoder: StackConfig
    decoder: StackConfig
    masking_ratio: float = bounded(above=0, below=1)
    normalize_targets: bool


def require_auto_encoder(path: Path, state: Mapping[str, Any]) -> AutoEncoderConfig:
    """The sizes of a checkpoint's autoencoder.

    Raises:
        UsageError: the weights do not have these sizes; nothing has been allocated by them.
    """
    needed = {field.name for field in fields(AutoEncoderConfig)}
    values = {key: value for key, value in state["config"].items() if key in needed}
    config = config_from_dict(values, AutoEncoderConfig, f"{path}: config")
    require_weights(
        path,
        state["model"],
        config.encoder.num_layers + config.decoder.num_layers,
        lambda: ImageAutoEncoder(config.image_size, config.patch_size, config.encoder, config.decoder),
    )
    return config


def reconstructor_from_state(
    state: Mapping[str, Any], device: torch.device, path: Path = Path("the encoder's checkpoint")
) -> Reconstructor:
    """The autoencoder whose checkpoint holds `state`, ready to show; `path` is for messages.

    Raises:
        UsageError: the weights do not fit the sizes.
    """
    config = require_auto_encoder(path, state)
    model = ImageAutoEncoder(config.image_size, config.patch_size, config.encoder, config.decoder)
    model.load_state_dict(state["model"])
    return Reconstructor(
        model=model.to(device).eval(),
        transform=EvaluationTransform(config.image_size),
        masking_ratio=config.masking_ratio,
        normalize_targets=config.normalize_targets,
        device=device,
    )


def clearest_hidden_patch(
    reconstruction: Reconstruction, patch_size: int, index: int = 0
) -> tuple[Tensor, Tensor]:
    """The hidden patch of a picture with most to see in it, the one of greatest variance.

    Returns:
        The patch as it is and as predicted, each (3, P, P) uint8.
    """
    views = (reconstruction.original[index], reconstruction.full[index])
    true, predicted = (patchify(view[None], patch_size)[0, reconstruction.hidden[index]] for view in views)
    best = int(true.float().var(dim=1).argmax())
    return tuple(patch[best].view(patch_size, patch_size, 3).permute(2, 0, 1) for patch in (true, predicted))


class Example(NamedTuple):
    """A picture with the caption that the model wrote, and what to judge it by."""

    image_id: int
    picture: Image.Image  # the central square, which is what the model saw, at a size to look at
    caption: str
    references: list[str]
    figures: dict[str, float]  # the metrics of this caption alone, as fractions
    attention: Attention


def examples(
    captioner: Captioner,
    place: Callable[[int], Path],
    references: Mapping[int, list[str]],
    captions: Mapping[int, str],
    count: int = 3,
    scoring: Scoring = OFFICIAL,
) -> dict[str, list[Example]]:
    """The captions of highest CIDEr, those in the middle, and those of lowest: chosen by figure, not by hand.

    Args:
        captioner: the model that wrote them.
        place: where the picture of an image id lies.
        references: for each image id, what people wrote; an image without any is passed over.
        captions: for the same ids, what the model wrote.
        count: how many of each kind, fewer where there are not enough.
        scoring: how captions are compared.

    Returns:
        "best", "median" and "worst", each from better to worse.
    """
    known = with_references(references)
    hypotheses = {image_id: captions[image_id] for image_id in known}
    statistics = image_statistics(known, hypotheses, scoring.tokenize)
    figures = image_scores(statistics)
    ranking = sorted(range(len(known)), key=lambda row: (-float(figures["CIDEr"][row]), row))
    count = min(count, len(ranking) // 3) or 1
    middle = (len(ranking) - count) // 2
    chosen = {"best": ranking[:count], "median": ranking[middle : middle + count], "worst": ranking[-count:]}

    def example(row: int) -> Example:
        image_id = statistics.image_ids[row]
        picture = load_image(place(image_id))
        image = captioner.transform(picture)
        # Written once more, token by token: its text alone can take more tokens than the decoder reads.
        [[best, *_]] = captioner.decode(image[None])
        caption = captions[image_id]
        return Example(
            image_id,
            to_pil_image(EvaluationTransform(SHOWN_SIZE)(picture)),
            caption,
            known[image_id],
            {metric: float(values[row]) for metric, values in figures.items()},
            captioner.attention(image, best if captioner.text(best) == caption else caption),
        )

    return {kind: [example(row) for row in rows] for kind, rows in chosen.items()}


def write_report(
    path: Path,
    captioner: Captioner,
    state: Mapping[str, Any],
    encoder: Mapping[str, Any] | None,
    place: Callable[[int], Path],
    references: Mapping[int, list[str]],
    captions: Mapping[int, str],
    assessment: Mapping[str, Any],
    scoring: Scoring = OFFICIAL,
) -> None:
    """Writes the report of one evaluation as a single HTML page.

    Args:
        path: the file.
        captioner: the model that wrote the captions.
        state: what its checkpoint holds.
        encoder: what the encoder's checkpoint holds; None leaves its curves and reconstructions out.
        place: where the picture of an image id lies.
        references: for each image id, what people wrote.
        captions: for the same ids, what the model wrote.
        assessment: what the metrics JSON holds.
        scoring: how captions are compared.
    """
    stages = ({"encoder": encoder} if encoder else {}) | {"captioner": state}
    reconstructions = []
    if encoder:
        reconstructor = reconstructor_from_state(encoder, captioner.device)
        pictures = [
            reconstructor.transform(load_image(place(i))) for i in sorted(references)[:SHOWN_PICTURES]
        ]
        views = reconstructor.reconstruct(torch.stack(pictures))[:4]
        reconstructions = [[to_pil_image(view) for view in of_one] for of_one in zip(*views)]
    html = page(
        assessment,
        {stage: contents["progress"]["history"] for stage, contents in stages.items()},
        reconstructions,
        examples(captioner, place, references, captions, scoring=scoring),
        {stage: contents["config"] for stage, contents in stages.items()},
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def encoder_of(folder: Path, wanted: str | None) -> dict[str, Any] | None:
    """The encoder's checkpoint that is named, or the newest in its folder, or None where there is none."""
    if wanted is None and not existing(folder):
        return None
    path, state = load_named(folder, wanted or "last", "encoder")
    require_auto_encoder(path, state)
    return state
