"""The page on a real server with the bundled model, driven in a real browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import serving
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from diffad.inspector import Inspector
from diffad.synthetic import CATEGORIES, make_part

RESULT = 60_000  # ms within which an inspection must have appeared, on a busy machine


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
    return float(page.locator("#verdict .verdict-slot").get_attribute("data-score"))


def inspect(page: Page, sample: str) -> None:
    """Opens a sample by the beginning of its file's name, and waits for its verdict."""
    page.locator(f"button[data-sample^='{sample}']").first.click()
    page.wait_for_function(
        "name => diffad.state().result && diffad.state().part.link.sample?.startsWith(name)", arg=sample,
        timeout=RESULT,
    )  # fmt: skip


def now(page: Page) -> dict:
    """What the browser has judged, without the maps."""
    return page.evaluate(
        """() => {
            const { result, choices, part } = diffad.state();
            const { score, threshold, rate, anomalous, regions } = result;
            return { score, threshold, rate, anomalous, regions, good: [...result.good], ...diffad.choices(),
                size: part.size, point: choices.point };
        }"""
    )


def settled(page: Page) -> None:
    """Until what was chosen is drawn."""
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
    settled(page)


def drawn(page: Page, canvases: str) -> list[int]:
    """How many colours each canvas holds: 1 is an empty one."""
    return page.locator(canvases).evaluate_all(
        """all => all.map(canvas => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(data.buffer)).size;
        })"""
    )


def loaded(pictures: Locator) -> int:
    """How many of these <img> hold a decoded picture; fails when one of them stays empty."""
    for _ in range(60):
        widths = pictures.evaluate_all("images => images.map(i => i.complete ? i.naturalWidth : 0)")
        if widths and all(widths):
            return len(widths)
        time.sleep(0.1)
    pytest.fail(f"{widths.count(0)} of {len(widths)} pictures are empty")


def test_the_browser_judges_as_python_does(page: Page, defective: Path, inspector: Inspector, tmp_path: Path):
    """Score, good parts, threshold, rate and regions for several α and choices of t, without the network."""
    upload(page, defective)
    expect(page.locator(".verdict.bad h2")).to_contain_text("Anomalous", timeout=RESULT)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for alpha, timesteps, rate in ((0.5, (20, 200, 400), 0.01), (0.9, (20, 400), 0.05), (0, (200,), 0.001)):
        page.evaluate(
            """([alpha, timesteps, rate]) => {
                const chosen = timesteps.map(t => diffad.state().part.timesteps.indexOf(t));
                diffad.decide({ alpha, chosen, rate, threshold: null });
            }""",
            [alpha, timesteps, rate],
        )
        settled(page)
        here = now(page)
        good = inspector.good_scores(CATEGORIES[0], alpha, timesteps)
        limit = inspector.threshold(CATEGORIES[0], alpha, timesteps, rate)
        assert sorted(here["good"]) == pytest.approx(sorted(good), abs=1e-3)
        assert here["threshold"] == pytest.approx(limit, abs=1e-3)
        assert here["rate"] == pytest.approx(rate, abs=1e-4)
        assert asked == [], "re-weighing asked the server"

        # The download is made by Python, from the same evidence and the choices made in the browser.
        report = json.loads(fetch(page, "json", tmp_path).read_text())
        asked.clear()
        assert (report["alpha"], report["timesteps"]) == (alpha, list(timesteps))
        assert here["score"] == pytest.approx(report["score"], abs=1e-3)
        assert here["anomalous"] is report["is_anomalous"]
        assert len(here["regions"]) == len(report["regions"])
        for region, same in zip(here["regions"], report["regions"]):
            assert region["box"] == pytest.approx(same["box"], abs=4)
            assert region["peak"] == pytest.approx(same["peak"], rel=0.02)


def fetch(page: Page, kind: str, folder: Path) -> Path:
    with page.expect_download(timeout=RESULT) as waiting:
        page.locator(f"#download-{kind}").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_everything_of_a_verdict_is_there_and_follows_the_sliders(page: Page, defective: Path):
    upload(page, defective)
    expect(page.locator(".verdict.bad h2")).to_contain_text("Anomalous", timeout=RESULT)
    facts = page.locator(".judgement").inner_text()
    assert re.search(r"score \d+\.\d+ · threshold \d+\.\d+ · \d+ regions?", facts), facts
    assert re.search(CATEGORIES[0] + r" \(recognised\) · [\d.]+ m?s on CPU", facts), facts
    assert "about 1 good part in 100 would be rejected" in facts
    assert page.locator(".histogram .bars rect").count() > 3
    assert page.locator("#regions tbody tr").count() >= 1
    assert page.locator("#evidence button.t-head").all_inner_texts() == ["t = 20", "t = 200", "t = 400"]
    cells = drawn(page, "#evidence .cell canvas")
    assert len(cells) == 3 * (3 + 1) and min(cells) > 5
    assert drawn(page, "#view canvas")[0] > 500
    expect(page.locator("#probe")).to_contain_text(re.compile(r"At \(\d+, \d+\): features [\d.]+ σ"))

    def picture() -> str:
        return page.locator("#view canvas").evaluate("canvas => canvas.toDataURL()")

    # Whatever is moved is seen at once.
    before, view = score(page), picture()
    for control, value in (("#alpha", 0.9), ("#opacity", 0.2)):
        move(page, control, value)
        assert picture() != view
        view = picture()
    assert score(page) != before
    expect(page.locator("#evidence")).to_contain_text("0.90 of pixels")
    move(page, "#alpha", 0.5)
    assert score(page) == before

    # A column leaves and comes back; the last one stays.
    page.get_by_role("button", name="t = 200", exact=True).click()
    expect(page.locator("#evidence button[data-t='200']")).to_have_attribute("aria-pressed", "false")
    assert score(page) != before
    for t in ("20", "400"):
        page.locator(f"#evidence button[data-t='{t}']").click()
    expect(page.locator("#evidence button[aria-pressed=true]")).to_have_count(1)


def test_the_threshold_moves_by_score_by_rate_and_by_its_line(page: Page):
    inspect(page, "gear_corrosion")
    slider, limit = page.locator("#threshold input[type=number]"), now(page)["threshold"]
    expect(slider).to_have_value(f"{limit:.2f}".rstrip("0"))
    # By rate: the same law, so a rarer alarm has a higher threshold.
    page.locator("#rate input").click()
    page.get_by_role("option", name="1 in 1000").click()
    settled(page)
    assert now(page)["threshold"] > limit and now(page)["rate"] == pytest.approx(0.001, abs=1e-5)
    expect(page.locator(".meaning")).to_contain_text("1 good part in 1000")
    # By score: above this part it becomes a good one, without regions, and the rate is the person's own.
    move(page, "#threshold", 0)
    expect(page.locator(".meaning")).to_contain_text("every good part")
    expect(page.locator("#rate input")).to_have_value("my own score")
    # By its line.
    grip = page.locator(".limit-grip .knob").bounding_box()
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + 4)
    page.mouse.down()
    page.mouse.move(page.locator("svg.histogram").bounding_box()["x"] + 2000, grip["y"] + 4, steps=4)
    page.mouse.up()
    settled(page)
    expect(page.locator(".verdict.good")).to_be_visible()
    expect(page.locator("#regions")).to_contain_text("No region")
    assert float(slider.input_value()) == pytest.approx(now(page)["threshold"], abs=0.006)
    moved = now(page)["threshold"]
    page.locator(".limit-grip").focus()
    page.keyboard.press("PageDown")
    settled(page)
    assert now(page)["threshold"] < moved and now(page)["own"] is True


def test_a_map_opens_large_with_the_value_at_the_point(page: Page):
    inspect(page, "gear_corrosion")
    cell = page.locator("#evidence .cell").nth(5)  # features at t = 200
    box = cell.bounding_box()
    cell.click(position={"x": box["width"] * 0.75, "y": box["height"] * 0.25})
    large = page.locator("#enlarged")
    expect(large).to_be_visible()
    expect(large.locator("h3")).to_have_text("Features at t = 200")
    x, y = now(page)["point"]
    assert (x, y) == pytest.approx((0.75, 0.25), abs=0.02)
    plate = large.locator(".large-map").bounding_box()
    page.mouse.move(plate["x"] + plate["width"] / 2, plate["y"] + plate["height"] / 2)
    value = page.evaluate("() => diffad.valuesAt([0.5, 0.5]).feature[1]")
    expect(large.locator(".value")).to_have_text(f"at 128, 128: {shown(value)} σ")
    assert drawn(page, "#enlarged canvas")[0] > 5
    page.keyboard.press("ArrowRight")
    expect(large.locator("h3")).to_have_text("Features at t = 400")
    page.keyboard.press("ArrowDown")
    expect(large.locator("h3")).to_have_text("Together at t = 400")
    page.keyboard.press("Escape")
    expect(large).not_to_be_visible()


def shown(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}".replace("-", "−")


def test_a_region_is_zoomed_to_and_a_double_click_shows_the_whole(page: Page):
    inspect(page, "gear_corrosion")
    stage = page.locator("#view .stage")
    page.locator("#regions tbody tr").first.click()
    expect(stage).to_have_class(re.compile("zoomed"))
    box = stage.bounding_box()
    stage.dblclick(position={"x": box["width"] * 0.6, "y": box["height"] * 0.6})
    expect(stage).not_to_have_class(re.compile("zoomed"))
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.3)
    page.mouse.wheel(0, -400)
    expect(stage).to_have_class(re.compile("zoomed"))
    # What is under the pointer stays there; a drag takes it along.
    before = page.locator(".readout").inner_text()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7 + 40, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.up()
    assert page.locator(".readout").inner_text().split(":")[0] == before.split(":")[0]
    page.keyboard.press("0")
    expect(stage).not_to_have_class(re.compile("zoomed"))
    page.locator("#view .divider").focus()
    page.keyboard.press("End")
    expect(page.locator("#view .divider")).to_have_attribute("aria-valuenow", "100")


def test_repair_stop_play_and_take_away(page: Page, defective: Path, tmp_path: Path):
    upload(page, defective)
    expect(page.locator(".verdict.bad")).to_be_visible(timeout=RESULT)
    # It appears while it is computed, and stops when told to.
    page.locator("#repair").click()
    player = page.locator(".player")
    expect(player).to_have_attribute("data-state", "running", timeout=RESULT)
    expect(page.locator(".player .message")).to_contain_text(re.compile(r"step [1-9]"), timeout=RESULT)
    assert loaded(page.locator(".player img.now")) == 1
    page.locator("#stop").click()
    expect(player).to_have_attribute("data-state", "stopped", timeout=RESULT)
    expect(page.locator(".player .message")).to_contain_text("stopped after")

    # Once more, short, to its end.
    move(page, "#steps", 10)
    page.locator("#repair").click()
    expect(player).to_have_attribute("data-state", "done", timeout=3 * RESULT)
    message = page.locator(".player .message").inner_text()
    first, last = map(float, re.search(r"score ([\d.]+) → ([\d.]+)", message).groups())
    assert last < first
    assert loaded(page.locator(".player .strip img")) == 5
    expect(page.locator(".player .caption")).to_contain_text("step 10")
    page.locator(".strip button").first.click()
    expect(page.locator(".player .caption")).to_contain_text("step 0")
    expect(page.locator(".curve circle.score")).to_have_attribute("cx", "4")
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("Space")
    expect(page.locator(".player .caption")).to_contain_text("step 10", timeout=RESULT)
    page.locator(".before-after").click()
    expect(page.locator(".screen .first")).to_be_visible()
    expect(page.locator(".screen input")).to_be_visible()
    page.keyboard.press("d")
    expect(page.locator(".screen .changed")).to_be_visible()
    page.wait_for_timeout(100)
    assert drawn(page, ".screen .changed")[0] > 5
    film = fetch(page, "gif", tmp_path)
    assert film.name == "defective-repair.gif"
    with Image.open(film) as frames:
        assert frames.format == "GIF" and frames.n_frames > 5
    archive = fetch(page, "all", tmp_path)
    assert archive.suffix == ".zip" and archive.stat().st_size > 50_000


def test_a_reload_during_a_repair_leaves_a_usable_page(browser: Browser, url: str):
    context = browser.new_context(viewport={"width": 1440, "height": 1060})
    page = context.new_page()
    page.goto(url)
    inspect(page, "gear_corrosion")
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "running", timeout=RESULT)
    page.wait_for_function("location.search.includes('gear_corrosion')")
    page.reload()
    # The address brings the part back; a new repair runs, so the old one has not kept its place.
    expect(page.locator(".verdict.bad h2")).to_be_visible(timeout=RESULT)
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")
    move(page, "#steps", 10)
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "done", timeout=3 * RESULT)
    context.close()


def test_another_picture_ends_a_repair(page: Page):
    inspect(page, "gear_corrosion")
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "running", timeout=RESULT)
    inspect(page, "gear_good")
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")
    time.sleep(1.5)  # a late frame of the old repair would show by now
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")
    expect(page.locator("#repair")).to_be_enabled()


def test_the_address_holds_the_choices(page: Page, browser: Browser, url: str):
    inspect(page, "gear_corrosion")
    move(page, "#alpha", 0.8)
    move(page, "#threshold", 4.5)
    page.locator("#evidence button[data-t='20']").click()
    page.locator("#colormap input").click()
    page.get_by_role("option", name="viridis").click()
    page.wait_for_function(
        "['alpha', 'threshold', 'off', 'colormap'].every(key => location.search.includes(key))"
    )
    mine = now(page)
    context = browser.new_context(viewport={"width": 1440, "height": 1060})
    other = context.new_page()
    other.goto(page.url)
    expect(other.locator(".verdict h2")).to_be_visible(timeout=RESULT)
    settled(other)
    theirs = now(other)
    for key in ("score", "threshold", "alpha", "timesteps", "colormap", "own"):
        assert theirs[key] == mine[key], key
    expect(other.locator("#alpha input[type=number]")).to_have_value("0.8")
    expect(other.locator("#rate input")).to_have_value("my own score")
    # Nonsense in an address is left out.
    other.goto(f"{url}?alpha=lots&model=none&category=none&count=99&sample=gear_good_0.png&colormap=mud")
    expect(other.locator("#samples button").first).to_be_visible(timeout=RESULT)
    expect(other.locator("#alpha input[type=number]")).to_have_value("0.5")
    expect(other.locator("#count input[type=number]")).to_have_value("12", timeout=RESULT)
    expect(other.locator("body")).not_to_contain_text("Error")
    context.close()


def test_keys(page: Page):
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).not_to_be_visible()
    names = page.locator("#samples button").evaluate_all("all => all.map(b => b.dataset.sample)")
    for key, name in (("ArrowRight", names[0]), ("ArrowRight", names[1]), ("ArrowLeft", names[0])):
        page.keyboard.press(key)
        expect(page.locator("#samples button.on")).to_have_attribute("data-sample", name)
        page.wait_for_function("name => diffad.state().part?.link?.sample === name", arg=name, timeout=RESULT)
    # In a slider the arrows are the slider's.
    page.locator("#alpha input[type=range]").press("ArrowRight")
    settled(page)
    assert now(page)["alpha"] == pytest.approx(0.51)
    expect(page.locator("#samples button.on")).to_have_attribute("data-sample", names[0])


def test_other_timesteps_run_the_network_again(page: Page):
    inspect(page, "gear_good")
    expect(page.locator(".verdict.good h2")).to_contain_text("Good")
    expect(page.locator("#regions")).to_contain_text("No region")
    move(page, "#count", 2)
    expect(page.locator("#evidence button.t-head")).to_have_count(2, timeout=RESULT)
    assert min(drawn(page, "#evidence .cell canvas")) > 5
    page.locator("#count input[type=range]").press("ArrowRight")
    page.locator("#count input[type=range]").press("ArrowRight")
    expect(page.locator("#evidence button.t-head")).to_have_count(4, timeout=RESULT)


def test_a_large_picture_is_cut_as_told(page: Page, tmp_path: Path):
    part = make_part(CATEGORIES[0], 90_002, size=512).image
    path = tmp_path / "large.png"
    Image.fromarray(np.tile(part, (1, 2, 1))).save(path)
    upload(page, path)
    expect(page.locator(".verdict")).to_be_visible(timeout=RESULT)
    page.locator("#tile input").click()
    page.get_by_role("option", name="512 px").click()
    expect(page.locator(".origin")).to_contain_text("512 px", timeout=2 * RESULT)
    expect(page.locator(".cut-into")).to_contain_text("tiles of 512 px")
    stage = page.locator("#view .stage").bounding_box()
    assert stage["width"] / stage["height"] == pytest.approx(2, rel=0.02)
    page.locator("#tile input").click()
    page.get_by_role("option", name="none").click()
    expect(page.locator(".cut-into")).to_be_hidden(timeout=RESULT)


def test_what_is_no_picture_is_told_in_words_and_leaves_nothing(page: Page, tmp_path: Path):
    inspect(page, "gear_good")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is not a picture")
    page.locator("#picture [aria-label*=lear], #picture [aria-label*=emove]").first.click()
    expect(page.locator("#verdict .empty")).to_be_visible(timeout=RESULT)
    expect(page.locator("#verdict .empty")).to_contain_text("Choose a sample")
    expect(page.locator("#repair")).to_be_disabled()
    upload(page, broken)
    expect(page.locator("#verdict")).to_contain_text("broken.png", timeout=RESULT)
    expect(page.locator("body")).not_to_contain_text("Traceback")
    assert page.locator(".cell").count() == 0
    expect(page.locator(".verdict-slot")).to_be_hidden()
    expect(page.locator("#download-json")).to_be_disabled()


def test_two_people_do_not_disturb_each_other(browser: Browser, url: str, page: Page, tmp_path: Path):
    inspect(page, "gear_corrosion")
    mine = score(page)
    context = browser.new_context(accept_downloads=True)
    other = context.new_page()
    other.goto(url)
    inspect(other, "gear_good")
    move(other, "#alpha", 0)
    assert score(other) != mine and score(page) == mine
    reports = [json.loads(fetch(who, "json", tmp_path).read_text()) for who in (page, other)]
    assert [report["alpha"] for report in reports] == [0.5, 0]
    assert reports[0]["is_anomalous"] and not reports[1]["is_anomalous"]
    context.close()


def test_a_phone_shows_everything(browser: Browser, url: str):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto(url)
    inspect(page, "gear_corrosion")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cut = page.evaluate(
        """() => [...document.querySelectorAll("#page :is(h3, p, label, .corner, #opacity-name span)")]
            .filter(e => e.offsetParent && (e.getBoundingClientRect().right > 390
                || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow !== "visible")
        ).map(e => e.textContent)"""
    )
    assert cut == []
    expect(page.locator("#opacity-name")).to_be_visible()
    page.locator("#evidence .cell").first.tap()
    expect(page.locator("#enlarged")).to_be_visible()
    page.locator("#enlarged .close").tap()
    expect(page.locator("#enlarged")).not_to_be_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, url: str, scheme: str):
    """No serious or critical violation of WCAG 2.1 A and AA that axe-core finds, on both tabs."""
    context = browser.new_context(viewport={"width": 1440, "height": 1060}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    inspect(page, "gear_corrosion")
    found = violations(page)
    page.locator("#evidence .cell").first.click()
    found |= violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Batch").click()
    expect(page.locator("#batch-page")).to_be_visible()
    found |= violations(page)
    assert found == set()
    context.close()


def violations(page: Page) -> set[str]:
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    answer = Axe().run(page, options=rules).response
    return {
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['html'][:120]}"
        for rule in answer["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    }
