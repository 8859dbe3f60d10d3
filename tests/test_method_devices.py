"""Devices, and threads by load: known answers from made-up machines, and what a model then computes with."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from diffad import benchmark
from diffad.method import devices
from diffad.method.devices import pick_device, sharing, stepwise
from diffad.method.repair_options import RepairOptions

CPU = torch.device("cpu")


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device().type in ("cpu", "cuda")
    for absent in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(ValueError, match=f"no device '{absent}'"):
            pick_device(absent)


class Machine:
    """A made-up /proc and control group. Its process has this one's calling thread and workers besides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def show(self, cores: int, running: int, spinning: int = 0, asleep: int = 0, quota: str = "") -> None:
        """running: threads that want a core, of all programs, this one's caller and spinning ones too."""
        counts = "".join(f"cpu{i} 9 0 9 9 0 0 0 0 0 0\n" for i in range(cores))
        self.folder.joinpath("stat").write_text(f"cpu  9 0 9\n{counts}intr 1 2\nprocs_running {running}\n")
        states = {threading.get_native_id(): "R"}
        states |= {10**8 + i: "R" if i < spinning else "S" for i in range(spinning + asleep)}
        self.tasks(states)
        if quota:
            self.folder.joinpath("cpu.max").write_text(quota)

    def tasks(self, states: dict[int, str]) -> None:
        for number, state in states.items():
            task = self.folder / "self" / "task" / str(number)
            task.mkdir(parents=True, exist_ok=True)
            task.joinpath("stat").write_text(f"{number} (a name) R (odd)) {state} 1 2 3\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """This process may use 16 cores of the made-up machine, and torch 8 threads."""
    monkeypatch.setattr(devices, "_PROC", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    allow(monkeypatch, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield Machine(tmp_path)
    torch.set_num_threads(before)


def allow(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)


def threads() -> int:
    with sharing(CPU):
        return torch.get_num_threads()


@pytest.mark.parametrize(
    "cores, running, spinning, expected",
    [
        (8, 1, 0, 8),  # idle
        (8, 2, 0, 7),  # one other program
        (8, 4, 0, 5),
        (8, 8, 0, 1),
        (8, 40, 0, 1),  # never none
        (2, 1, 0, 2),
        (2, 2, 0, 1),
        (2, 2, 1, 2),  # the other one is a worker of this process that still spins
        (2, 3, 1, 1),
        (16, 5, 0, 8),  # 12 cores are free: as many as torch uses
    ],
)
def test_the_threads_are_the_cores_that_nobody_else_wants(machine, cores, running, spinning, expected):
    machine.show(cores, running, spinning, asleep=3)
    assert threads() == expected and torch.get_num_threads() == 8


def test_a_container_counts_the_machines_free_cores_and_its_own_limits(machine, monkeypatch):
    machine.show(64, 51)
    allow(monkeypatch, 4)
    assert threads() == 4  # 14 are free
    machine.show(64, 63)
    assert threads() == 2
    allow(monkeypatch, 16)
    machine.show(64, 1, quota="250000 100000\n")
    assert threads() == 3
    machine.show(64, 1, quota="max 100000\n")
    assert threads() == 8


def test_what_wants_a_core_for_a_moment_does_not_count(machine, monkeypatch):
    machine.show(2, 2)
    monkeypatch.setattr(devices.time, "sleep", lambda _: machine.show(2, 1))
    assert threads() == 2
    machine.show(2, 2)
    monkeypatch.setattr(devices.time, "sleep", lambda _: None)
    assert threads() == 1


def test_other_work_of_this_process_counts(machine):
    """A thread of Python's that runs, say one that encodes a film, is no spinning worker."""
    end, begun = threading.Event(), threading.Event()
    worker = threading.Thread(target=lambda: (begun.set(), end.wait()))
    worker.start()
    begun.wait()
    machine.show(8, 2)
    machine.tasks({worker.native_id: "R"})
    assert threads() == 7
    end.set()
    worker.join()


@pytest.mark.parametrize("stat", [None, "", "cpu0 1\nprocs_blocked 0\n", "cpu0 1\nprocs_running many\n"])
def test_where_the_system_does_not_tell_the_usual_threads_compute(machine, stat):
    if stat is not None:
        (machine.folder / "stat").write_text(stat)
    assert threads() == 8


def test_what_computes_at_once_divides_the_cores(machine):
    machine.show(8, 1)
    found: dict[int, Sequence[int]] = {}
    for count in (1, 2, 3, 8, 9):
        together = threading.Barrier(count)

        def one(together: threading.Barrier = together) -> tuple[int, int]:
            torch.set_num_threads(8)
            with sharing(CPU):
                together.wait()  # all are in
                devices._set_threads(devices._share(8), 8)  # as if it began now
                mine = torch.get_num_threads()
                together.wait()
            return mine, torch.get_num_threads()

        with ThreadPoolExecutor(count) as pool:
            said = [job.result() for job in [pool.submit(one) for _ in range(count)]]
        assert {after for _, after in said} == {8}
        found[count] = sorted({mine for mine, _ in said})
    assert found == {1: [8], 2: [4], 3: [2], 8: [1], 9: [1]} and not devices._computing


def test_other_threads_keep_what_they_have(machine):
    """Even one that is new to torch, which takes over what was set last."""
    machine.show(2, 2)
    with ThreadPoolExecutor(1) as old, sharing(CPU):
        assert torch.get_num_threads() == 1
        for helper in threading.enumerate():
            if helper.daemon and helper is not threading.current_thread():
                helper.join(1)
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == 8
        assert old.submit(torch.get_num_threads).result() == 8


def test_the_threads_come_back_after_an_error_and_a_second_asking_changes_nothing(machine):
    machine.show(2, 2)
    with pytest.raises(KeyError), sharing(CPU):
        machine.show(8, 1)
        with sharing(CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 8 and not devices._computing


def test_a_gpu_leaves_the_threads_alone(machine):
    machine.show(2, 9)
    with sharing(torch.device("cuda")):
        assert torch.get_num_threads() == 8


def test_every_step_asks_anew_and_nothing_is_kept_between_steps(machine):
    machine.show(2, 2)

    def steps() -> Iterator[int]:
        for _ in range(3):
            yield torch.get_num_threads()

    walk = stepwise(steps(), partial(sharing, CPU))
    assert next(walk) == 1 and torch.get_num_threads() == 8
    machine.show(8, 1)
    with ThreadPoolExecutor(1) as pool:  # as a server does
        assert pool.submit(lambda: (torch.set_num_threads(8), next(walk))[1]).result() == 8
    machine.show(8, 6)
    assert list(walk) == [3] and not devices._computing


def test_inspections_tiles_and_repairs_ask_for_their_share(inspector, machine, monkeypatch):
    asked: list[int] = []
    inside: list[bool] = []
    monkeypatch.setattr(devices, "_share", lambda usual: asked.append(usual) or 1)

    def computes(*_) -> None:
        inside.append(threading.get_native_id() in devices._computing and torch.get_num_threads() == 1)

    modules = inspector.network, inspector.extractor.network
    hooks = [each.register_forward_hook(computes) for each in modules]
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    before: list[int] = []
    try:
        inspector.inspect(picture)
        inspector.features(picture)
        for _ in inspector.repair(picture, options=RepairOptions(steps=2, method="paper")):
            assert len(asked) > sum(before) and torch.get_num_threads() == 8
            before.append(len(asked) - sum(before))
        done: list[int] = []
        inspector.inspect(
            picture, inspector.categories[0], tile=160, progress=lambda *_: done.append(len(asked))
        )
        assert len(set(done)) == len(done) > 1  # each batch of tiles anew
    finally:
        for hook in hooks:
            hook.remove()
    assert len(before) == 3 and set(asked) == {8} and all(inside) and torch.get_num_threads() == 8


def test_busy_loops_run_and_end_whatever_happens():
    with pytest.raises(KeyError), benchmark._busy_loops(2) as loops:
        assert len(loops) == 2 and all(loop.poll() is None for loop in loops)
        raise KeyError
    assert all(loop.poll() is not None for loop in loops)


@pytest.mark.skipif(os.name != "posix", reason="parents are told by their number there")
def test_a_busy_loop_does_not_outlive_a_killed_benchmark():
    code = f"""if True:
        import os, subprocess, sys
        busy = [sys.executable, "-c", {benchmark._BUSY!r}, str(os.getpid())]
        loop = subprocess.Popen(busy, stdout=subprocess.DEVNULL)
        print(loop.pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    loop = int(killed.stdout)
    for _ in range(200):
        try:
            state = Path(f"/proc/{loop}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        benchmark.time.sleep(0.05)
    pytest.fail("the busy loop runs on")


def test_slowdowns_are_told_against_an_idle_machine(monkeypatch):
    """The first inspection of each kind is not counted; the median and the worst are of the others."""
    clock = iter(np.cumsum([0, 9, 0, 1, 0, 2, 0, 3, 0, 9, 0, 2, 0, 4, 0, 7, 0, 9, 0, 6, 0, 6, 0, 6]).tolist())

    class Stub:
        def inspect(self, *_, **__) -> None:
            pass

    monkeypatch.setattr(benchmark, "_busy_loops", lambda count: devices.contextmanager(lambda: iter([[]]))())
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    rows = benchmark.beside(Stub(), np.zeros((1, 1, 3), np.uint8), "", (20,), 3)
    assert [tuple(row.values()) for row in rows] == [(0, 2, 3, 1), (1, 4, 7, 2), (2, 6, 6, 3)]
