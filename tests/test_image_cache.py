"""Images kept in memory: the same batches as from files, on any number of workers and ranks, in any part."""

import pytest
import torch
from PIL import Image

import image_cache
from coco.data import CocoData
from coco_loader import LoaderOptions, get_coco_loader
from image_transforms import EvaluationTransform, TrainingTransform, image_size, load_image
from images import image_store
from images.image_folders import image_name
from images.image_store import store_images
from support import memory
from support.errors import RunError
from tests.test_distributed import torchrun
from tests.test_image_transforms import UPRIGHT, noise, saved
from tests.training_cases import assert_same, record_steps, stage_runner, state_of, train_mae, write_config
from training.loading import Loader

IN_SHARED_MEMORY, ON_GPU = "in shared memory", "in the GPU's memory"
TRAINING, EVALUATION = TrainingTransform(32), EvaluationTransform(32)
MODES = {
    "images": ("image_only", {}),
    "pairs": ("caption_first", {"context_length": 9}),
    "captions by image": ("caption_first", {"captions_per_image": 3, "length_buckets": True}),
}


@pytest.fixture(params=[IN_SHARED_MEMORY, ON_GPU])
def place(request, monkeypatch) -> str:
    """Both places of images for training; the CPU's memory stands in for a GPU's."""
    if request.param == ON_GPU:
        monkeypatch.setattr(image_cache, "_gpu", lambda: torch.device("cpu"))
        monkeypatch.setattr(image_cache, "_free_on", lambda gpu: 10**9)
    else:
        monkeypatch.setattr(image_cache, "_gpu", lambda: None)
    return request.param


def assert_same_batches(first, second, levels: int) -> None:
    """Equal, but that pixels may differ by so many levels of 255."""
    assert len(first) == len(second) > 0
    for one, two in zip(first, second):
        assert (one.images.int() - two.images.int()).abs().max() <= levels
        assert_same(one._replace(images=0), two._replace(images=0))


def loader(paths: dict, transform, mode: str = "image_only", workers: int = 0, **options) -> Loader:
    """Of the train split, shuffled, or of the val split, after the transform; in batches of 2 samples."""
    training = transform is TRAINING
    return get_coco_loader(
        "train" if training else "val", 2, transform, workers, mode=mode, shuffle=training,
        data=CocoData(paths), options=LoaderOptions(**options),
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_same_batches_as_from_files(make_tiny_coco, place, mode, workers, capfd):
    """The same order, captions, crops and flips; a caption that speaks of "left" flips none."""
    paths = make_tiny_coco(train=9)
    mode, options = MODES[mode]
    plain = loader(paths, TRAINING, mode, seed=5, **options)
    with loader(paths, TRAINING, mode, workers, seed=5, cache_images=True, **options) as cached:
        assert place in capfd.readouterr().out
        for each in (cached, plain):
            each.batch_sampler.set_epoch(3, start_step=1)
        assert_same_batches(list(cached), list(plain), levels=2 if place == ON_GPU else 0)


@pytest.mark.parametrize("mode", ["image_only", "caption_first", "image_first"])
def test_evaluation_sees_the_same_pixels_as_from_files(tiny_coco, place, mode):
    cached, plain = (list(loader(tiny_coco, EVALUATION, mode, cache_images=cache)) for cache in (True, False))
    assert_same_batches(cached, plain, levels=0)


def test_evaluation_from_memory_starts_no_workers(tiny_coco, place):
    """Starting and ending them took longer than the rest of an epoch's validation."""
    assert loader(tiny_coco, EVALUATION, "image_first", workers=2, cache_images=True).num_workers == 0
    assert loader(tiny_coco, EVALUATION, "image_first", workers=2).num_workers == 2
    assert loader(tiny_coco, TRAINING, "image_only", workers=2, cache_images=True).num_workers == 2


def test_images_of_several_splits_are_told_apart(tiny_coco):
    """One of unlabeled with the id of another in train: an id alone does not name a file."""
    ids = torch.load(tiny_coco["train_image_ids"], weights_only=True)
    file = tiny_coco["unlabeled_images"] / image_name(ids[0])
    Image.fromarray(noise(48, 64)).save(file, "png")
    torch.save([ids[0]], tiny_coco["unlabeled_image_ids"])
    options = {"mode": "image_only", "data": CocoData(tiny_coco)}
    batches = [
        list(get_coco_loader(["train", "unlabeled"], 9, EVALUATION, **options, options=LoaderOptions(**more)))
        for more in ({"cache_images": True}, {})
    ]
    assert_same_batches(*batches, levels=0)
    assert len(batches[0][0].images) == 7


def test_an_image_is_decoded_once_and_by_no_second_loader_of_a_split(tiny_coco, place, monkeypatch):
    decoded = []
    monkeypatch.setattr(image_cache, "load_image", lambda file: decoded.append(file) or load_image(file))
    modes = [(TRAINING, "image_only"), (EVALUATION, "caption_first"), (EVALUATION, "image_first")]
    loaders = [loader(tiny_coco, *mode, cache_images=True) for mode in modes]
    assert len(decoded) == len(set(decoded)) == 6 + 4
    for file in decoded:
        file.unlink()
    for each in loaders:
        assert len(list(each)) == len(list(each)) == len(each)
    assert len(decoded) == 10


def test_what_cannot_be_read_is_left_out_of_the_same_batches_for_the_same_reason(make_tiny_coco, place):
    """Damage that the header shows and damage that it does not, and a batch of which nothing is left."""
    paths = make_tiny_coco(train=7)
    files = sorted(paths["train_images"].iterdir())
    files[1].write_bytes(b"no image")
    files[2].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-40])
    for seed in range(40):
        plain = list(loader(paths, TRAINING, seed=seed, skip_unreadable=True))
        if any(len(batch.unreadable) == 2 for batch in plain):
            break
    cached = list(loader(paths, TRAINING, seed=seed, skip_unreadable=True, cache_images=True))
    assert max(len(batch.unreadable) for batch in cached) == 2
    assert sum(len(batch.unreadable) for batch in cached) == 3
    assert_same_batches(cached, plain, levels=2)
    with pytest.raises(RunError, match="cannot read the"):
        list(loader(paths, TRAINING, cache_images=True))


@pytest.mark.parametrize("short_of", ["memory", "GPU memory"])
def test_without_room_one_line_says_so_and_the_next_best_way_is_taken(
    make_tiny_coco, short_of, monkeypatch, capfd
):
    """The bytes are counted before anything is decoded."""
    paths = make_tiny_coco(train=6, size=(64, 48))
    needed = 6 * 64 * 48 * 3
    monkeypatch.setattr(image_cache, "_gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(image_cache, "_free_on", lambda gpu: int(needed / image_cache.GPU_SHARE) - 1)
    if short_of == "memory":
        monkeypatch.setattr(memory, "available", lambda: int(needed / image_store.SHARE) - 1)
        monkeypatch.setattr(image_cache, "load_image", lambda file: pytest.fail("it was decoded"))
    cached, plain = (list(loader(paths, TRAINING, cache_images=cache)) for cache in (True, False))
    assert_same_batches(cached, plain, levels=0)
    said = capfd.readouterr().out
    assert said.startswith("cache_images: 6 images")
    assert said.count("\n") == 1
    assert ("need 0.00 GB" in said) == (short_of == "memory")
    assert (IN_SHARED_MEMORY in said) == (short_of == "GPU memory")


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_run_is_the_same_with_and_without_and_goes_on_either_way(make_tiny_coco, tmp_path, stage, place):
    """On a CPU to the last bit.  A GPU's pixels differ a little, but no part of a run changes them."""
    paths = make_tiny_coco(train=10, val=4, unlabeled=3)
    run = stage_runner(paths["data"], tmp_path)
    run(stage, "whole", "--epochs", "2", cache_images=True)
    with pytest.MonkeyPatch.context() as context:
        record_steps(context, stop_after=2)
        with pytest.raises(BaseException, match="SIGTERM"):
            run(stage, "parts", cache_images=True)
    changes = {"cache_images": place == ON_GPU, "num_workers": 1}
    run(stage, "parts", "-c", "last", "--epochs", "2", **changes)
    whole, parts = (state_of(tmp_path / out, stage) for out in ("whole", "parts"))
    assert_same(whole["model"], parts["model"])
    assert_same(whole["progress"], parts["progress"])


@pytest.mark.timeout(300)
def test_two_ranks_share_one_memory_and_train_as_one_process_does(make_tiny_coco, tmp_path):
    paths = make_tiny_coco(train=7, val=3, unlabeled=2)
    config = write_config(tmp_path, "mae_config.yaml", cache_images=True, total_epochs=2)
    said = torchrun(
        "train_encoder.py", "--data", paths["data"], "--out", tmp_path / "two", "--config", config
    )
    assert said.count("cache_images: 9 images") == said.count("cache_images: 3 images") == 1
    train_mae(paths["data"], tmp_path / "one", config)
    one, two = state_of(tmp_path / "one", "encoder"), state_of(tmp_path / "two", "encoder")
    for first, second in zip(one["progress"]["history"], two["progress"]["history"], strict=True):
        assert first == pytest.approx(second, rel=1e-5)


@pytest.mark.timeout(300)
def test_processes_decode_into_one_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(image_store, "FEW", 0)
    files = [saved(tmp_path, Image.fromarray(noise(20 + i, 30, seed=i)), f"{i}.png") for i in range(40)]
    files[7].write_bytes(b"no image")
    store = store_images(files, load_image, image_size)
    for number, file in enumerate(files):
        if number == 7:
            with pytest.raises(RunError, match=r"7\.png"):
                store[number]
        else:
            assert torch.equal(store[number], load_image(file))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_a_header_tells_the_size_of_the_upright_image(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path, Image.fromarray(noise(40, 60)), f"turned.{kind}", exif=exif)
    assert (
        image_size(file) == tuple(load_image(file).shape[1:]) == ((60, 40) if orientation > 4 else (40, 60))
    )
