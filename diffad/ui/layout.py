"""The components of the Inspect tab. `inspect_tab.py` connects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad.inspector import SCALE_TOP
from diffad.method.calibration import RULE
from diffad.method.repair_options import RepairOptions
from diffad.pictures.drawing import COLORMAPS
from diffad.ui import cards, downloads
from diffad.ui.files import picture_upload
from diffad.verdicts import LOOK_RATE, VERDICTS

if TYPE_CHECKING:
    from diffad.inspector import Inspector

DEFAULTS = RepairOptions()
AUTO = "auto"
WAITING = "Choose a sample or drop a picture."
CANCELLED = "Cancelled. Choose another picture or larger tiles."
RATE = 0.01  # share of good parts above the default threshold
ALPHA, THRESHOLD, LOOK_LIMIT, OPACITY = 0.5, 3.0, 2.5, 0.7  # defaults; the limits only until there is a part
RATES = [("1 in 20", 0.05), ("1 in 100", RATE), ("1 in 1000", 0.001), ("own score", 0)]
LOOK_RATES = [("1 in 5", 0.2), ("1 in 10", LOOK_RATE), ("1 in 20", 0.05), ("own score", 0)]
SHARES = {  # shares of good parts above each limit, for the scripts
    "threshold": {"usual": RATE, "offered": [rate for _, rate in RATES if rate]},
    "look": {"usual": LOOK_RATE, "offered": [rate for _, rate in LOOK_RATES if rate]},
}
TILES = [("automatic", AUTO), ("none", "whole"), *((f"{px} px", str(px)) for px in (256, 512, 1024))]

html = partial(gr.HTML, apply_default_css=False)
button = partial(gr.Button, size="sm", interactive=False, min_width=60)
number = partial(gr.Slider, buttons=[], min_width=110)
choice = partial(gr.Dropdown, filterable=False)


@dataclass(frozen=True)
class Components:
    """The components that events on the Inspect tab read and change.

    choices, link, turn: carry the browser's own state along with an event; page.js fills them in. keep:
    whether inspections are kept. file: a download on its way to the browser.
    """

    choices: gr.JSON
    link: gr.JSON
    turn: gr.JSON
    picture: gr.Image
    keep: gr.Checkbox
    cancel: gr.Button
    samples: gr.HTML
    model: gr.Dropdown
    category: gr.Dropdown
    alpha: gr.Slider
    threshold: gr.Slider
    rate: gr.Dropdown
    look: gr.Slider
    look_rate: gr.Dropdown
    lowest: gr.Slider
    highest: gr.Slider
    count: gr.Slider
    draws: gr.Slider
    tile: gr.Dropdown
    steps: gr.Slider
    every: gr.Slider
    step_size: gr.Slider
    level: gr.Slider
    repair: gr.Button
    stop: gr.Button
    method: gr.Dropdown
    verdict: gr.HTML
    correction: gr.HTML
    opacity: gr.Slider
    colormap: gr.Dropdown
    view: gr.HTML
    player: gr.HTML
    download: dict[str, gr.Button]  # by kind, see `downloads`
    file: gr.File

    @property
    def settings(self) -> list[gr.components.Component]:
        """The settings of an inspection: the model, then the parameters of `session.arguments`."""
        return [
            self.model, self.category, self.alpha, self.lowest, self.highest, self.count, self.draws,
            self.tile,
        ]  # fmt: skip

    @property
    def limits(self) -> list[gr.components.Component]:
        """In the order of `diffad.controls()` in page.js."""
        return [self.threshold, self.rate, self.look, self.look_rate]


def categories(inspector: Inspector) -> list[tuple[str, str]]:
    """The choices of the category list, as (label, value)."""
    return [("recognise it", AUTO), *((name, name) for name in inspector.categories)]


def lay_out(inspectors: Mapping[str, Inspector], samples: Sequence[Path], keeps: bool = False) -> Components:
    """Creates the components inside the current `gr.Blocks`.

    Args:
        inspectors: by the names that people choose from; the first is the default.
        samples: pictures offered beside the upload.
        keeps: whether there is a history.
    """
    first = next(iter(inspectors.values()))
    carried: dict[str, Any] = {name: gr.JSON(visible="hidden") for name in ("choices", "link", "turn")}
    with gr.Row(elem_id="page", equal_height=False):
        with gr.Column(elem_id="controls", min_width=280):
            picture = _picture(inspectors, samples, keeps)
            scoring = _scoring(first.timesteps)
            repair = _repair_settings()
        with gr.Column(elem_id="results"):
            with gr.Row(elem_classes="card", elem_id="verdict-card", equal_height=False):
                verdict = html(
                    None,
                    html_template=cards.verdict(WAITING),
                    elem_id="verdict",
                    js_on_load="diffad.verdict(element)",
                )
                with gr.Column(elem_id="take-away"):
                    download = {
                        "all": button("Download all", elem_id="download-all"),
                        "report": _download("report"),
                    }
                correction = html(
                    None, html_template=cards.CORRECTION, elem_id="correction", visible=keeps,
                    js_on_load="diffad.correction(element, props, watch, trigger)  // 'submit'",
                )  # fmt: skip
            with gr.Row(elem_id="middle", equal_height=True):
                view = _view(download)
                _evidence()
            player = _repair(download)
    file = gr.File(visible="hidden", elem_id="file", interactive=False)
    return Components(
        **carried, **picture, **scoring, **repair, verdict=verdict, correction=correction, **view,
        player=player, download=download, file=file,
    )  # fmt: skip


def _download(kind: str) -> gr.Button:
    return button((downloads.OF_INSPECTION | downloads.OF_FILM)[kind], elem_id=f"download-{kind}")


def _picture(inspectors: Mapping[str, Inspector], samples: Sequence[Path], keeps: bool) -> dict[str, Any]:
    names = list(inspectors)
    with gr.Column(elem_classes="card", elem_id="picture-card"):
        html("<h3>Picture</h3>")
        return {
            "picture": picture_upload(
                show_label=False, height=176, sources=["upload", "webcam", "clipboard"], buttons=[],
                elem_id="picture", placeholder="Drop a picture here\nor click to choose",
                alt_text="The inspected picture", webcam_options=gr.WebcamOptions(mirror=False),
            ),
            "cancel": gr.Button("Cancel", size="sm", elem_id="cancel", min_width=60),
            "samples": html(
                cards.thumbnails(samples), elem_id="samples", visible=bool(samples),
                js_on_load="diffad.samples(element, props, watch, trigger)  // 'select'",
            ),
            "model": choice(
                names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model"
            ),
            "category": choice(
                categories(inspectors[names[0]]), value=AUTO, label="Category", elem_id="category"
            ),
            "keep": gr.Checkbox(
                True, label="Keep in history", visible=keeps, elem_id="keep", container=False
            ),
        }  # fmt: skip


def _scoring(timesteps: Sequence[int]) -> dict[str, Any]:
    with gr.Column(elem_classes="card", elem_id="scoring-card"):
        html("<h3>Scoring</h3>")
        made = {
            "alpha": number(
                0, 1, ALPHA, step=0.01, label="α, pixel against feature", elem_id="alpha",
                info="0 features only, 1 pixels only",
            ),
            "threshold": number(
                0, SCALE_TOP, THRESHOLD, step=0.01, label="Threshold", elem_id="threshold",
                info="or drag its line in the histogram",
            ),
            "rate": choice(RATES, value=RATE, label="Good parts rejected", elem_id="rate"),
            "look": number(
                0, SCALE_TOP, LOOK_LIMIT, step=0.01, label="Look limit", elem_id="look",
                info="above it: worth a look",
            ),
            "look_rate": choice(
                LOOK_RATES, value=LOOK_RATE, label="Good parts above it", elem_id="look-rate"
            ),
        }  # fmt: skip
        with gr.Row(elem_classes="pair"):
            made["lowest"] = number(
                0, 999, timesteps[0], step=1, label="Lowest t", elem_id="lowest", info="fine texture"
            )
            made["highest"] = number(
                0, 999, timesteps[-1], step=1, label="Highest t", elem_id="highest", info="large shapes"
            )
        with gr.Row(elem_classes="pair"):
            made["count"] = number(
                1, 12, len(timesteps), step=1, label="How many", elem_id="count", info="noise levels"
            )
            made["draws"] = number(1, 8, 1, step=1, label="Draws", elem_id="draws", info="averaged per level")
        made["tile"] = choice(TILES, value=AUTO, label="Cut into tiles", elem_id="tile")
    return made


def _repair_settings() -> dict[str, Any]:
    with gr.Column(elem_classes="card", elem_id="repair-settings"):
        html("<h3>Repair</h3>")
        with gr.Row(elem_classes="pair"):
            steps = number(
                10, 500, DEFAULTS.steps, step=10, label="Steps", elem_id="steps", info="in each round"
            )
            every = number(
                1, 20, DEFAULTS.denoise_every, step=1, label="Denoise every", elem_id="every", info="steps"
            )
        with gr.Row(elem_classes="pair"):
            step_size = number(
                0.005, 0.1, DEFAULTS.step_size, step=0.005, label="Step size", elem_id="step-size",
                info="change in each step",
            )  # fmt: skip
            level = number(
                20, 900, DEFAULTS.timestep, step=10, label="From t", elem_id="level", info="starting noise"
            )
        with gr.Row(elem_classes="buttons"):
            repair = gr.Button("Repair", variant="primary", elem_id="repair", interactive=False, min_width=60)
            stop = gr.Button("Stop", elem_id="stop", interactive=False, min_width=50)
            method = choice(
                [("defects", "weighed"), ("all of it", "paper")], value=DEFAULTS.method, label="Where",
                elem_id="method", container=False, min_width=110,
            )  # fmt: skip
    return {
        "steps": steps, "every": every, "step_size": step_size, "level": level, "repair": repair,
        "stop": stop, "method": method,
    }  # fmt: skip


def _view(download: dict[str, gr.Button]) -> dict[str, Any]:
    """The picture with its map. Adds its buttons to `download`."""
    with gr.Column(elem_classes="card", elem_id="view-card"):
        with gr.Row(elem_classes="card-head"):
            html("<h3>Picture and map</h3>")
            html('<span class="quiet" aria-hidden="true">opacity</span>', elem_id="opacity-name")
            opacity = number(0, 1, OPACITY, step=0.05, label="opacity", elem_id="opacity", container=False)
            colormap = choice(
                list(COLORMAPS), value=COLORMAPS[0], label="colours", container=False, elem_id="colormap",
                min_width=80,
            )  # fmt: skip
        view = html(
            None, html_template=cards.VIEWER, elem_id="view", colormaps=cards.colormaps(),
            verdicts=VERDICTS, shares=SHARES, rule=RULE,
            js_on_load="diffad.viewer(element, props, watch, trigger)  // 'select'",
        )  # fmt: skip
        html(None, html_template=cards.REGIONS, elem_id="regions", js_on_load="diffad.regions(element)")
        with gr.Row(elem_classes="downloads"):
            for kind in (kind for kind in downloads.OF_INSPECTION if kind not in download):
                download[kind] = _download(kind)
    return {"opacity": opacity, "colormap": colormap, "view": view}


def _evidence() -> None:
    with gr.Column(elem_classes="card", elem_id="evidence-card"):
        html("<h3>Evidence: differences from the model's prediction, by noise level</h3>")
        with gr.Row(elem_id="evidence-row", equal_height=False):
            html(
                None,
                html_template=cards.empty_sheet(),
                elem_id="evidence",
                js_on_load="diffad.evidence(element)",
            )
            html(None, html_template=cards.SCALE, elem_id="scale", js_on_load="diffad.scale(element)")
        html(None, html_template=cards.PROBE, elem_id="probe", js_on_load="diffad.probe(element)")


def _repair(download: dict[str, gr.Button]) -> gr.HTML:
    """The repair's player. Adds its buttons to `download`."""
    with gr.Column(elem_classes="card", elem_id="repair-card"):
        html("<h3>Repair: from this part to a good one</h3>")
        player = html(
            downloads.no_film(),
            html_template=cards.PLAYER,
            elem_id="player",
            js_on_load="diffad.player(element, props, watch)",
        )
        with gr.Row(elem_classes="downloads", elem_id="film-downloads"):
            for kind in downloads.OF_FILM:
                download[kind] = _download(kind)
    return player
