"""How pictures reach the Inspect tab, and that it shows the last choice however quickly they follow."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import DESKTOP, visiting
from page_steps import idle, inspect, move, samples, settled, shows, stays_at, upload
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from diffad.synthetic.parts import CATEGORIES, make_part


def test_another_picture_ends_a_repair(page: Page, one_round: None):
    inspect(page, "gear_corrosion")
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "running")
    inspect(page, "gear_broken_tooth")
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")
    # A repair of this one can start at once, and no late frame of the other one shows.
    move(page, "#steps", 10)
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "done")
    caption = page.locator(".player .caption")
    expect(caption).to_contain_text("step 10")
    ended = caption.inner_text()
    idle(page)
    expect(page.locator(".player")).to_have_attribute("data-state", "done")
    expect(caption).to_have_text(ended)
    expect(page.locator("#repair")).to_be_enabled()


def test_a_repair_begun_while_another_picture_is_asked_for_does_not_stay(page: Page):
    inspect(page, "gear_corrosion")
    page.evaluate(
        """() => {
            document.querySelector("#repair").click();
            document.querySelector("button[data-sample='gear_good.png']").click();
        }"""
    )
    shows(page, "gear_good.png")
    expect(page.locator("#repair")).to_be_enabled()
    idle(page)
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")


def test_the_last_of_quick_choices_is_shown(page: Page, defective: Path):
    """Made by keys, clicks, controls and uploads, without waiting in between."""
    names = samples(page)
    page.evaluate("document.activeElement?.blur()")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    stays_at(page, names[2])
    for _ in range(2):  # counted from the last one
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    stays_at(page, names[3])

    page.evaluate(
        "names => names.forEach(n => document.querySelector(`[data-sample='${n}']`).click())", names[:6]
    )
    for value in (2, 5, 4):
        move(page, "#count", value)
    expect(page.locator("#evidence button.t-head")).to_have_count(4)
    stays_at(page, names[5])
    expect(page.locator("#evidence button.t-head")).to_have_count(4)

    page.locator(f"button[data-sample='{names[0]}']").click()
    upload(page, defective)
    page.wait_for_function("diffad.state().part?.name === 'defective'")
    page.locator(f"button[data-sample='{names[1]}']").click()
    upload(page, defective)
    page.locator(f"button[data-sample='{names[2]}']").click()
    stays_at(page, names[2])
    page.locator(f"button[data-sample='{names[1]}']").click()
    upload(page, defective)
    page.wait_for_function("diffad.state().part?.name === 'defective'")
    idle(page)
    assert page.evaluate("diffad.state().part.name") == "defective"
    expect(page.locator("#picture img")).to_have_attribute("src", re.compile("defective"))


def test_keys(page: Page):
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).not_to_be_visible()
    names = samples(page)
    for key, name in (("ArrowRight", names[0]), ("ArrowRight", names[1]), ("ArrowLeft", names[0])):
        page.keyboard.press(key)
        shows(page, name)
    # In a slider the arrow keys move the slider.
    page.locator("#alpha input[type=range]").press("ArrowRight")
    page.wait_for_function("diffad.choices().alpha === 0.51")
    shows(page, names[0])
    # It does not use other keys.
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Batch").click()
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()


def test_tab_leaves_a_list_closed(page: Page):
    for control in ("#category", "#rate"):
        page.locator(f"{control} input").focus()
        page.keyboard.press("Tab")
        expect(page.locator(f"{control} input")).not_to_be_focused()
        settled(page)
    expect(page.locator("ul[role=listbox]")).to_have_count(0)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of many gears, which takes a while in the smallest tiles."""
    path = tmp_path_factory.mktemp("parts") / "large.png"
    Image.fromarray(np.tile(make_part(CATEGORIES[0], 90_003).image, (4, 4, 1))).save(path)
    return path


def test_a_long_inspection_shows_its_progress_and_can_be_cancelled(browser: Browser, url: str, large: Path):
    with visiting(browser, f"{url}?tile=256") as page:
        expect(page.locator("#tile input")).to_have_value("256 px")
        upload(page, large)
        progress = page.locator("#picture .progress-text")
        expect(progress).to_contain_text(re.compile(r"\d+/\d+ tiles"))
        page.locator("#cancel").click()
        expect(page.locator("#verdict .empty")).to_contain_text("Cancelled")
        expect(page.locator("#cancel")).to_be_hidden()
        expect(page.locator("#download-json")).to_be_disabled()
        # Other settings take the picture up again; another picture does not wait for it.
        page.locator("#draws input[type=range]").press("ArrowRight")
        expect(progress).to_contain_text(re.compile(r"\d+/\d+ tiles"))
        page.locator("button[data-sample='gear_good.png']").click()
        stays_at(page, "gear_good.png")


def test_a_pasted_picture_is_inspected(browser: Browser, url: str):
    with visiting(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate(
            """async () => {
                const canvas = Object.assign(document.createElement("canvas"), { width: 96, height: 96 });
                canvas.getContext("2d").drawImage(document.querySelector("#samples img"), 0, 0, 96, 96);
                const blob = await new Promise(done => canvas.toBlob(done, "image/png"));
                await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
            }"""
        )
        page.get_by_label("Paste from clipboard").click()
        page.wait_for_function("diffad.state().part?.name === 'clipboard'")
        page.keyboard.press("Control+v")
        page.wait_for_function("diffad.state().part?.name === 'image'")
        assert page.evaluate("diffad.state().part.size") == [96, 96]


def test_a_camera_takes_a_picture(browser: Browser, url: str):
    context = browser.new_context(viewport=DESKTOP, permissions=["camera"])  # Gradio logs a 404 of its own
    page = context.new_page()
    page.goto(f"{url}?tile=whole")
    expect(page.locator("#tile input")).to_have_value("none")
    page.get_by_label("Capture from camera").click()
    page.get_by_title("grant webcam access").click()
    page.wait_for_function("document.querySelector('#picture video').videoWidth > 0")
    page.get_by_label("capture photo").click()
    expect(page.locator(".verdict h2")).to_be_visible()
    assert min(page.evaluate("diffad.state().part.size")) >= 240
    expect(page.locator("#picture img")).to_be_visible()
    context.close()


def test_a_file_that_is_not_a_picture_empties_the_page_and_says_why(page: Page, tmp_path: Path):
    inspect(page, "gear_good")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is not a picture")
    page.locator("#picture [aria-label*=lear], #picture [aria-label*=emove]").first.click()
    expect(page.locator("#verdict .empty")).to_be_visible()
    expect(page.locator("#verdict .empty")).to_contain_text("Choose a sample")
    expect(page.locator("#repair")).to_be_disabled()
    upload(page, broken)
    expect(page.locator("#verdict")).to_contain_text("broken.png")
    expect(page.get_by_test_id("toast-body")).to_have_count(0)  # once is enough
    expect(page.locator("body")).not_to_contain_text("Traceback")
    assert page.locator(".cell").count() == 0
    expect(page.locator(".verdict-slot")).to_be_hidden()
    expect(page.locator("#download-json")).to_be_disabled()
