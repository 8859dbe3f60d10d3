"""The comparison with peers: its rules and its table without anomalib, its models where anomalib is there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffad.cli.main import main
from diffad.measuring import comparison, peers
from diffad.measuring.evaluation import evaluate
from diffad.method.diffusion import Prediction, Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.image_score import top_mean
from diffad.method.tiling import Tiling
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import find_samples, labelled
from diffad.synthetic.parts import write_set

METRICS = ("image_auroc", "pixel_auroc", "aupro", "aupro_05", "image_ap", "pixel_ap")


@pytest.fixture(scope="module")
def gears(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"), ["gear"], train=2, good=3, defective=3)


@pytest.fixture(scope="module")
def backbone():
    return FeatureExtractor()


# ---------------------------------------------------------------------------------------------------------
# Ours


def test_diffad_is_measured_as_evaluate_measures_it(inspector, gears):
    samples = find_samples(gears)
    result = comparison.compare(inspector, samples, peers=())
    ours = result["categories"]["gear"]["diffad"]
    same = evaluate(inspector, [sample for sample in samples if sample.split == "test"])["gear"]
    assert {key: ours[key] for key in METRICS} == {key: same[key] for key in METRICS}
    assert list(result["categories"]["gear"]) == ["diffad", "RGB error"]
    assert ours["fit_seconds"] == 60 * inspector.provenance["minutes"]
    assert result["pictures"]["gear"] == {"train": 0, "good": 3, "defective": 3}


def test_rgb_error_is_the_squared_distance_to_the_reconstruction():
    """A network that always sees the same grey behind the noise."""
    schedule, grey = Schedule.linear(), 0.25

    def sees_grey(x_t, t):
        bar = schedule.alpha_bar(t, x_t).float()
        noise = (x_t - bar.sqrt() * grey) / (1 - bar).sqrt()
        return Prediction(noise, torch.zeros_like(x_t), torch.zeros_like(x_t), torch.zeros_like(x_t))

    stand_in = SimpleNamespace(
        size=32, device=torch.device("cpu"), schedule=schedule, network=sees_grey,
        whole=lambda image, category: Tiling.whole(*image.shape[:2], 32),
    )  # fmt: skip
    image = np.full((20, 32, 3), 51, np.uint8)  # -0.6, letterboxed
    score, error = comparison._rgb_error(stand_in, "nut", seed=0).judge(image)
    assert error.shape == (20, 32)
    np.testing.assert_allclose(error, 0.85**2, rtol=1e-4)
    assert score == pytest.approx(top_mean(error, 32)) == pytest.approx(0.85**2, rel=1e-4)


def test_methods_are_judged_changed_by_one_rule_on_pictures_put_aside(inspector, tmp_path, monkeypatch):
    """Two methods that score by the grain, one of them a hundred times as high: the same verdicts."""
    root = write_set(tmp_path / "set", ["gear"], train=0, good=6, defective=1)

    def by_grain(scale):
        def judge(image):
            return scale * np.abs(np.diff(image.astype(float), axis=0)).mean(), None

        return peers.Fitted(judge, ())

    monkeypatch.setattr(comparison, "_diffad", lambda *_: by_grain(1))
    monkeypatch.setattr(comparison, "_rgb_error", lambda *_: by_grain(100))
    calls = []
    samples = find_samples(root)
    result = comparison.compare(inspector, samples, (), stress=2, progress=lambda *at: calls.append(at))
    one, two = (result["categories"]["gear"][name] for name in ("diffad", "RGB error"))
    assert one["stress"] == two["stress"] and one["stress"]["good"] == 2
    assert one["wrong_when_changed"] == one["stress"]["beyond"] > 0
    assert one["stress"]["worst"] == "sharpening"
    assert calls[-1] == (2 * (7 + 2 * 17),) * 2 and len(calls) == calls[-1][1]
    report = comparison.comparison_report(result)
    assert "| method | rejected as they are |" in report and "For every method the threshold" in report
    few = [sample for sample in find_samples(root) if sample.is_anomalous or sample.image.stem < "003"]
    result = comparison.compare(inspector, few, (), stress=2)
    assert "stress" not in result["categories"]["gear"]["diffad"]
    assert (
        "gear: too few good test pictures to change some and keep others for the threshold."
        in result["notes"]
    )


def test_pictures_to_change_leave_the_others_for_the_threshold(gears):
    good = [sample for sample in find_samples(gears) if sample.defect == "good"][:1] * 9
    named = [replace(sample, image=Path(f"{number}.png")) for number, sample in enumerate(good)]
    assert [one.image.stem for one in comparison._to_change(named, 8)] == ["1", "3", "5", "7"]
    assert [one.image.stem for one in comparison._to_change(named, 2)] == ["1", "5"]
    assert comparison._to_change(named, None) == comparison._to_change(named[:3], 2) == []


def test_the_limit_thins_test_pictures_evenly_and_leaves_training_alone(gears):
    samples = find_samples(gears)
    test = [sample for sample in samples if sample.split == "test"]
    chosen = labelled(samples, limit=1)["gear"]
    assert sorted(sample.is_anomalous for sample in chosen) == [False, True]
    assert set(chosen) <= set(test)
    assert set(labelled(samples)["gear"]) == set(test)
    assert len(comparison._normal_squares(comparison._normal(samples, "gear"), 32, None)) == 2


def test_memory_counts_every_tensor_that_judging_needs():
    @dataclass
    class Statistics:
        mean: torch.Tensor
        count: int

    linear = torch.nn.Linear(3, 4)  # 16 numbers
    linear.register_buffer("seen", torch.zeros(2, dtype=torch.float16), persistent=False)
    assert comparison._bytes((linear, Statistics(torch.zeros(5), 7))) == 16 * 4 + 2 * 2 + 5 * 4


def test_the_report_has_a_table_per_category_and_their_mean():
    def of(value):
        return dict.fromkeys((key for _, key, _ in comparison.COLUMNS), value)

    result = {
        "checkpoint": "model", "notes": ["a note"],
        "folders": {name: f"good: test/OK · defective: test/{name}" for name in ("nut", "ring")},
        "categories": {"nut": {"diffad": of(1.0), "GAN": of(0.5)},
                       "ring": {"diffad": of(0.5), "GAN": of(0.25) | {"aupro": None}}},
        "pictures": {"nut": {"train": 9, "good": 2, "defective": 3},
                     "ring": {"train": 0, "good": 1, "defective": 1}},
    }  # fmt: skip
    nut, ring, mean = comparison.comparison_report(result).split("\n## ")[1:]
    assert nut.startswith(
        "nut\n\n2 good and 3 defective test pictures, 9 normal ones to learn from.\n\n"
        "good: test/OK · defective: test/nut\n"
    )
    assert "to learn" not in ring
    assert "| diffad | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 | 100.0% | 1 | 1.000 | 1 |" in nut
    assert "| GAN | 0.250 | 0.250 | – | 0.250 |" in ring
    assert "| diffad | 0.750 |" in mean and "| GAN | 0.375 | 0.375 | 0.500 | 0.375 |" in mean
    assert mean.endswith("- a note")


def test_the_command_writes_what_it_says(bundled_model, gears, tmp_path, capsys):
    command = ["compare", str(gears), "--checkpoint", str(bundled_model), "--device", "cpu"]
    options = ["--peers", "none", "--limit", "1", "--json", "--out", str(tmp_path / "out")]
    assert main([*command, *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert said["pictures"]["gear"] == {"train": 0, "good": 1, "defective": 1}
    assert (tmp_path / "out" / "comparison.md").read_text() == comparison.comparison_report(said) + "\n"


@pytest.mark.parametrize(
    ("installed", "names", "reason"),
    [(None, "padim", 'pip install "anomalib'), (object(), "padim,foo", "there is no peer foo: choose from")],
)
def test_refusals_are_one_sentence(monkeypatch, gears, capsys, installed, names, reason):
    monkeypatch.setattr(peers, "find_spec", lambda name: installed)
    assert main(["compare", str(gears), "--peers", names]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("diffad: ") and reason in err and err.count("\n") == 1


def test_deep_pictures_are_read_by_the_brightest_of_their_category(inspector, gears, tmp_path, monkeypatch):
    for path in gears.rglob("*.png"):
        picture = np.asarray(Image.open(path).convert("L"))
        deep = picture if "ground_truth" in path.parts else picture.astype(np.uint16) * np.uint16(16)
        copied = tmp_path / path.relative_to(gears)
        copied.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(deep).save(copied)
    asked = set()

    def spy(path, bits=None):
        asked.add(bits)
        return read_image(path, bits)

    monkeypatch.setattr(comparison, "read_image", spy)
    notes = comparison.compare(inspector, find_samples(tmp_path), (), limit=1)["notes"]
    assert asked == {12} and "gear: Pictures of more than 8 bits were read as 12 bits." in notes


def test_what_cannot_be_compared_is_refused(inspector, gears, tmp_path):
    samples = find_samples(gears)
    with pytest.raises(DataError, match="no picture has a label"):
        comparison.compare(inspector, [sample for sample in samples if sample.split == "train"], ())
    other = write_set(tmp_path / "set", ["gear"], train=0, good=1, defective=1)
    (other / "gear").rename(other / "bolt")
    with pytest.raises(DataError, match="has no category bolt"):
        comparison.compare(inspector, find_samples(other), ())
    with pytest.raises(DataError, match="bolt has no train/good"):
        comparison._normal(find_samples(other), "bolt")


def test_the_backbone_shown_to_peers_is_diffads(backbone):
    """Same weights, same normalisation: the stage that both see at the same size is the extractor's."""
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    stages = peers._Stages(backbone, (1, 2, 3))(x)
    assert [stage.shape[-1] for stage in stages.values()] == [64, 32, 16]
    theirs = torch.nn.functional.interpolate(stages[3], scale_factor=2, mode="bilinear")
    mine = backbone(x)[:, -backbone.stage_channels[2] :]  # may be computed in bf16
    assert (mine - theirs).std() / theirs.std() < 0.05
    assert list(peers._Stages(backbone, (2, 3))(x)) == [2, 3]


# ---------------------------------------------------------------------------------------------------------
# anomalib's


@pytest.fixture(scope="module")
def anomalib():
    return pytest.importorskip("anomalib.models", reason="anomalib is an optional extra")


def grain(count: int, size: int = 96) -> np.ndarray:
    """Grey pictures with fine grain, uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(128, 12, (count, size, size, 3)), 0, 255).astype(np.uint8)


def squares(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("name", ["padim", "patchcore", "fre"])
def test_a_peer_finds_a_blot(anomalib, backbone, name):
    images = grain(13)
    blotted = images[12].copy()
    blotted[56:80, 16:40] = (200, 30, 30)
    torch.manual_seed(0)
    fitted = peers.PEERS[name][1](squares(images[:12]), backbone, 20.0)
    good_score, good_map = fitted.judge(images[12])
    score, anomaly_map = fitted.judge(blotted)
    assert good_map.shape == anomaly_map.shape == (96, 96) and score > good_score
    # FRE's coarsest cells are 32 px wide
    assert anomaly_map[56:80, 16:40].mean() > 1.5 * np.median(anomaly_map)


def test_padim_gives_nothing_to_what_every_training_picture_is(anomalib, backbone):
    images = np.repeat(grain(1), 4, axis=0)
    score, anomaly_map = peers.padim(squares(images), backbone, 0.0).judge(images[0])
    assert score == pytest.approx(0, abs=0.05) and anomaly_map.max() < 0.05


def test_the_coreset_is_anomalibs(anomalib):
    from anomalib.models.components import KCenterGreedy

    patches = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    # with a third dimension it does not project first
    theirs = KCenterGreedy(patches[..., None], 0.1).select_coreset_idxs()
    torch.manual_seed(1)
    assert peers.coreset(patches, 0.1).tolist() == theirs


def test_ganomaly_scores_without_a_map_and_says_how_long_it_was_trained(anomalib, backbone):
    images = grain(2, size=32)
    fitted = peers.ganomaly(squares(images), backbone, 0.05)
    score, anomaly_map = fitted.judge(images[0])
    assert score > 0 and anomaly_map is None
    steps = int(fitted.note.removeprefix("GANomaly was trained for ").split()[0])
    assert steps >= 1


def test_the_whole_comparison(anomalib, inspector, gears):
    result = comparison.compare(inspector, find_samples(gears), ("patchcore",), limit=1)
    values = result["categories"]["gear"]["PatchCore"]
    assert result["pictures"]["gear"]["train"] == 2
    assert values["fit_seconds"] > 0 and values["seconds_per_image"] > 0
    assert all(0 <= values[key] <= 1 for key in METRICS)
    # the backbone and a tenth of two pictures' 1024 patches of 168 channels
    bank = int(0.1 * 2 * 32 * 32) * (48 + 120) * 4
    assert bank < values["model_megabytes"] * 2**20 < bank + 20 * 2**20
    assert "PatchCore" in comparison.comparison_report(result)
