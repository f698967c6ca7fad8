"""Which process of a run this is, by the environment, and how it meets the others."""

import multiprocessing
import os
import signal
import socket
import time

import pytest
import torch

import train_encoder
from support import devices, distributed, interrupts
from support.distributed import Place
from support.errors import RunError, UsageError
from tests.training_cases import ended

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MEETING}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}  # no step of srun
ALONE = Place(0, 1, 0)
FORK = multiprocessing.get_context("fork")  # a process that need not import torch again


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        (TORCHRUN, Place(3, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ALONE),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "node7"}, ALONE),
        ({"WORLD_SIZE": "1"}, ALONE),
        ({"RANK": "", "WORLD_SIZE": ""}, ALONE),
        (BATCH_SCRIPT, ALONE),
        ({**BATCH_SCRIPT, "SLURM_STEP_NUM_TASKS": "1"}, ALONE),  # srun -n 1
        ({**BATCH_SCRIPT, **TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"}, Place(3, 8, 1)),  # srun torchrun
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"}, ALONE),
    ],
)
def test_the_place_of_a_process(environment, expected):
    assert distributed.place_in_run(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "4"},
            "not MASTER_ADDR and MASTER_PORT: start with `torchrun --nproc_per_",
        ),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, "not MASTER_PORT: start with `torchrun"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set, but not RANK: start with `torchrun"),
        ({"RANK": "2"}, "RANK=2 with no WORLD_SIZE"),
        ({**TORCHRUN, "RANK": "8"}, "RANK=8 with WORLD_SIZE=8: it must be below WORLD_SIZE"),
        ({**TORCHRUN, "RANK": "a"}, "RANK=a is not a whole number from 0"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1 is not a whole number"),
        ({**TORCHRUN, "RANK": "²"}, "RANK=² is not a whole number"),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE=0 is not a whole number from 1"),
        ({**TORCHRUN, "LOCAL_RANK": "1.5"}, "LOCAL_RANK=1.5 is not a whole number"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is not a whole number from 1 to 65,535"),
        ({**BATCH_SCRIPT, "SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 processes (SLURM_STEP_NUM_TASKS)"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "`mpirun -n 1 torchrun --nproc_per_node=4"),
        ({"PMI_SIZE": "4"}, "`mpiexec -n 1 torchrun --nproc_per_node=4"),
    ],
)
def test_an_environment_that_cannot_be_is_one_line_that_says_what_would_do(
    environment, words, monkeypatch, capsys
):
    for name in (*TORCHRUN, *distributed.TASKS.values()):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, error = ended(train_encoder.main, capsys=capsys)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert "torchrun --nproc_per_node=" in error


def test_a_rank_beyond_the_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {**TORCHRUN, "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UsageError, match="LOCAL_RANK=2, but this process sees 2 GPUs"),
        distributed.process_group(),
    ):
        pass


def test_a_world_of_one_is_a_plain_run(monkeypatch):
    """Also where the platform names a meeting place that nobody answers at."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "no.such.host.invalid"}.items():
        monkeypatch.setenv(name, value)
    with distributed.process_group() as device:
        assert device == devices.choose_device()
        assert not torch.distributed.is_initialized()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def meet() -> None:
    interrupts.install()
    with distributed.process_group():
        pass


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_process_that_never_comes(signum, monkeypatch):
    """The other one was ended while it was still importing, say; torch would wait for ten minutes."""
    port = free_port()
    here = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING, "MASTER_PORT": str(port)}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    run = FORK.Process(target=meet)
    run.start()
    try:
        for _ in range(200):  # rank 0 listens where they meet, and waits
            time.sleep(0.05)
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
        os.kill(run.pid, signum)
        run.join(timeout=20)
        assert run.exitcode in (-signum, 128 + signum)
    finally:
        run.kill()
        run.join()


@pytest.mark.parametrize("torchrun", [False, True])
def test_only_a_second_signal_that_is_no_echo_ends_a_process_at_once(torchrun, monkeypatch):
    """What signals a whole job reaches a rank twice, for torchrun passes its own on: the rank died saving."""
    ends, clock = [], [100.0]
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(interrupts, "_received", None)
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: clock[0])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for seconds in (0, 0.005, 0.9, 2):
        clock[0] = 100 + seconds
        interrupts._handle(signal.SIGTERM, None)
        assert interrupts.received() == signal.SIGTERM
        assert ends == ([128 + signal.SIGTERM] if seconds == 2 and not torchrun else [])


def test_processes_that_do_not_meet_are_one_line(monkeypatch):
    for name, value in {**TORCHRUN, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed, "TIMEOUT", distributed.timedelta(seconds=1))
    with pytest.raises(RunError, match="of this run did not meet at "), distributed.process_group():
        pass


def test_a_process_left_alone_says_so_wherever_it_stands(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(RunError, match="another process of this run ended"), distributed.process_group():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="a bug"), distributed.process_group():
        raise RuntimeError("a bug")
