"""The self-critical stage: a trained captioner learns from what its own captions score (Rennie et al. 2017).

    python train_captioner.py --self-critical -c last    begins with the newest captioner; then goes on

Its checkpoints lie in `checkpoints/self_critical/`; they are a captioner's like any other.

Of each image it draws some captions, scores each with CIDEr-D, and makes those likelier that score above the
others of the same image (Luo 2020, arXiv:2003.09971).  The loss is the negative mean reward; its gradient is
estimated by the score function (Williams 1992):

    ∇ E[r] = E[(r - b) ∇ log p(caption)],    b: the mean reward of the image's other samples

With `self_critical_ema_decay` it is evaluated and saved with a running mean of the weights that begins with
the captioner's.  A slow one stays between the two, which captions better than either (Wortsman et al. 2022,
arXiv:2109.01903, who interpolate; Ramé et al. 2024, arXiv:2406.16768, for policies that learn from rewards).

Shapes: B images, W samples of each, L context length, T tokens of the longest sample, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from captioner import Captioner
from coco.data import CocoData
from coco.tokenizer import EOS
from coco_loader import LoaderOptions, get_coco_loader
from image_captioner import PatchChoice
from image_transforms import TrainingTransform, normalize
from scoring.comparison import OFFICIAL, Scoring
from scoring.metrics import Cider
from support import distributed
from training.config import TrainingConfig
from training.loading import Loader
from training.sampling import hashed_noise
from transformer_components.encoder_decoder import TransformerEncoderDecoder
from transformer_components.sampling import lengths_of, token_lists
from transformer_components.sublayers import evaluating


def image_loaders(
    config: TrainingConfig, data: CocoData, captioner: Captioner, subset: float
) -> tuple[Loader, Loader]:
    """Loaders of the images to train on, each once an epoch, and of those to validate on.

    Training images are cropped as before but not mirrored: their captions may speak of left and right.
    """
    options = LoaderOptions.of_run(config, subset)
    loading = {"num_workers": config.num_workers, "data": data, "options": options, "mode": "image_only"}
    transform = TrainingTransform(captioner.transform.size, config.crop_scale).without_flip()
    train_loader = get_coco_loader("train", config.batch_size, transform, shuffle=True, **loading)
    return train_loader, get_coco_loader("val", config.batch_size, captioner.transform, **loading)


class CiderReward:
    """CIDEr-D of sampled captions, with the word weights of the training captions.

    The end token counts as a word, of references and of samples that have one.  Without it a caption that
    breaks off ("a man with a") loses nothing, and that is what a model then learns to write.

    Args:
        training: (image id, captions) of the training images: references and word weights.
        others: the same of images whose samples are only scored.
        tokenizer: makes text of the samples' tokens.
        scoring: how captions are compared, as in the evaluation.
    """

    def __init__(
        self,
        training: Iterable[tuple[int, list[str]]],
        others: Iterable[tuple[int, list[str]]],
        tokenizer: Tokenizer,
        scoring: Scoring = OFFICIAL,
    ):
        self.tokenizer, self.end_token = tokenizer, tokenizer.token_to_id(EOS)
        self.words_of = scoring.tokenize
        self.references = {image_id: self.words_of(captions) for image_id, captions in training}
        self.cider = Cider(
            [with_end(caption) for caption in captions] for captions in self.references.values()
        )
        self.references |= {image_id: self.words_of(captions) for image_id, captions in others}

    def __call__(self, image_ids: list[int], samples: list[list[list[int]]]) -> list[list[float]]:
        """The reward of each sample, W token lists of each image.

        An image without references, such as one that could not be read, gives 0.
        """
        return [self._of_image(*image) for image in zip(image_ids, samples)]

    def _of_image(self, image_id: int, samples: list[list[int]]) -> list[float]:
        captions = self.references.get(image_id)
        if not captions:
            return [0.0] * len(samples)
        references = [self.cider.vector(with_end(caption)) for caption in captions]
        rewards: dict[tuple[int, ...], float] = {}  # samples are often equal
        for sample in map(tuple, samples):
            if sample not in rewards:
                vector = self.cider.vector(self.words(sample))
                rewards[sample] = self.cider.score(vector, references)
        return [rewards[tuple(sample)] for sample in samples]

    def words(self, sample: Iterable[int]) -> list[str]:
        """The words of a sample, and the end token if it has one."""
        sample = list(sample)
        (caption,) = self.words_of([self.tokenizer.decode(sample)])
        return with_end(caption) if self.end_token in sample else caption.split()


def with_end(caption: str) -> list[str]:
    return [*caption.split(), EOS]


class Images(NamedTuple):
    """What the loss needs of a batch; others may hold more."""

    images: Tensor  # (B, 3, H, W) uint8
    image_ids: Tensor  # (B,)
    seeds: Tensor  # (B,) int64


class SelfCritical:
    """The stage's loss function, `loss(network, batch)`, and its gauges.

    Args:
        captioner: whose model learns.
        reward: what its captions are worth.
        num_samples: W, captions drawn of each image, at least 2.
        visible: chooses what the encoder sees in training; in validation it sees all.
    """

    def __init__(
        self,
        captioner: Captioner,
        reward: CiderReward,
        num_samples: int,
        visible: PatchChoice = lambda seeds: None,
    ):
        self.captioner, self.reward, self.num_samples = captioner, reward, num_samples
        self.visible = visible
        self.start_token, self.end_token, self.forbidden = captioner.special_tokens
        self._forbidden = torch.tensor(self.forbidden, device=captioner.device)
        self._reset()

    def loss(self, network: nn.Module, batch: Images) -> tuple[Tensor, Tensor]:
        """The negative mean reward, with the gradient that the samples estimate.

        The gradient is that of the policy that drew the samples: dropout is off in drawing and in learning,
        and both see the same patches.

        Args:
            network: the model, compiled or distributed or neither.
            batch: the images; their seeds are all that is random about the samples.

        Returns:
            The loss, and how many samples it is over.
        """
        model = self.captioner.model
        images, learning = normalize(batch.images), torch.is_grad_enabled()
        kept = self.visible(batch.seeds) if learning else None  # (B, S)
        with evaluating(model):
            with torch.set_grad_enabled(learning and network is model):
                memory = model.encoder(images, kept)  # (B, S, D)
            samples = self.sample(model, memory.detach(), batch.seeds)  # (B, W, L)
            on_host, image_ids = samples.cpu(), batch.image_ids.tolist()  # here alone it waits for the device
            length = int(lengths_of(on_host, self.end_token).max())
            # Encoded once, where nothing but the model itself must see the pass.
            memory = memory if network is model else None
            samples = samples[:, :, :length]
            log_probability = self.log_probability(network, images, samples, memory, kept)  # (B, W)
        # A GPU works on that pass while the rewards are computed here.
        tokens = token_lists(on_host, self.end_token)
        rewards = torch.tensor(self.reward(image_ids, tokens)).to(images.device, non_blocking=True)  # (B, W)
        if not learning:
            self._count(tokens)
        surrogate = -(advantages(rewards) * log_probability).mean()
        # Its value means nothing, its gradient is the estimate; the other way round with the mean reward.
        return surrogate - surrogate.detach() - rewards.mean(), torch.full_like(rewards, 1).sum()

    def sample(self, model: TransformerEncoderDecoder, memory: Tensor, seeds: Tensor) -> Tensor:
        """Captions (B, W, L) of the images with these features; the same seeds give the same."""
        shape = len(seeds), self.num_samples, self.captioner.options.max_length
        noise = hashed_noise(seeds, shape[1] * shape[2]).view(shape)
        uniform = ((noise >> 40) & 0xFFFFFF).float() / 2**24  # 24 bits, what float32 holds
        return model.sample(memory, uniform, self.start_token, self.end_token, self.forbidden)

    def log_probability(
        self,
        network: nn.Module,
        images: Tensor,
        samples: Tensor,
        memory: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """What the model gives each sample as a whole, with gradients: (B, W) from samples (B, W, T).

        Args:
            network: as for `loss`.
            images: (B, 3, H, W), normalized.
            samples: from `sample`.
            memory: (B, S, D), if the images are encoded already.
            kept: (B, S) int64, the patches to see, if they are not; None: all.
        """
        labels = samples.flatten(0, 1)  # (B·W, T)
        inputs = F.pad(labels[:, :-1], (1, 0), value=self.start_token)
        if memory is None:
            logits = network(images, inputs, kept=kept)  # (B·W, T, V)
        else:
            logits = self.captioner.model.decoder(inputs, memory)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # As they were when the samples were drawn.
        logits = logits.index_fill(2, self._forbidden, float("-inf"))
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(samples)
        written = torch.arange(samples.shape[2], device=samples.device) < lengths_of(samples, self.end_token)
        return -(losses * written).sum(dim=2)

    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The gauges of an epoch, the last two those of its validation over all processes.

        Args:
            losses: the epoch's `train_loss` and `val_loss`.

        Returns:
            `train_reward` and `val_reward`, means over the samples; `distinct_samples`: share of an image's
            samples that differ from those before them, which falls as the model becomes sure of one caption;
            `ended_samples`: share that end by themselves.
        """
        counts = torch.tensor([self._samples, self._distinct, self._ended], dtype=torch.float64)
        samples, distinct, ended = distributed.total(counts.to(self.captioner.device)).tolist()
        self._reset()
        return {
            "train_reward": -losses["train_loss"],
            "val_reward": -losses["val_loss"],
            "distinct_samples": distinct / max(samples, 1),
            "ended_samples": ended / max(samples, 1),
        }

    def _count(self, samples: list[list[list[int]]]) -> None:
        for of_image in samples:
            self._samples += len(of_image)
            self._distinct += len(set(map(tuple, of_image)))
            self._ended += sum(tokens[-1] == self.end_token for tokens in of_image)

    def _reset(self) -> None:
        self._samples = self._distinct = self._ended = 0


def new_critic(
    captioner: Captioner, data: CocoData, num_samples: int, visible: PatchChoice, scoring: Scoring
) -> SelfCritical:
    """The stage's loss function on some data, all of whose captions it reads and counts."""
    reward = CiderReward(data.captions("train"), data.captions("val"), captioner.tokenizer, scoring)
    return SelfCritical(captioner, reward, num_samples, visible)


def advantages(rewards: Tensor) -> Tensor:
    """How far each reward (B, W) lies above the mean of the image's other samples."""
    samples = rewards.shape[1]
    return (rewards - rewards.mean(dim=1, keepdim=True)) * samples / (samples - 1)
