"""The Inspect tab on a real server with the bundled model, driven in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import DESKTOP
from page_steps import (
    coloured,
    drawn,
    fetch,
    inspect,
    loaded,
    move,
    now,
    score,
    settled,
    upload,
)
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from diffad.inspector import Inspector
from diffad.method.image_score import unusual
from diffad.synthetic.parts import CATEGORIES, make_part


def test_the_browser_judges_as_python_does(page: Page, defective: Path, inspector: Inspector, tmp_path: Path):
    """Score, good parts, threshold, rate and regions for several α and choices of t, without the network."""
    upload(page, defective)
    expect(page.locator(".verdict.anomalous h2")).to_contain_text("Anomalous")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
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
        good = inspector.scorer(CATEGORIES[0], alpha, timesteps).good
        limit = inspector.threshold(CATEGORIES[0], alpha, timesteps, rate)
        assert sorted(here["good"]) == pytest.approx(sorted(good), abs=1e-3)
        assert here["threshold"] == pytest.approx(limit, abs=1e-3)
        assert here["rate"] == pytest.approx(rate, abs=1e-4)
        odd = [*good.tolist(), float(max(good)) + 20]
        assert page.evaluate("good => diffad.scores.unusual(good).length", odd) == unusual(odd).sum() > 0
        expect(page.locator(".histogram .held")).to_contain_text(f"{len(good)} good parts")
        assert asked == [], "re-weighing asked the server"

        # The download is made by Python, from the same evidence and the choices made in the browser.
        report = json.loads(fetch(page, "json", tmp_path).read_text())
        asked.clear()
        assert (report["alpha"], report["timesteps"]) == (alpha, list(timesteps))
        assert here["score"] == pytest.approx(report["score"], abs=1e-3)
        assert here["look"] == pytest.approx(report["look_threshold"], abs=1e-3)
        assert here["verdict"] == report["verdict"]
        assert len(here["regions"]) == len(report["regions"])
        for region, same in zip(here["regions"], report["regions"]):
            assert region["box"] == pytest.approx(same["box"], abs=4)
            assert region["peak"] == pytest.approx(same["peak"], rel=0.02)


def test_everything_of_a_verdict_is_there_and_follows_the_sliders(page: Page, defective: Path):
    upload(page, defective)
    expect(page.locator(".verdict.anomalous h2")).to_contain_text("Anomalous")
    facts = page.locator(".judgement").inner_text()
    assert re.search(r"score \d+\.\d+ · threshold \d+\.\d+ · \d+ regions?", facts), facts
    assert re.search(CATEGORIES[0] + r" \(recognised\) · [\d.]+ m?s on CPU", facts), facts
    assert re.search(r"about 1 good part in 100 \(1 in \d+ to 1 in \d+\) would be rejected", facts)
    assert page.locator(".histogram .bars rect").count() > 3
    assert page.locator("#regions tbody tr").count() >= 1
    assert page.locator("#evidence button.t-head").all_inner_texts() == ["t = 20", "t = 200", "t = 400"]
    cells = drawn(page, "#evidence .cell canvas")
    assert len(cells) == 3 * (3 + 1) and min(cells) > 5
    coloured(page, "#view canvas", 500)
    expect(page.locator("#probe")).to_contain_text(re.compile(r"At \(\d+, \d+\): features [\d.]+ σ"))

    def picture() -> str:
        return page.locator("#view canvas").evaluate("canvas => canvas.toDataURL()")

    # Sliders act at once.
    before, view = score(page), picture()
    for control, value in (("#alpha", 0.9), ("#opacity", 0.2)):
        move(page, control, value)
        assert picture() != view
        view = picture()
    assert score(page) != before
    expect(page.locator("#evidence")).to_contain_text("α = 0.90: pixels 31 %, features 69 %")
    move(page, "#alpha", 0.5)
    assert score(page) == before

    # A column leaves and comes back; the last one stays.
    page.get_by_role("button", name="t = 200", exact=True).click()
    expect(page.locator("#evidence button[data-t='200']")).to_have_attribute("aria-pressed", "false")
    assert score(page) != before
    for t in ("20", "400"):
        page.locator(f"#evidence button[data-t='{t}']").click()
    expect(page.locator("#evidence button[aria-pressed=true]")).to_have_count(1)


def test_a_part_unlike_any_good_one_has_a_note(page: Page, tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)).save(tmp_path / "x.png")
    upload(page, tmp_path / "x.png")
    note = page.locator(".note")
    expect(note).to_have_text(re.compile("Unlike any good part of this model.*Another model may know it"))
    page.locator("#category input").click()
    page.get_by_role("option", name=CATEGORIES[0]).click()
    expect(note).to_have_text(f"Unlike a good {CATEGORIES[0]}: is the category right?")


def test_how_a_deep_picture_was_read_stands_beside_its_verdict(page: Page, tmp_path: Path):
    """The deep one is a format that browsers cannot draw; it is shown all the same."""
    good = Path(__file__).parents[1] / "assets" / "samples" / "gear_good.png"
    part = cv2.imread(str(good)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.tif"), 16 * part)  # a camera of 12 bits
    upload(page, tmp_path / "deep.tif")
    note = page.locator("#verdict .note")
    expect(note).to_have_text(re.compile("Read as 12 bits, since its highest value is"))
    expect(page.locator("#picture img")).to_have_js_property("naturalWidth", 256)
    expect(page.locator("#verdict [role=status]")).to_have_text(re.compile("Good, score .* Read as 12 bits"))
    inspect(page, "gear_good")
    expect(note).to_have_count(0)
    expect(page.locator("#picture img")).to_have_attribute("src", re.compile("gear_good"))


def test_the_colour_scale_says_what_stands_beside_it(page: Page):
    inspect(page, "gear_good")
    ticks = page.locator("#scale p span").evaluate_all(
        "all => all.map(e => [e.textContent, parseFloat(e.style.bottom)])"
    )
    top = page.evaluate("diffad.state().part.top")
    assert ticks[0] == ["good", 0] and len(ticks) > 3
    for text, share in ticks[1:]:
        assert float(text.removesuffix(" σ")) == pytest.approx(top * share / 100, abs=1e-4)


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
    large.locator(".large-map").hover()  # its middle, once it stands still
    expect(large.locator(".value")).to_have_text(re.compile(r"^at 12[78], 12[78]: "))
    x, y = map(int, re.findall(r"\d+", large.locator(".value").inner_text())[:2])
    value = page.evaluate("at => diffad.valuesAt(at).feature[1]", [(x + 0.5) / 256, (y + 0.5) / 256])
    expect(large.locator(".value")).to_have_text(f"at {x}, {y}: {shown(value)} σ")
    coloured(page, "#enlarged .large-map canvas", 5)
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
    stage.hover(position={"x": box["width"] * 0.7, "y": box["height"] * 0.3})
    expect(page.locator(".readout")).to_be_visible()
    before = page.locator(".readout").inner_text()
    page.mouse.wheel(0, -400)
    expect(stage).to_have_class(re.compile("zoomed"))
    # What is under the pointer stays there; a drag takes it along.
    box = stage.bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7 + 40, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.up()
    expect(page.locator(".readout")).to_contain_text(before.split(":")[0] + ":")
    page.keyboard.press("0")
    expect(stage).not_to_have_class(re.compile("zoomed"))
    page.locator("#view .divider").focus()
    page.keyboard.press("End")
    expect(page.locator("#view .divider")).to_have_attribute("aria-valuenow", "100")


def test_repair_stop_play_and_take_away(page: Page, one_round: None, defective: Path, tmp_path: Path):
    upload(page, defective)
    expect(page.locator(".verdict.anomalous")).to_be_visible()
    # Frames appear while they are computed, and it stops on demand.
    page.locator("#repair").click()
    player = page.locator(".player")
    expect(player).to_have_attribute("data-state", "running")
    expect(page.locator(".player .message")).to_contain_text(re.compile(r"step [1-9]"))
    loaded(page.locator(".player img.now"), 1)
    page.locator("#stop").click()
    expect(player).to_have_attribute("data-state", "stopped")
    expect(page.locator(".player .message")).to_contain_text("stopped after")

    # Once more, short, to its end.
    move(page, "#steps", 10)
    page.locator("#repair").click()
    expect(player).to_have_attribute("data-state", "done")
    message = page.locator(".player .message").inner_text()
    first, last, end = map(float, re.search(r"score ([\d.]+) → ([\d.]+) · after (\d+)", message).groups())
    assert last < first and end % 5 == 0  # a round of 10, or earlier where the part is as usual
    # Its scores stay those of its α, and say so where the page has another.
    limit = now(page)["threshold"]
    move(page, "#alpha", 0.9)
    scored = f" · scored at α = 0.50, t = 20, 200, 400, threshold {limit:.2f}"
    expect(page.locator(".player .message")).to_have_text(message + scored)
    move(page, "#alpha", 0.5)
    expect(page.locator(".player .message")).to_have_text(message)
    loaded(page.locator(".player .strip img"), 5)
    expect(page.locator(".player .caption")).to_contain_text(f"step {end:.0f}")
    page.locator(".strip button").first.click()
    expect(page.locator(".player .caption")).to_contain_text("step 0")
    expect(page.locator(".curve circle.score")).to_have_attribute("cx", "4")
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("Space")
    expect(page.locator(".player .caption")).to_contain_text(f"step {end:.0f}")
    page.locator(".before-after").click()
    expect(page.locator(".screen .first")).to_be_visible()
    expect(page.locator(".screen input")).to_be_visible()
    page.keyboard.press("Shift+D")
    expect(page.locator(".screen .changed")).to_be_visible()
    coloured(page, ".screen .changed", 5)
    film = fetch(page, "gif", tmp_path)
    assert film.name == "defective-repair.gif"
    with Image.open(film) as frames:
        assert frames.format == "GIF" and frames.n_frames > 3
    archive = fetch(page, "all", tmp_path)
    assert archive.suffix == ".zip" and archive.stat().st_size > 50_000


def test_a_reload_during_a_repair_leaves_a_usable_page(browser: Browser, one_round: None, url: str):
    page = browser.new_page(viewport=DESKTOP)  # its console tells of the connection that breaks
    page.goto(url)
    inspect(page, "gear_corrosion")
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "running")
    page.wait_for_function("location.search.includes('gear_corrosion')")
    page.reload()
    # The address brings the part back; a new repair runs, so the old one has not kept its place.
    expect(page.locator(".verdict.anomalous h2")).to_be_visible()
    expect(page.locator(".player")).to_have_attribute("data-state", "empty")
    move(page, "#steps", 10)
    page.locator("#repair").click()
    expect(page.locator(".player")).to_have_attribute("data-state", "done")
    page.close()


def test_other_timesteps_run_the_network_again(page: Page):
    inspect(page, "gear_good")
    expect(page.locator(".verdict.good h2")).to_contain_text("Good")
    expect(page.locator("#regions")).to_contain_text("No region")
    move(page, "#count", 2)
    expect(page.locator("#evidence button.t-head")).to_have_count(2)
    assert min(drawn(page, "#evidence .cell canvas")) > 5
    page.locator("#count input[type=range]").press("ArrowRight")
    page.locator("#count input[type=range]").press("ArrowRight")
    expect(page.locator("#evidence button.t-head")).to_have_count(4)


def test_a_large_picture_is_cut_as_told(page: Page, tmp_path: Path):
    part = make_part(CATEGORIES[0], 90_002, size=512).image
    path = tmp_path / "large.png"
    Image.fromarray(np.tile(part, (1, 2, 1))).save(path)
    upload(page, path)
    expect(page.locator(".verdict")).to_be_visible()
    page.locator("#tile input").click()
    page.get_by_role("option", name="512 px").click()
    expect(page.locator(".origin")).to_contain_text("512 px")
    expect(page.locator(".seen-as")).to_contain_text("tiles of 512 px")
    stage = page.locator("#view .stage").bounding_box()
    assert stage["width"] / stage["height"] == pytest.approx(2, rel=0.02)
    page.locator("#tile input").click()
    page.get_by_role("option", name="none").click()
    expect(page.locator(".seen-as")).to_be_hidden()
