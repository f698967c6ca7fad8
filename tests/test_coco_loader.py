"""The three data sets and their loader: what a batch holds, and that workers and ranks change nothing."""

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from tokenizers import Tokenizer

from coco.data import CocoData
from coco_loader import (
    SIDES,
    CaptFirstDataset,
    ImageOnlyDataset,
    ImgFirstDataset,
    LoaderOptions,
    get_coco_loader,
    truncate_caption,
)
from coco_samples import CaptionBatch, ImageBatch, ReferenceBatch
from image_transforms import EvaluationTransform, TrainingTransform, load_image
from images.image_folders import image_name
from support.errors import RunError, UsageError
from training.loading import Loader, samples_or_errors
from training.sampling import EvaluationSampler

EVALUATION, TRAINING = EvaluationTransform(16), TrainingTransform(16)
MODES = ({"mode": "image_first"}, {"mode": "image_only"})
FIVE_CAPTIONS = {"options": LoaderOptions(captions_per_image=5)}


def processed(paths: dict, key: str) -> list:
    return torch.load(paths[key], weights_only=True)


def same(left: tuple, right: tuple) -> bool:
    """Whether two batches or samples are equal, field by field."""
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# -------------------------------------------------------------------------------------- the data sets


def test_caption_first_iterates_over_all_pairs(tiny_coco):
    entries = processed(tiny_coco, "train_tokenized")
    dataset = CaptFirstDataset("train", EVALUATION, data=CocoData(tiny_coco))
    assert len(dataset) == len(entries) == 30
    for sample, entry in zip(dataset, entries, strict=True):
        assert sample.tokens.tolist() == entry["caption"]
        assert sample.image_id == entry["image_id"]
        picture = load_image(tiny_coco["train_images"] / image_name(entry["image_id"]))
        assert torch.equal(sample.image, EVALUATION(picture))


def test_image_first_iterates_over_all_triplets(tiny_coco):
    triplets = list(ImgFirstDataset("val", EVALUATION, data=CocoData(tiny_coco)))
    expected = processed(tiny_coco, "val_im2capts")
    assert [(image_id, captions) for _, captions, image_id in triplets] == expected
    assert all(image.shape == (3, 16, 16) and image.dtype == torch.uint8 for image, _, _ in triplets)


def test_image_only_iterates_over_all_images_of_several_splits(tiny_coco):
    dataset = ImageOnlyDataset(("train", "unlabeled"), EVALUATION, data=CocoData(tiny_coco))
    train, unlabeled = (processed(tiny_coco, f"{split}_image_ids") for split in ("train", "unlabeled"))
    assert dataset.image_ids.tolist() == train + unlabeled
    for sample, split in zip(dataset, ["train"] * len(train) + ["unlabeled"] * len(unlabeled), strict=True):
        picture = load_image(tiny_coco[f"{split}_images"] / image_name(sample.image_id))
        assert torch.equal(sample.image, EVALUATION(picture))
    assert max(train) > 2**31  # ids need 64 bits


def test_an_epoch_may_show_several_crops_of_each_image(tiny_coco):
    options = LoaderOptions(crops_per_image=3, cache_images=True)
    common = {"mode": "image_only", "data": CocoData(tiny_coco), "options": options}
    splits = ["train", "unlabeled"]
    loader = get_coco_loader(splits, 4, TrainingTransform(16), shuffle=True, **common)
    once = ImageOnlyDataset(splits, EVALUATION, data=CocoData(tiny_coco)).image_ids.tolist()
    assert len(loader.dataset) == 3 * len(once)
    batches = list(loader)
    seen = torch.cat([batch.image_ids for batch in batches]).tolist()
    assert sorted(seen) == sorted(3 * once)
    crops = {
        (image_id, image.numpy().tobytes())
        for b in batches
        for image_id, image in zip(b.image_ids.tolist(), b.images)
    }
    assert len(crops) > 2 * len(once)  # of images this small some crops are equal
    assert len(loader.dataset.cached.store.sizes) == len(once)  # each image lies in memory once
    assert len(get_coco_loader(splits, 4, EVALUATION, **common).dataset) == len(once)


def test_images_without_captions_and_any_text_are_kept(make_tiny_coco):
    paths = make_tiny_coco(val=2, captions=0)
    assert [s.captions for s in ImgFirstDataset("val", EVALUATION, data=CocoData(paths))] == [[], []]
    odd = ["naïve café 🐈\nsecond line", "", 'a "sign"\0']
    ids = processed(paths, "val_image_ids")
    torch.save([(ids[0], odd), (ids[1], ["plain"])], paths["val_im2capts"])
    assert ImgFirstDataset("val", EVALUATION, data=CocoData(paths))[0].captions == odd


def test_captions_lie_in_tensors_that_processes_share(make_tiny_coco):
    """A list of 591,753 captions is copied into every worker, page by page, as its reference counts are
    written (pytorch#13246): memory grows over the epoch until the machine kills the run."""
    paths = make_tiny_coco()
    ids = processed(paths, "train_image_ids")
    rows = [{"caption": [1, *range(4, 4 + n % 9), 2], "image_id": ids[n % 6]} for n in range(4_000)]
    torch.save(rows, paths["train_tokenized"])
    torch.save([(n, ["a picture"] * 5) for n in range(4_000)], paths["train_im2capts"])
    torch.save(list(range(4_000)), paths["train_image_ids"])
    for kind in (CaptFirstDataset, ImgFirstDataset, ImageOnlyDataset):
        dataset = kind("train", TRAINING, data=CocoData(paths))
        assert len(ForkingPickler.dumps(dataset)) < 10_000  # handles of shared tensors, whatever the sizes
        assert reachable_objects(dataset) < 500
    dataset = CaptFirstDataset("train", EVALUATION, data=CocoData(paths))
    assert [dataset.captions[n].tolist() for n in range(4_000)] == [row["caption"] for row in rows]


def reachable_objects(thing: object) -> int:
    """How many objects hang on an instance, without classes, functions and modules."""
    seen, waiting = set(), [vars(thing)]
    while waiting:
        item = waiting.pop()
        if id(item) not in seen and not isinstance(item, type) and not callable(item):
            seen.add(id(item))
            waiting += gc.get_referents(item) if isinstance(item, dict | list | tuple) else [*vars_of(item)]
    return len(seen)


def vars_of(item: object) -> Iterator[object]:
    yield from getattr(item, "__dict__", {}).values()


def test_an_over_long_caption_keeps_its_end(tiny_coco):
    """Cut off at the length limit, <EOS> went too, and the model learned that long captions never end."""
    assert truncate_caption([1, 5, 6, 7, 8, 2], 3) == [1, 5, 6, 2]
    assert truncate_caption([1, 5, 6, 2], 3) == [1, 5, 6, 2]
    assert truncate_caption([1, 5, 6, 7, 2], 1) == [1, 2]
    assert truncate_caption([1, 5, 6, 7, 2], None) == [1, 5, 6, 7, 2]
    eos = Tokenizer.from_file(str(tiny_coco["tokenizer"])).token_to_id("<EOS>")
    dataset = CaptFirstDataset("train", EVALUATION, data=CocoData(tiny_coco), context_length=6)
    lengths = [len(sample.tokens) for sample in dataset]
    assert max(lengths) == 7  # the decoder reads six and predicts six
    assert min(lengths) == 5
    assert all(sample.tokens[-1] == eos for sample in dataset)


def test_a_subset_is_the_same_images_on_every_run_with_all_their_captions(make_tiny_coco):
    paths = make_tiny_coco(train=20, val=1, unlabeled=10)
    pairs = CaptFirstDataset("train", EVALUATION, data=CocoData(paths), subset=0.3)
    images = ImageOnlyDataset("train", EVALUATION, data=CocoData(paths), subset=0.3)
    triplets = ImgFirstDataset("train", EVALUATION, data=CocoData(paths), subset=0.3)
    assert len(images) == len(triplets) == 6
    assert images.image_ids.tolist() == triplets.image_ids.tolist() == sorted(set(pairs.image_ids.tolist()))
    assert [pairs.image_ids.tolist().count(image_id) for image_id in images.image_ids.tolist()] == [5] * 6
    texts = dict(processed(paths, "train_im2capts"))
    assert [item.captions for item in triplets] == [texts[i] for i in triplets.image_ids.tolist()]
    assert triplets.captions_of_split() == [text for i in sorted(texts) for text in texts[i]]
    again = CaptFirstDataset("train", EVALUATION, data=CocoData(paths), subset=0.3)
    assert torch.equal(pairs.image_ids, again.image_ids)
    assert torch.equal(pairs.captions.values, again.captions.values)
    both = ImageOnlyDataset(["train", "unlabeled"], EVALUATION, data=CocoData(paths), subset=0.5)
    assert len(both) == 15
    for sample in both:  # each still comes from its own folder
        assert sample.image.shape == (3, 16, 16)
    assert len(CaptFirstDataset("train", EVALUATION, data=CocoData(paths), subset=1e-9)) == 5


@pytest.mark.parametrize("subset", [0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_subset_that_is_no_share_is_refused(tiny_coco, subset):
    with pytest.raises(UsageError, match=str(subset)):
        ImageOnlyDataset("val", EVALUATION, data=CocoData(tiny_coco), subset=subset)


# -------------------------------------------------------------------------------------- left and right


@pytest.mark.parametrize("text", ["left of it", "on the RIGHT.", "left-hand", "the leftmost cat", "right"])
def test_words_for_sides_are_found(text):
    assert SIDES.search(text)


@pytest.mark.parametrize("text", ["a bright copyright", "upright", "leftovers", "cleft", "righteous"])
def test_only_whole_words_are_sides(text):
    assert not SIDES.search(text)


def test_a_picture_is_not_mirrored_under_a_caption_that_speaks_of_sides(tiny_coco):
    """ "A thing left of the middle" under a mirrored picture teaches that left is right (catr#28)."""
    tokenizer = Tokenizer.from_file(str(tiny_coco["tokenizer"]))
    transform = TrainingTransform(16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_probability=1.0)
    dataset = CaptFirstDataset("train", transform, data=CocoData(tiny_coco))
    plain = CaptFirstDataset("train", transform.without_flip(), data=CocoData(tiny_coco))
    spoken = 0
    for sample, unmirrored in zip(dataset, plain, strict=True):
        speaks = "left" in tokenizer.decode(sample.tokens.tolist()).split()
        spoken += speaks
        assert torch.equal(sample.image, unmirrored.image if speaks else unmirrored.image.flip(-1))
    assert spoken == 6


def test_a_long_caption_that_speaks_of_sides_late_is_not_mirrored_either(tiny_coco):
    dataset = CaptFirstDataset("train", TRAINING, data=CocoData(tiny_coco), context_length=3)
    assert dataset.speaks_of_sides.tolist() == [False, False, False, True, False] * 6


# -------------------------------------------------------------------------------------- batches


def test_a_batch_of_pairs_is_padded_at_the_end(tiny_coco):
    loader = get_coco_loader("val", 5, EVALUATION, data=CocoData(tiny_coco))
    pad = Tokenizer.from_file(str(tiny_coco["tokenizer"])).token_to_id("<PAD>")
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    entries = iter(processed(tiny_coco, "val_tokenized"))
    for batch in batches:
        assert isinstance(batch, CaptionBatch)
        assert batch.images.shape == (5, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.tokens.dtype == batch.image_ids.dtype == batch.seeds.dtype == torch.int64
        longest = batch.tokens.shape[1]
        rows = [next(entries) for _ in range(5)]
        assert longest == max(len(row["caption"]) for row in rows)
        expected = [row["caption"] + [pad] * (longest - len(row["caption"])) for row in rows]
        assert batch.tokens.tolist() == expected
        assert batch.image_ids.tolist() == [row["image_id"] for row in rows]
    other = next(
        iter(
            get_coco_loader("val", 5, EVALUATION, data=CocoData(tiny_coco), options=LoaderOptions(pad_id=77))
        )
    )
    assert torch.equal(other.tokens == 77, batches[0].tokens == pad)


@pytest.mark.parametrize("options", [{}, FIVE_CAPTIONS, *MODES])
def test_a_batchs_pictures_are_those_of_its_samples(tiny_coco, options):
    loader = get_coco_loader("val", 2, TRAINING, 1, data=CocoData(tiny_coco), **options)
    for numbers, batch in zip(loader.batch_sampler, loader, strict=True):
        samples = [loader.dataset[key] for key in numbers]
        assert batch.images.shape == (len(samples), 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        for picture, sample in zip(batch.images, samples, strict=True):
            assert torch.equal(picture, sample.image)
    assert not torch.equal(batch.images[0], batch.images[0].transpose(1, 2)), "else a turned one would pass"


def test_batches_of_the_other_two_modes(tiny_coco):
    references = list(get_coco_loader("val", 3, EVALUATION, mode="image_first", data=CocoData(tiny_coco)))
    assert [type(batch) for batch in references] == [ReferenceBatch] * 2
    rebuilt = [pair for b in references for pair in zip(b.image_ids.tolist(), b.captions)]
    assert rebuilt == processed(tiny_coco, "val_im2capts")
    images = list(
        get_coco_loader(["val", "unlabeled"], 3, EVALUATION, mode="image_only", data=CocoData(tiny_coco))
    )
    assert [type(batch) for batch in images] == [ImageBatch] * 3
    assert [len(batch.images) for batch in images] == [3, 3, 1]
    with pytest.raises(ValueError, match="caption_first, image_first, image_only"):
        get_coco_loader("val", 3, EVALUATION, mode="captions", data=CocoData(tiny_coco))


@pytest.mark.parametrize("mode", ["caption_first", "image_first", "image_only"])
def test_workers_and_the_starting_step_change_nothing(tiny_coco, mode):
    """Identical randomness in every worker (pytorch#5059), and other randomness with other workers, are both
    wrong.  Workers live on from epoch to epoch here, so the new epoch's seeds must reach them."""
    options = {"mode": mode, "data": CocoData(tiny_coco), "shuffle": True, "options": LoaderOptions(seed=3)}
    plain = get_coco_loader("train", 4, TRAINING, 0, **options)
    forked = get_coco_loader("train", 4, TRAINING, 2, **options)
    epochs = []
    for epoch, start in ((0, 0), (1, 1), (2, 0)):
        plain.batch_sampler.set_epoch(epoch)
        forked.batch_sampler.set_epoch(epoch, start_step=start)
        epochs.append(list(plain))
        workers = list(forked)
        assert len(workers) == len(epochs[-1]) - start
        assert all(same(left, right) for left, right in zip(epochs[-1][start:], workers, strict=True))
    assert not same(epochs[0][0], epochs[1][0])
    if mode == "image_only":  # the same picture is cropped otherwise in each epoch
        crops = [{i: p for b in e for i, p in zip(b.image_ids.tolist(), b.images)} for e in epochs]
        assert not all(torch.equal(crops[0][image_id], crops[1][image_id]) for image_id in crops[0])


def test_ranks_together_load_what_one_process_loads(tiny_coco):
    arguments = {"mode": "image_only", "data": CocoData(tiny_coco), "shuffle": True}
    whole = list(get_coco_loader("train", 4, TRAINING, **arguments))
    options = [LoaderOptions(rank=rank, world_size=2, accumulation=2) for rank in range(2)]
    ranks = [get_coco_loader("train", 4, TRAINING, options=each, **arguments) for each in options]
    parts = [list(loader) for loader in ranks]
    for step, batch in enumerate(whole):
        real = [
            part
            for loader, mine in zip(ranks, parts)
            for part, micro in zip(mine[2 * step : 2 * step + 2], loader.batch_sampler.micro_batches(step))
            if micro.real
        ]
        assert same(batch[:3], tuple(torch.cat(field) for field in zip(*(part[:3] for part in real))))


def test_an_evaluation_batch_has_one_size_for_any_number_of_ranks(tiny_coco):
    arguments = {"mode": "image_first", "data": CocoData(tiny_coco)}
    options = [LoaderOptions(rank=rank, world_size=2, accumulation=2) for rank in range(2)]
    loaders = [get_coco_loader("train", 4, EVALUATION, options=each, **arguments) for each in options]
    seen = [[batch.image_ids.tolist() for batch in loader] for loader in loaders]
    ids = processed(tiny_coco, "train_image_ids")
    assert seen == [[[ids[0], ids[2]], [ids[4]]], [[ids[1], ids[3]], [ids[5]]]]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(tiny_coco, workers):
    """It did, once an epoch, so that dropout differed between a run and the same run resumed."""
    loader = get_coco_loader("val", 4, TRAINING, workers, data=CocoData(tiny_coco), shuffle=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "cut", "web page"])
def test_an_unreadable_picture_ends_the_run_with_its_name(tiny_coco, workers, damage):
    victim = tiny_coco["val_images"] / image_name(processed(tiny_coco, "val_image_ids")[2])
    data = {"missing": None, "cut": victim.read_bytes()[:400], "web page": b"<html>"}[damage]
    victim.unlink()
    if data:
        victim.write_bytes(data)
    batches = iter(
        get_coco_loader("val", 2, EVALUATION, workers, mode="image_first", data=CocoData(tiny_coco))
    )
    assert isinstance(next(batches), ReferenceBatch)
    with pytest.raises(RunError) as caught:
        next(batches)
    assert str(victim) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("mode", "captions"), [("image_only", 1), ("caption_first", 1), ("caption_first", 2)]
)
def test_training_leaves_out_what_cannot_be_read_and_says_so(tiny_coco, mode, captions):
    """One whole batch unreadable, a part of others; what is left is what it was."""
    options = LoaderOptions(skip_unreadable=True, captions_per_image=captions)
    data = CocoData(tiny_coco)
    loader = get_coco_loader("train", 5, TRAINING, mode=mode, shuffle=True, data=data, options=options)
    before = list(loader)
    ids = set(before[0].image_ids.tolist())
    for image_id in ids:
        (tiny_coco["train_images"] / image_name(image_id)).write_bytes(b"<html>")
    for old, new in zip(before, loader, strict=True):
        kept = [number for number, i in enumerate(old.image_ids.tolist()) if i not in ids]
        assert len(new.unreadable) == len(old.image_ids) - len(kept)
        assert all(".jpg" in why for why in new.unreadable)
        if not kept:
            assert new.image_ids.tolist() == [-1]
            assert new.images.shape == old.images[:1].shape
            continue
        assert torch.equal(new.images, old.images[kept])
        assert torch.equal(new.image_ids, old.image_ids[kept])
        if hasattr(old, "tokens"):
            rows = [row for number in kept for row in range(number * captions, (number + 1) * captions)]
            width = new.tokens.shape[1]
            assert torch.equal(new.tokens, old.tokens[rows, :width])
            assert (
                not old.tokens[rows, width:].any()
                or (old.tokens[rows, width:] == loader.dataset.pad_id).all()
            )


def test_missing_and_damaged_files_say_what_to_run(tiny_coco):
    for mode, key in (("caption_first", "val_tokenized"), ("image_first", "val_im2capts")):
        whole = tiny_coco[key].read_bytes()
        for data in (None, whole[: len(whole) // 2], b""):
            tiny_coco[key].unlink()
            if data is not None:
                tiny_coco[key].write_bytes(data)
            with pytest.raises(UsageError, match=r"process_coco\.py") as caught:
                get_coco_loader("val", 2, EVALUATION, mode=mode, data=CocoData(tiny_coco))
            assert str(tiny_coco[key]) in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1
            tiny_coco[key].touch()
    with pytest.raises(UsageError, match=r"'test'.*train, val"):
        get_coco_loader("test", 2, EVALUATION, data=CocoData(tiny_coco))
    tiny_coco["tokenizer"].unlink()
    with pytest.raises(UsageError, match="tokenizer"):
        get_coco_loader("train", 2, EVALUATION, data=CocoData(tiny_coco))


class Troubled(torch.utils.data.Dataset):
    """Sample 3 does something to its worker."""

    def __init__(self, trouble: str):
        self.trouble = trouble

    def __getitem__(self, key: tuple[int, int]) -> int:
        index, _ = key
        if index == 3 and self.trouble == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 3 and self.trouble == "hangs":  # in C code that never lets another thread run
            ctypes.PyDLL(None).sleep(60)
        if index == 3 and self.trouble == "breaks":
            raise RuntimeError("a bug")
        return index

    def __getitems__(self, keys: list) -> list:
        return samples_or_errors(self, keys)

    def batch(self, samples: list) -> list:
        return samples


@pytest.mark.parametrize("trouble", ["dies", "hangs"])
def test_a_dead_or_hanging_worker_is_an_error_and_not_a_hang(trouble):
    loader = Loader(Troubled(trouble), EvaluationSampler(6, 1, seed=0), num_workers=1, timeout=2)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"worker|timed out") as caught:
        list(loader)
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_bug_in_a_worker_keeps_its_traceback():
    loader = Loader(Troubled("breaks"), EvaluationSampler(6, 1, seed=0), num_workers=1)
    with pytest.raises(RuntimeError, match="Traceback"):
        list(loader)


def test_workers_outlast_the_signals_that_the_main_process_answers(tiny_coco):
    """SIGTERM reached the loader's workers; the main process saw them die and never saved (olmoearth#604)."""
    loader = get_coco_loader("val", 2, EVALUATION, 2, data=CocoData(tiny_coco))
    batches = iter(loader)
    first = next(batches)
    workers = [str(worker.pid) for worker in loader._iterator._workers]
    for name in ("-INT", "-TERM"):  # by another process: the main one's own word counts
        subprocess.run(["kill", name, *workers], check=True)
    time.sleep(0.2)
    everything = [first, *batches]
    expected = list(get_coco_loader("val", 2, EVALUATION, 0, data=CocoData(tiny_coco)))
    assert all(same(left, right) for left, right in zip(everything, expected, strict=True))
