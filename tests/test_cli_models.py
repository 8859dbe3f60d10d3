"""The command line with a real, tiny, hardly trained model, also in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffad import checkpoint
from diffad.cli.main import main
from diffad.inspector import Inspector
from diffad.synthetic.parts import make_part


@pytest.fixture(scope="module", autouse=True)
def no_changed_pictures():
    """A training ends without judging changed good pictures, as `test_teaching_good_pictures` has it do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffad.teaching.training.forecast_changes", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def workshop(quick_statistics, tmp_path_factory):
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
        ([data, *out, "--steps", "0", "--resume", *tiny], "nothing to resume"),
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


@pytest.mark.skipif(os.name != "posix", reason="a process is killed by signal")
def test_a_killed_inspection_keeps_every_verdict_that_it_gave(workshop, tmp_path):
    for number in range(60):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    argv = ["inspect", tmp_path, "--checkpoint", workshop / "tiny.safetensors", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffad", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )  # fmt: skip
    said = [process.stdout.readline() for _ in range(6)]
    process.kill()
    said += process.stdout.readlines()
    process.wait()
    given = [
        line.decode().split()[-1] for line in said if not line.startswith(b" ")
    ]  # notes follow a verdict
    assert given
    kept = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [record["path"] for record in kept][: len(given)] == given and len(kept) < 60
    for record in kept:  # and whatever has its name is whole
        overlay, heat, _ = (tmp_path / "out" / name for name in record["files"])
        Image.open(overlay).load()
        assert np.load(heat).shape == (64, 64)


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
