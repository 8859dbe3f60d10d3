"""What was acknowledged outlives a kill -9 at any moment, and nothing half done is taken for whole."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workspace_cases import MAP

from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.record import Entry
from diffad.workspace.store import Workspace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed as POSIX does")
TESTS = Path(__file__).parent
# Forks a child for each line with a number of seconds, and kills it after them. A child keeps, corrects and
# deletes, and says each thing before it begins and when it is done.
NURSERY = """
import os, random, signal, sys, time
import numpy as np
from workspace_cases import keep
from diffad.workspace.history import History
from diffad.workspace.store import Workspace

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def live(seed):
    rng, mine = random.Random(seed), []
    history = History(Workspace.open(sys.argv[1]))
    while True:
        turn = rng.random()
        if mine and turn < 0.2:
            id = mine.pop(rng.randrange(len(mine)))
            say("delete", id)
            history.delete([id], "")
            say("deleted", id)
        elif mine and turn < 0.4:
            id, side = rng.choice(mine), rng.randrange(1, 9)
            say("correct", id, side)
            history.correct(id, "defective", "", np.ones((side, side)))
            say("corrected", id, side)
        else:
            grey = rng.randrange(30)
            mine.append(keep(history, grey))
            say("kept", mine[-1], grey)

with Workspace.open(sys.argv[2]) as first:  # what is loaded now the children need not load
    keep(History(first))
for seed, line in enumerate(sys.stdin):
    child = os.fork()
    if not child:
        live(seed)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    say("dead")
"""


class Told:
    """What the killed children acknowledged."""

    def __init__(self) -> None:
        self.kept: set[int] = set()
        self.doubtful: set[int] = set()  # being deleted when the end came
        self.deleted: set[int] = set()
        self.masks: dict[int, set[int]] = {}  # the sides that a mask may have

    def hear(self, words: list[str]) -> None:
        action, id = words[0], int(words[1])
        if action == "kept":
            self.kept.add(id)
        elif action == "delete":
            self.doubtful.add(id)
        elif action == "deleted":
            self.deleted.add(id)
        elif action == "correct":
            self.masks.setdefault(id, {0}).add(int(words[2]))
        else:
            self.masks[id] = {int(words[2])}


def check(history: History, told: Told, entries: list[Entry]) -> None:
    """Every row has its files, whole, and the correction that was acknowledged."""
    for entry in entries:
        data = history.picture_path(entry).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry.sha256
        assert np.allclose(history.anomaly_map(entry), MAP, atol=0.005)
        with Image.open(history.thumbnail_path(entry)) as thumbnail:
            assert thumbnail.convert("RGB").size == (16, 12)
        side, mask = 0, history.mask_path(entry)
        if mask is not None:
            with Image.open(mask) as picture:
                side = np.array(picture).shape[0]
                assert np.array(picture).min() == 255
        assert side in told.masks.get(entry.id, {0})
        assert entry.correction == ("defective" if side else "")


def test_50_kills_lose_nothing_that_was_acknowledged(tmp_path):
    rng, told = random.Random(), Told()
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    folder = tmp_path / "workspace"
    argv = [sys.executable, "-c", NURSERY, str(folder), str(tmp_path / "other")]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env=os.environ | {"PYTHONPATH": path},
    ) as nursery:  # fmt: skip
        for _ in range(50):
            nursery.stdin.write(f"{rng.uniform(0, 0.3)}\n")
            new = set()
            while (words := nursery.stdout.readline().split()) != ["dead"]:
                told.hear(words)
                new.add(int(words[1]))
            with Workspace.open(folder) as workspace:  # its lock died with the child
                history = History(workspace)
                with workspace.reading() as db:
                    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
                there = {row[0] for row in history.columns(Filter(), "id")}
                assert told.kept - told.doubtful <= there and not told.deleted & there
                check(history, told, [history.get(id) for id in new & there])
        nursery.stdin.close()
    assert len(told.kept) >= 50 and told.deleted and told.masks
    with Workspace.open(folder) as workspace:
        history = History(workspace)
        history.sweep(age=0)
        entries = history.find(limit=None)[0]
        check(history, told, entries)
        named = {entry.sha256 for entry in entries}
        pictures = [path.stem for path in (folder / "pictures").glob("*/*")]
        assert sorted(pictures) == sorted(named)  # nothing is left of what was not kept
        for kind in ("thumbnails/*/*", "maps/*/*.npy"):
            assert {path.stem for path in folder.glob(kind)} == {entry.token for entry in entries}
