"""Inspections for the workspace's tests.

Called by itself it prints how long 100,000 of them take to answer: python tests/workspace_cases.py
"""

from __future__ import annotations

import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.record import Record
from diffad.workspace.store import Workspace

DAY = 86_400.0
START = 1_790_000_000.0  # of the first row, UTC
_REGION = {
    "box": [100, 80, 40, 20], "area": 500, "peak": 9.5, "mean": 7.25, "where": [0.3, 0.2],
    "extent": [0.1, 0.05],
}  # fmt: skip
_QUALITY = {
    "brightness": 120.5, "contrast": 40.25, "red": 1.02, "blue": 0.97, "sharpness": 0.61, "noise": 2.5
}  # fmt: skip


THUMBNAIL = np.full((12, 16, 3), 90, np.uint8)
MAP = np.linspace(-1, 9, 48, dtype=np.float32).reshape(6, 8)


def png(grey: int) -> bytes:
    """A picture of its own for each grey value."""
    buffer = io.BytesIO()
    Image.new("L", (16, 16), grey).save(buffer, "PNG")
    return buffer.getvalue()


def record(**changes: Any) -> Record:
    """A good gear, unless something else is said."""
    good = {
        "picture": "part.png", "category": "gear", "model": "parts", "verdict": "good", "score": 1.5,
        "threshold": 5.0, "look_threshold": 3.5, "rate": 0.01, "time": START,
    }  # fmt: skip
    return Record(**good | changes)


def keep(history: History, grey: int = 0, **changes: Any) -> int:
    """Keeps a `record` with the picture `png`."""
    return history.keep(record(**changes), png(grey), THUMBNAIL, MAP)


def fill(workspace: Workspace, count: int) -> None:
    """Rows without files: one every 5 minutes, in 8 categories, of which 1 in 20 is anomalous, 1 in 10 is to
    be looked at and 1 in 25 is corrected. Row n (from 0) shows the picture "Teil_<n>.PNG".
    """
    rng, settings = random.Random(0), json.dumps({"alpha": 0.5, "timesteps": [50, 150, 250], "seed": 0})
    quality, note = json.dumps(_QUALITY), json.dumps(["The picture is darker than any other one."])

    def row(n: int) -> tuple[object, ...]:
        verdict = "anomalous" if n % 20 == 0 else "look" if n % 10 == 5 else "good"
        correction = ("right", "good", "defective")[n % 3] if n % 25 == 0 else ""
        regions = json.dumps([_REGION] * (0 if verdict == "good" else 1 + n % 3))
        return (
            START + 300 * n, f"Teil_{n}.PNG", f"teil_{n}.png", f"{n % 1000:064x}", f"category {n % 8}",
            "parts", "1", rng.gauss(2, 1), 5.0, 3.5, verdict, 0.01, 0.8, "batch", f"user {n % 5}", correction,
            f"{n:032x}", 5000, settings, regions, note if n % 7 == 0 else "[]", quality,
        )  # fmt: skip

    columns = (
        "time, picture, folded, sha256, category, model, model_version, score, threshold, look_threshold, "
        "verdict, rate, seconds, source, who, correction, token, bytes, settings, regions, notes, quality"
    )
    places = ", ".join("?" * 22)
    with workspace.writing() as db:
        db.executemany(
            "INSERT INTO pictures VALUES (?, '.png', 100000)", [(f"{n:064x}",) for n in range(1000)]
        )
        db.executemany(f"INSERT INTO inspections ({columns}) VALUES ({places})", map(row, range(count)))


def questions(history: History, count: int) -> dict[str, Callable[[], object]]:
    """What the page and the command line ask, in words."""
    end = START + 300 * count
    recent = Filter(since=end - 7 * DAY)
    asked: dict[str, Filter] = {
        "all": Filter(), "a week": recent, "a category": Filter(category="category 3"),
        "anomalous": Filter(verdict="anomalous"), "flagged": Filter(verdict=("look", "anomalous")),
        "uncorrected": Filter(correction=""), "text": Filter(text="teil_9999"),
        "text, none": Filter(text="xyz"),
        "scores": Filter(score_from=3.0, score_to=3.5), "who": Filter(who="user 2", model="parts"),
        "everything": Filter(
            text="eil_", category="category 1", verdict=("good", "look"), correction="", model="parts",
            who=("user 1", "user 2"), since=START, until=end, score_from=0, score_to=9,
        ),
    }  # fmt: skip
    found: dict[str, Callable[[], object]] = {
        name: lambda chosen=chosen: history.find(chosen) for name, chosen in asked.items()
    }
    for sort in ("time", "score", "picture", "category", "verdict", "correction", "model", "who"):
        found[f"all by {sort}"] = lambda sort=sort: history.find(sort=sort, descending=False)
    found["a category by score"] = lambda: history.find(Filter(category="category 3"), sort="score")
    found["the last page"] = lambda: history.find(offset=count - 50)
    found["categories"], found["counts"] = history.categories, history.counts
    found["one"] = lambda: history.get(count // 2)
    return found


def main(count: int = 100_000) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Workspace.open(Path(folder))) as workspace:
        fill(workspace, count)
        for name, ask in questions(History(workspace), count).items():
            times = []
            for _ in range(5):
                start = time.perf_counter()
                ask()
                times.append(time.perf_counter() - start)
            print(f"{name:24} {1000 * sorted(times)[2]:6.1f} ms, the first time {1000 * times[0]:6.1f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
