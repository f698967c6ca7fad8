"""The self-critical stage: reward, gradient, learning, resume."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coco.tokenizer import EOS
from image_captioner import visible_patches
from image_transforms import normalize
from scoring.metrics import Cider, image_scores, image_statistics, ptb_tokenize
from self_critical import CiderReward, Images, SelfCritical, advantages
from tests.captioner_cases import random_captioner
from transformer_components.sampling import token_lists

REFERENCES = {
    1: ["a dog runs on a road.", "A brown dog, running."],
    2: ["a cat sits on a red mat, near a dog.", "a cat on a mat"],
    3: ["a jogger on a road", "someone runs"],
    5: ["a rower near a cat", "a rower sits"],
}
HALF = partial(visible_patches, num_patches=16, dropout=0.5)
LATER = {9: ["a dog sits near a cat"], 10: []}


@pytest.fixture
def captioner():
    return random_captioner()


@pytest.fixture
def reward(captioner):
    return CiderReward(REFERENCES.items(), LATER.items(), captioner.tokenizer)


def tokens_of(captioner, text: str, ended: bool = True) -> list[int]:
    ids = captioner.tokenizer.encode(text).ids[1:]  # without <SOS>
    return ids if ended else ids[:-1]


def test_the_reward_is_the_metric_with_the_end_as_a_word(captioner, reward):
    """The oracle is the evaluation's own CIDEr-D, one hypothesis an image, over all training images."""
    hypotheses = {1: "a dog runs on a mat.", 2: "a cat near a cat", 3: "someone runs", 5: "a a a a"}

    def with_end(captions: list[str]) -> list[str]:
        return [f"{caption} {EOS}" for caption in ptb_tokenize(captions)]

    expected = image_scores(image_statistics(REFERENCES, hypotheses, with_end))["CIDEr"].tolist()
    samples = [[tokens_of(captioner, text)] for text in hypotheses.values()]
    assert [captioner.tokenizer.decode(s[0]) for s in samples] == [
        t.rstrip(".") + ("." if t.endswith(".") else "") for t in hypotheses.values()
    ]
    assert [row[0] for row in reward(list(hypotheses), samples)] == pytest.approx(expected, abs=1e-12)
    assert max(expected) > 1


def test_a_caption_that_breaks_off_scores_less_than_one_that_ends(captioner, reward):
    whole, broken = (tokens_of(captioner, "a dog runs on a road", ended) for ended in (True, False))
    ((ended, cut),) = reward([1], [[whole, broken]])
    assert ended > cut


def test_word_weights_are_those_of_the_training_captions_alone(captioner, reward):
    """Images that are only scored do not count; one without captions gives 0."""
    cider = Cider(
        [[*caption.split(), EOS] for caption in ptb_tokenize(texts)] for texts in REFERENCES.values()
    )
    tokens = tokens_of(captioner, "a dog sits near a cat")
    words = [*["a", "dog", "sits", "near", "a", "cat"], EOS]
    expected = cider.score(cider.vector(words), [cider.vector(words)])
    assert reward([9, 10, -1], [[tokens], [tokens], [tokens]]) == [[pytest.approx(expected)], [0.0], [0.0]]


def test_the_baseline_is_the_mean_of_the_other_samples():
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert advantages(rewards).tolist() == [[1 - 4.0, 2 - 3.5, 6 - 1.5]]


class TinyPolicy(torch.nn.Module):
    """A captioner of its own: V logits after each token, the same for all images but for a shift."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(vocabulary, vocabulary, dtype=torch.float64))
        self.encoder = lambda images, kept: images.mean(dim=(1, 2, 3)).double()[:, None, None]
        self.decoder = lambda tokens, memory: self._logits(tokens, memory)

    def _logits(self, tokens, memory):
        shift = memory.repeat_interleave(len(tokens) // len(memory), dim=0)  # (B·W, 1, 1)
        return self.table[tokens] * (1 + shift)

    def forward(self, images, tokens, kept):
        return self._logits(tokens, self.encoder(images, kept))


@pytest.mark.parametrize("as_network", [True, False])
def test_the_estimate_is_the_gradient_of_the_expected_reward(captioner, as_network):
    """By enumeration: of all pairs of samples, each with its probability, against autograd through E[r]."""
    torch.manual_seed(3)
    start, end = (captioner.tokenizer.token_to_id(token) for token in ("<SOS>", EOS))
    vocabulary = max(captioner.tokenizer.token_to_id(token) for token in ("<PAD>", "<SOS>", EOS, "<UNK>")) + 3
    policy = TinyPolicy(vocabulary)
    words = [
        v for v in range(vocabulary) if captioner.tokenizer.id_to_token(v) not in ("<PAD>", "<SOS>", "<UNK>")
    ]
    assert end in words
    sequences = [(end,)] + [(w, last) for w in words if w != end for last in words]
    worth = {sequence: float(torch.randn(())) for sequence in sequences}
    captioner.model = policy
    stage = SelfCritical(captioner, lambda _, samples: [[worth[tuple(t)] for t in s] for s in samples], 2)
    batch = Images(torch.full((1, 3, 2, 2), 90, dtype=torch.uint8), torch.tensor([1]), torch.tensor([7]))
    padded = {s: torch.tensor([*s, *[end] * (2 - len(s))]) for s in sequences}

    def log_probabilities() -> torch.Tensor:
        logits = policy.table.clone()
        logits[:, [v for v in range(vocabulary) if v not in words]] = float("-inf")
        shift = policy.encoder(normalize(batch.images), None)[0, 0, 0]
        table = (logits * (1 + shift)).log_softmax(1)
        return torch.stack([sum(table[a, b] for a, b in zip((start, *s[:-1]), s)) for s in sequences])

    probabilities = log_probabilities().exp()
    assert float(probabilities.sum().detach()) == pytest.approx(1)
    expected_reward = (probabilities * torch.tensor([worth[s] for s in sequences], dtype=torch.float64)).sum()
    (expected,) = torch.autograd.grad(-expected_reward, policy.table)

    network = policy if as_network else lambda *inputs, kept: policy(*inputs, kept)
    total, value = torch.zeros_like(expected), 0.0
    for pair in itertools.product(range(len(sequences)), repeat=2):
        probability = probabilities[list(pair)].prod().detach()
        drawn = torch.stack([padded[sequences[i]] for i in pair])[None]
        stage.sample = lambda *_, drawn=drawn: drawn
        loss, weight = stage.loss(network, batch)
        assert int(weight) == 2
        policy.table.grad = None
        loss.backward()
        total += probability * policy.table.grad
        value += float(probability * loss.detach())
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)
    assert value == pytest.approx(-float(expected_reward.detach()), abs=1e-6)


@pytest.mark.parametrize("visible", [lambda seeds: None, HALF])
@pytest.mark.parametrize("as_network", [True, False])
def test_the_pass_with_gradients_gives_samples_the_probabilities_that_they_were_drawn_with(
    captioner, reward, as_network, visible
):
    """The oracle decodes token by token.  In training mode, too: dropout would make it another policy."""
    stage, model, passes = SelfCritical(captioner, reward, 4, visible), captioner.model.train(), []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    with torch.no_grad():
        model.decoder.to_vocabulary.bias[stage.end_token] += 4  # so that some samples are short
    compute = stage.log_probability
    stage.log_probability = lambda *arguments: (
        passes.append((arguments[2], compute(*arguments))) or passes[0][1]
    )
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    batch = Images(images, torch.tensor([1, 2, 3]), torch.arange(3))
    stage.loss(model if as_network else lambda *inputs, kept: model(*inputs, kept=kept), batch)
    assert all(module.training for module in model.modules())
    ((samples, found),) = passes
    kept = visible(batch.seeds)
    memory = model.eval().encoder(normalize(images), kept).detach()
    assert memory.shape[1] == (16 if kept is None else 8)
    drawn = token_lists(samples, stage.end_token)
    for b, w in itertools.product(range(3), range(4)):
        total, last, cache = 0.0, stage.start_token, model.decoder.new_cache(memory[b : b + 1])
        for token in drawn[b][w]:
            logits = model.decoder(torch.tensor([[last]]), None, cache)[0, 0].detach()
            logits[stage.forbidden] = float("-inf")
            total, last = total + logits.log_softmax(0)[token].item(), token
        assert found[b, w].item() == pytest.approx(total, abs=1e-4)
    assert len(set(map(tuple, drawn[0]))) > 1
    assert {len(tokens) for image in drawn for tokens in image} != {24}


def test_validation_sees_all_patches(captioner, reward):
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    batch = Images(images, torch.tensor([1, 2, 3]), torch.arange(3))
    stages = SelfCritical(captioner, reward, 4), SelfCritical(captioner, reward, 4, HALF)
    with torch.no_grad():
        everything, half = (stage.loss(captioner.model, batch)[0] for stage in stages)
    assert everything == half != 0


def test_the_gauges_count_the_samples_of_a_validation(captioner, reward):
    stage = SelfCritical(captioner, reward, 4)
    end, word = stage.end_token, 9
    drawn = torch.tensor([[[word, end, end], [word, end, end], [end, end, end], [word, word, word]]])
    batch = Images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([1]), torch.tensor([0]))
    stage.sample = lambda *_: torch.full((1, 4, 3), word)
    stage.loss(captioner.model, batch)  # a training step counts nothing
    stage.sample = lambda *_: drawn
    with torch.no_grad():
        stage.loss(captioner.model, batch)
    losses = {"train_loss": -0.5, "val_loss": -0.25}
    rewards = {"train_reward": 0.5, "val_reward": 0.25}
    assert stage.figures(losses) == {**rewards, "distinct_samples": 3 / 4, "ended_samples": 3 / 4}
    assert stage.figures(losses) == {**rewards, "distinct_samples": 0, "ended_samples": 0}  # of the next one


def test_samples_follow_from_the_seeds_alone(captioner, reward):
    stage = SelfCritical(captioner, reward, 3)
    memory = captioner.model.encoder(torch.randn(4, 3, 32, 32)).detach()
    seeds = torch.tensor([11, 12, 13, 14])
    together = stage.sample(captioner.model, memory, seeds)
    assert torch.equal(stage.sample(captioner.model, memory[2:], seeds[2:]), together[2:])
    assert not torch.equal(stage.sample(captioner.model, memory, seeds + 5), together)


def test_learning_raises_the_reward(captioner, reward):
    """Two images, whose captions the model does not know at first: without their words there is no reward."""
    torch.manual_seed(0)
    captioner.model.train()
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = Images(images, torch.tensor([1, 2, 3, 5]), torch.arange(4))
    optimizer = torch.optim.AdamW(captioner.model.parameters(), lr=2e-3)
    # Some teaching first, as before the stage itself: a random model never hits a word.
    lines = [captioner.tokenizer.encode(REFERENCES[i][0]).ids for i in (1, 2, 3, 5)]
    padded = torch.tensor([line + [0] * (max(map(len, lines)) - len(line)) for line in lines])
    for _ in range(60):
        logits = captioner.model(normalize(images), padded[:, :-1])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), padded[:, 1:].flatten(), ignore_index=0).backward()
        optimizer.step()
    stage, rewards = SelfCritical(captioner, reward, 5), []
    optimizer.param_groups[0]["lr"] = 5e-4
    for step in range(120):
        loss, _ = stage.loss(captioner.model, batch._replace(seeds=torch.arange(4) + 100 * step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(-loss.item())
    assert sum(rewards[-20:]) > 1.25 * sum(rewards[:20])
