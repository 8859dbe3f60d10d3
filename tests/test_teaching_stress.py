"""Changes that leave a part good, and whether verdicts survive them: known answers from an inspector that
only looks at the light.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffad.cli.main import main
from diffad.measuring.stress import _bears, robustness_rows, stress, stress_table
from diffad.method.nuisances import NUISANCES, random_copy
from diffad.pictures import quality
from diffad.pictures.reading import DataError
from diffad.pictures.samples import find_samples
from diffad.synthetic.parts import make_part
from diffad.teaching.robustness import VERDICTS_EACH, in_words, robustness


class LightMeter:
    """Rejects what is more than `bears` per cent darker or brighter than 100 grey values."""

    categories = ("chip", "gear")

    def __init__(self, bears):
        self.bears = bears

    def check_knows(self, categories):
        if set(categories) - set(self.categories):
            raise DataError("unknown")

    def bits(self, category, found):
        return found

    def inspect(self, image, category, **settings):
        return SimpleNamespace(is_anomalous=abs(image.mean() / 100 - 1) > self.bears / 100)


@pytest.fixture
def parts(tmp_path):
    """Four good pictures of an even grey, two defective ones twice as bright; a good one of another part."""
    made = ("gear", "good", 100, 4), ("gear", "dent", 200, 2), ("chip", "good", 100, 1)
    for name, folder, grey, count in made:
        (tmp_path / name / "test" / folder).mkdir(parents=True)
        for number in range(count):
            picture = np.full((64, 64, 3), grey, np.uint8)
            picture[number, :8] = 0  # they differ a little
            Image.fromarray(picture).save(tmp_path / name / "test" / folder / f"{number}.png")
    return tmp_path


def changes(result, name):
    return next(change for change in result["gear"]["changes"] if change["name"] == name)


def test_what_a_light_meter_bears_is_found(parts):
    told, kept = [], []
    result = stress(
        LightMeter(15),
        find_samples(parts),
        progress=lambda *at: told.append(at),
        keep=kept.append,
        curves=True,
    )
    gear = result["gear"]
    assert (gear["good"], gear["defective"], gear["wrong"], gear["found"]) == (4, 2, 0.0, 1.0)
    darker = changes(result, "darker")  # judged at 5, 10, 20 and 40 per cent
    assert [share for _, share in darker["curve"]] == [0, 0, 1, 1]
    assert darker["wrong"] == darker["beyond"] == 0
    assert darker["bears"] == pytest.approx(-10.5)  # a twentieth of the way from 10 to 20
    assert changes(result, "JPEG 75")["bears"] is None  # whatever the compression, the light stays
    assert changes(result, "darker")["found"] == 1  # 180 is still too bright
    assert told[-1][0] == told[-1][1] == len(told) == len(kept)
    path = str(parts / "gear" / "test" / "good" / "2.png")
    rows = [row for row in kept if row["change"] == "darker" and row["path"] == path]
    assert [(row["strength"], row["rejected"]) for row in rows] == [
        (-10, False),
        (-5, False),
        (-20, True),
        (-40, True),
    ]
    assert rows[0] | {"path": ""} == {
        "category": "gear",
        "path": "",
        "label": False,
        "change": "darker",
        "strength": -10,
        "rejected": False,
    }
    rows = stress_table(result)
    assert rows[0] == ["good pictures rejected", "chip", "gear"] and len({len(row) for row in rows}) == 1
    assert ["darker, 10 % light", "0 of 1 (-10.5)", "0 of 4 (-10.5)"] in rows
    assert result["chip"]["defective"] == 0 and result["chip"]["found"] is None


def test_pictures_that_are_wrong_unchanged_are_not_blamed_on_a_change(parts):
    gear = stress(LightMeter(0.01), find_samples(parts))["gear"]
    assert gear["wrong"] == 1 and gear["changed_rejected"] > 0
    assert gear["newly_rejected"] == gear["beyond"] == 0 and gear["worst"] is None
    assert all(change["beyond"] == 0 and "bears" not in change for change in gear["changes"])


def greys(*values):
    return [np.full((32, 32, 3), value, np.uint8) for value in values]


def test_robustness_counts_verdicts_that_a_change_turns():
    """Judged by whether they are darker than 95: two of three are accepted as they are, and only a tenth less
    light takes one of them there.
    """
    verdicts, dark = [], lambda image: image.mean() < 95
    values = robustness(greys(90, 100, 150), dark, on_verdict=lambda *of: verdicts.append(of))
    assert len(verdicts) == 3 * VERDICTS_EACH and VERDICTS_EACH == 17
    assert verdicts[:3] == [(0, None, 0.0, True), (1, None, 0.0, False), (2, None, 0.0, False)]
    assert (values["good"], values["rejected"], values["verdicts"]) == (3, 1, 48)
    assert values["wrong"] == pytest.approx(1 / 3)
    assert (values["newly_rejected"], values["worst"]) == (1, "darker")
    assert values["beyond"] == pytest.approx(1 / 48)
    assert values["beyond"] == pytest.approx(np.mean([change["beyond"] for change in values["changes"]]))
    # the dark one stays rejected but where a tenth more light lifts it to 99
    assert values["changed_rejected"] == 15 + 1
    darker, brighter = values["changes"][:2]
    assert (darker["rejected"], darker["newly_rejected"], brighter["rejected"]) == (2, 1, 0)
    assert robustness_rows({"gear": values})[1:] == [["gear", "1 of 3", "16 of 48", "2.1%", "darker: 1 of 3"]]
    assert robustness_rows({"gear": values, "nut": values})[-1] == ["mean", "", "", "2.1%", ""]
    nothing = robustness([], lambda image: True)
    assert nothing["beyond"] is nothing["wrong"] is nothing["worst"] is None and nothing["verdicts"] == 0


def test_words_about_changes_count_verdicts_and_say_what_is_flattered():
    def said(limit, **more):
        return in_words(robustness(greys(100, 100), lambda image: image.mean() < limit) | more)

    assert said(50) == (
        "It tolerates changes of light, noise, sharpness, compression and position: none of 32 "
        "changed good pictures rejected."
    )
    some = said(95, held_out=True)
    assert "It does not tolerate all changes of light" in some
    assert some.endswith(": 2 of 32 changed good pictures rejected (darker); held out.")
    assert said(50, held_out=False).endswith("; measured on training pictures, so optimistic.")
    assert said(150).endswith(
        ": none of 32 changed good pictures rejected, apart from 2 of 2 rejected unchanged."
    )


def test_strength_at_which_one_in_twenty_is_rejected():
    assert _bears([[1, 0.0], [2, 0.1]], 0.0) == pytest.approx(1.5)
    assert _bears([[-5, 0.5]], 0.25) == pytest.approx(-1.0)
    assert _bears([[1, 0.05], [2, 0.05]], 0.0) is None


@pytest.mark.parametrize("nuisance", NUISANCES, ids=lambda nuisance: nuisance.name)
def test_a_nuisance_changes_a_picture_of_any_shape_as_it_says(nuisance):
    picture = np.ascontiguousarray(make_part("gear", 3).image[:200])
    before = picture.copy()
    changed = nuisance.apply(picture, nuisance.strength, np.random.default_rng(0))
    assert changed.shape == picture.shape and changed.dtype == np.uint8
    assert np.array_equal(picture, before) and not np.array_equal(changed, picture)
    light = changed.mean() / picture.mean() - 1
    assert light == pytest.approx({"darker": -0.1, "brighter": 0.1}.get(nuisance.name, 0), abs=0.02)
    noise = (changed.astype(float) - picture).std()
    if nuisance.name in ("noise", "grey noise"):
        assert noise == pytest.approx(2, abs=0.15)


def test_random_copies_are_the_same_for_the_same_seed_and_stay_the_part():
    picture = make_part("gear", 3).image
    one, again, other = (random_copy(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    for copy in (one, other):
        assert np.corrcoef(copy.ravel(), picture.ravel())[0, 1] > 0.7


def test_a_picture_that_is_off_as_a_whole_is_named_and_an_ordinary_one_is_not():
    inside = np.ones((256, 256), bool)
    known = quality.ranges(
        quality.measured(picture, inside)
        for seed in range(6)
        for picture in (
            make_part("gear", seed).image,
            random_copy(make_part("gear", seed).image, np.random.default_rng(seed)),
        )
    )

    def said(picture):
        return quality.note(quality.measured(picture, inside), known)

    good = make_part("gear", 50).image
    assert said(good) == ""
    assert "darker (-4" in said(np.rint(good * 0.55).astype(np.uint8))
    assert "bluer" in said(np.rint(good * [0.8, 0.9, 1.0]).astype(np.uint8))
    noisy = good + np.random.default_rng(0).normal(0, 12, good.shape)
    assert "noisier" in said(noisy.clip(0, 255).astype(np.uint8))
    blurred = next(each for each in NUISANCES if each.name == "blur").apply(good, 3, None)
    assert "more blurred" in said(blurred)


def test_the_command_writes_table_numbers_and_plot(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diffad.cli.measuring.load_inspector", lambda arguments: LightMeter(15))
    command = ["stress", str(parts), "--limit", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert not (tmp_path / "out" / "stress.png").exists()
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 3 * VERDICTS_EACH
    capsys.readouterr()
    assert main([*command, "--curves"]) == 0
    printed = capsys.readouterr().out
    assert "| darker, 10 % light |" in printed
    assert (tmp_path / "out" / "stress.md").read_text() == printed
    assert '"bears": -10.5' in (tmp_path / "out" / "stress.json").read_text()
    assert Image.open(tmp_path / "out" / "stress.png").size[0] > 1000
