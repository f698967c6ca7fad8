"""The learning rate against torch's own schedulers, step by step."""

import pytest
import torch

from training.optimizer import learning_rate_factor

STEPS = 7  # of an epoch
SETTINGS = {
    "warmup_epochs": 2,
    "total_epochs": 9,
    "start_factor": 0.05,
    "floor": 0.01,
}


def factor(update: int, **changes: float) -> float:
    return learning_rate_factor(update / STEPS, **SETTINGS | changes)


def test_it_is_torchs_linear_warm_up_and_cosine_annealing_per_step():
    """The public original moved the rate once an epoch: a staircase of eight steps for a warm-up."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warmup, total = 2 * 7, 9 * 7
    schedulers = torch.optim.lr_scheduler
    expected = schedulers.SequentialLR(
        optimizer,
        [
            schedulers.LinearLR(optimizer, start_factor=0.05, total_iters=warmup),
            schedulers.CosineAnnealingLR(optimizer, total - warmup, eta_min=0.01),
        ],
        milestones=[warmup],
    )
    for update in range(total):
        assert factor(update) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        expected.step()


def test_no_two_steps_of_the_warm_up_share_a_rate():
    rates = [factor(update) for update in range(15)]
    assert len(set(rates)) == 15
    assert rates[0] == 0.05
    assert max(rates) == rates[14] == 1.0


@pytest.mark.parametrize("update", [63, 64, 10_000])
def test_it_stays_at_the_floor_after_the_last_step(update):
    assert factor(update) == pytest.approx(0.01)


def test_without_a_warm_up_it_starts_at_the_full_rate():
    assert factor(0, warmup_epochs=0) == 1.0
