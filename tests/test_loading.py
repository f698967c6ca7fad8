"""Loader workers: how many there are and when, how long they are waited for, and where their batches lie."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Timer
from types import SimpleNamespace

import pytest
import torch

import coco_samples
import train_encoder
from coco.data import CocoData
from coco_loader import get_coco_loader
from image_transforms import EvaluationTransform
from support import distributed, interrupts, memory
from support.errors import RunError
from support.parallel import on_all_cores
from tests.process_cases import alive, end, start, stderr_of, stop, wait_for_checkpoint
from tests.training_cases import ROOT, ended, train_mae, write_config
from training import checkpoints, loading
from training.loading import Loader, samples_or_errors
from training.sampling import EvaluationSampler

EVALUATION = EvaluationTransform(16)


@pytest.fixture
def two_cores(monkeypatch) -> None:
    monkeypatch.setattr(loading, "share_of_cores", lambda: 2)


@pytest.fixture
def quick_looks(monkeypatch) -> None:
    monkeypatch.setattr(loading, "LOOK_EVERY", 0.05)


class Numbers(torch.utils.data.Dataset):
    """Samples that are their own index; `work(index)` is done for each."""

    def __init__(self, work: Callable[[int], object]):
        self.work = work

    def __getitem__(self, key: tuple[int, int]) -> int:
        self.work(key[0])
        return key[0]

    def __getitems__(self, keys: list) -> list:
        return samples_or_errors(self, keys)

    def batch(self, samples: list) -> tuple[torch.Tensor]:
        return (torch.tensor(samples),)


def numbers(work: Callable[[int], object], timeout: float | None = 60, batch_size: int = 4) -> Loader:
    return Loader(Numbers(work), EvaluationSampler(8, batch_size, seed=0), num_workers=1, timeout=timeout)


# --- how many workers ---


@pytest.mark.parametrize(("cores", "processes", "workers"), [(8, 1, 5), (8, 4, 2), (8, 3, 2), (2, 8, 1)])
def test_the_processes_of_a_machine_divide_its_cores(monkeypatch, cores, processes, workers):
    """Three pools of eight workers for each of eight processes were 192."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(distributed, "local_world_size", lambda: processes)
    assert Loader(Numbers(abs), EvaluationSampler(8, 4, seed=0), num_workers=5).num_workers == workers


def test_torchrun_says_how_many_processes_a_machine_has(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert distributed.local_world_size() == 1, "it stands in the environment, but this is a plain run"
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert distributed.local_world_size() == 3
    finally:
        torch.distributed.destroy_process_group()


def test_only_the_training_loader_keeps_its_workers(tiny_coco, two_cores):
    options = {"batch_size": 2, "transform": EVALUATION, "num_workers": 2, "data": CocoData(tiny_coco)}
    train = get_coco_loader("train", mode="image_only", shuffle=True, **options)
    others = [get_coco_loader("val", mode=mode, **options) for mode in ("image_only", "image_first")]

    def workers() -> int:
        return len(multiprocessing.active_children())

    counts = []
    with train, others[0], others[1]:
        for epoch in range(2):
            train.batch_sampler.set_epoch(epoch)
            for loader in (train, *others):
                batches = iter(loader)
                next(batches)
                counts.append(workers())
                assert list(batches)
                counts.append(workers())
    assert counts == [2, 2, 4, 2, 4, 2] * 2
    assert workers() == 0


def test_an_error_while_a_batch_is_used_ends_the_workers(tiny_coco, two_cores):
    loader = get_coco_loader("val", 2, EVALUATION, 2, mode="image_only", data=CocoData(tiny_coco))
    with pytest.raises(ZeroDivisionError) as caught, loader:
        [1 / 0 for _ in loader]
    assert not multiprocessing.active_children(), f"kept by the frames of {caught.tb}"


# --- how long they are waited for ---


def test_samples_that_come_slowly_are_waited_for_with_one_note(quick_looks, capsys):
    """A run ended 50 s after the last batch, although samples kept coming."""
    loader = numbers(lambda _: time.sleep(0.2), timeout=0.5)
    assert [batch.tolist() for (batch,) in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "note: 0.5 s without a batch, but samples arrive" in message


@pytest.mark.parametrize("timeout", [0.5, None])
def test_where_no_sample_comes_loading_hangs(quick_looks, monkeypatch, timeout):
    monkeypatch.setattr(loading, "LOADING_TIMEOUT", 0.6)
    with pytest.raises(RunError, match=f"no sample from the loader workers for {timeout or 0.6} s") as caught:
        list(numbers(lambda index: index == 5 and time.sleep(60), timeout))
    assert ("loading_timeout" in str(caught.value)) == (timeout is not None), "a key that nobody can set"
    assert not multiprocessing.active_children()


def test_a_worker_that_is_slow_to_begin_an_epoch_is_waited_for(quick_looks):
    """It was swapped out in a long validation, say; torch waited for it no longer than one of our looks."""
    loader = Loader(
        Numbers(lambda index: None),
        EvaluationSampler(8, 4, seed=0),
        num_workers=1,
        timeout=60,
        persistent=True,
    )
    with loader:
        assert len(list(loader)) == 2
        (worker,) = loader._iterator._workers
        os.kill(worker.pid, signal.SIGSTOP)
        waking = Timer(0.5, os.kill, [worker.pid, signal.SIGCONT])
        waking.start()
        assert len(list(loader)) == 2
        assert loader._iterator._timeout == loading.LOOK_EVERY
        waking.join()


def test_the_configuration_says_how_long(tiny_coco, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco_samples, "load_transformed", lambda *_: time.sleep(60))
    config = write_config(tmp_path, "mae_config.yaml", num_workers=1, loading_timeout=0.75)
    arguments = ["--config", config, "--data", tiny_coco["data"], "--out", tmp_path / "out"]
    code, message = ended(train_encoder.main, *arguments, capsys=capsys)
    assert code == 1
    assert "workers for 0.75 s" in message
    assert "loading_timeout" in message


def test_a_checkpoint_that_is_older_than_the_key_goes_on(tiny_coco, tmp_path):
    config = write_config(tmp_path, "mae_config.yaml")
    train_mae(tiny_coco["data"], tmp_path, config, "--epochs", "1")
    path, state = checkpoints.load_named(tmp_path / "encoder", "last", "encoder")
    del state["config"]["loading_timeout"]
    checkpoints.save(path, state)
    train_mae(tiny_coco["data"], tmp_path, config, "-c", "last", "--epochs", "2")
    assert checkpoints.load_named(tmp_path / "encoder", "last", "encoder")[1]["progress"]["epoch"] == 2


HANGING = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import coco_samples, train_encoder
from support import command_line
load_transformed = coco_samples.load_transformed
seen = []
def hanging(*arguments):
    seen.append(1)
    time.sleep(600 if len(seen) > 8 else 0)
    return load_transformed(*arguments)
coco_samples.load_transformed = hanging
command_line.run(train_encoder.main)
"""


def test_a_signal_is_obeyed_while_a_batch_is_awaited(make_tiny_coco, tmp_path):
    """SIGTERM was obeyed after 30 s, not with 143 and the run unsaved."""
    paths = make_tiny_coco(train=20, val=2, unlabeled=1)
    config = write_config(tmp_path, "mae_config.yaml", batch_size=2, num_workers=1, checkpoint_minutes=1e-4)
    script, out = tmp_path / "hanging.py", tmp_path / "out"
    script.write_text(HANGING)
    run = start(str(script), "--data", paths["data"], "--out", out, "--config", config)
    try:
        wait_for_checkpoint(run, out / "encoder")
        time.sleep(0.5)  # now the worker hangs: there were 4 batches
        code, _ = stop(run, signal.SIGTERM)
        message = stderr_of(run)
        assert (code, "Traceback" in message) == (143, False), message
        assert not alive(run), "a process was left behind"
    finally:
        end(run)
    _, state = checkpoints.load_named(out / "encoder", "last", "encoder")
    assert state["progress"]["step"] == 4


def test_a_rank_gives_the_others_their_batch_before_it_obeys(quick_looks, monkeypatch):
    """Ranks end with the same step if the batch comes soon: one that left at once would take theirs."""
    monkeypatch.setattr(interrupts, "_received", signal.SIGTERM)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    (batch,) = next(iter(numbers(lambda _: time.sleep(0.1))))
    assert batch.tolist() == [0, 1, 2, 3]
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    with pytest.raises(interrupts.Interrupted):
        next(iter(numbers(lambda _: time.sleep(0.1))))


# --- where their batches lie ---


def signal_this_process(number: int) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return number


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a signal does not say who sent it")
def test_no_worker_obeys_a_signal_from_elsewhere():
    """Workers that make copies died of a SIGTERM to their group, those that load batches did not."""
    with numbers(signal_this_process) as loader:
        loaded = [number for (batch,) in loader for number in batch.tolist()]
    copied = list(on_all_cores(signal_this_process, range(8), "copying", "image", hidden=True))
    assert loaded == [number for _, number in copied] == list(range(8))


@pytest.fixture
def small_shared_memory(monkeypatch) -> None:
    """Docker's usual 64 MB, of which 1 MB is taken."""
    found = SimpleNamespace(f_frsize=4096, f_blocks=64 * 2**20 // 4096, f_bavail=63 * 2**20 // 4096)
    statvfs = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: found if path == memory.SHARED else statvfs(path))
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(
    ("workers", "held", "processes", "needed"),
    [
        (2, 1, 1, None),  # 5 batches: two in work or ready for each worker, one in use
        (3, 1, 1, "67 MB"),
        (8, 1, 1, "164 MB"),  # the default recipe
        (2, 4, 1, "77 MB"),  # four micro-batches make a step
        (2, 1, 8, "385 MB"),  # eight processes
    ],
)
def test_batches_of_all_workers_must_find_room(
    monkeypatch, small_shared_memory, workers, held, processes, needed
):
    monkeypatch.setattr(loading, "share_of_cores", lambda: 8)
    monkeypatch.setattr(distributed, "local_world_size", lambda: processes)
    options = {"timeout": 60, "batch_bytes": 64 * 3 * 224 * 224, "batches_held": held}
    sampler = EvaluationSampler(999, 4, seed=0)
    try:
        Loader(Numbers(abs), sampler, workers, **options)
        message = None
    except RunError as error:
        message = str(error)
    if needed is None:
        assert message is None
    else:
        assert f"needs {needed} of shared memory" in message
        assert "/dev/shm has 66 MB free" in message
        assert ("--shm-size=512m" if processes == 8 else "--shm-size=256m") in message
        assert message.endswith("or --ipc=host, or lower num_workers or batch_size")


def test_a_training_looks_for_room_before_its_first_step(tiny_coco, tmp_path, monkeypatch, capsys):
    found = SimpleNamespace(f_frsize=4096, f_blocks=500, f_bavail=500)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    monkeypatch.setattr(sys, "platform", "linux")
    config = write_config(tmp_path, "mae_config.yaml", num_workers=1, image_size=320, patch_size=80)
    arguments = ["--config", config, "--data", tiny_coco["data"], "--out", tmp_path / "out"]
    code, message = ended(train_encoder.main, *arguments, capsys=capsys)
    assert code == 1
    assert "needs 3.7 MB of shared memory (2 batches of 1.8 MB), and /dev/shm has 2.0 MB free" in message
    assert "num_workers or batch_size" in message
    with pytest.raises(RunError) as caught:  # as evaluate_captioner.py, which has no such keys
        get_coco_loader("val", 4, EvaluationTransform(640), 1, mode="image_only", data=CocoData(tiny_coco))
    assert str(caught.value).endswith("--ipc=host")


@pytest.mark.parametrize("trouble", ["no room", "bus error"])
def test_a_worker_without_room_is_one_line_with_the_way_out(monkeypatch, capfd, trouble):
    """Tracebacks of the workers, and 50 s later "DataLoader timed out"."""
    no_room = "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"

    def fail(_: object) -> None:
        if trouble == "no room":
            raise RuntimeError(no_room)
        os.kill(os.getpid(), signal.SIGBUS)

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(RunError, match=r"docker run.*--shm-size=.*num_workers or batch_size"):
        list(numbers(abs))
    assert "Traceback" not in capfd.readouterr().err


FULL = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from support import command_line
from training.loading import Loader, samples_or_errors
from training.sampling import EvaluationSampler

class Large(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return torch.zeros(5 * 2**20, dtype=torch.uint8)
    def __getitems__(self, keys):
        return samples_or_errors(self, keys)
    def batch(self, samples):
        return (samples[0],)

def main():
    for batch in Loader(Large(), EvaluationSampler(8, 1, seed=0), 1, 60):
        pass

command_line.run(main)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="only root can mount a small /dev/shm"
)
def test_a_small_shared_memory_ends_a_run_in_one_line(tmp_path):
    script = tmp_path / "full.py"
    script.write_text(FULL)
    mount = "mount -t tmpfs -o size=4m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    command = f"{mount} && exec {sys.executable} {script}"
    run = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr == (
        "full.py: failed: a loader worker found no room in shared memory (/dev/shm has 4.2 MB in all): give "
        "`docker run` the option --shm-size=256m or --ipc=host, or lower num_workers or batch_size\n"
    )
