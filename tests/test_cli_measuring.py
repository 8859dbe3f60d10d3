"""`diffad evaluate`, `ablate` and `compare` with a toy inspector: numbers, files and refusals."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from cli_steps import labelled, only_error, picture

from diffad.cli.main import main
from diffad.pictures.reading import read_image


@pytest.mark.parametrize("command", ["ablate", "compare --peers none", "evaluate"])
def test_results_that_cannot_be_written_are_printed_all_the_same(command, toy, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    known = {"tables": [], "categories": {}, "checkpoint": "toy", "notes": [], "seed": 0, "pictures": {}}
    monkeypatch.setattr("diffad.measuring.ablation.ablate", lambda *_: known)
    monkeypatch.setattr("diffad.measuring.ablation.ablation_report", lambda *_: "")
    monkeypatch.setattr("diffad.measuring.comparison.compare", lambda *_: known)
    monkeypatch.setattr("os.replace", full)
    root, out = str(labelled(tmp_path / "set")), tmp_path / "out"
    name, *options = command.split()
    assert main([name, root, *options, "--out", str(out), "--json"]) == 2
    printed, err = capsys.readouterr()
    assert json.loads(printed) and "could not be written: the disk is full" in err
    assert {path.name for path in out.iterdir()} <= {"scores.jsonl"}


def test_evaluate_gives_an_object_per_category(toy, tmp_path, capsys):
    assert main(["evaluate", str(labelled(tmp_path)), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["nut"]
    assert {"image_auroc", "pixel_auroc", "aupro", "seconds_per_image", "images"} <= set(result["nut"])
    assert result["nut"]["image_auroc"] == 1.0
    assert result["nut"]["images"] == 4  # without the training pictures
    repair = ["--repair", "--limit", "1", "--steps", "2"]
    assert main(["evaluate", str(tmp_path / "nut"), *repair]) == 0
    out = capsys.readouterr().out
    assert out.count("| nut |") == 3 and "AUPRO" in out and "PSNR" in out
    assert main(["evaluate", str(tmp_path / "nut"), *repair, "--json"]) == 0
    repair = json.loads(capsys.readouterr().out)["nut"]["repair"]
    assert (repair["good"], repair["defective"], repair["steps"]) == (1, 1, 2)


def test_evaluate_counts_good_pictures_that_are_rejected_once_they_are_changed(toy, tmp_path, capsys):
    data, out = str(labelled(tmp_path)), tmp_path / "out"
    usual = toy.inspect

    def darker_is_bad(image, **settings):
        seen = usual(image, **settings)
        grey = np.median(read_image(image))
        return SimpleNamespace(**vars(seen) | {"is_anomalous": bool(grey < 85)})  # of 90

    toy.inspect = darker_is_bad
    assert main(["evaluate", data, "--stress", "1", "--out", str(out), "--json"]) == 0
    nut = json.loads(capsys.readouterr().out)["nut"]
    assert nut["stress"]["good"] == 1 and nut["stress"]["verdicts"] == 16
    assert nut["stress"]["newly_rejected"] == 1 and nut["stress"]["worst"] == "darker"
    assert nut["wrong_when_changed"] == nut["stress"]["beyond"] == 1 / 16
    rows = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert len(rows) == 17 and [row["change"] for row in rows if row["rejected"]] == ["darker"]
    report = (out / "results.md").read_text()
    assert "| nut | 0 of 1 | 1 of 16 | 6.2% | darker: 1 of 1 |" in report
    assert "| missed | wrong when changed |" in report and "| darker, 10 % light | 1 of 1 |" in report
    assert "<td>darker: 1 of 1" in (out / "report.html").read_text()
    assert main(["evaluate", data, "--stress", "1"]) == 0
    assert "| nut | 0 of 1 | 1 of 16 | 6.2% | darker: 1 of 1 |" in capsys.readouterr().out


def test_without_a_good_picture_none_can_be_changed(toy, tmp_path, capsys):
    shutil.rmtree(labelled(tmp_path) / "nut" / "test" / "good")
    assert main(["evaluate", str(tmp_path / "nut"), "--stress", "1"]) == 2
    assert "--stress changes good pictures, and there is none" in capsys.readouterr().err


def test_evaluate_writes_json_markdown_and_a_page(toy, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--out", str(out), "--seeds", "4,1,4", "--repair", "--sheet", "--steps", "1", "--json"]
    assert main(["evaluate", str(labelled(tmp_path)), *options]) == 0
    printed, said = capsys.readouterr()
    assert str(out) in said and json.loads(printed) == json.loads((out / "results.json").read_text())
    assert json.loads(printed)["nut"]["setting"]["seeds"] == [4, 1]
    assert {call["seed"] for call in toy.calls if "seed" in call} == {4, 1}
    assert sorted(path.name for path in out.iterdir()) == [
        "nut_repairs.png",
        "report.html",
        "results.json",
        "results.md",
        "scores.jsonl",
    ]
    scores = list(map(json.loads, (out / "scores.jsonl").read_text().splitlines()))
    known = json.loads(printed)["nut"]["pictures"]
    assert scores == [{"category": "nut", "seed": seed, **one} for seed in (4, 1) for one in known]
    assert "| nut |" in (out / "results.md").read_text(encoding="utf-8")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.count("<svg") == 3
    for argv, hint in (
        (["--sheet"], "--out"),
        (["--sheet", "--repair"], "--out"),
        (["--limit", "3"], "--repair"),
        (["--out", str(out / "results.md")], "is a file"),
        (["--seeds", "1,x"], "--seeds"),
    ):
        assert main(["evaluate", str(tmp_path / "nut"), *argv]) == 2
        assert hint in only_error(capsys)


def test_evaluate_refuses_what_it_cannot_measure(toy, tmp_path, capsys):
    picture(tmp_path / "plain" / "a.png")
    assert main(["evaluate", str(tmp_path / "plain")]) == 2
    assert "labelled" in only_error(capsys)
    root = labelled(tmp_path / "set")
    for command in (["evaluate"], ["ablate"], ["compare", "--peers", "none"]):  # before the work, not after
        out = str(tmp_path / "plain" / "a.png" / "deeper")
        assert main([*command, str(root), "--out", out]) == 2 and not toy.calls
        assert "a.png" in only_error(capsys)
    truth = root / "nut" / "ground_truth" / "cut" / "1_mask.png"
    drawn = truth.read_bytes()
    picture(truth, size=(31, 32))
    for command in (["evaluate"], ["evaluate", "--repair"], ["ablate"], ["compare", "--peers", "none"]):
        assert main([*command, str(root)]) == 2 and not toy.calls  # nor a picture inspected in vain
        assert "1_mask.png" in only_error(capsys)
    truth.write_bytes(drawn)
    (root / "nut" / "test" / "good" / "1.png").write_bytes(b"torn")
    assert main(["evaluate", str(root), "--json"]) == 2  # never a number over fewer pictures than given
    assert "1.png" in only_error(capsys)
