"""Real processes of the scripts: started, watched, stopped by signals, and what they leave behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.training_cases import ROOT

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
MARK = "CAPTIONER_TEST_RUN"  # in the environment of a run and of all its descendants


def start(script: str, *options: object, ranks: int = 1) -> subprocess.Popen:
    """Starts a script, on two ranks under torchrun; its stderr is a file that `stderr_of` reads."""
    launcher = [*TORCHRUN, f"--nproc_per_node={ranks}"] if ranks > 1 else [sys.executable]
    mark = uuid.uuid4().hex
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: mark}
    with open(stderr_file(mark), "w") as stderr:
        run = subprocess.Popen(
            [*launcher, script, *map(str, options)],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    run.mark = mark
    return run


def stderr_file(mark: str) -> Path:
    return Path(tempfile.gettempdir(), f"{mark}.stderr")


def stderr_of(run: subprocess.Popen) -> str:
    """What the run and its descendants have said; ends the file."""
    path = stderr_file(run.mark)
    text = path.read_text()
    path.unlink()
    return text


def wait_for_checkpoint(run: subprocess.Popen, folder: Path, seconds: float = 90) -> None:
    """Returns when the run has saved something: it is training."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob("checkpoint*.pt")):
        assert run.poll() is None, stderr_of(run)
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.02)


def alive(run: subprocess.Popen) -> list[int]:
    """The processes that are the run's, orphans too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and f"{MARK}={run.mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def stop(run: subprocess.Popen, signum: int, again_after: float | None = None) -> tuple[int, float]:
    """Sends a signal, and another one later if asked to; returns the exit code and the seconds it took."""
    run.send_signal(signum)
    started = time.monotonic()
    if again_after is not None:
        time.sleep(again_after)
        if run.poll() is None:
            run.send_signal(signum)
    code = run.wait(timeout=60)
    return code, time.monotonic() - started


def end(run: subprocess.Popen) -> None:
    """Kills all of the run that is left."""
    for process in alive(run):
        os.kill(process, signal.SIGKILL)
    run.wait()
