"""Trainings in processes of their own: paused, stopped, killed, taken up, collected."""

import os
import signal
import time

import pytest
from PIL import Image

from diffad import checkpoint as checkpoints
from diffad.synthetic.parts import make_part
from diffad.workspace.jobs import Jobs, Request
from diffad.workspace.store import Workspace, WorkspaceError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for seed in range(9):
        Image.fromarray(make_part("leather", seed, size=64).image).save(folder / f"{seed}.png")
    return {path.name: path for path in folder.iterdir()}


def until(jobs, job, *statuses, seconds=120):
    """The job once it has one of these statuses."""
    deadline = time.monotonic() + seconds
    while (now := jobs.find(job.id)).status not in statuses:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    return now


def until_steps(jobs, job, seconds=120):
    deadline = time.monotonic() + seconds
    while not ((now := jobs.find(job.id)).status == "running" and now.loss is not None):
        assert time.monotonic() < deadline and now.status != "failed", now
        time.sleep(0.1)
    return now


def test_a_training_is_paused_killed_taken_up_and_stopped(trained, pictures, tmp_path):
    with Workspace.open(tmp_path / "workspace") as workspace:
        jobs = Jobs(workspace)
        job = jobs.start(Request("my hide", str(trained), minutes=30), pictures)
        with pytest.raises(WorkspaceError, match="my hide is being trained"):
            jobs.start(Request("another", str(trained), minutes=1), pictures)
        until_steps(jobs, job)
        jobs.pause(job.id)
        before = until(jobs, job, "paused")
        assert before.message == "paused" and before.done > 0
        jobs.resume(job.id)
        now = until_steps(jobs, job)
        assert now.done >= before.done  # where it was, not from the beginning

    # the server ends, then the process is killed: a new server goes on with it
    os.kill(int((job.folder / "pid").read_text().split()[0]), signal.SIGKILL)
    with Workspace.open(tmp_path / "workspace") as workspace:
        jobs = Jobs(workspace)
        until(jobs, job, "interrupted")
        assert [each.id for each in jobs.take_up()] == [job.id]
        until_steps(jobs, job)
        assert jobs.take_up() == []
        jobs.stop(job.id)
        assert until(jobs, job, "finished", "failed").status == "finished", jobs.find(job.id).message
        assert jobs.find(job.id).log[0]["step"] == 1
        ((_, model),) = jobs.collect()
        assert jobs.collect() == [] and model == tmp_path / "workspace/models/my hide.safetensors"
        assert list(checkpoints.load(model).profiles) == ["my hide"]
        jobs.remove(job.id)
        assert jobs.all() == []


def test_a_training_that_cannot_be_says_why(trained, pictures, tmp_path):
    with Workspace.open(tmp_path / "workspace") as workspace:
        jobs = Jobs(workspace)
        few = dict(list(pictures.items())[:3])
        job = until(jobs, jobs.start(Request("my hide", str(trained), minutes=1), few), "failed")
        assert "3 normal pictures" in job.message and jobs.collect() == []
        with pytest.raises(WorkspaceError, match="over"):
            jobs.pause(job.id)
