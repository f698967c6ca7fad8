"""A captioner ready for use: model, tokenizer and image transform, rebuilt from a checkpoint alone.

    captioner = load_captioner("checkpoints/captioner/checkpoint30.pt")
    captioner.caption([Image.open("my_picture.jpg")])

Shapes: B images, T tokens, N patches, H and W the model's image size, h × w the grid of patches.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tokenizers import Tokenizer

from coco.tokenizer import EOS, PAD, SOS, UNK, parse_tokenizer, words_of
from image_captioner import AutoEncoderShape, CaptionerShape, build_captioner
from image_transforms import EvaluationTransform, normalize
from support import command_line, interrupts
from support.configuration import at_least, bounded, config_part
from support.devices import Precision, autocast, decoding_precision, describe, parameters_in_words
from training import checkpoints
from training.contents import require_weights
from transformer_components.beam_search import BeamSearchOptions, Hypothesis
from transformer_components.encoder_decoder import TransformerEncoderDecoder

JOINERS = "\u200c\u200d"  # of zero width; Persian and the scripts of India write words with them


class Attention(NamedTuple):
    """Where a captioner looked as it wrote each word."""

    words: list[str]
    maps: torch.Tensor  # (words, h, w) over the patches of the image's central square; each sums to 1


@dataclass
class Captioner:
    """A model with all that it takes to caption an image."""

    model: TransformerEncoderDecoder
    tokenizer: Tokenizer
    transform: EvaluationTransform
    options: BeamSearchOptions
    device: torch.device
    precision: torch.dtype  # of matrix products, under autocast; the weights stay float32

    @property
    def pad_id(self) -> int:
        """The token that fills captions up to the longest of a batch."""
        return self.tokenizer.token_to_id(PAD)

    @property
    def special_tokens(self) -> tuple[int, int, list[int]]:
        """What every caption begins with, what ends it, and what it may not hold."""
        start, end, *forbidden = map(self.tokenizer.token_to_id, (SOS, EOS, PAD, SOS, UNK))
        return start, end, forbidden

    def describe(self) -> str:
        """Device, precision and sizes, for the first line of a run."""
        parts = [
            "captioner",
            describe(self.device, self.precision),
            f"{self.transform.size} px",
            parameters_in_words(self.model),
            f"{self.options.num_beams} beams",
            f"consensus of {self.options.consensus_samples} samples"
            if self.options.consensus_samples
            else "",
        ]
        return " · ".join(filter(None, parts))

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The best caption of each image, of whatever size and mode."""
        if not pictures:
            return []
        images = torch.stack([self.transform(picture) for picture in pictures])  # (B, 3, H, W) uint8
        return [self.text(best) for best, *_ in self.decode(images)]

    def decode(self, images: torch.Tensor) -> list[list[Hypothesis]]:
        """Searches for the best captions of pictures.

        Images that do not fit in the GPU's memory together are decoded in two halves, and a note says so.

        Args:
            images: (B, 3, H, W) uint8, transformed.

        Returns:
            For each image its `options.n_best` hypotheses, best first.
        """
        try:
            return self._search(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        # Out here the error is gone, and with it the hold that its traceback has on what filled the memory.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        first, second = images.tensor_split(2)
        print(
            f"note: no memory to decode {len(images)} pictures at once, so it goes on with {len(first)}",
            file=sys.stderr,
        )
        return self.decode(first) + self.decode(second)

    def _search(self, images: torch.Tensor) -> list[list[Hypothesis]]:
        images = normalize(images.to(self.device))
        # On a CPU a search can take longer than a scheduler waits, so it looks for signals at every token.
        # (On a GPU it takes less than a second, and graphs call no hooks.)
        hook = self.model.decoder.register_forward_pre_hook(lambda *_: interrupts.check())
        try:
            with autocast(self.device, self.precision):
                return self.model.generate(images, self.options, *self.special_tokens)
        finally:
            hook.remove()

    def text(self, hypothesis: Hypothesis) -> str:
        """The words of a hypothesis, and nothing that a terminal would obey: a checkpoint brings its own."""
        decoded = self.tokenizer.decode(hypothesis.tokens)
        return "".join(letter if letter.isprintable() or letter in JOINERS else " " for letter in decoded)

    @torch.inference_mode()
    def attention(self, picture: Image.Image | torch.Tensor, caption: str | Hypothesis) -> Attention:
        """Where the decoder looked in an image as it wrote each word of a caption.

        The image and the whole caption go through the model once more, and the last layer's attention to the
        image is averaged over heads.  Lower layers are more diffuse: in the sample model half of a word's
        attention covers 29 % of the patches on average over layers, 25 % in the last.  A word of several
        tokens gets their mean.

        Args:
            picture: of whatever size and mode, or (3, h, w) uint8.
            caption: a text, or a hypothesis, whose own pieces are then taken.

        Raises:
            ValueError: the caption is longer than the decoder's context.
        """
        text = isinstance(caption, str)
        tokens = self.tokenizer.encode(caption).ids[1:] if text else caption.tokens  # without <SOS>
        inputs = torch.tensor([[self.tokenizer.token_to_id(SOS), *tokens[:-1]]], device=self.device)
        weights: list[torch.Tensor] = []
        with autocast(self.device, self.precision):
            image = normalize(self.transform(picture)[None].to(self.device))
            self.model(image, inputs, weights)  # row t of the weights is of the step that wrote token t
        looked = weights[-1][0].float().mean(dim=0).cpu()  # (T, N)
        words = words_of(self.tokenizer, tokens)
        side = math.isqrt(looked.shape[1])
        maps = [looked[places].mean(dim=0).view(side, side) for _, places in words]
        return Attention(
            [word for word, _ in words], torch.stack(maps) if maps else looked.new_empty(0, side, side)
        )


@dataclass(frozen=True, kw_only=True)
class CaptioningConfig(CaptionerShape):
    """The keys of `captioner_config.yaml` with which a trained model captions: its shape and its search."""

    num_beams: int = bounded(at_least=1, at_most=command_line.MOST_BEAMS)
    length_alpha: float = at_least(0)  # a caption's score is its log-probability / length ** length_alpha
    # Captions drawn by chance, by whose agreement those found then rank; 0: by their score.
    consensus_samples: int = bounded(at_least=0, at_most=command_line.MOST_SAMPLES)
    precision: Precision


def new_captioner(
    config: CaptioningConfig, encoder: AutoEncoderShape, tokenizer: Tokenizer, device: torch.device
) -> Captioner:
    """A captioner with the vocabulary of its tokenizer, its weights still random."""
    return Captioner(
        model=build_captioner(encoder, with_vocabulary(config, tokenizer)).to(device),
        tokenizer=tokenizer,
        transform=EvaluationTransform(encoder.image_size),
        options=BeamSearchOptions(
            config.context_length,
            config.num_beams,
            config.length_alpha,
            consensus_samples=config.consensus_samples,
        ),
        device=device,
        precision=decoding_precision(config.precision, device),
    )


def with_vocabulary(shape: CaptionerShape, tokenizer: Tokenizer) -> CaptionerShape:
    """The shape with as many tokens as the tokenizer has; the configuration says how many it may have."""
    return replace(shape, vocabulary_size=tokenizer.get_vocab_size())


def require_captioner(
    path: Path, state: dict[str, Any]
) -> tuple[CaptioningConfig, AutoEncoderShape, Tokenizer]:
    """What of a checkpoint makes its captioner, ready for `new_captioner`.

    Raises:
        UsageError: sizes, tokenizer and weights are not of one captioner; nothing has been allocated by them.
    """
    config = config_part(state["config"], CaptioningConfig, f"{path}: config")
    encoder = saved_encoder(path, state)
    tokenizer = parse_tokenizer(state["tokenizer"], f"{path}: its tokenizer")
    require_weights(
        path,
        state["model"],
        encoder.encoder.num_layers + config.decoder.num_layers,
        lambda: build_captioner(encoder, with_vocabulary(config, tokenizer)),
    )
    return config, encoder, tokenizer


def saved_encoder(path: Path, state: dict[str, Any]) -> AutoEncoderShape:
    """The shape of the autoencoder whose encoder a captioner has taken over."""
    # Files of before December 2026 leave out the autoencoder's decoder: a captioner has no use for it.
    saved = {"decoder": state["encoder"].get("encoder")} | state["encoder"]
    return config_part(saved, AutoEncoderShape, f"{path}: encoder")


def captioner_from_state(
    state: dict[str, Any],
    device: torch.device,
    path: Path = Path("the captioner's checkpoint"),
    **search: int | None,
) -> Captioner:
    """The captioner whose checkpoint holds `state`, ready to use.

    Args:
        state: what the checkpoint holds.
        device: where the model goes.
        path: the checkpoint, for messages.
        **search: fields of BeamSearchOptions, in place of the checkpoint's; None: as there.

    Raises:
        UsageError: the parts do not fit together; nothing has been allocated by the sizes that they claim.
    """
    captioner = new_captioner(*require_captioner(path, state), device)
    captioner.model.load_state_dict(state["model"])
    changes = {field: value for field, value in search.items() if value is not None}
    captioner.options = replace(captioner.options, **changes)
    captioner.model.eval()
    return captioner


def load_captioner(checkpoint: str | Path, device: str | torch.device = "cpu") -> Captioner:
    """Rebuilds a captioner from its checkpoint file alone.

    Raises:
        UsageError: there is no such file, it is damaged, or it is not a captioner's.
    """
    path = Path(checkpoint)
    return captioner_from_state(checkpoints.load(path, "captioner"), torch.device(device), path=path)
