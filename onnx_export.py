"""A captioner's two halves as ONNX, for programs without torch: `export.py --onnx` writes them.

    encoder.onnx         images (B, 3, H, W) uint8
                         -> memory_keys (L, B, H, S, k), memory_values (L, B, H, S, v)
    decoder_step.onnx    token (B, 1) int64, past_keys (L, B, H, T, k), past_values (L, B, H, T, v), and those
                         -> logits (B, V), keys (L, B, H, T + 1, k), values (L, B, H, T + 1, v)

The first step's past has T = 0; what a step returns is the next one's past.  Each row is one sequence: a beam
search repeats the memory for each beam and reorders the past.

Shapes: L decoder layers, B sequences, H heads (height in images), S patches, T tokens so far, k key size,
v value size, V vocabulary.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from captioner import Captioner
from image_transforms import normalize
from support.errors import UsageError
from transformer_components.encoder_decoder import TransformerEncoderDecoder

ENCODER, STEP = "encoder.onnx", "decoder_step.onnx"
MEMORY, PAST = ["memory_keys", "memory_values"], ["past_keys", "past_values"]


class Encoder(nn.Module):
    """From pixels to what each decoder layer looks at in the image, computed once an image."""

    def __init__(self, model: TransformerEncoderDecoder):
        super().__init__()
        self.encoder, self.layers = model.encoder, model.decoder.transformer.layers

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(normalize(images))  # (B, S, D)
        keys, values = zip(*(layer.cross_attention.project(memory) for layer in self.layers))
        return torch.stack(keys), torch.stack(values)


class GivenLayerCache:
    """As `kv_cache.LayerCache`, of tensors that are handed in and out instead of kept."""

    def __init__(self, past: tuple[Tensor, Tensor], memory: tuple[Tensor, Tensor]):
        self.past, self.memory = past, memory

    def append(self, *new: Tensor) -> tuple[Tensor, Tensor]:
        self.past = tuple(torch.cat(pair, dim=2) for pair in zip(self.past, new))
        return self.past


class GivenCache:
    """As `kv_cache.DecoderCache`, with one beam a source."""

    def __init__(self, past: list[tuple[Tensor, Tensor]], memory: list[tuple[Tensor, Tensor]]):
        self.layers = [GivenLayerCache(*layer) for layer in zip(past, memory)]
        self.position = past[0][0].shape[2]

    def fold(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None  # one new token may look at everything


class DecoderStep(nn.Module):
    """One token more."""

    def __init__(self, model: TransformerEncoderDecoder):
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self,
        token: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cache = GivenCache(
            list(zip(past_keys.unbind(), past_values.unbind())),
            list(zip(memory_keys.unbind(), memory_values.unbind())),
        )
        logits = self.decoder(token, None, cache)  # (B, 1, V)
        keys, values = zip(*(layer.past for layer in cache.layers))
        return logits[:, 0], torch.stack(keys), torch.stack(values)


def require_onnx() -> None:
    """Raises UsageError where the packages of `export_onnx` are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UsageError("--onnx needs onnx and onnxscript: pip install -r requirements-export.txt") from None


def export_onnx(captioner: Captioner, folder: Path) -> None:
    """Writes both, with the batch and the past of any size.

    Raises:
        UsageError: onnx or onnxscript is not installed.
    """
    require_onnx()
    size = captioner.transform.size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    encoder, step = Encoder(captioner.model).eval(), DecoderStep(captioner.model).eval()
    with torch.no_grad():
        memory = encoder(images)
    attention = captioner.model.decoder.transformer.layers[0].self_attention
    layers, batch, heads, _, value_size = memory[1].shape
    key_size = attention.key_projection.out_features // heads
    past = [torch.zeros(layers, batch, heads, 3, width) for width in (key_size, value_size)]
    token = torch.zeros(batch, 1, dtype=torch.int64)
    dynamic, time = torch.export.Dim("batch"), torch.export.Dim("past", min=0)
    _write(encoder, (images,), [{0: dynamic}], ["images"], MEMORY, folder / ENCODER)
    shapes = [{0: dynamic}, *[{1: dynamic, 3: time}] * 2, *[{1: dynamic}] * 2]
    outputs = ["logits", "keys", "values"]
    _write(step, (token, *past, *memory), shapes, ["token", *PAST, *MEMORY], outputs, folder / STEP)


def _write(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    shapes: list[dict],
    inputs: list[str],
    outputs: list[str],
    path: Path,
) -> None:
    torch.onnx.export(
        module, arguments, path, input_names=inputs, output_names=outputs, dynamic_shapes=tuple(shapes),
        external_data=False, verbose=False, dynamo=True,
    )  # fmt: skip
