"""The command line: help, refusals, samples and serve."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_steps import labelled, only_error, picture

from diffad import __version__
from diffad.cli import common
from diffad.cli.main import main
from diffad.inspector import Inspector

COMMANDS = (
    "train", "inspect", "repair", "evaluate", "ablate", "compare", "benchmark", "samples", "serve",
)  # fmt: skip


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
    home = tmp_path / "diffad" / "checkpoint" / "models.py"
    monkeypatch.setattr("diffad.checkpoint.models.__file__", str(home))
    assert main(["inspect", source]) == 2
    assert "--checkpoint" in only_error(capsys)

    def no_device(cls, path, device="auto"):
        raise ValueError(f"there is no device {device!r} here")

    monkeypatch.setattr(Inspector, "load", classmethod(no_device))
    assert main(["inspect", source, "--checkpoint", "x", "--device", "warp"]) == 2
    assert "warp" in only_error(capsys)


def test_default_checkpoint_beside_the_package_or_inside(monkeypatch, tmp_path):
    home = tmp_path / "diffad" / "checkpoint" / "models.py"
    monkeypatch.setattr("diffad.checkpoint.models.__file__", str(home))
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
