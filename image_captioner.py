"""The models: a vision transformer, the masked autoencoder that teaches it to see, and the caption decoder.

    ImageAutoEncoder          = ImageEncoder + ImageDecoder      He et al. 2021 (arXiv:2111.06377)
    TransformerEncoderDecoder = ImageEncoder + CaptionDecoder    the captioner, from `build_captioner`

The sizes of each are one dataclass, `AutoEncoderShape` and `CaptionerShape`.  The configurations of the
training scripts inherit them, the constructors take them, and a checkpoint's configuration holds them.

Shapes: B batch, N all patches, K kept patches, M masked patches, P patch side, h × w grid of patches,
N = h·w, D hidden, T caption tokens, S source patches, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from support.configuration import positive
from support.devices import without_autocast
from training.sampling import hashed_noise
from transformer_components.decoder import TransformerDecoder
from transformer_components.encoder import TransformerEncoder
from transformer_components.kv_cache import DecoderCache
from transformer_components.sublayers import Linear, StackConfig, initialize, sinusoids

if TYPE_CHECKING:
    from transformer_components.encoder_decoder import TransformerEncoderDecoder
    from transformer_components.static_decoding import StaticCache

CHANNELS = 3  # red, green, blue

# From the images' seeds (B,) the patches (B, K) that the encoder is to see in training; None: all.
PatchChoice = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class AutoEncoderShape:
    """The sizes of the masked autoencoder.  The captioner takes all of them over but the decoder.

    Raises:
        ValueError: the patches do not fill the image.
    """

    image_size: int = positive()  # pixels, height and width
    patch_size: int = positive()  # pixels; divides image_size
    encoder: StackConfig  # the ViT that the captioner will use
    decoder: StackConfig  # discarded after pre-training

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"patch_size: {self.patch_size} does not divide image_size {self.image_size}")

    @property
    def num_patches(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2

    def describe(self) -> str:
        """The sizes in words, for the first line of a run."""
        vit = f"ViT {self.encoder.num_layers} × {self.encoder.hidden_size}"
        return f"{vit}, {self.image_size} px, patches of {self.patch_size}"


@dataclass(frozen=True, kw_only=True)
class CaptionerShape:
    """The sizes of the caption decoder; the encoder has those of its `AutoEncoderShape`."""

    # The most tokens the tokenizer may have; the model has as many as it.  How many it has, was said to
    # `process_coco.py --vocabulary-size`.
    vocabulary_size: int = positive()
    context_length: int = positive()  # tokens that the decoder reads at most, <SOS> included
    decoder: StackConfig
    tie_embeddings: bool  # one matrix embeds tokens and projects to the vocabulary (Press and Wolf 2017)

    def describe(self) -> str:
        """The sizes in words, for the first line of a run."""
        stack = self.decoder
        return f"decoder {stack.num_layers} × {stack.hidden_size}, context {self.context_length}"


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cuts images (B, 3, h·P, w·P) into patches (B, N, P·P·3), left to right, top down.

    The pixels of a patch lie row by row, each with its three channels together.

    Raises:
        ValueError: the patches do not fill the image.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"an image of {height}×{width} does not divide into patches of {patch_size}")
    grid = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, 3, h, P, w, P)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, N, P·P·3)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Puts the patches (B, N, P·P·3) of square images together again: (B, 3, side, side).

    Raises:
        ValueError: the patches do not form a square.
    """
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(f"{patches.shape[1]} patches do not form a square image")
    grid = patches.unflatten(2, (patch_size, patch_size, CHANNELS)).unflatten(1, (side, side))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, h, w, P, P, 3) -> (B, 3, h·P, w·P)


def select_patches(patches: Tensor, positions: Tensor) -> Tensor:
    """The patches (B, N, D) that stand at positions (B, K), in their order: (B, K, D)."""
    return torch.gather(patches, 1, positions[:, :, None].expand(-1, -1, patches.shape[2]))


def masked_pixels(images: Tensor, masked: Tensor, patch_size: int) -> Tensor:
    """What the autoencoder should predict: the true pixels (B, M, P·P·3) of the masked patches (B, M)."""
    return select_patches(patchify(images, patch_size), masked)


def count_masked(num_patches: int, masking_ratio: float) -> int:
    """M, how many of N patches are masked.

    Raises:
        ValueError: the ratio leaves no patch to see or none to predict.
    """
    num_masked = round(num_patches * masking_ratio)
    if not 0 < num_masked < num_patches:
        raise ValueError(f"masking_ratio: {masking_ratio} of {num_patches} patches masks none or all")
    return num_masked


def random_masking(seeds: Tensor, num_patches: int, masking_ratio: float) -> tuple[Tensor, Tensor]:
    """Deals the patches of each image out into kept and masked ones (He et al. 2021, section 3).

    The patches are sorted by noise, so together they are a permutation: none is dealt out twice.  The noise
    is a hash of the seed, so the mask of a sample does not depend on batch, process or device.

    Args:
        seeds: (B,) int64, one for each image.
        num_patches: N.
        masking_ratio: share of the patches to mask.

    Returns:
        kept (B, K) and masked (B, M) positions, int64.

    Raises:
        ValueError: the ratio leaves no patch to see or none to predict.
    """
    num_masked = count_masked(num_patches, masking_ratio)
    shuffled = hashed_noise(seeds, num_patches).argsort(dim=1)  # (B, N)
    return shuffled[:, num_masked:], shuffled[:, :num_masked]


def visible_patches(seeds: Tensor, num_patches: int, dropout: float) -> Tensor | None:
    """The patches that a training shows of each image: fewer spare time at little cost (Li et al. 2023).

    That paper, arXiv:2212.00794, drops them in contrastive training.

    Args:
        seeds: (B,) int64, one for each image; what else is drawn by them is independent of this.
        num_patches: N.
        dropout: share of the patches to leave out; one patch always stays.

    Returns:
        (B, K) positions, int64; None: all of them.
    """
    if dropout == 0:
        return None
    unseen = min(round(num_patches * dropout), num_patches - 1)
    return hashed_noise(~seeds, num_patches).argsort(dim=1)[:, unseen:]


def normalize_patches(patches: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Each patch (B, M, P·P·3) at mean 0 and variance 1, a sharper target (He et al. 2021, section 4.1).

    Returns:
        The patches, and the mean and the deviation (B, M, 1) with which `unnormalize_patches` undoes it.
    """
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    deviation = (variance + epsilon).sqrt()
    return (patches - mean) / deviation, mean, deviation


def unnormalize_patches(patches: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Normalized patches as pixels again: without it a reconstruction looks like grey noise."""
    return patches * deviation + mean


def grid_positions(num_patches: int, size: int) -> Tensor:
    """Where learned positions of a square grid start: the sinusoids of the row, then of the column.

    Neighbours start alike, as in He et al. 2021, section A.1, where these stay as they are.

    Returns:
        (N, size).
    """
    side = math.isqrt(num_patches)
    row = torch.arange(num_patches) // side
    column = torch.arange(num_patches) % side
    return torch.cat([sinusoids(row, size - size // 2), sinusoids(column, size // 2)], dim=1)


class PatchEmbedding(nn.Module):
    """Projects patches to embeddings and adds the learned position of each."""

    def __init__(self, shape: AutoEncoderShape):
        super().__init__()
        size = shape.encoder.hidden_size
        self.image_size, self.patch_size = shape.image_size, shape.patch_size
        self.projection = nn.Linear(shape.patch_size**2 * CHANNELS, size)
        self.positions = nn.Parameter(grid_positions(shape.num_patches, size))  # (N, D)
        initialize(self)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """
        Args:
            images: (B, 3, image_size, image_size).
            kept: (B, K) int64, the patches wanted; None: all N in their order.

        Returns:
            (B, K, D).

        Raises:
            ValueError: images of another size.
        """
        expected = (CHANNELS, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(f"expected images of {expected}, got {tuple(images.shape[1:])}")
        patches = patchify(images, self.patch_size)  # (B, N, P·P·3)
        if kept is None:
            return self.projection(patches) + self.positions  # (B, N, D)
        patches = select_patches(patches, kept)  # before the projection: only these are projected
        return self.projection(patches) + self.positions[kept]  # (B, K, D)


class ImageEncoder(nn.Module):
    """The vision transformer: patch embedding, then a transformer encoder."""

    def __init__(self, shape: AutoEncoderShape):
        super().__init__()
        self.patch_embedding = PatchEmbedding(shape)
        self.dropout = nn.Dropout(shape.encoder.dropout)
        self.transformer = TransformerEncoder(shape.encoder)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) to the features (B, K, D) of the kept patches, or of all N."""
        return self.transformer(self.dropout(self.patch_embedding(images, kept)))


class ImageDecoder(nn.Module):
    """Predicts the pixels of masked patches from the features of the kept ones; thrown away afterwards."""

    def __init__(self, shape: AutoEncoderShape):
        super().__init__()
        encoder_size, size = shape.encoder.hidden_size, shape.decoder.hidden_size
        self.projection = nn.Identity() if encoder_size == size else nn.Linear(encoder_size, size)
        self.mask_token = nn.Parameter(torch.zeros(size))  # (D,), the positions tell masked patches apart
        self.positions = nn.Parameter(grid_positions(shape.num_patches, size))  # (N, D)
        self.dropout = nn.Dropout(shape.decoder.dropout)
        self.transformer = TransformerEncoder(shape.decoder)
        self.to_pixels = nn.Linear(size, shape.patch_size**2 * CHANNELS)
        initialize(self.projection)
        initialize(self.to_pixels)

    def forward(self, encoded: Tensor, kept: Tensor, masked: Tensor | None = None) -> Tensor:
        """
        Args:
            encoded: (B, K, D of the encoder) features of the kept patches.
            kept: (B, K) int64, where they stand.
            masked: (B, M) int64, the patches to predict; None: all N in their order.

        Returns:
            Pixels (B, M, P·P·3), or (B, N, P·P·3).
        """
        encoded = self.projection(encoded)  # (B, K, D)
        tokens = self.mask_token.to(encoded.dtype).expand(len(encoded), *self.positions.shape)  # (B, N, D)
        where = kept[:, :, None].expand_as(encoded)
        x = torch.scatter(tokens, 1, where, encoded) + self.positions  # (B, N, D)
        x = self.transformer(self.dropout(x))
        if masked is not None:
            x = select_patches(x, masked)  # (B, M, D), before the projection to pixels
        return self.to_pixels(x)


class ImageAutoEncoder(nn.Module):
    """The masked autoencoder: an encoder that sees the kept patches, a decoder that predicts the others."""

    def __init__(self, shape: AutoEncoderShape):
        super().__init__()
        self.patch_size, self.num_patches = shape.patch_size, shape.num_patches
        self.encoder = ImageEncoder(shape)
        self.decoder = ImageDecoder(shape)

    def forward(self, images: Tensor, kept: Tensor, masked: Tensor | None = None) -> Tensor:
        """
        Args:
            images: (B, 3, H, W).
            kept: (B, K) int64, the patches that the encoder sees.
            masked: (B, M) int64, the patches to predict; None: all N, for a full reconstruction.

        Returns:
            Predicted pixels (B, M, P·P·3), or (B, N, P·P·3), which `unpatchify` makes an image.
        """
        return self.decoder(self.encoder(images, kept), kept, masked)


class CaptionDecoder(nn.Module):
    """Token embeddings and positions, a transformer decoder, and a projection to the vocabulary."""

    def __init__(self, shape: CaptionerShape, memory_size: int):
        """
        Args:
            shape: with the vocabulary that the tokenizer really has.
            memory_size: width of the encoder's features.
        """
        super().__init__()
        size = shape.decoder.hidden_size
        self.context_length = shape.context_length
        self.token_embedding = nn.Embedding(shape.vocabulary_size, size)
        self.embedding_scale = math.sqrt(size)  # Vaswani et al. 2017, section 3.4
        self.positions = nn.Parameter(sinusoids(torch.arange(shape.context_length), size))  # (T, D)
        self.dropout = nn.Dropout(shape.decoder.dropout)
        self.transformer = TransformerDecoder(shape.decoder, memory_size)
        self.to_vocabulary = Linear(size, shape.vocabulary_size)
        initialize(self.token_embedding)
        initialize(self.to_vocabulary)
        if shape.tie_embeddings:  # also section 3.4
            self.to_vocabulary.weight = self.token_embedding.weight

    def new_cache(self, memory: Tensor) -> DecoderCache:
        """An empty cache over memory (B, S, D); see `TransformerDecoder.new_cache`."""
        return self.transformer.new_cache(memory)

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor | None,
        cache: "DecoderCache | StaticCache | None" = None,
        position: int | None = None,
        cross_weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token that follows each token.

        Args:
            tokens: (B, T) int64; with a cache, (B·W, T), those that follow the tokens it holds.
            memory: (B, S, D) the encoder's features; None where a cache holds what is needed of it.
            cache: from `new_cache`; takes in the tokens.
            position: of the first of these tokens in the caption.  None: 0, or where the cache stands.
            cross_weights: a list to which each layer appends where it looked, (B, H, T, S).

        Raises:
            ValueError: a token beyond the context length; a position that is not where the cache stands.
        """
        x = self.token_embedding(tokens) * self.embedding_scale  # (B, T, D)
        x = x + self._positions(tokens.shape[1], cache, position)
        x = self.transformer(self.dropout(x), memory, cache, cross_weights)
        if cache is None:
            return self.to_vocabulary(x)
        # A search sorts these logits, and half precision makes ties of what differs: the weights' own format.
        with without_autocast(x.device):
            return self.to_vocabulary(x.to(self.to_vocabulary.weight.dtype))

    def _positions(
        self, count: int, cache: "DecoderCache | StaticCache | None", position: int | None
    ) -> Tensor:
        """The positions (T, D) of the next `count` tokens."""
        expected = 0 if cache is None else cache.position
        if isinstance(expected, Tensor):  # a step that may be recorded: the position is on the device
            return self.positions.index_select(0, expected)
        position = expected if position is None else position
        if cache is not None and position != expected:
            raise ValueError(f"the cache holds {expected} tokens, but these are said to start at {position}")
        end = position + count
        if position < 0 or end > self.context_length:
            raise ValueError(f"positions {position} to {end - 1} exceed the context of {self.context_length}")
        return self.positions[position:end]


def build_captioner(encoder: AutoEncoderShape, shape: CaptionerShape) -> "TransformerEncoderDecoder":
    """The full captioner: images (B, 3, H, W) and tokens (B, T) to logits (B, T, V).

    Args:
        encoder: of the autoencoder whose encoder it takes over.
        shape: with the vocabulary that the tokenizer really has.
    """
    # Here, for pre-training has no use for beam search and all that goes with it.
    from transformer_components.encoder_decoder import TransformerEncoderDecoder

    return TransformerEncoderDecoder(
        ImageEncoder(encoder), CaptionDecoder(shape, encoder.encoder.hidden_size)
    )
