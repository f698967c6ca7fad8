"""Captions found on a GPU, beside those that the CPU finds."""

import re
from dataclasses import replace

import pytest
import torch

from coco.tokenizer import PAD, SOS, UNK
from image_transforms import normalize
from support import devices
from tests.captioner_cases import random_captioner
from transformer_components.encoder_decoder import TransformerEncoderDecoder

IMAGES = 12


def captioner_on(device: torch.device, precision: torch.dtype = torch.float32, num_beams: int = 6):
    captioner = random_captioner(num_beams)
    captioner.model.to(device)
    return replace(captioner, device=device, precision=precision)


def drawn_images(count: int = IMAGES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("execution", ["eager", "static", "graphs"])
@pytest.mark.parametrize("num_beams", [1, 6])
def test_captions_are_those_of_the_cpu(device, execution, num_beams, monkeypatch):
    """Token by token; log-probabilities to 1e-4."""
    if execution == "graphs" and device.type == "cpu":
        pytest.skip("CUDA graphs need a GPU")
    expected = captioner_on(torch.device("cpu"), num_beams=num_beams).decode(drawn_images())
    generate = TransformerEncoderDecoder.generate
    fixed = lambda *given, **named: generate(*given, **named, execution=execution)  # noqa: E731
    monkeypatch.setattr(TransformerEncoderDecoder, "generate", fixed)
    captioner = captioner_on(device, num_beams=num_beams)
    for _ in range(2):  # what was recorded once must serve again
        for found, wanted in zip(captioner.decode(drawn_images()), expected, strict=True):
            assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in wanted]
            assert found[0].log_probability == pytest.approx(wanted[0].log_probability, abs=1e-4)


def test_in_half_precision_a_caption_is_as_likely_as_in_float32(device):
    """Other captions may win by rounding; the whole model in float32 finds each as likely, within 1 %."""
    images = drawn_images()
    exact = captioner_on(torch.device("cpu"))
    start = exact.tokenizer.token_to_id(SOS)
    captioner = captioner_on(device, devices.decoding_precision("bfloat16", device))
    for image, (best, *_) in zip(normalize(images), captioner.decode(images), strict=True):
        inputs = torch.tensor([[start, *best.tokens[:-1]]])
        with torch.no_grad():
            logits = exact.model(image[None], inputs)[0]  # (T, V)
        forbidden = [exact.tokenizer.token_to_id(token) for token in (PAD, SOS, UNK)]
        logits[:, forbidden] = float("-inf")
        expected = logits.log_softmax(dim=1)[range(len(best.tokens)), best.tokens].sum().item()
        assert best.log_probability == pytest.approx(expected, rel=0.01)


@pytest.mark.gpu_only
def test_images_that_do_not_fit_in_memory_together_are_decoded_in_halves(device, capsys):
    images = drawn_images(8192)
    captioner = captioner_on(device)
    expected = [best.tokens for best, *_ in captioner.decode(images[:1024])]
    del captioner
    torch.cuda.empty_cache()
    captioner = captioner_on(device)
    torch.cuda.reset_peak_memory_stats()
    captioner.decode(images[:1024])
    enough = 2 * torch.cuda.max_memory_reserved()
    del captioner
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    captioner = captioner_on(device)
    torch.cuda.set_per_process_memory_fraction(enough / total)
    try:
        found = [best.tokens for best, *_ in captioner.decode(images)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert re.search(
        r"no memory to decode 8192 \w+ at once, so it goes on with 4096", capsys.readouterr().err
    )
    assert len(found) == len(images)
    # Sums in another order may make another caption win now and then, where two are equally likely.
    assert sum(one == other for one, other in zip(found, expected)) >= 0.99 * len(expected)
