"""Layers and stacks against torch's, causality, initial weights, and the options' errors."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from transformer_components.decoder import DecoderLayer, TransformerDecoder
from transformer_components.encoder import EncoderLayer, TransformerEncoder
from transformer_components.sublayers import DropPath, StackConfig, initialize, set_drop_path, sinusoids

CONFIG = StackConfig(num_layers=2, num_heads=4, hidden_size=16, key_size=4, value_size=4, feedforward_size=24)
NORMS = pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])


def configured(**changes) -> StackConfig:
    return dataclasses.replace(CONFIG, **changes)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def randomised(module: nn.Module) -> nn.Module:
    """In float64, with no bias 0 and no scale 1, so that a forgotten one shows."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def copy_attention(ours: nn.Module, theirs: nn.Module) -> None:
    projections = (ours.query_projection, ours.key_projection, ours.value_projection)
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for projection, weight, bias in zip(projections, weights, biases):
        projection.load_state_dict({"weight": weight, "bias": bias})
    ours.output_projection.load_state_dict(theirs.out_proj.state_dict())


def copy_layer(ours: nn.Module, theirs: nn.Module) -> None:
    """Copies the weights of torch's layer into ours; the decoder's has attention to the memory too."""
    copy_attention(ours.self_attention, theirs.self_attn)
    residuals = [ours.self_attention_residual, ours.feedforward_residual]
    if isinstance(ours, DecoderLayer):
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        residuals.insert(1, ours.cross_attention_residual)
    for number, residual in enumerate(residuals, start=1):
        residual.norm.load_state_dict(getattr(theirs, f"norm{number}").state_dict())
    ours.feedforward.expand.load_state_dict(theirs.linear1.state_dict())
    ours.feedforward.contract.load_state_dict(theirs.linear2.state_dict())


def torch_layer(kind: type, pre_norm: bool) -> nn.Module:
    return randomised(kind(16, 4, 24, dropout=0.0, batch_first=True, norm_first=pre_norm))


@NORMS
def test_encoder_layer_equals_torch(pre_norm):
    theirs = torch_layer(nn.TransformerEncoderLayer, pre_norm)
    ours = EncoderLayer(configured(pre_norm=pre_norm)).double()
    copy_layer(ours, theirs)
    x = draw(3, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)


@NORMS
def test_decoder_layer_equals_torch(pre_norm):
    theirs = torch_layer(nn.TransformerDecoderLayer, pre_norm)
    ours = DecoderLayer(configured(pre_norm=pre_norm), memory_size=16).double()
    copy_layer(ours, theirs)
    x, memory = draw(3, 6, 16), draw(3, 5, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    expected = theirs(x, memory, tgt_mask=mask, tgt_is_causal=True)
    torch.testing.assert_close(ours(x, memory), expected, rtol=0, atol=1e-10)


@NORMS
def test_stacks_equal_torch(pre_norm):
    """A pre-norm stack ends with one LayerNorm more, or its output grows with its depth."""
    config, norm = configured(pre_norm=pre_norm), nn.LayerNorm(16) if pre_norm else None
    encoder_layer = torch_layer(nn.TransformerEncoderLayer, pre_norm)
    their_encoder = nn.TransformerEncoder(encoder_layer, 2, norm, enable_nested_tensor=False)
    their_decoder = nn.TransformerDecoder(torch_layer(nn.TransformerDecoderLayer, pre_norm), 2, norm)
    ours = (TransformerEncoder(config).double(), TransformerDecoder(config, 16).double())
    for our_stack, their_stack in zip(ours, (randomised(their_encoder), randomised(their_decoder))):
        for our_layer, their_layer in zip(our_stack.layers, their_stack.layers):
            copy_layer(our_layer, their_layer)
        if pre_norm:
            our_stack.final_norm.load_state_dict(norm.state_dict())
    x, memory = draw(3, 6, 16), draw(3, 5, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    torch.testing.assert_close(ours[0](memory), their_encoder(memory), rtol=0, atol=1e-10)
    expected = their_decoder(x, memory, tgt_mask=mask, tgt_is_causal=True)
    torch.testing.assert_close(ours[1](x, memory), expected, rtol=0, atol=1e-10)


@NORMS
def test_a_changed_future_token_leaves_the_past_exactly_alone(pre_norm):
    """Were the mask one off, training would copy its answers from its input and generation babble."""
    decoder = randomised(TransformerDecoder(configured(pre_norm=pre_norm), memory_size=9))
    x, memory = draw(2, 8, 16), draw(2, 5, 9)
    changed = x.clone()
    changed[:, 5:] = draw(2, 3, 16)
    before, after = decoder(x, memory), decoder(changed, memory)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(dim=-1).any()


def test_cross_weights_come_from_each_layer_and_change_nothing():
    decoder = randomised(TransformerDecoder(CONFIG, memory_size=9))
    x, memory, weights = draw(2, 8, 16), draw(2, 5, 9), []
    output = decoder(x, memory, cross_weights=weights)
    assert [w.shape for w in weights] == [(2, 4, 8, 5)] * 2
    torch.testing.assert_close(weights[1].sum(-1), torch.ones(2, 4, 8, dtype=torch.float64))
    torch.testing.assert_close(output, decoder(x, memory), rtol=0, atol=1e-12)


@NORMS
def test_dropout_is_on_the_output_of_each_sublayer_only(pre_norm):
    """Section 5.4 of the paper; dropout on the attention weights too would be another model."""
    layer = DecoderLayer(configured(dropout=0.5, pre_norm=pre_norm), memory_size=16)
    shapes = []
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    x = draw(2, 6, 16).float()
    assert not torch.equal(layer(x, x), layer(x, x))
    assert shapes == [(2, 6, 16)] * 6  # three sublayers, called twice
    layer.eval()
    assert torch.equal(layer(x, x), layer(x, x))


def test_initial_weights_follow_the_table():
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(200, 100), nn.LayerNorm(8), nn.Embedding(500, 64)])
    for parameter in module.parameters():
        nn.init.constant_(parameter, 7.0)
    initialize(module)
    linear, norm, embedding = module.requires_grad_(False)
    bound = math.sqrt(6 / (200 + 100))
    assert 0.98 * bound < linear.weight.abs().max() <= bound
    assert linear.weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert (linear.bias == 0).all()
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert embedding.weight.std() == pytest.approx(1 / 8, rel=0.02)


@NORMS
def test_a_deep_fresh_stack_neither_explodes_nor_dies(pre_norm):
    torch.manual_seed(0)
    encoder = TransformerEncoder(configured(num_layers=12, pre_norm=pre_norm))
    x = torch.randn(4, 10, 16, requires_grad=True)
    output = encoder(x)
    assert output.std().item() == pytest.approx(1, abs=0.05)
    (output * torch.randn(4, 10, 16)).sum().backward()
    assert 1e-3 < x.grad.std() < 1e3


def test_sinusoids_are_those_of_the_paper():
    table = sinusoids(torch.arange(50), 10)
    for position, column in [(0, 0), (0, 1), (7, 4), (49, 9)]:
        angle = position / 10000 ** (column // 2 * 2 / 10)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[position, column].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(sinusoids(torch.arange(50), 9).isnan(), torch.zeros(50, 9, dtype=torch.bool))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"feedforward_size": -3}, "feedforward_size must be at least 1, got -3"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        configured(**changes)


def test_drop_path_leaves_out_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    part = DropPath()
    part.rate = 0.25
    x = torch.rand(4000, 3, 2) + 1
    ratio = (part(x) / x).flatten(1)  # each sample's factor, six times over
    kept = ratio[:, :1] > 0
    torch.testing.assert_close(ratio, torch.where(kept, 1 / 0.75, 0.0).expand_as(ratio))
    assert float(ratio.mean()) == pytest.approx(1, abs=0.03)  # four standard errors of 4,000 draws
    assert torch.equal(part.eval()(x), x)


@NORMS
def test_a_layer_that_is_always_left_out_passes_its_input_on(pre_norm):
    encoder = TransformerEncoder(configured(num_layers=3, pre_norm=pre_norm)).train()
    set_drop_path(encoder.layers, 0.5)
    rates = [part.rate for part in encoder.modules() if isinstance(part, DropPath)]
    assert rates == [0, 0, 0.25, 0.25, 0.5, 0.5]
    top, x = encoder.layers[-1], torch.randn(5, 7, 16)
    set_drop_path(nn.ModuleList([nn.Identity(), top]), 1 - 1e-9)
    expected = x
    if not pre_norm:  # the norms come after the sums
        expected = top.feedforward_residual.norm(top.self_attention_residual.norm(x))
    torch.testing.assert_close(top(x), expected)
