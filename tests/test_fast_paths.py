"""What is fast computes what the plain way does."""

import sys

import pytest
import torch
from torch import nn

from tests.captioner_cases import random_captioner, random_model
from train_captioner import parameter_groups, unfreeze
from transformer_components.beam_search import BeamSearchOptions, beam_search
from transformer_components.sublayers import ENOUGH_ROWS, FEW_ROWS, Linear


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 2, 7), (FEW_ROWS, 7), (FEW_ROWS + 1, 7), (0, 7)])
def test_linear_with_few_rows_equals_torchs(shape):
    torch.manual_seed(0)
    ours, theirs = Linear(7, 5).double(), nn.Linear(7, 5).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        actual = ours(x)
    torch.testing.assert_close(actual, theirs(x).detach(), rtol=0, atol=1e-14)
    assert actual.is_contiguous()


@pytest.fixture
def convolutions(monkeypatch) -> list:
    """On a CPU whose convolutions are faster than its products: those that are made."""
    capabilities = {"cpu_name": "AMD EPYC", "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    made, real = [], nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *tensors: made.append(tensors) or real(*tensors))
    return made


@pytest.mark.parametrize("shape", [(ENOUGH_ROWS, 7), (4, ENOUGH_ROWS, 7), (3, 5, 6, 7)])
def test_a_product_as_a_convolution_equals_torchs_product(convolutions, shape):
    torch.manual_seed(0)
    ours, theirs = Linear(7, 5), nn.Linear(7, 5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    x = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    made = [ours(x[0]), theirs(x[1])]
    assert len(convolutions) == 1
    weights = torch.randn_like(made[0])
    for result in made:
        (result * weights).sum().backward()
    gradients = [
        [x[0].grad, *(p.grad for p in ours.parameters())],
        [x[1].grad, *(p.grad for p in theirs.parameters())],
    ]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-4)


def test_a_product_is_a_convolution_only_where_that_is_faster(monkeypatch, convolutions):
    layer, x = Linear(7, 5), torch.randn(ENOUGH_ROWS, 7)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    layer(x[1:])
    layer.double()(x.double())
    layer.float()
    torch.compile(layer, backend="eager", fullgraph=True)(x)
    for other in ({"cpu_name": "AMD EPYC"}, {"cpu_name": "Intel Xeon", "avx512_f": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda other=other: other)
        layer(x)
    assert not convolutions


def test_linear_turns_around_only_for_few_rows_in_float32_and_without_gradients(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    turned = []
    real = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *factors: turned.append(factors) or real(*factors))
    layer = Linear(7, 5)
    layer(torch.randn(2, 7)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    with torch.no_grad():
        layer(torch.randn(FEW_ROWS + 1, 7))
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.randn(FEW_ROWS, 7))
        assert not turned
        layer(torch.randn(FEW_ROWS, 7))
    assert len(turned) == 1


@pytest.mark.parametrize("seed", range(5))
def test_looking_seldom_which_sources_are_finished_changes_no_hypothesis(monkeypatch, seed):
    """On a GPU a finished source stays in the batch until somebody looks."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, 9, 9, generator=generator, dtype=torch.float64)  # source, last token, next token
    table[:, :, 1] += torch.tensor([3.0, 1.0, 0.0, -2.0])[:, None]  # some sources end sooner
    sources_left = []

    def search() -> list:
        sources = torch.arange(4)

        def step(tokens, rows):
            nonlocal sources
            width = beams[-1] if beams else 1
            sources = sources[rows[:, 0] // width]
            beams.append(tokens.shape[1])
            sources_left.append(len(sources))
            return table[sources[:, None], tokens]

        beams: list[int] = []
        return beam_search(step, 4, BeamSearchOptions(13, 3, n_best=3), 0, 1, forbidden_tokens=(0,))

    often = search()
    looked_often = sum(sources_left)
    sources_left.clear()
    module = sys.modules["transformer_components.beam_search"]  # the package has a function of that name
    monkeypatch.setattr(module, "STEPS_BETWEEN_LOOKS", {"cpu": 5})
    assert search() == often
    assert sum(sources_left) > looked_often


def test_decoding_goes_on_with_half_the_pictures_where_memory_runs_out(monkeypatch, capsys):
    captioner = random_captioner()
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    expected = captioner.decode(images)
    real, sizes = captioner.model.generate, []

    def generate(images, *arguments, **options):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(images, *arguments, **options)

    monkeypatch.setattr(captioner.model, "generate", generate)
    found = captioner.decode(images)
    assert [best.tokens for best, *_ in found] == [best.tokens for best, *_ in expected]
    assert sizes == [7, 4, 2, 2, 3, 2, 1]
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 3
    assert "no memory to decode 7 pictures at once" in notes[0]


def test_one_picture_that_does_not_fit_is_an_error(monkeypatch):
    captioner = random_captioner()

    def generate(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(captioner.model, "generate", generate)
    with pytest.raises(torch.OutOfMemoryError):
        captioner.decode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_frozen_encoder_keeps_no_activation_and_gets_no_gradient():
    """Counted by what autograd saves inside the encoder: as much as nothing, until one layer learns."""
    torch.manual_seed(0)
    model = random_model(50, 12, image_size=16).train()
    images, tokens = torch.randn(2, 3, 16, 16), torch.randint(50, (2, 9))
    groups = parameter_groups(model, 1e-3, 0.7)
    saved, kept = {}, []
    for learning in (1, 2, len(groups)):
        unfreeze(groups, learning)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            features = model.encoder(images)
        saved[learning] = len(kept)
        model.zero_grad()
        model(images, tokens).sum().backward()
        gradients = [parameter.grad is not None for parameter in model.encoder.parameters()]
        assert features.requires_grad == any(gradients) == (learning > 1)
    assert saved[1] == 0 < saved[2] < saved[len(groups)]
