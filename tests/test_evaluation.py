"""evaluate, evaluate_repair, measure and the report against a toy inspector; no leakage with a real one."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from diffad.measuring import evaluation
from diffad.measuring.charts import repair_sheet
from diffad.measuring.evaluation import evaluate
from diffad.measuring.measures import Scored, measure
from diffad.measuring.repairs import Repaired, evaluate_repair
from diffad.measuring.report import html_report, markdown_report
from diffad.measuring.tables import evaluation_table, mean_interval, repair_table
from diffad.method.metrics import aupro, auroc, pixel_auroc
from diffad.method.repair_options import RepairOptions
from diffad.pictures.geometry import Geometry
from diffad.pictures.masks import read_mask
from diffad.pictures.reading import DataError, read_image
from diffad.pictures.samples import Sample, find_samples
from diffad.synthetic.parts import make_part

# ---------------------------------------------------------------------------------------------------------
# A toy inspector: the anomaly is how much redder than grey a pixel is.


TOO_FEW = (
    "AUPIMO needs more good pictures: fewer than 30 pixels of all {} are between its false positive "
    "rates, 0.001% and 0.01%."
)


class ToyInspector:
    name, categories, size = "toy", ("nut", "ring"), 64
    parameters, provenance = 7, {"licence": "<none>", "data": {"nut": 3}, "by_place": True}

    def __init__(self, touched: int = 0):
        self.touched = touched  # grey levels that a repair changes outside the defect
        self.asked: list[str | None] = []

    def scale_top(self, category):
        return 8.0

    def size_of(self, category):
        return self.size

    def features(self, image):
        small = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA)
        return small.transpose(2, 0, 1).astype(np.float32)

    def inspect(self, image, category=None, timesteps=(20,), alpha=0.5, seed=0, threshold=None):
        self.asked.append(category)
        image = read_image(image)
        redness = (image[..., 0].astype(np.float32) - image[..., 1]) / 10
        geometry = Geometry.letterbox(*image.shape[:2], self.size)
        shape = (geometry.inner_width, geometry.inner_height)
        inner = cv2.resize(redness, shape, interpolation=cv2.INTER_AREA)
        padded = np.zeros((self.size, self.size), np.float32)
        padded[geometry.inner] = inner
        padded[: geometry.top], padded[:, : geometry.left] = 99, 99  # must never count
        score = float(np.sort(inner.ravel())[-64:].mean())
        limit = 3.0 if threshold is None else threshold
        return SimpleNamespace(
            image=image,
            category=category or self.recognise(image),
            recognised=category is None,
            score=score,
            threshold=limit,
            is_anomalous=score > limit,
            square_map=padded,
            seconds=0.25,
            threshold_at=lambda rate: {0.001: 20.0, 0.01: 3.0, 0.05: -1.0}[rate],
            anomaly_map=redness,
            timesteps=timesteps,
            alpha=alpha,
            pixel_maps=dict.fromkeys(timesteps, redness),
            feature_maps=dict.fromkeys(timesteps, redness),
            plain_map=None,
            weights_in_words="both",
            verdict="anomalous" if score > limit else "good",
            look_threshold=limit,
            map_limit=limit,
        )

    def recognise(self, image):
        return "nut" if image[..., 2].mean() < 128 else "ring"

    def repair(self, image, category=None, options=None, **settings):
        steps = options.steps
        for index in range(steps + 1):
            rest = index / steps
            red = image[..., 0].astype(np.float32)
            frame = image.copy()
            frame[..., 0] = np.round(red + (image[..., 1] - red) * 0.75 * rest) + self.touched * rest
            yield SimpleNamespace(index=index, total=steps, image=frame, done=index == steps)


def write_part(folder, stem, kind, shape=(64, 64), blue=60, depth=60):
    """A grey part with a mark of its own; a kind other than good adds a red square of 16 px and its mask."""
    image = np.full((*shape, 3), 100, np.uint8)
    image[..., 2] = blue
    own = sum(map(ord, stem + kind)) % 50
    image[own : own + 8, 4:12] += 40
    path = folder / "test" / kind / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = None
    if kind != "good":
        defect = np.zeros(shape, np.uint8)
        defect[20:36, 24:40] = 255
        image[defect > 0, 0] += np.uint8(depth)
        mask = folder / "ground_truth" / kind / f"{stem}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask), defect)
    cv2.imwrite(str(path), image[..., ::-1])
    return Sample(path, folder.name, "test", kind, mask)


@pytest.fixture
def parts(tmp_path):
    nut, ring = tmp_path / "nut", tmp_path / "ring"
    return [
        write_part(nut, "0", "good"),
        write_part(nut, "1", "good"),
        write_part(nut, "0", "scratch"),
        write_part(nut, "1", "scratch", depth=20),
        write_part(ring, "0", "good", shape=(128, 96), blue=200),
        write_part(ring, "0", "dent", shape=(128, 96), blue=200),
        Sample(nut / "test" / "good" / "0.png", "nut"),  # nobody said what it is
        Sample(nut / "train" / "good" / "1.png", "nut", "train", "good"),
    ]


def test_deep_pictures_are_measured_as_their_8_bits(parts):
    inspector, dark = ToyInspector(), str(parts[3].image)
    cv2.imwrite(dark, cv2.imread(dark) // 8)
    usual = evaluate(inspector, parts), evaluate_repair(inspector, parts)
    for path in {sample.image for sample in parts if sample.image.is_file()}:
        cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 16)
    asked = []
    inspector.bits = lambda profile, found: asked.append((profile, found)) or found
    deep = evaluate(inspector, parts), evaluate_repair(inspector, parts)
    assert set(asked) == {("nut", 12), ("ring", 12)}
    for name in ("nut", "ring"):
        assert deep[0][name]["image_auroc"] == usual[0][name]["image_auroc"]
        assert deep[1][name]["fall_median"] == pytest.approx(usual[1][name]["fall_median"], abs=0.02)
        scores = [[one["score"] for one in result[name]["pictures"]] for result in (deep[0], usual[0])]
        assert scores[0] == pytest.approx(scores[1], abs=0.11)  # a grey value is 0.1
        assert "Pictures of more than 8 bits were read as 12 bits." in deep[0][name]["notes"]
    inspector.bits = lambda profile, found: 10
    noted = evaluate(inspector, parts)["nut"]["notes"]
    assert any("as 10 bits, those with higher values as up to 12." in note for note in noted)


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


def scored(n=12, size=24):
    """A method that says no more than scores and maps."""
    rng = np.random.default_rng(5)
    for i in range(n):
        mask = np.zeros((size, size), bool)
        if i >= n // 3:
            mask[4 : 9 + i % 4, 6:14] = True
        anomaly_map = (rng.normal(size=mask.shape) + mask).astype(np.float32)
        yield Scored(
            Path(f"{i}.png"),
            bool(mask.any()),
            float(rng.normal() + mask.any()),
            anomaly_map,
            mask,
            defect=("cut", "dent")[i % 2] if mask.any() else "good",
        )


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


def test_evaluate_repair(parts):
    result = evaluate_repair(ToyInspector(), parts, options=RepairOptions(steps=3))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    nut = result["nut"]
    assert (nut["good"], nut["defective"], nut["steps"], nut["notes"]) == (2, 2, 3, [])
    assert nut["fall_median"] == pytest.approx(0.75) and nut["fall_worst_tenth"] == pytest.approx(0.75)
    assert nut["psnr_outside_median"] == nut["psnr_good_worst"] == 100.0
    assert nut["ssim_outside_median"] == pytest.approx(1.0)
    assert nut["judged_good_before"] == 0.5 and nut["judged_good_after"] == 1.0
    assert nut["feature_distance_outside_median"] == nut["feature_distance_good_median"] == 0.0
    assert nut["seconds_per_step"] > 0
    table = repair_table(result)
    assert "75%" in table and "100.0" in table and "**mean**" in table


def test_evaluate_repair_sees_what_is_spoiled_outside_the_mask(parts):
    result = evaluate_repair(ToyInspector(touched=12), parts)["nut"]
    expected = 10 * np.log10(255**2 / (12**2 / 3))  # one channel of three moved by 12
    assert result["psnr_outside_median"] == pytest.approx(expected, abs=1e-6)
    assert result["psnr_good_median"] == pytest.approx(expected, abs=1e-6)
    assert result["fall_worst_tenth"] < 0.75
    distances = [
        result[f"feature_distance_{key}"] for key in ("outside_median", "outside_worst_tenth", "good_median")
    ]
    assert distances == [12**2 / 3] * 3  # the toy's features are the colours, block by block


def test_evaluate_repair_limit_spreads_over_the_kinds(tmp_path):
    folder = tmp_path / "nut"
    depths = {"a": 40, "b": 60}
    samples = [write_part(folder, str(i), kind, depth=depths[kind]) for kind in depths for i in range(4)]
    seen, kinds = [], []

    class Spy(ToyInspector):
        def repair(self, image, category=None, options=None, **settings):
            seen.append(settings)
            kinds.append(image.max() - 100)
            return super().repair(image, category, options, **settings)

    result = evaluate_repair(Spy(), samples, limit=2, threshold=0.5)["nut"]
    assert result["defective"] == len(seen) == 2 and result["good"] == 0
    assert kinds == [40, 60]
    assert result["psnr_good_median"] is None and "good" in result["notes"][0]
    assert result["judged_good_after"] == 0.0  # the threshold reached both the inspection and the repair
    assert all(settings["threshold"] == 0.5 for settings in seen)


def test_what_the_sheet_shows_is_fixed_and_even_over_the_kinds(tmp_path):
    folder = tmp_path / "nut"
    counts = {"a": 30, "b": 2, "c": 7}
    samples = [write_part(folder, str(i), kind) for kind in counts for i in range(counts[kind])]

    def shown(inspector):
        seen = {}
        evaluate_repair(inspector, samples, show=seen.__setitem__, options=RepairOptions(steps=1))
        return seen["nut"]

    repairs = shown(ToyInspector())
    kinds = [repair.sample.defect for repair in repairs]
    assert {kind: kinds.count(kind) for kind in counts} == {"a": 4, "b": 2, "c": 4}
    assert [r.sample for r in repairs] == [r.sample for r in shown(ToyInspector(touched=40))]
    assert repairs[0].score_before == 6.0 and repairs[0].score_after < 3.0 == repairs[0].threshold
    assert (repairs[0].before != repairs[0].after).any()


# ---------------------------------------------------------------------------------------------------------
# The report


class Page(HTMLParser):
    """What a page asks for and says."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_one_file_that_asks_no_network(parts):
    inspector = ToyInspector()
    results, repairs = evaluate(inspector, parts), {}
    for name, values in evaluate_repair(inspector, parts, show=repairs.__setitem__).items():
        results[name]["repair"] = values
    sheets = {name: repair_sheet(some) for name, some in repairs.items()}
    text = html_report(results, inspector, sheets)
    page = Page(text)
    assert page.sources and all(re.match(r"#|data:image/webp;base64,", source) for source in page.sources)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert page.tags.count("svg") == 6  # ROC, PRO and scores of two categories
    assert re.findall('<svg [^>]*aria-label="([^"]*)"', text) == ["ROC", "PRO", "Image scores"] * 2
    assert max(map(len, re.findall("<svg.*?</svg>", text, re.DOTALL))) < 10_000
    # nut: two defective, two good (none twice), ring: one of each; two sheets of repairs
    assert page.tags.count("details") == 6 and page.tags.count("img") == 2 * 6 + 2
    said = " ".join(page.text)
    assert "<none>" in said and "nut 3" in said and "8-connected" in said and "missed" in said
    assert "images 1.000" in said and "threshold 3.00" in said and "var(--calm)" in text  # text stays text
    anchors = {source for source in page.sources if source.startswith("#")}
    assert all(f'id="{anchor[1:]}"' in text for anchor in anchors)
    written = markdown_report(results)
    assert written.count("| nut |") == 4 and "### ring" in written and "| scratch | 2 |" in written


def test_report_of_what_cannot_be_measured(parts):
    for some in (parts[:2], parts[2:4], [replace(one, mask=None) for one in parts[:4]]):
        inspector = ToyInspector()
        results = evaluate(inspector, some)
        assert "Notes" in markdown_report(results) and "undefined" in html_report(results, inspector)


def test_repair_sheet_shows_every_repair():
    before = np.full((40, 60, 3), 100, np.uint8)
    after = before.copy()
    after[10:30, 20:40] = 140
    one = repair_sheet([Repaired(Sample(Path("0.png"), "nut", "test", "cut"), before, after, 9.0, 2.0, 3.0)])
    assert one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3
    values, counts = np.unique(one.reshape(-1, 3), axis=0, return_counts=True)
    large = {tuple(value) for value, count in zip(values.tolist(), counts, strict=True) if count > 500}
    assert {(100, 100, 100), (140, 140, 140), (160, 160, 160), (0, 0, 0)} <= large  # 160: 4 · 40


# ---------------------------------------------------------------------------------------------------------
# No leakage: with the bundled model, what is said of a picture depends on the picture and the model alone.


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
        return self._inspector.inspect(image, **settings, threshold=float(np.mean(self._scores)))


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
