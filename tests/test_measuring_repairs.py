"""evaluate_repair against an inspector whose repairs are known."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from toy_inspector import ToyInspector, nuts_and_rings, write_part

from diffad.measuring.evaluation import evaluate
from diffad.measuring.repairs import evaluate_repair
from diffad.measuring.tables import repair_table
from diffad.method.repair_options import RepairOptions


@pytest.fixture
def parts(tmp_path):
    return nuts_and_rings(tmp_path)


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
