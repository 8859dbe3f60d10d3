"""The inspection page: what happens when something on it is touched. What stands on it is in `layout.py`.

Two kinds of event. What needs the network (another picture, other timesteps, draws) waits for release and
goes through the queue. What does not (α, threshold, opacity, colours, which of the computed t take part)
never reaches the server: the evidence is sent once and judged in the browser (`page.js`), whose choices come
along when a download or a repair needs them. A handler returns a dict of the components that change.

Whoever is quick asks for a picture before the last one is answered. So a request is taken down at once, past
the queue, and what runs in the queue serves the newest one: the page ends at the last choice, in whatever
order the network brings the choices in.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from diffad.inspection import LOOK_RATE
from diffad.inspector import SCALE_TOP, Turn
from diffad.method.repair_options import METHODS, RepairOptions
from diffad.pictures.drawing import COLORMAPS
from diffad.pictures.reading import DataError
from diffad.ui import batch, cards, downloads, endpoints
from diffad.ui.files import Storage, room, sentence
from diffad.ui.layout import AUTO, CANCELLED, LOOK_RATES, RATES, TILES, WAITING, categories, html, lay_out
from diffad.ui.turns import AT_ONCE, Turns, Unwanted, caller, still_waiting

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIVE: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **QUIET}
EVERY: dict[str, Any] = {"queue": False, "trigger_mode": "multiple", **QUIET}
NETWORK: dict[str, Any] = {
    "concurrency_id": "network", "concurrency_limit": AT_ONCE, "trigger_mode": "multiple",
    "api_visibility": "private", "show_progress": "full",
}


@dataclass(frozen=True)
class Request:
    """A picture to inspect, and how."""

    turn: int  # the browser counts what it asks for
    path: str | None  # None: the picture was taken away
    settings: tuple[Any, ...]  # values of `p.settings`
    batch_bits: int | None = None  # of the batch that the picture was opened from


@dataclass(frozen=True)
class Shown:
    """What the page shows: the network's result. The choices made since live in the browser."""

    raw: Inspection
    model: str
    request: Request

    @property
    def name(self) -> str:
        """Of the picture's file, without its suffix."""
        return Path(self.request.path).stem

    def chosen(self, choices: Mapping[str, Any]) -> Inspection:
        """As the browser shows it (`diffad.choices()` in page.js); no network."""
        return self.raw.fused(
            choices["alpha"], choices["timesteps"], threshold=choices["threshold"],
            look_threshold=choices["look"],
        )  # fmt: skip


@dataclass
class Session:
    """One open page. Its handlers share it, so that each knows at once what the others were told."""

    asked: Request | None = None  # the newest request
    answered: Request | None = None  # the newest that needs no more work: answered, or cancelled
    shown: Shown | None = None
    film: downloads.Film | None = None  # the newest repair; another one, or none, ends it

    def __post_init__(self) -> None:
        self.answering = threading.Lock()  # one request after the other

    def __deepcopy__(self, memo: Any) -> Session:
        """How Gradio makes each page its own; a lock cannot be copied."""
        return Session()

    @property
    def picture(self) -> str | None:
        """The path of the picture that was chosen last."""
        return self.asked and self.asked.path

    def wants(self, request: Request) -> bool:
        return request is self.asked and request is not self.answered


def spread(low: float, high: float, count: float, usual: tuple[int, ...]) -> tuple[int, ...]:
    """`count` timesteps evenly from the lowest to the highest; the model's usual ones where they fit."""
    low, high = sorted((int(low), int(high)))
    if (low, high, count) == (usual[0], usual[-1], len(usual)):
        return usual
    return tuple(sorted({round(float(t)) for t in np.linspace(low, high, int(count))}))


def sample_pictures() -> list[Path]:
    """The bundled sample parts: beside the package in a clone, inside it in a wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "assets" / "samples", package / "assets" / "samples"):
        if folder.is_dir():
            return sorted(folder.glob("*.png"))
    return []


def build_app(
    inspectors: Mapping[str, Inspector], turns: Turns, storage: Storage, data_root: Path | None = None
) -> gr.Blocks:
    """The page for these models (the first is the default), as Gradio blocks ready for `serve`.

    The keys are the names that people choose from. turns: of all who use the network; storage: for what comes
    and is made. data_root: the folder below which a batch may read the server's own files; None for uploads
    only. Raises ValueError when there is no model.
    """
    if not inspectors:
        raise ValueError("The page needs at least one model.")
    with gr.Blocks(title="diffad", analytics_enabled=False, fill_width=True) as app:
        header = html(cards.header(next(iter(inspectors.values()))), elem_id="header")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Inspect", id="inspect"):
                p = inspection_page(inspectors, turns, storage)
            with gr.Tab("Batch", id="batch", render_children=True) as tab:
                batch.add(inspectors, p, tab, turns, storage, data_root)
        # Beside the tabs, for a hidden tab hides its dialogs too.
        html(cards.ENLARGED + cards.SHORTCUTS, elem_id="dialogs")
        p.model.change(lambda name: cards.header(inspectors[name]), p.model, header, **LIVE)
        open_link(app, inspectors, p).then(None, p.settings, p.setting, js=batch.SETTING)
        endpoints.add(inspectors, turns, storage)
    return app


def inspection_page(inspectors: Mapping[str, Inspector], turns: Turns, storage: Storage) -> SimpleNamespace:
    """Lays the Inspect tab out and wires it; returns its components, and what the Batch tab builds on.

    inspect_on(listen, find): from now on the event that `listen` listens to has the picture inspected whose
    path `find(event data)` returns, with its batch's bits; None inspects nothing. settings: the controls, the
    model's first; arguments(inspector, *others): what they mean to `Inspector.inspect`.
    """
    samples = sample_pictures()
    p = lay_out(inspectors, samples)
    p.session = gr.State(Session())
    of_inspection = [p.download[kind] for kind in ("all", *downloads.OF_INSPECTION)]
    of_film = [p.download[kind] for kind in downloads.OF_FILM]
    repairing = [p.player, p.repair, p.stop, *of_film]
    everything = [p.picture, p.view, p.threshold, p.look, *repairing, *of_inspection]
    settings = [p.model, p.category, p.alpha, p.lowest, p.highest, p.count, p.draws, p.tile]
    first_model = next(iter(inspectors))

    def no_film(ready: bool) -> dict:
        return {
            p.player: downloads.no_film(), p.repair: gr.Button(interactive=ready),
            p.stop: gr.Button(interactive=False), **dict.fromkeys(of_film, gr.Button(interactive=False)),
        }

    def nothing(sentence: str) -> dict:
        """Every result emptied, with a sentence in the verdict's place."""
        return no_film(ready=False) | {
            p.view: {"sentence": sentence}, **dict.fromkeys(of_inspection, gr.Button(interactive=False)),
        }

    # What needs the network

    def ask(
        session: Session, turn: Any, path: str | None, settings: tuple, batch_bits: int | None = None
    ) -> None:
        """Takes a request down, unless a newer one came before it. What it makes needless ends by itself."""
        if type(turn) not in (int, float) or not 0 <= turn < 1e15:
            raise misunderstood("turn is a number")
        if session.asked is None or turn > session.asked.turn:
            session.asked, session.film = Request(int(turn), path, settings, batch_bits), None

    def answer(session: Session, progress: gr.Progress = gr.Progress()) -> dict:  # noqa: B008
        """Answers the newest request. It comes after every request, so what is skipped here is not lost."""
        with session.answering:
            return answer_newest(session, progress)

    def answer_newest(session: Session, progress: gr.Progress) -> dict:
        request = session.asked
        if request is None or not session.wants(request):
            return {p.picture: session.picture}
        here = still_waiting()

        def tell(done: int, total: int) -> None:
            if total > 1:
                progress((done, total), unit="tiles")

        shown, found = None, nothing(WAITING)
        try:
            if request.path is not None:
                turn = turns.of(caller(), lambda: session.wants(request) and here())
                shown, found = look(request, session.shown, tell, turn)
        except DataError as error:
            found = nothing(sentence(str(error), request.path))
        except Unwanted:
            found = nothing(CANCELLED)
        if request is not session.asked:
            found = {}
        else:
            session.answered, session.shown, session.film = request, shown, None
        return found | {p.picture: session.picture}

    def look(request: Request, before: Shown | None, tell: Callable, turn: Turn) -> tuple[Shown, dict]:
        model, *controls = request.settings
        inspector = inspectors[model]
        same = before is not None and before.request.path == request.path
        plain = same and before.raw.bits == 8 and not before.raw.notes  # read alike for every category
        raw = inspector.inspect(
            before.raw.image if plain else request.path, **arguments(inspector, *controls), progress=tell,
            batch_bits=request.batch_bits, turn=turn, max_tiles=turns.max_tiles,
        )
        category, _, lowest, highest, count, draws, tile = controls
        sample = sample_of(request.path, samples)
        link = {"category": category, "draws": int(draws), "tile": tile, "sample": sample}
        link["model"] = model if model != first_model else None
        usual = raw.timesteps == inspector.timesteps
        for key, value in (("low", lowest), ("high", highest), ("count", count)):
            link[key] = None if usual else int(value)
        shown = Shown(raw, model, request)
        part = cards.part(raw, inspector.scale_top(raw.category), inspector.device.type.upper())
        part |= {"name": shown.name, "model": model, "link": link, "turn": request.turn}
        part["several"] = len(inspectors) > 1
        scale = round(max(SCALE_TOP, 3 * raw.threshold, 1.2 * raw.score))
        return shown, no_film(ready=True) | {
            p.view: part,
            **dict.fromkeys((p.threshold, p.look), gr.Slider(maximum=scale)),
            **dict.fromkeys(of_inspection, gr.Button(interactive=True)),
        }

    def cancel(session: Session) -> None:
        session.answered = session.asked

    # Repair

    def repair(session: Session, choices: dict, steps: float, every: float, step_size: float, level: float,
               method: str) -> Iterator[dict]:
        now = chosen(session, choices)
        inspection, inspector = now.chosen(choices), inspectors[now.model]
        # A repair is scored at the model's usual timesteps, so it wants their threshold.
        threshold = choices["threshold"]
        if not choices["own"]:
            of_one = -math.expm1(math.log1p(-choices["rate"]) / inspection.chances)
            threshold = inspector.threshold(inspection.category, inspection.alpha, rate=of_one)
        film = downloads.Film(inspection, inspector.timesteps, threshold, storage.keep)
        session.film = film
        for step in inspector.repair(
            inspection.image, inspection.category,
            RepairOptions(int(steps), int(every), step_size, int(level), method), alpha=inspection.alpha,
            threshold=threshold, tile=inspection.tile, turn=turns.of_caller(), max_tiles=turns.max_tiles,
        ):
            if session.film is not film or session.shown is not now:  # something else has taken the page
                yield {p.player: downloads.no_film()}
                return
            if film.ending:
                if method == "weighed":
                    film.end_with_best()
                break
            film.add(step)
            if step.index:
                yield {p.player: film.value()}
            else:
                off = gr.Button(interactive=False)
                yield {p.player: film.value(), p.stop: gr.Button(interactive=True),
                       **dict.fromkeys([p.repair, *of_film], off)}
        film.ending = film.ending or "done"
        yield {p.player: film.value(), p.stop: gr.Button(interactive=False),
               **dict.fromkeys(of_film, gr.Button(interactive=True))}

    def repairable(session: Session) -> Any:
        return gr.Button(interactive=bool(session.shown and (not session.film or session.film.ending)))

    def stop(session: Session) -> None:
        """Tells a running repair to end after its present step. It answers itself, so the two never race."""
        if session.film is not None:
            session.film.ending = session.film.ending or "stopped"

    def chosen(session: Session, choices: dict) -> Shown:
        """What the browser's choices are about, for it may not have drawn the newest result yet."""
        check_choices(choices)
        if session.shown is None or session.shown.request.turn != choices["turn"]:
            raise gr.Error("Another picture came in between: please press again.", print_exception=False)
        return session.shown

    def download(kind: str, session: Session, choices: dict) -> str:
        now, film = chosen(session, choices), session.film
        inspector = inspectors[now.model]
        with room():
            name, data = downloads.contents(
                kind, now.chosen(choices), inspector, film, inspector.scale_top(now.raw.category),
                choices["opacity"], choices["colormap"], name=now.name,
            )
        return storage.keep(data, name)

    # What is touched, and what answers

    p.repair.click(
        repair, [p.session, p.choices, p.steps, p.every, p.step_size, p.level, p.method], repairing,
        js="""(session, choices, ...settings) => {
            diffad.starting(true);
            return [session, diffad.choices(), ...settings];
        }""",
        concurrency_id="repair", concurrency_limit=AT_ONCE, trigger_mode="multiple", **QUIET,
    ).then(
        repairable, p.session, p.repair, **LIVE,
        js="""(session) => {
            diffad.starting(false);
            return [session];
        }""",
    )
    p.stop.click(stop, p.session, None, **LIVE)
    p.cancel.click(cancel, p.session, None, **LIVE)
    # each method has its own usual step and noise level; the other's would spoil the picture
    p.method.input(lambda method: list(METHODS[method]), p.method, [p.step_size, p.level], **LIVE)

    def answer_after(event: gr.events.Dependency) -> None:
        event.then(answer, p.session, everything, **NETWORK, show_progress_on=[p.verdict, p.picture])

    def inspect_on(listen: Callable, find: Callable[[gr.EventData], tuple[str, int | None] | None]) -> None:
        def ask_for(event: gr.EventData, session: Session, turn: float, *settings: Any) -> Any:
            if (found := find(event)) is not None:
                path, batch_bits = found
                ask(session, turn, path, settings, batch_bits)
            return session, session.picture

        asked = [p.session, p.turn, *settings]
        js = "(session, turn, ...settings) => [session, diffad.nextTurn(true), ...settings]"
        answer_after(listen(ask_for, asked, [p.session, p.picture], js=js, **EVERY))

    def ask_uploaded(session: Session, turn: float, path: str | None, *settings: Any) -> Session:
        ask(session, turn, path, settings)
        return session

    def ask_again(session: Session, turn: float, *settings: Any) -> Session:
        """The same picture with another model, category, timesteps, draws or tiles."""
        if session.asked is not None:
            ask(session, turn, session.asked.path, settings, session.asked.batch_bits)
        return session

    def sample(event: gr.EventData) -> tuple[str, None]:
        name = event._data.get("sample") if isinstance(event._data, dict) else None
        path = next((path for path in samples if path.name == name), None)
        if path is None:
            raise misunderstood("there is no such sample")
        return storage.keep(path.read_bytes(), path.name), None

    p.inspect_on, p.settings, p.arguments = inspect_on, settings, arguments
    inspect_on(p.samples.select, sample)
    answer_after(p.picture.input(
        ask_uploaded, [p.session, p.turn, p.picture, *settings], p.session, **EVERY,
        js="(session, turn, path, ...settings) => [session, ...diffad.uploaded(path), ...settings]",
    ))  # fmt: skip
    model_changed = p.model.input(
        lambda name: gr.Dropdown(choices=categories(inspectors[name]), value=AUTO), p.model, p.category,
        **LIVE,
    )
    released = [part.release for part in (p.lowest, p.highest, p.count, p.draws)]
    for listen in (*released, p.category.input, p.tile.input, model_changed.then):
        js = "(session, turn, ...settings) => [session, diffad.nextTurn(), ...settings]"
        answer_after(listen(ask_again, [p.session, p.turn, *settings], p.session, js=js, **EVERY))

    # These act in the browser; the limits' sliders and their rates follow each other.
    p.alpha.input(
        None, [p.alpha, p.threshold, p.look], [p.threshold, p.look],
        js="""(alpha, threshold, look) => {
            const [newThreshold, , newLook] = diffad.choose({ alpha });
            return [newThreshold ?? threshold, newLook ?? look];
        }""",
    )
    p.threshold.input(
        None, [p.threshold, p.look], [p.rate, p.look],
        js="""(threshold, look) => {
            const [, rate, newLook] = diffad.choose({ threshold });
            return [rate, newLook ?? look];
        }""",
    )
    p.rate.input(
        None, [p.rate, p.threshold, p.look], [p.threshold, p.look],
        js="""(rate, threshold, look) => {
            const [newThreshold, , newLook] = diffad.choose(rate ? { rate, threshold: null } : { threshold });
            return [newThreshold ?? threshold, newLook ?? look];
        }""",
    )
    p.look.input(None, p.look, [p.look, p.look_rate], js="""(look) => {
        const [, , highest, rate] = diffad.choose({ look });
        return [Math.min(look, highest), rate];
    }""")
    p.look_rate.input(None, [p.look_rate, p.look], p.look, js="""(lookRate, look) =>
        diffad.choose(lookRate ? { lookRate, look: null } : { look })[2] ?? look""")
    p.opacity.input(None, p.opacity, None, js="(opacity) => { diffad.choose({ opacity }); }")
    p.colormap.input(None, p.colormap, None, js="(colormap) => { diffad.choose({ colormap }); }")
    limits = [p.threshold, p.rate, p.look, p.look_rate]
    p.view.select(
        None, limits, limits, js="(...now) => diffad.controls().map((said, i) => said ?? now[i])"
    )

    for kind, button in p.download.items():
        made = button.click(
            partial(download, kind), [p.session, p.choices], p.file, **QUIET,
            js=f"""(session) => {{
                diffad.busy("{button.elem_id}", true);
                return [session, diffad.choices()];
            }}""",
        )
        made.success(None, p.file, None, js="(file) => diffad.save(file)")
        made.then(None, None, None, js=f"() => diffad.busy('{button.elem_id}', false)")
    return p


def arguments(inspector: Inspector, category: str, alpha: float, lowest: float, highest: float, count: float,
              draws: float, tile: str) -> dict[str, Any]:
    """The controls' values as arguments of `Inspector.inspect`."""
    cut = {} if tile == AUTO else {"tile": None if tile == "whole" else int(tile)}
    timesteps = spread(lowest, highest, count, inspector.timesteps)
    known = category if category in inspector.categories else None  # AUTO, or of the model chosen before
    return {"category": known, "alpha": alpha, "draws": int(draws), "timesteps": timesteps, **cut}


def misunderstood(why: str) -> gr.Error:
    """To raise where an event brings what no page of ours sends."""
    return gr.Error(f"This request cannot be understood ({why}): load the page anew.", print_exception=False)


def check_choices(choices: Any) -> None:
    """Raises `misunderstood` unless these are as `diffad.choices()` in page.js sends them."""

    def number(name: str, low: float, high: float) -> bool:
        value = choices.get(name)
        return type(value) in (int, float) and low <= value <= high

    timesteps = choices.get("timesteps") if isinstance(choices, dict) else None
    if not (
        isinstance(timesteps, list) and all(type(t) is int for t in timesteps)
        and number("alpha", 0, 1) and number("opacity", 0, 1) and number("rate", 0, 1)
        and all(choices.get(limit) is None or number(limit, -1e9, 1e9) for limit in ("threshold", "look"))
        and choices.get("colormap") in COLORMAPS and "own" in choices and "turn" in choices
    ):  # fmt: skip
        raise misunderstood("choices")


def sample_of(path: str, samples: Sequence[Path]) -> str | None:
    """Which sample a picture is, for the page's address."""
    found = next((sample for sample in samples if sample.name == Path(path).name), None)
    return found.name if found and found.read_bytes() == Path(path).read_bytes() else None


def open_link(app: gr.Blocks, inspectors: Mapping[str, Inspector], p: SimpleNamespace) -> Any:
    """On load the controls are set as the address says, where it makes sense; then its sample is opened."""
    live = [p.alpha, p.rate, p.opacity, p.colormap, p.threshold, p.look_rate, p.look]

    def arrive(link: dict[str, str] | None) -> Any:
        if not link or not isinstance(link, dict):
            return gr.skip()
        link = {key: value for key, value in link.items() if isinstance(value, str)}
        model = link.get("model") if link.get("model") in inspectors else next(iter(inspectors))
        inspector = inspectors[model]

        def within(name: str, low: float, high: float, usual: float) -> float:
            try:
                value = float(link[name])
            except (KeyError, ValueError):
                return usual
            return min(max(value, low), high) if math.isfinite(value) else usual

        def among(name: str, known: Sequence[Any], usual: Any) -> Any:
            return next((value for value in known if str(value) == link.get(name)), usual)

        def slider(name: str, usual: float) -> gr.Slider:
            limit = within(name, -1000, 1000, usual)
            low, high = min(0, math.floor(2 * limit)), max(SCALE_TOP, round(2 * limit))
            return gr.Slider(value=limit, minimum=low, maximum=high)

        def share(limit: str, name: str, rates: list[tuple[str, float]], usual: float) -> float:
            return 0 if limit in link else among(name, [rate for _, rate in rates], usual)

        return {
            p.model: model,
            p.category: gr.Dropdown(
                choices=categories(inspector), value=among("category", inspector.categories, AUTO)
            ),
            p.alpha: within("alpha", 0, 1, 0.5),
            p.rate: share("threshold", "rate", RATES, 0.01),
            p.threshold: slider("threshold", 3),
            p.look_rate: share("look", "look-rate", LOOK_RATES, LOOK_RATE),
            p.look: slider("look", 2.5),
            p.opacity: within("opacity", 0, 1, 0.7),
            p.colormap: among("colormap", COLORMAPS, COLORMAPS[0]),
            p.lowest: int(within("low", 0, 999, inspector.timesteps[0])),
            p.highest: int(within("high", 0, 999, inspector.timesteps[-1])),
            p.count: int(within("count", 1, 12, len(inspector.timesteps))),
            p.draws: int(within("draws", 1, 8, 1)),
            p.tile: among("tile", [tile for _, tile in TILES], AUTO),
        }

    return app.load(
        arrive, p.link,
        [p.model, p.category, *live, p.lowest, p.highest, p.count, p.draws, p.tile],
        js="() => diffad.link()", **LIVE,
    ).then(None, live, None, js="(...live) => { diffad.arrive(...live); }")
