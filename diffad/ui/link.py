"""Links: the page's address holds its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad.inspector import SCALE_TOP
from diffad.pictures.drawing import COLORMAPS
from diffad.ui.layout import (
    ALPHA,
    AUTO,
    LOOK_LIMIT,
    LOOK_RATES,
    OPACITY,
    RATE,
    RATES,
    THRESHOLD,
    TILES,
    Components,
    categories,
)
from diffad.verdicts import LOOK_RATE

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector


def controls_of(
    link: Mapping[str, Any], inspectors: Mapping[str, Inspector], p: Components
) -> dict[gr.components.Component, Any]:
    """The controls' values for a link. Invalid parameters are ignored.

    Args:
        link: the parameters of the address, by name.
        inspectors: by their names on the page; the first is the default.
        p: the controls.
    """
    link = {key: value for key, value in link.items() if isinstance(value, str)}
    model: str = link.get("model", "")
    if model not in inspectors:
        model = next(iter(inspectors))
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

    category = among("category", inspector.categories, AUTO)
    return {
        p.model: model,
        p.category: gr.Dropdown(choices=categories(inspector), value=category),
        p.alpha: within("alpha", 0, 1, ALPHA),
        p.rate: share("threshold", "rate", RATES, RATE),
        p.threshold: slider("threshold", THRESHOLD),
        p.look_rate: share("look", "look-rate", LOOK_RATES, LOOK_RATE),
        p.look: slider("look", LOOK_LIMIT),
        p.opacity: within("opacity", 0, 1, OPACITY),
        p.colormap: among("colormap", COLORMAPS, COLORMAPS[0]),
        p.lowest: int(within("low", 0, 999, inspector.timesteps[0])),
        p.highest: int(within("high", 0, 999, inspector.timesteps[-1])),
        p.count: int(within("count", 1, 12, len(inspector.timesteps))),
        p.draws: int(within("draws", 1, 8, 1)),
        p.tile: among("tile", [tile for _, tile in TILES], AUTO),
    }


def of_result(
    raw: Inspection, settings: Sequence[Any], path: str | None, inspectors: Mapping[str, Inspector],
    samples: Sequence[Path],
) -> dict[str, Any]:  # fmt: skip
    """The parameters of a link to a result; page.js adds the settings that only the browser has.

    Args:
        raw: the result.
        settings: the values of `Components.settings` that it was computed with.
        path: the inspected picture.
        inspectors: by their names on the page; the first is the default and left out of links.
        samples: the bundled pictures, the only ones that a link can name.
    """
    model, category, _, lowest, highest, count, draws, tile = settings
    usual = raw.timesteps == inspectors[model].timesteps
    return {
        "model": model if model != next(iter(inspectors)) else None,
        "category": category,
        "low": None if usual else int(lowest),
        "high": None if usual else int(highest),
        "count": None if usual else int(count),
        "draws": int(draws),
        "tile": tile,
        "sample": _sample(path, samples),
    }


def _sample(path: str | None, samples: Sequence[Path]) -> str | None:
    """The name of the sample that the picture is a copy of, if any."""
    picture = Path(path or "")
    sample = next((sample for sample in samples if sample.name == picture.name), None)
    return sample.name if sample and sample.read_bytes() == picture.read_bytes() else None
