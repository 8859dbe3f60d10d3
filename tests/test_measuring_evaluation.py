"""evaluate and measure against an inspector whose maps are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scored_pictures import scored
from toy_inspector import ToyInspector, nuts_and_rings, write_part

from diffad.measuring.evaluation import evaluate
from diffad.measuring.measures import Scored, measure
from diffad.measuring.repairs import evaluate_repair
from diffad.measuring.report import html_report, markdown_report
from diffad.measuring.tables import evaluation_table, mean_interval
from diffad.method.metrics import aupro, auroc, pixel_auroc
from diffad.pictures.reading import DataError
from diffad.pictures.samples import Sample, find_samples

TOO_FEW = (
    "AUPIMO needs more good pictures: fewer than 30 pixels of all {} are between its false positive "
    "rates, 0.001% and 0.01%."
)


@pytest.fixture
def parts(tmp_path):
    return nuts_and_rings(tmp_path)


def test_evaluate(parts):
    calls = []
    inspector = ToyInspector()
    result = evaluate(inspector, parts, progress=lambda done, total: calls.append((done, total)))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == ["nut", "ring"] and calls == [(i + 1, 6) for i in range(6)]
    nut = result["nut"]
    assert nut["images"] == 4 and nut["defective"] == 2
    assert nut["aupimo"] is None and nut["notes"] == [TOO_FEW.format(2)]
    for metric in (
        "image_auroc",
        "image_ap",
        "image_f1",
        "pixel_auroc",
        "pixel_ap",
        "pixel_f1",
        "aupro",
        "aupro_05",
        "good_accuracy",
        "category_accuracy",
    ):
        assert nut[metric] == 1.0, metric
    assert nut["defect_recall"] == nut["miss_rate"] == 0.5  # the faint one scores 2, below the threshold of 3
    assert nut["false_alarm_rate"] == 0.0 and nut["intervals"]["aupro"] == [1.0, 1.0] and nut["std"] == {}
    assert [(p["defect"], p["anomalous"]) for p in nut["pictures"]] == [
        ("good", False),
        ("good", False),
        ("scratch", True),
        ("scratch", False),
    ]
    assert nut["setting"]["seeds"] == [0] and nut["setting"]["profile"] == "nut"
    assert nut["threshold"] == 3.0 and nut["seconds_per_image"] == 0.25
    # good ones score 0, the scratches 2 and more: what each limit of ToyInspector makes of them
    assert nut["announced"] == [[0.001, 0.0, 1.0], [0.01, 0.0, 0.5], [0.05, 1.0, 0.0]]
    announced = [
        "| category | false alarms at 0.1% | false alarms at 1% | false alarms at 5% "
        "| missed at 0.1% | missed at 1% | missed at 5% |",
        f"| --- |{' ---: |' * 6}",
        "| nut | 0.0% | 0.0% | 100.0% | 100.0% | 50.0% | 0.0% |",
    ]
    assert "\n".join(announced) in markdown_report(result)
    assert "<td>100.0%</td><td>50.0%</td><td>0.0%</td>" in html_report(result, ToyInspector())
    assert result["ring"]["pixel_auroc"] > 0.99  # letterboxed, shrunk twice
    table = evaluation_table(result)
    assert table.count("\n") == 4 and "**mean**" in table and "25.0%" in table  # missed: 50 % and none


def test_evaluate_says_what_a_person_should_doubt(tmp_path):
    nut = tmp_path / "nut"
    samples = [
        write_part(nut, "0", "good"),
        write_part(nut, "1", "good"),
        write_part(nut, "1", "scratch"),
        write_part(nut, "2", "scratch"),
        write_part(nut, "3", "scratch"),
    ]
    (nut / "test" / "good").rename(nut / "test" / "OK")
    copies = {
        "test/OK/0.png": "train/OK/a.jpg",
        "test/OK/1.png": "test/dent/7.png",
        "test/scratch/1.png": "test/scratch/9.bmp",
    }
    for source, copy in copies.items():
        (nut / copy).parent.mkdir(parents=True, exist_ok=True)
        Image.open(nut / source).save(nut / copy, quality=95)
    Image.new("L", (64, 64)).save(samples[3].mask)
    result = evaluate(ToyInspector(), find_samples(tmp_path))
    values = result["nut"]
    assert values["folders"] == "good: test/OK · defective: test/dent, test/scratch"
    assert values["notes"] == [
        "3 defective pictures without a mask are left out of the pixel metrics.",
        TOO_FEW.format(2),
        "Empty masks of defective pictures count as missing: ground_truth/scratch/2_mask.png.",
        "1 of 7 test pictures are among the good and among the defective ones, so that one label is wrong: "
        "test/OK/1.png = test/dent/7.png.",
        "1 of 7 test pictures show what another one shows and tell nothing more: "
        "test/scratch/9.bmp = test/scratch/1.png.",
        "1 of 7 test pictures are also in train, so that these numbers flatter: "
        "test/OK/0.png = train/OK/a.jpg.",
    ]
    pages = markdown_report(result), html_report(result, ToyInspector())
    for said in (values["folders"], values["notes"][-1]):
        assert all(said in page for page in pages), said
    repaired = evaluate_repair(ToyInspector(), find_samples(tmp_path))["nut"]
    assert repaired["defective"] == 2 and "3 defective pictures without a mask" in repaired["notes"][0]


def test_evaluate_judges_as_told(parts):
    inspector = ToyInspector()
    evaluate(inspector, parts[4:6])
    assert inspector.asked == [None, None]  # both recognised: nothing left to ask
    inspector.asked.clear()
    result = evaluate(inspector, parts[4:6], category="nut")
    assert inspector.asked == [None, "nut", None, "nut"] and "nut" in result["ring"]["notes"][0]
    assert result["ring"]["category_accuracy"] == 1.0
    inspector.asked.clear()
    blind = ToyInspector()
    blind.recognise = lambda image: "nut"
    result = evaluate(blind, parts[:6])
    assert [result[name]["category_accuracy"] for name in ("nut", "ring")] == [1.0, 0.0]
    assert result["ring"]["image_auroc"] == 1.0 and blind.asked[-4:] == [None, "ring"] * 2
    stranger = [Sample(s.image, "gear", s.split, s.defect, s.mask) for s in parts[:4]]
    result = evaluate(inspector, stranger)["gear"]
    assert set(inspector.asked) == {None}
    assert result["category_accuracy"] is None and len(result["notes"]) == 2


def test_evaluate_with_a_kind_missing_explains_each_none(parts):
    good = evaluate(ToyInspector(), parts[:2])["nut"]
    assert good["image_auroc"] is good["pixel_auroc"] is good["aupro"] is good["defect_recall"] is None
    assert good["good_accuracy"] == 1.0 and "defective" in good["notes"][0]
    bad = evaluate(ToyInspector(), parts[2:4])["nut"]
    assert bad["image_auroc"] is bad["good_accuracy"] is None and bad["pixel_auroc"] == 1.0
    unmasked = [Sample(s.image, s.category, s.split, s.defect) for s in parts[:4]]
    none = evaluate(ToyInspector(), unmasked)["nut"]
    assert none["image_auroc"] == 1.0 and none["pixel_auroc"] is None and "mask" in none["notes"][0]
    assert "–" in evaluation_table({"nut": none})
    with pytest.raises(DataError, match="label"):
        evaluate(ToyInspector(), parts[6:])


class Jittery(ToyInspector):
    """The seed decides how noisy the map is."""

    def inspect(self, image, seed=0, **settings):
        seen = super().inspect(image, **settings)
        noise = np.random.default_rng(seed).normal(0, 2, seen.square_map.shape).astype(np.float32)
        return SimpleNamespace(**vars(seen) | {"square_map": seen.square_map + noise, "score": float(seed)})


def test_seeds_are_averaged_and_their_deviation_is_told(parts):
    calls = []
    progress = lambda done, total: calls.append((done, total))  # noqa: E731
    result = evaluate(Jittery(), parts[:4], seeds=(3, 5, 8), progress=progress)["nut"]
    alone = [evaluate(Jittery(), parts[:4], seeds=(seed,))["nut"] for seed in (3, 5, 8)]
    for key in ("pixel_auroc", "aupro", "aupro_05", "pixel_ap"):
        values = [one[key] for one in alone]
        assert len(set(values)) == 3
        assert result[key] == pytest.approx(np.mean(values), abs=1e-12)
        assert result["std"][key] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        low, high = result["intervals"][key]
        assert low <= result[key] <= high
    assert calls[-1] == (12, 12) and result["pictures"] == alone[0]["pictures"]
    assert result["setting"]["seeds"] == [3, 5, 8] and alone[0]["std"] == {}
    cell = f"{result['aupro']:.3f} ± {result['std']['aupro']:.3f}"
    assert cell in evaluation_table({"nut": result})


def test_measure_takes_any_method_and_says_none_for_what_it_does_not_say():
    pictures = list(scored())
    values = measure(pictures, draws=200)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for key in (
        "false_alarm_rate",
        "miss_rate",
        "good_accuracy",
        "defect_recall",
        "category_accuracy",
        "threshold",
        "seconds_per_image",
    ):
        assert values[key] is None, key
    assert values["image_auroc"] == auroc([p.score for p in pictures], [p.label for p in pictures])
    assert values["aupro_05"] == aupro([p.anomaly_map for p in pictures], [p.mask for p in pictures], 0.05)
    assert set(values["intervals"]) == {
        "image_auroc",
        "image_ap",
        "pixel_auroc",
        "pixel_ap",
        "aupro",
        "aupro_05",
    }
    for key, (low, high) in values["intervals"].items():
        assert low <= values[key] <= high and low < high, key
    assert measure(pictures, draws=0)["intervals"] == {}
    some = [p for p in pictures if p.defect in ("good", "dent")]
    dent = values["by_defect"]["dent"]
    assert dent["images"] == 4 and list(values["by_defect"]) == ["cut", "dent"]
    assert dent["pixel_auroc"] == pixel_auroc([p.anomaly_map for p in some], [p.mask for p in some])
    assert dent["aupro"] == measure(some, draws=0)["aupro"]
    unmasked = [p if i < 8 else replace(p, mask=None, anomaly_map=None) for i, p in enumerate(pictures)]
    fewer = measure(unmasked, draws=50)
    assert fewer["image_auroc"] == values["image_auroc"]
    assert fewer["aupro"] == measure(pictures[:8], draws=0)["aupro"]
    assert fewer["intervals"]["aupro"][0] < fewer["aupro"] < fewer["intervals"]["aupro"][1]


def test_aupimo_is_measured_where_there_are_enough_good_pixels():
    """Six good pictures of 256 px, and two defects: one above all good pixels, a small one below most."""
    rng = np.random.default_rng(1)
    pictures = []
    for number in range(9):
        mask = np.zeros((256, 256), bool)
        anomaly_map = rng.random((256, 256), np.float32)
        defect = ("good", "cut", "dent", "lost")[max(0, number - 5)]
        if defect in ("cut", "dent"):
            mask[40:60, 40:60] = True
            anomaly_map[mask] = 2.0 if defect == "cut" else 0.5
        pictures.append(Scored(Path(f"{number}.png"), number > 5, 0.0, anomaly_map, mask, defect=defect))
    values = measure(pictures, draws=50)
    assert values["aupimo"] == pytest.approx(0.5)  # "lost" has no pixel of a mask left: it is left out
    assert {name: of["aupimo"] for name, of in values["by_defect"].items()} == {
        "cut": 1.0,
        "dent": 0.0,
        "lost": None,
    }
    assert values["intervals"]["aupimo"] == [0, 1]  # now and then one of the two is drawn twice


def test_mean_interval_adds_the_squares():
    category = {"aupro": 0.9, "intervals": {"aupro": [0.87, 0.94]}}
    assert mean_interval({"nut": category}, "aupro") == pytest.approx([0.87, 0.94])
    two = mean_interval({"nut": category, "ring": {**category}}, "aupro")
    assert two == pytest.approx([0.9 - 0.03 / 2**0.5, 0.9 + 0.04 / 2**0.5])
    other = {"aupro": 0.5, "intervals": {"aupro": [0.46, 0.5]}}
    both = mean_interval({"nut": category, "ring": other}, "aupro")
    assert both == pytest.approx([0.7 - 0.05 / 2, 0.7 + 0.04 / 2])
    assert mean_interval({"nut": {"aupro": None, "intervals": {}}}, "aupro") is None


def test_masks_and_maps_meet_at_the_models_resolution(tmp_path, monkeypatch):
    """A defect in a wide, large picture lies on the same pixels of map and mask, and padding never counts."""
    seen = {}

    class Spy(ToyInspector):
        size = 32

    monkeypatch.setattr(
        "diffad.measuring.measures.pro_curve", lambda maps, masks: seen.update(map=maps[0], mask=masks[0])
    )
    evaluate(Spy(), [write_part(tmp_path / "nut", "0", "scratch", shape=(96, 160))])
    assert seen["map"].shape == seen["mask"].shape == (19, 32)
    centre = [np.average(np.indices((19, 32))[axis], weights=seen["map"]) for axis in (0, 1)]
    expected = [np.indices((19, 32))[axis][seen["mask"]].mean() for axis in (0, 1)]
    assert centre == pytest.approx(expected, abs=0.5)
