"""Downloads open again and agree with the inspection."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from diffad.inspection import Inspection, RepairStep
from diffad.inspector import Inspector
from diffad.ui import downloads

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"


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
