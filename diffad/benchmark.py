"""Measure how fast a model is on this machine: inspection, batch, repair and training."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffad import batch
from diffad.inspector import Inspector
from diffad.method.repair_options import RepairOptions
from diffad.pictures.drawing import png_bytes
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.samples import Sample
from diffad.teaching.training import training_rate

_BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"  # ends with its parent
# (items, label, number of items) → the same items, with a progress bar
Tracked = Callable[[Iterable[Any], str, int], Iterable[Any]]


def benchmark(
    inspector: Inspector, picture: npt.NDArray[np.uint8], category: str, timesteps: Sequence[int],
    runs: int, steps: int, tracked: Tracked = lambda some, name, count: some,
) -> dict[str, Any]:  # fmt: skip
    """Time inspections, a batch, a repair and training on one picture.

    Args:
        picture: uint8 [H, W, 3].
        category, timesteps: as for `Inspector.inspect`.
        runs: number of inspections, and of files in the batch.
        steps: number of repair steps.
        tracked: wraps an iterable to show progress.

    Returns:
        first_inspection, inspection: seconds; the latter is the median of all but the first one.
        backbone, network, rest: seconds of the parts of an inspection, medians.
        repair_first_frame, repair_step: seconds; the latter is the mean.
        batch_rate, training_rate: pictures per second.
        repair_method: the method that was timed.
    """

    def once() -> float:
        begun = time.perf_counter()
        inspector.inspect(picture, category=category, timesteps=timesteps).to_dict()
        return time.perf_counter() - begun

    first = once()
    spent = []
    with _timed(inspector) as parts:
        for _ in tracked(range(runs), "inspecting", runs):
            for part in parts:
                part.clear()
            spent.append((once(), *map(sum, parts)))
    whole, backbone, network = map(statistics.median, zip(*spent))
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{index}.png": Sample(Path(folder) / f"{index}.png", "") for index in range(runs)}
        for sample in files.values():
            sample.image.write_bytes(png_bytes(picture))
        begun = time.perf_counter()
        for _ in tracked(batch.run(inspector, files, category, timesteps=timesteps), "batch", runs):
            pass
        batch_rate = runs / (time.perf_counter() - begun)
    for method in ("weighed", "paper"):  # "weighed" does nothing if the picture has no anomaly
        begun = time.perf_counter()
        repair = inspector.repair(picture, category, RepairOptions(steps=steps, method=method))
        marks = [time.perf_counter() - begun for _ in tracked(repair, "repairing", steps + 1)]
        if len(marks) > 1:
            break
    square = to_uint8(to_square(picture, inspector.size)[0])
    return {
        "repair_method": method,
        "first_inspection": first,
        "inspection": whole,
        "backbone": backbone,
        "network": network,
        "rest": max(0.0, whole - backbone - network),
        "repair_first_frame": marks[1],
        "repair_step": (marks[-1] - marks[0]) / (len(marks) - 1),
        "batch_rate": batch_rate,
        "training_rate": training_rate(
            inspector.network.config, inspector.extractor.backbone_name, square, inspector.device
        ),
    }


def beside(
    inspector: Inspector, picture: npt.NDArray[np.uint8], category: str, timesteps: Sequence[int], runs: int,
    tracked: Tracked = lambda some, name, count: some,
) -> list[dict[str, float]]:  # fmt: skip
    """Time inspections while 0, 1 and 2 other processes keep a CPU core busy.

    Returns:
        For each number of processes: busy_loops, median_seconds, worst_seconds, and slowdown (the median
        divided by the median without such processes).
    """
    found: list[dict[str, float]] = []
    for loops in (0, 1, 2):
        with _busy_loops(loops):
            spent = []
            for _ in tracked(range(runs + 1), f"beside {loops} busy loops", runs + 1):
                begun = time.perf_counter()
                inspector.inspect(picture, category=category, timesteps=timesteps)
                spent.append(time.perf_counter() - begun)
        median = statistics.median(spent[1:])  # the first inspection also loads code
        alone = found[0]["median_seconds"] if found else median
        found.append({"busy_loops": loops, "median_seconds": median, "worst_seconds": max(spent[1:]),
                      "slowdown": median / alone})  # fmt: skip
    return found


@contextmanager
def _busy_loops(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep `count` processes computing while the context is open, or until this process ends."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            loops.append(subprocess.Popen([sys.executable, "-S", "-c", _BUSY, str(os.getpid())]))
        if loops:
            time.sleep(0.2)  # time to start
        yield loops
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


@contextmanager
def _timed(inspector: Inspector) -> Iterator[tuple[list[float], list[float]]]:
    """Record the seconds of every call of the backbone and of the network while the context is open."""

    def now() -> float:
        if inspector.device.type == "cuda":
            torch.cuda.synchronize(inspector.device)
        return time.perf_counter()

    seconds: tuple[list[float], list[float]] = ([], [])
    hooks = []
    backbone, network = seconds
    extractor = inspector.extractor
    watched = (extractor.fine, backbone), (extractor.network, backbone), (inspector.network, network)
    for module, spent in watched:
        hooks.append(module.register_forward_pre_hook(lambda *_, spent=spent: spent.append(-now())))
        hooks.append(module.register_forward_hook(lambda *_, spent=spent: spent.append(spent.pop() + now())))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
