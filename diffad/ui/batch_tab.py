"""The Batch tab: its components and the handlers of its events. batch.js draws its contents."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad.pictures import intake
from diffad.pictures.reading import DataError
from diffad.pictures.samples import subfolders
from diffad.ui import files
from diffad.ui.batch import TAKEN_AWAY, Run
from diffad.ui.batch_history import BatchHistory
from diffad.ui.cards import CORRECTION
from diffad.ui.inspect_tab import InspectTab
from diffad.ui.keeping import Keeping
from diffad.ui.layout import html
from diffad.ui.session import Opened, arguments
from diffad.ui.turns import Turns

if TYPE_CHECKING:
    from diffad.inspector import Inspector

FOLDERS_LISTED, FOLDERS_DEEP = 400, 4
SETTING = "(...settings) => diffad.setting(...settings)"  # shows the settings of the next batch
EVENT: dict[str, Any] = {
    "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple",  # lose none
}  # fmt: skip

BOARD = f"""
<div class="batch" data-state="empty">
  <section class="card batch-summary">
    <div><h2 aria-live="polite">No pictures yet</h2><p class="facts"></p>
      <p class="batch-note" hidden></p>
      <p class="quiet doing">Drop pictures or a zip file of pictures. Each becomes a row, and all are judged
      with the same limits.</p></div>
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
          aria-label="1 good part in how many is above the look limit"> is above</label>
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
      <div class="take">{
    "".join(
        f'<button type="button" class="plain-button" data-take="{kind}">{label}</button>'
        for kind, label in TAKEN_AWAY.items()
    )
}</div>
    </div>
    <div class="scroller"><table role="grid" tabindex="0" aria-label="Inspected pictures"></table></div>
    {CORRECTION}
    <p class="quiet keys">↑ ↓ select a picture; Enter or a click opens it in Inspect. There, ← → lead to its
      neighbours.</p>
  </section>
</div>"""


class BatchTab:
    """Creates the tab inside the current `gr.Blocks` and connects its components to the methods below."""

    def __init__(
        self, inspectors: Mapping[str, Inspector], inspect: InspectTab, tab: gr.Tab, turns: Turns,
        storage: files.Storage, data_root: Path | None = None, keeping: Keeping | None = None,
    ) -> None:  # fmt: skip
        """See `page.build_app`.

        Args:
            inspect: the Inspect tab, whose settings a batch uses and in which its pictures open.
            tab: this tab.
        """
        self._inspectors, self._inspect = inspectors, inspect
        self._turns, self._storage, self._data_root = turns, storage, data_root
        self._history = None if keeping is None else BatchHistory(keeping)
        self._lay_out()
        self._connect(tab)

    def _lay_out(self) -> None:
        from_server = self._data_root is not None
        with gr.Row(elem_id="batch-page", equal_height=False):
            with gr.Column(elem_id="batch-controls", min_width=280):
                with gr.Column(elem_classes="card"):
                    html("<h3>Pictures</h3>")
                    self._files = gr.File(
                        file_count="multiple", show_label=False, height=150, elem_id="batch-files",
                        label="Pictures or zip archives of them",
                    )  # fmt: skip
                    self._folder = gr.Dropdown(
                        choices=[], value=None, label="or a folder on the server", allow_custom_value=True,
                        visible=from_server, elem_id="batch-folder",
                    )  # fmt: skip
                    self._inspect_folder = gr.Button(
                        "Inspect the folder", size="sm", visible=from_server, elem_id="inspect-folder"
                    )
                    self.setting = html("")
                    html(
                        '<p class="quiet">In a data set in MVTec layout, the test pictures are inspected, '
                        "and their verdicts compared with the labels.</p>"
                    )
            with gr.Column(elem_id="batch-results"):
                self._board = html(
                    None, html_template=BOARD, elem_id="batch", server_functions=self._polls(),
                    js_on_load="diffad.batch(element, props, watch, trigger, server)  "
                    "// 'select', 'download'",
                )  # fmt: skip
        self._file = gr.File(visible="hidden", elem_id="batch-file", interactive=False)

    def _connect(self, tab: gr.Tab) -> None:
        parts = self._inspect.parts
        settings = [*parts.settings, parts.keep]
        tab.select(None, settings, self.setting, js=SETTING)
        self._files.upload(self.start_files, [self._files, *settings], [self._board, self._files], **EVENT)
        if self._data_root is not None:
            self._folder.focus(
                lambda: gr.Dropdown(choices=folders(self._data_root)), None, self._folder, **EVENT
            )
            self._inspect_folder.click(self.start_folder, [self._folder, *settings], self._board, **EVENT)
        self._inspect.inspect_on(self._board.select, self.row_picture)
        self._board.download(self.download, None, self._file, **EVENT).success(
            None, self._file, None, js="(file) => diffad.save(file)"
        )

    # Functions that batch.js calls directly

    def _polls(self) -> list[Any]:
        """Functions rather than methods, because Gradio sets an attribute on each."""

        def news(asked: Any) -> dict[str, Any] | None:
            run = self._find(asked)
            if run is None:
                return None
            may = self._history is not None and self._history.may
            return run.news(counted(asked.get("have"))) | {"may": may}

        def cancel(asked: Any) -> None:
            if run := self._find(asked):
                run.cancel()

        def regions(asked: Any) -> list[int] | None:
            """The number of regions of each row under changed limits."""
            run = self._find(asked)
            if run is None:
                return None
            return [len(row.result.get("regions", ())) for row in run.judged(limits_of(asked))]

        def say(asked: Any) -> dict[str, Any]:
            """Corrects a row's verdict."""
            run = self._find(asked)
            if run is None or self._history is None:
                return {"refused": "This batch is no longer on the server: upload it again."}
            return self._history.say(run, counted(asked.get("index"), -1), asked, limits_of(asked))

        return [news, cancel, regions, say]

    def _find(self, asked: Any) -> Run | None:
        run = self._storage.runs.get(str(asked.get("run"))) if isinstance(asked, dict) else None
        if not isinstance(run, Run):
            return None
        run.used = files.clock()
        return run

    # Events

    def start_files(self, given: list[str] | None, *settings: Any) -> Any:
        """Starts a batch of uploaded files, and clears the upload."""
        if not given:
            return gr.skip()
        with self._storage.using(given):
            return self._start([Path(file) for file in given], None, settings), None

    def start_folder(self, folder: str | None, *settings: Any) -> dict[str, Any]:
        """Starts a batch of a folder below the data root."""
        if self._data_root is None or not folder:
            return refusal("Choose a folder first.")
        return self._start([self._data_root / str(folder)], self._data_root, settings)

    def _start(self, paths: Sequence[Path], within: Path | None, settings: Sequence[Any]) -> dict[str, Any]:
        model, *controls, keeps = settings
        inspector, folder = self._inspectors[model], self._storage.batch_folder()
        chosen = arguments(inspector, *controls)
        try:
            pictures = intake.sources(paths, folder / "pictures", within, self._storage.make_room)
        except DataError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return refusal(str(error))
        keep = self._history.keep(model, inspector, chosen) if self._history and keeps else None
        run = Run(model, inspector, pictures, folder, chosen, self._turns, self._storage, keep)
        self._storage.runs[run.id] = run
        return {"run": run.id}

    def row_picture(self, event: gr.EventData) -> Opened | None:
        """The picture of a row that was clicked, as `InspectTab.inspect_on` wants it."""
        run = self._find(event._data)
        if run is not None and 0 <= (index := counted(event._data.get("index"), -1)) < len(run.rows):
            row = run.rows[index]
            with suppress(OSError):
                data = row.sample.image.read_bytes()
                path = self._storage.keep(data, Path(row.name).name)
                origin = None if self._history is None else self._history.origin(run, index)
                return Opened(path, run.shared.get(row.name), origin)
        gr.Warning("This picture is no longer on the server: upload the batch again.")
        return None

    def download(self, event: gr.EventData) -> str:
        """Writes the results to a file; returns its path."""
        run = self._find(event._data)
        kind = str(event._data.get("kind")) if run else ""
        if run is None or kind not in TAKEN_AWAY:
            raise gr.Error("This batch is no longer on the server: upload it again.", print_exception=False)
        with files.room():
            file = run.file(kind, limits_of(event._data))
        return self._storage.take_over(file)


def refusal(sentence: str) -> dict[str, Any]:
    """The board's value if a batch cannot start. With the time, the same message can appear twice."""
    return {"refused": sentence, "at": time.time()}


def limits_of(asked: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Threshold and look limit by category, as sent by the browser, without malformed entries."""

    def is_pair(limits: Any) -> bool:
        return (
            isinstance(limits, list)
            and len(limits) == 2
            and all(type(limit) in (int, float) and math.isfinite(limit) for limit in limits)
        )

    given = asked.get("limits")
    pairs = given.items() if isinstance(given, dict) else ()
    return {name: (float(pair[0]), float(pair[1])) for name, pair in pairs if is_pair(pair)}


def counted(value: Any, otherwise: int = 0) -> int:
    """A count or index sent by the browser; `otherwise` if it is not a valid one."""
    return value if type(value) is int and value >= 0 else otherwise


def folders(root: Path) -> list[str]:
    """The readable folders below the data root, as paths relative to it."""
    found = ["."]

    def walk(inside: list[Path], deep: int) -> None:
        for folder in inside:
            if len(found) >= FOLDERS_LISTED or folder.is_symlink():
                continue
            try:
                deeper = subfolders(folder)
            except OSError:
                continue
            found.append(folder.relative_to(root).as_posix())
            if deep > 1:
                walk(deeper, deep - 1)

    with suppress(OSError):
        walk(subfolders(root), FOLDERS_DEEP)
    return found
