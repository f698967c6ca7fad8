"""How much memory is free, by made-up files of the system; bytes that processes share."""

import multiprocessing
import os
import platform
import subprocess
import sys

import pytest
import torch

from paths import ROOT
from support import memory
from support.memory import SharedBytes

MACHINE = "MemTotal:  16000 kB\nMemFree:   100 kB\nMemAvailable:   8000 kB\nHugePages_Total:  0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="where /proc is")
def test_this_machine_says_how_much_is_free():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**26 < memory.available() <= total


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8000 * 1024),
        ({"memory.max": "max\n", "memory.current": "5", "memory.stat": "inactive_file 3\n"}, 8000 * 1024),
        # What the system holds of files it gives up.
        (
            {"memory.max": "2000\n", "memory.current": "900", "memory.stat": "anon 1\ninactive_file 300\n"},
            1400,
        ),
        ({"memory.max": "2000\n", "memory.current": "2100", "memory.stat": "inactive_file 0\n"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "2000\n",
                "memory/memory.usage_in_bytes": "900\n",
                "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 300\n",
            },
            1400,
        ),
    ],
)
def test_a_container_s_limit_counts_where_it_is_the_lesser(tmp_path, monkeypatch, files, free):
    """In a container the machine's free memory is no help: the system ends what goes beyond the limit."""
    (tmp_path / "meminfo").write_text(MACHINE)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.available() == free


def test_where_nobody_says_none_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.available() is None


def put(shared: SharedBytes, place: int) -> None:
    shared.bytes[place] = place


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_write_to_the_same_bytes(method):
    shared = SharedBytes(8)
    context = multiprocessing.get_context(method)
    writers = [context.Process(target=put, args=(shared, place)) for place in (3, 5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert shared.bytes.tolist() == [0, 0, 0, 3, 0, 5, 0, 0]


def test_they_last_while_somebody_has_them_open_and_then_are_gone():
    shared = SharedBytes(8)
    other = SharedBytes(8, shared.path)
    other.bytes[1] = 7
    path, seen = shared.path, shared.bytes
    del shared
    assert seen[1] == other.bytes[1] == 7
    assert not os.path.exists(path)
    torch.testing.assert_close(other.bytes, seen)


FAULTS_OF_LATER_BLOCKS = """
import resource, torch
from support import memory
if {keep}:
    memory.keep_freed(torch.device("cpu"))
for step in range(10):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (2**23, 2**24):  # 32 and 64 MiB, 24,576 pages of 4 KiB together
        block = torch.ones(size)
        del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="whose mallopt it is")
def test_what_is_freed_is_not_fetched_from_the_system_again():
    """By default all pages of a large block come anew."""
    faults = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS_OF_LATER_BLOCKS.format(keep=keep)],
                capture_output=True, text=True, check=True, cwd=ROOT,
            ).stdout
        )
        for keep in (False, True)
    }  # fmt: skip
    assert faults[False] > 100  # far fewer than 122,880 where the system hands out huge pages
    assert faults[True] < faults[False] / 10
