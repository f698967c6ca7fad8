"""What the work costs at least: floating-point operations of the matrix products, and bytes.

A product of (n, k) by (k, m) is 2·n·k·m operations.  A backward pass is two such products for each of the
forward pass: one for the gradient of the weights and one for that of the inputs, where anything before them
learns.  Norms, softmax and the optimizer are not counted, as is usual for model FLOP utilisation.

Shapes: B images, C captions of each, T tokens, W beams, L length, N patches, K kept patches.
"""

from train_captioner import CaptionerConfig
from train_encoder import MaeConfig
from transformer_components.sublayers import StackConfig

PIXELS = 3  # channels


def mae_step(config: MaeConfig, images: int) -> int:
    """Operations of one optimizer step of the first stage."""
    patches, pixels = config.num_patches, PIXELS * config.patch_size**2
    masked = round(patches * config.masking_ratio)
    kept, size = patches - masked, config.encoder.hidden_size
    embedding = _product(kept, pixels, size)
    between = 0 if size == config.decoder.hidden_size else _product(kept, size, config.decoder.hidden_size)
    rest = (
        _encoder(config.encoder, kept)
        + between
        + _encoder(config.decoder, patches)
        + _product(masked, config.decoder.hidden_size, pixels)
    )
    return images * (2 * embedding + 3 * rest)  # pixels learn nothing


def captioner_step(
    config: CaptionerConfig, mae: MaeConfig, images: int, captions: int, tokens: int, all_learn: bool
) -> int:
    """Operations of one optimizer step of the second stage, each image encoded once for all its captions."""
    stack, patches, size = config.decoder, mae.num_patches, mae.encoder.hidden_size
    embedding = _product(patches, PIXELS * mae.patch_size**2, size)
    encoder = _encoder(mae.encoder, patches)
    memory = stack.num_layers * _keys_and_values(stack, patches, size)
    length = tokens - 1  # the last one is only predicted
    sequence = _decoder(stack, length, length, patches) + _product(
        length, stack.hidden_size, config.vocabulary_size
    )
    if all_learn:
        return images * (2 * embedding + 3 * (encoder + memory + captions * sequence))
    return images * (embedding + encoder + 2 * memory + 3 * captions * sequence)


def beam_search(config: CaptionerConfig, mae: MaeConfig, images: int, length: int, beams: int) -> int:
    """Operations of one search, no beam of which ends early: encoder, then L steps of W beams."""
    stack, patches, size = config.decoder, mae.num_patches, mae.encoder.hidden_size
    once = (
        _product(patches, PIXELS * mae.patch_size**2, size)
        + _encoder(mae.encoder, patches)
        + stack.num_layers * _keys_and_values(stack, patches, size)
    )
    steps = sum(
        (1 if seen == 1 else beams)
        * (_decoder(stack, 1, seen, patches) + _product(1, stack.hidden_size, config.vocabulary_size))
        for seen in range(1, length + 1)
    )
    return images * (once + steps)


def decoding_bytes(config: CaptionerConfig, mae: MaeConfig, images: int, width: int = 4) -> int:
    """Bytes that one step of a search reads at least: the decoder's weights, and the images' keys and values.

    Args:
        width: bytes of a number.
    """
    stack = config.decoder
    per_token = _decoder(stack, 1, 0, 0) + _product(1, stack.hidden_size, config.vocabulary_size)
    weights = per_token // 2  # a token multiplies each weight once
    heads = stack.num_heads * (stack.key_size + stack.value_size)
    return width * (weights + images * stack.num_layers * mae.num_patches * heads)


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _encoder(stack: StackConfig, length: int) -> int:
    layer = (
        _keys_and_values(stack, length, stack.hidden_size)
        + _queries(stack, length, length)
        + _feedforward(stack, length)
    )
    return stack.num_layers * layer


def _decoder(stack: StackConfig, tokens: int, seen: int, memory: int) -> int:
    """Tokens that each look at `seen` tokens and at the memory, whose keys and values are there already."""
    layer = (
        _keys_and_values(stack, tokens, stack.hidden_size)
        + _queries(stack, tokens, seen)
        + _queries(stack, tokens, memory)
        + _feedforward(stack, tokens)
    )
    return stack.num_layers * layer


def _keys_and_values(stack: StackConfig, length: int, size: int) -> int:
    return _product(length, size, stack.num_heads * (stack.key_size + stack.value_size))


def _queries(stack: StackConfig, tokens: int, seen: int) -> int:
    """Projected, compared with what is seen, given its values, and projected back."""
    heads = stack.num_heads * (stack.key_size + stack.value_size)
    return _product(tokens, stack.hidden_size, heads) + _product(tokens, seen, heads)


def _feedforward(stack: StackConfig, tokens: int) -> int:
    return 2 * _product(tokens, stack.hidden_size, stack.feedforward_size)
