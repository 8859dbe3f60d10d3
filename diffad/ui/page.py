"""The inspection page: what happens when something on it is touched. What stands on it is in `layout.py`.

Two kinds of event. What needs the network (another picture, other timesteps, draws) waits for release and
goes through the queue. What does not (α, threshold, opacity, colours, which of the computed t take part)
never reaches the server: the evidence is sent once and judged in the browser (`page.js`), whose choices come
along when a download or a repair needs them. Results live in the session's `gr.State`, never in a global. A
handler returns a dict of the components that change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from diffad.data import DataError
from diffad.inspector import METHODS, SCALE_TOP
from diffad.render import COLORMAPS
from diffad.ui import batch, cards, downloads, endpoints
from diffad.ui.files import keep, sentence
from diffad.ui.layout import AUTO, RATES, TILES, WAITING, categories, lay_out

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector

HOUR = 3600
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIVE: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **QUIET}
NETWORK: dict[str, Any] = {
    "concurrency_id": "network", "concurrency_limit": 1, "trigger_mode": "always_last",
    "api_visibility": "private", "show_progress": "full",
}


@dataclass(frozen=True)
class Shown:
    """What one session looks at: the network's result. The choices made since live in the browser."""

    raw: Inspection
    model: str
    name: str  # of the picture's file, without its suffix

    def chosen(self, choices: Mapping[str, Any]) -> Inspection:
        """As the browser shows it (`diffad.choices()` in page.js); no network."""
        return self.raw.fused(
            alpha=choices["alpha"], timesteps=choices["timesteps"], threshold=choices["threshold"]
        )


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


def build_app(inspectors: Mapping[str, Inspector], data_root: Path | None = None) -> gr.Blocks:
    """The page for these models (the first is the default), as Gradio blocks ready for `serve`.

    The keys are the names that people choose from. data_root: the folder below which a batch may read the
    server's own files; None for uploads only. Raises ValueError when there is no model.
    """
    if not inspectors:
        raise ValueError("The page needs at least one model.")
    with gr.Blocks(
        title="diffad", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, 6 * HOUR)
    ) as app:
        header = gr.HTML(
            cards.header(next(iter(inspectors.values()))), elem_id="header", apply_default_css=False
        )
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Inspect", id="inspect"):
                p = inspection_page(inspectors)
            with gr.Tab("Batch", id="batch", render_children=True):
                batch.add(inspectors, p, tabs, data_root)
        p.model.change(lambda name: cards.header(inspectors[name]), p.model, header, **LIVE)
        open_link(app, inspectors, p)
        endpoints.add(inspectors)
    return app


def inspection_page(inspectors: Mapping[str, Inspector]) -> SimpleNamespace:
    """Lays the Inspect tab out and wires it; returns its components, and what the Batch tab builds on.

    inspect_after(event): inspects `picture` when an event that sets it is through. settings: the controls,
    the model's first; arguments(inspector, *others): what they mean to `Inspector.inspect`.
    """
    samples = sample_pictures()
    p = lay_out(inspectors, samples)
    of_inspection = [p.download[kind] for kind in ("all", *downloads.OF_INSPECTION)]
    of_film = [p.download[kind] for kind in downloads.OF_FILM]
    repairing = [p.film, p.player, p.repair, p.stop, *of_film]
    everything = [p.shown, p.view, p.threshold, *repairing, *of_inspection]
    network = NETWORK | {"show_progress_on": p.verdict}
    settings = [p.model, p.category, p.alpha, p.lowest, p.highest, p.count, p.draws, p.tile]
    first_model = next(iter(inspectors))

    def no_film(ready: bool) -> dict:
        return {
            p.film: None, p.player: downloads.no_film(), p.repair: gr.Button(interactive=ready),
            p.stop: gr.Button(interactive=False), **dict.fromkeys(of_film, gr.Button(interactive=False)),
        }

    def nothing(sentence: str) -> dict:
        """Every result emptied, with a sentence in the verdict's place."""
        return no_film(ready=False) | {
            p.shown: None, p.view: {"sentence": sentence},
            **dict.fromkeys(of_inspection, gr.Button(interactive=False)),
        }

    # What needs the network

    def look(image: Any, name: str, sample: str | None, model: str, *controls: Any) -> dict:
        inspector = inspectors[model]
        raw = inspector.inspect(image, **arguments(inspector, *controls))
        category, _, lowest, highest, count, draws, tile = controls
        link = {"category": category, "draws": int(draws), "tile": tile, "sample": sample}
        link["model"] = model if model != first_model else None
        usual = raw.timesteps == inspector.timesteps
        for key, value in (("low", lowest), ("high", highest), ("count", count)):
            link[key] = None if usual else int(value)
        part = cards.part(raw, inspector.scale_top(raw.category), inspector.device.type.upper())
        return no_film(ready=True) | {
            p.shown: Shown(raw, model, name), p.view: part | {"name": name, "model": model, "link": link},
            p.threshold: gr.Slider(maximum=round(max(SCALE_TOP, 3 * raw.threshold, 1.2 * raw.score))),
            **dict.fromkeys(of_inspection, gr.Button(interactive=True)),
        }

    def inspect_picture(film: downloads.Film | None, path: str | None, *settings: Any) -> dict:
        """Another picture: what the last one left is replaced, or emptied when this one cannot be read."""
        end_repair(film, "abandoned")
        if path is None:
            return nothing(WAITING)
        try:
            return look(path, Path(path).stem, sample_of(path, samples), *settings)
        except DataError as error:
            message = sentence(str(error), path)
            gr.Warning(message)
            return nothing(message)

    def inspect_again(
        film: downloads.Film | None, now: Shown | None, path: str | None, *settings: Any
    ) -> Any:
        """The same picture with another model, category, timesteps, draws or tiles."""
        if now is None:
            return gr.skip()
        end_repair(film, "abandoned")
        return look(now.raw.image, now.name, path and sample_of(path, samples), *settings)

    def choose_sample(event: gr.EventData) -> str:
        path = next(path for path in samples if path.name == event.sample)
        return keep(p.picture, path.read_bytes(), path.name)

    # Repair

    def repair(now: Shown | None, choices: dict, steps: float, every: float, step_size: float, level: float,
               method: str) -> Iterator[dict]:
        if now is None:
            return
        inspection, inspector = now.chosen(choices), inspectors[now.model]
        # A repair is scored at the model's usual timesteps, so it wants their threshold.
        threshold = choices["threshold"]
        if not choices["own"]:
            of_one = -math.expm1(math.log1p(-choices["rate"]) / inspection.chances)
            threshold = inspector.threshold(inspection.category, inspection.alpha, rate=of_one)
        film = downloads.Film(inspection, threshold, partial(keep, p.player))
        for step in inspector.reconstruct(
            inspection.image, category=inspection.category, steps=int(steps), denoise_every=int(every),
            step_size=step_size, timestep=int(level), method=method, alpha=inspection.alpha,
            threshold=threshold, tile=inspection.tile,
        ):
            if film.ending == "abandoned":  # another picture has taken the page
                yield {p.player: downloads.no_film()}
                return
            if film.ending:
                break
            film.add(step)
            if step.index:
                yield {p.player: film.value()}
            else:
                off = gr.Button(interactive=False)
                yield {p.film: film, p.player: film.value(), p.stop: gr.Button(interactive=True),
                       **dict.fromkeys([p.repair, *of_film], off)}
        film.ending = film.ending or "done"
        yield {p.player: film.value(), p.stop: gr.Button(interactive=False),
               **dict.fromkeys(of_film, gr.Button(interactive=True))}

    def end_repair(film: downloads.Film | None, how: str) -> None:
        """Tells a running repair to end after its present step. It answers itself, so the two never race."""
        if film is not None and not film.ending:
            film.ending = how

    def download(kind: str, now: Shown | None, film: downloads.Film | None, choices: dict) -> Any:
        if now is None:
            return gr.skip()
        inspector = inspectors[now.model]
        name, data = downloads.contents(
            kind, now.chosen(choices), inspector, film, inspector.scale_top(now.raw.category),
            choices["opacity"], choices["colormap"], name=now.name,
        )
        return keep(p.file, data, name)

    # What is touched, and what answers

    p.repair.click(
        repair, [p.shown, p.choices, p.steps, p.every, p.step_size, p.level, p.method], repairing,
        js="(shown, choices, ...settings) => [shown, diffad.choices(), ...settings]",
        concurrency_id="repair", concurrency_limit=2, trigger_mode="once", **QUIET,
    ).then(lambda now: gr.Button(interactive=now is not None), p.shown, p.repair, **LIVE)
    p.stop.click(partial(end_repair, how="stopped"), p.film, None, **LIVE)
    # each method has its own usual step and noise level; the other's would spoil the picture
    p.method.input(lambda method: list(METHODS[method]), p.method, [p.step_size, p.level], **LIVE)

    def inspect_after(event: gr.events.Dependency) -> gr.events.Dependency:
        return event.then(inspect_picture, [p.film, p.picture, *settings], everything, **network)

    same = [p.film, p.shown, p.picture, *settings]
    p.inspect_after = inspect_after
    p.settings, p.arguments = settings, arguments  # the batch is judged alike
    # A cleared picture still sends its old path, so the browser says that it is gone.
    p.picture.clear(None, None, None, js="() => { diffad.cleared(); }")
    p.picture.input(
        inspect_picture, [p.film, p.picture, *settings], everything, **network,
        js="async (film, path, ...settings) => [film, await diffad.unlessCleared(path), ...settings]",
    )
    inspect_after(p.samples.select(choose_sample, None, p.picture, **LIVE))
    for part in (p.lowest, p.highest, p.count, p.draws):
        part.release(inspect_again, same, everything, **network)
    for part in (p.category, p.tile):
        part.input(inspect_again, same, everything, **network)
    p.model.input(
        lambda name: gr.Dropdown(choices=categories(inspectors[name]), value=AUTO), p.model, p.category,
        **LIVE,
    ).then(inspect_again, same, everything, **network)

    # These act in the browser; the threshold's slider and its rate follow each other.
    p.alpha.input(None, [p.alpha, p.threshold], p.threshold, js="""(alpha, threshold) =>
        diffad.choose({ alpha }) ?? threshold""")
    p.threshold.input(None, p.threshold, p.rate, js="""(threshold) => {
        diffad.choose({ threshold });
        return 0;
    }""")
    p.rate.input(None, [p.rate, p.threshold], p.threshold, js="""(rate, threshold) =>
        diffad.choose(rate ? { rate, threshold: null } : { threshold }) ?? threshold""")
    p.opacity.input(None, p.opacity, None, js="(opacity) => { diffad.choose({ opacity }); }")
    p.colormap.input(None, p.colormap, None, js="(colormap) => { diffad.choose({ colormap }); }")
    p.view.select(None, None, [p.threshold, p.rate], js="() => diffad.limits()")

    for kind, button in p.download.items():
        button.click(
            partial(download, kind), [p.shown, p.film, p.choices], p.file,
            js="(shown, film) => [shown, film, diffad.choices()]", **QUIET,
        ).then(None, None, None, js="() => document.querySelector('#file a')?.click()")
    return p


def arguments(inspector: Inspector, category: str, alpha: float, lowest: float, highest: float, count: float,
              draws: float, tile: str) -> dict[str, Any]:
    """The controls' values as arguments of `Inspector.inspect`."""
    cut = {} if tile == AUTO else {"tile": None if tile == "whole" else int(tile)}
    timesteps = spread(lowest, highest, count, inspector.timesteps)
    known = None if category == AUTO else category
    return {"category": known, "alpha": alpha, "draws": int(draws), "timesteps": timesteps, **cut}


def sample_of(path: str, samples: Sequence[Path]) -> str | None:
    """Which sample a picture is, for the page's address."""
    found = next((sample for sample in samples if sample.name == Path(path).name), None)
    return found.name if found and found.read_bytes() == Path(path).read_bytes() else None


def open_link(app: gr.Blocks, inspectors: Mapping[str, Inspector], p: SimpleNamespace) -> None:
    """On load the controls are set as the address says, where it makes sense; then its sample is opened."""
    live = [p.alpha, p.rate, p.opacity, p.colormap, p.threshold]

    def arrive(link: dict[str, str] | None) -> Any:
        if not link:
            return gr.skip()
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

        own = "threshold" in link
        limit = within("threshold", 0, 1000, 3)
        return {
            p.model: model,
            p.category: gr.Dropdown(
                choices=categories(inspector), value=among("category", inspector.categories, AUTO)
            ),
            p.alpha: within("alpha", 0, 1, 0.5),
            p.rate: 0 if own else among("rate", [rate for _, rate in RATES], 0.01),
            p.threshold: gr.Slider(value=limit, maximum=max(SCALE_TOP, round(2 * limit))),
            p.opacity: within("opacity", 0, 1, 0.7),
            p.colormap: among("colormap", COLORMAPS, COLORMAPS[0]),
            p.lowest: int(within("low", 0, 999, inspector.timesteps[0])),
            p.highest: int(within("high", 0, 999, inspector.timesteps[-1])),
            p.count: int(within("count", 1, 12, len(inspector.timesteps))),
            p.draws: int(within("draws", 1, 8, 1)),
            p.tile: among("tile", [tile for _, tile in TILES], AUTO),
        }

    app.load(
        arrive, p.link,
        [p.model, p.category, *live, p.lowest, p.highest, p.count, p.draws, p.tile],
        js="() => diffad.link()", **LIVE,
    ).then(None, live, None, js="(...live) => { diffad.arrive(...live); }")
