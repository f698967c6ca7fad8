"""Muon beside AdamW: what moves how, what a checkpoint brings back, what a skipped step leaves alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from image_captioner import ImageAutoEncoder, build_captioner
from support.configuration import load_config
from tests.training_cases import write_config
from train_captioner import CaptionerConfig, parameter_groups
from train_encoder import MaeConfig
from training.optimizer import new_optimizer, restore_moments


@pytest.fixture
def encoder_config(tmp_path) -> MaeConfig:
    path = write_config(tmp_path, "mae_config.yaml", muon=True, decay_matrices_only=True)
    return load_config(path, MaeConfig)


def build(config: MaeConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = ImageAutoEncoder(config)
    groups = [{"params": list(model.parameters()), "base_lr": 0.01}]
    return model, new_optimizer(model, groups, config)


def learn(model: nn.Module, seed: int, step: Callable[[], object]) -> None:
    """A step from made-up gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    step()


def is_matrix_of_a_layer(name: str, parameter: Tensor) -> bool:
    return "transformer.layers" in name and parameter.dim() == 2


def test_the_layers_matrices_move_by_muon_and_all_else_by_adamw(encoder_config):
    """Beside torch's two on copies, decay from the same file, biases spared; a checkpoint in between."""
    model, optimizer = build(encoder_config)
    other = copy.deepcopy(model)
    named = dict(other.named_parameters())
    matrices = [p for name, p in named.items() if is_matrix_of_a_layer(name, p)]
    spared = [p for name, p in named.items() if p.dim() < 2 or name.endswith("positions")]
    rest = [p for p in named.values() if not any(p is q for q in matrices + spared)]
    assert len(matrices) == 6 * 4, "of two layers of the encoder and two of the decoder"
    assert rest
    decay = encoder_config.weight_decay
    theirs = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": rest, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}],
            lr=0.01, betas=(0.9, encoder_config.beta2), fused=True,
        ),
    ]  # fmt: skip
    for seed in range(4):
        learn(model, seed, optimizer.step)
        learn(other, seed, lambda: [part.step() for part in theirs])
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, named[name]), (seed, name)
        if seed == 1:
            weights, saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            model, optimizer = build(encoder_config)
            model.load_state_dict(weights)
            restore_moments(optimizer, saved)


def test_a_matrix_moves_by_as_much_in_every_direction(encoder_config):
    """Its first step is the gradient's U Vᵀ, up to Newton's and Schulz's error, by 0.2 √(longer side)."""
    model, optimizer = build(encoder_config)
    name, matrix = next((n, p) for n, p in model.named_parameters() if is_matrix_of_a_layer(n, p))
    before = matrix.detach().clone()
    learn(model, 0, optimizer.step)
    left, _, right = torch.linalg.svd(matrix.grad, full_matrices=False)
    moved = before * (1 - 0.01 * encoder_config.weight_decay) - matrix.detach()
    along = left.T @ moved @ right.T / (0.01 * 0.2 * max(matrix.shape) ** 0.5)
    assert ((along.diagonal() > 0.5) & (along.diagonal() < 1.4)).all(), name
    assert (along - along.diagonal().diag()).abs().max() < 0.1


def test_a_skipped_step_moves_nothing_and_is_forgotten(encoder_config):
    moved = []
    for skips in (False, True):
        model, optimizer = build(encoder_config)
        learn(model, 0, optimizer.step)
        if skips:
            optimizer.found_inf = torch.tensor(1.0)
            before = copy.deepcopy(model.state_dict())
            learn(model, 1, optimizer.step)
            assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        optimizer.found_inf = torch.tensor(0.0)
        learn(model, 2, optimizer.step)
        moved.append(model.state_dict())
    assert all(torch.equal(value, moved[1][name]) for name, value in moved[0].items())


def test_a_captioners_groups_keep_their_rates(tmp_path, encoder_config):
    config = load_config(write_config(tmp_path, "captioner_config.yaml", muon=True), CaptionerConfig)
    model = build_captioner(encoder_config, config)
    groups = parameter_groups(model, 1.0, 0.7)
    rates = {p: group["base_lr"] for group in groups for p in group["params"]}
    optimizer = new_optimizer(model, groups, config)
    found = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found == rates
    assert len(set(rates.values())) > 2
