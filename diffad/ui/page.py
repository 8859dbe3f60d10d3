"""The inspection page: what happens when something on it is touched. What stands on it is in `layout.py`.

Two kinds of event. What needs the network (another picture, other timesteps, draws) waits for release and
goes through the queue. What does not (α, threshold, opacity, colours, which of the computed t take part)
re-enters at `Inspection.fused` while the slider moves. Results live in the session's `gr.State`, never in a
global. A handler returns a dict of the components that change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from diffad.data import DataError
from diffad.inspector import METHODS, SCALE_TOP
from diffad.ui import cards, downloads, endpoints
from diffad.ui.files import keep
from diffad.ui.layout import AUTO, WAITING, categories, lay_out

if TYPE_CHECKING:
    from diffad.inspector import Inspection, Inspector

HOUR = 3600
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIVE: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **QUIET}
NETWORK: dict[str, Any] = {
    "concurrency_id": "network", "concurrency_limit": 1, "trigger_mode": "always_last",
    "api_visibility": "private", "show_progress": "full",
}


@dataclass(frozen=True)
class Shown:
    """What one session looks at: the network's result, and the choices made since."""

    raw: Inspection
    inspection: Inspection  # raw under the choices
    model: str
    name: str  # of the picture's file, without its suffix
    point: tuple[int, int]  # (x, y) that the evidence explains
    chosen: tuple[int, ...]
    moved_threshold: float | None = None

    def fused(self, **choices: Any) -> Shown:
        """With another α, threshold (None: the category's own) or choice among the computed t; no network."""
        alpha = choices.pop("alpha", self.inspection.alpha)
        shown = replace(self, **choices)
        inspection = self.raw.fused(alpha=alpha, timesteps=shown.chosen, threshold=shown.moved_threshold)
        return replace(shown, inspection=inspection)


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


def build_app(inspectors: Mapping[str, Inspector]) -> gr.Blocks:
    """The page for these models (the first is the default), as Gradio blocks ready for `serve`.

    The keys are the names that people choose from. Raises ValueError when there is no model.
    """
    if not inspectors:
        raise ValueError("The page needs at least one model.")
    with gr.Blocks(
        title="diffad", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, 6 * HOUR)
    ) as app:
        inspection_page(inspectors)
        endpoints.add(inspectors)
    return app


def inspection_page(inspectors: Mapping[str, Inspector]) -> None:
    samples = sample_pictures()
    p = lay_out(inspectors, samples)
    of_inspection = [p.download[kind] for kind in ("all", *downloads.OF_INSPECTION)]
    of_film = [p.download[kind] for kind in downloads.OF_FILM]
    maps = [p.shown, p.verdict, p.view, p.regions, p.evidence, p.together, p.scale, p.probe]
    limit = [p.threshold, p.meaning, p.usual]
    repairing = [p.film, p.player, p.repair, p.stop, *of_film]
    everything = [*maps, *limit, *repairing, *of_inspection]
    colours = [p.opacity, p.colormap]
    network = NETWORK | {"show_progress_on": p.verdict}
    settings = [p.model, p.category, p.alpha, p.lowest, p.highest, p.count, p.draws, *colours]

    # What a result looks like

    def top(now: Shown) -> float:
        return inspectors[now.model].scale_top(now.inspection.category)

    def live(now: Shown, opacity: float, colormap: str) -> dict:
        """All that changes with α, threshold or the chosen t."""
        inspection, inspector, vmax = now.inspection, inspectors[now.model], top(now)
        rate = inspector.rate(
            inspection.category, inspection.threshold, inspection.alpha, inspection.timesteps
        )
        return {
            p.shown: now,
            p.verdict: cards.verdict(inspection, inspector.device.type.upper()),
            p.view: cards.overlay(inspection, vmax, opacity, colormap),
            p.regions: cards.regions(inspection),
            p.together: cards.together(now.raw, inspection, vmax, colormap),
            p.scale: cards.colour_bar(inspection, vmax, colormap),
            p.probe: cards.probe(now.raw, inspection.threshold, *now.point),
            p.meaning: f"<span>{cards.rate_in_words(rate)}</span>",
            p.usual: gr.Button(visible="hidden" if now.moved_threshold is None else True),
        }

    def sheet(now: Shown, colormap: str) -> dict:
        return {p.evidence: cards.evidence(now.raw, now.chosen, top(now), colormap, now.point)}

    def slider(now: Shown) -> dict:
        """The threshold's slider, unless the person holds it."""
        if now.moved_threshold is not None:
            return {}
        value = now.inspection.threshold
        return {p.threshold: gr.Slider(
            value=round(value, 2), maximum=max(SCALE_TOP, round(3 * value))
        )}

    def whole(now: Shown, opacity: float, colormap: str) -> dict:
        result = live(now, opacity, colormap) | sheet(now, colormap) | slider(now) | no_film(ready=True)
        result[p.view] |= cards.plain(now.inspection, now.name)
        return result | dict.fromkeys(of_inspection, gr.Button(interactive=True))

    def nothing(sentence: str) -> dict:
        """Every result emptied, with a sentence in the verdict's place."""
        blank = dict.fromkeys([p.regions, p.together, p.scale, p.probe, p.meaning], "")
        return blank | no_film(ready=False) | {
            p.shown: None, p.verdict: cards.empty(sentence), p.view: {}, p.usual: gr.Button(visible="hidden"),
            p.evidence: cards.empty_sheet(),
            **dict.fromkeys(of_inspection, gr.Button(interactive=False)),
        }

    def no_film(ready: bool) -> dict:
        return {
            p.film: None, p.player: downloads.no_film(), p.repair: gr.Button(interactive=ready),
            p.stop: gr.Button(interactive=False), **dict.fromkeys(of_film, gr.Button(interactive=False)),
        }

    # What needs the network

    def look(image: Any, name: str, moved_threshold: float | None, model: str, category: str, alpha: float,
             lowest: float, highest: float, count: float, draws: float, *colours: Any) -> dict:
        raw = inspectors[model].inspect(
            image, category=None if category == AUTO else category, alpha=alpha, draws=int(draws),
            timesteps=spread(lowest, highest, count, inspectors[model].timesteps), threshold=moved_threshold,
        )
        point = cards.strongest_point(raw)
        return whole(Shown(raw, raw, model, name, point, raw.timesteps, moved_threshold), *colours)

    def inspect_picture(film: downloads.Film | None, path: str | None, *settings: Any) -> dict:
        """Another picture: what the last one left is replaced, or emptied when this one cannot be read."""
        end_repair(film, "abandoned")
        if path is None:
            return nothing(WAITING)
        try:
            return look(path, Path(path).stem, None, *settings)
        except DataError as error:
            gr.Warning(str(error))
            return nothing(str(error))

    def inspect_again(film: downloads.Film | None, now: Shown | None, *settings: Any) -> Any:
        """The same picture with another model, category, timesteps or draws."""
        if now is None:
            return gr.skip()
        end_repair(film, "abandoned")
        model, category, *_ = settings
        same = model == now.model and category in (AUTO, now.raw.category)
        return look(now.raw.image, now.name, now.moved_threshold if same else None, *settings)

    def choose_sample(event: gr.EventData) -> str:
        path = next(path for path in samples if path.name == event.sample)
        return keep(p.picture, path.read_bytes(), path.name)

    def change_model(name: str) -> dict:
        return {
            p.header: cards.header(inspectors[name]),
            p.category: gr.Dropdown(choices=categories(inspectors[name]), value=AUTO),
        }

    # What does not

    def move_alpha(now: Shown | None, alpha: float, *colours: Any) -> Any:
        if now is None:
            return gr.skip()
        now = now.fused(alpha=alpha)
        return live(now, *colours) | slider(now)

    def move_threshold(now: Shown | None, threshold: float | None, *colours: Any) -> Any:
        if now is None:
            return gr.skip()
        now = now.fused(moved_threshold=threshold)
        return live(now, *colours) | slider(now)

    def change_opacity(now: Shown | None, *colours: Any) -> Any:
        return gr.skip() if now is None else {p.view: cards.overlay(now.inspection, top(now), *colours)}

    def change_colours(now: Shown | None, opacity: float, colormap: str) -> Any:
        return gr.skip() if now is None else live(now, opacity, colormap) | sheet(now, colormap)

    def point_or_column(now: Shown | None, opacity: float, colormap: str, event: gr.EventData) -> Any:
        """A click in the evidence: a place to explain (fractions of the picture), or a column in or out."""
        if now is None:
            return gr.skip()
        t = event._data.get("t")
        if t is None:
            height, width = now.raw.image.shape[:2]
            now = replace(now, point=(int(event.x * width), int(event.y * height)))
            return {p.shown: now, p.probe: cards.probe(now.raw, now.inspection.threshold, *now.point)}
        chosen = tuple(sorted({*now.chosen} ^ {t}))
        if not chosen:
            gr.Info("At least one noise level has to stay.")
            return gr.skip()
        now = now.fused(chosen=chosen)
        return live(now, opacity, colormap) | sheet(now, colormap) | slider(now)

    # Repair

    def repair(now: Shown | None, steps: float, every: float, step_size: float, level: float,
               method: str) -> Iterator[dict]:
        if now is None:
            return
        inspection, inspector = now.inspection, inspectors[now.model]
        # A repair is scored at the model's usual timesteps, so it wants their threshold.
        threshold = now.moved_threshold
        if threshold is None:
            threshold = inspector.threshold(inspection.category, inspection.alpha)
        film = downloads.Film(inspection, threshold, partial(keep, p.player))
        for step in inspector.reconstruct(
            inspection.image, category=inspection.category, steps=int(steps), denoise_every=int(every),
            step_size=step_size, timestep=int(level), method=method, alpha=inspection.alpha,
            threshold=threshold,
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

    def download(kind: str, now: Shown | None, film: downloads.Film | None, *colours: Any) -> Any:
        if now is None:
            return gr.skip()
        name, data = downloads.contents(
            kind, now.inspection, inspectors[now.model], film, top(now), *colours, name=now.name
        )
        return keep(p.file, data, name)

    # What is touched, and what answers

    p.repair.click(
        repair, [p.shown, p.steps, p.every, p.step_size, p.level, p.method], repairing,
        concurrency_id="repair", concurrency_limit=2, trigger_mode="once", **QUIET,
    ).then(lambda now: gr.Button(interactive=now is not None), p.shown, p.repair, **LIVE)
    p.stop.click(partial(end_repair, how="stopped"), p.film, None, **LIVE)
    # each method has its own usual step and noise level; the other's would spoil the picture
    p.method.input(lambda method: list(METHODS[method]), p.method, [p.step_size, p.level], **LIVE)

    another, same = [p.film, p.picture, *settings], [p.film, p.shown, *settings]
    p.picture.input(inspect_picture, another, everything, **network)
    p.samples.select(choose_sample, None, p.picture, **LIVE).then(
        inspect_picture, another, everything, **network
    )
    for part in (p.lowest, p.highest, p.count, p.draws):
        part.release(inspect_again, same, everything, **network)
    p.category.input(inspect_again, same, everything, **network)
    p.model.input(change_model, p.model, [p.header, p.category], **LIVE).then(
        inspect_again, same, everything, **network
    )

    p.alpha.input(move_alpha, [p.shown, p.alpha, *colours], maps + limit, **LIVE)
    p.threshold.input(move_threshold, [p.shown, p.threshold, *colours], maps + limit, **LIVE)
    p.usual.click(
        lambda now, *colours: move_threshold(now, None, *colours), [p.shown, *colours], maps + limit, **LIVE
    )
    p.opacity.input(change_opacity, [p.shown, *colours], p.view, **LIVE)
    p.colormap.input(change_colours, [p.shown, *colours], maps + limit, **LIVE)
    for part in (p.evidence, p.together):
        part.select(point_or_column, [p.shown, *colours], maps + limit, **LIVE)

    for kind, button in p.download.items():
        button.click(partial(download, kind), [p.shown, p.film, *colours], p.file, **QUIET).then(
            None, None, None, js="() => document.querySelector('#file a')?.click()"
        )
