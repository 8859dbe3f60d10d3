"""Categories that are taught: kept, changed, taken back, handed on; whatever happens in between."""

import json
import os
import random
import signal
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import few_looks
from PIL import Image

from diffad.checkpoint import load_category, save_category
from diffad.cli.main import main
from diffad.inspector import Inspector
from diffad.pictures.reading import DataError
from diffad.synthetic.parts import make_part
from diffad.teaching.quick import examples, learn, teach
from diffad.workspace.store import Workspace, WorkspaceError
from diffad.workspace.taught import Taught

NAME = "my hide"


@pytest.fixture(scope="module")
def inspector(trained):
    return Inspector.load(trained, "cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for seed in range(12):
        Image.fromarray(make_part("leather", seed, size=64).image).save(folder / f"{seed}.png")
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def lesson(inspector, pictures):
    done = []
    with few_looks():
        lesson = teach(inspector, NAME, list(pictures.values()), progress=done.append)
    assert done == sorted(done) and 0.5 < done[-1] < 1
    return lesson


@pytest.fixture
def workspace(tmp_path):
    with Workspace.open(tmp_path / "workspace") as opened:
        yield opened


@pytest.fixture
def taught(workspace, inspector, lesson, pictures):
    taught = Taught(workspace)
    taught.add(inspector, NAME, lesson.fitted, pictures, "anna")
    return taught


def maps(inspector, path):
    return inspector.inspect(path, NAME, seed=0).anomaly_map


@pytest.fixture
def defective(tmp_path):
    path = tmp_path / "cut.png"
    image = make_part("leather", 99, size=64).image.copy()
    image[10:22, 10:22] = 0
    Image.fromarray(image).save(path)
    return path


def test_a_taught_category_is_the_models_own_from_then_on(taught, inspector, lesson, defective):
    more = taught.attached(inspector, inspector.profiles)
    assert more.categories == (*inspector.categories, NAME) and NAME not in inspector.categories
    direct = inspector.with_profiles({**inspector.profiles, NAME: lesson.profile})
    assert more.inspect(defective, NAME).score == pytest.approx(
        direct.inspect(defective, NAME).score, rel=0.02
    )
    assert more.inspect(defective, NAME).is_anomalous
    found = taught.find(NAME)
    assert (found.about["who"], found.about["version"], len(found.pictures)) == ("anna", 1, 12)
    assert all(path.read_bytes() for path in found.pictures.values())
    judged = examples(more, NAME, list(found.pictures.values()))
    assert len(judged) == 10 and all(each.found == (each.score > more.threshold(NAME)) for each in judged)


def test_one_more_picture_is_learned_and_taken_back_bit_by_bit(taught, inspector, defective):
    before = maps(taught.attached(inspector, inspector.profiles), defective)
    model = taught.attached(inspector, inspector.profiles)
    fitted = learn(model, NAME, taught.fitted(NAME), defective)
    taught.change(NAME, fitted.profile, "anna", "learn", fitted, [("cut.png", defective)])
    model = taught.attached(inspector, inspector.profiles)
    assert maps(model, defective).max() < 0.7 * before.max()  # what was learned is not as odd any more
    assert len(taught.find(NAME).pictures) == 13 and len(model.scorer(NAME).good) == 13
    again = taught.fitted(NAME)
    assert again.sums.residual.counts == fitted.sums.residual.counts
    taught.undo(NAME, "anna")
    assert np.array_equal(maps(taught.attached(inspector, inspector.profiles), defective), before)
    with pytest.raises(WorkspaceError, match="nothing to undo"):
        taught.undo(NAME)


def test_ignored_places_are_silent_and_no_others(taught, inspector, defective):
    before = taught.attached(inspector, inspector.profiles).inspect(defective, NAME)
    ignored = torch.zeros(64, 64, dtype=torch.bool)
    ignored[4:28, 4:28] = True
    taught.ignore(NAME, ignored)
    after = taught.attached(inspector, inspector.profiles).inspect(defective, NAME)
    assert before.is_anomalous and after.score < 0.5 * before.score
    assert not after.anomaly_map[ignored.numpy()].any()
    assert np.array_equal(after.anomaly_map[~ignored.numpy()], before.anomaly_map[~ignored.numpy()])
    assert np.array_equal(after.ignored, ignored.numpy()) and before.ignored is None
    assert (after.hatched != after.image).any() and after.to_dict()["ignored"] == pytest.approx(24**2 / 64**2)
    assert all(not ignored[y : y + h, x : x + w].all() for x, y, w, h in (each.box for each in after.regions))
    with pytest.raises(WorkspaceError, match="everything would be ignored"):
        taught.ignore(NAME, torch.ones(64, 64, dtype=torch.bool))
    taught.ignore(NAME, None)
    assert taught.attached(inspector, inspector.profiles).inspect(defective, NAME).ignored is None


def test_renamed_exported_removed_and_imported_it_judges_as_before(taught, inspector, defective, tmp_path):
    before = maps(taught.attached(inspector, inspector.profiles), defective)
    for wrong, why in (
        ("", "give the part a name"),
        ("gear", "already"),
        ("a/b", "none of"),
        (NAME.upper(), ""),
    ):
        if why:
            with pytest.raises(DataError, match=why):
                taught.rename(NAME, wrong, ["gear"])
    assert taught.rename(NAME, NAME.upper()).name == NAME.upper()
    taught.rename(NAME.upper(), NAME)
    file = taught.export(NAME, tmp_path / "hide.zip")
    with pytest.raises(DataError, match="already"):
        taught.import_from(file)
    taught.remove(NAME)
    assert taught.all() == []
    assert len(taught.import_from(file).pictures) == 12
    assert np.array_equal(maps(taught.attached(inspector, inspector.profiles), defective), before)
    assert taught.fitted(NAME).sums.plain is not None


def test_what_is_no_export_is_refused_and_leaves_nothing(taught, trained, tmp_path):
    hostile = {
        "outside": {"../x.safetensors": b"1"}, "deep": {"good/a/b.png": b"1"}, "empty": {},
        "garbage": {"category.safetensors": b"no tensors"},
        "model": {"category.safetensors": Path(trained).read_bytes()},
    }  # fmt: skip
    for name, files in hostile.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for inner, data in files.items():
                archive.writestr(inner, data)
    (tmp_path / "text.zip").write_text("no zip")
    for name in (*hostile, "text", "absent"):
        with pytest.raises(WorkspaceError) as refused:
            taught.import_from(tmp_path / f"{name}.zip")
        assert "Traceback" not in str(refused.value) and len(str(refused.value)) < 400
    assert [each.name for each in taught.all()] == [NAME]
    assert not [each for each in tmp_path.rglob(".*") if each.is_dir()]


def test_killed_at_any_moment_a_category_is_as_before_or_as_after(taught, workspace, inspector, defective):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:8] = True
    folder, random_moment = workspace.folder, random.Random(0)
    workspace.close()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            with Workspace.open(folder) as own:
                mine = Taught(own)
                while True:
                    mine.ignore(NAME, mask)
                    mine.undo(NAME)
        time.sleep(random_moment.uniform(0.02, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with Workspace.open(folder) as own:
            now = Taught(own)
            (found,) = now.all()
            ignored = now.load(NAME).profile.ignored
            assert ignored is None or torch.equal(ignored, mask)
            assert now.damaged() == [] and len(found.pictures) == 12 and now.fitted(NAME).sums.plain


def test_the_command_line_lists_masks_and_hands_on(taught, workspace, trained, defective, tmp_path, capsys):
    folder = ["--workspace", str(workspace.folder)]
    workspace.close()
    assert main(["workspace", "list", *folder]) == 0 and NAME in capsys.readouterr().out
    white = np.zeros((64, 64), np.uint8)
    white[4:28, 4:28] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    judge = ["inspect", str(defective), "--checkpoint", str(trained), "--category", NAME, *folder]
    capsys.readouterr()

    def judged():
        assert main([*judge, "--json"]) == 0
        return json.loads(capsys.readouterr().out)[0]

    before = judged()
    assert main(["mask", NAME, str(tmp_path / "mask.png"), *folder]) == 0
    masked = judged()
    assert before["ignored"] == 0 and masked["ignored"] == pytest.approx(24**2 / 64**2)
    assert masked["score"] < 0.5 * before["score"]
    assert main(["mask", NAME, "--clear", *folder]) == 0
    assert judged()["score"] == before["score"]
    assert main(["workspace", "export", NAME, str(tmp_path / "hide.zip"), *folder]) == 0
    assert main(["workspace", "remove", NAME, *folder]) == 0
    assert main(["workspace", "import", str(tmp_path / "hide.zip"), *folder]) == 0
    capsys.readouterr()
    for wrong in (
        ["workspace", "export", NAME],
        ["workspace", "remove", "x"],
        ["mask", NAME],
        ["mask", "x", "--clear"],
    ):
        assert main([*wrong, *folder]) == 2
        assert capsys.readouterr().err.startswith("diffad: ")


def test_a_model_that_is_another_does_not_get_it(taught, inspector):
    other = inspector.with_profiles(inspector.profiles)
    other.network_id = "0" * 16
    assert NAME not in taught.attached(other, inspector.profiles).categories
    assert replace(taught.find(NAME), name="x").network == inspector.network_id


def test_what_was_renamed_is_taken_back_under_its_new_name(taught, inspector, lesson, pictures):
    mask = torch.ones(64, 64, dtype=torch.bool)
    mask[8:] = False
    taught.ignore(NAME, mask)
    taught.rename(NAME, "other")
    taught.add(inspector, NAME, lesson.fitted, pictures)
    assert taught.undo("other").name == "other" and taught.load("other").profile.ignored is None
    assert [each.name for each in taught.all()] == [NAME, "other"]


def test_killed_between_new_and_old_only_the_new_one_counts(
    taught, inspector, lesson, pictures, monkeypatch, workspace
):
    class Killed(BaseException):
        pass

    def killed(*given, **more):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("diffad.workspace.taught.shutil.rmtree", killed)
        taught.add(inspector, NAME, lesson.fitted, pictures)
    assert [(each.name, each.about["version"]) for each in taught.all()] == [(NAME, 2)]
    taught.remove(NAME)
    assert taught.all() == [] and not list((workspace.folder / "categories").iterdir())


def test_a_name_that_was_taught_to_another_model_is_not_replaced(taught, inspector, lesson, pictures):
    other = inspector.with_profiles(inspector.profiles)
    other.network_id = "0" * 16
    with pytest.raises(WorkspaceError, match="another model"):
        taught.add(other, NAME, lesson.fitted, pictures)
    assert taught.find(NAME).network == inspector.network_id


@pytest.mark.parametrize("about", [
    {"pictures": {"../../../../../../../../../../etc/passwd": "x"}}, {"pictures": ["a"]}, {"pictures": None},
    {"pictures": {"0" * 64: "gone.png"}}, {"pictures": {"0" * 64: 3}}, {"sums": "1"}, {"sums": True},
    {"time": 1e300}, {"who": 1},
])  # fmt: skip
def test_an_export_that_says_something_else_of_itself_is_refused(taught, tmp_path, about):
    with zipfile.ZipFile(taught.export(NAME, tmp_path / "hide.zip")) as archive:
        archive.extractall(tmp_path / "in")
    statistics = tmp_path / "in" / "category.safetensors"
    own = load_category(statistics)
    save_category(statistics, replace(own, name="another", about={**own.about, **about}))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for path in (tmp_path / "in").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "in"))
    with pytest.raises(WorkspaceError, match="no exported category: "):
        taught.import_from(tmp_path / "other.zip")
    assert [each.name for each in taught.all()] == [NAME]


def test_a_damaged_export_is_refused(taught, tmp_path):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("category.safetensors", bytes(range(256)) * 400)
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(WorkspaceError, match="no exported category"):
        taught.import_from(path)
