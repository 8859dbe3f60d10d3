"""The page on a real server with the bundled model, driven in a real browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import serving
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from diffad.synthetic import CATEGORIES, make_part

ROOT = Path(__file__).parents[1]
RESULT = 20_000  # ms within which an inspection must have appeared, on a busy machine


@pytest.fixture(scope="module")
def url(bundled_model: Path) -> Iterator[str]:
    """The page as `python app.py` serves it."""
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part with a defect that the bundled model has not seen."""
    category = CATEGORIES[0]
    path = tmp_path_factory.mktemp("parts") / "defective.png"
    Image.fromarray(make_part(category, 90_001, "dent").image).save(path)
    return path


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh session. Errors in the console, and requests that leave this machine, fail the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 1060}, accept_downloads=True)
    page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url) if leaves(request.url) else None)
    page.goto(url)
    expect(page.locator("#samples button").first).to_be_visible(timeout=RESULT)
    yield page
    context.close()
    assert trouble == []


def leaves(address: str) -> bool:
    return not address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def upload(page: Page, path: Path) -> None:
    page.locator("#picture input[type=file]").set_input_files(path)


def score(page: Page) -> float:
    return float(page.locator(".verdict").get_attribute("data-score"))


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


def drawn(pictures: Locator) -> int:
    """How many of these <img> hold a decoded picture; fails when one of them stays empty."""
    for _ in range(40):
        widths = pictures.evaluate_all("images => images.map(i => i.complete ? i.naturalWidth : 0)")
        if widths and all(widths):
            return len(widths)
        time.sleep(0.1)
    pytest.fail(f"{widths.count(0)} of {len(widths)} pictures are empty")


def test_upload_verdict_alpha_repair(page: Page, defective: Path):
    upload(page, defective)
    expect(page.locator(".verdict.bad h2")).to_contain_text("Anomalous", timeout=RESULT)

    # Every number and every picture is there.
    facts = page.locator(".judgement").inner_text()
    assert re.search(r"score \d+\.\d+ · threshold \d+\.\d+ · \d+ regions?", facts), facts
    assert re.search(CATEGORIES[0] + r" \(recognised\) · [\d.]+ m?s on CPU", facts), facts
    assert page.locator(".histogram .bars rect").count() > 3
    expect(page.locator(".histogram text.part")).to_contain_text(re.compile(r"this part \d"))
    assert drawn(page.locator("#view img")) == 2
    assert drawn(page.locator("#evidence .cell img")) == 2 * (3 + 1)
    assert drawn(page.locator("#together .cell img")) == 3 + 1
    assert page.locator("#evidence button.t-head").all_inner_texts() == ["t = 20", "t = 200", "t = 400"]
    expect(page.locator("#probe")).to_contain_text(re.compile(r"At \(\d+, \d+\): features [\d.]+ σ"))
    assert page.locator("#regions tbody tr").count() >= 1
    expect(page.locator("#meaning")).to_contain_text("good part")

    # α re-weighs the maps that are there: no event goes through the queue, which is the network's only way.
    before, heat = score(page), page.locator("#view .heat").get_attribute("src")
    queued: list[str] = []
    page.on("request", lambda request: queued.append(request.url) if "queue/join" in request.url else None)
    move(page, "#alpha", 0.9)
    expect(page.locator("#together")).to_contain_text("0.90 of pixels")
    expect(page.locator("#view .heat")).not_to_have_attribute("src", heat)
    assert score(page) != before

    # So does the threshold, which says what it means, and goes back.
    move(page, "#threshold", 0.01)
    expect(page.locator("#meaning")).to_contain_text("rejects every good part")
    expect(page.locator(".verdict")).to_have_class(re.compile("bad"))
    page.locator("#usual").click()
    expect(page.locator("#meaning")).not_to_contain_text("every")
    move(page, "#alpha", 0.5)
    expect(page.locator("#together")).to_contain_text("0.50 of pixels")
    assert score(page) == pytest.approx(before, abs=2e-4)

    # A column leaves and comes back; a click on a map explains that place.
    page.get_by_role("button", name="t = 200").click()
    expect(page.locator("#evidence button[data-t='200']")).to_have_attribute("aria-pressed", "false")
    assert score(page) != pytest.approx(before, abs=2e-4)
    page.get_by_role("button", name="t = 200").click()
    expect(page.locator("#evidence button[data-t='200']")).to_have_attribute("aria-pressed", "true")
    said = page.locator("#probe p").inner_text()
    page.locator("#evidence .cell.feature").first.click(position={"x": 5, "y": 5})
    expect(page.locator("#probe p")).not_to_have_text(said)
    assert queued == []

    # The repair appears while it is computed, and stops when told to.
    page.locator("#repair").click()
    player = page.locator(".player")
    expect(player).to_have_attribute("data-state", "running", timeout=RESULT)
    expect(page.locator(".player .message")).to_contain_text(re.compile(r"step [1-9]"), timeout=RESULT)
    assert drawn(page.locator(".player .now")) == 1
    page.locator("#stop").click()
    expect(player).to_have_attribute("data-state", "stopped", timeout=RESULT)
    expect(page.locator(".player .message")).to_contain_text("stopped after")

    # Once more, short, to its end; the film can be played and taken away.
    move(page, "#steps", 20)
    page.locator("#repair").click()
    expect(player).to_have_attribute("data-state", "done", timeout=3 * RESULT)
    message = page.locator(".player .message").inner_text()
    first, last = map(float, re.search(r"score ([\d.]+) → ([\d.]+)", message).groups())
    assert last < first
    assert drawn(page.locator(".player .strip img")) == 5
    expect(page.locator(".player .caption")).to_contain_text("step 20")
    page.locator(".strip button").first.click()
    expect(page.locator(".player .caption")).to_contain_text("step 0")
    with page.expect_download(timeout=RESULT) as waiting:
        page.locator("#download-gif").click()
    assert waiting.value.suggested_filename == "defective-repair.gif"
    with Image.open(waiting.value.path()) as film:
        assert film.format == "GIF" and film.n_frames > 5


def test_downloads_hold_what_is_shown(page: Page, defective: Path, tmp_path: Path):
    upload(page, defective)
    expect(page.locator(".verdict")).to_be_visible(timeout=RESULT)

    def fetch(kind: str) -> Path:
        with page.expect_download(timeout=RESULT) as waiting:
            page.locator(f"#download-{kind}").click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    report = json.loads(fetch("json").read_text())
    assert report["score"] == pytest.approx(score(page), abs=1e-4)
    assert report["is_anomalous"] is True and report["regions"] and report["provenance"]
    anomaly_map = np.load(fetch("map"))
    with Image.open(defective) as picture, Image.open(fetch("overlay")) as overlay:
        assert overlay.size == picture.size == anomaly_map.shape[::-1]
    archive = fetch("all")
    assert archive.suffix == ".zip" and archive.stat().st_size > 50_000


def test_sample_good_part_is_good(page: Page):
    page.locator("button[data-sample*=good]").first.click()
    expect(page.locator(".verdict.good h2")).to_contain_text("Good", timeout=RESULT)
    expect(page.locator("#regions")).to_contain_text("No region")


def test_fewer_timesteps_run_the_network_again(page: Page):
    page.locator("button[data-sample]").first.click()
    expect(page.locator(".verdict")).to_be_visible(timeout=RESULT)
    move(page, "#count", 2)
    expect(page.locator("#evidence button.t-head")).to_have_count(2, timeout=RESULT)
    assert drawn(page.locator("#evidence .cell img")) == 2 * (2 + 1)
    page.locator("#count input[type=range]").press("ArrowRight")
    page.locator("#count input[type=range]").press("ArrowRight")
    expect(page.locator("#evidence button.t-head")).to_have_count(4, timeout=RESULT)


def test_what_is_no_picture_is_told_in_words_and_leaves_nothing(page: Page, defective: Path, tmp_path: Path):
    upload(page, defective)
    expect(page.locator(".verdict")).to_be_visible(timeout=RESULT)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is not a picture")
    page.locator("#picture [aria-label*=lear], #picture [aria-label*=emove]").first.click()
    expect(page.locator(".verdict")).to_have_count(0, timeout=RESULT)
    expect(page.locator("#verdict")).to_contain_text("Choose a sample")
    expect(page.locator("#repair")).to_be_disabled()
    upload(page, broken)
    expect(page.locator("#verdict")).to_contain_text("broken.png", timeout=RESULT)
    expect(page.locator("body")).not_to_contain_text("Traceback")
    assert page.locator(".cell").count() == 0 and page.locator(".verdict").count() == 0
    expect(page.locator("#download-json")).to_be_disabled()


def test_two_people_do_not_disturb_each_other(browser: Browser, url: str, page: Page, defective: Path):
    upload(page, defective)
    expect(page.locator(".verdict.bad")).to_be_visible(timeout=RESULT)
    mine = score(page)
    context = browser.new_context()
    other = context.new_page()
    other.goto(url)
    other.locator("button[data-sample*=good]").first.click()
    expect(other.locator(".verdict.good")).to_be_visible(timeout=RESULT)
    move(other, "#alpha", 0)
    expect(other.locator("#together")).to_contain_text("0.00 of pixels")
    assert score(other) != mine
    context.close()
    move(page, "#opacity", 0.2)
    page.locator("#evidence .cell").first.click()
    expect(page.locator(".verdict.bad")).to_be_visible()
    assert score(page) == mine


def test_another_picture_ends_a_repair(page: Page, defective: Path):
    upload(page, defective)
    expect(page.locator(".verdict.bad")).to_be_visible(timeout=RESULT)
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "running", timeout=RESULT)
    page.locator("button[data-sample*=good]").first.click()
    expect(page.locator(".verdict.good")).to_be_visible(timeout=RESULT)
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")
    time.sleep(1.5)  # a late frame of the old repair would show by now
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")
    expect(page.locator("#repair")).to_be_enabled()


def test_a_phone_has_no_sideways_scroll(browser: Browser, url: str):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(url)
    page.locator("button[data-sample]").first.click()
    expect(page.locator(".verdict")).to_be_visible(timeout=RESULT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_endpoints(url: str, defective: Path, tmp_path: Path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False, download_files=str(tmp_path))
    known = client.predict(api_name="/categories")
    assert {entry["category"] for entry in known} >= set(CATEGORIES)
    answer, heat = client.predict(
        image=handle_file(defective), alpha=0.4, timesteps=[20, 300], api_name="/inspect"
    )
    assert answer["is_anomalous"] is True and answer["category"] == CATEGORIES[0]
    assert answer["alpha"] == 0.4 and answer["timesteps"] == [20, 300]
    assert answer["score"] > answer["threshold"] and answer["regions"]
    with Image.open(heat if isinstance(heat, str) else heat["path"]) as picture:
        assert picture.format == "PNG"
    nonsense = tmp_path / "nonsense.png"
    nonsense.write_text("no picture")
    with pytest.raises(AppError, match=r"nonsense\.png"):
        client.predict(image=handle_file(nonsense), api_name="/inspect")
    names = {name.strip("/") for name in client.view_api(return_format="dict")["named_endpoints"]}
    assert names == {"inspect", "reconstruct", "categories"}
