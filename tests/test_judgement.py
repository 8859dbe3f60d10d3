"""The browser judges as Python does: the page's scripts in a real browser, with parts as the server sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

import diffad
from diffad.inspection import Inspection
from diffad.inspector import Inspector
from diffad.method.calibration import RULE, Calibration
from diffad.pictures import drawing
from diffad.ui import cards
from diffad.ui.layout import RATE, SHARES
from diffad.verdicts import LOOK_RATE

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(diffad.__file__).parent / "ui" / "static"
ALL = (20, 200, 400)
PICTURES = {  # sample, width and height that it is resized to, tile, and by how much the score may differ
    "whole": ("carbon_fibre_broken_weave", (256, 256), None, 1e-3),
    "wide": ("gear_corrosion", (256, 161), None, 1e-3),
    "larger than the model": ("chip_solder_bridge", (480, 640), None, 1e-3),
    "smaller than the model": ("chip_bent_lead", (64, 64), None, 1e-3),
    "tiled": ("leather_cut", (300, 300), 200, 1e-3),
    "tiled on a finer grid": ("leather_cut", (600, 256), 256, 0.05),
}
CHOICES = [  # α, timesteps, threshold, look limit
    (0.5, ALL, None, None), (0.5, ALL, 4.51, None), (0.5, ALL, 1.94, None), (0.5, ALL, 0.0, None),
    (0.5, ALL, -1.0, None), (0.5, ALL, -1e6, None), (0.5, ALL, 1e9, None), (0.5, ALL, 1e9, 4.51),
    (0.5, ALL, 1e9, -1.0), (0.5, ALL, 1e9, 1e9), (0.5, ALL, None, 1e9), (0.5, ALL, 2.0, 2.0),
    (0.0, (200,), None, None),
    (0.0, ALL, 3.0, 1.0), (1.0, (20, 400), None, None), (1.0, (20,), 2.0, None), (0.9, (400,), -0.5, 1.0),
]  # fmt: skip
RATES = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.3)


def with_few_good_parts(calibration: Calibration, count: int) -> Calibration:
    return replace(calibration, good_maps=calibration.good_maps[:count])


CALIBRATIONS: dict[str, Callable[[Calibration], Calibration]] = {
    "changed copies unknown": lambda calibration: replace(calibration, changed=None),
    "changed copies score higher": lambda calibration: replace(calibration, changed=(2.5, 1.1)),
    "changed copies vary more": lambda calibration: replace(calibration, changed=(0.3, 4.0)),
    "changed copies score lower": lambda calibration: replace(calibration, changed=(-1.0, 0.8)),
    "few good parts": lambda calibration: replace(with_few_good_parts(calibration, 4), changed=(1.5, 1.5)),
    "one good part": lambda calibration: replace(with_few_good_parts(calibration, 1), changed=(1.5, 1.5)),
}


@pytest.fixture(scope="module")
def browsed(browser: Browser) -> Iterator[Page]:
    """A page with nothing on it but the scripts that judge."""
    page = browser.new_page()
    page.route("**/*", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto("http://127.0.0.1/")
    for name in ("words", "scores", "page", "page_input", "viewer"):
        page.add_script_tag(path=SCRIPTS / f"{name}.js")
    page.evaluate(
        """props => {
            window.props = props;
            diffad.receiver(props, (name, take) => { window.news = take; }, () => {});
        }""",
        {"rule": RULE, "shares": SHARES},
    )
    yield page
    page.close()


@pytest.fixture(scope="module")
def inspect(inspector: Inspector) -> Callable[[str], Inspection]:
    """Inspects one of the PICTURES, each only once."""

    @cache
    def inspect(name: str) -> Inspection:
        sample, size, tile, _ = PICTURES[name]
        with Image.open(ROOT / "assets" / "samples" / f"{sample}.png") as picture:
            picture = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        return inspector.inspect(picture, timesteps=ALL, tile=tile)

    return inspect


def show(page: Page, inspection: Inspection) -> None:
    page.evaluate("part => { props.value = part; news(); }", cards.part(inspection, 8.0, "CPU"))


@pytest.mark.parametrize("name", PICTURES)
def test_the_browser_judges_as_python_does(browsed: Page, inspect: Callable, name: str):
    """Score, limits, verdict, rate and regions, at every α, choice of timesteps and of limits."""
    raw, near = inspect(name), PICTURES[name][-1]
    show(browsed, raw)
    shares = (0.25, 0.4, 0.6, 0.8)
    choices = CHOICES + [(0.5, ALL, share * raw.score, None) for share in shares]
    choices += [(0.5, ALL, 1.1 * raw.score, share * raw.score) for share in shares]
    inspections = [raw.fused(*choice) for choice in choices]
    assert {inspection.verdict for inspection in inspections} == {"good", "look", "anomalous"}
    assert max(len(inspection.regions) for inspection in inspections) > 2  # else there is little to compare
    for choice, inspection in zip(choices, inspections, strict=True):
        here = decided(browsed, raw, *choice)
        same_verdict(here, inspection, near)
        same_regions(here["regions"], inspection, near)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("name", ["whole", "tiled"])
def test_limits_follow_good_parts_and_their_changed_copies(
    browsed: Page, inspect: Callable, name: str, calibration: str
):
    """Threshold and its rate, however the category was calibrated."""
    raw, near = inspect(name), PICTURES[name][-1]
    raw = replace(raw, _calibration=CALIBRATIONS[calibration](raw._calibration))
    assert (raw.chances > 1) == (name == "tiled")
    show(browsed, raw)
    for alpha, timesteps in ((0.5, ALL), (0.9, (20, 400))):
        fused = raw.fused(alpha, timesteps)
        for rate in RATES:
            limits = fused.threshold_at(rate), fused.threshold_at(LOOK_RATE)
            expected = fused.fused(threshold=limits[0], look_threshold=limits[1])
            same_verdict(decided(browsed, raw, alpha, timesteps, None, None, rate), expected, near)


def test_plain_features_count_as_in_python(browsed: Page, inspect: Callable):
    """None of the bundled categories has them, so other maps stand in."""
    raw = inspect("whole")
    calibration = replace(raw._calibration, good_plain=raw._calibration.good_maps[:, 1, 0])
    raw = replace(raw, _calibration=calibration, _plain=raw._maps[ALL[0]][1])
    show(browsed, raw)
    for alpha, timesteps, threshold, look in CHOICES:
        expected = raw.fused(alpha, timesteps)
        limits = expected.threshold_at(), expected.threshold_at(LOOK_RATE)
        expected = raw.fused(
            alpha, timesteps, limits[0] if threshold is None else threshold,
            limits[1] if look is None else look,
        )  # fmt: skip
        here = decided(browsed, raw, alpha, timesteps, threshold, look)
        same_verdict(here, expected, 1e-3)
        same_regions(here["regions"], expected, 1e-3)


def test_changed_copies_raise_the_threshold(inspect: Callable):
    """So that the comparison above means something."""
    raw = inspect("whole")
    altered = {
        name: replace(raw, _calibration=alter(raw._calibration)).threshold_at()
        for name, alter in CALIBRATIONS.items()
    }
    unknown = altered["changed copies unknown"]
    assert altered["changed copies score lower"] == unknown
    assert min(altered["changed copies score higher"], altered["changed copies vary more"]) > unknown


def decided(
    page: Page, raw: Inspection, alpha: float, timesteps: tuple[int, ...], threshold: float | None,
    look: float | None, rate: float = RATE,
) -> dict:  # fmt: skip
    chosen = [raw.computed_timesteps.index(t) for t in timesteps]
    return page.evaluate(
        """choices => {
            diffad.decide(choices);
            const { pixel, feature, fused, ...result } = diffad.state().result;
            return result;
        }""",
        {"alpha": alpha, "chosen": chosen, "rate": rate, "threshold": threshold, "look": look},
    )


def same_verdict(here: dict, inspection: Inspection, near: float) -> None:
    expected = inspection.to_dict()
    assert here["score"] == pytest.approx(expected["score"], rel=near, abs=1e-3)
    assert here["threshold"] == pytest.approx(expected["threshold"], rel=1e-3)
    assert here["look"] == pytest.approx(expected["look_threshold"], rel=1e-3)
    assert here["mapLimit"] == pytest.approx(inspection.map_limit, rel=max(near, 1e-3))
    assert here["rate"] == pytest.approx(inspection.rate, rel=1e-2, abs=1e-6)
    assert here["bounds"] == pytest.approx(inspection.rate_bounds, rel=1e-2, abs=1e-6)
    look_rate = inspection.rate_above(inspection.look_threshold)
    assert here["lookRate"] == pytest.approx(look_rate, rel=1e-2, abs=1e-6)
    assert here["weight"] == pytest.approx(expected["pixel_weight"])
    assert here["verdict"] == expected["verdict"]


def same_regions(here: list[dict], inspection: Inspection, near: float) -> None:
    expected = [region.to_dict() for region in inspection.regions]
    if near > 0.01:  # on a grid coarser than Python's the smallest regions may split or merge
        assert len(here) == pytest.approx(len(expected), rel=2 * near, abs=1)
        return
    assert len(here) == len(expected)
    height, width = inspection.image.shape[:2]
    cell = max(1.0, max(height, width) / max(inspection._tiling.shape))  # px of the picture
    exact = (height, width) == inspection._tiling.shape
    for region in here:
        apart = [np.abs(np.subtract(region["box"], other["box"])).max() for other in expected]
        other = expected.pop(int(np.argmin(apart)))
        assert min(apart) <= (1 if exact else 2 * cell)
        around = 1 if exact else cell * (region["box"][2] + region["box"][3] + 4 * cell)
        assert region["area"] == pytest.approx(other["area"], abs=around, rel=1e-3)
        assert region["peak"] == pytest.approx(other["peak"], rel=0.02 + near, abs=1e-2)
        assert region["area"] >= 0.9 * inspection.smallest_region


@pytest.mark.parametrize("threshold", [5.0, 0.0, -1.0, -1e6, 1e9])
def test_the_browser_paints_fully_what_lies_above_a_threshold_of_any_sign(browsed: Page, threshold: float):
    """As `drawing.overlay` does, and nothing of what lies far below."""
    unit = max(abs(threshold), 1.0)
    values = [threshold + unit * step for step in (-2.0, -0.51, -0.3, 0.001, 0.5, 2.0)]
    fading = "([limit, values]) => values.map(diffad.fading(limit, 0.7))"
    opacities = browsed.evaluate(fading, [threshold, values])
    assert opacities[:2] == [0, 0] and opacities[3:] == [pytest.approx(0.7)] * 3
    black = np.zeros((1, 6, 3), np.uint8)
    painted = drawing.overlay(black, np.array([values]), 8, threshold, 0.7, contour=False)
    whole = drawing.heatmap(np.array([values]), 8)[0].astype(float)
    for opacity, shown, full in zip(opacities, painted[0], whole):
        assert shown == pytest.approx(opacity * full, abs=1)
