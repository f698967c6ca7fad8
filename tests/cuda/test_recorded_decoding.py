"""Steps of decoding that are recorded as CUDA graphs and replayed, beside the same steps as they come."""

import warnings

import pytest
import torch

from support.devices import autocast
from tests.static_cases import (
    CONTEXT,
    changing_batches,
    check_same,
    decode,
    random_images,
    restless_captioner,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_replay_finds_what_the_eager_search_finds(pre_norm):
    """Also with other weights and fewer sources, for which nothing is recorded anew."""
    model = restless_captioner(device="cuda", pre_norm=pre_norm)
    other = restless_captioner(seed=2, device="cuda", pre_norm=pre_norm)
    images = random_images(13, "cuda")
    recorded = None
    for batch in changing_batches(model, other, images):
        expected = decode(model, batch, "eager")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as when a recording fails
            check_same(decode(model, batch, "graphs"), expected, 1e-4)
        plan = model.static_decoding._plan
        assert plan.graphs
        assert recorded in (None, plan)
        recorded = plan


def test_a_consensus_by_replays_is_that_of_the_eager_steps():
    """The second time nothing is recorded, neither for the search nor for the samples."""
    model, images = restless_captioner(device="cuda"), random_images(8, "cuda")
    options, plans = (CONTEXT, 4, 0.8, 4, 8), []
    expected = decode(model, images, "eager", options)
    for _ in range(2):
        found = decode(model, images, "graphs", options)
        check_same(found, expected, 1e-4)
        assert [h.score for of in found for h in of] == pytest.approx(
            [h.score for of in expected for h in of]
        )
        plans.append((model.static_decoding._plan, model.static_sampling._plan))
        assert all(plan.graphs for plan in plans[-1])
    assert plans[0] == plans[1]


def test_a_gpu_replays_by_itself():
    model = restless_captioner(device="cuda")
    decode(model, random_images(4, "cuda"), "auto")
    assert model.static_decoding._plan.graphs


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_replay_under_autocast_gives_the_bits_of_the_static_steps(precision):
    """Twice, with other weights in between: no weight that autocast has cast is kept in the recording."""
    model, other = restless_captioner(device="cuda"), restless_captioner(seed=2, device="cuda")
    images = random_images(8, "cuda")
    for weights in (model, other):
        model.load_state_dict(weights.state_dict())
        with autocast(torch.device("cuda"), precision):
            replayed = decode(model, images, "graphs")
            assert model.static_decoding._plan.graphs
            step_by_step = decode(model, images, "static")
            model.static_decoding.release()
        assert [h[0].tokens for h in replayed] == [h[0].tokens for h in step_by_step]
        check_same(replayed, step_by_step, 1e-2)


def test_where_nothing_can_be_recorded_it_goes_on_step_by_step(monkeypatch):
    model, images = restless_captioner(device="cuda"), random_images(4, "cuda")
    expected = decode(model, images, "eager")

    class Unrecordable:
        def __init__(self):
            raise RuntimeError("no graphs on this device")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Unrecordable)
    with pytest.warns(UserWarning, match="without CUDA graphs: no graphs on this device"):
        found = decode(model, images, "graphs")
    check_same(found, expected, 1e-4)


def test_compiled_steps_find_what_the_eager_search_finds():
    model, images = restless_captioner(device="cuda"), random_images(4, "cuda")
    expected = decode(model, images, "eager")
    check_same(decode(model, images, "compiled"), expected, 1e-3)
