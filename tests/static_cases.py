"""A captioner whose captions differ in words and length, and the comparison of two decodings."""

from collections.abc import Iterator

import pytest
import torch

from tests.captioner_cases import random_model
from transformer_components.beam_search import BeamSearchOptions, Hypothesis
from transformer_components.encoder_decoder import TransformerEncoderDecoder

PAD, START, END, UNKNOWN, VOCABULARY, CONTEXT = 0, 1, 2, 3, 40, 24


def restless_captioner(seed: int = 0, device: str = "cpu", **changes) -> TransformerEncoderDecoder:
    """Random weights so large that each token depends on image and history; it ends now and then."""
    torch.manual_seed(seed)
    model = random_model(VOCABULARY, CONTEXT, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.42 * torch.randn_like(parameter))
        model.decoder.token_embedding.weight.mul_(5)
        model.decoder.to_vocabulary.bias[END] += 3
    return model.to(device)


def random_images(count: int, device: str = "cpu") -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7)).to(device)


def changing_batches(
    model: TransformerEncoderDecoder, other: TransformerEncoderDecoder, images: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Batches of eight images and fewer, of 13; from the third on, `model` has the weights of `other`."""
    for weights, batch in (
        (model, images[:8]),
        (model, images[8:]),
        (other, images[:6]),
        (other, images[:8]),
    ):
        model.load_state_dict(weights.state_dict())
        yield batch


def decode(
    model: TransformerEncoderDecoder, images: torch.Tensor, execution: str, options=(CONTEXT, 4, 0.8, 4)
) -> list[list[Hypothesis]]:
    forbidden = [PAD, START, UNKNOWN]
    return model.generate(images, BeamSearchOptions(*options), START, END, forbidden, execution=execution)


def check_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]], tolerance: float = 1e-5):
    """Equal tokens, and log-probabilities within `tolerance` of each token."""
    assert [[h.tokens for h in of_source] for of_source in found] == [
        [h.tokens for h in of_source] for of_source in expected
    ]
    for of_source, wanted in zip(found, expected):
        for h, w in zip(of_source, wanted):
            assert h.token_log_probabilities == pytest.approx(w.token_log_probabilities, abs=tolerance)
            assert h.log_probability == pytest.approx(w.log_probability, abs=tolerance * len(w.tokens))
            assert h.score == pytest.approx(w.score, abs=tolerance * len(w.tokens))
