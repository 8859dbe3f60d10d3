"""The history on a real server, in a real browser: inspections are kept, found, corrected and reopened."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import at_rest, visiting
from history_steps import choose, correction, is_said, kept, listed, names, open_history
from page_steps import drawn, inspect, move, now, settled, stands_at
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from test_interfaces import served
from test_ui_page_layout import violations
from workspace_cases import START, keep

from diffad.inspector import Inspector
from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.store import Workspace

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with Workspace.open(tmp_path_factory.mktemp("workspace")) as workspace:
        yield History(workspace)


@pytest.fixture(scope="module")
def url(inspector: Inspector, history: History, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(inspector, tmp_path_factory.mktemp("cache"), workspace=history.workspace) as address:
        yield address


@pytest.fixture
def empty(history: History) -> History:
    history.delete([row[0] for row in history.columns(Filter(), "id")], "")
    return history


def test_an_inspection_is_kept_corrected_and_reopened(page: Page, empty: History):
    inspect(page, "gear_broken_tooth")
    kept(page)
    is_said(page, "#correction", "")
    expect(correction(page, "#correction", "defective")).to_be_disabled()  # the verdict says so already
    correction(page, "#correction", "right").click()
    is_said(page, "#correction", "right")
    page.keyboard.press("g")
    is_said(page, "#correction", "good")
    page.keyboard.press("g")
    is_said(page, "#correction", "")
    page.locator("#threshold input[type=number]").focus()
    page.keyboard.press("y")  # typed into a box
    page.locator(".verdict h2").click()
    assert empty.find()[0][0].correction == ""

    # The record follows the choices of the browser once somebody says something.
    (before,) = empty.find()[0]
    move(page, "#alpha", 0.9)
    page.evaluate("() => diffad.decide({ threshold: 500 })")
    expect(page.locator(".verdict.look")).to_be_visible()
    page.keyboard.press("b")
    is_said(page, "#correction", "defective")
    (entry,) = empty.find()[0]
    here = now(page)
    assert (entry.id, entry.verdict, entry.threshold) == (before.id, "look", 500)
    assert entry.score == pytest.approx(here["score"], abs=1e-3) and entry.score != before.score
    assert entry.settings["alpha"] == 0.9 and entry.settings["limits"]["threshold"] == 500
    assert entry.quality.keys() == before.quality.keys() and entry.quality["noise"] >= 0

    open_history(page, 1)
    row = page.locator("#history tbody tr").first
    expect(row.locator(".verdict")).to_contain_text("look at it")
    expect(row.locator("td.correction")).to_have_text("it is defective")
    row.click()
    is_said(page, ".history-detail", "defective")
    assert drawn(page, ".history-detail .heat")[0] > 20
    page.locator(".history-detail .undo").click()
    is_said(page, ".history-detail", "")
    expect(row.locator("td.correction")).to_have_text("")
    page.keyboard.press("b")
    is_said(page, ".history-detail", "defective")
    expect(page.locator(".history-detail .events li").first).to_contain_text("wrong, it is defective")

    # Opened in Inspect it is judged as it was, and is no other inspection.
    page.reload()
    page.locator("#samples button").first.wait_for()
    inspect(page, "leather_good")
    kept(page)
    open_history(page, 2)
    choose(page, "gear_broken_tooth.png")
    page.locator(".history-detail .reopen").click()
    page.wait_for_function("() => diffad.state().part?.link?.sample?.startsWith('gear_broken')")
    settled(page)
    stands_at(page, "#alpha", 0.9)
    again = now(page)
    assert again["score"] == pytest.approx(here["score"], abs=1e-3) and again["threshold"] == 500
    is_said(page, "#correction", "defective")
    assert empty.find()[1] == 2


def test_settings_that_need_the_network_are_restored(page: Page, empty: History):
    inspect(page, "chip_bent_lead")
    kept(page)
    for control, value in (("#highest", 300), ("#count", 2), ("#draws", 2)):
        move(page, control, value)
    page.wait_for_function("() => diffad.state().part.timesteps.join() === '20,300'")
    page.evaluate("() => diffad.toggle(0)")
    settled(page)
    page.wait_for_function("() => diffad.newest(diffad.state().part)")
    kept(page)
    page.keyboard.press("y")
    is_said(page, "#correction", "right")
    seen, (entry, *_) = now(page), empty.find()[0]
    assert entry.settings["timesteps"] == [300] and entry.settings["asked"]["draws"] == 2
    with_choices = empty.find()[1]
    page.goto(page.url.partition("?")[0])
    page.locator("#samples button").first.wait_for()
    open_history(page, with_choices)
    page.locator(f"#history-row-{entry.id}").click()
    expect(page.locator(".facts-of-history")).to_contain_text("t = 300, 2 draws")
    page.locator("#history table[role=grid]").press("Enter")
    page.wait_for_function("() => diffad.state().part?.timesteps?.join() === '20,300'")
    settled(page)
    assert now(page)["score"] == pytest.approx(seen["score"], abs=1e-3)
    assert now(page)["timesteps"] == [300]
    stands_at(page, "#draws", 2)
    is_said(page, "#correction", "right")
    assert empty.find()[1] == with_choices


def test_the_switch_keeps_nothing_and_is_remembered(page: Page, empty: History):
    expect(page.locator("#keep input")).to_be_checked()
    page.locator("#keep input").uncheck()
    inspect(page, "gear_good")
    expect(page.locator("#correction .correction")).to_be_hidden()
    page.reload()
    expect(page.locator("#keep input")).not_to_be_checked()
    page.locator("#keep input").check()
    inspect(page, "gear_good")
    kept(page)
    assert empty.find()[1] == 1


def test_a_batch_is_kept_and_corrected(page: Page, empty: History):
    page.get_by_role("tab", name="Batch").click()
    pictures = [SAMPLES / name for name in ("gear_good.png", "gear_corrosion.png", "leather_good.png")]
    page.locator("#batch-files input[type=file]").set_input_files(pictures)
    expect(page.locator(".batch")).to_have_attribute("data-state", "done")
    table = page.locator(".batch table[role=grid]")
    table.focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("g")
    is_said(page, ".batch", "good")
    expect(page.locator(".batch tr[aria-selected=true] td.verdict")).to_contain_text("said to be good")
    entries, total = empty.find(sort="picture", descending=False)
    assert total == 3 and {entry.source for entry in entries} == {"batch"}
    assert [(entry.picture, entry.correction) for entry in entries] == [
        ("gear_corrosion.png", "good"), ("gear_good.png", ""), ("leather_good.png", ""),
    ]  # fmt: skip
    # A row that is opened in Inspect is the same inspection, and what is said there holds for the row.
    page.keyboard.press("Enter")
    page.wait_for_function("() => diffad.state().part?.link?.sample === 'gear_corrosion.png'")
    is_said(page, "#correction", "good")
    page.keyboard.press("g")
    is_said(page, "#correction", "")
    page.get_by_role("tab", name="Batch").click()
    is_said(page, ".batch", "")
    assert empty.find()[1] == 3


def test_filters_pages_and_files(page: Page, empty: History, tmp_path: Path):
    day = 86_400.0
    for n in range(60):
        keep(
            empty, n, picture=f"lot/Part_{n:02}.png", category="gear" if n % 2 else "chip", score=n / 10,
            verdict="anomalous" if n >= 51 else "good", who="anna" if n < 5 else "", time=START + n * day,
        )  # fmt: skip
    empty.correct(empty.find(Filter(text="part_59"))[0][0].id, "right", "anna")
    open_history(page, 60)
    assert len(names(page)) == 50 and names(page)[0] == "Part_59.png"
    page.locator(".older").click()
    expect(page.locator(".pager .where")).to_have_text("51 to 60 of 60")
    form = page.locator(".history-filters")
    for name, value, count in (
        ("text", "PART_5", 10), ("category", "gear", 5), ("verdict", "anomalous", 5),
        ("correction", "any", 1),
    ):  # fmt: skip
        field = form.locator(f"[name={name}]")
        field.select_option(value) if name != "text" else field.fill(value)
        listed(page, count)
    form.get_by_text("Show all").click()
    listed(page, 60)
    form.locator("[name=who]").select_option("anna")
    listed(page, 5)
    form.locator("[name=who]").select_option("")
    form.locator("[name=score_from]").fill("1")
    form.locator("[name=score_to]").fill("1.95")
    listed(page, 10)
    form.get_by_text("Show all").click()
    listed(page, 60)
    form.locator("[name=until]").fill("2026-09-30")
    page.wait_for_function("() => diffad.historyState().found.total < 60")
    total = page.evaluate("() => diffad.historyState().found.total")
    page.locator("#history th.score button").click()
    expect(page.locator("#history th.score")).to_have_attribute("aria-sort", "descending")
    assert names(page)[0] == f"Part_{total - 1:02}.png"
    files = {}
    for kind in ("csv", "json", "zip"):
        with page.expect_download() as waiting:
            page.locator(f"#history [data-take={kind}]").click()
        files[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(files[kind])
    assert len(list(csv.DictReader(io.StringIO(files["csv"].read_text("utf-8-sig"))))) == total
    assert json.loads(files["json"].read_text())["found"] == total
    assert (
        len([name for name in zipfile.ZipFile(files["zip"]).namelist() if name.startswith("pictures/")])
        == total
    )


def test_deleting_asks_first(page: Page, empty: History):
    for n in range(3):
        keep(empty, n, picture=f"{n}.png")
    open_history(page, 3)
    for n in range(2):
        page.locator("#history tr", has_text=f"{n}.png").locator("input").check()
    page.locator(".delete-chosen").click()
    expect(page.locator(".confirm")).to_contain_text("Delete 2 inspections")
    page.locator(".confirm .no").click()
    assert empty.find()[1] == 3
    page.locator(".delete-chosen").click()
    page.locator(".confirm .yes").click()
    listed(page, 1)
    assert [entry.picture for entry in empty.find()[0]] == ["2.png"]


def test_a_drawn_defect_is_kept_as_a_mask(page: Page, empty: History):
    inspect(page, "gear_broken_tooth")
    kept(page)
    open_history(page, 1)
    choose(page, "gear_broken_tooth.png")
    page.locator(".draw").click()
    box = page.locator(".drawn").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.locator(".brush .save").click()
    is_said(page, ".history-detail", "right")  # who draws a defect in a rejected part agrees
    expect(page.locator(".events")).to_contain_text("drew the defect")
    (entry,) = empty.find()[0]
    with Image.open(empty.mask_path(entry)) as mask, Image.open(empty.picture_path(entry)) as picture:
        assert mask.size == picture.size
        left, top, right, bottom = mask.getbbox()
        assert left < 0.25 * mask.width and 0.45 * mask.width < right < 0.7 * mask.width
        assert top > 0.3 * mask.height and bottom < 0.7 * mask.height


def test_two_people_do_not_see_each_others_choice(browser: Browser, url: str, empty: History):
    keep(empty, 1, picture="a.png")
    keep(empty, 2, picture="b.png")
    with visiting(browser, url) as one, visiting(browser, url) as other:
        open_history(one, 2)
        open_history(other, 2)
        choose(one, "a.png")
        choose(other, "b.png")
        other.locator(".history-filters [name=text]").fill("b.png")
        listed(other, 1)
        one.keyboard.press("y")
        is_said(one, ".history-detail", "right")
        expect(one.locator(".history-detail h3")).to_have_text("a.png")
        is_said(other, ".history-detail", "")
        assert len(names(one)) == 2


def test_a_full_disk_costs_no_verdict(page: Page, empty: History, monkeypatch: pytest.MonkeyPatch):
    from diffad.output import OutputError

    def full(*_):
        raise OutputError(Path("x"), OSError(28, "No space left on device"))

    monkeypatch.setattr("diffad.workspace.files.put", full)
    inspect(page, "gear_corrosion")
    expect(page.locator(".verdict.anomalous")).to_be_visible()
    expect(page.locator("#correction .said")).to_contain_text("Not kept in the history: the server's disk")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, url: str, empty: History, scheme: str):
    for n in range(30):
        keep(
            empty,
            n,
            picture=f"{n}.png",
            score=float(n % 4),
            verdict=("good", "look", "anomalous")[n % 3],
            who="anna",
        )
    with visiting(browser, url, color_scheme=scheme) as page:
        inspect(page, "gear_corrosion")
        kept(page)
        correction(page, "#correction", "right").click()
        is_said(page, "#correction", "right")
        found = violations(page)
        open_history(page, 31)
        choose(page, "gear_corrosion.png")
        page.locator(".draw").click()
        expect(page.locator(".drift-slot")).not_to_contain_text("Nothing is kept")
        at_rest(page)
        found |= violations(page)
        page.locator(".history-detail .delete").click()
        found |= violations(page)
        assert found == set()
