"""The Teach tab on a real server, in a real browser: from a zip to a verdict."""

import re
import zipfile

import numpy as np
import pytest
from conftest import DESKTOP, PATIENCE, few_looks
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from server_steps import served
from test_history_server import logged_in
from test_ui_page_layout import violations

from diffad.inspector import Inspector
from diffad.synthetic.parts import make_part
from diffad.teaching.quick import teach
from diffad.workspace.history import History
from diffad.workspace.record import Record
from diffad.workspace.roles import Login
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


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A category that was taught elsewhere, as the file that hands it on."""
    folder = tmp_path_factory.mktemp("elsewhere")
    inspector, paths = Inspector.load(trained, "cpu"), []
    for seed in range(9):
        paths.append(folder / f"{seed}.png")
        Image.fromarray(make_part("leather", seed, size=64).image).save(paths[-1])
    with few_looks():
        lesson = teach(inspector, "pig hide", paths)
    with Workspace.open(folder / "workspace") as workspace:
        taught = Taught(workspace)
        taught.add(inspector, "pig hide", lesson.fitted, {path.name: path for path in paths})
        return taught.export("pig hide", folder / "pig hide.zip")


@pytest.fixture
def taught(page: Page, workspace, exported):
    """The category, imported and chosen on the page."""
    with page.expect_file_chooser() as chooser:
        page.locator("#taught-import").click()
    chooser.value.set_files(exported)
    expect(page.locator("#taught-said")).to_contain_text("pig hide was imported", timeout=PATIENCE)
    expect(page.locator("#taught-editor canvas").first).to_be_visible(timeout=PATIENCE)
    taught = Taught(workspace)
    yield taught
    taught.remove("pig hide")


def test_what_is_painted_is_ignored_until_everything_is_judged_again(taught, page: Page):
    page.locator("#taught-ignore").click()
    expect(page.locator("#taught-said")).to_contain_text("Paint on the mean part first")
    canvas = page.locator("#taught-editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 30, middle[1], steps=5)
    page.mouse.up()
    page.locator("#taught-ignore").click()
    expect(page.locator("#taught-said")).to_contain_text("of pig hide is not judged now")
    ignored = taught.load("pig hide").profile.ignored
    assert 0 < float(ignored.float().mean()) < 0.9 and not ignored[0].any()
    page.locator("#taught-clear").click()
    expect(page.locator("#taught-said")).to_contain_text("All of pig hide is judged")
    assert taught.load("pig hide").profile.ignored is None


def test_a_verdict_corrected_to_good_is_learned_and_taken_back(taught, page: Page, workspace, trained):
    image = make_part("leather", 60, size=64).image.copy()
    image[20:34, 20:34] = 0
    judged = taught.attached(Inspector.load(trained, "cpu"), {}).inspect(image, "pig hide")
    assert judged.is_anomalous
    history, file = History(workspace), taught.find("pig hide").folder / "cut.png"
    Image.fromarray(image).save(file)
    record = Record.of(judged.to_dict(), (64, 64), "cut.png", "parts")
    number = history.keep(record, file, image, judged.square_map)
    history.correct(number, "good", "")
    page.locator("#taught-learn").click()
    said = page.locator("#taught-said")
    expect(said).to_contain_text(
        re.compile(r"1 picture learned: score of cut\.png [\d.]+ → [\d.]+"), timeout=PATIENCE
    )
    before, after = map(float, re.search(r"cut\.png ([\d.]+) → ([\d.]+)", said.inner_text()).groups())
    assert before == pytest.approx(judged.score, abs=0.01) and after < 0.8 * before
    assert len(taught.find("pig hide").pictures) == 10
    page.locator("#taught-undo").click()
    expect(said).to_contain_text("as it was before its last change")
    assert len(taught.find("pig hide").pictures) == 9
    history.delete([number], "")


def test_a_login_that_may_not_teach_is_refused_by_the_server(browser: Browser, trained, archive, tmp_path):
    accounts = [Login("cora", "x", "correct")]
    with (
        Workspace.open(tmp_path / "w") as workspace,
        served(Inspector.load(trained, "cpu"), tmp_path / "f", workspace=workspace, auth=accounts) as url,
        logged_in(browser, url, "cora") as page,
    ):
        page.get_by_role("tab", name="Teach").click()
        page.locator("#teach-files input[type=file]").set_input_files(archive)
        expect(page.get_by_text("Your login may not teach").first).to_be_visible(timeout=PATIENCE)
        expect(page.locator("#teach-offered .offered")).to_have_count(0)
