"""Multinomial sampling: frequencies as the model says, the same in fixed and in shrinking shapes."""

import itertools
from collections import Counter

import pytest
import torch

from support.devices import autocast
from tests.static_cases import (
    CONTEXT,
    END,
    PAD,
    START,
    UNKNOWN,
    VOCABULARY,
    random_images,
    restless_captioner,
)
from transformer_components.sampling import draw, sample

FORBIDDEN = [PAD, START, UNKNOWN]


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """A fine comb of numbers hits each token for its share of the interval."""
    logits = torch.tensor([1.0, -2.0, float("-inf"), 0.5, 3.0, float("-inf")])
    comb = torch.arange(10_000) / 10_000
    tokens = draw(logits.expand(10_000, 6), comb)
    shares = torch.bincount(tokens, minlength=6) / 10_000
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=2e-4)
    assert tokens.tolist() == sorted(tokens.tolist())


def test_a_number_on_the_border_belongs_to_the_token_above():
    """So that each token has its whole interval, 0 included."""
    assert draw(torch.zeros(4, 4), torch.tensor([0.0, 0.25, 0.5, 0.75])).tolist() == [0, 1, 2, 3]


def test_a_token_of_no_chance_is_never_drawn():
    """Where sums are rounded, the number may fall behind the last token that has a chance."""
    logits = torch.full((3, 5), float("-inf"))
    logits[0, 0] = logits[1, 2] = logits[2, 4] = 0.0
    for number in (0.0, 0.5, 1 - 2**-24, 1.0):
        assert draw(logits, torch.full((3,), number)).tolist() == [0, 2, 4]


def test_samples_have_the_models_probabilities():
    """All sequences of a toy model, against their exact probabilities."""
    table = torch.tensor([[0.0, 0.2, 0.5, 0.3], [0.0, 1.0, 0, 0], [0.0, 0.6, 0.1, 0.3], [0.0, 0.1, 0.6, 0.3]])
    end = 1

    def step(tokens, rows):
        return table.log()[tokens]

    count = 40_000
    found = sample(step, uniform(count // 4, 4, 3), 0, end, [0]).flatten(0, 1)
    frequencies = Counter(map(tuple, found.tolist()))
    for tokens in itertools.product(range(4), repeat=3):
        probability = table[0, tokens[0]] * table[tokens[0], tokens[1]] * table[tokens[1], tokens[2]]
        error = 4 * (probability * (1 - probability) / count).sqrt() + 1e-9
        assert frequencies[tokens] / count == pytest.approx(float(probability), abs=float(error)), tokens


@pytest.mark.parametrize("execution", ["static", "graphs"])
@pytest.mark.parametrize("max_length", [1, 17, CONTEXT])
def test_fixed_shapes_draw_what_shrinking_ones_do(execution, max_length):
    """Also by the plan of a larger batch, and with other numbers."""
    model = restless_captioner()
    memory = model.encoder(random_images(7)).detach()
    for count, seed in ((7, 0), (5, 1)):
        arguments = (memory[:count], uniform(count, 5, max_length, seed=seed), START, END, FORBIDDEN)
        expected = model.sample(*arguments, execution="eager")
        assert torch.equal(model.sample(*arguments, execution=execution), expected)
    assert len(set(map(tuple, expected.flatten(0, 1).tolist()))) > (5 if max_length > 1 else 1)


def test_a_sample_does_not_depend_on_the_batch_that_it_is_drawn_in():
    model, numbers = restless_captioner(), uniform(6, 3, CONTEXT)
    memory = model.encoder(random_images(6)).detach()
    together = model.sample(memory, numbers, START, END, FORBIDDEN)
    for b in range(6):
        alone = model.sample(memory[b : b + 1], numbers[b : b + 1], START, END, FORBIDDEN)
        assert torch.equal(alone[0], together[b])


def test_samples_end_with_the_end_token_and_hold_nothing_forbidden():
    model = restless_captioner()
    found = model.sample(
        model.encoder(random_images(6)), uniform(6, 4, CONTEXT), START, END, [*FORBIDDEN, 5, 6, 7]
    )
    assert found.shape == (6, 4, CONTEXT)
    assert not torch.isin(found, torch.tensor([*FORBIDDEN, 5, 6, 7])).any()
    ended = (found == END).cummax(dim=2).values
    assert (found[ended] == END).all()
    assert found.max() < VOCABULARY


def test_sampling_leaves_modes_gradients_and_autocast_alone():
    """Weights that autocast has cast without gradients must not serve the pass that wants them."""
    model = restless_captioner().train()
    images, numbers = random_images(3), uniform(3, 2, CONTEXT)
    tokens = torch.randint(4, VOCABULARY, (3, 6))

    def gradients(sampled: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with autocast(torch.device("cpu"), torch.bfloat16):
            if sampled:
                found = model.sample(model.encoder(images), numbers, START, END, FORBIDDEN)
                assert not found.is_inference()
            model(images, tokens).float().square().mean().backward()
        assert all(module.training for module in model.modules())
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients(sampled=False)
    for name, gradient in gradients(sampled=True).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_more_tokens_than_the_context_are_refused():
    model = restless_captioner()
    with pytest.raises(ValueError, match="max_length 25 is more than the decoder's context of 24"):
        model.sample(model.encoder(random_images(1)), uniform(1, 2, CONTEXT + 1), START, END)
