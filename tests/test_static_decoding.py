"""Decoding in steps of one fixed shape finds what decoding in shapes that shrink and grow does."""

import copy
import pickle

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
from transformer_components import static_decoding
from transformer_components.static_decoding import STEPS_BETWEEN_LOOKS, Plan, StaticDecoding

CPU = torch.device("cpu")


@pytest.fixture
def plans(monkeypatch) -> list[Plan]:
    """Those that a test makes, in their order."""
    made = []
    build = Plan.__init__

    def note(self, *arguments):
        build(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Plan, "__init__", note)
    return made


@pytest.mark.parametrize("execution", ["static", "graphs"])  # on a CPU, `graphs` is the same in chunks
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize(
    "options",
    [(CONTEXT, 1, 0.0, 1), (CONTEXT, 6, 0.8, 6), (17, 3, 2.0, 2), (1, 5, 1.0, 5), (16, 50, 0.8, 50)],
)
def test_it_finds_what_the_eager_search_finds(execution, pre_norm, options):
    """50 beams are more than there are tokens: at first there are not so many hypotheses."""
    model = restless_captioner(pre_norm=pre_norm)
    expected = decode(model, random_images(5), "eager", options)
    if options[0] == CONTEXT:
        lengths = {len(hypothesis.tokens) for of_source in expected for hypothesis in of_source}
        assert len(lengths) > 2 or options[1] == 1
    check_same(decode(model, random_images(5), execution, options), expected)


def test_a_plan_serves_other_images_other_weights_and_fewer_sources(plans):
    """The faulty version went on with the weights of the first decoding."""
    model, other = restless_captioner(), restless_captioner(seed=2)
    images = random_images(13)
    for batch in changing_batches(model, other, images):
        check_same(decode(model, batch, "static"), decode(model, batch, "eager"))
    assert len(plans) == 1


def test_a_batch_that_is_larger_or_much_smaller_gets_a_plan_of_its_own(plans):
    model, images = restless_captioner(), random_images(9)
    for count in (8, 9, 4, 2):  # 9 does not fit in 8; 4 is less than half of 9; 2 leaves half of 4 idle
        check_same(decode(model, images[:count], "static"), decode(model, images[:count], "eager"))
    assert [plan.capacity for plan in plans] == [8, 9, 4, 2]


@pytest.mark.parametrize("change", ["options", "precision"])
def test_other_options_or_another_precision_get_a_plan_of_their_own(plans, change):
    model, images = restless_captioner(), random_images(4)
    decode(model, images, "static")
    if change == "options":
        found = decode(model, images, "static", (CONTEXT, 4, 0.1, 4))
        check_same(found, decode(model, images, "eager", (CONTEXT, 4, 0.1, 4)))
    else:
        with autocast(CPU, torch.bfloat16):
            decode(model, images, "static")
    assert len(plans) == 2


def test_what_one_decoding_leaves_behind_does_not_reach_the_next():
    """What is masked counts zero times, but zero times NaN is NaN."""
    model, images = restless_captioner(), random_images(4)
    decode(model, images, "static")
    layer = model.static_decoding._plan.cache.layers[0]
    for storage in layer.stored:
        storage.fill_(float("nan"))
    check_same(decode(model, images, "static"), decode(model, images, "eager"))


def test_broken_weights_are_an_error_once_and_not_for_ever():
    model, images = restless_captioner(), random_images(4)
    whole = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.decoder.transformer.layers[0].self_attention.value_projection.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        decode(model, images, "static")
    model.load_state_dict(whole)
    check_same(decode(model, images, "static"), decode(model, images, "eager"))


def test_under_autocast_the_products_weights_are_cast_once_and_the_logits_stay_float32():
    model, images = restless_captioner(), random_images(8)
    with autocast(CPU, torch.bfloat16):
        expected = decode(model, images, "eager")
        found = decode(model, images, "static")
    plan = model.static_decoding._plan
    assert plan.decoder.transformer.layers[1].feedforward.expand.weight.dtype is torch.bfloat16
    assert plan.decoder.to_vocabulary.weight.dtype is torch.float32
    assert plan.cache.layers[0].stored[0].dtype is torch.bfloat16
    for of_source, wanted in zip(found, expected):
        assert of_source[0].score == pytest.approx(wanted[0].score, rel=0.03)
        assert of_source[0].tokens[0] == wanted[0].tokens[0]
    assert model.decoder.transformer.layers[1].feedforward.expand.weight.dtype is torch.float32


def test_it_ends_soon_after_the_last_hypothesis_does(monkeypatch):
    model, images, steps = restless_captioner(), random_images(3), []
    with torch.no_grad():
        model.decoder.to_vocabulary.bias[2] += 60  # END
    step = Plan._step
    monkeypatch.setattr(Plan, "_step", lambda self: (steps.append(1), step(self)))
    check_same(decode(model, images, "static"), decode(model, images, "eager"))
    assert len(steps) == STEPS_BETWEEN_LOOKS


def test_a_model_that_has_decoded_can_be_copied_and_pickled():
    """Recordings cannot: the copy makes its own."""
    model, images = restless_captioner(), random_images(4)
    expected = decode(model, images, "static")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.static_decoding._plan is None
        check_same(decode(twin, images, "static"), expected)


def test_without_memory_for_a_plan_the_search_is_eager(monkeypatch):
    model, images = restless_captioner(), random_images(4)
    expected = decode(model, images, "eager")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(static_decoding, "Plan", fail)
    check_same(decode(model, images, "graphs"), expected)
    assert model.static_decoding._plan is None


def test_a_cpu_decodes_eagerly(monkeypatch):
    model, images = restless_captioner(), random_images(4)
    monkeypatch.setattr(StaticDecoding, "search", lambda *_: pytest.fail("static"))
    assert decode(model, images, "auto") == decode(model, images, "eager")


def test_a_step_touches_nothing_that_lies_elsewhere_and_asks_the_device_nothing(monkeypatch):
    """On "meta", which computes nothing, and refuses tensors that lie elsewhere and questions for values."""
    model, searches = restless_captioner().to("meta"), []
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: False)  # whether all are finished
    monkeypatch.setattr(static_decoding, "hypotheses_of", lambda *_: searches.append(1))
    for _ in range(2):
        decode(model, torch.zeros(4, 3, 32, 32, device="meta"), "static")
    assert len(searches) == 2


def test_no_sources_give_no_hypotheses():
    assert decode(restless_captioner(), random_images(0), "static") == []
