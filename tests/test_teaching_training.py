"""Training on small synthetic parts: it learns, resumes, starts from another model, in two processes too."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_training import config

from diffad import checkpoint as checkpoints
from diffad.checkpoint import CheckpointError
from diffad.inspector import Inspector
from diffad.method.unet import UNet, UNetConfig
from diffad.pictures.reading import DataError
from diffad.synthetic.parts import CATEGORIES, make_part, write_set
from diffad.teaching.categories import learned_before
from diffad.teaching.draws import Draws
from diffad.teaching.good_pictures import load_normal, normal_paths, split_held_out
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.state import cut_log
from diffad.teaching.training import _loop, _prepare, train

pytestmark = pytest.mark.usefixtures("quick_statistics")


def test_the_loss_falls_and_the_run_leaves_what_it_promises(trained):
    rows = [json.loads(line) for line in trained.with_suffix(".log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert {"step", "seconds", "loss", "noise", "features", "vlb", "uncertainty"} <= rows[0].keys()
    assert trained.with_suffix(".loss.png").stat().st_size > 1000
    assert not trained.with_suffix(".resume.safetensors").exists()
    model = checkpoints.load(trained)
    assert tuple(model.profiles) == tuple(sorted(CATEGORIES[:2]))
    assert model.provenance["licence"] == "free"
    assert model.provenance["steps"] == 30
    assert model.provenance["data"] == dict.fromkeys(sorted(CATEGORIES[:2]), 12)


def test_statistics_leave_an_unfinished_run_and_the_licence(trained, small_parts, tmp_path):
    out = tmp_path / "m.safetensors"
    unfinished = out.with_suffix(".resume.safetensors")
    unfinished.write_bytes(b"days of work")
    for seed in range(8):
        Image.fromarray(make_part("leather", seed, size=64).image).save(tmp_path / f"{seed}.png")
    base = checkpoints.load(trained).provenance
    train(config(steps=0, licence="mine"), [tmp_path], out, start_from=trained)
    assert unfinished.read_bytes() == b"days of work"
    provenance = checkpoints.load(out).provenance
    assert provenance["licence"] == "mine; free"
    assert provenance["data"] == base["data"] | {tmp_path.name: 8}
    added = checkpoints.load(out).profiles
    assert added[tmp_path.name].plain is not None  # the network never learned from it
    assert learned_before(checkpoints.load(out), tmp_path.name) is None
    assert all(added[name].plain is None for name in base["data"])
    train(config(steps=0, licence="free"), [tmp_path], tmp_path / "n.safetensors", start_from=out)
    assert checkpoints.load(tmp_path / "n.safetensors").profiles[tmp_path.name].plain is not None
    assert checkpoints.load(tmp_path / "n.safetensors").provenance["licence"] == "free; mine"


def test_statistics_of_a_category_that_the_network_learned_from_need_no_plain_features(
    trained, small_parts, tmp_path
):
    train(
        config(steps=0, stressed=0),
        [small_parts / CATEGORIES[0]],
        tmp_path / "m.safetensors",
        start_from=trained,
    )
    profiles = checkpoints.load(tmp_path / "m.safetensors").profiles
    assert profiles[CATEGORIES[0]].plain is None


def test_any_seed_that_the_command_takes_will_do(small_parts, tmp_path, monkeypatch):
    monkeypatch.setattr("diffad.teaching.draws.symmetries", lambda *_: (0,))
    good, _ = load_normal(normal_paths([small_parts]), 64)
    split = [split_held_out(each.pictures, 0.3)[0] for each in good.values()]
    run = _prepare(config(steps=1, seed=2**53), None, split, 1, 0, torch.device("cpu"))
    assert len(list(_loop(run, Draws.of(run, split)))) == 1


def test_a_killed_run_goes_on_to_the_same_end(small_parts, tmp_path):
    gears = small_parts / CATEGORIES[0]
    whole = train(config(), [gears], tmp_path / "whole.safetensors")

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config(), [gears], tmp_path / "part.safetensors", progress=kill)
    # as if it had gone on after its state was written, until a kill in the middle of a line
    log = tmp_path / "part.log.jsonl"
    written = log.read_text()
    log.write_text(written + '{"step": 11, "loss": 1.0}\n{"step": 21, "lo')
    steps = []
    part = train(
        config(),
        [gears],
        tmp_path / "part.safetensors",
        resume=True,
        progress=lambda row: steps.append(row["step"]),
    )
    assert steps == [4, 5, 6]
    assert log.read_text() == written
    first, second = (checkpoints.load(path) for path in (whole, part))
    for name, value in first.network.items():
        torch.testing.assert_close(second.network[name], value, rtol=1e-2, atol=3e-3)


@pytest.mark.parametrize(
    "rest", ["", '{"step": 21', '{"step": 1}', '{"step": 21}\n{"step": 11}\n', '{"st{"step": 11}\n', "\0\0\n"]
)
def test_a_log_is_cut_back_to_the_step_that_the_run_goes_on_from(tmp_path, rest):
    log = tmp_path / "m.log.jsonl"
    kept = '{"step": 1}\n{"step": 11}\n'
    log.write_text(kept + rest)
    cut_log(log, step=20)
    assert log.read_text() == kept
    cut_log(tmp_path / "none.log.jsonl", step=20)


def test_a_process_killed_by_signal_leaves_a_state_to_resume(small_parts, tmp_path):
    out = tmp_path / "m.safetensors"
    code = (
        "import sys; from pathlib import Path; from diffad.teaching.training import *;"
        "from diffad.method.unet import UNetConfig;"
        "c = TrainConfig(steps=100000, unet=UNetConfig(size=64, channels=(64, 64)), batch=4);"
        f"train(c, [{str(small_parts)!r}], {str(out)!r}, save_every=0.5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    state = out.with_suffix(".resume.safetensors")
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    tensors, metadata = checkpoints.load_tensors(state)
    assert json.loads(metadata["diffad.resume"])["step"] >= 1
    assert any(name.startswith("exp_avg.") for name in tensors)


def test_resuming_another_run_or_none_is_refused(small_parts, tmp_path):
    with pytest.raises(CheckpointError, match="there is no unfinished run"):
        train(config(), [small_parts], tmp_path / "m.safetensors", resume=True)


def test_profiles_alone_take_over_the_network(trained, small_parts, tmp_path):
    out = train(
        config(steps=0), [small_parts / CATEGORIES[0]], tmp_path / "p.safetensors", start_from=trained
    )
    before, after = checkpoints.load(trained), checkpoints.load(out)
    assert all(torch.equal(after.network[name], value) for name, value in before.network.items())
    assert set(after.profiles) == set(CATEGORIES[:2])  # the untouched network keeps its other profiles
    assert after.provenance["started_from"]["licence"] == "free"


def test_training_on_changes_the_network_and_drops_profiles_that_no_longer_belong(
    trained, small_parts, tmp_path
):
    out = train(
        config(steps=2), [small_parts / CATEGORIES[0]], tmp_path / "p.safetensors", start_from=trained
    )
    assert set(checkpoints.load(out).profiles) == {CATEGORIES[0]}


def test_what_was_trained_inspects(trained, small_parts):
    inspector = Inspector.load(trained, device="cpu")
    good = sorted((small_parts / CATEGORIES[0] / "test" / "good").iterdir())[0]
    assert inspector.inspect(good).anomaly_map.shape == (64, 64)


def noise_pictures(tilt):
    """Grain of its own on every picture, and a gradient common to all."""
    generator = torch.Generator().manual_seed(0)
    grain = torch.randint(90, 130, (24, 3, 64, 64), generator=generator)
    return (grain + tilt * torch.arange(64)).clamp(0, 255).to(torch.uint8)


def test_a_warm_start_predicts_the_same_features_in_their_new_units(trained):
    base = checkpoints.load(trained)
    dark = noise_pictures(0) // 3
    run = _prepare(config(unet=base.config), base, [dark], 1, 0, torch.device("cpu"))
    before = UNet(base.config)
    before.load_state_dict(base.network)
    assert not torch.allclose(run.extractor.std, base.feature_std, rtol=0.05)
    x_t, t = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 400])
    with torch.no_grad():
        old, new = before(x_t, t).features, run.network(x_t, t).features

    def in_the_backbones_units(features, mean, std):
        return features * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)

    expected = in_the_backbones_units(old, base.feature_mean, base.feature_std)
    got = in_the_backbones_units(new, run.extractor.mean, run.extractor.std)
    error = (got - expected) / base.feature_std.view(1, -1, 1, 1)
    assert float(error.abs().mean()) < 0.05  # bf16 where the processor has it


@pytest.mark.parametrize(
    ("source", "message"), [("empty", "no normal|no pictures"), ("few", "at least 8"), ("absent", "no file")]
)
def test_unusable_data_is_refused_before_anything_is_written(source, message, tmp_path):
    (tmp_path / "empty").mkdir()
    write_set(tmp_path / "few", CATEGORIES[:1], train=3, good=1, defective=1, size=64)
    with pytest.raises(DataError, match=message):
        train(config(), [tmp_path / source], tmp_path / "out" / "m.safetensors")
    assert not (tmp_path / "out").exists()


def test_settings_that_contradict_are_refused(tmp_path, small_parts):
    with pytest.raises(ValueError, match="either steps or minutes"):
        TrainConfig()
    with pytest.raises(ValueError, match="either steps or minutes"):
        TrainConfig(steps=1, minutes=1)
    for name, wrong in (
        ("steps", -1), ("steps", 1.5), ("batch", 0), ("learning_rate", 0), ("learning_rate", float("nan")),
        ("warm_up", 0), ("ema", 1.1), ("clip", 0), ("low_t", 0), ("spoiled", 2), ("holes", -0.1),
        ("shift", -1), ("shift", 256), ("variants", 0), ("held_out", 1.0), ("stride", 0), ("seed", -1),
        ("seed", 2**64),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name} (is|must be) .*not {wrong}"):
            TrainConfig(**{"steps": 1, name: wrong})
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="minutes is a number from"):
            TrainConfig(minutes=wrong)
    with pytest.raises(ValueError, match="not 'magic'"):
        TrainConfig(steps=1, pixel_score="magic")
    with pytest.raises(ValueError, match="multiple of 32"):  # said before the training, not after
        TrainConfig(steps=1, unet=UNetConfig(size=48, channels=(64, 64)))
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        train(config(), [small_parts], tmp_path / "model.pt")


def test_two_processes_train_one_model(small_parts, tmp_path):
    out = tmp_path / "ddp.safetensors"
    script = tmp_path / "run.py"
    script.write_text(
        "from diffad.teaching.training import *\n"
        "unet = UNetConfig(size=64, channels=(64, 64))\n"
        "config = TrainConfig(steps=3, unet=unet, batch=2, stressed=0)\n"
        f"train(config, [{str(small_parts / CATEGORIES[0])!r}], {str(out)!r}, device='cpu')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert checkpoints.load(out).provenance["pictures_seen"] == 3 * 2 * 2


def test_an_unfinished_run_is_pointed_out(small_parts, tmp_path, caplog):
    out = tmp_path / "m.safetensors"
    out.with_suffix(".resume.safetensors").touch()

    class Begun(Exception):
        pass

    def begun(row):
        raise Begun

    with caplog.at_level(logging.WARNING, logger="diffad.teaching.training"), pytest.raises(Begun):
        train(config(), [small_parts / CATEGORIES[0]], out, progress=begun)
    assert "unfinished run" in caplog.text
