"""Where a model computes: on which device, and with how many threads of a CPU that other programs use too.

Threads that compute together wait for one another many times in an inspection, so one that gets no core holds
up all of them: beside a single busy program, two threads on two cores take several times as long as one
thread does. Therefore whatever computes asks for its share of the machine when it begins (`sharing`).
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
_LOOKS, _APART = 3, 0.001  # s; what wants a core for a moment only is not in all looks
_computing: set[int] = set()  # threads inside `sharing`, by the system's numbers
_lock = threading.Lock()
_T = TypeVar("_T")


def pick_device(device: str = "auto") -> torch.device:
    """The named device; "auto" is the first CUDA device if there is one, else the CPU.

    Raises ValueError for a device that does not exist.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # "meta" holds no values
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {device!r} here; use 'auto' or 'cpu'") from None
    return chosen


@contextmanager
def sharing(device: torch.device) -> Iterator[None]:
    """Compute on the CPU with a fair number of threads; on a GPU nothing changes.

    That is the number of cores that no other program wants at this moment, divided by the threads of this
    process that are in this context; at least one, and never more than the calling thread's
    torch.get_num_threads(), which is restored afterwards.
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
    """The same steps, each computed `within` a context of its own (as `sharing`).

    The context is not held while the caller uses the step.
    """
    while True:
        with within():
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


def _set_threads(count: int, usual: int) -> None:
    """Set the number of threads of the calling thread.

    A thread that is new to torch starts with the number that any thread set last; that stays the usual one.
    """
    if torch.get_num_threads() == count:
        return
    torch.set_num_threads(count)
    if count != usual:
        threading.Thread(target=torch.set_num_threads, args=(usual,), daemon=True).start()


def _share(usual: int) -> int:
    return max(1, min(usual, _free_cores() // max(1, len(_computing))))


def _free_cores() -> int:
    """The cores that this process may use and that no other program wants now; may be below 1.

    In a container the system reports the whole machine, so free cores are counted on all of it.
    """
    allowed, free = cores(), []
    for look in range(_LOOKS):
        if look:
            time.sleep(_APART)
        try:
            existing, wanted = _load()
        except (OSError, ValueError, IndexError):  # macOS and Windows do not say
            return allowed
        if existing - wanted >= allowed:
            return allowed
        free.append(existing - wanted)
    return max(free)


def cores() -> int:
    """How many cores this process may use, by its affinity and by the time that its container is allowed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or one without a limit
        return cores


def _load() -> tuple[int, int]:
    """The machine's cores, and how many threads run or wait for one apart from those that compute here."""
    stat = (_PROC / "stat").read_text()
    cores = len(re.findall(r"^cpu\d", stat, re.MULTILINE))
    running = int(stat.split("procs_running ")[1].split()[0])
    return cores, running - (_own_running() if running > 1 else 1)


def _own_running() -> int:
    """Running threads of this process that compute: those in `sharing` and the workers of their pools, which
    may only be spinning. Python's other threads have work of their own.
    """
    others = {thread.native_id for thread in threading.enumerate()} - _computing
    count = 0
    for task in (_PROC / "self" / "task").iterdir():
        if int(task.name) not in others:
            try:
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):  # it has just ended
                continue
            count += state == "R"
    return max(1, count)
