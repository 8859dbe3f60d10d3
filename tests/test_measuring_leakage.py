"""No leakage: with the bundled model, what is said of a picture depends on it and the model alone."""

from __future__ import annotations

import re
import sys

import cv2
import numpy as np
import pytest
import torch

from diffad.measuring import evaluation
from diffad.measuring.evaluation import evaluate
from diffad.pictures.masks import read_mask
from diffad.pictures.reading import read_image
from diffad.pictures.samples import find_samples
from diffad.synthetic.parts import make_part


@pytest.fixture
def gears(tmp_path):
    """Two good and two defective gears, and a training picture that nobody can read."""
    root = tmp_path / "gear"
    for stem, defect in (("a", "good"), ("b", "good"), ("c", "crack"), ("d", "corrosion")):
        part = make_part("gear", seed=900 + ord(stem), defect=defect)
        place(root, stem, defect, part.image, part.mask if defect != "good" else None)
    (root / "train" / "good").mkdir(parents=True)
    (root / "train" / "good" / "0.png").write_bytes(b"not a picture")
    return root


def place(root, stem, defect, image, mask=None):
    files = {root / "test" / defect / f"{stem}.png": image[..., ::-1]}
    if mask is not None:
        files[root / "ground_truth" / defect / f"{stem}_mask.png"] = mask.astype(np.uint8) * 255
    for path, values in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), values)


def said_of(inspector, root, monkeypatch):
    """Stem → all that evaluate was told of that picture: score, threshold, verdict, category, map."""
    seen = {}

    def spy(scored, *arguments):
        seen.update(
            {
                one.path.stem: (
                    one.score,
                    one.threshold,
                    one.verdict,
                    one.category_right,
                    one.anomaly_map.tobytes(),
                )
                for one in scored
            }
        )
        return original(scored, *arguments)

    with monkeypatch.context() as patch:
        original = evaluation.measured
        patch.setattr(evaluation, "measured", spy)
        evaluate(inspector, find_samples(root, "test"), timesteps=(200,))
    return seen


def with_labels_swapped(root, tmp_path):
    """The same pictures: the good ones called defective with masks everywhere, the defective ones good."""
    for sample in find_samples(root, "test"):
        image = read_image(sample.image)
        swapped = ("good", None) if sample.is_anomalous else ("crack", np.ones(image.shape[:2], bool))
        place(tmp_path / "swapped" / "gear", sample.image.stem, swapped[0], image, swapped[1])
    return tmp_path / "swapped" / "gear"


def with_extremes_first(root, tmp_path):
    """The same pictures and labels after a white, a black and a noise one, each called good."""
    other = tmp_path / "extreme" / "gear"
    for sample in find_samples(root, "test"):
        mask = read_mask(sample.mask)[0] if sample.mask else None
        place(other, sample.image.stem, sample.defect, read_image(sample.image), mask)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for number, image in enumerate((np.zeros_like(noise), np.full_like(noise, 255), noise)):
        place(other, f"0{number}", "good", image)
    return other


class Leaky:
    """Judges a picture by the good scores seen so far, as one must not."""

    def __init__(self, inspector):
        self._inspector, self._scores = inspector, []
        self.categories, self.size_of, self.name = inspector.categories, inspector.size_of, "leaky"

    def inspect(self, image, **settings):
        inspection = self._inspector.inspect(image, **settings)
        self._scores.append(inspection.score)
        return inspection.fused(threshold=float(np.mean(self._scores)))


def test_nothing_said_of_a_picture_depends_on_labels_or_on_other_test_pictures(
    inspector, gears, tmp_path, monkeypatch
):
    others = [with_labels_swapped(gears, tmp_path), with_extremes_first(gears, tmp_path)]
    said = said_of(inspector, gears, monkeypatch)
    assert sorted(said) == ["a", "b", "c", "d"] and len({values[0] for values in said.values()}) == 4
    for other in others:
        again = said_of(inspector, other, monkeypatch)
        assert {stem: again[stem] for stem in said} == said
    # and this comparison would see a leak
    leaky = said_of(Leaky(inspector), gears, monkeypatch)
    again = said_of(Leaky(inspector), others[1], monkeypatch)
    assert {stem: again[stem] for stem in leaky} != leaky


_opened: list[str] | None = None  # audit hooks cannot be taken away again, only told to rest


def _note_what_is_opened(event, arguments):
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


def test_evaluate_opens_no_training_picture_and_fits_nothing(inspector, gears, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("evaluate must not fit anything")

    for owner, name in fitting():
        monkeypatch.setattr(owner, name, refuse)
    before = fitted(inspector)
    global _opened
    sys.addaudithook(_note_what_is_opened)
    _opened = []
    try:
        evaluate(inspector, find_samples(gears, "test"), timesteps=(200,))
        opened = [path for path in _opened if str(gears) in path]
    finally:
        _opened = None
    assert len(opened) >= 6  # four pictures, two masks
    assert not [path for path in opened if "train" in path.removeprefix(str(gears))]
    after = fitted(inspector)
    assert before.keys() == after.keys() and len(before) > 10
    assert all(torch.equal(before[key], after[key]) for key in before)


def fitting():
    """Every function and method of the package that fits something, by its name."""
    import diffad.teaching.training  # noqa: F401

    found = []
    for module in [module for name, module in sys.modules.items() if name.startswith("diffad.")]:
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        for owner in (module, *classes):
            found += [(owner, name) for name in vars(owner) if re.match(r"_?fit", name)]
    assert len(found) >= 5
    return found


def fitted(inspector):
    """Copies of all tensors that an inspector was given, by where they are."""
    found = {}

    def walk(value, where):
        if isinstance(value, torch.Tensor):
            found[where] = value.clone()
        elif isinstance(value, torch.nn.Module):
            walk(value.state_dict(), where)
        elif isinstance(value, dict):
            for key, entry in value.items():
                walk(entry, f"{where}.{key}")
        elif hasattr(value, "__dataclass_fields__"):
            walk({key: getattr(value, key) for key in value.__dataclass_fields__}, where)

    walk(vars(inspector), "inspector")
    return found
