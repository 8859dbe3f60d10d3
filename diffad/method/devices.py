"""Choice of the device, and of the number of threads on a CPU shared with other programs.

Parallel threads wait for each other many times during an inspection, so one thread without a core delays all
of them: beside one busy program, two threads on two cores take several times as long as a single thread.
Every computation therefore uses only as many threads as there are free cores (`sharing`).
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import torch

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_LOOKS, _APART = 3, 0.001  # samples of the load and s between them; short peaks are not in all samples
_computing: set[int] = set()  # native ids of the threads inside `sharing`
_lock = threading.Lock()
_T = TypeVar("_T")


def pick_device(device: str = "auto") -> torch.device:
    """The named device; "auto" is the first CUDA device if there is one, otherwise the CPU.

    Raises:
        ValueError: the device does not exist.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # fails for "meta", which holds no values
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {device!r} here; use 'auto' or 'cpu'") from None
    return chosen


@contextmanager
def sharing(device: torch.device) -> Iterator[None]:
    """Context manager that limits torch's CPU threads to a fair number; has no effect for a GPU.

    The number is that of the cores which no other program uses at the moment, divided by the threads of this
    process inside this context; at least 1 and at most the calling thread's torch.get_num_threads(), which is
    restored afterwards.
    """
    usual, own = torch.get_num_threads(), threading.get_native_id()
    if device.type != "cpu" or own in _computing:
        yield
        return
    with _lock:
        _computing.add(own)
    try:
        if usual > 1:
            _set_threads(_share(usual), usual)
        yield
    finally:
        with _lock:
            _computing.discard(own)
        _set_threads(usual, usual)


def stepwise(steps: Iterator[_T], within: Callable[[], AbstractContextManager[None]]) -> Iterator[_T]:
    """Iterate over `steps`, each computed in a context of its own that is left before the step is yielded."""
    while True:
        with within():
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


def _set_threads(count: int, usual: int) -> None:
    """Set torch's number of threads for the calling thread.

    New threads start with the number that any thread set last, so another thread sets the usual one again.
    """
    if torch.get_num_threads() == count:
        return
    torch.set_num_threads(count)
    if count != usual:
        threading.Thread(target=torch.set_num_threads, args=(usual,), daemon=True).start()


def _share(usual: int) -> int:
    return max(1, min(usual, _free_cores() // max(1, len(_computing))))


def _free_cores() -> int:
    """Number of cores that this process may use and that no other program uses now; may be below 1.

    In a container the system reports the whole machine, so free cores are counted on all of it.
    """
    allowed, free = cores(), []
    for look in range(_LOOKS):
        if look:
            time.sleep(_APART)
        try:
            existing, wanted = _load()
        except (OSError, ValueError, IndexError):  # not available on macOS and Windows
            return allowed
        if existing - wanted >= allowed:
            return allowed
        free.append(existing - wanted)
    return max(free)


def cores() -> int:
    """Number of cores that this process may use, by its affinity and its container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or no quota
        return cores


def _load() -> tuple[int, int]:
    """The machine's cores, and how many threads other than this process's computing ones run or wait."""
    stat = (_PROC / "stat").read_text()
    cores = len(re.findall(r"^cpu\d", stat, re.MULTILINE))
    running = int(stat.split("procs_running ")[1].split()[0])
    return cores, running - (_own_running() if running > 1 else 1)


def _own_running() -> int:
    """Number of running compute threads of this process: those in `sharing` and their pools' workers.

    Other Python threads are not counted, as they have other work.
    """
    others = {thread.native_id for thread in threading.enumerate()} - _computing
    count = 0
    for task in (_PROC / "self" / "task").iterdir():
        if int(task.name) not in others:
            try:
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):  # the thread has just ended
                continue
            count += state == "R"
    return max(1, count)
