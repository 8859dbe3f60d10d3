"""What is written is whole or not there, and whoever waits for it is told in a sentence."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffad import output
from diffad.cli.main import main
from diffad.output import OutputError
from diffad.pictures import animation

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "assets" / "samples"
# `diffad` where no file may be larger than so many bytes, which a full disk would say a little differently
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from diffad.cli.main import main
raise SystemExit(main(sys.argv[2:]))
"""
posix = pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")


@pytest.fixture
def full(monkeypatch):
    """A disk that is full: bytes arrive, but not all."""

    def cut_off(path, data):
        with path.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut_off)


def test_a_file_holds_all_or_what_it_held_before(tmp_path, full, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"result\.json could not be written: the disk is full; free some"):
        output.write(path, b"new and longer")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]
    monkeypatch.undo()
    output.write(path, b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["result.json"]


def test_nobody_sees_half_a_file(tmp_path):
    path = tmp_path / "film.gif"
    with output.whole(path) as partial:
        partial.write_bytes(b"half")
        assert not path.exists() and partial.suffix == ".gif" and partial.name.startswith(".")
    assert path.read_bytes() == b"half"
    with pytest.raises(KeyboardInterrupt), output.whole(path) as partial:
        partial.write_bytes(b"quarter")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"half" and os.listdir(tmp_path) == ["film.gif"]


def test_the_reason_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"absent/x\.png could not be written: No such file .*; check the"):
        output.write(tmp_path / "absent" / "x.png", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder could not be written"):
        output.write(tmp_path / "folder", b"")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.jsonl"
    output.append(path, "old", fresh=True)
    output.append(path, "1", fresh=True)
    output.append(path, "2")
    assert path.read_text() == "1\n2\n"


@posix
def test_a_line_that_does_not_fit_leaves_no_part_of_it(tmp_path):
    code = (
        "import resource, signal; from pathlib import Path; from diffad import output\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))\n"
        "for line in ('12345', '67890', '12'):\n"
        "    try: output.append(Path('log'), line)\n"
        "    except output.OutputError as error: print(error)"
    )
    argv, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("log could not be written: a file may not be that large here")
    assert (tmp_path / "log").read_text() == "12345\n12\n"


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_an_animation_that_fails_leaves_the_old_one(tmp_path, suffix, monkeypatch):
    if suffix == ".mp4" and not animation.has_mp4():
        pytest.skip("no encoder here")
    frames = [np.full((40, 40, 3), grey, np.uint8) for grey in (0, 99, 200)]
    film = animation.animation(frames, tmp_path / f"film{suffix}")
    before = film.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match=r"film.* the disk is full"):
        animation.animation(frames[:2], film)
    assert film.read_bytes() == before and os.listdir(tmp_path) == [film.name]


# ---------------------------------------------------------------------------------------------------------
# The command line in a process of its own


def diffad(*arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-m", "diffad"] if limit is None else ["-c", LIMITED, str(limit)]
    argv = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=ROOT)


@posix
def test_verdicts_outlive_a_disk_that_takes_no_evidence(tmp_path):
    """Maps are larger than a file may be: no stack trace, nothing cut off, all verdicts, exit code 2."""
    out = tmp_path / "out"
    sources = [SAMPLES / "gear_good.png", SAMPLES / "gear_broken_tooth.png"]
    done = diffad("inspect", *sources, "--out", out, "--category", "gear", limit=150_000)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "gear_good_map.npy could not be written: a file may not be that large here; free" in done.stderr
    assert "2 files could not be written" in done.stderr
    verdicts = [line.split()[0] for line in done.stdout.splitlines()]
    assert verdicts == ["good", "ANOMALOUS"]
    records = json.loads((out / "results.json").read_text())
    assert [record["is_anomalous"] for record in records] == [False, True]
    assert list(map(json.loads, (out / "results.jsonl").read_text().splitlines())) == records
    assert len((out / "results.csv").read_text(encoding="utf-8-sig").splitlines()) == 3
    assert [record["files"] for record in records] == [
        ["gear_good_overlay.png"],
        ["gear_broken_tooth_overlay.png"],
    ]
    tables = ["results.csv", "results.json", "results.jsonl"]
    assert sorted(os.listdir(out)) == ["gear_broken_tooth_overlay.png", "gear_good_overlay.png", *tables]


def test_a_training_that_cannot_write_names_the_file(tmp_path, capsys, request):
    assert (
        main(
            [
                "samples",
                str(tmp_path / "set"),
                *"--category leather --train 8 --good 0".split(),
                *"--defective 1 --size 64".split(),
            ]
        )
        == 0
    )
    request.getfixturevalue("full")
    recipe = "--steps 1 --batch 2 --size 64 --channels 64,64".split()
    assert main(["train", str(tmp_path / "set"), "--out", str(tmp_path / "m.safetensors"), *recipe]) == 2
    assert "m.resume.safetensors could not be written: the disk is full" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["m.log.jsonl", "set"]


def test_a_taken_port_is_told_before_models_are_loaded(tmp_path, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("loaded in vain")

    monkeypatch.setattr("diffad.inspector.Inspector.load", load)
    monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
        assert f"port {port} is taken: choose another --port" in capsys.readouterr().err
        monkeypatch.setenv("GRADIO_SERVER_PORT", port)
        assert main(["serve"]) == 2
        assert f"port {port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize("options, variables, hint", [
    ([], {"GRADIO_SERVER_PORT": "http"}, "GRADIO_SERVER_PORT is 'http'"),
    (["--host", "192.0.2.1"], {}, "192.0.2.1 is no address of this machine"),
    (["--host", "no such host"], {}, "there is no address no such host"),
    ([], {"DIFFAD_AUTH": "anna"}, "DIFFAD_AUTH contains a line"),
    (["--auth", "absent.txt"], {}, "absent.txt"),
    (["--auth", "latin.txt"], {}, "latin.txt is not a text file"),
    (["--checkpoint", "absent.safetensors"], {}, "absent.safetensors"),
    (["--data-root", "absent"], {}, "absent"),
])  # fmt: skip
def test_what_serve_would_refuse_is_refused_before_models_are_loaded(
    options, variables, hint, tmp_path, monkeypatch, capsys
):
    def load(*_, **__):
        raise AssertionError("loaded in vain")

    monkeypatch.setattr("diffad.inspector.Inspector.load", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"j\xf6rg:secret")
    for name in ("GRADIO_SERVER_PORT", "GRADIO_SERVER_NAME", "DIFFAD_AUTH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", *options]) == 2
    assert hint in capsys.readouterr().err.splitlines()[-1]


def test_a_batch_without_room_says_so_and_keeps_its_rows(inspector, tmp_path, monkeypatch):
    from diffad.pictures.intake import sources
    from diffad.ui.batch import Run
    from diffad.ui.files import Storage
    from diffad.ui.turns import Turns

    storage = Storage(tmp_path / "server", 1 << 30)
    folder = storage.batch_folder()
    names = ("leather_good.png", "gear_good.png")
    pictures = sources([SAMPLES / name for name in names], tmp_path)
    settings = {"category": None, "alpha": 0.5, "timesteps": inspector.timesteps}
    replace = os.replace

    def nearly_full(partial, path):
        if Path(path).name == "map-1.npy":
            raise OSError(28, "No space left on device")
        replace(partial, path)

    with monkeypatch.context() as disk:
        disk.setattr("os.replace", nearly_full)
        run = Run("parts", inspector, pictures, folder, settings, Turns(), storage)
        while not run.finished:
            time.sleep(0.01)
    told = run.news(0)
    assert told["state"] == "failed" and told["done"] == 1 and "no room" in told["reason"]
    table = run.file("csv", {}).read_bytes()
    assert table.startswith(b"\xef\xbb\xbf") and len(table.splitlines()) == 2
    before = sorted(os.listdir(folder))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    for kind in ("csv", "json", "zip"):
        with pytest.raises(OutputError, match="the disk is full"):
            run.file(kind, {})
    assert sorted(os.listdir(folder)) == before
    run.forget()


def test_a_page_that_cannot_store_a_file_says_so(monkeypatch, tmp_path):
    import gradio as gr

    from diffad.ui import files

    storage = files.Storage(tmp_path, 1 << 30)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_bytes_to_cache", full)
    with pytest.raises(gr.Error, match="could not store this file"):
        storage.keep(b"", "part.png")
