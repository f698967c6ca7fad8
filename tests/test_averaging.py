"""The running mean of the weights against torch's own, skipped steps, and the exchange in place."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from support.interrupts import Interrupted
from tests.training_cases import ONE_LAYER, assert_same, record_steps, stage_runner, state_of
from training.optimizer import WARM_UP, WeightAverage


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def walk(model: nn.Module) -> None:
    """Moves the weights a bit, as an optimizer would."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def test_after_its_warm_up_the_mean_is_that_of_torch():
    decay, first = 0.9, 200  # (1 + 200) / (WARM_UP + 200) is above the decay
    assert (1 + first) / (WARM_UP + first) > decay
    model = model_of(1)
    average = WeightAverage(model, decay)
    average.steps = first
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    reference.update_parameters(model)  # its first update copies
    for _ in range(30):
        walk(model)
        average.update(torch.tensor(True))
        reference.update_parameters(model)
    for mean, expected in zip(average.means, reference.module.parameters(), strict=True):
        torch.testing.assert_close(mean, expected)


def test_a_long_run_of_a_high_decay_does_not_remember_its_first_weights():
    model = model_of(1)
    average = WeightAverage(model, 0.9999)
    for parameter in model.parameters():
        parameter.data.zero_()
    for _ in range(40):
        average.update(torch.tensor(True))
    left = [float(mean.abs().max()) for mean in average.means if mean.dim() == 2]
    assert max(left) < 1e-6  # without the warm-up, 0.996 of them were still there


def test_of_trained_weights_the_mean_keeps_what_its_decay_says():
    model = model_of(1)
    average = WeightAverage(model, 0.9, trained=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data.zero_()
    for _ in range(3):
        average.update(torch.tensor(True))
    for mean, first in zip(average.means, before, strict=True):
        torch.testing.assert_close(mean, 0.9**3 * first)


def test_a_step_not_taken_leaves_the_mean_as_it_is():
    model = model_of(2)
    average = WeightAverage(model, 0.5)
    before = [mean.clone() for mean in average.means]
    walk(model)
    average.update(torch.tensor(False))
    assert all(torch.equal(mean, old) for mean, old in zip(average.means, before))


def test_inside_the_model_has_the_mean_and_afterwards_its_own_weights_even_after_an_error():
    model = model_of(3)
    average = WeightAverage(model, 0.9)
    walk(model)
    average.update(torch.tensor(True))
    own, mean = [p.clone() for p in model.parameters()], [m.clone() for m in average.means]
    with average.in_place():
        assert all(torch.equal(p, m) for p, m in zip(model.parameters(), mean))
    assert all(torch.equal(p, o) for p, o in zip(model.parameters(), own))
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert all(torch.equal(p, o) for p, o in zip(model.parameters(), own))
    assert all(torch.equal(a, m) for a, m in zip(average.means, mean))


def test_a_tied_weight_is_averaged_once():
    model = model_of(4)
    model.tied = nn.Linear(5, 2)
    model.tied.weight = model[2].weight
    assert len(WeightAverage(model, 0.9).means) == len(list(model.parameters()))


def test_what_is_tied_in_the_model_is_tied_in_its_means():
    model = model_of(4)
    model.tied = nn.Linear(5, 2)
    model.tied.weight = model[2].weight
    average = WeightAverage(model, 0.9)
    walk(model)
    average.update(torch.tensor(True))
    state = average.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert state["tied.weight"] is state["2.weight"]
    assert not torch.equal(state["2.weight"], model[2].weight)


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_run_that_keeps_a_mean_goes_on_to_the_bit(make_tiny_coco, tmp_path, stage, monkeypatch):
    """And its checkpoint's model is the mean, not the weights that are trained further."""
    run = stage_runner(
        make_tiny_coco(train=10, val=4, unlabeled=3)["data"], tmp_path,
        encoder={"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}}, captioner={"decoder": {**ONE_LAYER}},
    )  # fmt: skip
    switches = {"ema_decay": 0.8, "muon": True} | (
        {"drop_path": 0.5, "patch_dropout": 0.5} if stage == "captioner" else {"crops_per_image": 2}
    )
    run(stage, "whole", "--epochs", "2", **switches)
    with monkeypatch.context() as patch:
        record_steps(patch, stop_after=2)
        with pytest.raises(Interrupted):
            run(stage, "parts", "--epochs", "2", **switches)
    run(stage, "parts", "-c", "last", "--epochs", "2", config=False)
    whole = state_of(tmp_path / "whole", stage)
    assert_same(state_of(tmp_path / "parts", stage), whole)
    assert whole["averaged_steps"] > 0
    assert not all(torch.equal(whole["model"][name], last) for name, last in whole["last_weights"].items())
