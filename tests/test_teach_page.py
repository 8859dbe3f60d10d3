"""The Teach tab on a real server, in a real browser: from a zip to a verdict."""

import re
import zipfile

import numpy as np
import pytest
from conftest import DESKTOP, PATIENCE, few_looks
from PIL import Image
from playwright.sync_api import Page, expect
from server_steps import served
from test_ui_page_layout import violations

from diffad.inspector import Inspector
from diffad.synthetic.parts import make_part
from diffad.workspace.store import Workspace
from diffad.workspace.taught import Taught


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with Workspace.open(tmp_path_factory.mktemp("workspace")) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(trained, workspace, tmp_path_factory):
    with (
        few_looks(),
        served(
            Inspector.load(trained, "cpu"), tmp_path_factory.mktemp("files"), workspace=workspace
        ) as address,
    ):
        yield address


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("tab", name="Teach").click()
    yield page
    context.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Twelve good hides, one of them twice, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("hides")
    for seed in range(12):
        Image.fromarray(make_part("leather", seed, size=64).image).save(folder / f"hide{seed:02}.png")
    Image.fromarray(make_part("leather", 3, size=64).image).save(folder / "zz again.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"no picture")
    path = folder / "hides.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for file in sorted(folder.glob("*.*g")):
            zipped.write(file, file.name)
    return path


def says(page: Page, words: str) -> None:
    expect(page.locator("#teach-status")).to_contain_text(words, timeout=PATIENCE)


def test_from_a_zip_to_a_verdict(page: Page, archive, workspace, tmp_path):
    page.locator("#teach-now").click()
    says(page, "Give the part a name")
    page.locator("#teach-files input[type=file]").set_input_files(archive)
    says(page, "12 of 14 pictures can be learned from; 1 cannot be read; 1 repeats another one")
    tiles = page.locator("#teach-offered .offered")
    expect(tiles).to_have_count(14)
    expect(tiles.filter(has_text="zz again.jpg")).to_be_disabled()
    expect(tiles.filter(has_text="broken.png")).to_contain_text("broken.png is not a picture")
    assert "/" not in tiles.filter(has_text="broken.png").inner_text()
    tiles.filter(has_text="hide05").click()
    says(page, "You left out 1 more")
    page.locator("#teach-name").get_by_role("textbox").fill("my hide")
    assert violations(page) == set()
    page.locator("#teach-now").click()
    says(page, "my hide can be chosen in Inspect now")
    expected = page.locator("#teach-expected")
    expect(expected).to_contain_text("artificial defects")
    expect(expected.locator("figure")).not_to_have_count(0)
    expect(expected).to_contain_text(re.compile("changed good pictures rejected"), timeout=PATIENCE)
    assert len(Taught(workspace).find("my hide").pictures) == 11
    assert violations(page) == set()

    image = make_part("leather", 50, size=64).image.copy()
    image[20:34, 20:34] = 0
    Image.fromarray(image).save(tmp_path / "cut.png")
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#category input").click()
    page.get_by_role("option", name="my hide").click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "cut.png")
    expect(page.locator("#verdict .word")).to_have_text("Anomalous", timeout=PATIENCE)
    expect(page.locator("#verdict")).to_contain_text("my hide")


def test_what_was_taught_is_there_for_others_renamed_and_removed(page: Page, workspace):
    page.locator("#taught-chosen input").click()
    page.get_by_role("option", name="my hide").click()
    expect(page.locator("#taught-editor canvas").first).to_be_visible(timeout=PATIENCE)
    page.locator("#taught-name").get_by_role("textbox").fill("gear")
    page.locator("#taught-rename").click()
    expect(page.locator("#taught-said")).to_contain_text("already: choose another name")
    page.locator("#taught-name").get_by_role("textbox").fill("cow hide")
    page.locator("#taught-rename").click()
    expect(page.locator("#taught-list")).to_contain_text("cow hide")
    with page.expect_download() as download:
        page.locator("#taught-export").click()
    assert zipfile.ZipFile(download.value.path()).testzip() is None
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.locator("#taught-remove").click()
    expect(page.locator("#taught-said")).to_contain_text("Choose a category first")
    page.locator("#taught-chosen input").click()
    page.get_by_role("option", name="cow hide").click()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#taught-remove").click()
    expect(page.locator("#taught-list")).to_contain_text("Nothing was taught yet")
    assert Taught(workspace).all() == []


def test_too_few_pictures_are_refused(page: Page, archive, tmp_path):
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    page.locator("#teach-files input[type=file]").set_input_files(tmp_path / "grey.png")
    says(page, "1 of 1 pictures can be learned from")
    page.locator("#teach-name").get_by_role("textbox").fill("grey")
    page.locator("#teach-now").click()
    says(page, "1 usable pictures are too few: give at least 8")
