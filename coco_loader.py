"""The three data sets of the write-up, and `get_coco_loader`, which makes a loader of any of them.

    mode             data set           an item is                         serves
    "caption_first"  CaptFirstDataset   (image, caption), five an image    the captioner's loss
    "image_first"    ImgFirstDataset    (image, [5 captions], image_id)    BLEU
    "image_only"     ImageOnlyDataset   an image                           the masked autoencoder

What their samples and batches are, coco_samples.py says.

A data set is indexed by a plain number, or by a sampler's key (index, seed).  The seed fixes all that is
random about the sample, so that the number of workers, the rank and a restart change nothing.

Shape letters: B batch, T caption tokens, H and W the model's image size.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from coco.data import CocoData, Ragged, load_data_tokenizer
from coco_samples import (
    CaptionBatch,
    CaptionSample,
    CocoDataset,
    ImageBatch,
    ImageSample,
    ReferenceBatch,
    ReferenceSample,
    Transform,
    batched,
)
from image_transforms import TrainingTransform
from paths import paths
from support import distributed
from support.errors import UsageError
from training.config import TrainingConfig
from training.loading import Loader
from training.sampling import EpochSampler, EvaluationSampler, mix, subset_of

COCO = CocoData(paths)  # the data that all here reads unless other data are named

# Whole words that a mirrored image would make wrong; "bright" and "leftovers" are not among them.
# English only: in another language captions that name a side go with mirrored images, too.
SIDES = re.compile(r"\b(left|right)(most|side|hand\w*|wards?)?\b", re.IGNORECASE)


class CaptFirstDataset(CocoDataset):
    """All (image, caption) pairs of a split, in the order of its captions: five pairs an image.

    A caption that speaks of left or right keeps its image from being mirrored, if `transform` is a
    `TrainingTransform`; one of your own has to see to that itself.

    Args:
        split: "train" or "val".
        transform: from (3, h, w) uint8 to (3, H, W).
        data: where the files lie and which image is in which split.
        subset: share of the images to take, in (0, 1]; their captions stay together.
        context_length: most tokens the decoder reads.  It reads all but the last and predicts all but the
            first, so a caption may have one more; a longer one is cut before its <EOS>.  None cuts nothing.
        pad_id: the token to pad with; None takes the tokenizer's <PAD>.

    Raises:
        UsageError: a processed file is missing or damaged, or `subset` is no such share.
    """

    unit = "pairs"

    def __init__(
        self,
        split: str,
        transform: Transform,
        *,
        data: CocoData = COCO,
        subset: float = 1.0,
        context_length: int | None = None,
        pad_id: int | None = None,
    ):
        from coco.tokenizer import PAD  # here, for pre-training reads no caption

        tokenizer = load_data_tokenizer(data.paths)
        entries = data.tokenized(split, tokenizer.get_vocab_size())
        image_ids = torch.tensor([entry["image_id"] for entry in entries], dtype=torch.int64)
        chosen = torch.isin(image_ids, choose_images(image_ids.unique(), subset)).nonzero()[:, 0]
        captions = [entries[row]["caption"] for row in chosen.tolist()]

        self.image_ids = image_ids[chosen]
        self.captions = Ragged(truncate_caption(caption, context_length) for caption in captions)
        self.pad_id = tokenizer.token_to_id(PAD) if pad_id is None else pad_id
        self.split, self.data = split, data
        self.transform = self.keep_sides = transform
        self.speaks_of_sides = torch.zeros(len(captions), dtype=torch.bool)
        if isinstance(transform, TrainingTransform):
            self.keep_sides = transform.without_flip()
            spoken = (SIDES.search(tokenizer.decode(caption)) is not None for caption in captions)
            self.speaks_of_sides = torch.tensor(list(spoken))

    @property
    def lengths(self) -> Tensor:
        """(samples,) int64: tokens of each sample's longest caption."""
        return self.captions.lengths

    def rows_of(self, index: int) -> list[int]:
        """Which of the captions belong to a sample."""
        return [index]

    def tokens_of(self, index: int) -> Tensor:
        return self.captions[index].long()

    def sample(self, index: int, seed: int) -> CaptionSample:
        keep_sides = self.speaks_of_sides[self.rows_of(index)].any()
        image = self.image(index, self.keep_sides if keep_sides else self.transform, seed)
        return CaptionSample(image, self.tokens_of(index), int(self.image_ids[index]), seed)

    def stand_in(self) -> CaptionSample:
        return CaptionSample(self.black_image(), self.tokens_of(0), -1, 0)

    def collate(self, samples: Sequence[CaptionSample]) -> CaptionBatch:
        images, tokens, image_ids, seeds = zip(*samples)
        padded = pad_sequence(tokens, batch_first=True, padding_value=self.pad_id)
        return CaptionBatch(batched(images), padded, torch.tensor(image_ids), torch.tensor(seeds))


class ImageCaptionsDataset(CaptFirstDataset):
    """The same pairs, taken image by image: each sample is an image with several of its captions.

    The image is decoded and encoded once for all of them; all see the same crop.

    Args: as for `CaptFirstDataset`, and
        captions_per_image: C, most captions of a sample.  An image with more makes several samples; where
            there are fewer, rows of padding, which no loss counts, fill up.
    """

    unit = "images"

    def __init__(self, split: str, transform: Transform, *, captions_per_image: int, **options: object):
        super().__init__(split, transform, **options)
        self.captions_per_image = captions_per_image
        self.rows = self.image_ids.argsort(stable=True)  # of `captions`, those of an image side by side
        image_ids = self.image_ids[self.rows]
        rows = torch.arange(len(image_ids))
        first_of_image = torch.cat([torch.ones(1, dtype=torch.bool), image_ids[1:] != image_ids[:-1]])
        number_in_image = rows - torch.where(first_of_image, rows, 0).cummax(dim=0).values
        first_of_sample = (number_in_image % captions_per_image == 0).nonzero()[:, 0]
        self.image_ids = image_ids[first_of_sample]
        self.bounds = torch.cat([first_of_sample, rows.new_tensor([len(rows)])])

    @property
    def lengths(self) -> Tensor:
        sample_of_row = torch.repeat_interleave(self.bounds.diff())
        lengths = self.captions.lengths[self.rows]
        return torch.zeros_like(self.image_ids).scatter_reduce(0, sample_of_row, lengths, "amax")

    def rows_of(self, index: int) -> list[int]:
        return self.rows[self.bounds[index] : self.bounds[index + 1]].tolist()

    def tokens_of(self, index: int) -> Tensor:  # (C, T)
        captions = [self.captions[row].long() for row in self.rows_of(index)]
        captions += [captions[0].new_empty(0)] * (self.captions_per_image - len(captions))
        return pad_sequence(captions, True, self.pad_id)

    def collate(self, samples: Sequence[CaptionSample]) -> CaptionBatch:
        images, tokens, image_ids, seeds = zip(*samples)
        padded = pad_sequence([captions.T for captions in tokens], True, self.pad_id)  # (B, T, C)
        padded = padded.transpose(1, 2).flatten(0, 1)  # (B·C, T)
        return CaptionBatch(batched(images), padded, torch.tensor(image_ids), torch.tensor(seeds))


class ImgFirstDataset(CocoDataset):
    """All (image, [captions], image_id) triplets of a split, in ascending order of id; the captions are text.

    Args: as for `CaptFirstDataset`.
    """

    def __init__(
        self,
        split: str,
        transform: Transform,
        *,
        data: CocoData = COCO,
        subset: float = 1.0,
    ):
        captions = dict(data.captions(split))
        image_ids = torch.tensor(sorted(captions), dtype=torch.int64)
        self.image_ids = choose_images(image_ids, subset)
        self.rows = torch.searchsorted(image_ids, self.image_ids)  # of `captions`, the whole split's
        self.captions = Ragged((json.dumps(captions[i]).encode() for i in image_ids.tolist()), "B")
        self.split, self.data = split, data
        self.transform = transform

    @property
    def captioned(self) -> int:
        """How many of the images have a caption."""
        return int((self.captions.lengths[self.rows] > len("[]")).sum())

    def captions_of_split(self) -> list[str]:
        """All captions of the split, also of the images that `subset` leaves out."""
        return [text for row in range(len(self.captions)) for text in self._texts(row)]

    def _texts(self, row: int) -> list[str]:
        return json.loads(bytes(self.captions[row].numpy()))

    def sample(self, index: int, seed: int) -> ReferenceSample:
        image = self.image(index, self.transform, seed)
        return ReferenceSample(image, self._texts(int(self.rows[index])), int(self.image_ids[index]))

    def collate(self, samples: Sequence[ReferenceSample]) -> ReferenceBatch:
        images, captions, image_ids = zip(*samples)
        return ReferenceBatch(batched(images), list(captions), torch.tensor(image_ids))


class ImageOnlyDataset(CocoDataset):
    """All images of one split or of several, one split after the other, each in ascending order of id.

    Args: as for `CaptFirstDataset`, but
        splits: "train", "val", "unlabeled", or a sequence of these.
        crops_per_image: samples of each image, every one with a crop of its own.  Where images are few, an
            epoch that sees each of them once is soon over, and saving and validation take as long as it.
    """

    def __init__(
        self,
        splits: str | Sequence[str],
        transform: Transform,
        *,
        data: CocoData = COCO,
        subset: float = 1.0,
        crops_per_image: int = 1,
    ):
        splits = [splits] if isinstance(splits, str) else list(splits)
        image_ids = [torch.tensor(data.image_ids(split)) for split in splits]
        numbers = torch.repeat_interleave(torch.tensor([len(ids) for ids in image_ids]))
        everything = torch.cat(image_ids)
        chosen = torch.isin(everything, choose_images(everything, subset))
        self.num_images = int(chosen.sum())
        self.image_ids = everything[chosen].repeat(crops_per_image)
        self.split_numbers = numbers[chosen].repeat(crops_per_image)  # (samples,): each one's split
        self.split, self.splits, self.data = "+".join(splits), splits, data
        self.transform = transform

    def files(self) -> tuple[list[Path], Tensor]:
        files = [self.file_of(index) for index in range(self.num_images)]
        return files, torch.arange(len(self)) % self.num_images

    def file_of(self, index: int) -> Path:
        return self.data.image_file(self.splits[self.split_numbers[index]], int(self.image_ids[index]))

    def sample(self, index: int, seed: int) -> ImageSample:
        return ImageSample(self.image(index, self.transform, seed), int(self.image_ids[index]), seed)

    def stand_in(self) -> ImageSample:
        return ImageSample(self.black_image(), -1, 0)

    def collate(self, samples: Sequence[ImageSample]) -> ImageBatch:
        images, image_ids, seeds = zip(*samples)
        return ImageBatch(batched(images), torch.tensor(image_ids), torch.tensor(seeds))


class CropPairsDataset(ImageOnlyDataset):
    """The same, but each sample is two crops of an image, side by side in the batch: see contrastive.py."""

    images_per_sample = 2

    def sample(self, index: int, seed: int) -> list[ImageSample]:
        return [super(CropPairsDataset, self).sample(index, crop_seed) for crop_seed in (seed, mix(seed, 1))]

    def stand_in(self) -> list[ImageSample]:
        return [super().stand_in()] * self.images_per_sample

    def collate(self, samples: Sequence[list[ImageSample]]) -> ImageBatch:
        return super().collate([crop for sample in samples for crop in sample])


def truncate_caption(caption: Sequence[int], context_length: int | None) -> Sequence[int]:
    """The caption in at most `context_length + 1` tokens; its last one, the <EOS>, is kept."""
    if context_length is None or len(caption) <= context_length + 1:
        return caption
    return [*caption[:context_length], caption[-1]]


def choose_images(image_ids: Tensor, share: float) -> Tensor:
    """A fixed share of the images, the same on every run: their ids, in the order given."""
    if not 0 < share <= 1:
        raise UsageError(f"a subset must be a fraction above 0 and at most 1, not {share}")
    return image_ids[subset_of(image_ids, share)]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What the loaders of a run have in common."""

    subset: float = 1.0  # share of the images, in (0, 1]
    seed: int = 0  # of the order and of all that is random about the samples
    rank: int = field(default_factory=lambda: distributed.rank())  # this process, 0 to world_size - 1
    world_size: int = field(default_factory=lambda: distributed.world_size())  # who share the samples
    timeout: float | None = None  # `loading_timeout` of the configuration, seconds; None: there is none
    cache_images: bool = False  # decode all images once, into memory; see image_cache.py

    # Of shuffled loaders
    accumulation: int = 1  # micro-batches into which each rank's share of a batch is cut
    # Leave samples whose images cannot be read out of their batches, which say so in `unreadable`; else such
    # an image is an error.  An evaluation never leaves any out: a split is scored as a whole.
    skip_unreadable: bool = False
    length_buckets: bool = (
        False  # batches of captions of similar length, `training.sampling.bucket_by_length`
    )

    # If there are no captions
    crops_per_image: int = 1  # samples of each image: see `ImageOnlyDataset`
    crop_pairs: bool = False  # two crops to each sample: see `CropPairsDataset`

    # Of captions, see `CaptFirstDataset`
    context_length: int | None = None  # tokens that the decoder reads; None truncates nothing
    pad_id: int | None = None  # None: the tokenizer's <PAD>
    captions_per_image: int = 1  # more than 1: see `ImageCaptionsDataset`

    @classmethod
    def of_run(cls, config: TrainingConfig, subset: float, **more: int | bool | None) -> Self:
        """The options of a training run: what every configuration says, and those of its own stage."""
        return cls(
            subset=subset,
            seed=config.seed,
            timeout=config.loading_timeout,
            cache_images=config.cache_images,
            accumulation=config.accumulation_steps,
            skip_unreadable=True,
            **more,
        )


def get_coco_loader(
    split: str | Sequence[str],
    batch_size: int,
    transform: Transform,
    num_workers: int = 0,
    *,
    mode: str = "caption_first",
    shuffle: bool = False,
    data: CocoData = COCO,
    options: LoaderOptions | None = None,
) -> Loader:
    """A loader of one of the three data sets.

    Args:
        split: "train", "val" or "unlabeled"; in mode "image_only" also a sequence of them.
        batch_size: samples over all ranks and micro-batches, so that a step means the same on any machine.
        transform: what becomes of an image, from (3, h, w) uint8 to (3, H, W).
        num_workers: loader processes; 0 loads in this one, as does whatever only takes images from memory.
        mode: "caption_first", "image_first" or "image_only".
        shuffle: True for training: `loader.batch_sampler` is an `EpochSampler`, to be told of each epoch by
            `set_epoch`.  False for evaluation: an `EvaluationSampler`, each sample once in fixed order, of
            the original images even where `data` have resized copies.
        data: where the files lie and which image is in which split.
        options: the rest, which all loaders of a run share; None for those of `LoaderOptions()`.

    Workers of a shuffled loader live as long as it; others end with the epoch, or each process of a run would
    keep three pools of them.

    Raises:
        UsageError: see the data sets.
        RunError: shared memory has no room for the batches of the workers.
    """
    options = options or LoaderOptions()
    images = {"data": data if shuffle else data.originals(), "subset": options.subset}
    captions = {"context_length": options.context_length, "pad_id": options.pad_id}
    per_image = options.captions_per_image
    if mode == "image_only":
        kind = CropPairsDataset if shuffle and options.crop_pairs else ImageOnlyDataset
        dataset = kind(split, transform, **images, crops_per_image=options.crops_per_image if shuffle else 1)
    elif mode == "image_first":
        dataset = ImgFirstDataset(split, transform, **images)
    elif mode == "caption_first" and per_image == 1:
        dataset = CaptFirstDataset(split, transform, **images, **captions)
    elif mode == "caption_first":
        dataset = ImageCaptionsDataset(split, transform, captions_per_image=per_image, **images, **captions)
    else:
        raise ValueError(f"mode is one of caption_first, image_first, image_only, not {mode!r}")
    finish = dataset.keep_in_memory() if options.cache_images else None
    if dataset.cached is not None and dataset.cached.ready:
        num_workers = 0
    ranks = options.rank, options.world_size
    accumulation = options.accumulation if shuffle else 1
    share = -(-batch_size // (options.world_size * accumulation))
    if shuffle:
        dataset.skip_unreadable = options.skip_unreadable
        lengths = dataset.lengths if options.length_buckets else None
        sampler = EpochSampler(len(dataset), batch_size, options.seed, *ranks, accumulation, lengths)
    else:
        sampler = EvaluationSampler(len(dataset), share, options.seed, *ranks)
    return Loader(
        dataset, sampler, num_workers, options.timeout, persistent=shuffle,
        batch_bytes=min(share, len(dataset)) * dataset.sample_bytes() if num_workers else 0,
        batches_held=accumulation,
        size_key="eval_batch_size" if mode == "image_first" else "batch_size",
        finish=finish,
    )  # fmt: skip
