"""A batch and the history: its pictures are kept, and their verdicts corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad import batch
from diffad.inspection import Inspection
from diffad.ui.access import login
from diffad.ui.batch import Keep, Run
from diffad.ui.corrections import PATIENCE, correction_of
from diffad.ui.keeping import About, Keeping, NotKept, asked_of, record_of, small_map
from diffad.ui.layout import RATE
from diffad.ui.session import Origin
from diffad.verdicts import LOOK_RATE
from diffad.workspace.store import WorkspaceError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from diffad.inspector import Inspector

WAITS = 3600.0  # s that a batch waits for a place in the queue
USUAL: Mapping[str, float | None] = {"rate": RATE, "look_rate": LOOK_RATE, "threshold": None, "look": None}


class BatchHistory:
    """Keeps the pictures of batches, and notes what people say of their verdicts."""

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping

    @property
    def may(self) -> bool:
        """Whether the sender of the present event may correct verdicts."""
        return self._keeping.access.may("correct")

    def keep(self, model: str, inspector: Inspector, arguments: Mapping[str, Any]) -> Keep:
        """What keeps each picture of a batch, for the sender of the present event.

        Args:
            model: the page's name of the inspector.
            arguments: of `Inspector.inspect`.
        """
        who, asked = login(), asked_of(arguments)
        version = str(inspector.provenance.get("version", ""))

        def keep(row: batch.Row, inspection: Inspection) -> Future[int]:
            about = About(row.sample.image, row.name, model, asked, USUAL, "batch", who, version)
            return self._keeping.add(inspection, about, WAITS)

        return keep

    def origin(self, run: Run, index: int) -> Origin | None:
        """Where a row is in the history; None if it is not kept."""
        kept = run.kept.get(index)
        return None if kept is None else Origin(kept, run.model, asked_of(run.settings))

    def say(
        self, run: Run, index: int, asked: Any, limits: Mapping[str, tuple[float, float]]
    ) -> dict[str, Any]:
        """Notes what a person says of a row as the browser judges it.

        Args:
            asked: holds the correction.
            limits: see `Run.judged`.

        Returns:
            The row's id and its correction, or why it is refused.
        """
        try:
            self._keeping.access.check("correct")
            said, kept = correction_of(asked), run.kept.get(index)
            if kept is None:
                return {"refused": "This picture is not in the history."}
            number, history = kept.result(PATIENCE), self._keeping.history
            entry = history.get(number)
            if said and entry is not None:
                row = run.judged_row(run.rows[index], limits)
                own = limits.get(row.result["category"])
                chosen = {"threshold": row.result["threshold"], "look": row.result["look_threshold"]}
                about = About(
                    row.sample.image, entry.picture, run.model, asked_of(run.settings),
                    {**USUAL, **chosen} if own else USUAL, "batch", entry.who,
                )  # fmt: skip
                record = record_of(row.result, row.size, about)
                history.rejudge(number, record, small_map(run.map_of(row)), login())
            return {"id": number, "correction": history.correct(number, said, login()).correction}
        except gr.Error as error:
            return {"refused": str(error.message)}
        except (NotKept, WorkspaceError, TimeoutError, OSError) as error:
            return {"refused": f"The correction could not be kept: {error}."}
