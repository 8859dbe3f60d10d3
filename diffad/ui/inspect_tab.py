"""The Inspect tab: the handlers of its events. Its components are in `layout.py`.

There are two kinds of events. Those that need the network (another picture, other timesteps or draws) go
through the queue. The others (α, limits, opacity, colours, which of the computed timesteps are used) do not
reach the server: the maps are sent once and evaluated in the browser (page.js), which sends its settings when
a download or a repair needs them.

Users may request the next picture before the previous one is finished, and requests may arrive in any order.
So each request is recorded at once, bypassing the queue, and the queue works on the newest one only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import numpy.typing as npt

from diffad.inspector import SCALE_TOP
from diffad.method.repair_options import METHODS, RepairOptions
from diffad.pictures.reading import DataError
from diffad.ui import cards, downloads, link
from diffad.ui.corrections import Corrections
from diffad.ui.files import Storage, room, sentence
from diffad.ui.keeping import Keeping
from diffad.ui.layout import AUTO, CANCELLED, WAITING, categories, lay_out
from diffad.ui.session import Opened, Request, Session, Shown, arguments, misunderstood
from diffad.ui.turns import AT_ONCE, Turns, Unwanted, caller, still_waiting

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Both bypass the queue. LIVE events may be skipped if a newer one follows, REQUEST events may not.
LIVE: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **QUIET}
REQUEST: dict[str, Any] = {"queue": False, "trigger_mode": "multiple", **QUIET}
NETWORK: dict[str, Any] = {
    "concurrency_id": "network", "concurrency_limit": AT_ONCE, "trigger_mode": "multiple",
    "api_visibility": "private", "show_progress": "full",
}  # fmt: skip

DISABLED = gr.Button(interactive=False)
ENABLED = gr.Button(interactive=True)
Updates = dict[gr.components.Component, Any]  # what an event changes, by component


class InspectTab:
    """Creates the tab inside the current `gr.Blocks` and connects its components to the methods below.

    Event handlers return the components that they change (`Updates`).
    """

    def __init__(
        self, inspectors: Mapping[str, Inspector], turns: Turns, storage: Storage,
        keeping: Keeping | None = None,
    ) -> None:  # fmt: skip
        """See `page.build_app`."""
        self._inspectors, self._turns, self._storage = inspectors, turns, storage
        self._samples = sample_pictures()
        self.parts = lay_out(inspectors, self._samples, keeps=keeping is not None)
        self._session = gr.State(Session())
        self._corrections = Corrections(self.parts, self._session, inspectors, keeping)
        buttons = self.parts.download
        self._of_film = [buttons[kind] for kind in downloads.OF_FILM]
        self._of_inspection = [buttons[kind] for kind in ("all", *downloads.OF_INSPECTION)]
        self._connect_requests()
        self._connect_repair()
        self._connect_choices()
        self._connect_downloads()

    def inspect_on(self, listen: Callable[..., Any], find: Callable[[gr.EventData], Opened | None]) -> None:
        """Inspects a picture whenever an event happens.

        Args:
            listen: the component's event, such as `button.click`.
            find: returns the picture, or None to inspect nothing.
        """

        def ask_for(event: gr.EventData, session: Session, turn: float, *settings: Any) -> Any:
            if (picture := find(event)) is not None:
                session.ask(turn, picture.path, settings, picture.batch_bits, picture.origin)
            return session, session.picture

        p = self.parts
        js = "(session, turn, ...settings) => [session, diffad.nextTurn(true), ...settings]"
        inputs = [self._session, p.turn, *p.settings]
        self._answer_after(listen(ask_for, inputs, [self._session, p.picture], js=js, **REQUEST))

    # Requests

    def _connect_requests(self) -> None:
        p = self.parts
        inputs = [self._session, p.turn, *p.settings]
        self.inspect_on(p.samples.select, self.sample)
        self._answer_after(
            p.picture.input(
                self.ask_uploaded, [self._session, p.turn, p.picture, *p.settings], self._session, **REQUEST,
                js="(session, turn, path, ...settings) => [session, ...diffad.uploaded(path), ...settings]",
            )
        )  # fmt: skip
        model_changed = p.model.input(
            lambda model: gr.Dropdown(choices=categories(self._inspectors[model]), value=AUTO),
            p.model, p.category, **LIVE,
        )  # fmt: skip
        events: list[Callable[..., Any]] = [
            p.lowest.release, p.highest.release, p.count.release, p.draws.release,
            p.category.input, p.tile.input, model_changed.then,
        ]  # fmt: skip
        js = "(session, turn, ...settings) => [session, diffad.nextTurn(), ...settings]"
        for listen in events:
            self._answer_after(listen(self.ask_again, inputs, self._session, js=js, **REQUEST))
        p.cancel.click(Session.cancel, self._session, None, **LIVE)

    def _answer_after(self, event: gr.events.Dependency) -> None:
        p = self.parts
        outputs = [
            p.picture, p.view, p.threshold, p.look, p.player, p.repair, p.stop, *self._of_film,
            *self._of_inspection,
        ]  # fmt: skip
        answered = event.then(
            self.answer, [self._session, p.choices], outputs, **NETWORK,
            show_progress_on=[p.verdict, p.picture],
            js="(session) => [session, diffad.judging()]",
        )  # fmt: skip
        self._corrections.follow(answered)

    def sample(self, event: gr.EventData) -> Opened:
        """The sample that was clicked, as `inspect_on` wants it."""
        name = event._data.get("sample") if isinstance(event._data, dict) else None
        path = next((path for path in self._samples if path.name == name), None)
        if path is None:
            raise misunderstood("there is no such sample")
        return Opened(self._storage.keep(path.read_bytes(), path.name))

    def ask_uploaded(self, session: Session, turn: float, path: str | None, *settings: Any) -> Session:
        """Requests an uploaded picture; with None, the picture was removed."""
        session.ask(turn, path, settings)
        return session

    def ask_again(self, session: Session, turn: float, *settings: Any) -> Session:
        """Requests the same picture with another model, category, timesteps, draws or tiles."""
        if session.asked is not None:
            before = session.asked
            session.ask(turn, before.path, settings, before.batch_bits, before.origin)
        return session

    def answer(
        self,
        session: Session,
        judging: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        """Answers the newest request. It runs after every request, so nothing that it skips is lost.

        judging: what `diffad.judging()` in page.js returned.
        """
        p = self.parts
        with session.answering:
            request, shown = session.asked, None
            if request is None or not session.wants(request):
                return {p.picture: session.picture}
            try:
                if request.path is None:
                    updates = self._emptied(WAITING)
                else:
                    shown = self._inspect(session, request, request.path, progress)
                    updates = self._updates(shown)
            except DataError as error:
                updates = self._emptied(sentence(str(error), request.path or WAITING))
            except Unwanted:
                updates = self._emptied(CANCELLED)
            if request is not session.asked:
                updates = {}
            else:
                if shown is not None:
                    shown = replace(shown, kept=self._corrections.kept(shown, judging))
                session.answered, session.shown, session.film = request, shown, None
            return updates | {p.picture: session.picture}

    def _inspect(self, session: Session, request: Request, path: str, progress: gr.Progress) -> Shown:
        caller_waits = still_waiting()

        def show_progress(done: int, total: int) -> None:
            if total > 1:
                progress((done, total), unit="tiles")

        model, *controls = request.settings
        inspector, before = self._inspectors[model], session.shown
        image: str | npt.NDArray[np.uint8] = path
        if before is not None and before.request.path == path:
            if before.raw.bits == 8 and not before.raw.notes:  # then every category reads it the same way
                image = before.raw.image
        raw = inspector.inspect(
            image,
            **arguments(inspector, *controls),
            progress=show_progress,
            batch_bits=request.batch_bits,
            turn=self._turns.of(caller(), lambda: session.wants(request) and caller_waits()),
            max_tiles=self._turns.max_tiles,
        )
        return Shown(raw, model, inspector, request)

    def _updates(self, shown: Shown) -> Updates:
        p, raw, request = self.parts, shown.raw, shown.request
        inspector = shown.inspector
        part = cards.part(raw, inspector.scale_top(raw.category), inspector.device.type.upper())
        part |= {
            "name": shown.name, "model": shown.model, "turn": request.turn,
            "several": len(self._inspectors) > 1,
            "link": link.of_result(raw, request.settings, request.path, self._inspectors, self._samples),
        }  # fmt: skip
        highest = round(max(SCALE_TOP, 3 * raw.threshold, 1.2 * raw.score))
        return self._without_film(ENABLED) | {
            p.view: part,
            **each_of([p.threshold, p.look], gr.Slider(maximum=highest)),
            **each_of(self._of_inspection, ENABLED),
        }

    def _without_film(self, repair: gr.Button) -> Updates:
        p = self.parts
        return {
            p.player: downloads.no_film(),
            p.repair: repair,
            **each_of([p.stop, *self._of_film], DISABLED),
        }

    def _emptied(self, message: str) -> Updates:
        """Updates for a page without results, with a message in place of the verdict."""
        return self._without_film(DISABLED) | {
            self.parts.view: {"sentence": message},
            **each_of(self._of_inspection, DISABLED),
        }

    # Repair

    def _connect_repair(self) -> None:
        p = self.parts
        p.repair.click(
            self.show_repair, [self._session, p.choices, p.steps, p.every, p.step_size, p.level, p.method],
            [p.player, p.repair, p.stop, *self._of_film],
            js="""(session, choices, ...settings) => {
                diffad.starting(true);
                return [session, diffad.choices(), ...settings];
            }""",
            concurrency_id="repair", concurrency_limit=AT_ONCE, trigger_mode="multiple", **QUIET,
        ).then(
            self.repairable, self._session, p.repair, **LIVE,
            js="""(session) => {
                diffad.starting(false);
                return [session];
            }""",
        )  # fmt: skip
        p.stop.click(Session.stop_repair, self._session, None, **LIVE)
        # Each method has its own default step size and noise level.
        p.method.input(lambda method: list(METHODS[method]), p.method, [p.step_size, p.level], **LIVE)

    def show_repair(
        self, session: Session, choices: Mapping[str, Any], steps: float, every: float, step_size: float,
        level: float, method: str,
    ) -> Iterator[Updates]:  # fmt: skip
        """Repairs the part as the browser shows it, step by step.

        The method is not called "repair", because the event would then take the endpoint's address.
        """
        p, shown = self.parts, session.shown_for(choices)
        inspection, inspector = shown.chosen(choices), shown.inspector
        threshold = self._repair_threshold(inspector, inspection, choices)
        film = downloads.Film(inspection, inspector.timesteps, threshold, self._storage.keep)
        session.film = film
        options = RepairOptions(int(steps), int(every), step_size, int(level), method)
        for step in inspector.repair(
            inspection.image, inspection.category, options, alpha=inspection.alpha, threshold=threshold,
            tile=inspection.tile, turn=self._turns.of_caller(), max_tiles=self._turns.max_tiles,
        ):  # fmt: skip
            if session.film is not film or session.shown is not shown:  # the page now shows something else
                yield {p.player: downloads.no_film()}
                return
            if film.ending:
                if method == "weighed":
                    film.end_with_best()
                break
            film.add(step)
            updates: Updates = {p.player: film.value()}
            if step.index == 0:
                updates |= {p.stop: ENABLED, **each_of([p.repair, *self._of_film], DISABLED)}
            yield updates
        film.ending = film.ending or "done"
        yield {p.player: film.value(), p.stop: DISABLED, **each_of(self._of_film, ENABLED)}

    @staticmethod
    def _repair_threshold(inspector: Inspector, inspection: Inspection, choices: Mapping[str, Any]) -> float:
        """The threshold for one tile at the model's default timesteps, at which repairs are scored."""
        if choices["own"]:
            threshold: float = choices["threshold"]
            return threshold
        rate = -math.expm1(math.log1p(-choices["rate"]) / inspection.chances)
        return inspector.threshold(inspection.category, inspection.alpha, rate=rate)

    def repairable(self, session: Session) -> Any:
        """The state of the repair button after a repair."""
        return ENABLED if session.shown and (not session.film or session.film.ending) else DISABLED

    # Settings that only the browser uses; the sliders of the limits and their rates follow each other.

    def _connect_choices(self) -> None:
        p = self.parts
        p.alpha.input(
            None, [p.alpha, p.threshold, p.look], [p.threshold, p.look],
            js="""(alpha, threshold, look) => {
                const [newThreshold, , newLook] = diffad.choose({ alpha });
                return [newThreshold ?? threshold, newLook ?? look];
            }""",
        )  # fmt: skip
        p.threshold.input(
            None, [p.threshold, p.look], [p.rate, p.look],
            js="""(threshold, look) => {
                const [, rate, newLook] = diffad.choose({ threshold });
                return [rate, newLook ?? look];
            }""",
        )  # fmt: skip
        p.rate.input(
            None, [p.rate, p.threshold, p.look], [p.threshold, p.look],
            js="""(rate, threshold, look) => {
                const [newThreshold, , newLook] =
                    diffad.choose(rate ? { rate, threshold: null } : { threshold });
                return [newThreshold ?? threshold, newLook ?? look];
            }""",
        )  # fmt: skip
        p.look.input(
            None, p.look, [p.look, p.look_rate],
            js="""(look) => {
                const [, , highest, rate] = diffad.choose({ look });
                return [Math.min(look, highest), rate];
            }""",
        )  # fmt: skip
        p.look_rate.input(
            None, [p.look_rate, p.look], p.look,
            js="""(lookRate, look) =>
                diffad.choose(lookRate ? { lookRate, look: null } : { look })[2] ?? look""",
        )  # fmt: skip
        p.opacity.input(None, p.opacity, None, js="(opacity) => { diffad.choose({ opacity }); }")
        p.colormap.input(None, p.colormap, None, js="(colormap) => { diffad.choose({ colormap }); }")
        js = "(...values) => diffad.controls().map((value, i) => value ?? values[i])"
        p.view.select(None, p.limits, p.limits, js=js)

    # Downloads

    def _connect_downloads(self) -> None:
        p = self.parts
        for kind, button in p.download.items():
            pressed = button.click(
                partial(self.download, kind), [self._session, p.choices], p.file, **QUIET,
                js=f"""(session) => {{
                    diffad.busy("{button.elem_id}", true);
                    return [session, diffad.choices()];
                }}""",
            )  # fmt: skip
            pressed.success(None, p.file, None, js="(file) => diffad.save(file)")
            pressed.then(None, None, None, js=f"() => diffad.busy('{button.elem_id}', false)")

    def download(self, kind: str, session: Session, choices: Mapping[str, Any]) -> str:
        """Makes a file to download; returns its path. kind: a key in `downloads`, or "all"."""
        shown, film = session.shown_for(choices), session.film
        inspector = shown.inspector
        with room():
            name, data = downloads.contents(
                kind, shown.chosen(choices), inspector, film, inspector.scale_top(shown.raw.category),
                choices["opacity"], choices["colormap"], name=shown.name,
            )  # fmt: skip
        return self._storage.keep(data, name)


def each_of(components: Sequence[gr.components.Component], value: Any) -> Updates:
    """The same new value for several components."""
    return dict.fromkeys(components, value)


def sample_pictures() -> list[Path]:
    """The bundled sample pictures: next to the package in a clone, inside it in a wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "assets" / "samples", package / "assets" / "samples"):
        if folder.is_dir():
            return sorted(folder.glob("*.png"))
    return []
