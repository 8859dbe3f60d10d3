"""The Batch tab on a real server with the bundled model, in a real browser."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from batch_steps import downloaded, finish, inspect_folder, limit_box, shown, state, threshold_box
from conftest import at_rest
from PIL import Image, ImageOps
from playwright.sync_api import Page, expect

from diffad.inspector import Inspector
from diffad.synthetic.parts import write_set
from diffad.ui import serve
from diffad.ui.batch_tab import folders

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"

LONG = 150  # pictures in a run that is to be interrupted


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root: a folder for a long run, a labelled data set, and a link that leads outside."""
    root = tmp_path_factory.mktemp("server") / "data"
    picture = (SAMPLES / "leather_good.png").read_bytes()
    (root / "long").mkdir(parents=True)
    for i in range(LONG):
        (root / "long" / f"{i}.png").write_bytes(picture)
    write_set(root / "set", ["gear"], 0, 2, 4)
    gears = root / "set" / "gear"
    (gears / "test" / "good").rename(gears / "test" / "OK")
    mask = min(gears.glob("ground_truth/*/*.png"))
    ImageOps.invert(Image.open(mask).convert("L")).save(mask)
    (root.parent / "secret").mkdir()
    (root.parent / "secret" / "1.png").write_bytes(picture)
    (root / "door").symlink_to(root.parent / "secret")
    return root


@pytest.fixture(scope="module")
def url(inspector: Inspector, root: Path) -> Iterator[str]:
    app = serve({"parts": inspector}, "127.0.0.1", open_browser=False, block=False, data_root=root)
    yield app.local_url
    app.close()


@pytest.fixture
def page(page: Page) -> Page:
    """A fresh session on the Batch tab."""
    page.get_by_role("tab", name="Batch").click()
    expect(page.locator("#batch-files")).to_be_visible()
    return page


def test_a_dark_picture_of_12_bits_is_read_like_its_batch(page: Page, tmp_path: Path):
    part = cv2.imread(str(SAMPLES / "gear_good.png")).astype(np.uint16)
    for name, factor in (("bright", 16), ("dark", 3)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), factor * part)
    names = ["bright.png", "dark.png"]
    page.locator("#batch-files input[type=file]").set_input_files([tmp_path / name for name in names])
    finish(page)
    expect(page.locator(".batch-note")).to_have_text(re.compile("are read as 12 bits"))
    expect(page.locator("td.name small.noted", has_text="Read as")).to_have_count(0)
    scores = {row["name"]: row["score"] for row in state(page)["rows"]}
    page.locator("tr[data-index]", has_text="dark.png").click()  # opens it in Inspect, still as 12 bits
    page.wait_for_function("() => diffad.state().part?.name === 'dark'")
    score = float(page.locator("#verdict .verdict-slot").get_attribute("data-score"))
    assert score == pytest.approx(scores["dark.png"], rel=1e-4)
    expect(page.locator("#verdict .note", has_text="Read as")).to_have_count(0)


def test_a_row_with_a_note_is_marked_and_found(page: Page, tmp_path: Path):
    part = cv2.imread(str(SAMPLES / "gear_good.png")).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), 16 * part)  # one alone is no set
    files = [tmp_path / "deep.png", SAMPLES / "gear_good.png"]
    page.locator("#batch-files input[type=file]").set_input_files(files)
    finish(page)
    expect(page.locator(".batch-note")).to_be_hidden()
    expect(page.locator(".batch-summary .facts")).to_contain_text("1 with a note")
    marked = page.locator("td.name small.noted")
    expect(marked).to_have_text(re.compile("Read as 12 bits"))
    expect(marked).to_have_attribute("title", re.compile("Read as 12 bits"))
    page.locator(".filters [data-key=noted]").click()
    expect(page.locator("tbody tr[data-index]")).to_have_count(1)
    (row,) = csv.DictReader(downloaded(page, "csv", tmp_path).read_text().splitlines()[:2])
    assert row["bits"] == "12" and "Read as 12 bits" in row["notes"]


def test_a_day_of_pictures(page: Page, inspector: Inspector, tmp_path: Path):
    """Files, a broken one and a zip; then sort, filter, another threshold, downloads, and into Inspect."""
    files = [SAMPLES / name for name in ("gear_good.png", "gear_broken_tooth.png", "leather_good.png")]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for name in ("chip_good.png", "leather_good.png"):
            archive.write(SAMPLES / name, f"more/{name}")
    page.locator("#batch-files input[type=file]").set_input_files([*files, broken, tmp_path / "more.zip"])
    finish(page)
    names = ["gear_good.png", "gear_broken_tooth.png", "leather_good.png", "broken.png", "chip_good.png",
             "leather_good.png"]  # fmt: skip
    assert [text.split("\n")[0] for text in shown(page, "name")] == names
    expect(page.locator("tr[data-verdict=failed]")).to_contain_text("broken.png is not a picture")
    summary = page.locator(".batch-summary")
    expect(summary).to_contain_text(re.compile("1 of 5 anomalous.*0 to look at.*4 good.*1 not read", re.S))
    page.wait_for_function(
        "() => [...document.querySelectorAll('tbody img')].filter(i => i.naturalWidth > 40).length === 5"
    )

    # Numbers and verdicts are the inspector's.
    rows = state(page)["rows"]
    own = inspector.inspect(files[1])
    assert rows[1]["score"] == pytest.approx(own.score, abs=1e-4) and rows[1]["verdict"] == "anomalous"
    assert rows[1]["limit"] == pytest.approx(own.threshold) and rows[1]["regions"] == len(own.regions)

    # Sorted by score, highest first; what has none comes last, either way.
    page.locator("th.score button").click()
    scores = [row.get("score") for row in state(page)["listed"]]
    assert scores[:5] == sorted(scores[:5], reverse=True) and scores[5] is None
    page.locator("th.score button").click()
    assert [row.get("score") for row in state(page)["listed"]] == [*scores[4::-1], None]
    expect(page.locator("th.score")).to_have_attribute("aria-sort", "ascending")

    # A threshold of one category leaves the others alone; a rate rules all.
    page.locator(".categories .chip", has_text="gear").click()
    gear_good = rows[0]["score"]
    threshold_box(page, "score").fill(f"{gear_good - 0.5:.4f}")
    expect(page.locator(".batch-summary h2")).to_have_text("2 of 5 anomalous")
    rate = inspector.scorer("gear").rate(state(page)["view"]["threshold"]["own"]["gear"])
    box = threshold_box(page, "rate")
    assert box.input_value() == str(round(1 / rate)) if rate < 0.5 else box.is_hidden()
    page.locator(".filters .chip", has_text="Anomalous").click()
    assert sorted(row["name"] for row in state(page)["listed"]) == ["gear_broken_tooth.png", "gear_good.png"]

    # Downloads agree with the page, including the changed threshold.
    page.locator(".filters .chip", has_text="All").click()
    with downloaded(page, "csv", tmp_path).open(encoding="utf-8-sig", newline="") as file:
        lines = {line["path"]: line for line in csv.DictReader(file)}
    now = state(page)["rows"]
    for row in now:
        line = lines[row["name"]]
        assert line["error"] == row["error"]
        if not row["error"]:
            assert line["is_anomalous"] == str(row["verdict"] == "anomalous")
            assert line["verdict"] == row["verdict"]
            assert float(line["look_threshold"]) == pytest.approx(row["look"])
            assert float(line["threshold"]) == pytest.approx(row["limit"])
            assert float(line["score"]) == pytest.approx(row["score"])
    expect(page.locator("td.stale")).to_have_count(0)
    for row in state(page)["rows"]:
        if not row["error"]:
            regions = row["recount"] if row["verdict"] != "good" else 0
            assert int(lines[row["name"]]["regions"]) == regions
    document = json.loads(downloaded(page, "json", tmp_path).read_text())
    assert [entry["path"] for entry in document["pictures"]] == [row["name"] for row in now]
    with zipfile.ZipFile(downloaded(page, "zip", tmp_path)) as archive:
        assert sum(name.startswith("overlays/") for name in archive.namelist()) == 5

    page.locator(".limits .usual").click()
    threshold_box(page, "rate").fill("1000")
    for row in state(page)["rows"]:
        if not row["error"]:
            assert row["limit"] == pytest.approx(inspector.threshold(row["category"], rate=0.001), abs=1e-3)
    page.locator(".limits .usual").click()
    expect(page.locator(".batch-summary h2")).to_have_text("1 of 5 anomalous")
    page.locator(".chart .handle[data-limit=threshold]").focus()
    page.keyboard.press("PageUp")
    threshold = state(page)["view"]["threshold"]["own"]["gear"]
    assert threshold == pytest.approx(1.1 * inspector.threshold("gear"), abs=1e-3)
    expect(page.locator(".chart .handle[data-limit=threshold]")).to_be_focused()
    page.locator(".limits .usual").click()

    # Into Inspect, along the rows with the arrow keys, and back.
    page.locator("th.index").wait_for()
    page.locator("[role=grid]").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    opened = state(page)["listed"]
    expect(page.locator("#batch-strip")).to_contain_text("1 of 5 in the batch")
    for row in opened[:2]:
        expect(page.locator("#batch-strip")).to_contain_text(row["name"].split("/")[-1])
        page.wait_for_function(
            "score => Math.abs((diffad.state().result?.score ?? 0) - score) < 0.01",
            arg=row["score"],
        )
        page.evaluate("document.activeElement?.blur()")
        page.keyboard.press("ArrowRight")
    expect(page.locator("#batch-strip")).to_contain_text("3 of 5 in the batch")
    page.locator("#batch-strip .back").click()
    expect(page.locator("tr[aria-selected=true]")).to_contain_text(opened[2]["name"].split("/")[-1])


def test_a_threshold_goes_to_inspect_and_back_and_stays_in_the_address(page: Page, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    names = ("gear_broken_tooth.png", "gear_good.png", "leather_good.png")
    files = [tmp_path / "a.png", *(SAMPLES / name for name in names)]
    page.locator("#batch-files input[type=file]").set_input_files(files)
    finish(page)
    limits, box = page.locator(".limits"), threshold_box(page, "score")
    page.locator(".categories .chip", has_text="gear").click()
    box.fill("-1")  # no score is so low
    assert state(page)["view"]["threshold"]["own"] == {"gear": 0}
    box.fill("60")
    limit_box(page, "look", "score").fill("2.25")
    expect(limits).to_contain_text("rejects fewer than 1 good part in 100 000")
    expect(threshold_box(page, "rate")).to_be_hidden()
    expect(page.locator(".batch-summary h2")).to_have_text("0 of 3 anomalous")

    def opened() -> None:
        strip = page.locator("#batch-strip")
        expect(strip).to_contain_text(re.compile(r"batch verdict: look at it, .* between 2\.25 and 60"))
        expect(page.locator(".verdict.look .reading")).to_contain_text("look limit 2.25 · threshold 60.0")
        for control in ("#rate", "#look-rate"):
            expect(page.locator(f"{control} input")).to_have_value("own score")

    page.locator("tr[data-index]", has_text="broken_tooth").click()
    opened()
    page.wait_for_function("location.search.includes('batch-row=1')")
    page.reload()
    opened()
    page.locator("#batch-strip .back").click()
    page.wait_for_function("!location.search.includes('batch-row')")
    page.reload()
    finish(page)
    assert state(page)["view"]["threshold"]["own"] == {"gear": 60}
    assert page.locator("#batch-page").is_visible()

    # By rate: what Inspect offers it takes over, and the next batch begins with it.
    page.locator(".limits .usual").click()
    threshold_box(page, "rate").fill("20")
    page.locator("tr[data-index]", has_text="leather_good").click()
    expect(page.locator("#rate input")).to_have_value("1 in 20")
    page.wait_for_function("diffad.state().result && diffad.choices().rate === 0.05")
    page.get_by_role("tab", name="Batch").click()
    setting = "model parts · category recognised · α 0.5 · t 20 to 400, 3 levels · "
    setting += "1 good part in 20 rejected · 1 in 10 looked at"
    expect(page.locator("#batch-controls")).to_contain_text(setting)
    first = state(page)["id"]
    page.locator("#batch-files input[type=file]").set_input_files(files[3])
    page.wait_for_function("first => diffad.batchState().run.id !== first", arg=first)
    assert state(page)["view"]["threshold"]["rate"] == 0.05


def test_what_lies_between_the_limits_is_to_be_looked_at(page: Page, inspector: Inspector, tmp_path: Path):
    """In counts, filters, marks and downloads. Both lines move by pointer and by keys."""
    names = ("gear_good.png", "gear_broken_tooth.png", "leather_good.png")
    page.locator("#batch-files input[type=file]").set_input_files([SAMPLES / name for name in names])
    finish(page)
    page.locator(".categories .chip", has_text="gear").click()
    summary, row = page.locator(".batch-summary"), page.locator("tr[data-index]", has_text="gear_good")
    expect(summary).to_contain_text(re.compile("1 of 3 anomalous.*0 to look at · 2 good", re.S))
    expect(row.locator(".verdict b")).to_have_text("✓ good")

    limit_box(page, "look", "score").fill("1.5")
    expect(summary).to_contain_text(re.compile("1 of 3 anomalous.*1 to look at · 1 good", re.S))
    expect(row.locator(".verdict b")).to_have_text("! look at it")
    expect(row.locator("td.regions")).to_have_text(re.compile("[1-9]"))
    page.locator(".filters [data-key=look]").click()
    assert [each["name"] for each in state(page)["listed"]] == ["gear_good.png"]
    with zipfile.ZipFile(downloaded(page, "zip", tmp_path)) as archive:
        results = {each["path"]: each for each in json.loads(archive.read("results.json"))["pictures"]}
    assert [results[name]["verdict"] for name in names] == ["look", "anomalous", "good"]
    assert results["gear_good.png"]["look_threshold"] == 1.5 and results["gear_good.png"]["regions"]
    usual = inspector.threshold("leather", rate=0.1)
    assert results["leather_good.png"]["look_threshold"] == pytest.approx(usual)
    page.wait_for_function("location.search.includes('batch-look-limits=gear')")
    page.reload()
    expect(summary).to_contain_text("1 to look at")

    # By keys, then as far up as it goes: nothing lies between the limits any more.
    page.locator(".chart .handle[data-limit=look]").focus()
    page.keyboard.press("PageUp")
    assert state(page)["view"]["look"]["own"]["gear"] == pytest.approx(1.65)
    expect(page.locator(".chart .handle[data-limit=look]")).to_be_focused()
    box, y = page.locator(".chart svg").bounding_box(), 10
    knob = page.locator(".chart .handle[data-limit=look] path").bounding_box()
    page.mouse.move(knob["x"] + 2, knob["y"] + y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, knob["y"] + y, steps=4)
    page.mouse.up()
    gear = state(page)["rows"][0]
    assert gear["look"] == pytest.approx(gear["limit"], abs=1e-3)
    expect(summary).to_contain_text("0 to look at · 2 good")
    page.locator(".limits .usual").click()
    limit_box(page, "look", "rate").fill("2")
    for each in state(page)["rows"]:
        assert each["look"] == pytest.approx(inspector.threshold(each["category"], rate=0.5), abs=1e-3)
        assert each["limit"] == pytest.approx(inspector.threshold(each["category"]), abs=1e-3)


def test_pictures_that_cannot_be_read_are_counted(page: Page, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.evaluate(
        """() => {
            const head = document.querySelector(".batch-summary h2");
            window.heads = [];
            new MutationObserver(() => heads.push(head.textContent)).observe(head, { childList: true });
        }"""
    )
    page.locator("#batch-files input[type=file]").set_input_files([broken, SAMPLES / "gear_good.png"])
    finish(page)
    summary = re.compile("0 of 1 anomalous.*0 to look at.*1 good.*1 not read", re.S)
    expect(page.locator(".batch-summary")).to_contain_text(summary)
    assert "No picture was read" not in page.evaluate("heads")
    expect(page.locator(".filters")).to_contain_text("Not read")
    page.locator("#batch-files input[type=file]").set_input_files(broken)
    expect(page.locator(".batch-summary h2")).to_have_text("No picture was read")
    finish(page)


def test_a_reload_in_the_middle_loses_nothing_and_cancel_keeps_what_is_done(page: Page):
    inspect_folder(page, "long")
    page.wait_for_function("() => (diffad.batchState().run?.rows.length ?? 0) >= 2")
    before = state(page)
    page.reload()
    page.wait_for_function("() => (window.diffad?.batchState?.().run?.rows.length ?? 0) > 0")
    expect(page.locator("tbody tr[data-index]").first).to_be_visible()
    after = state(page)
    assert after["id"] == before["id"] and after["total"] == LONG
    scores = [[row["score"] for row in known["rows"]] for known in (before, after)]
    assert scores[1][: len(scores[0])] == scores[0]
    expect(page.locator(".doing")).to_contain_text(f"of {LONG} · about")
    page.locator(".cancel").click()
    finish(page, "stopped")
    done = len(state(page)["rows"])
    assert 0 < done < LONG
    expect(page.locator(".doing")).to_contain_text(f"Cancelled after {done} of {LONG}")
    expect(page.locator("tbody tr[data-index]").first).to_be_visible()


def test_a_lost_answer_is_waited_for_and_another_batch_ends_this_one(page: Page):
    inspect_folder(page, "long")
    page.wait_for_function("() => (diffad.batchState().run?.rows.length ?? 0) >= 1")
    first = state(page)["id"]
    page.route("**/component_server/**", lambda route: route.fulfill(body="lost"))
    doing = page.locator(".doing")
    expect(doing).to_contain_text("does not answer")
    page.locator(".cancel").click()
    expect(doing).to_contain_text("cancel again")
    assert state(page)["state"] == "running"
    page.unroute("**/component_server/**")
    expect(doing).to_contain_text(f"of {LONG} · about")
    inspect_folder(page, "set")
    page.wait_for_function("first => diffad.batchState().run.id !== first", arg=first)
    finish(page)
    page.evaluate("run => history.replaceState(null, '', `?batch=${run}`)", first)
    page.reload()
    finish(page, "stopped")


def test_a_run_that_the_server_does_not_have_is_reported(page: Page, url: str):
    page.goto(f"{url}?batch=unknown")
    expect(page.locator(".batch-summary")).to_contain_text("This batch is gone")
    assert "batch=" not in page.url


def test_labels_measure_the_verdicts_and_axe_is_content(page: Page, root: Path):
    inspect_folder(page, "set")
    finish(page)
    rows = state(page)["rows"]
    assert len(rows) == 6 and {row["label"] != "good" for row in rows} == {True, False}
    assert all(row["bad"] == (row["label"] != "good") for row in rows)
    summary = re.compile(r"\d of 4 defects found.*\d of 2 good rejected")
    expect(page.locator(".batch-summary")).to_contain_text(summary)
    pairs = [(b["score"] > g["score"]) for b in rows if b["bad"] for g in rows if not g["bad"]]
    line = page.locator(".numbers tr", has_text="image AUROC")
    expect(line).to_contain_text(f"{sum(pairs) / len(pairs):.3f}")
    assert page.locator(".numbers svg polyline").count() == 2
    expect(page.locator(".numbers .about")).to_contain_text(re.compile(r"good: test/OK · defective: test/"))
    expect(page.locator(".numbers .about")).to_contain_text("Masks have a bright border")
    wrong = sum(row["verdict"] == ("good" if row["bad"] else "anomalous") for row in rows)
    expect(page.locator(".filters .chip", has_text="Misjudged")).to_contain_text(str(wrong))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.reload()
        expect(page.locator("tbody tr[data-index]").first).to_be_visible()
        at_rest(page)
        found = Axe().run(page, context="#batch-page").response["violations"]
        grave = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in grave] == []
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator("tbody tr[data-index]").first).to_be_visible()
    page.wait_for_function("document.documentElement.scrollWidth <= 390")


def test_nothing_outside_the_data_root_is_read(page: Page, root: Path):
    summary = page.locator(".batch-summary")
    for way in ("door", "../secret", "set/../../secret", "/", f"{root}/../secret"):
        inspect_folder(page, "nowhere")
        expect(summary).to_contain_text("no such folder")
        inspect_folder(page, way)
        expect(summary).to_contain_text("outside the folder that may be read")
    assert page.locator("tbody tr[data-index]").count() == 0


def test_a_folder_that_may_not_be_read_is_not_offered(tmp_path: Path, locked: None):
    for place in ("am/first", "am/locked", "pm"):
        (tmp_path / place).mkdir(parents=True)
    assert folders(tmp_path) == [".", "am", "am/first", "pm"]
    assert folders(tmp_path / "am" / "locked") == ["."]


def test_only_the_rows_in_sight_are_in_the_page(page: Page, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("broken.png", b"")
        for i in range(999):
            archive.writestr(f"{i}.png", b"no picture")
    page.locator("#batch-files input[type=file]").set_input_files(tmp_path / "many.zip")
    finish(page)
    page.wait_for_function("() => diffad.batchState().run.rows.length === 1000")
    assert page.locator("tbody tr[data-index]").count() < 60
    page.locator("[role=grid]").press("End")
    expect(page.locator("tr[aria-selected=true]")).to_contain_text("broken.png")
    assert page.locator("tbody tr[data-index]").count() < 60
