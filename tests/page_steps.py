"""What the tests of the Inspect tab do there, and wait for."""

from __future__ import annotations

import re
import time
from pathlib import Path

from conftest import PATIENCE
from playwright.sync_api import Locator, Page, expect


def upload(page: Page, path: Path) -> None:
    page.locator("#picture input[type=file]").set_input_files(path)


def score(page: Page) -> float:
    return float(page.locator("#verdict .verdict-slot").get_attribute("data-score"))


def inspect(page: Page, sample: str) -> None:
    """Opens a sample by the beginning of its file's name, and waits until its verdict is drawn."""
    page.locator(f"button[data-sample^='{sample}']").first.click()
    page.wait_for_function("name => diffad.state().part?.link?.sample?.startsWith(name)", arg=sample)
    settled(page)


def now(page: Page) -> dict:
    """The browser's choices and result, without the maps."""
    return page.evaluate(
        """() => {
            const { result, choices, part } = diffad.state();
            const { score, threshold, look, rate, lookRate, verdict, regions } = result;
            return { ...diffad.choices(), score, threshold, look, rate, lookRate, verdict, regions,
                good: [...result.by.good], size: part.size, point: choices.point };
        }"""
    )


def settled(page: Page) -> None:
    """Waits until the browser's result is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def move(page: Page, control: str, value: float) -> None:
    """Drags a slider there, as the browser reports it: input while moving, then release."""
    page.locator(f"{control} input[type=range]").evaluate(
        """(slider, value) => {
            slider.value = value;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
            slider.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
        }""",
        value,
    )
    stands_at(page, control, value)
    page.wait_for_function(  # Gradio passes it on with a delay
        "([name, value]) => !(name in diffad.choices()) || diffad.choices()[name] === value",
        arg=[control[1:], value],
    )
    settled(page)


def stands_at(page: Page, control: str, value: float) -> None:
    """Waits until a control's slider shows a value, to two digits."""
    page.wait_for_function(
        "([field, value]) => Math.abs(document.querySelector(field).value - value) < 0.006",
        arg=[f"{control} input[type=number]", value],
    )


def shows(page: Page, sample: str) -> None:
    """Waits until picture, mark and verdict are this sample's."""
    page.wait_for_function("name => diffad.state().part?.link?.sample === name", arg=sample)
    expect(page.locator("#samples button.on")).to_have_attribute("data-sample", sample)
    expect(page.locator("#picture img")).to_have_attribute("src", re.compile(re.escape(sample)))


def samples(page: Page) -> list[str]:
    return page.locator("#samples button").evaluate_all("all => all.map(b => b.dataset.sample)")


def idle(page: Page) -> None:
    """Waits until the page's newest request is answered and the server works on nothing."""
    page.wait_for_function("diffad.newest(diffad.state().part)")
    in_a_row, deadline = 0, time.monotonic() + PATIENCE / 1000
    while in_a_row < 3:  # between an event and the next one that it starts, the queue is empty for a moment
        queue = page.evaluate("fetch('health').then(answer => answer.json()).then(({ queue }) => queue)")
        in_a_row = 0 if any(queue.values()) else in_a_row + 1
        assert time.monotonic() < deadline, f"the server still works: {queue}"
        page.wait_for_timeout(100)
    settled(page)


def stays_at(page: Page, sample: str) -> None:
    """The sample is shown in the end, and no late answer takes its place."""
    shows(page, sample)
    idle(page)
    shows(page, sample)


def drawn(page: Page, canvases: str) -> list[int]:
    """The number of colours on each canvas; an empty one has 1."""
    return page.locator(canvases).evaluate_all(
        """all => all.map(canvas => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(data.buffer)).size;
        })"""
    )


def coloured(page: Page, canvas: str, colours: int) -> None:
    """Waits until a canvas has more than this many colours."""
    page.wait_for_function(
        """([canvas, colours]) => {
            canvas = document.querySelector(canvas);
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            return new Set(new Uint32Array(data.buffer)).size > colours;
        }""",
        arg=[canvas, colours],
    )


def loaded(pictures: Locator, count: int) -> None:
    """Waits until this many <img> exist, each with a decoded picture."""
    expect(pictures).to_have_count(count)
    for i in range(count):
        expect(pictures.nth(i)).not_to_have_js_property("naturalWidth", 0)


def fetch(page: Page, kind: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(f"#download-{kind}").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def drag(page: Page, limit: str, by: float) -> None:
    """Drags a limit's line by some px, as far as it goes."""
    knob = page.locator(f".limit-grip.{limit} .knob").bounding_box()
    x, y = knob["x"] + knob["width"] / 2, knob["y"] + 4
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=4)
    page.mouse.up()
    settled(page)
