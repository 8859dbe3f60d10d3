"""The inspection page's components, in the order in which they stand on it. What they do is in `page.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gradio as gr

from diffad.inspection import LOOK_RATE, VERDICTS
from diffad.inspector import SCALE_TOP
from diffad.method.repair_options import RepairOptions
from diffad.pictures.drawing import COLORMAPS
from diffad.ui import cards, downloads
from diffad.ui.files import picture_upload

if TYPE_CHECKING:
    from diffad.inspector import Inspector

USUAL = RepairOptions()
AUTO = "auto"
WAITING = "Choose a sample or drop a picture."
CANCELLED = "Cancelled. Choose another picture, or larger tiles."
RATES = [("1 in 20", 0.05), ("1 in 100", 0.01), ("1 in 1000", 0.001), ("own score", 0)]
LOOK_RATES = [("1 in 5", 0.2), ("1 in 10", LOOK_RATE), ("1 in 20", 0.05), ("own score", 0)]
TILES = [("automatic", "auto"), ("none", "whole"), *((f"{px} px", str(px)) for px in (256, 512, 1024))]

html = partial(gr.HTML, apply_default_css=False)
button = partial(gr.Button, size="sm", interactive=False, min_width=60)
number = partial(gr.Slider, buttons=[], min_width=110)
choice = partial(gr.Dropdown, filterable=False)


def categories(inspector: Inspector) -> list[tuple[str, str]]:
    return [("recognise it", AUTO), *((name, name) for name in inspector.categories)]


def lay_out(inspectors: Mapping[str, Inspector], samples: Sequence[Path]) -> SimpleNamespace:
    """Makes the components inside the current Blocks; returns them by name.

    choices, link and turn are how the browser's own state travels with an event (`page.js` fills them in).
    """
    first = next(iter(inspectors))
    p = SimpleNamespace(download={})
    p.choices, p.link, p.turn = (gr.JSON(visible="hidden") for _ in range(3))
    with gr.Row(elem_id="page", equal_height=False):
        with gr.Column(elem_id="controls", min_width=280):
            _picture(p, inspectors, samples)
            _scoring(p, inspectors[first].timesteps)
            _repair_settings(p)
        with gr.Column(elem_id="results"):
            with gr.Row(elem_classes="card", elem_id="verdict-card", equal_height=False):
                p.verdict = html(
                    None, html_template=cards.verdict(WAITING), elem_id="verdict",
                    js_on_load="diffad.verdict(element)",
                )
                with gr.Column(elem_id="take-away"):
                    p.download["all"] = button("Download all", elem_id="download-all")
                    p.download["report"] = button(
                        downloads.OF_INSPECTION["report"], elem_id="download-report"
                    )
            with gr.Row(elem_id="middle", equal_height=True):
                _view(p)
                _evidence()
            _repair(p)
    p.file = gr.File(visible="hidden", elem_id="file", interactive=False)
    return p


def _picture(p: SimpleNamespace, inspectors: Mapping[str, Inspector], samples: Sequence[Path]) -> None:
    with gr.Column(elem_classes="card", elem_id="picture-card"):
        html("<h3>Picture</h3>")
        p.picture = picture_upload(
            show_label=False, height=176, sources=["upload", "webcam", "clipboard"], buttons=[],
            elem_id="picture", placeholder="Drop a picture here\nor click to choose",
            alt_text="The inspected picture", webcam_options=gr.WebcamOptions(mirror=False),
        )
        p.cancel = gr.Button("Cancel", size="sm", elem_id="cancel", min_width=60)
        p.samples = html(
            cards.thumbnails(samples), elem_id="samples", visible=bool(samples),
            js_on_load="diffad.samples(element, props, watch, trigger)  // 'select'",
        )
        names = list(inspectors)
        p.model = choice(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
        p.category = choice(
            categories(inspectors[names[0]]), value=AUTO, label="Category", elem_id="category"
        )


def _scoring(p: SimpleNamespace, timesteps: Sequence[int]) -> None:
    with gr.Column(elem_classes="card", elem_id="scoring-card"):
        html("<h3>Scoring</h3>")
        p.alpha = number(
            0, 1, 0.5, step=0.01, label="α, pixel against feature", elem_id="alpha",
            info="0 features only, 1 pixels only",
        )
        p.threshold = number(
            0, SCALE_TOP, 3, step=0.01, label="Threshold", elem_id="threshold",
            info="or drag its line among the good parts",
        )
        p.rate = choice(RATES, value=0.01, label="Good parts rejected", elem_id="rate")
        p.look = number(
            0, SCALE_TOP, 2.5, step=0.01, label="Look limit", elem_id="look",
            info="from here to the threshold: look at it",
        )
        p.look_rate = choice(LOOK_RATES, value=LOOK_RATE, label="Good parts above it", elem_id="look-rate")
        with gr.Row(elem_classes="pair"):
            p.lowest = number(
                0, 999, timesteps[0], step=1, label="Lowest t", elem_id="lowest", info="fine texture"
            )
            p.highest = number(
                0, 999, timesteps[-1], step=1, label="Highest t", elem_id="highest", info="large shapes"
            )
        with gr.Row(elem_classes="pair"):
            p.count = number(
                1, 12, len(timesteps), step=1, label="How many", elem_id="count", info="noise levels"
            )
            p.draws = number(1, 8, 1, step=1, label="Draws", elem_id="draws", info="averaged per level")
        p.tile = choice(TILES, value=AUTO, label="Cut into tiles", elem_id="tile")


def _repair_settings(p: SimpleNamespace) -> None:
    with gr.Column(elem_classes="card", elem_id="repair-settings"):
        html("<h3>Repair</h3>")
        with gr.Row(elem_classes="pair"):
            p.steps = number(
                10, 500, USUAL.steps, step=10, label="Steps", elem_id="steps", info="in each round"
            )
            p.every = number(
                1, 20, USUAL.denoise_every, step=1, label="Denoise every", elem_id="every", info="steps"
            )
        with gr.Row(elem_classes="pair"):
            p.step_size = number(
                0.005, 0.1, USUAL.step_size, step=0.005, label="Step size", elem_id="step-size",
                info="change in each step",
            )
            p.level = number(
                20, 900, USUAL.timestep, step=10, label="From t", elem_id="level", info="noise to begin with"
            )
        with gr.Row(elem_classes="buttons"):
            p.repair = gr.Button(
                "Repair", variant="primary", elem_id="repair", interactive=False, min_width=60
            )
            p.stop = gr.Button("Stop", elem_id="stop", interactive=False, min_width=50)
            p.method = choice(
                [("defects", "weighed"), ("all of it", "paper")], value=USUAL.method, label="Where",
                elem_id="method", container=False, min_width=110,
            )


def _view(p: SimpleNamespace) -> None:
    with gr.Column(elem_classes="card", elem_id="view-card"):
        with gr.Row(elem_classes="card-head"):
            html("<h3>Picture and map</h3>")
            html('<span class="quiet" aria-hidden="true">opacity</span>', elem_id="opacity-name")
            p.opacity = number(0, 1, 0.7, step=0.05, label="opacity", elem_id="opacity", container=False)
            p.colormap = choice(
                list(COLORMAPS), value=COLORMAPS[0], label="colours", container=False, elem_id="colormap",
                min_width=80,
            )
        p.view = html(
            None, html_template=cards.VIEWER, elem_id="view", colormaps=cards.colormaps(),
            verdicts=VERDICTS, look_rate=LOOK_RATE,
            js_on_load="diffad.viewer(element, props, watch, trigger)  // 'select'",
        )
        html(None, html_template=cards.REGIONS, elem_id="regions", js_on_load="diffad.regions(element)")
        with gr.Row(elem_classes="downloads"):
            for kind in (kind for kind in downloads.OF_INSPECTION if kind not in p.download):
                p.download[kind] = button(downloads.OF_INSPECTION[kind], elem_id=f"download-{kind}")


def _evidence() -> None:
    with gr.Column(elem_classes="card", elem_id="evidence-card"):
        html("<h3>Evidence: what the model cannot explain, by noise level</h3>")
        with gr.Row(elem_id="evidence-row", equal_height=False):
            html(
                None, html_template=cards.empty_sheet(), elem_id="evidence",
                js_on_load="diffad.evidence(element)",
            )
            html(None, html_template=cards.SCALE, elem_id="scale", js_on_load="diffad.scale(element)")
        html(None, html_template=cards.PROBE, elem_id="probe", js_on_load="diffad.probe(element)")


def _repair(p: SimpleNamespace) -> None:
    with gr.Column(elem_classes="card", elem_id="repair-card"):
        html("<h3>Repair: from this part to a good one</h3>")
        p.player = html(
            downloads.no_film(), html_template=cards.PLAYER, elem_id="player",
            js_on_load="diffad.player(element, props, watch)",
        )
        with gr.Row(elem_classes="downloads", elem_id="film-downloads"):
            for kind, label in downloads.OF_FILM.items():
                p.download[kind] = button(label, elem_id=f"download-{kind}")
