"""The command line: its promises to people and scripts, with a toy inspector, then with a real tiny model."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffad import __version__, checkpoint
from diffad.batch import json_text
from diffad.cli import common
from diffad.cli.main import main
from diffad.inspection import map_limit_for, verdict_for
from diffad.inspector import Inspector
from diffad.method.fusion import weights_in_words
from diffad.method.repair_options import RepairOptions
from diffad.pictures.geometry import Geometry
from diffad.pictures.reading import read_image
from diffad.synthetic.parts import make_part

COMMANDS = (
    "train", "inspect", "repair", "evaluate", "ablate", "compare", "benchmark", "samples", "serve",
)  # fmt: skip


def only_error(capsys) -> str:
    """What was said: exactly one line on standard error, nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("diffad: ") and err.count("\n") == 1, (out, err)
    return err


# ---------------------------------------------------------------------------------------------------------
# A toy inspector: the anomaly is how much redder than grey a pixel is.


class Toy:
    name, categories, size, parameters, provenance = "toy", ("nut", "ring"), 32, 1, {"licence": "none"}
    score_override: float | None = None
    notes: tuple[str, ...] = ()

    check_knows = Inspector.check_knows

    def size_of(self, category):
        return self.size

    def __init__(self):
        self.calls: list[dict] = []

    def scale_top(self, category):
        return 8.0

    def features(self, image):
        return np.zeros((1, 8, 8), np.float32)

    def inspect(
        self,
        image,
        category=None,
        timesteps=(),
        alpha=0.5,
        seed=0,
        draws=1,
        threshold=None,
        look_threshold=None,
        tile="auto",
    ):
        settings = {"category": category, "timesteps": timesteps, "alpha": alpha, "seed": seed}
        self.calls.append({**settings, "draws": draws, "tile": tile})
        pixels = read_image(image)
        heat = (pixels[..., 0].astype(np.float32) - pixels[..., 1]) / 10
        square = np.zeros((self.size, self.size), np.float32)
        square[Geometry.letterbox(*pixels.shape[:2], self.size).inner] = heat.max()
        score = float(heat.max()) if self.score_override is None else self.score_override
        limit = 1.0 if threshold is None else threshold
        look = min(limit, 0.5 if look_threshold is None else look_threshold)
        verdict = verdict_for(score, limit, look)
        region = {"box": [1, 2, 3, 4], "area": 12, "peak": 5.0, "mean": 4.0}
        result = {
            "category": category or "nut",
            "score": score,
            "threshold": limit,
            "look_threshold": look,
            "verdict": verdict,
            "is_anomalous": score > limit,
            "regions": [] if verdict == "good" else [region],
            "seconds": 0.1,
            "bits": 8,
            "notes": list(self.notes),
        }
        maps = dict.fromkeys(timesteps, heat)
        return SimpleNamespace(
            **result,
            image=pixels,
            anomaly_map=heat,
            square_map=square,
            pixel_maps=maps,
            feature_maps=maps,
            timesteps=timesteps,
            alpha=alpha,
            to_dict=lambda: result,
            threshold_at=lambda rate: 1.0,
            map_limit=map_limit_for(verdict, limit, look, heat),
            plain_map=None,
            weights_in_words=weights_in_words(alpha),
        )

    def repair(self, image, category=None, options=RepairOptions(), **settings):  # noqa: B008
        self.calls.append({"category": category, **asdict(options), **settings})
        steps = options.steps
        pixels = read_image(image)
        return (
            SimpleNamespace(
                index=i,
                total=steps,
                image=pixels // (i + 1),
                score=9.0 - i,
                done=i == steps,
                notes=self.notes,
            )
            for i in range(steps + 1)
        )


@pytest.fixture
def toy(monkeypatch):
    inspector = Toy()
    monkeypatch.setattr(Inspector, "load", classmethod(lambda cls, path, device="auto": inspector))
    monkeypatch.setattr(common, "default_checkpoint", lambda: Path("toy.safetensors"))
    return inspector


def picture(path: Path, red: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    image[5:20, 5:20, 0] += np.uint8(red)
    Image.fromarray(image).save(path)
    return path


# ---------------------------------------------------------------------------------------------------------
# Help and refusals


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_default_and_exit_code(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "exit codes" in out and "130" in out
    assert main(["--help"]) == 0
    assert f"    {command}" in capsys.readouterr().out


def test_version_and_no_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffad {__version__}\n"
    assert main([]) == 2
    assert "COMMAND" in only_error(capsys)


def test_help_and_refusals_answer_without_the_heavy_libraries():
    code = (
        "import sys; from diffad.cli.main import main; main(['inspect', '-h']); main(['inspect', '--alpha', '9']);"  # noqa: E501
        "main(['serve', '--host', '192.0.2.1']);"
        "print([m for m in ('torch', 'numpy', 'cv2', 'gradio') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--timesteps", "20,x"], "whole numbers"),
        (["--timesteps", "20,1.5"], "whole numbers"),
        (["--timesteps", "-5"], "--timesteps"),
        (["--timesteps", "20,1000"], "0 to 999"),
        (["--timesteps", ",".join(map(str, range(13)))], "1 to 12"),
        (["--timesteps", ""], "whole numbers"),
        (["--alpha", "1.5"], "0 to 1"),
        (["--alpha", "nan"], "0 to 1"),
        (["--alpha", "half"], "0 to 1"),
        (["--seed", "-1"], "from 0"),
        (["--draws", "0"], "1 to 16"),
        (["--tile", "8"], "at least 16 px"),
        (["--tile", "half"], "auto, whole"),
        (["--threshold", "inf"], "threshold"),
        (["--look-threshold", "nan"], "look-threshold"),
        (["--fail-on", "good"], "anomalous"),
        (["--category", "bolt"], "nut, ring"),
        (["--colour", "red"], "--colour"),
        (["nowhere.png"], "nowhere.png"),
        ([""], "empty"),
    ],
)
def test_inspect_refuses_with_one_line(options, hint, toy, tmp_path, capsys):
    assert main(["inspect", str(picture(tmp_path / "a.png")), *options]) == 2
    assert hint in only_error(capsys)
    assert toy.calls == []


@pytest.mark.parametrize("command", ["inspect", "repair", "evaluate", "train"])
def test_missing_or_empty_folders_are_refused(command, toy, tmp_path, capsys):
    more = ["--out", str(tmp_path / "x.safetensors"), "--steps", "1"] if command == "train" else []
    (tmp_path / "empty").mkdir()
    for folder in ("absent", "empty"):
        assert main([command, str(tmp_path / folder), *more]) == 2
        assert folder in only_error(capsys)


def test_bad_checkpoint_device_and_missing_model(monkeypatch, tmp_path, capsys):
    source = str(picture(tmp_path / "a.png"))
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert main(["inspect", source, "--checkpoint", str(tmp_path / "junk.safetensors")]) == 2
    assert "junk.safetensors" in only_error(capsys)
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "diffad" / "checkpoint.py"))
    assert main(["inspect", source]) == 2
    assert "--checkpoint" in only_error(capsys)

    def no_device(cls, path, device="auto"):
        raise ValueError(f"there is no device {device!r} here")

    monkeypatch.setattr(Inspector, "load", classmethod(no_device))
    assert main(["inspect", source, "--checkpoint", "x", "--device", "warp"]) == 2
    assert "warp" in only_error(capsys)


def test_default_checkpoint_beside_the_package_or_inside(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "diffad" / "checkpoint.py"))
    inside, beside = (tmp_path / folder / "checkpoints" / "parts.safetensors" for folder in ("diffad", "."))
    for file in (inside, beside):
        file.parent.mkdir(parents=True)
        file.touch()
        assert common.default_checkpoint().samefile(file)


def test_interruption_and_system_errors_leave_no_trace(toy, tmp_path, capsys, monkeypatch):
    source = str(picture(tmp_path / "a.png"))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "inspect", interrupted)
    assert main(["inspect", source, "--json"]) == 130
    assert "interrupted" in only_error(capsys)
    assert main(["inspect", source, "--out", source]) == 2
    assert "folder" in only_error(capsys)
    assert main(["inspect", source, "--out", source + "/deeper"]) == 2
    assert "a.png" in only_error(capsys)
    monkeypatch.setattr(toy, "inspect", lambda *_, **__: torch.empty(2**60))
    assert main(["inspect", source]) == 2
    assert "not enough memory" in only_error(capsys)


# ---------------------------------------------------------------------------------------------------------
# inspect


def test_inspect_json_is_one_document(toy, tmp_path, capsys):
    picture(tmp_path / "parts" / "a.png", red=50)
    picture(tmp_path / "parts" / "b.png")
    (tmp_path / "parts" / "c.png").write_bytes(b"not a picture")
    again = str(tmp_path / "parts" / "a.png")
    options = "--timesteps 400,20,20 --alpha 0.25 --seed 7 --draws 2 --category ring --tile whole".split()
    assert main(["inspect", str(tmp_path / "parts"), again, "--json", *options]) == 1
    out, err = capsys.readouterr()
    records = json.loads(out)
    assert [Path(r["path"]).name for r in records] == ["a.png", "b.png", "c.png"]  # each once
    for record in records[:2]:
        assert {
            "path",
            "category",
            "score",
            "threshold",
            "look_threshold",
            "verdict",
            "is_anomalous",
            "regions",
            "seconds",
        } <= set(record)
    assert [r["is_anomalous"] for r in records[:2]] == [True, False]
    assert records[0]["regions"][0]["area"] == 12
    assert set(records[2]) == {"path", "error"} and "c.png" in err and err.startswith("diffad: ")
    assert toy.calls[0] == {
        "category": "ring",
        "timesteps": (20, 400),
        "alpha": 0.25,
        "seed": 7,
        "draws": 2,
        "tile": None,
    }


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


def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("loaded in vain")

    monkeypatch.setattr(Inspector, "load", load)
    monkeypatch.setattr("diffad.pictures.animation.has_mp4", lambda: False)
    source, root = str(picture(tmp_path / "a.png")), str(labelled(tmp_path / "set"))
    for argv, hint in (
        (["inspect", source, "--report"], "--out"),
        (["inspect", source, "--out", source], "is a file"),
        (["inspect", source, "--out", f"{source}/deeper"], "a.png is a file"),
        (["repair", source, "--format", "mp4", "--out", str(tmp_path)], "MP4 needs"),
        (["repair", source, "--out", f"{source}/deeper"], "a.png is a file"),
        (["ablate", root, "--single", "absent.safetensors"], "absent.safetensors"),
        (["benchmark", "--picture", "absent.png"], "absent.png"),
        (["samples", source], "a.png is a file"),
        (["train", root, "--steps", "1", "--out", f"{source}/m.safetensors"], "a.png is a file"),
        (["train", root, "--steps", "1", "--out", str(tmp_path / "f.safetensors")], "is a folder"),
    ):
        (tmp_path / "f.safetensors").mkdir(exist_ok=True)
        assert main(argv) == 2, argv
        assert hint in only_error(capsys), argv


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


# ---------------------------------------------------------------------------------------------------------
# repair, evaluate, samples, serve


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


def labelled(root: Path) -> Path:
    for i in range(2):
        picture(root / "nut" / "test" / "good" / f"{i}.png", size=(32, 32))
        picture(root / "nut" / "test" / "cut" / f"{i}.png", red=50, size=(32, 32))
        mask = np.zeros((32, 32), np.uint8)
        mask[5:20, 5:20] = 255
        (root / "nut" / "ground_truth" / "cut").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / "nut" / "ground_truth" / "cut" / f"{i}_mask.png")
        picture(root / "nut" / "train" / "good" / f"{i}.png")
    return root


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


def test_samples_writes_a_set_once(tmp_path, capsys):
    options = "--category leather --train 1 --good 0 --defective 1 --size 64 --json".split()
    argv = ["samples", str(tmp_path / "set"), *options]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 2
    assert len(list((tmp_path / "set").rglob("*.png"))) == 3  # and a mask
    assert main(argv) == 2
    assert "not empty" in only_error(capsys)
    nothing = "--train 0 --good 0 --defective 0".split()
    assert main(["samples", str(tmp_path / "new"), *nothing]) == 2
    assert "--train" in only_error(capsys)
    assert main(["samples", str(tmp_path / "two"), *options, "--category", "leather"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 2  # asked for twice, written once
    assert main(["samples", str(tmp_path / "new"), "--category", "cheese"]) == 2
    assert "leather" in only_error(capsys) and not (tmp_path / "new").exists()


def test_serve_hands_over_host_and_port(toy, tmp_path, monkeypatch, capsys):
    seen = {}

    def serve(inspectors, host, port, **doors):
        seen.update(models=list(inspectors), host=host, port=port, **doors)

    for name in ("DIFFAD_AUTH", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DIFFAD_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr("diffad.ui.server.serve", serve)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    for name in ("parts", "bottle", "my/own"):
        (tmp_path / f"{name}.safetensors").touch()
    found = [Path("parts.safetensors"), Path("bottle.safetensors")]
    monkeypatch.setattr("diffad.checkpoint.bundled", lambda: found)
    assert main(["serve"]) == 0
    assert seen.pop("workspace").folder == tmp_path / "workspace"
    limits = {"max_upload": 200, "max_storage": 20.0, "max_tiles": 500}
    usual = {"auth": None, "data_root": None, "mcp": False, "history_gb": 20.0, "history_days": 0.0, **limits}
    assert seen == {"models": ["parts", "bottle"], "host": None, "port": None, **usual}
    own = ["--checkpoint", "my/own.safetensors", "--host", "0.0.0.0", "--port", str(port)]
    assert main(["serve", *own, "--no-history"]) == 0
    assert seen.pop("workspace") is None
    assert seen == {"models": ["own"], "host": "0.0.0.0", "port": port, **usual}
    assert "--auth" in capsys.readouterr().err  # open to everybody: said, not forbidden
    assert main(["serve", "--port", "99999"]) == 2
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
    assert main(["serve"]) == 0 and (seen["host"], seen["port"]) == ("127.0.0.1", port)


# ---------------------------------------------------------------------------------------------------------
# A real, tiny, hardly trained model


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A set of two categories and a checkpoint, both made by the command line."""
    root = tmp_path_factory.mktemp("workshop")
    parts = "--category leather --category carbon_fibre --train 10 --good 2 --defective 2 --size 64".split()
    assert main(["samples", str(root / "set"), *parts]) == 0
    recipe = "--steps 2 --batch 2 --size 64 --channels 64,64".split()
    assert main(["train", str(root / "set"), "--out", str(root / "tiny.safetensors"), *recipe]) == 0
    return root


def test_train_refuses(workshop, tmp_path, capsys):
    data, out = str(workshop / "set"), ["--out", str(tmp_path / "x.safetensors")]
    tiny = ["--from", str(workshop / "tiny.safetensors")]
    for argv, hint in (
        ([data, *out], "--minutes"),
        ([data, *out, "--steps", "1", "--minutes", "1"], "not allowed"),
        ([data, *out, "--minutes", "0"], "--minutes"),
        ([data, "--out", "x.pt", "--steps", "1"], ".safetensors"),
        ([data, *out, "--steps", "1", "--size", "50"], "50"),
        ([data, *out, "--steps", "1", "--channels", "64,x"], "--channels"),
        ([data, *out, "--steps", "1", "--channels", "64,0"], "multiples of 32"),
        ([data, *out, "--steps", "1", "--channels", "64"], "more levels"),
        ([data, *out, "--steps", "1", "--device", "warp"], "warp"),
        ([data, *out, "--steps", "1", "--channels", "64,64", *tiny], "--from"),
        ([data, *out, "--steps", "0", "--size", "80", *tiny], "give a multiple of 32 up to 1024"),
        ([data, *out, "--steps", "0", "--size", "1056", *tiny], "from 32 to 1024"),
        ([data, *out, "--steps", "1", "--from", str(tmp_path / "absent")], "absent"),
        ([data, *out, "--steps", "1", "--resume", "--size", "64", "--channels", "64,64"], "resume"),
        ([data, *out, "--steps", "0", "--size", "64", "--channels", "64,64"], "start from a checkpoint"),
        ([data, *out, "--steps", "0", "--resume", *tiny], "resume nothing"),
    ):
        assert main(["train", *argv]) == 2, argv
        out, err = capsys.readouterr()  # what was found may be told before
        assert not out and all(line.startswith("diffad: ") for line in err.splitlines()), argv
        assert hint in err.splitlines()[-1], argv
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Ten good parts of a camera of 12 bits, and two files that are no pictures."""
    folder = tmp_path_factory.mktemp("bracket")
    for seed in range(10):
        part = make_part("leather", seed, size=64).image.mean(axis=-1)
        Image.fromarray((16 * part).astype(np.uint16)).save(folder / f"{seed}.png")
    (folder / "cut.png").write_bytes(b"no picture")
    (folder / "empty.tif").touch()
    return folder


def test_train_names_all_unreadable_pictures_or_leaves_them_out(workshop, deep, tmp_path, capsys):
    out = ["--from", str(workshop / "tiny.safetensors"), "--out", str(tmp_path / "m.safetensors")]
    argv = ["train", str(deep), "--steps", "0", *out]
    assert main(argv) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 files cannot be used" in said and "cut.png" in said and "empty.tif" in said
    assert "--skip-unreadable" in said and not list(tmp_path.iterdir())
    assert main([*argv, "--skip-unreadable"]) == 0
    said = capsys.readouterr().err
    assert "left out: " in said and "cut.png" in said and "empty.tif" in said
    assert f"{deep.name}: 12-bit pictures" in said
    assert checkpoint.load(tmp_path / "m.safetensors").profiles[deep.name].bits == 12


def test_a_dark_picture_is_read_as_the_category_was_trained(workshop, deep, tmp_path, capsys):
    tiny, model = checkpoint.load(workshop / "tiny.safetensors"), tmp_path / "m.safetensors"
    bracket = replace(tiny.profiles["leather"], bits=12)
    checkpoint.save(model, replace(tiny, profiles={**tiny.profiles, "bracket": bracket}))
    part = np.asarray(Image.open(deep / "0.png"))
    Image.fromarray(part // 4).save(tmp_path / "dark.png")
    Image.fromarray(part * 4).save(tmp_path / "beyond.png")
    capsys.readouterr()

    def inspected(name: str, *options: str) -> dict:
        assert main(["inspect", str(tmp_path / name), "--checkpoint", str(model), *options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)[0]

    dark = inspected("dark.png", "--category", "bracket")
    assert dark["bits"] == 12 and not any("bits" in note for note in dark["notes"])
    beyond = inspected("beyond.png", "--category", "bracket")
    assert beyond["bits"] == 14 and "bracket" in beyond["notes"][0]
    guessed = inspected("dark.png", "--category", "leather")  # which was trained on 8-bit files
    assert guessed["bits"] == 10 and "Read as 10 bits" in guessed["notes"][0]
    told = inspected("dark.png", "--category", "leather", "--bits", "12")
    assert told["bits"] == 12 and not any("bits" in note for note in told["notes"])
    both = [str(tmp_path / name) for name in ("dark.png", "beyond.png")]
    assert main(["inspect", *both, "--checkpoint", str(model), "--category", "leather", "--json"]) == 0
    out, said = capsys.readouterr()
    assert [record["bits"] for record in json.loads(out)] == [14, 14]
    assert "are read as 14 bits" in said and "--bits" in said


def test_train_leaves_a_log_and_a_model_that_says_where_it_comes_from(workshop):
    rows = [json.loads(line) for line in (workshop / "tiny.log.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 1 and rows[0]["loss"] > 0
    assert (workshop / "tiny.loss.png").stat().st_size > 1000
    inspector = Inspector.load(workshop / "tiny.safetensors", device="cpu")
    assert inspector.categories == ("carbon_fibre", "leather") and inspector.size == 64
    assert inspector.provenance["steps"] == 2


def test_a_terminated_inspection_keeps_what_it_judged(workshop, tmp_path):
    for number in range(60):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    argv = ["inspect", tmp_path, "--checkpoint", workshop / "tiny.safetensors", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffad", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()  # the first is judged
    process.terminate()
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in said, said
    assert 1 <= len(json.loads((tmp_path / "out" / "results.json").read_text())) < 60


def test_inspect_in_a_process_of_its_own(workshop, tmp_path):
    cut = workshop / "set" / "leather" / "test" / "cut" / "000.png"
    good = workshop / "set" / "leather" / "test" / "good"
    (tmp_path / "torn.png").write_bytes(cut.read_bytes()[:500])
    sources = [str(good), str(tmp_path / "torn.png"), str(cut)]
    options = ["--checkpoint", str(workshop / "tiny.safetensors"), "--device", "cpu", "--json"]
    argv = [sys.executable, "-m", "diffad", "inspect", *sources, *options, "--out", str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "torn.png" in done.stderr
    records = json.loads(done.stdout)
    assert [("error" in record) for record in records] == [False, False, True, False]
    assert records[0]["category"] == "leather" and records[0]["timesteps"] == [20, 200, 400]
    own = Inspector.load(workshop / "tiny.safetensors", device="cpu").inspect(cut)
    assert records[3]["score"] == pytest.approx(own.score, abs=1e-4)
    assert np.allclose(np.load(tmp_path / "out" / "cut_000_map.npy"), own.anomaly_map, atol=1e-4)


def test_files_are_written_when_nobody_reads_the_lines(workshop, tmp_path):
    """As in `diffad inspect … --out DIR | head -1`."""
    pictures = sorted((workshop / "set").rglob("test/*/*.png"))[:3]
    argv = ["inspect", *pictures, "--checkpoint", workshop / "tiny.safetensors", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffad", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait() == 0 and "Traceback" not in said and "Exception" not in said, said
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 3


def test_evaluate_repair_and_benchmark_run(workshop, tmp_path, capsys):
    model = ["--checkpoint", str(workshop / "tiny.safetensors"), "--json"]
    assert main(["evaluate", str(workshop / "set"), "--repair", "--limit", "1", "--steps", "2", *model]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["carbon_fibre", "leather"]
    for values in result.values():
        assert 0 <= values["aupro"] <= 1 and values["images"] == 4
        assert values["repair"]["psnr_good_median"] > 20
    cut = str(workshop / "set" / "leather" / "test" / "cut" / "000.png")
    paper = ["--steps", "3", "--method", "paper"]
    assert main(["repair", cut, "--out", str(tmp_path), *paper, *model]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["steps"] == 3 and Image.open(record["animation"]).n_frames >= 2
    assert main(["benchmark", "--runs", "2", "--steps", "2", *model]) == 0
    speed = json.loads(capsys.readouterr().out)
    assert speed["inspection_seconds"] >= speed["network_seconds"] + speed["backbone_seconds"] > 0
    assert min(speed[key] for key in speed if key.endswith("seconds") and key != "rest_seconds") > 0
    assert speed["batch_pictures_per_second"] > 0 and speed["training_pictures_per_second"] > 0
    assert main(["benchmark", "--busy", "--runs", "2", *model]) == 0
    beside = json.loads(capsys.readouterr().out)["beside"]
    assert [row["busy_loops"] for row in beside] == [0, 1, 2] and beside[0]["slowdown"] == 1
    assert all(row["worst_seconds"] >= row["median_seconds"] > 0 for row in beside)
    assert main(["compare", str(workshop / "set"), "--peers", "none", "--limit", "1", *model]) == 0
    compared = json.loads(capsys.readouterr().out)["categories"]
    assert {tuple(methods) for methods in compared.values()} == {("diffad", "RGB error")}
