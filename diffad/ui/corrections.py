"""Inspect and the history: what is kept of a verdict, and what people say of it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad.batch import grid_map
from diffad.ui.access import login
from diffad.ui.judging import as_judged, is_wanted, judged, limits_of
from diffad.ui.keeping import About, Keeping, NotKept, asked_of, record_of, small_map
from diffad.ui.layout import Components
from diffad.ui.session import Session, Shown, arguments, misunderstood
from diffad.workspace.record import CORRECTIONS, Correction
from diffad.workspace.store import WorkspaceError

if TYPE_CHECKING:
    from diffad.inspector import Inspector

PATIENCE = 30.0  # s that a correction waits for its inspection to be kept
EVENT: dict[str, Any] = {
    "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple",  # none may be lost
}  # fmt: skip


class Corrections:
    """Keeps what Inspect shows, and connects the buttons below the verdict. Without a history it does
    nothing.
    """

    def __init__(
        self, parts: Components, session: gr.State, inspectors: Mapping[str, Inspector],
        keeping: Keeping | None,
    ) -> None:  # fmt: skip
        """session: holds the page's `Session`."""
        self._parts, self._session, self._inspectors, self._keeping = parts, session, inspectors, keeping
        if keeping is None:
            return
        parts.correction.submit(
            self.correct, [session, parts.choices], parts.correction, **EVENT,
            js="(session) => [session, diffad.choices()]",
        )  # fmt: skip
        parts.keep.input(None, parts.keep, None, js="(keep) => { diffad.keep(keep); }")

    def follow(self, answered: gr.events.Dependency) -> None:
        """After each answer says whether it was kept, and what people said of it."""
        if self._keeping is not None:
            answered.then(self.state, self._session, self._parts.correction, **EVENT, queue=False)

    def kept(self, shown: Shown, judging: Any) -> Future[int] | None:
        """Has a new result kept as the browser will show it.

        Args:
            judging: what `diffad.judging()` in page.js returned.

        Returns:
            Its id in the history, soon; None if it is not to be kept. A picture opened from the history that
            is inspected as before is the same inspection.
        """
        if self._keeping is None or shown.request.path is None:
            return None
        origin = shown.request.origin
        if origin is not None and (origin.model, origin.asked) == (shown.model, self._asked(shown)):
            return origin.kept
        if not is_wanted(judging):
            return None
        inspection, limits = as_judged(shown.raw, shown.model, judging)
        return self._keeping.add(inspection, self._about(shown, limits))

    def _asked(self, shown: Shown) -> dict[str, Any]:
        return asked_of(arguments(shown.inspector, *shown.request.settings[1:]))

    def _about(self, shown: Shown, limits: Mapping[str, Any]) -> About:
        path = Path(shown.request.path or "")
        version = str(shown.inspector.provenance.get("version", ""))
        return About(
            path, path.name, shown.model, self._asked(shown), limits, "inspect", login(), version
        )  # fmt: skip

    def state(self, session: Session) -> dict[str, Any]:
        """What the buttons show of the newest result."""
        shown = session.shown
        if self._keeping is None or shown is None or shown.kept is None:
            return {}
        try:
            entry = self._keeping.history.get(shown.kept.result(PATIENCE))
        except (NotKept, WorkspaceError, TimeoutError) as error:
            return {"turn": shown.request.turn, "failed": f"Not kept in the history: {error}."}
        if entry is None:
            return {}
        may = self._keeping.access.may("correct")
        origin = shown.request.origin
        return {
            "turn": shown.request.turn, "id": entry.id, "correction": entry.correction, "may": may,
            "reopened": origin is not None and origin.kept is shown.kept,
        }  # fmt: skip

    def correct(self, event: gr.EventData, session: Session, choices: Any) -> dict[str, Any]:
        """Notes what a person says of the verdict as the browser shows it."""
        assert self._keeping is not None
        self._keeping.access.check("correct")
        said = correction_of(event._data)
        shown = session.shown_for(choices)
        if shown.kept is None:
            raise gr.Error("This inspection is not in the history.", print_exception=False)
        try:
            number, history = shown.kept.result(PATIENCE), self._keeping.history
            if said:
                limits = limits_of(choices)
                inspection = judged(shown.raw.fused(choices["alpha"], choices["timesteps"]), limits)
                height, width = inspection.image.shape[:2]
                record = record_of(inspection.to_dict(), (width, height), self._about(shown, limits))
                history.rejudge(number, record, small_map(grid_map(inspection)), login())
            history.correct(number, said, login())
        except (NotKept, WorkspaceError, TimeoutError, OSError) as error:
            raise gr.Error(f"The correction could not be kept: {error}.", print_exception=False) from error
        return self.state(session)


def correction_of(data: Any) -> Correction:
    """What the browser says; "" takes it back. Raises gr.Error for anything else."""
    said = data.get("correction") if isinstance(data, dict) else None
    if said not in CORRECTIONS:
        raise misunderstood("correction")
    found: Correction = said
    return found
