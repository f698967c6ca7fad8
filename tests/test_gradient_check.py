"""A network part of which should learn and does not ends the run, and the run can go on."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from image_captioner import ImageEncoder
from support.errors import RunError
from tests.training_cases import STACK, assert_same, state_of, train_captions, train_mae, write_config
from training.loop import Trainer
from training.network import gradients_arrive
from training.step import Stepper

FIRST = r"encoder\.transformer\.layers\.1\.self_attention\.query_projection\.weight"  # that gets unfrozen


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """Two epochs of the captioner; in the second the top layer of the encoder is to learn."""
    paths = make_tiny_coco(train=4, val=2, unlabeled=1)
    train_mae(paths["data"], tmp_path, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    encoder = str(tmp_path / "encoder" / "checkpoint1.pt")
    config = write_config(tmp_path, "captioner_config.yaml", decoder=STACK, unfreeze_start_epoch=2)

    def start(out: str, *options: str) -> None:
        fresh = () if "-c" in options else ("-p", encoder)
        train_captions(paths["data"], tmp_path / out, config, *fresh, *options, "--epochs", "2")

    return start


def spoil(patch: pytest.MonkeyPatch, what: Callable) -> None:
    """From here on the features of the encoder are what `what` makes of them."""
    forward = ImageEncoder.forward
    patch.setattr(ImageEncoder, "forward", lambda *given: what(forward(*given)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            torch.Tensor.detach,
            rf"^{FIRST} should learn and gets no gradient \(15 more have none\); the ",
        ),
        (lambda x: x.detach() + 0 * x, rf"^{FIRST} should learn and its gradient is 0, as in all 16 param"),
    ],
)
def test_what_gets_no_gradient_ends_the_run_which_goes_on_once_it_is_mended(
    run, tmp_path, monkeypatch, what, message
):
    """The loss falls all the same, as the decoder learns."""
    with monkeypatch.context() as patch:
        spoil(patch, what)
        with pytest.raises(RunError, match=message):
            run("broken")
    assert state_of(tmp_path / "broken", "captioner")["progress"]["epoch"] == 1
    run("broken", "-c", "last")
    run("whole")
    assert_same(state_of(tmp_path / "broken", "captioner"), state_of(tmp_path / "whole", "captioner"))


def test_a_step_that_is_skipped_says_nothing_and_the_next_one_is_looked_at(run, tmp_path, monkeypatch):
    spoil(monkeypatch, torch.Tensor.detach)
    mean_gradient, norms = Stepper._mean_gradient, []

    def not_finite(stepper, factor):
        norms.append(mean_gradient(stepper, factor))
        return norms[-1] * (math.nan if len(norms) in (5, 6) else 1)  # an epoch has four steps

    monkeypatch.setattr(Stepper, "_mean_gradient", not_finite)
    with pytest.raises(RunError, match=FIRST):
        run("out")
    progress = state_of(tmp_path / "out", "captioner")["progress"]
    assert (progress["epoch"], progress["step"], progress["skipped"]) == (1, 2, 2)


def test_a_step_whose_images_are_all_unreadable_says_nothing(make_tiny_coco, tmp_path, monkeypatch):
    """Its gradients are all 0."""
    paths = make_tiny_coco(train=5, val=2, unlabeled=1)
    config = write_config(tmp_path, "mae_config.yaml", batch_size=1, max_bad_fraction=0.9)
    for picture in list(paths["train_images"].iterdir())[:4]:
        picture.write_bytes(b"<html>")
    weights, account = [], Trainer._account
    monkeypatch.setattr(
        Trainer, "_account", lambda *given: (weights.append(given[2].weight), account(*given))
    )
    train_mae(paths["data"], tmp_path, config, "--epochs", "1")
    assert weights[0] == 0 < max(weights)


def network_of(gradients: dict[str, float | None]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network of such parameters, each a group of its own."""
    network = nn.ParameterDict({name: nn.Parameter(torch.ones(2)) for name in gradients})
    for name, gradient in gradients.items():
        network[name].grad = None if gradient is None else torch.tensor([0.0, gradient])
    return network, torch.optim.SGD([{"params": [p]} for p in network.values()])


@pytest.mark.parametrize("gradients", [{"a": 1.0, "b": None}, {"a": 1.0, "b": 0.0}])
def test_only_what_learns_is_looked_at_and_only_in_a_step_that_counts(gradients):
    network, optimizer = network_of(gradients)
    assert not gradients_arrive(network, optimizer, counts=torch.tensor(False))
    with pytest.raises(RunError, match=r"^b should learn"):
        gradients_arrive(network, optimizer, counts=torch.tensor(True))
    network["b"].requires_grad_(False)
    assert gradients_arrive(network, optimizer, counts=torch.tensor(True))


@pytest.mark.parametrize("elsewhere", [{"a": 1.0, "b": None}, {"a": 1e-30, "b": -1e30}, {"a": 0.0, "b": 0.0}])
def test_all_ranks_come_to_the_same_end(monkeypatch, elsewhere):
    """One that ends alone leaves the others waiting; one whose samples say nothing of a part is no reason."""
    ranks = [network_of(elsewhere), network_of({"a": 2.0, "b": 3.0})]
    parts: list[torch.Tensor] = []
    for rank in ranks:
        end(monkeypatch, rank, total=lambda part: parts.append(part) or part)
    ends = [end(monkeypatch, rank, total=lambda _: sum(parts)) for rank in ranks]
    assert ends == 2 * ["b should learn and gets no gradient" if elsewhere["b"] is None else None]


def end(patch: pytest.MonkeyPatch, rank: tuple, total: Callable) -> str | None:
    """How the check ends on a rank, if the sum over all ranks is what `total` makes of its part."""
    patch.setattr("training.network.distributed.total", total)
    try:
        gradients_arrive(*rank, counts=torch.tensor(True))
    except RunError as error:
        return str(error).partition(";")[0]
    return None
