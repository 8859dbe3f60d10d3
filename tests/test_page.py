"""The page on a real server with the bundled model, driven in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import DESKTOP, at_rest, visiting
from page_steps import inspect, move, now, score, settled, stands_at, upload
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from diffad.inspector import Inspector
from diffad.method.image_score import unusual
from diffad.synthetic.parts import CATEGORIES, make_part


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
        good = inspector.good_scores(CATEGORIES[0], alpha, timesteps)
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


def fetch(page: Page, kind: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(f"#download-{kind}").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


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


def test_a_good_part_that_is_unusual_is_not_called_calm(page: Page, inspector: Inspector):
    inspect(page, "gear_good")
    page.evaluate("diffad.decide({ point: [0, 0] })")
    expect(page.locator("#probe")).to_contain_text("calm")
    rate = inspector.rate("gear", now(page)["score"])
    words = "as most good parts" if rate > 0.5 else f"1 good part in {1 / rate:.0f} scores this high"
    expect(page.locator(".reading")).to_contain_text(words)
    # At its strongest place, and under a threshold just above that.
    inspect(page, "chip_good")
    values = page.evaluate("diffad.valuesAt(diffad.state().choices.point)")
    limit = 1.1 * max(np.mean(values["pixel"]), np.mean(values["feature"]))
    page.evaluate("threshold => diffad.decide({ threshold })", limit)
    expect(page.locator("#probe")).to_contain_text("Raised, but below the threshold.")
    page.evaluate("threshold => diffad.decide({ threshold })", min(values["pixel"] + values["feature"]) - 5)
    expect(page.locator("#probe")).to_contain_text("Pixels and features both see it.")  # below 0, perhaps
    inspect(page, "gear_corrosion")
    expect(page.locator(".reading")).not_to_contain_text("good part")  # beyond the threshold that is plain


def test_a_part_unlike_any_good_one_has_a_note(page: Page, tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)).save(tmp_path / "x.png")
    upload(page, tmp_path / "x.png")
    note = page.locator(".note")
    expect(note).to_have_text(re.compile("Unlike any good part of this model.*Another model may know it"))
    page.locator("#category input").click()
    page.get_by_role("option", name=CATEGORIES[0]).click()
    expect(note).to_have_text(f"Unlike a good {CATEGORIES[0]}: is the category right?")


def test_how_a_deep_picture_was_read_stands_beside_its_verdict(page: Page, tmp_path: Path):
    good = Path(__file__).parents[1] / "assets" / "samples" / "gear_good.png"
    part = cv2.imread(str(good)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), 16 * part)  # a camera of 12 bits
    upload(page, tmp_path / "deep.png")
    note = page.locator("#verdict .note")
    expect(note).to_have_text(re.compile("Read as 12 bits, since its highest value is"))
    expect(page.locator("#verdict [role=status]")).to_have_text(re.compile("Good, score .* Read as 12 bits"))
    inspect(page, "gear_good")
    expect(note).to_have_count(0)


def test_the_colour_scale_says_what_stands_beside_it(page: Page):
    inspect(page, "gear_good")
    ticks = page.locator("#scale p span").evaluate_all(
        "all => all.map(e => [e.textContent, parseFloat(e.style.bottom)])"
    )
    top = page.evaluate("diffad.state().part.top")
    assert ticks[0] == ["good", 0] and len(ticks) > 3
    for text, share in ticks[1:]:
        assert float(text.removesuffix(" σ")) == pytest.approx(top * share / 100, abs=1e-4)


def test_the_threshold_moves_by_score_by_rate_and_by_its_line(page: Page):
    inspect(page, "chip_bent_lead")  # near enough for its score to be on the scale
    limit = now(page)["threshold"]
    stands_at(page, "#threshold", limit)
    # By rate: the same law, so a rarer alarm has a higher threshold.
    page.locator("#rate input").click()
    page.get_by_role("option", name="1 in 1000").click()
    page.wait_for_function("diffad.choices().rate === 0.001")
    assert now(page)["threshold"] > limit and now(page)["rate"] == pytest.approx(0.001, abs=1e-5)
    expect(page.locator(".meaning")).to_contain_text("1 good part in 1000")
    # By score: above this part it becomes a good one, without regions, and the rate is the person's own.
    move(page, "#threshold", 0)
    expect(page.locator(".meaning")).to_contain_text("every good part")
    expect(page.locator("#rate input")).to_have_value("own score")
    # By its line, which takes the look limit along.
    drag(page, "threshold", 2000)
    expect(page.locator(".verdict.look")).to_be_visible()
    page.locator("#look input[type=range]").press("End")
    expect(page.locator(".verdict.good")).to_be_visible()
    expect(page.locator("#regions")).to_contain_text("No region")
    stands_at(page, "#threshold", now(page)["threshold"])
    stands_at(page, "#look", now(page)["threshold"])  # not beyond
    threshold = now(page)["threshold"]
    page.locator(".limit-grip.threshold").focus()
    page.keyboard.press("PageDown")
    assert now(page)["threshold"] < threshold and now(page)["own"] is True
    assert now(page)["look"] == now(page)["threshold"]


def drag(page: Page, limit: str, by: float) -> None:
    """Drags a limit's line by some px, as far as it goes."""
    knob = page.locator(f".limit-grip.{limit} .knob").bounding_box()
    x, y = knob["x"] + knob["width"] / 2, knob["y"] + 4
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=4)
    page.mouse.up()
    settled(page)


def test_a_part_between_the_limits_is_one_to_look_at_and_has_no_tick(page: Page, tmp_path: Path):
    inspect(page, "gear_good")
    expect(page.locator(".verdict h2")).to_have_text("✓Good")
    usual = now(page)
    assert usual["look"] < usual["threshold"] and usual["lookRate"] == pytest.approx(0.1, abs=1e-3)
    stands_at(page, "#look", usual["look"])
    move(page, "#look", 1)
    heading = page.locator(".verdict.look h2")
    expect(heading).to_have_text("!Look at it")
    expect(page.locator("#verdict")).not_to_contain_text("✓")
    expect(page.locator("#look-rate input")).to_have_value("own score")
    colours = "e => ['good', 'bad', 'look', 'ink'].map(n => getComputedStyle(e).getPropertyValue(`--${n}`))"
    assert len(set(heading.evaluate(colours))) == 4
    # Where to look: the regions above the look limit, though none of them need be above the threshold.
    here = now(page)
    assert here["regions"] and here["threshold"] == pytest.approx(usual["threshold"])
    assert all(region["peak"] > here["look"] == 1 for region in here["regions"])
    expect(page.locator("#regions tbody tr")).to_have_count(min(8, len(here["regions"])))
    report = json.loads(fetch(page, "json", tmp_path).read_text())
    assert report["verdict"] == "look" and report["look_threshold"] == 1 and not report["is_anomalous"]
    assert len(report["regions"]) == len(here["regions"])
    assert ">Look at it<" in fetch(page, "report", tmp_path).read_text()
    # By the share of good parts above it.
    page.locator("#look-rate input").click()
    page.get_by_role("option", name="1 in 5").click()
    page.wait_for_function("diffad.choices().lookRate === 0.2")
    assert now(page)["lookRate"] == pytest.approx(0.2, abs=1e-3)
    expect(page.locator(".meaning")).to_contain_text("about 1 in 5 looked at or rejected")
    stands_at(page, "#look", now(page)["look"])


def test_the_look_limit_moves_by_its_line_and_by_keys_and_ends_at_the_threshold(page: Page):
    inspect(page, "gear_good")
    before = now(page)
    drag(page, "look", -60)
    expect(page.locator(".verdict.look")).to_be_visible()
    here = now(page)
    assert here["look"] < before["look"] and here["threshold"] == before["threshold"]
    stands_at(page, "#look", here["look"])
    page.locator(".limit-grip.look").focus()
    page.keyboard.press("ArrowRight")
    settled(page)
    assert here["look"] < now(page)["look"] < here["threshold"]
    drag(page, "look", 2000)
    assert now(page)["look"] == now(page)["threshold"] == before["threshold"]
    expect(page.locator(".verdict.good")).to_be_visible()
    expect(page.locator(".meaning")).not_to_contain_text("looked at")  # nothing lies between
    # Where the lines lie on each other either can still be taken.
    drag(page, "look", -15)
    assert now(page)["look"] < now(page)["threshold"] == before["threshold"]
    # A threshold moved below the look limit pushes it down, and lets it return.
    look = now(page)["look"]
    move(page, "#threshold", 0.5)
    expect(page.locator(".verdict.anomalous")).to_be_visible()
    assert now(page)["look"] == now(page)["threshold"] == 0.5
    stands_at(page, "#look", 0.5)
    move(page, "#threshold", 12)
    assert now(page)["look"] == look


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


def test_a_format_that_browsers_cannot_draw_is_shown(page: Page, defective: Path, tmp_path: Path):
    Image.open(defective).save(tmp_path / "part.tif")
    upload(page, tmp_path / "part.tif")
    expect(page.locator("#picture img")).to_have_js_property("naturalWidth", 256)
    inspect(page, "gear_good")
    expect(page.locator("#picture img")).to_have_attribute("src", re.compile("gear_good"))


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repairs of one round, which end sooner."""
    monkeypatch.setattr("diffad.repairing._ROUNDS", 1)


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


def test_a_threshold_of_ones_own_is_not_taken_to_another_category(page: Page, tmp_path: Path):
    """Not even after a file that cannot be read, which also unmarks the sample and clears the address."""
    inspect(page, "gear_good")
    move(page, "#threshold", 10)
    page.wait_for_function("location.search.includes('gear_good')")
    (tmp_path / "broken.png").write_bytes(b"this is not a picture")
    upload(page, tmp_path / "broken.png")
    expect(page.locator("#verdict .empty")).to_contain_text("broken.png")
    expect(page.locator("#samples button.on")).to_have_count(0)
    page.wait_for_function("!location.search.includes('sample')")
    inspect(page, "gear_good")
    assert now(page)["threshold"] == 10
    upload(page, tmp_path / "broken.png")
    expect(page.locator("#verdict .empty")).to_contain_text("broken.png")
    inspect(page, "leather_good")
    assert now(page)["threshold"] < 10 and not now(page)["own"]
    inspect(page, "gear_good")  # where it stays
    assert now(page)["threshold"] == 10 and now(page)["own"]
    expect(page.locator("#rate input")).to_have_value("own score")


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
