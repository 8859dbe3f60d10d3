"""What is odd about pictures that are offered as good ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from diffad.pictures.duplicates import thumbnail
from diffad.pictures.reading import read_image
from diffad.synthetic.parts import make_part
from diffad.teaching.examination import examine, in_words


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve good gears; and each fault that a folder of phone pictures has, by a telling name."""
    folder = tmp_path_factory.mktemp("offered")
    parts = [make_part("gear", seed).image for seed in range(12)]
    found: dict[str, Path] = {}

    def keep(name, image, **more):
        found[name] = folder / name
        Image.fromarray(image).save(found[name], **more)

    for number, part in enumerate(parts):
        keep(f"good{number:02}.png", part)
    keep("again.jpg", parts[3], quality=90)
    keep("dark.png", (parts[4] * 0.5).astype(np.uint8)[:, ::-1])
    keep("blurred.png", cv2.GaussianBlur(parts[5][::-1], (0, 0), 3))
    keep("cut.png", parts[6][:140, ::-1])
    keep("small.png", cv2.resize(parts[7][::-1, ::-1], (96, 96), interpolation=cv2.INTER_AREA))
    noise = np.random.default_rng(0).normal(0, 25, parts[8].shape)
    keep("noisy.png", (parts[8][:, ::-1] + noise).clip(0, 255).astype(np.uint8))
    found["broken.jpg"] = folder / "broken.jpg"
    found["broken.jpg"].write_bytes(b"\xff\xd8\xff not a picture")
    return found


def test_each_fault_is_named_and_good_pictures_are_calm(files):
    offered = {each.name: each for each in examine(files)}
    expected = {
        "again.jpg": "shows the same as good03.png", "dark.png": "darker than most",
        "blurred.png": "more blurred than most", "cut.png": "another shape (256 × 140 pixels)",
        "small.png": "far fewer pixels (96 × 96 pixels)", "noisy.png": "noisier than most",
    }  # fmt: skip
    for name, words in expected.items():
        assert any(remark.startswith(words) for remark in offered[name].remarks), (
            name,
            offered[name].remarks,
        )
    assert offered["broken.jpg"].unusable and offered["broken.jpg"].preview is None
    assert "broken.jpg" in offered["broken.jpg"].remarks[0]
    assert offered["again.jpg"].unusable and not offered["dark.png"].unusable
    assert not any(each.remarks for name, each in offered.items() if name.startswith("good"))
    assert list(offered) == list(files)


def test_pictures_known_elsewhere_are_named(files):
    of_test_set = np.stack([thumbnail(read_image(files["good02.png"]))])
    offered = {each.name: each for each in examine(files, {"a test picture": of_test_set})}
    assert offered["good02.png"].remarks == ("is a test picture",) and offered["good02.png"].unusable
    assert not offered["good01.png"].unusable


def test_it_is_said_in_a_sentence(files):
    assert in_words(examine(files)) == (
        "17 of 19 pictures can be learned from; 1 cannot be read; 1 repeats another one; "
        "5 differ from the rest: look at them."
    )
    only_broken = examine({"broken.jpg": files["broken.jpg"]})
    assert in_words(only_broken) == "0 of 1 pictures can be learned from; 1 cannot be read."


def test_progress_counts_every_file(files):
    seen = []
    examine(files, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(files), len(files)) and len(seen) == len(files)
