"""A running batch on the server: its thread, its rows, and its answers to the page.

A run keeps its results, and the page's address holds its id, so nothing is lost if the page is reloaded or
Inspect is opened. The inspections themselves are in `diffad.batch`.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffad import batch
from diffad.inspection import Inspection
from diffad.output import OutputError, whole, write
from diffad.pictures import drawing
from diffad.pictures.reading import DataError
from diffad.pictures.samples import Sample
from diffad.report.rendering import data_uri
from diffad.ui import files
from diffad.ui.turns import Turns, Unwanted, caller
from diffad.verdicts import LOOK_RATE

if TYPE_CHECKING:
    from diffad.inspector import Inspector

SENT = 200  # most rows in one answer of `Run.news`
THUMBNAIL_PIXELS = 96
OVERLAY_BYTES = 300_000  # rough size of one picture in the zip
FINISHED = ("done", "stopped", "failed")
Keep = Callable[[batch.Row, Inspection], "Future[int]"]  # keeps a picture in the history; its id there, soon
TAKEN_AWAY = {"csv": "CSV", "json": "JSON", "zip": "Everything, zip"}


class Run:
    """One batch, which starts at once in its own thread.

    Rows are only appended, so other threads may read them at any time.
    """

    def __init__(
        self, model: str, inspector: Inspector, pictures: Mapping[str, Sample], folder: Path,
        settings: Mapping[str, Any], turns: Turns, storage: files.Storage, keep: Keep | None = None,
    ) -> None:  # fmt: skip
        """Starts the run.

        Args:
            model: the inspector's name on the page.
            inspector: the model.
            pictures: by their names in the batch.
            folder: the run's own folder, in the storage.
            settings: arguments of `Inspector.inspect`.
            turns: shared with everybody else who uses the network.
            storage: where the results take up room.
            keep: None keeps nothing.
        """
        self.id = secrets.token_urlsafe(9)
        self.model, self.inspector, self.pictures, self.settings = model, inspector, pictures, dict(settings)
        self.rows: list[batch.Row] = []
        self.kept: dict[int, Future[int]] = {}  # by row, the inspection's id in the history
        self.shared: dict[str, int] = {}  # see `batch.shared_bits`; empty until it is known
        self.state = "running"  # [→ stopping] → measuring → one of FINISHED
        self.reason = "an internal error; see the server's log"  # shown if the run fails
        self.measured: dict[str, dict[str, Any]] = {}
        self.used = files.clock()  # time of last use, s
        self._folder, self._storage, self._max_tiles = folder, storage, turns.max_tiles
        self._keep = keep
        self._turn = turns.of(caller(), lambda: self.state == "running")
        self._numbers = {name: number for number, name in enumerate(pictures)}
        self._shown: list[dict[str, Any]] = []
        self._begun, self._ended = time.time(), 0.0
        threading.Thread(target=self._work, name=f"batch-{self.id}", daemon=True).start()

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    def cancel(self) -> None:
        """Stops the run at the next tile; the results so far are kept."""
        if self.state == "running":
            self.state = "stopping"

    def _work(self) -> None:
        try:
            self._inspect()
            stopped = self.state == "stopping"
            self._ended = time.time()
            self.state = "measuring"
            self.measured = batch.measured(self.rows, self.map_of)
            state = "stopped" if stopped else "done"
        except OutputError:
            self.reason = "there is no room for more results, the server's disk is full: free some space"
            self._ended = time.time()
            state = "failed"
        except Exception:  # in a thread, nobody else would report it
            traceback.print_exc()
            self._ended = time.time()
            state = "failed"
        self.used = files.clock()
        self.state = state

    def _inspect(self) -> None:
        self.shared = batch.shared_bits(self.inspector, self.pictures, self.settings.get("category"))
        results = batch.run(
            self.inspector,
            self.pictures,
            shared=self.shared,
            turn=self._turn,
            max_tiles=self._max_tiles,
            **self.settings,
        )
        try:
            for row, inspection in results:
                self._add(row, inspection)
                if self.state != "running":
                    return
        except Unwanted:  # cancelled
            return

    def _add(self, row: batch.Row, inspection: Inspection | None) -> None:
        number = self._numbers[row.name]
        if inspection is not None:
            on_grid = batch.grid_map(inspection)
            try:
                self._storage.make_room(on_grid.nbytes)
                write(self._map_file(number), drawing.npy_bytes(on_grid), sync=False)
            except DataError as error:
                row = batch.Row(row.name, row.sample, {}, f"{row.name} could not be stored: {error}")
                inspection = None
        shown = {
            "index": number, "name": row.name, "label": row.sample.defect, "error": row.error,
            "bad": row.sample.is_anomalous,
        }  # fmt: skip
        if inspection is not None:
            if self._keep is not None:
                self.kept[number] = self._keep(row, inspection)
            thumbnail = batch.shown(inspection.hatched, on_grid, self.inspector, row, THUMBNAIL_PIXELS)
            threshold, look = self.beyond(row)
            shown |= {
                "score": row.result["score"], "threshold": row.result["threshold"],
                "look_threshold": row.result["look_threshold"],
                "beyond": {"threshold": threshold, "look": look},
                "category": row.result["category"], "fits": row.result["category_fits"],
                "notes": row.result["notes"],
                "regions": len(row.result["regions"]), "seconds": row.result["seconds"],
                "thumbnail": data_uri(thumbnail, "webp", 80),
            }  # fmt: skip
        self.rows.append(row)
        self._shown.append(shown)

    def _map_file(self, number: int) -> Path:
        return self._folder / f"map-{number}.npy"

    def map_of(self, row: batch.Row) -> np.ndarray:
        """`batch.grid_map` of a row that has a result."""
        on_grid: np.ndarray = np.load(self._map_file(self._numbers[row.name]))
        return on_grid

    def usual(self, category: str) -> tuple[float, float]:
        """A category's default threshold, which 1 good part in 100 exceeds, and default look limit."""
        given = category, self.settings["alpha"], self.settings["timesteps"]
        return self.inspector.threshold(*given), self.inspector.threshold(*given, rate=LOOK_RATE)

    def beyond(self, row: batch.Row) -> tuple[float, float]:
        """How far a row's limits are above its category's defaults, as is the case for tiled pictures."""
        threshold, look = self.usual(row.result["category"])
        return row.result["threshold"] - threshold, row.result["look_threshold"] - look

    def news(self, have: int) -> dict[str, Any]:
        """The run's state, and the next rows for a page that has the first `have` rows."""
        state, rows = self.state, self._shown[have : have + SENT]
        categories = {row.result["category"] for row in self.rows if not row.error}
        alpha, timesteps = self.settings["alpha"], self.settings["timesteps"]
        return {
            "id": self.id, "state": state, "total": len(self.pictures), "done": len(self._shown),
            "seconds": (self._ended or time.time()) - self._begun, "rows": rows,
            "finished": state in FINISHED, "reason": self.reason, "model": self.model,
            "by": {
                name: {"good": by.good.tolist(), "changed": by.changed}
                for name in sorted(categories)
                for by in [self.inspector.scorer(name, alpha, timesteps)]
            },
            "usual": {name: dict(zip(("threshold", "look"), self.usual(name))) for name in categories},
            "measured": self.measured if state in ("stopped", "done") else {},
            "note": batch.bits_in_words(self.shared), "kept": self._keep is not None,
            "not_kept": self._not_kept(),
        }  # fmt: skip

    def _not_kept(self) -> str:
        """What is to be said of pictures that could not be kept in the history."""
        failed = [why for kept in list(self.kept.values()) if kept.done() and (why := kept.exception())]
        return f"{len(failed)} not kept in the history: {failed[0]}" if failed else ""

    def judged(self, limits: Mapping[str, tuple[float, float]]) -> list[batch.Row]:
        """All rows, judged with other limits.

        Args:
            limits: threshold and look limit by category; other categories keep theirs.
        """
        return [self.judged_row(row, limits) for row in list(self.rows)]

    def judged_row(self, row: batch.Row, limits: Mapping[str, tuple[float, float]]) -> batch.Row:
        """The same for one row."""
        if row.error or (changed := limits.get(row.result["category"])) is None:
            return row
        threshold, look = (limit + more for limit, more in zip(changed, self.beyond(row)))
        return batch.rejudged(row, threshold, look, self.map_of)

    def file(self, kind: str, limits: Mapping[str, tuple[float, float]]) -> Path:
        """Writes the results to a file.

        Args:
            kind: a key of TAKEN_AWAY.
            limits: as for `judged`.

        Raises:
            DataError: There is no room for the file.
        """
        day = time.strftime("%Y-%m-%d", time.localtime(self._begun))
        path = self._folder / f"diffad-batch-{day}.{kind}"
        rows = self.judged(limits)
        self._storage.make_room(OVERLAY_BYTES * len(rows) if kind == "zip" else 0)
        about = {"pictures_given": len(self.pictures), "state": self.state}
        if note := batch.bits_in_words(self.shared):
            about["note"] = note
        records = [row.to_dict() for row in rows]
        with whole(path, sync=False) as partial:
            if kind == "csv":
                partial.write_bytes(batch.csv_file(records))
            elif kind == "json":
                partial.write_text(batch.document(self.inspector, records, **about), encoding="utf-8")
            else:
                batch.write_zip(partial, self.inspector, rows, self.map_of, **about)
        return path

    def forget(self) -> None:
        """Deletes the run's files. The run must not be used afterwards."""
        shutil.rmtree(self._folder, ignore_errors=True)
