"""`diffad inspect` and `repair` with a toy inspector: records, files and exit codes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_steps import labelled, only_error, picture
from PIL import Image

from diffad.batch import json_text
from diffad.cli.main import main
from diffad.pictures.reading import read_image


def test_inspect_for_people(toy, tmp_path, capsys):
    assert main(["inspect", str(picture(tmp_path / "a.png", red=50)), str(picture(tmp_path / "b.png"))]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("ANOMALOUS") and "5.00" in first and "1 region " in first and "a.png" in first
    assert second.startswith("good") and "b.png" in second
    assert main(["inspect", str(picture(tmp_path / "c.png", red=7))]) == 0  # a score of 0.7
    line = capsys.readouterr().out
    assert line.startswith("LOOK AT IT  score    0.70  look limit 0.50  threshold 1.00  1 region  nut")


def test_pictures_of_a_tree_are_judged_as_their_category_and_keep_their_labels(toy, tmp_path, capsys):
    root = labelled(tmp_path / "set")
    (root / "nut").rename(root / "ring")
    assert main(["inspect", str(root), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["label"] for record in records] == ["good", "good", "cut", "cut", "good", "good"]
    assert {call["category"] for call in toy.calls} == {"ring"}


def test_what_fits_no_category_is_said(toy, tmp_path, capsys, monkeypatch):
    inspect = toy.inspect

    def stranger(*arguments, **options):
        inspection = inspect(*arguments, **options)
        inspection.to_dict = lambda to_dict=inspection.to_dict: to_dict() | {"category_fits": False}
        return inspection

    monkeypatch.setattr(toy, "inspect", stranger)
    assert main(["inspect", str(picture(tmp_path / "a.png", red=50))]) == 0
    assert "nut?  fits no category" in capsys.readouterr().out


def test_notes_stand_beside_the_verdict_in_every_form(toy, tmp_path, capsys):
    toy.notes = "It is dark.", "It is read, as 12 bits."
    source, out = str(picture(tmp_path / "a.png", red=50)), tmp_path / "out"
    assert main(["inspect", source, "--out", str(out)]) == 0
    verdict, *notes = capsys.readouterr().out.splitlines()[:3]
    assert "a.png" in verdict and [note.strip() for note in notes] == list(toy.notes)
    assert json.loads((out / "results.json").read_text())[0]["notes"] == list(toy.notes)
    (row,) = csv.DictReader((out / "results.csv").read_text().splitlines())
    assert row["notes"] == " ".join(toy.notes) and row["bits"] == "8"
    assert main(["inspect", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["notes"] == list(toy.notes)
    assert main(["repair", source, "--steps", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(note in out for note in toy.notes)
    assert main(["repair", source, "--steps", "1", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["notes"] == list(toy.notes)


def test_bits_are_those_of_a_camera(toy, tmp_path, capsys):
    assert main(["inspect", str(picture(tmp_path / "a.png")), "--bits", "11"]) == 2
    assert "'11' is none of 8, 10, 12, 14, 16" in only_error(capsys)


def test_what_was_judged_before_an_interruption_is_kept(toy, tmp_path, capsys, monkeypatch):
    sources, inspect = [str(picture(tmp_path / f"{i}.png")) for i in range(3)], toy.inspect

    def interrupted(image, *arguments, **options):
        if Path(image).name == "2.png":
            raise KeyboardInterrupt
        return inspect(image, *arguments, **options)

    monkeypatch.setattr(toy, "inspect", interrupted)
    assert main(["inspect", *sources, "--out", str(tmp_path / "out")]) == 130
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 3
    assert main(["inspect", sources[2], "--out", str(tmp_path / "out")]) == 130  # before anything was judged
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2


def test_results_are_never_taken_for_pictures(toy, tmp_path, capsys):
    parts = picture(tmp_path / "parts" / "a.png").parent
    for command in ("inspect", "repair"):
        assert main([command, str(parts), "--out", str(parts)]) == 2
        assert "among the pictures" in only_error(capsys)
        for _ in range(2):
            assert main([command, str(parts), "--out", str(parts / command), "--json"]) == 0
            assert len(json.loads(capsys.readouterr().out)) == 1
    assert sorted(path.name for path in parts.iterdir()) == ["a.png", "inspect", "repair"]


def test_exit_codes_that_scripts_can_use(toy, tmp_path, capsys):
    good, bad = str(picture(tmp_path / "good.png")), str(picture(tmp_path / "bad.png", red=50))
    assert main(["inspect", good, bad]) == 0
    between = str(picture(tmp_path / "between.png", red=7))
    for verdicts, pictures in (("good", [good]), ("look", [good, between]), ("bad", [good, between, bad])):
        codes = [main(["inspect", *pictures, "--fail-on", lowest]) for lowest in ("anomalous", "look")]
        assert codes == {"good": [0, 0], "look": [0, 4], "bad": [3, 3]}[verdicts]
    assert main(["inspect", bad, "--fail-on", "anomalous", "--threshold", "99"]) == 0
    assert main(["inspect", bad, "--fail-on", "look", "--threshold", "99"]) == 4
    assert main(["inspect", bad, "--fail-on", "look", "--threshold", "99", "--look-threshold", "50"]) == 0
    (tmp_path / "junk.png").touch()
    for lowest in ("anomalous", "look"):
        assert main(["inspect", bad, str(tmp_path / "junk.png"), "--fail-on", lowest]) == 1


def test_nan_never_reaches_json(toy, tmp_path, capsys):
    toy.score_override = float("nan")
    assert main(["inspect", str(picture(tmp_path / "a.png")), "--json", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)[0]["score"] is None
    assert "NaN" not in (tmp_path / "out" / "results.json").read_text()
    numbers = {1: (np.float32("inf"), np.int64(3), np.bool_(True))}
    assert json.loads(json_text(numbers)) == {"1": [None, 3, True]}


def test_what_libraries_print_does_not_reach_the_document(toy, tmp_path, capsys, monkeypatch):
    inspect = toy.inspect
    monkeypatch.setattr(toy, "inspect", lambda *a, **k: print("chatter") or inspect(*a, **k))
    assert main(["inspect", str(picture(tmp_path / "a.png")), "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1 and "chatter" in err


def test_inspect_writes_evidence(toy, tmp_path, capsys):
    source = picture(tmp_path / "in" / "part.png", red=50)
    (tmp_path / "in" / "torn.png").write_bytes(source.read_bytes()[:60])
    out = tmp_path / "deep" / "out"
    assert main(["inspect", str(tmp_path / "in"), "--out", str(out), "--json"]) == 1
    records = json.loads(capsys.readouterr().out)
    assert records == json.loads((out / "results.json").read_text())
    assert records[0]["files"] == ["part_overlay.png", "part_map.npy", "part_evidence.png"]
    anomaly_map = np.load(out / "part_map.npy")
    assert anomaly_map.dtype == np.float32 and anomaly_map.shape == (30, 40) and anomaly_map.max() == 5
    overlay = read_image(out / "part_overlay.png")
    assert overlay.shape == (30, 40, 3) and (overlay != read_image(source)).any()
    assert read_image(out / "part_evidence.png").shape[1] > 200
    with (out / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["files"] == "part_overlay.png; part_map.npy; part_evidence.png" and rows[1]["files"] == ""
    assert [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()] == records
    assert [row["regions"] for row in rows] == ["1", ""] and rows[0]["is_anomalous"] == "True"
    assert rows[1]["error"] and float(rows[0]["score"]) == 5


def test_pictures_of_one_name_do_not_overwrite_each_other(toy, tmp_path, capsys):
    places = "good/0.png cut/0.png cut/0.bmp other/cut/0.png cut/1.png cut/Case.png cut/case.bmp".split()
    sources = [picture(tmp_path / place, red=10 * i + 20) for i, place in enumerate(places)]
    out = tmp_path / "out"
    assert main(["inspect", *map(str, sources), "--out", str(out)]) == 0
    names = [record["files"][1] for record in json.loads((out / "results.json").read_text())]
    expected = ("good_0", "cut_0", "cut_0_2", "cut_0_3", "1")
    assert names[:5] == [f"{name}_map.npy" for name in expected]
    assert len({name.casefold() for name in names}) == 7  # also where the disk ignores case
    assert [np.load(out / name).max() for name in names] == [2 + i for i in range(7)]


def test_names_too_long_for_results_are_cut(toy, tmp_path, capsys):
    sources = [str(picture(tmp_path / f"{'ä' * 115}{i}.png")) for i in range(2)]
    assert main(["inspect", *sources, "--out", str(tmp_path / "out")]) == 0
    written = sorted(path.name for path in (tmp_path / "out").glob("*_overlay.png"))
    assert written == ["ä" * 100 + "_2_overlay.png", "ä" * 100 + "_overlay.png"]


def test_inputs_are_never_overwritten(toy, tmp_path, capsys):
    """Not even when the output folder is theirs and a picture has the name that an overlay would get."""
    part = picture(tmp_path / "part.png", red=50)
    trap = picture(tmp_path / "part_overlay.png", red=20)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "part_2_map.npy").symlink_to(part)
    before = {file: file.read_bytes() for file in (part, trap)}
    assert main(["inspect", str(part), str(trap), "--out", str(tmp_path)]) == 0
    assert {file: file.read_bytes() for file in before} == before
    assert (tmp_path / "part_2_overlay.png").is_file()
    assert main(["inspect", str(part), str(trap), "--out", str(tmp_path / "link")]) == 0
    assert {file: file.read_bytes() for file in before} == before
    for name in ("results.json", "results.jsonl", "results.csv"):
        results = picture(tmp_path / "x.png").rename(tmp_path / name)
        content = results.read_bytes()
        assert main(["inspect", str(results), "--out", str(tmp_path)]) == 2
        assert results.read_bytes() == content


def test_repairs_that_cannot_be_written_end_the_run(toy, tmp_path, capsys, monkeypatch):
    sources = [str(picture(tmp_path / f"{i}.png", red=50)) for i in range(3)]
    replace = os.replace

    def full(partial, path):
        if Path(path).name.startswith("1"):
            raise OSError(28, "No space left on device")
        replace(partial, path)

    monkeypatch.setattr("os.replace", full)
    assert main(["repair", *sources, "--steps", "1", "--out", str(tmp_path / "out"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1 and "1_repair.gif could not be written: the disk is full" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0_repair.gif", "0_repaired.png"]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_repair_writes_the_animation(kind, toy, tmp_path, capsys):
    source = picture(tmp_path / "part.png", red=50, size=(1000, 40))
    (tmp_path / "torn.png").touch()
    options = "--steps 3 --denoise-every 2 --step-size 0.01 --timestep 30 --method paper --json".split()
    where = ["--out", str(tmp_path / "out"), "--format", kind]
    assert main(["repair", str(source), str(tmp_path / "torn.png"), *where, *options]) == 1
    done, torn = json.loads(capsys.readouterr().out)
    assert (done["steps"], done["score_before"], done["score_after"]) == (3, 9.0, 6.0) and "error" in torn
    with Image.open(done["animation"]) as film:
        assert film.format == kind.upper() and film.n_frames == 4 and film.size == (768, 31)
    assert (read_image(done["repaired"]) == read_image(source) // 4).all()  # lossless, the picture's own size
    expected = {"steps": 3, "denoise_every": 2, "step_size": 0.01, "timestep": 30, "method": "paper"}
    assert toy.calls[0] | expected == toy.calls[0]
