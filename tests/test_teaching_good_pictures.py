"""Good pictures: which are read, held out, left out, named, and what their statistics remember."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import config

from diffad import checkpoint as checkpoints
from diffad.inspector import Inspector
from diffad.method.calibration import from_codes
from diffad.method.features import FeatureExtractor
from diffad.method.fusion import weighed
from diffad.method.image_score import ImageScore
from diffad.pictures.reading import DataError, read_image
from diffad.synthetic.parts import CATEGORIES, make_part
from diffad.teaching.categories import learned_before
from diffad.teaching.forecast import in_words
from diffad.teaching.good_pictures import load_normal, normal_paths, readable, split_held_out, told_apart
from diffad.teaching.residuals import copies_of
from diffad.teaching.statistics import fit
from diffad.teaching.training import train

pytestmark = pytest.mark.usefixtures("quick_statistics")


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


def test_held_out_pictures_are_not_trained_on():
    pictures = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1)
    used, held = split_held_out(pictures, 0.15)
    assert len(held) == 6
    assert sorted(torch.cat([used, held]).flatten().tolist()) == list(range(40))
    assert torch.equal(split_held_out(pictures, 0.15)[1], held)


def test_changed_pictures_are_called_held_out_only_if_nothing_was_learned_from_them(
    trained, small_parts, tmp_path, monkeypatch
):
    name = CATEGORIES[0]
    data, fitted, judged = [small_parts / name], [], []

    def observed(observer, used, held, inside, **settings):
        fitted.append(torch.cat([used, held]))
        assert len(inside) == len(fitted[-1])
        return fit(observer, used, held, inside, **settings)

    def read(path, bits):
        judged.append(path)
        return read_image(path, bits)

    monkeypatch.setattr("diffad.teaching.categories.fit", observed)
    monkeypatch.setattr("diffad.teaching.robustness.read_image", read)
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
    assert "; held out." in said[0] and "so optimistic." in said[1]
    assert "of 16 changed good pictures rejected" in said[0] and "of 32 changed" in said[1]


def test_pictures_of_a_category_that_the_start_was_trained_on_are_held_out_if_they_are_as_many(trained):
    base = checkpoints.load(trained)
    assert learned_before(base, CATEGORIES[0]) == 12
    assert learned_before(base, "bolt") is learned_before(None, "bolt") is None


def test_what_is_remembered_of_a_good_picture_is_what_others_would_find(trained, tmp_path, monkeypatch):
    """The peak of its map, inspected with the statistics of all others. They are not square: the model sees
    padding too, which no score counts.
    """
    monkeypatch.setattr("diffad.teaching.statistics.copies_of", copies_of)  # the more looks, the nearer
    peak = ImageScore(0.0, -math.inf, 0.0, np.zeros(1), np.zeros(1))
    folder = tmp_path / "gear"
    folder.mkdir()
    for seed in range(12):
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

    held, used = split_held_out(torch.arange(12), 0.15)[::-1]
    order = torch.cat([held, used]).tolist()
    own, others = [], []
    for place in (0, 9):  # one that was held out, one that was not
        picture = folder / f"{order[place]:02}.png"
        own.append(peak_of(whole, picture))
        picture.rename(tmp_path / "left_out.png")
        others.append(peak_of(statistics(), tmp_path / "left_out.png"))
        (tmp_path / "left_out.png").rename(picture)
    expected = remembered[[0, 9]]
    flattery = np.mean(others) - np.mean(own)
    assert flattery > 0.5
    # what is left of it lies in the common covariance, which a picture of 64 px has 64 places of 1536 of
    assert expected == pytest.approx(np.array(others), abs=0.3 * flattery)


def test_runs_of_any_seed_hold_out_the_same_pictures(trained, small_parts, tmp_path, monkeypatch):
    """Else a run that goes on from a checkpoint would train on what its thresholds come from."""
    held_out = []

    class Embedding(Exception):
        pass

    def look(observer, used, held, inside, **settings):
        held_out.append(held)
        raise Embedding

    monkeypatch.setattr("diffad.teaching.categories.fit", look)
    for seed in (0, 5):
        with pytest.raises(Embedding):
            train(config(steps=0, seed=seed), [small_parts], tmp_path / "m.safetensors", start_from=trained)
    assert torch.equal(*held_out)


def test_only_normal_training_pictures_are_read(small_parts):
    read, _ = load_normal(normal_paths([small_parts]), 64)
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
    said = "29 of 40 training pictures are duplicates of others and were left out: "
    assert all("unusual" in sentence for sentence in told[1:])
    assert told[0].startswith(f"gear: {said}") and "gear/01.png" in told[0]
    assert "and 19 more" in told[0]
    words = in_words("gear", model.profiles["gear"].forecast)
    assert said in words and "With only 11 good pictures the threshold is a guess" in words


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
    said = "2 of 3 test pictures are also among the training pictures, so "
    said += "results measured on them are too good: "
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


@pytest.fixture(scope="module")
def extractor():
    return FeatureExtractor()
