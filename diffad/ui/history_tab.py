"""The History tab: what happens when something on it is used. What it shows is drawn by history.js."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad.output import OutputError
from diffad.pictures.reading import DataError
from diffad.ui import files, history_answers, link
from diffad.ui.access import login
from diffad.ui.corrections import EVENT, correction_of
from diffad.ui.history_board import BOARD, TAKEN_AWAY
from diffad.ui.history_charts import drift_html, report_html
from diffad.ui.inspect_tab import InspectTab
from diffad.ui.keeping import Keeping
from diffad.ui.layout import html
from diffad.ui.session import Opened, Origin, misunderstood
from diffad.workspace import export
from diffad.workspace.queries import Filter
from diffad.workspace.record import Entry
from diffad.workspace.store import WorkspaceError

if TYPE_CHECKING:
    from diffad.inspector import Inspector

MOST = {"csv": 100_000, "json": 20_000, "zip": 2000}  # inspections in one file
DELETED = 1000  # at once
GONE = "This inspection is no longer there: load the list again."
Answer = dict[str, Any]


class HistoryTab:
    """Creates the tab inside the current `gr.Blocks` and connects its components to the methods below."""

    def __init__(
        self, inspectors: Mapping[str, Inspector], inspect: InspectTab, tab: gr.Tab, storage: files.Storage,
        keeping: Keeping,
    ) -> None:  # fmt: skip
        """See `page.build_app`. inspect: the tab in which inspections open."""
        self._inspectors, self._inspect, self._storage, self._keeping = inspectors, inspect, storage, keeping
        self._history, self._access = keeping.history, keeping.access
        self._board = html(
            None, html_template=BOARD, elem_id="history", server_functions=self._questions(),
            js_on_load="diffad.history(element, props, watch, trigger, server)  "
            "// 'select', 'download', 'edit'",
        )  # fmt: skip
        self._file = gr.File(visible="hidden", elem_id="history-file", interactive=False)
        tab.select(None, None, None, js="() => { diffad.historyShown?.(); }")
        self._connect()

    def _connect(self) -> None:
        p = self._inspect.parts
        live = [p.rate, p.opacity, p.colormap, p.threshold, p.look_rate, p.look]
        self._board.edit(self.restore, None, [*p.settings, *live, p.link], **EVENT).success(
            None, p.link, None, js="(link) => { diffad.reopen(link); }"
        )
        self._inspect.inspect_on(self._board.select, self.picture)
        self._board.download(self.download, None, self._file, **EVENT).success(
            None, self._file, None, js="(file) => diffad.save(file)"
        )

    # What history.js asks the server directly

    def _questions(self) -> list[Any]:
        """Plain functions, because Gradio sets an attribute on each, which a method does not allow."""

        def plain(name: str, answer: Callable[[dict[str, Any]], Answer]) -> Any:
            def question(asked: Any) -> Answer:
                try:
                    return answer(asked if isinstance(asked, dict) else {})
                except gr.Error as error:
                    return {"refused": str(error.message)}
                except (WorkspaceError, DataError) as error:
                    message = str(error)
                    return {"refused": f"{message[:1].upper()}{message[1:]}."}
                except OutputError:
                    return {"refused": "The server's disk is full: free some space and try again."}

            question.__name__ = name
            return question

        methods = {
            "rows": self.rows, "detail": self.detail, "correct": self.correct, "undo": self.undo,
            "remove": self.remove, "drift": self.drift, "report": self.report,
        }  # fmt: skip
        return [plain(name, method) for name, method in methods.items()]

    def rows(self, asked: dict[str, Any]) -> Answer:
        """A page of what a filter finds."""
        sort, down = history_answers.sort_of(asked)
        size, page = history_answers.PAGE, asked.get("page")
        offset = size * page if type(page) is int and 0 <= page < 10**7 else 0
        entries, total = self._history.find(history_answers.filter_of(asked), sort, down, size, offset)
        if not entries and total:  # the last ones were deleted
            offset = (total - 1) // size * size
            entries, total = self._history.find(history_answers.filter_of(asked), sort, down, size, offset)
        return {
            "rows": [history_answers.row(self._history, entry) for entry in entries], "total": total,
            "page": offset // size, "size": size,
            "categories": [[each.category, each.inspections] for each in self._history.categories()],
            "people": self._history.people(),
            "may": {action: self._access.may(action) for action in ("correct", "delete")},
        }  # fmt: skip

    def detail(self, asked: dict[str, Any]) -> Answer:
        """All that is shown of one inspection."""
        entry = self._entry(asked)
        return history_answers.detail(self._history, entry, self._inspectors.get(entry.model))

    def correct(self, asked: dict[str, Any]) -> Answer:
        """Notes what a person says of an inspection, and where they drew the defect."""
        self._access.check("correct")
        entry, said, mask = self._entry(asked), correction_of(asked), None
        if asked.get("mask") is not None:
            size = history_answers.picture_size(self._history, entry)
            mask = history_answers.mask_of(asked["mask"], size)
            if said not in ("right", "defective"):
                raise DataError("a defect is drawn in a part that is said to have none: say defective")
        return self._said(self._history.correct(entry.id, said, login(), mask))

    def undo(self, asked: dict[str, Any]) -> Answer:
        """Takes the latest correction back, or makes it again."""
        self._access.check("correct")
        return self._said(self._history.undo(self._entry(asked).id, login()))

    def _said(self, entry: Entry) -> Answer:
        return history_answers.detail(self._history, entry, self._inspectors.get(entry.model))

    def remove(self, asked: dict[str, Any]) -> Answer:
        """Deletes inspections."""
        self._access.check("delete")
        ids = asked.get("ids")
        if not isinstance(ids, list) or not all(type(id) is int for id in ids) or len(ids) > DELETED:
            raise misunderstood("ids")
        return {"removed": self._history.delete(ids, login())}

    def drift(self, asked: dict[str, Any]) -> Answer:
        """Whether a category's good parts, or its pictures, have changed."""
        category = str(asked.get("category", ""))
        return {"html": drift_html(self._history, category, self._inspector_of(category),
                                   history_answers.zone_of(asked))}  # fmt: skip

    def report(self, asked: dict[str, Any]) -> Answer:
        """A category over a period."""
        chosen = history_answers.filter_of(asked)
        category = str(asked.get("category", ""))
        return {"html": report_html(self._history, category, chosen.since, chosen.until,
                                    history_answers.zone_of(asked))}  # fmt: skip

    def _inspector_of(self, category: str) -> Inspector | None:
        """The model that inspected the category last, if it is served and knows it."""
        latest, _ = self._history.find(Filter(category=category), limit=1)
        inspector = self._inspectors.get(latest[0].model) if latest else None
        return inspector if inspector is not None and category in inspector.categories else None

    def _entry(self, asked: Any) -> Entry:
        number = asked.get("id") if isinstance(asked, dict) else None
        entry = self._history.get(number) if type(number) is int and abs(number) < 2**62 else None
        if entry is None:
            raise gr.Error(GONE, print_exception=False)
        return entry

    # Events

    def restore(self, event: gr.EventData) -> dict[gr.components.Component, Any]:
        """Sets the controls of Inspect as they were for an inspection."""
        p, entry = self._inspect.parts, self._entry(event._data)
        inspector = self._inspectors.get(entry.model)
        if inspector is None:
            message = f"The model {entry.model} is not served now: start the server with it."
            raise gr.Error(message, print_exception=False)
        given = history_answers.link_of(entry, inspector)
        return link.controls_of(given, self._inspectors, p) | {p.link: given}

    def picture(self, event: gr.EventData) -> Opened | None:
        """The picture of an inspection, as `InspectTab.inspect_on` wants it."""
        entry = self._entry(event._data)
        try:
            data = self._history.picture_path(entry).read_bytes()
        except OSError as error:
            raise gr.Error(GONE, print_exception=False) from error
        kept: Future[int] = Future()
        kept.set_result(entry.id)
        bits = entry.settings.get("bits")
        return Opened(
            self._storage.keep(data, Path(entry.picture).name), bits if bits and bits > 8 else None,
            Origin(kept, entry.model, entry.settings.get("asked", {})),
        )  # fmt: skip

    def download(self, event: gr.EventData) -> str:
        """The path of what a filter finds, as a file."""
        asked: dict[str, Any] = event._data if isinstance(event._data, dict) else {}
        kind = str(asked.get("kind"))
        if kind not in TAKEN_AWAY:
            raise misunderstood("kind")
        sort, down = history_answers.sort_of(asked)
        entries, total = self._history.find(history_answers.filter_of(asked), sort, down, MOST[kind])
        about: dict[str, Any] = {"found": total, "inspections_here": len(entries)}
        if len(entries) < total:
            gr.Warning(f"The file holds the first {len(entries)} of {total}: choose fewer to get all.")
        size = sum(self._size(entry) for entry in entries) if kind == "zip" else 0
        with files.room():
            self._storage.make_room(size)
            with tempfile.TemporaryDirectory(dir=self._storage.batches) as folder:
                path = Path(folder) / f"diffad-history.{kind}"
                if kind == "csv":
                    path.write_bytes(export.csv_file(entries))
                elif kind == "json":
                    path.write_text(export.json_text(entries, **about), encoding="utf-8")
                else:
                    export.write_zip(path, self._history, entries, **about)
                return self._storage.take_over(path)

    def _size(self, entry: Entry) -> int:
        try:
            return self._history.picture_path(entry).stat().st_size + 20_000
        except OSError:
            return 0
