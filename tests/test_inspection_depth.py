"""Cameras of 10, 12, 14 and 16 bits: a picture is judged alike, however deep it is stored."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np
import pytest
from deep_pictures import FACTORS, SAMPLES, assert_alike, deep, opencv, saved
from PIL import Image

from diffad import batch
from diffad.inspector import Inspector
from diffad.method.repair_options import RepairOptions
from diffad.pictures.reading import read_image
from diffad.pictures.samples import Sample


def of_bits(found) -> list[str]:
    """The notes about how the values were read, without those about the picture's light."""
    notes = found.notes if hasattr(found, "notes") else found["notes"]
    return [note for note in notes if "bits" in note]


def knowing(inspector: Inspector, category: str, bits: int | None) -> Inspector:
    """The inspector with a category that was trained on pictures of so many bits."""
    other = copy.copy(inspector)
    profile = replace(inspector.profiles[category], bits=bits)
    other.profiles = inspector.profiles | {category: profile}
    return other


@pytest.fixture(scope="module")
def gear() -> np.ndarray:
    return read_image(SAMPLES / "gear_broken_tooth.png")


@pytest.mark.parametrize("bits", [12, 14])
def test_a_deep_picture_scores_as_its_8_bits_and_is_said_to_be_guessed(inspector, gear, tmp_path, bits):
    path = saved(tmp_path / "gear.png", opencv(".png", deep(gear, bits)))
    usual, found = inspector.inspect(gear), inspector.inspect(path)
    assert usual.bits == 8 and usual.notes == ()
    assert found.bits == bits and found.category == "gear" and found.category_fits
    assert found.score == pytest.approx(usual.score, rel=0.005)
    (note,) = found.notes
    assert f"Read as {bits} bits" in note and f"highest value is {int(gear.max()) * FACTORS[bits]}" in note
    assert found.to_dict()["bits"] == bits and found.to_dict()["notes"] == [note]
    assert found.fused(alpha=0.3).notes == found.notes


def test_what_16_bits_or_an_argument_say_needs_no_note(inspector, gear):
    assert not inspector.inspect(deep(gear, 16), timesteps=(200,)).notes
    told = inspector.inspect(deep(gear // 4, 12), timesteps=(200,), bits=12)
    assert not of_bits(told) and told.bits == 12
    assert_alike(told.image, gear // 4)
    with pytest.raises(ValueError, match="bits are one of 8, 10, 12, 14, 16, not 11"):
        inspector.inspect(gear, bits=11)


def test_a_category_knows_its_cameras_depth(inspector, gear):
    trained = knowing(inspector, "gear", 12)
    for category in ("gear", None):
        found = trained.inspect(deep(gear // 4, 12), category, timesteps=(200,))
        assert (found.category, found.bits, of_bits(found)) == ("gear", 12, [])
        assert_alike(found.image, gear // 4)
    assert trained.inspect(deep(gear, 12), timesteps=(200,), batch_bits=16).bits == 12
    beyond = trained.inspect(deep(gear, 14), "gear", timesteps=(200,))
    assert beyond.bits == 14
    assert "beyond the 12 bits of the pictures that gear was trained on" in beyond.notes[0]
    assert trained.inspect(gear, "gear", timesteps=(200,)).notes == ()  # 8 bits are 8 bits
    first = next(trained.repair(deep(gear, 14), "gear", options=RepairOptions(steps=1)))
    assert first.notes == beyond.notes


def test_a_dark_picture_of_a_batch_is_not_stretched(inspector, gear, tmp_path):
    pictures = {
        name: Sample(saved(tmp_path / name, opencv(".png", deep(picture, 12))), "")
        for name, picture in (("dark.png", gear // 5), ("bright.png", gear))
    }
    pictures["plain.png"] = Sample(saved(tmp_path / "plain.png", Image.fromarray(gear)), "")
    shared = batch.shared_bits(inspector, pictures)
    assert shared == {"dark.png": 12, "bright.png": 12}
    assert "12 bits" in batch.bits_in_words(shared) and batch.bits_in_words({}) == ""
    rows = {row.name: row for row, _ in batch.run(inspector, pictures, shared=shared, timesteps=(200,))}
    assert [row.result["bits"] for row in rows.values()] == [12, 12, 8]
    assert not any(of_bits(row.result) for row in rows.values())
    alone = inspector.inspect(pictures["dark.png"].image, timesteps=(200,))
    assert alone.bits == 10 and alone.notes
    assert batch.shared_bits(knowing(inspector, "gear", 12), pictures, "gear") == {}


def test_the_batch_tab_says_once_how_its_pictures_are_read(inspector, gear, tmp_path):
    from diffad.ui.batch import Run
    from diffad.ui.files import Storage
    from diffad.ui.turns import Turns

    pictures = {
        name: Sample(saved(tmp_path / name, opencv(".png", deep(picture, 12))), "")
        for name, picture in (("dark.png", gear // 5), ("bright.png", gear))
    }
    settings = {"category": None, "alpha": 0.5, "timesteps": (200,)}
    storage = Storage(tmp_path / "server", 1 << 30)
    run = Run("parts", inspector, pictures, storage.batch_folder(), settings, Turns(), storage)
    while not run.finished:
        time.sleep(0.05)
    news = run.news(0)
    assert news["state"] == "done" and "are read as 12 bits" in news["note"]
    assert not any(of_bits(row) for row in news["rows"])
    assert news["note"] in run.file("json", {}).read_text()
    run.forget()
