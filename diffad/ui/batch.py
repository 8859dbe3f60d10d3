"""The Batch tab: many pictures at once. What it computes is in `diffad.batch`, what it shows in `batch.js`.

A run lives on the server in a thread of its own and keeps what it has found; the page asks for news by the
run's id, which stands in the address. So a reload, or a look into Inspect, loses nothing.
"""

from __future__ import annotations

import base64
import math
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cv2
import gradio as gr
import numpy as np

from diffad import batch
from diffad.inspection import LOOK_RATE
from diffad.method.calibration import RULE
from diffad.output import OutputError, whole, write
from diffad.pictures import drawing, intake
from diffad.pictures.reading import DataError
from diffad.pictures.samples import Sample, subfolders
from diffad.ui import files
from diffad.ui.layout import html
from diffad.ui.turns import Turns, Unwanted, caller

if TYPE_CHECKING:
    from diffad.inspector import Inspection, Inspector

SENT = 200  # rows in one piece of news
THUMBNAIL_PIXELS = 96
OVERLAY_BYTES = 300_000  # of one picture in the zip, roughly
FOLDERS_LISTED, FOLDERS_DEEP = 400, 4
FINISHED = ("done", "stopped", "failed")
TAKEN_AWAY = {"csv": "CSV", "json": "JSON", "zip": "Everything, zip"}
SETTING = "(...settings) => diffad.setting(...settings)"  # how the next batch will be judged
QUIET: dict[str, Any] = {
    "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple",  # none may be lost
}  # fmt: skip

BOARD = f"""
<div class="batch" data-state="empty">
  <section class="card batch-summary">
    <div><h2 aria-live="polite">No pictures yet</h2><p class="facts"></p>
      <p class="batch-note" hidden></p>
      <p class="quiet doing">Drop a day's pictures, or a zip of them: each becomes a row, and the same
      limits judge them all.</p></div>
    <div class="progress" role="progressbar" aria-label="Pictures inspected" aria-valuemin="0" hidden>
      <i></i></div>
    <button type="button" class="plain-button cancel" hidden>Cancel</button>
    <div class="unseen" role="status"></div>
  </section>
  <section class="card batch-threshold" hidden>
    <div class="section-head"><h3>Scores and limits</h3><div class="chips categories" role="group"
      aria-label="Category whose scores are shown"></div></div>
    <div class="chart"></div>
    <div class="limits">
      <div class="limit-of" data-limit="look">
        <label>look limit <input type="number" class="score" step="0.01"
          aria-label="Look limit, score"></label>
        <label>1 good part in <input type="number" class="rate" min="2" max="100000" step="1"
          aria-label="1 good part in how many lies above the look limit"> lies above</label>
        <span class="quiet beyond"></span>
      </div>
      <div class="limit-of" data-limit="threshold">
        <label>threshold <input type="number" class="score" step="0.01" aria-label="Threshold, score"></label>
        <label>rejects 1 good part in <input type="number" class="rate" min="2" max="100000" step="1"
          aria-label="1 good part in how many is rejected"></label>
        <span class="quiet beyond"></span>
      </div>
      <button type="button" class="plain-button usual" hidden>back to usual</button>
    </div>
  </section>
  <section class="card batch-measured" hidden>
    <div class="section-head"><h3>Measured against the labels</h3></div>
    <div class="numbers"></div>
  </section>
  <section class="card batch-rows" hidden>
    <div class="section-head">
      <div class="chips filters" role="group" aria-label="Which pictures are listed"></div>
      <div class="take">{"".join(
          f'<button type="button" class="plain-button" data-take="{kind}">{label}</button>'
          for kind, label in TAKEN_AWAY.items()
      )}</div>
    </div>
    <div class="scroller"><table role="grid" tabindex="0" aria-label="Inspected pictures"></table></div>
    <p class="quiet keys">↑ ↓ choose a picture, Enter or a click opens it in Inspect; there ← → walk on.</p>
  </section>
</div>"""


class Run:
    """One batch. Begins at once in its own thread; rows only grow, so any reader may take what is there."""

    def __init__(
        self, model: str, inspector: Inspector, pictures: Mapping[str, Sample], folder: Path,
        settings: Mapping[str, Any], turns: Turns, storage: files.Storage,
    ) -> None:
        """model: what the page calls the inspector. folder: its own, in the storage. turns: so that runs, and
        whoever inspects beside them, share the machine fairly.
        """
        self.id = secrets.token_urlsafe(9)
        self.model, self.inspector, self.pictures, self.settings = model, inspector, pictures, dict(settings)
        self.rows: list[batch.Row] = []
        self.shared: dict[str, int] = {}  # `batch.shared_bits`, once they are known
        self.state = "running"  # then measuring, or stopping and measuring, then one of FINISHED
        self.reason = "an error of the program, the server's log says which"  # if it fails
        self.measured: dict[str, dict[str, Any]] = {}
        self.used = files.clock()  # when somebody last asked about it
        self._folder, self._storage, self._max_tiles = folder, storage, turns.max_tiles
        self._turn = turns.of(caller(), lambda: self.state == "running")
        self._numbers = {name: number for number, name in enumerate(pictures)}
        self._shown: list[dict[str, Any]] = []
        self._begun, self._ended = time.time(), 0.0
        threading.Thread(target=self._work, name=f"batch-{self.id}", daemon=True).start()

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    def cancel(self) -> None:
        """Ends at the next tile; what is done stays."""
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
            self.reason = "the server has no room for more results, free some space on its disk"
            self._ended = time.time()
            state = "failed"
        except Exception:  # a thread has nobody above it who would hear of it
            traceback.print_exc()
            self._ended = time.time()
            state = "failed"
        self.used = files.clock()
        self.state = state

    def _inspect(self) -> None:
        self.shared = batch.shared_bits(self.inspector, self.pictures, self.settings.get("category"))
        results = batch.run(
            self.inspector, self.pictures, shared=self.shared, turn=self._turn, max_tiles=self._max_tiles,
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
                row = batch.Row(row.name, row.sample, {}, f"{row.name} is not kept: {error}")
                inspection = None
        shown = {
            "index": number, "name": row.name, "label": row.sample.defect, "error": row.error,
            "bad": row.sample.is_anomalous,
        }  # fmt: skip
        if inspection is not None:
            thumbnail = batch.shown(inspection.image, on_grid, self.inspector, row, THUMBNAIL_PIXELS)
            threshold, look = self.beyond(row)
            shown |= {
                "score": row.result["score"], "threshold": row.result["threshold"],
                "look_threshold": row.result["look_threshold"],
                "beyond": {"threshold": threshold, "look": look},
                "category": row.result["category"], "fits": row.result["category_fits"],
                "notes": row.result["notes"],
                "regions": len(row.result["regions"]), "seconds": row.result["seconds"],
                "thumbnail": webp_uri(thumbnail),
            }  # fmt: skip
        self.rows.append(row)
        self._shown.append(shown)

    def _map_file(self, number: int) -> Path:
        return self._folder / f"map-{number}.npy"

    def map_of(self, row: batch.Row) -> np.ndarray:
        """`batch.grid_map` of a row that has a result."""
        return np.load(self._map_file(self._numbers[row.name]))

    def usual(self, category: str) -> tuple[float, float]:
        """The threshold that 1 good part in 100 exceeds, and the usual look limit."""
        given = category, self.settings["alpha"], self.settings["timesteps"]
        return self.inspector.threshold(*given), self.inspector.threshold(*given, rate=LOOK_RATE)

    def beyond(self, row: batch.Row) -> tuple[float, float]:
        """How far a row's own limits lie above the usual ones: of a tiled picture, which has more chances."""
        threshold, look = self.usual(row.result["category"])
        return row.result["threshold"] - threshold, row.result["look_threshold"] - look

    def news(self, have: int) -> dict[str, Any]:
        """What the page does not know yet, when it has the first `have` rows."""
        state, rows = self.state, self._shown[have : have + SENT]
        categories = {row.result["category"] for row in self.rows if not row.error}
        alpha, timesteps = self.settings["alpha"], self.settings["timesteps"]
        return {
            "id": self.id, "state": state, "total": len(self.pictures), "done": len(self._shown),
            "seconds": (self._ended or time.time()) - self._begun, "rows": rows,
            "finished": state in FINISHED, "reason": self.reason, "model": self.model,
            "by": {
                name: {"good": by.good.tolist(), "changed": by.changed, "rule": RULE}
                for name in sorted(categories)
                for by in [self.inspector.scorer(name, alpha, timesteps)]
            },
            "usual": {name: dict(zip(("threshold", "look"), self.usual(name))) for name in categories},
            "measured": self.measured if state in ("stopped", "done") else {},
            "note": batch.bits_in_words(self.shared),
        }  # fmt: skip

    def judged(self, limits: Mapping[str, tuple[float, float]]) -> list[batch.Row]:
        """All rows under these limits, threshold and look limit by category; without any a category keeps its
        own.
        """
        rows = []
        for row in list(self.rows):
            if not row.error and (moved := limits.get(row.result["category"])) is not None:
                threshold, look = (limit + more for limit, more in zip(moved, self.beyond(row)))
                row = batch.rejudged(row, threshold, look, self.map_of)
            rows.append(row)
        return rows

    def file(self, kind: str, limits: Mapping[str, tuple[float, float]]) -> Path:
        """A key of TAKEN_AWAY, written. Raises DataError where there is no room."""
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
        """Removes its files; nothing may be asked of it any more."""
        shutil.rmtree(self._folder, ignore_errors=True)


def webp_uri(picture: np.ndarray) -> str:
    """A data URI of a small RGB picture, a few KB."""
    _, data = cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 80])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()


def folders(root: Path) -> list[str]:
    """Folders below the data root that may be chosen, as paths relative to it; none that may not be read."""
    found = ["."]

    def walk(inside: list[Path], deep: int) -> None:
        for each in inside:
            if len(found) >= FOLDERS_LISTED or each.is_symlink():
                continue
            try:
                deeper = subfolders(each)
            except OSError:
                continue
            found.append(each.relative_to(root).as_posix())
            if deep > 1:
                walk(deeper, deep - 1)

    with suppress(OSError):
        walk(subfolders(root), FOLDERS_DEEP)
    return found


def counted(value: Any, otherwise: int = 0) -> int:
    """A number that the page counts with, whatever it is that somebody else sends."""
    return value if type(value) is int and value >= 0 else otherwise


def add(
    inspectors: Mapping[str, Inspector], p: SimpleNamespace, tab: gr.Tab, turns: Turns,
    storage: files.Storage, data_root: Path | None = None,
) -> None:
    """Fills the Batch tab, which is open. p: the Inspect tab's parts, whose settings the batch takes over.

    data_root: the folder on the server below which pictures may be chosen; None offers no folder.
    """

    def find(asked: Any) -> Run | None:
        run = storage.runs.get(str(asked.get("run"))) if isinstance(asked, dict) else None
        if run is not None:
            run.used = files.clock()
        return run

    def limits(asked: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        given = asked.get("limits")
        pairs = given.items() if isinstance(given, dict) else ()
        return {name: (float(both[0]), float(both[1])) for name, both in pairs if is_pair(both)}

    def is_pair(both: Any) -> bool:
        return isinstance(both, list) and len(both) == 2 and all(
            type(limit) in (int, float) and math.isfinite(limit) for limit in both
        )

    # What the page asks while it stands there

    def news(asked: dict) -> dict[str, Any] | None:
        run = find(asked)
        return None if run is None else run.news(counted(asked.get("have")))

    def cancel(asked: dict) -> None:
        if run := find(asked):
            run.cancel()

    def regions(asked: dict) -> list[int] | None:
        """The number of regions of each row under moved limits."""
        run = find(asked)
        if run is None:
            return None
        return [len(row.result.get("regions", ())) for row in run.judged(limits(asked))]

    with gr.Row(elem_id="batch-page", equal_height=False):
        with gr.Column(elem_id="batch-controls", min_width=280):
            with gr.Column(elem_classes="card"):
                html("<h3>Pictures</h3>")
                p.files = gr.File(
                    file_count="multiple", show_label=False, height=150, elem_id="batch-files",
                    label="Pictures or zip archives of them",
                )
                p.folder = gr.Dropdown(
                    choices=[], value=None, label="or a folder on the server", allow_custom_value=True,
                    visible=data_root is not None, elem_id="batch-folder",
                )
                p.inspect_folder = gr.Button(
                    "Inspect the folder", size="sm", visible=data_root is not None, elem_id="inspect-folder"
                )
                p.setting = html("")
                html(
                    '<p class="quiet">In the MVTec layout the test pictures are taken, and the labels '
                    "measure the verdicts.</p>"
                )
        with gr.Column(elem_id="batch-results"):
            p.batch = html(
                None, html_template=BOARD, elem_id="batch", server_functions=[news, cancel, regions],
                js_on_load="diffad.batch(element, props, watch, trigger, server)  // 'select', 'download'",
            )
    p.batch_file = gr.File(visible="hidden", elem_id="batch-file", interactive=False)

    # What goes through Gradio's own events

    def refuse(sentence: str) -> dict[str, Any]:
        return {"refused": sentence, "at": time.time()}  # the time: the same twice is news twice

    def start(paths: Sequence[Path], within: Path | None, settings: Sequence[Any]) -> dict[str, Any]:
        model, *controls = settings
        folder = storage.batch_folder()
        try:
            pictures = intake.sources(paths, folder / "pictures", within, storage.make_room)
        except DataError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return refuse(str(error))
        inspector = inspectors[model]
        run = Run(model, inspector, pictures, folder, p.arguments(inspector, *controls), turns, storage)
        storage.runs[run.id] = run
        return {"run": run.id}

    def start_files(given: list[str] | None, *settings: Any) -> Any:
        if not given:
            return gr.skip()
        with storage.using(given):
            return start([Path(file) for file in given], None, settings), None

    def start_folder(folder: str | None, *settings: Any) -> dict[str, Any]:
        if not folder:
            return refuse("Choose a folder first.")
        return start([data_root / str(folder)], data_root, settings)

    def row_picture(event: gr.EventData) -> tuple[str, int | None] | None:
        run = find(event._data)
        index = counted(event._data.get("index"), -1) if run else -1
        row = run.rows[index] if 0 <= index < len(run.rows) else None
        try:
            data = row.sample.image.read_bytes() if row else None
        except OSError:
            data = None
        if data is None:
            gr.Warning("This picture is no longer on the server: give the batch anew.")
            return None
        return storage.keep(data, Path(row.name).name), run.shared.get(row.name)

    def download(event: gr.EventData) -> str:
        run = find(event._data)
        kind = str(event._data.get("kind")) if run else ""
        if kind not in TAKEN_AWAY:
            raise gr.Error("This batch is no longer on the server: give it anew.", print_exception=False)
        with files.room():
            file = run.file(kind, limits(event._data))
        return storage.take_over(file)

    tab.select(None, p.settings, p.setting, js=SETTING)
    p.files.upload(start_files, [p.files, *p.settings], [p.batch, p.files], **QUIET)
    if data_root is not None:
        p.folder.focus(lambda: gr.Dropdown(choices=folders(data_root)), None, p.folder, **QUIET)
        p.inspect_folder.click(start_folder, [p.folder, *p.settings], p.batch, **QUIET)
    p.inspect_on(p.batch.select, row_picture)
    p.batch.download(download, None, p.batch_file, **QUIET).success(
        None, p.batch_file, None, js="(file) => diffad.save(file)"
    )
