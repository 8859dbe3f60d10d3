"""Downloads open again, agree with the inspection, and the report prints on one page."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from diffad.inspection import Inspection, RepairStep
from diffad.inspector import Inspector
from diffad.method.repair_options import RepairOptions
from diffad.report.document import report, share_in_words
from diffad.report.rendering import number
from diffad.ui import downloads

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"


@pytest.fixture(scope="module")
def inspection(inspector: Inspector) -> Inspection:
    return inspector.inspect(SAMPLES / "gear_broken_tooth.png")


@pytest.fixture(scope="module")
def film(inspector: Inspector, inspection: Inspection) -> downloads.Film:
    film = downloads.Film(inspection, inspection.timesteps, inspection.threshold, lambda data, name: name)
    for step in inspector.repair(inspection.image, inspection.category, options=RepairOptions(steps=5)):
        film.add(step)
    film.ending = "done"
    return film


def take(kind: str, inspection: Inspection, inspector: Inspector, film=None) -> tuple[str, bytes]:
    return downloads.contents(kind, inspection, inspector, film, 8.0, 0.7, "inferno", "gear")


def test_the_zip_holds_everything(inspection, inspector, film):
    name, data = take("all", inspection, inspector, film)
    assert name == "gear-diffad.zip"
    archive = zipfile.ZipFile(io.BytesIO(data))
    maps = [f"{kind}-t{t:03d}" for t in inspection.timesteps for kind in ("pixel", "feature")] + ["fused"]
    assert set(archive.namelist()) == {
        "gear.png", "gear-overlay.png", "gear-evidence.png", "gear-report.html", "gear.json", "gear-map.npy",
        "gear-repaired.png", *(f"gear-repair.{kind}" for kind in downloads.OF_FILM),
        *(f"maps/{each}.{kind}" for each in maps for kind in ("npy", "png")),
    }  # fmt: skip
    assert archive.testzip() is None

    # Picture and maps are what was inspected, to the last bit or to the step of 16 bits.
    with Image.open(archive.open("gear.png")) as picture:
        assert np.array_equal(np.asarray(picture), inspection.image)
    assert np.array_equal(np.load(io.BytesIO(archive.read("gear-map.npy"))), inspection.anomaly_map)
    about = json.loads(archive.read("gear.json"))
    for t, (pixel, feature) in inspection.grid_maps().items():
        for kind, values in (("pixel", pixel), ("feature", feature)):
            assert np.array_equal(np.load(io.BytesIO(archive.read(f"maps/{kind}-t{t:03d}.npy"))), values)
            grey = cv2.imdecode(
                np.frombuffer(archive.read(f"maps/{kind}-t{t:03d}.png"), np.uint8), cv2.IMREAD_UNCHANGED
            )
            scale = about["maps"]["scales"][f"maps/{kind}-t{t:03d}.png"]
            again = scale["low"] + grey / 65535 * (scale["high"] - scale["low"])
            assert grey.dtype == np.uint16
            assert np.abs(again - values).max() <= (scale["high"] - scale["low"]) / 65535
    fused = np.load(io.BytesIO(archive.read("maps/fused.npy")))
    assert about["score"] == pytest.approx(inspection.scorer(fused, inspection.scored_size), rel=1e-4)


@pytest.mark.parametrize("scores, best", [((9, 30, 4, 6), 2), ((9, 30, 12), 0), ((9, 5), 1)])
def test_a_stopped_repair_ends_with_the_best(inspection, scores, best):
    """And not with a draft. The scores are given, measured at every step."""
    film = downloads.Film(inspection, inspection.timesteps, inspection.threshold, lambda data, name: name)
    for index, score in enumerate(scores):
        shade = np.full((32, 32, 3), index, np.uint8)
        film.add(RepairStep(index, 9, shade, score, 1.0, np.zeros((32, 32), np.float32), False))
    film.end_with_best()
    assert film.score == scores[best] and (film.repaired == best).all() and (film.frames[-1] == best).all()
    assert len(film.value()["scores"]) == len(scores) + (best != len(scores) - 1)


def test_a_repair_that_found_nothing_better_says_so(inspection):
    film = downloads.Film(inspection, inspection.timesteps, inspection.threshold, lambda data, name: name)
    for index, score in enumerate((9.0, 30.0, 9.0)):
        shade = np.full((32, 32, 3), index % 2, np.uint8)
        film.add(RepairStep(index, 2, shade, score, 1.0, None, index == 2))
    film.ending = "done"
    assert film.value()["message"] == "Nothing better was found in 2 steps: the picture is unchanged."


def test_a_running_repair_shows_round_and_step(inspection):
    film = downloads.Film(inspection, inspection.timesteps, inspection.threshold, lambda data, name: name)
    messages = []
    for index, total in enumerate((3, 3, 3, 6, 6, 6)):  # it grows with the last step of a round
        film.add(RepairStep(index, total, np.zeros((32, 32, 3), np.uint8), 9.0 - index, 1.0, None, False))
        messages.append(film.value()["message"])
    assert messages[1:] == ["step 1 of 3", "step 2 of 3", "step 3 of 3", "round 2 · step 1 of 3",
                        "round 2 · step 2 of 3"]  # fmt: skip
    film.ending = "stopped"
    assert "score 9.00 → 4.00 · stopped after 5 steps" in film.value()["message"]


def test_json_explains_the_verdict(inspection, inspector):
    about = json.loads(take("json", inspection, inspector)[1])
    assert about["score"] == inspection.score and about["threshold"] == inspection.threshold
    assert about["threshold_rate"] == pytest.approx(0.01, abs=1e-3)
    assert about["look_threshold_rate"] == pytest.approx(0.1, abs=1e-3)
    assert about["threshold_meaning"] == "about 1 good part in 100 would score above the threshold"
    assert about["provenance"]["licence"] == inspector.provenance["licence"]
    assert about["picture"]["sha256_of_pixels"] == hashlib.sha256(inspection.image.tobytes()).hexdigest()
    assert len(about["regions"]) == len(inspection.regions)


def test_a_good_parts_overlay_is_its_picture(inspector):
    good = inspector.inspect(SAMPLES / "gear_good.png")
    with Image.open(io.BytesIO(take("overlay", good, inspector)[1])) as overlay:
        untouched = good.anomaly_map < good.threshold / 2
        assert np.array_equal(np.asarray(overlay)[untouched], good.image[untouched])
        assert (np.asarray(overlay)[~untouched] != 255).any(axis=-1).all()  # no contour


def test_a_large_picture_stays_handy(inspector):
    small = np.asarray(Image.open(SAMPLES / "leather_cut.png").convert("RGB"))
    large = inspector.inspect(cv2.resize(small, (2200, 1950)), tile=None)
    archive = zipfile.ZipFile(io.BytesIO(take("all", large, inspector)[1]))
    full = np.load(io.BytesIO(archive.read("gear-map.npy")))
    assert full.dtype == np.float16 and full.shape == (1950, 2200)
    assert np.load(io.BytesIO(archive.read("maps/fused.npy"))).shape == (227, 256)
    assert len(archive.read("gear-report.html")) < 3_000_000


def test_mp4_plays_in_the_browser(inspection, inspector, film, browser: Browser, tmp_path: Path):
    name, data = take("mp4", inspection, inspector, film)
    (tmp_path / name).write_bytes(data)
    (tmp_path / "film.html").write_text(f'<video src="{name}" muted></video>')
    page = browser.new_page()
    page.goto((tmp_path / "film.html").as_uri())
    page.wait_for_function("document.querySelector('video').readyState >= 2", timeout=15_000)
    assert page.evaluate("document.querySelector('video').videoWidth") == 256
    assert page.evaluate("document.querySelector('video').duration") == pytest.approx(4, abs=0.2)
    page.close()


# -- the report ---------------------------------------------------------------------------------------------


def test_a_report_gives_the_repairs_score_only_beside_a_verdict_of_its_kind(inspection, inspector, film):
    """Scores at another α or at other timesteps cannot be compared."""
    first = inspection.timesteps[:1]
    for shown, with_score in (
        (inspection, True), (inspection.fused(alpha=0.95), False), (inspection.fused(timesteps=first), False),
        (inspection.fused(threshold=20), True),
    ):  # fmt: skip
        page = take("report", shown, inspector, film)[1].decode()
        assert "by the model" in page and ("by the model, score" in page) is with_score


def test_report_says_what_was_found(inspection, inspector):
    page = report(inspection, inspector, "a <b>part</b> & more", now=datetime(2026, 3, 5, 14, 7))
    assert "a &lt;b&gt;part&lt;/b&gt; &amp; more" in page and "<b>part" not in page
    assert "5 March 2026, 14:07" in page
    assert ">Anomalous<" in page and "about 1 good part in 100 would exceed" in page
    assert inspector.provenance["licence"].split(";")[0] in page
    assert "$" not in re.sub(r"base64,[^\"]+", "", page)  # no placeholder is left
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing outside itself
    between = inspection.fused(threshold=inspection.score + 1)
    page = report(between, inspector, "between")
    assert ">Look at it<" in page and "✓" not in page and "✕" not in page and "where it differs" in page
    assert f"look limit {number(between.look_threshold)}" in page
    assert ">Good<" in report(inspector.inspect(SAMPLES / "chip_good.png"), inspector, "chip")


def test_notes_stand_in_the_report_and_the_summary(inspection, inspector):
    noted = replace(inspection, notes=("Read as <12> bits.", "It is dark."), category_fits=False)
    page = report(noted, inspector, "part")
    assert page.count('<p class="note">') == 3 and "It is dark." in page
    assert "Read as &lt;12&gt; bits." in page
    assert downloads.summary(noted, inspector, "part")["notes"] == ["Read as <12> bits.", "It is dark."]


@pytest.mark.parametrize("shape", ["square", "wide", "tall", "many levels"])
def test_report_prints_on_one_page(shape, inspector, film, browser: Browser, tmp_path: Path):
    picture = np.asarray(Image.open(SAMPLES / "gear_broken_tooth.png").convert("RGB"))
    picture = {"wide": np.tile(picture, (1, 4, 1)), "tall": np.tile(picture, (4, 1, 1))}.get(shape, picture)
    levels = range(20, 500, 40) if shape == "many levels" else inspector.timesteps
    inspection = inspector.inspect(picture, "gear", levels, tile=None)
    file = tmp_path / "report.html"
    file.write_text(report(inspection, inspector, "a long name " * 20, film.repaired, film.score))
    page = browser.new_page(viewport={"width": 900, "height": 1200})
    page.goto(file.as_uri())
    box = page.evaluate("""() => {
        const sheet = document.querySelector("main");
        const inner = [...sheet.querySelectorAll("*")].map((each) => each.getBoundingClientRect());
        const edge = sheet.getBoundingClientRect();
        return [Math.max(...inner.map((each) => each.bottom)) - edge.bottom,
                Math.max(...inner.map((each) => each.right)) - edge.right];
    }""")
    assert max(box) <= 0  # nothing is cut off
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
    page.close()


@pytest.mark.parametrize(("rate", "words"), [
    (0.0, "fewer than 1 good part in 2000"), (0.01, "about 1 good part in 100"),
    (0.5, "50% of the good parts"), (1.0, "every good part"),
])  # fmt: skip
def test_share_in_words(rate, words):
    assert share_in_words(rate) == words
