"""Fair turns at the network: who waits for whom, then turns of tiles and repairs."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffad.inspector import Inspector
from diffad.method.repair_options import RepairOptions
from diffad.pictures.reading import DataError
from diffad.synthetic.parts import CATEGORIES, make_part
from diffad.ui.turns import Turns, Unwanted


def works(turns: Turns, person: str, calls: int, log: list[str], begin: threading.Event) -> threading.Thread:
    """A thread that takes a number of turns one after the other."""

    def work() -> None:
        turn = turns.of(person)
        for _ in range(calls):
            with turn():
                begin.wait()
                log.append(person)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def waiting(turns: Turns, number: int) -> None:
    """Waits until a number of threads wait for their turn."""
    for _ in range(2000):
        if sum(map(len, turns._waiting.values())) == number:
            return
        time.sleep(0.005)
    raise AssertionError("they do not wait")


def test_a_newcomer_waits_for_one_call_of_each_other_person():
    turns, log, begin = Turns(), [], threading.Event()
    threads = [works(turns, "ann", 20, log, begin)]
    for number, person in enumerate(("ann", "ann", "bob")):  # ann has three pieces of work in hand
        threads.append(works(turns, person, 20, log, begin))
        waiting(turns, number + 1)
    threads.append(works(turns, "cleo", 1, log, begin))
    waiting(turns, 4)
    begin.set()
    for thread in threads:
        thread.join(20)
    # the one who had it already, then those who came before, each once
    assert log.index("cleo") <= 3 and log[: log.index("cleo")].count("bob") == 1
    both = log[: 2 * 20]
    assert abs(both.count("ann") - both.count("bob")) <= 3  # as often as one other, with thrice the work
    assert len(log) == 81


def test_one_persons_requests_take_turns_too():
    turns, log, begin = Turns(), [], threading.Event()
    first = works(turns, "ann", 10, log, begin)
    second = threading.Thread(target=lambda: [take(turns, log) for _ in range(3)], daemon=True)
    second.start()
    waiting(turns, 1)
    begin.set()
    first.join(20)
    second.join(20)
    assert log[:6].count("second") >= 2


def take(turns: Turns, log: list[str]) -> None:
    with turns.of("ann")():
        log.append("second")


def test_what_nobody_wants_any_more_gets_no_turn_and_hands_it_on():
    turns = Turns()
    wanted = True
    turn = turns.of("ann", lambda: wanted)
    with turn():
        pass
    wanted = False
    with pytest.raises(Unwanted), turn():
        raise AssertionError("it had a turn")
    with pytest.raises(KeyError), turns.of("bob")():
        raise KeyError
    with turns.of("cleo")():
        pass


# -- the inspector takes them ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def surface() -> np.ndarray:
    """A picture that is cut up: a part, six times."""
    return np.tile(make_part(CATEGORIES[0], 90_000).image, (2, 3, 1))


def test_a_turn_encloses_each_call_and_ends_the_work_at_the_next_tile(inspector: Inspector, surface):
    inside = taken = 0
    finished: list[int] = []

    @contextmanager
    def turn():
        nonlocal inside, taken
        assert not inside
        inside, taken = 1, taken + 1
        yield
        inside = 0

    inspector.inspect(surface, tile=256, progress=lambda done, total: finished.append(done), turn=turn)
    assert taken == len(finished) + 1 >= 4  # the first is for what the picture shows

    def ended(done: int, total: int) -> None:
        finished.append(done)
        if len(finished) == 2:
            nonlocal gone
            gone = True

    gone = False
    finished.clear()
    with pytest.raises(Unwanted):
        inspector.inspect(surface, tile=256, progress=ended, turn=Turns().of("ann", lambda: not gone))
    assert len(finished) == 2


def test_repairs_take_turns_by_steps(inspector: Inspector, defective: Path):
    taken = 0

    @contextmanager
    def turn():
        nonlocal taken
        taken += 1
        yield

    steps = inspector.repair(defective, turn=turn, options=RepairOptions(steps=3))
    before = taken
    assert before >= 2  # the inspection that comes first
    for number, _ in zip(range(3), steps, strict=False):
        assert taken == before + number + 1


def test_too_many_tiles_are_refused_with_what_to_do(inspector: Inspector, surface, tmp_path: Path):
    height, width = surface.shape[:2]
    sentence = (
        rf"a picture of {width} × {height} px needs \d+ tiles of 256 px, and no more than 4 are allowed"
    )
    with pytest.raises(DataError, match=sentence):
        inspector.inspect(surface, tile=256, max_tiles=4)
    path = tmp_path / "surface.png"
    Image.fromarray(surface).save(path)
    with pytest.raises(DataError, match="scale it down or cut it up"):
        inspector.repair(path, tile=256, max_tiles=4)
    assert inspector.inspect(surface[:256, :256], max_tiles=1).tile is None  # one piece is no tile too many
