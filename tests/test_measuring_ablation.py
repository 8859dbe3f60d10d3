"""Ablations with a tiny network: every setting is what an inspection with that setting finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from gaussian_world import residual_gaussian
from PIL import Image

from diffad import checkpoint
from diffad.checkpoint import Checkpoint
from diffad.cli.main import main
from diffad.inspector import Inspector
from diffad.measuring import ablation, ablation_maps
from diffad.measuring.ablation import METRICS, ablate, ablation_report
from diffad.measuring.ablation_settings import other_pixel_scores
from diffad.measuring.evaluation import evaluate
from diffad.method.calibration import Calibration
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.profile import Profile
from diffad.method.scoring import (
    TIMESTEPS,
    RawMaps,
    denoise_all,
    offset_of,
    pixel_score,
    shifted,
    smooth,
)
from diffad.method.unet import UNet, UNetConfig
from diffad.pictures.geometry import Geometry, to_square
from diffad.pictures.plots import ablation_plot
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, find_samples, labelled

SIZE, GRID = 64, 8
SHAPES = {"nut": (64, 64), "ring": (48, 80)}  # a ring is shrunk and letterboxed


def tiny(size: int = SIZE, seed: int = 0, categories: tuple[str, ...] = tuple(SHAPES)) -> Checkpoint:
    """An untrained network with a made-up calibration."""
    torch.manual_seed(seed)
    config = UNetConfig(size=size, channels=(64, 64))
    maps = torch.rand(6, 3, size, size) * torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    features = torch.randn(8, 192, config.feature_grid, config.feature_grid)
    profile = Profile(
        PlaceGaussian.fit([features]),
        residual_gaussian([[features]] * 3, config.feature_grid),
        residual_gaussian([[2 * features]] * 3, config.feature_grid),
        Calibration.fit(RawMaps(maps, 3 * maps, (20, 200, 600))),
    )
    zero, one = torch.zeros(192), torch.ones(192)
    profiles = dict.fromkeys(categories, profile)
    network = UNet(config).state_dict()
    for value in network.values():  # the last layers start at zero, which would make every answer the same
        value.add_(0.02 * torch.randn(value.shape))
    return Checkpoint(config, network, "tf_efficientnet_lite2", zero, one, profiles)


@pytest.fixture(scope="module")
def inspector():
    return Inspector(tiny(), "cpu", "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MVTec layout: speckled parts, some with a brighter patch of one of two kinds."""
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for category, shape in SHAPES.items():
        for kind, count in {"train/good": 2, "test/good": 2, "test/dent": 1, "test/scratch": 1}.items():
            for number in range(count):
                high = rng.integers(80, 190)  # so that no two scores are nearly the same
                image = rng.integers(60, high, (*shape, 3), dtype=np.uint8)
                if kind.endswith(("dent", "scratch")):
                    mask, row = np.zeros(shape, np.uint8), rng.integers(0, 20)
                    mask[row : row + 20, 10:30] = 255
                    image[mask > 0] += np.uint8(60)
                    save(root / category / "ground_truth" / kind[5:] / f"{number}_mask.png", mask)
                save(root / category / kind / f"{number}.png", image)
    return root


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)


@pytest.fixture(scope="module")
def result(inspector, folder):
    return ablate(inspector, find_samples(folder), singles=[Inspector(tiny(seed=1), "cpu", "other")])


def row(result, table, label, series=""):
    (rows,) = (one["rows"] for one in result["tables"] if one["name"] == table)
    (found,) = (one for one in rows if (one["label"], one["series"]) == (label, series))
    return found["categories"]


@pytest.fixture(scope="module")
def layers(inspector, folder):
    """All kept maps of one letterboxed picture."""
    image = read_image(folder / "ring" / "test" / "dent" / "0.png")
    return image, ablation_maps.kept_maps(inspector, image, "ring", {}, {}, None, seed=0)


# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        (("alpha", "0.5"), {}),
        (("alpha", "1"), {"alpha": 1.0}),
        (("timesteps", "50", "both branches"), {"timesteps": (50,)}),
        (("timesteps", "600", "pixel branch"), {"timesteps": (600,), "alpha": 1.0}),
        (("timesteps", "all", "feature branch"),
         {"timesteps": (20, 50, 100, 200, 400, 600), "alpha": 0.0}),
    ],
)  # fmt: skip
def test_a_setting_measures_what_evaluate_measures_with_it(inspector, folder, result, setting, options):
    expected = evaluate(inspector, find_samples(folder, "test"), **options)
    for category, values in row(result, *setting).items():
        for metric in ("pixel_auroc", "aupro"):  # pictures are scored by the map's peak alone
            assert values[metric] == pytest.approx(expected[category][metric], abs=2e-3), (category, metric)


def test_deep_pictures_are_read_by_the_brightest_of_their_category(inspector, folder, tmp_path, monkeypatch):
    for path in (folder / "nut").rglob("*.png"):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        deep = picture if "ground_truth" in path.parts else picture.astype(np.uint16) * 16
        save(tmp_path / path.relative_to(folder), deep)
    asked = set()

    def spy(path, bits=None):
        asked.add(bits)
        return read_image(path, bits)

    monkeypatch.setattr(ablation, "read_image", spy)
    monkeypatch.setattr(ablation_maps, "read_image", spy)
    notes = ablate(inspector, find_samples(tmp_path / "nut"), limit=1)["notes"]
    assert asked == {12} and "nut: Pictures of more than 8 bits were read as 12 bits." in notes


def test_the_same_setting_is_the_same_in_every_table(result):
    usual = row(result, "alpha", "0.5")
    assert list(usual) == list(SHAPES)
    for others in (
        ("timesteps", "20, 200, 400", "both branches"), ("draws", "1"),
        ("normalisation", "good pictures"), ("single", "one for all"),
    ):  # fmt: skip
        assert row(result, *others) == usual, others
    assert row(result, "alpha", "1") == row(result, "pixel_scores", "perceptual")
    assert [one["label"] for table in result["tables"] for one in table["rows"] if one["default"]] == [
        "0.5", "20, 200, 400", "1", "good pictures", "one for all", "perceptual",
    ]  # fmt: skip


def test_the_single_models_row_is_their_own(result, folder):
    other = evaluate(Inspector(tiny(seed=1), "cpu"), find_samples(folder, "test"))
    for category, values in row(result, "single", "one per category").items():
        assert values["pixel_auroc"] == pytest.approx(other[category]["pixel_auroc"], abs=2e-3)
    assert result["notes"] == ["One per category: nut by other, ring by other."]


@pytest.mark.parametrize("t", [20, 600])
def test_kept_maps_are_the_inspections_where_the_picture_is(inspector, layers, t):
    image, kept = layers
    inner = Geometry.letterbox(*image.shape[:2], SIZE).inner
    for branch, alpha in {"pixel": 1.0, "feature": 0.0}.items():
        found = inspector.inspect(image, "ring", (t,), alpha).square_map[inner]
        assert kept[f"{branch} {t}"].shape == (38, 64)
        np.testing.assert_allclose(kept[f"{branch} {t}"], found, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("draws", [2, 8])
def test_draws_are_the_inspections(inspector, layers, draws):
    image, kept = layers
    found = inspector.inspect(image, "ring", draws=draws).square_map
    found = found[Geometry.letterbox(*image.shape[:2], SIZE).inner]
    np.testing.assert_allclose(kept[f"draws {draws}"], found, rtol=0.02, atol=0.02)
    once = inspector.inspect(image, "ring").square_map[Geometry.letterbox(*image.shape[:2], SIZE).inner]
    assert np.abs(found - once).mean() > 0.05  # they do differ, so the comparison means something


def test_its_own_values_need_no_calibration(inspector, layers):
    image, kept = layers
    assert abs(kept["per image"].astype(np.float32).mean()) < 1e-3
    stranger = Inspector(tiny(), "cpu")
    profile = stranger.profiles["ring"]
    other = replace(profile.calibration, moments=5 * profile.calibration.moments + 1)
    stranger.profiles["ring"] = replace(profile, calibration=other)
    other = ablation_maps.kept_maps(stranger, image, "ring", {}, {}, None, seed=0)
    assert np.array_equal(other["per image"], kept["per image"])
    assert not np.array_equal(other["pixel 20"], kept["pixel 20"])


@pytest.mark.parametrize(("kind", "stride"), [("rgb", 0), ("kl", 1), ("kl", 20), ("uncertainty", 0)])
def test_pixel_scores_are_those_of_the_same_answers(inspector, layers, kind, stride):
    image, _ = layers
    unit = Calibration(TIMESTEPS, torch.ones(2, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(2, 2, 3),
                       TIMESTEPS, torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8))  # fmt: skip
    scores = {"x": (kind, stride)}
    kept = ablation_maps.kept_maps(inspector, image, "ring", {"x": unit}, scores, None, seed=3)["x"]
    square, geometry = to_square(image, SIZE)
    with torch.no_grad():
        schedule, x_start = inspector.schedule, square[None]
        shown, x_t, t, answers = denoise_all(
            schedule, inspector.network, x_start, TIMESTEPS, seed=3, cell=SIZE // GRID
        )
        raw = pixel_score(schedule, answers, shown, x_t, t, kind, stride)
        back = [shifted(one[None, None], -offset_of(t, SIZE // GRID)) for t, one in zip(TIMESTEPS, raw)]
    expected = smooth(torch.cat(back)).mean(dim=(0, 1)).numpy()[geometry.inner]
    np.testing.assert_allclose(kept, expected, rtol=0.02, atol=1e-3 * float(np.abs(expected).max()))


def test_maps_know_neither_labels_nor_other_test_pictures(inspector, folder, tmp_path, monkeypatch):
    """Swapping labels and masks and adding a picture of nothing but noise leaves all maps alone."""
    seen: dict[bytes, dict[str, np.ndarray]] = {}
    honest = ablation_maps.kept_maps

    def spy(inspector, image, *rest):
        seen[image.tobytes()] = honest(inspector, image, *rest)
        return seen[image.tobytes()]

    monkeypatch.setattr(ablation_maps, "kept_maps", spy)
    samples = find_samples(folder / "nut")
    ablate(inspector, samples)
    before, seen = dict(seen), seen
    seen.clear()
    some_mask = next(sample.mask for sample in samples if sample.mask)
    swapped = [
        sample if sample.split == "train"
        else replace(sample, defect="dent", mask=some_mask) if sample.defect == "good"
        else replace(sample, defect="good", mask=None)
        for sample in samples
    ]  # fmt: skip
    save(tmp_path / "x.png", np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    ablate(inspector, [*swapped, Sample(tmp_path / "x.png", "nut", "test", "good")])
    assert len(seen) == len(before) + 1 == 5
    for image, maps in before.items():
        assert maps.keys() == seen[image].keys() > {"rgb", "kl, stride 20", "per image"}
        for name, values in maps.items():
            assert np.array_equal(values, seen[image][name]), name


def test_other_pixel_scores_are_in_deviations_of_training_pictures(inspector, folder):
    samples = [sample for sample in find_samples(folder / "nut") if sample.split == "train"]
    scores = other_pixel_scores(inspector)
    assert list(scores) == ["rgb", "kl, stride 1", "kl, stride 4", "kl, stride 20", "uncertainty"]
    fitted = ablation_maps.fit(inspector, "nut", samples, scores, seed=0)
    maps = [
        ablation_maps.kept_maps(inspector, read_image(sample.image), "nut", fitted, scores, None, 0)
        for sample in samples
    ]
    for name in scores:
        assert abs(np.mean([one[name] for one in maps], dtype=np.float64)) < 0.01, name


def test_limit_spreads_over_the_kinds_and_progress_counts(inspector, folder):
    calls = []
    few = ablate(inspector, find_samples(folder), limit=1, progress=lambda *call: calls.append(call))
    assert few["pictures"] == {name: {"good": 1, "defective": 1} for name in SHAPES}
    assert calls == [(i + 1, calls[0][1]) for i in range(calls[0][1])]
    many = [Sample(Path(f"{kind}{i}"), "nut", "test", kind) for kind in ("good", "a", "b") for i in range(9)]
    chosen = [sample.image.name for sample in labelled(many, 2)["nut"]]
    assert chosen == ["good2", "good6", "a4", "b4"]
    uneven = many + [Sample(Path(f"rare{i}"), "nut", "test", "rare") for i in range(2)]
    chosen = [sample.image.name for sample in labelled(uneven, 6)["nut"]][6:]
    assert chosen == ["a2", "a6", "b2", "b6", "rare0", "rare1"]  # and not as many as there are of each kind


def test_what_is_missing_is_said(inspector, folder):
    samples = find_samples(folder)
    bare = [sample for sample in samples if (sample.category, sample.split) != ("ring", "train")]
    only_nut = [Inspector(tiny(categories=("nut",)), "cpu", "nuts")]
    result = ablate(inspector, bare, only_nut, limit=1)
    for table, label in {"pixel_scores": "rgb", "single": "one per category"}.items():
        assert list(row(result, table, label)) == ["nut"]
    assert list(row(result, "alpha", "1")) == ["nut", "ring"]
    assert all("ring" in result["notes"][i] for i in (0, 2)) and "nut by nuts" in result["notes"][1]
    result = ablate(inspector, find_samples(folder / "nut", "test"), limit=1)
    assert [table["name"] for table in result["tables"]] == ["alpha", "timesteps", "draws", "normalisation"]

    unmasked = [replace(s, mask=None) for s in samples if s.category == "nut" and s.split == "test"]
    result = ablate(inspector, unmasked, limit=1)
    values = row(result, "alpha", "1")["nut"]
    assert values["image_auroc"] is not None and values["pixel_auroc"] is values["aupro"] is None
    assert " / – / – |" in ablation_report(result)


def test_what_cannot_be_compared_is_refused(inspector, folder):
    samples = find_samples(folder)
    with pytest.raises(DataError, match="label"):
        ablate(inspector, [sample for sample in samples if sample.split == "train"])
    with pytest.raises(DataError, match="no category screw"):
        ablate(inspector, [replace(samples[-1], category="screw")])
    with pytest.raises(DataError, match="128 px"):
        ablate(inspector, samples, [Inspector(tiny(size=128), "cpu", "large")])


def test_report_and_plots(result, tmp_path):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = ablation_report(result, {"alpha": "alpha.png"})
    nut, mean = row(result, "alpha", "0.5")["nut"], result["tables"][0]["rows"][5]["mean"]
    cells = [" / ".join(f"{values[metric]:.3f}" for metric in METRICS) for values in (nut, mean)]
    assert f"| **0.5** | {cells[0]} |" in text and f"| {cells[1]} |" in text and "](alpha.png)" in text
    for table in result["tables"][:2]:
        ablation_plot(table, METRICS, tmp_path / "plot.png")
        picture = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
        assert picture.shape[1] > 1000 and (picture == 255).mean() > 0.5 and picture.min() < 60


def test_the_command(folder, tmp_path, capsys):
    model = checkpoint.save(tmp_path / "tiny.safetensors", tiny())
    argv = ["ablate", str(folder / "nut"), "--checkpoint", str(model), "--device", "cpu", "--limit", "1"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [table["name"] for table in document["tables"]]
    assert document == json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "ablation.json", "ablation.md", *(f"{name}.png" for name in names)
    }  # fmt: skip
    assert "(pixel_scores.png)" in (tmp_path / "out" / "ablation.md").read_text()
    assert main([*argv, "--out", str(model)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "give the name of a folder" in err
