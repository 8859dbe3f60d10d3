"""The Inspect tab on a phone, for people who see or hear otherwise, and by its address."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import at_rest, visiting
from page_steps import (
    fetch,
    inspect,
    move,
    now,
    score,
    settled,
    stands_at,
    upload,
)
from PIL import Image
from playwright.sync_api import Browser, Page, expect


def test_a_number_out_of_range_never_leaves_its_box(page: Page):
    """Nor does an empty one: the page computes with what the box shows in the end."""
    inspect(page, "gear_good")
    alpha = page.locator("#alpha input[type=number]")
    for typed, end, stands in (("7", "Tab", 1), ("", "Tab", 1), ("0.3", "Enter", 0.3), ("-2", "Enter", 0)):
        alpha.fill(typed)
        alpha.press(end)
        stands_at(page, "#alpha", stands)
        page.wait_for_function("alpha => diffad.choices().alpha === alpha", arg=stands)
    page.wait_for_function("location.search.includes('alpha=0')")
    highest = page.locator("#highest input[type=number]")
    highest.fill("5000")
    highest.press("Enter")
    expect(highest).to_have_value("999")
    page.wait_for_function("diffad.state().part.timesteps?.at(-1) === 999")
    count = page.locator("#count input[type=number]")
    count.fill("")
    count.press("Tab")
    expect(count).to_have_value("3")


def test_a_long_part_can_be_looked_at(page: Page, tmp_path: Path):
    for wide, high in ((60, 2000), (3000, 60)):
        path = tmp_path / f"{wide}.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (high, wide, 3), np.uint8)).save(path)
        upload(page, path)
        page.wait_for_function("size => diffad.state().part?.size?.join() === size", arg=f"{wide},{high}")
        settled(page)
        assert page.locator("#view .stage").bounding_box()["height"] >= 160
        cell = page.locator("#evidence .cell").first
        box = cell.bounding_box()
        assert box["width"] >= 20 and 20 <= box["height"] <= 180
        cell.click(position={"x": 0.5 * box["width"], "y": 0.75 * box["height"]})
        assert now(page)["point"] == pytest.approx([0.5, 0.75], abs=0.06)
        page.keyboard.press("Escape")


def test_the_address_holds_the_choices(page: Page, browser: Browser, url: str):
    inspect(page, "gear_corrosion")
    move(page, "#alpha", 0.8)
    move(page, "#threshold", 4.5)
    move(page, "#look", 2.25)
    page.locator("#evidence button[data-t='20']").click()
    page.locator("#colormap input").click()
    page.get_by_role("option", name="viridis").click()
    page.wait_for_function(
        "['alpha', 'threshold', 'look', 'off', 'colormap'].every(key => location.search.includes(key))"
    )
    mine = now(page)
    with visiting(browser, page.url) as other:
        expect(other.locator(".verdict h2")).to_be_visible()
        theirs = now(other)
        for key in ("score", "threshold", "look", "alpha", "timesteps", "colormap", "own"):
            assert theirs[key] == mine[key], key
        expect(other.locator("#alpha input[type=number]")).to_have_value("0.8")
        expect(other.locator("#rate input")).to_have_value("own score")
        expect(other.locator("#look-rate input")).to_have_value("own score")
    # Nonsense in an address is left out.
    nonsense = "?alpha=lots&model=none&category=none&count=99&sample=gear_good_0.png&colormap=mud"
    with visiting(browser, url + nonsense) as other:
        expect(other.locator("#count input[type=number]")).to_have_value("12")
        expect(other.locator("#alpha input[type=number]")).to_have_value("0.5")
        expect(other.locator("body")).not_to_contain_text("Error")


def test_two_people_do_not_disturb_each_other(browser: Browser, url: str, page: Page, tmp_path: Path):
    inspect(page, "gear_corrosion")
    mine = score(page)
    with visiting(browser, url) as other:
        inspect(other, "gear_good")
        move(other, "#alpha", 0)
        assert score(other) != mine and score(page) == mine
        reports = [json.loads(fetch(who, "json", tmp_path).read_text()) for who in (page, other)]
    assert [report["alpha"] for report in reports] == [0.5, 0]
    assert reports[0]["is_anomalous"] and not reports[1]["is_anomalous"]


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture
def phone(browser: Browser, url: str) -> Iterator[Page]:
    with visiting(browser, url, **PHONE) as page:
        yield page


def test_a_phone_shows_everything(phone: Page):
    inspect(phone, "gear_corrosion")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    cut = phone.evaluate(
        """() => [...document.querySelectorAll("#page :is(h3, p, label, .corner, #opacity-name span)")]
            .filter(e => e.offsetParent && (e.getBoundingClientRect().right > 390
                || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow !== "visible")
        ).map(e => e.textContent)"""
    )
    assert cut == []
    expect(phone.locator("#opacity-name")).to_be_visible()
    assert phone.locator("#picture-card").bounding_box()["x"] == 12
    phone.locator("#evidence .cell").first.tap()
    expect(phone.locator("#enlarged")).to_be_visible()
    phone.locator("#enlarged .close").tap()
    expect(phone.locator("#enlarged")).not_to_be_visible()


def test_two_fingers_zoom(phone: Page):
    inspect(phone, "gear_corrosion")
    stage = phone.locator("#view .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = phone.context.new_cdp_session(phone)

    def fingers(kind: str, *places: float) -> None:
        points = [{"x": x + place, "y": y, "id": number} for number, place in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def pinch(start: float, end: float) -> None:
        fingers("touchStart", -start, start)
        for apart in np.linspace(start, end, 9):
            fingers("touchMove", -float(apart), float(apart))
        fingers("touchEnd")

    pinch(30, 90)
    expect(stage).to_have_class(re.compile("zoomed"))
    assert phone.evaluate("visualViewport.scale") == 1  # the picture, not the page
    pinch(120, 20)
    expect(stage).not_to_have_class(re.compile("zoomed"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, url: str, scheme: str):
    """No serious or critical violation of WCAG 2.1 A and AA that axe-core finds, on both tabs."""
    with visiting(browser, url, color_scheme=scheme) as page:
        inspect(page, "gear_corrosion")
        found = violations(page)
        page.evaluate("() => diffad.decide({ threshold: diffad.state().result.score + 1 })")
        expect(page.locator(".verdict.look")).to_be_visible()
        found |= violations(page)
        page.locator("#evidence .cell").first.click()
        expect(page.locator("#enlarged")).to_be_visible()
        found |= violations(page)
        page.keyboard.press("Escape")
        page.get_by_role("tab", name="Batch").click()
        expect(page.locator("#batch-page")).to_be_visible()
        found |= violations(page)
        assert found == set()


def violations(page: Page) -> set[str]:
    at_rest(page)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    answer = Axe().run(page, options=rules).response
    return {
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['html'][:120]}"
        for rule in answer["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    }
