"""Training on small synthetic parts with a small network: it learns, resumes, starts from another model, and
runs in two processes.
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffad import checkpoint as checkpoints
from diffad.checkpoint import CheckpointError
from diffad.inspector import Inspector
from diffad.method.calibration import from_codes
from diffad.method.features import FeatureExtractor
from diffad.method.fusion import weighed
from diffad.method.image_score import ImageScore
from diffad.method.unet import UNet, UNetConfig
from diffad.pictures.geometry import to_float
from diffad.pictures.reading import DataError, read_image
from diffad.synthetic.parts import CATEGORIES, make_part, write_set
from diffad.teaching.categories import learned_before
from diffad.teaching.draws import Draws, Features, holes_in, symmetries, turned
from diffad.teaching.forecast import in_words
from diffad.teaching.good_pictures import load_normal, normal_paths, readable, split_held_out, told_apart
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.residuals import copies_of
from diffad.teaching.state import cut_log
from diffad.teaching.statistics import fit_profile
from diffad.teaching.training import _loop, _prepare, train

pytestmark = pytest.mark.usefixtures("quick_statistics")
SMALL = UNetConfig(size=64, channels=(64, 64), feature_channels=192)


def config(**changes):
    small = {"steps": 6, "unet": SMALL, "batch": 4, "warm_up": 2, "shift": 2, "stressed": 0}
    return TrainConfig(**small | changes)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_set(
        tmp_path_factory.mktemp("parts"), CATEGORIES[:2], train=12, good=2, defective=4, size=64, seed=3
    )


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    return train(config(steps=30, licence="free"), [parts], tmp_path_factory.mktemp("run") / "m.safetensors")


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


def test_an_odd_picture_among_the_held_out_ones_is_named(trained, tmp_path):
    for seed in range(24):
        picture = make_part(CATEGORIES[0], seed, size=64).image
        Image.fromarray(picture).save(tmp_path / f"{seed:02}.png")
    odd = sorted(tmp_path.glob("*.png"))[split_held_out(torch.arange(24), 0.3)[1][2]]
    Image.fromarray(255 - np.asarray(Image.open(odd))).save(odd)
    out = train(config(steps=0, held_out=0.3), [tmp_path], tmp_path / "m.safetensors", start_from=trained)
    assert odd.name in checkpoints.load(out).profiles[tmp_path.name].forecast["unusual"]


def test_a_picture_that_does_not_belong_is_left_out_and_shown(trained, tmp_path):
    source = photos(tmp_path / "gear", range(16))
    clean, dirty = tmp_path / "clean.safetensors", tmp_path / "dirty.safetensors"
    settings = config(steps=0, size=64, stressed=0, held_out=0.2)
    train(settings, [source], clean, start_from=trained)
    Image.fromarray(make_part("leather", 0).image).save(source / "99 $x_^.png")
    told = []
    train(settings, [source], dirty, start_from=trained, tell=told.append)
    profile = checkpoints.load(dirty).profiles["gear"]
    assert list(profile.forecast["left_out"]) == ["99 $x_^.png"]
    assert "99 $x_^.png" not in profile.forecast["unusual"] and profile.forecast["good"] == 16
    assert "Left out of the statistics" in in_words("gear", profile.forecast)
    assert any("are shown in" in sentence for sentence in told)
    with Image.open(tmp_path / "dirty.gear.unusual.png") as sheet:
        assert sheet.width >= 250
    # nothing of it remains: the pictures held out may be others, the level of all is not
    assert not checkpoints.load(clean).profiles["gear"].forecast["left_out"]
    one, two = (checkpoints.load(file).profiles["gear"].calibration.moments for file in (clean, dirty))
    torch.testing.assert_close(one[:, :, -1], two[:, :, -1], rtol=0.15, atol=0)


def test_pictures_of_several_kinds_are_all_kept(trained, tmp_path, monkeypatch):
    several = lambda scores, rate=0: np.arange(len(scores)) % 3 == 0  # noqa: E731
    monkeypatch.setattr("diffad.teaching.categories.unusual", several)
    out = train(config(steps=0, size=64, stressed=0), [photos(tmp_path / "gear", range(9))],
                tmp_path / "m.safetensors", start_from=trained)  # fmt: skip
    assert checkpoints.load(out).profiles["gear"].forecast["left_out"] == {}


def test_pictures_of_equal_names_are_told_apart_by_their_folders():
    paths = [Path(path) for path in ("/a/mon/1.png", "/a/tue/1.png", "/b/tue/1.png", "/b/tue/2.png", "1.png")]
    assert told_apart(paths) == ["mon/1.png", "a/tue/1.png", "b/tue/1.png", "2.png", "1.png"]


def test_both_of_two_unusual_pictures_of_one_name_are_named(trained, tmp_path):
    for day in ("mon", "tue"):
        good = tmp_path / day / "part" / "train" / "good"
        good.mkdir(parents=True)
        for seed in range(12):
            picture = make_part(CATEGORIES[0], seed + 100 * (day == "tue"), size=64).image
            Image.fromarray(picture if seed else 255 - picture).save(good / f"{seed:02}.png")
    folders = [tmp_path / "mon" / "part", tmp_path / "tue" / "part"]
    out = train(config(steps=0), folders, tmp_path / "m.safetensors", start_from=trained)
    names = {f"{day}/part/train/good/00.png" for day in ("mon", "tue")}
    assert names <= set(checkpoints.load(out).profiles["part"].forecast["unusual"])


def test_statistics_leave_an_unfinished_run_and_the_licence(trained, parts, tmp_path):
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
    trained, parts, tmp_path
):
    train(config(steps=0, stressed=0), [parts], tmp_path / "m.safetensors", start_from=trained)
    profiles = checkpoints.load(tmp_path / "m.safetensors").profiles
    assert all(profile.plain is None for profile in profiles.values())


def test_any_seed_that_the_command_takes_will_do(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("diffad.teaching.draws.symmetries", lambda *_: (0,))
    good, _ = load_normal(normal_paths([parts]), 64)
    split = [split_held_out(each.pictures, 0.3)[0] for each in good.values()]
    run = _prepare(config(steps=1, seed=2**53), None, split, 1, 0, torch.device("cpu"))
    assert len(list(_loop(run, Draws.of(run, split)))) == 1


def test_held_out_pictures_are_not_trained_on():
    pictures = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1)
    used, held = split_held_out(pictures, 0.15)
    assert len(held) == 6
    assert sorted(torch.cat([used, held]).flatten().tolist()) == list(range(40))
    assert torch.equal(split_held_out(pictures, 0.15)[1], held)


def test_changed_pictures_are_called_held_out_only_if_nothing_was_learned_from_them(
    trained, parts, tmp_path, monkeypatch
):
    name = CATEGORIES[0]
    data, fitted, judged = [parts / name], [], []

    def fit(network, extractor, schedule, used, held, inside, **settings):
        fitted.append(torch.cat([used, held]))
        assert len(inside) == len(fitted[-1])
        return fit_profile(network, extractor, schedule, used, held, inside, **settings)

    def read(path, bits):
        judged.append(path)
        return read_image(path, bits)

    monkeypatch.setattr("diffad.teaching.categories.fit_profile", fit)
    monkeypatch.setattr("diffad.teaching.stress.read_image", read)
    found = []
    for stressed in (1, 2):  # of four that are held out: three times one, not three times two
        out = train(config(steps=0, stressed=stressed), data, tmp_path / "m.safetensors", start_from=trained)
        found.append(checkpoints.load(out).profiles[name].forecast)
    assert [len(pictures) for pictures in fitted] == [11, 12]
    squares = [torch.from_numpy(read_image(path, None)).permute(2, 0, 1) for path in judged]
    known = [any(torch.equal(square, one) for one in fitted[0]) for square in squares]
    assert known == [False, False, True]  # the first of both runs is the same one
    one, two = (forecast["changed"] for forecast in found)
    assert (one["good"], one["verdicts"], one["held_out"]) == (1, 16, True)
    assert (two["good"], two["verdicts"], two["held_out"]) == (2, 32, False)
    said = [in_words(name, forecast) for forecast in found]
    assert "; held out." in said[0] and "which flatters." in said[1]
    assert "of 16 changed good pictures rejected" in said[0] and "of 32 changed" in said[1]


def test_pictures_of_a_category_that_the_start_was_trained_on_are_held_out_if_they_are_as_many(trained):
    base = checkpoints.load(trained)
    assert learned_before(base, CATEGORIES[0]) == 12
    assert learned_before(base, "bolt") is learned_before(None, "bolt") is None


def test_what_is_remembered_of_a_good_picture_is_what_others_would_find(
    trained, tmp_path, monkeypatch
):
    """The peak of its map, inspected with the statistics of all others. They are not square: the model sees
    padding too, which no score counts.
    """
    monkeypatch.setattr("diffad.teaching.statistics.copies_of", copies_of)  # the more looks, the nearer
    peak = ImageScore(0.0, -math.inf, 0.0, np.zeros(1), np.zeros(1))
    folder = tmp_path / "gear"
    folder.mkdir()
    for seed in range(24):
        picture = make_part(CATEGORIES[0], seed, size=64).image[15:49]
        Image.fromarray(picture).save(folder / f"{seed:02}.png")

    def statistics():
        out = train(config(steps=0, stressed=0), [folder], tmp_path / "m.safetensors", start_from=trained)
        return Inspector.load(out, device="cpu")

    whole = statistics()
    maps = from_codes(whole.profiles["gear"].calibration.good_maps).mean(dim=2).numpy()
    pixel, feature = maps.swapaxes(0, 1)
    remembered = np.array([peak(each, 32) for each in weighed(pixel, feature, 0.5)])

    def peak_of(inspector, picture):
        inspection = inspector.inspect(picture, "gear", tile=None)
        return inspection._tiling.score(inspection._fused_map, peak)

    held, used = split_held_out(torch.arange(24), 0.15)[::-1]
    order = torch.cat([held, used]).tolist()
    own, others = [], []
    for place in (0, 11):  # one that was held out, one that was not
        picture = folder / f"{order[place]:02}.png"
        own.append(peak_of(whole, picture))
        picture.rename(tmp_path / "left_out.png")
        others.append(peak_of(statistics(), tmp_path / "left_out.png"))
        (tmp_path / "left_out.png").rename(picture)
    expected = remembered[[0, 11]]
    flattery = np.mean(others) - np.mean(own)
    assert flattery > 0.5
    # what is left of it lies in the common covariance, which a picture of 64 px has 64 places of 1536 of
    assert expected == pytest.approx(np.array(others), abs=0.3 * flattery)


def test_runs_of_any_seed_hold_out_the_same_pictures(trained, parts, tmp_path, monkeypatch):
    """Else a run that goes on from a checkpoint would train on what its thresholds come from."""
    held_out = []

    class Embedding(Exception):
        pass

    def look(network, extractor, schedule, used, held, inside, **settings):
        held_out.append(held)
        raise Embedding

    monkeypatch.setattr("diffad.teaching.categories.fit_profile", look)
    for seed in (0, 5):
        with pytest.raises(Embedding):
            train(config(steps=0, seed=seed), [parts], tmp_path / "m.safetensors", start_from=trained)
    assert torch.equal(*held_out)


def test_only_normal_training_pictures_are_read(parts):
    read, _ = load_normal(normal_paths([parts]), 64)
    assert {each.upright for each in read.values()} == {None}  # gears are round, chips lie one way
    assert all(bool(each.inside.all()) for each in read.values())  # they are square
    counts = {name: len(each.pictures) for name, each in read.items()}
    assert counts == dict.fromkeys(sorted(CATEGORIES[:2]), 12)


def photos(folder, seeds, kind="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        picture = Image.fromarray(make_part(CATEGORIES[0], seed).image)
        picture.save(folder / f"{number:02}.{kind}", **({"quality": 85} if kind == "jpg" else {}))
    return folder


def test_copies_are_trained_on_once_and_named(trained, tmp_path):
    source = photos(tmp_path / "gear", [0] * 30 + list(range(1, 11)))
    told = []
    settings = config(size=64, steps=0)
    out = train(settings, [source], tmp_path / "m.safetensors", start_from=trained, tell=told.append)
    model = checkpoints.load(out)
    assert model.provenance["data"]["gear"] == 11 and model.profiles["gear"].forecast["good"] == 11
    said = "29 of 40 training pictures show what another one shows, and were left out: "
    assert all("unusual" in sentence for sentence in told[1:])
    assert told[0].startswith(f"gear: {said}") and "gear/01.png" in told[0]
    assert "and 19 more" in told[0]
    words = in_words("gear", model.profiles["gear"].forecast)
    assert said in words and "With 11 good pictures take the threshold as a guess" in words


def test_too_few_different_pictures_are_refused(tmp_path):
    source = photos(tmp_path / "gear", [0] * 20 + list(range(1, 7)))
    with pytest.raises(DataError, match=r"gear has 26 normal pictures, but only 7 different .* at least 8"):
        train(config(), [source], tmp_path / "out" / "m.safetensors")
    assert not (tmp_path / "out").exists()


def test_test_pictures_that_are_trained_on_are_named(trained, tmp_path):
    photos(tmp_path / "gear" / "train" / "OK", range(9))
    photos(tmp_path / "gear" / "test" / "OK", [20, 3, 4], "jpg")
    told, out = [], tmp_path / "m.safetensors"
    settings = config(steps=0, size=64)
    train(settings, [tmp_path / "gear"], out, start_from=trained, tell=told.append)
    said = "2 of 3 test pictures are also among the training pictures, so that measuring on them flatters: "
    assert f"{said}test/OK/01.jpg = train/OK/03.png" in told[0]
    assert said in in_words("gear", checkpoints.load(out).profiles["gear"].forecast)


def test_the_brightest_picture_tells_how_all_of_its_category_are_read(tmp_path):
    for seed in range(8):
        picture = make_part("leather", seed, size=64).image.mean(axis=-1).astype(np.uint8)
        picture = picture if seed == 5 else picture // 8  # the others alone would be 8 or 10 bits
        for folder, values in (("flat", picture), ("deep", picture.astype(np.uint16) * 16)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / folder / f"{seed}.png")
    said: list[str] = []
    paths, bits = readable(normal_paths([tmp_path / "flat", tmp_path / "deep"]), False, said.append)
    assert bits == {"flat": None, "deep": 12} and said == ["deep: 12-bit pictures"]
    read = {name: each.pictures.int() for name, each in load_normal(paths, 64, bits)[0].items()}
    assert (read["flat"] - read["deep"]).abs().max() <= 1


def test_a_killed_run_goes_on_to_the_same_end(parts, tmp_path):
    parts = parts / CATEGORIES[0]
    whole = train(config(), [parts], tmp_path / "whole.safetensors")

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config(), [parts], tmp_path / "part.safetensors", progress=kill)
    # as if it had gone on after its state was written, until a kill in the middle of a line
    log = tmp_path / "part.log.jsonl"
    written = log.read_text()
    log.write_text(written + '{"step": 11, "loss": 1.0}\n{"step": 21, "lo')
    steps = []
    part = train(
        config(),
        [parts],
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


def test_a_process_killed_by_signal_leaves_a_state_to_resume(parts, tmp_path):
    out = tmp_path / "m.safetensors"
    code = (
        "import sys; from pathlib import Path; from diffad.teaching.training import *;"
        "from diffad.method.unet import UNetConfig;"
        "c = TrainConfig(steps=100000, unet=UNetConfig(size=64, channels=(64, 64)), batch=4);"
        f"train(c, [{str(parts)!r}], {str(out)!r}, save_every=0.5)"
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


def test_resuming_another_run_or_none_is_refused(parts, tmp_path):
    with pytest.raises(CheckpointError, match="there is no unfinished run"):
        train(config(), [parts], tmp_path / "m.safetensors", resume=True)


def test_profiles_alone_take_over_the_network(trained, parts, tmp_path):
    out = train(config(steps=0), [parts / CATEGORIES[0]], tmp_path / "p.safetensors", start_from=trained)
    before, after = checkpoints.load(trained), checkpoints.load(out)
    assert all(torch.equal(after.network[name], value) for name, value in before.network.items())
    assert set(after.profiles) == set(CATEGORIES[:2])  # the untouched network keeps its other profiles
    assert after.provenance["started_from"]["licence"] == "free"


def test_training_on_changes_the_network_and_drops_profiles_that_no_longer_belong(trained, parts, tmp_path):
    out = train(config(steps=2), [parts / CATEGORIES[0]], tmp_path / "p.safetensors", start_from=trained)
    assert set(checkpoints.load(out).profiles) == {CATEGORIES[0]}


def test_what_was_trained_inspects(trained, parts):
    inspector = Inspector.load(trained, device="cpu")
    good = sorted((parts / CATEGORIES[0] / "test" / "good").iterdir())[0]
    assert inspector.inspect(good).anomaly_map.shape == (64, 64)


@pytest.fixture(scope="module")
def extractor():
    return FeatureExtractor()


def noise_pictures(tilt):
    """Grain of its own on every picture, and a gradient common to all."""
    generator = torch.Generator().manual_seed(0)
    grain = torch.randint(90, 130, (24, 3, 64, 64), generator=generator)
    return (grain + tilt * torch.arange(64)).clamp(0, 255).to(torch.uint8)


def test_pictures_may_be_turned_only_where_that_leaves_them_as_they_are(extractor):
    """Grain looks alike from everywhere. Lit from one side, it may at most be mirrored across that light."""
    cpu = torch.device("cpu")
    assert symmetries(extractor, noise_pictures(0), cpu) == tuple(range(8))
    lit = noise_pictures(2)
    upside_down = next(s for s in range(8) if torch.equal(turned(lit, s), lit.flip(-2)))
    assert symmetries(extractor, lit, cpu) == (0, upside_down)


def test_turned_gives_the_eight_symmetries_of_the_square():
    picture = torch.arange(9).view(1, 3, 3)
    all_of_them = {tuple(turned(picture, symmetry).flatten().tolist()) for symmetry in range(8)}
    assert len(all_of_them) == 8 and torch.equal(turned(picture, 0), picture)


def test_every_category_has_its_share_and_features_belong_to_their_pictures(extractor):
    categories = [noise_pictures(0)[:4], (noise_pictures(0) // 4)]  # few bright ones, many dark ones
    settings = config(unet=UNetConfig(size=64, channels=(64, 64), feature_channels=192), variants=2, batch=8)
    run = _prepare(settings, None, categories, 1, 0, torch.device("cpu"))
    draws, features = Draws.of(run, categories), Features(run)
    bright = 0
    for step in range(10):
        draw = draws[step]
        x_start = to_float(torch.from_numpy(draw.pictures), run.device)
        bright += int((x_start.mean(dim=(1, 2, 3)) > -0.5).sum())
        torch.testing.assert_close(features(draw.keys, x_start), run.extractor(x_start), rtol=0.05, atol=0.05)
    assert 28 <= bright <= 52
    assert len(features.kept) <= 2 * (4 + 24)  # kept: two variants of each picture


def test_half_of_the_pictures_are_shown_with_defects_and_the_same_ones_again():
    pictures = noise_pictures(0)[:6] // 2
    draws = Draws(config(batch=40), [pictures], [(0, 1)])
    draw, again, other = draws[1], draws[1], Draws(config(batch=40), [pictures], [(0, 1)], rank=1)[1]
    changed = (draw.pictures != draw.shown).any(axis=1).mean(axis=(1, 2))  # share of each picture
    assert 12 <= (changed > 0).sum() <= 28 and changed.max() < 0.9
    assert again.keys == draw.keys and all(map(np.array_equal, draw[1:], again[1:]))
    assert other.keys != draw.keys and not np.array_equal(other.noise, draw.noise)
    clean = Draws(config(spoiled=0.0), [pictures], [(0,)])[2]
    assert np.array_equal(clean.pictures, clean.shown)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_other_processes_draw_what_this_one_would():
    draws = Draws(config(), [noise_pictures(0)[:6]], [(0, 1)])
    batches = draws.batches(3, workers=2)
    for step in (3, 4, 5, 6):
        here, drawn = draws[step], next(batches)
        assert drawn.keys == here.keys and all(map(np.array_equal, drawn[1:], here[1:]))


def test_a_share_of_the_pictures_is_noised_in_holes_where_noise_hides_much():
    """The same ones for the same seed; everything at small t, where variances are learned."""
    parts = np.stack([make_part("gear", seed, size=64).image for seed in (1, 2)])
    pictures = torch.from_numpy(parts).permute(0, 3, 1, 2).repeat(32, 1, 1, 1)
    t = torch.tensor([99, 100, 999, 400]).repeat_interleave(2).repeat(8)

    def holes(share):
        return holes_in(pictures, t, share, np.random.default_rng(7))

    assert torch.equal(holes(0.3), holes(0.3)) and holes(0.0).all()
    whole = holes(1.0).flatten(1).all(dim=1)
    assert torch.equal(whole, t < 100)
    area = holes(1.0)[t >= 100].float().mean(dim=(1, 2, 3))
    assert 0.0005 < area.min() and area.max() < 0.6 and 0.02 < area.mean() < 0.3
    assert 0.1 < (~holes(0.3).flatten(1).all(dim=1))[t >= 100].float().mean() < 0.5


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


def test_settings_that_contradict_are_refused(tmp_path, parts):
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
        with pytest.raises(ValueError, match=rf"^{name} is .*not {wrong}"):
            TrainConfig(**{"steps": 1, name: wrong})
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="minutes is a number from"):
            TrainConfig(minutes=wrong)
    with pytest.raises(ValueError, match="not 'magic'"):
        TrainConfig(steps=1, pixel_score="magic")
    with pytest.raises(ValueError, match="multiple of 32"):  # said before the training, not after
        TrainConfig(steps=1, unet=UNetConfig(size=48, channels=(64, 64)))
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        train(config(), [parts], tmp_path / "model.pt")


def test_two_processes_train_one_model(parts, tmp_path):
    out = tmp_path / "ddp.safetensors"
    script = tmp_path / "run.py"
    script.write_text(
        "from diffad.teaching.training import *\n"
        "unet = UNetConfig(size=64, channels=(64, 64))\n"
        "config = TrainConfig(steps=3, unet=unet, batch=2, stressed=0)\n"
        f"train(config, [{str(parts / CATEGORIES[0])!r}], {str(out)!r}, device='cpu')\n"
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


def test_an_unfinished_run_is_pointed_out(parts, tmp_path, caplog):
    out = tmp_path / "m.safetensors"
    out.with_suffix(".resume.safetensors").touch()
    with caplog.at_level(logging.WARNING, logger="diffad.teaching.training"):
        train(config(steps=1), [parts / CATEGORIES[0]], out)
    assert "unfinished run" in caplog.text
