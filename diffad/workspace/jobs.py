"""Long trainings in processes of their own: they go on when the page is closed or the server restarts.

A job is a folder: `job.json` (what was asked), `data/<category>/` (its good pictures), `status.json` (written
by the process), `wish` (pause or stop, written by the server), the training's log and state, and in the end
`model.safetensors`, which moves to the workspace's models.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diffad.output import explained, write
from diffad.workspace import events
from diffad.workspace.store import Workspace, WorkspaceError

Status = Literal["waiting", "running", "paused", "interrupted", "finished", "failed"]
Wish = Literal["go", "pause", "stop"]
JOB, STATUS, WISH, MODEL, PREVIEW = "job.json", "status.json", "wish", "model.safetensors", "preview.png"
_OVER = ("finished", "failed")


@dataclass(frozen=True)
class Request:
    """What a training was asked for.

    Attributes:
        name: of the category.
        base: the checkpoint that it starts from.
        minutes: its time budget; pauses do not count.
        device: "auto", "cpu" or "cuda".
        who: the login's name.
        time: UTC, s since 1970.
    """

    name: str
    base: str
    minutes: float
    device: str = "auto"
    who: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class Job:
    """A training and how it is doing.

    Attributes:
        id: its folder's name.
        folder: where it keeps everything.
        request: what was asked.
        status: "waiting" until its process has begun; "interrupted" if that was ended from outside.
        done: share of the budget, in [0, 1].
        loss: the running loss; None before the first step.
        message: why it failed, else what it is doing.
    """

    id: str
    folder: Path
    request: Request
    status: Status
    done: float
    loss: float | None
    message: str

    @property
    def log(self) -> list[dict[str, Any]]:
        """The training's log so far: a row every ten steps."""
        file = self.folder / "model.log.jsonl"
        rows = []
        for line in file.read_text().splitlines() if file.is_file() else ():
            with suppress(ValueError):  # the last line may be incomplete
                rows.append(json.loads(line))
        return rows

    @property
    def preview(self) -> Path | None:
        """A picture of what the network makes of a good part and of an artificial defect."""
        file = self.folder / PREVIEW
        return file if file.is_file() else None

    @property
    def is_over(self) -> bool:
        return self.status in _OVER


class Jobs:
    """The trainings of a workspace. All methods raise WorkspaceError, those that write also OutputError."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._root = workspace.folder / "jobs"

    def start(self, request: Request, pictures: Mapping[str, Path]) -> Job:
        """Begin a training on pictures, given by the names that people know.

        One runs at a time: a second one would make both slower, and inspections too.
        """
        with self._workspace.lock:
            if running := [each for each in self.all() if each.status in ("waiting", "running")]:
                raise WorkspaceError(f"{running[0].request.name} is being trained: pause or stop that first")
            folder = self._root / secrets.token_hex(8)
            new = folder.with_name(f".{folder.name}")
            with explained(new):
                try:
                    _copy(pictures, new / "data" / request.name)
                    write(new / JOB, json.dumps(asdict(request) | {"time": time.time()}).encode())
                    new.rename(folder)
                except BaseException:
                    shutil.rmtree(new, ignore_errors=True)
                    raise
            _launch(folder)
        self._note(request.who, "train", request.name, minutes=request.minutes, pictures=len(pictures))
        return self.find(folder.name)

    def all(self) -> list[Job]:
        """The latest first."""
        folders = self._root.iterdir() if self._root.is_dir() else ()
        jobs = [_read(each) for each in folders if (each / JOB).is_file() and not each.name.startswith(".")]
        return sorted(jobs, key=lambda job: -job.request.time)

    def find(self, number: str) -> Job:
        for job in self.all():
            if job.id == number:
                return job
        raise WorkspaceError("there is no such training any more: reload the page")

    def pause(self, number: str, who: str = "") -> Job:
        """It ends its present step, writes its state and its process ends."""
        return self._wish(number, "pause", who)

    def stop(self, number: str, who: str = "") -> Job:
        """It finishes with what it has learned so far."""
        return self._wish_and_wake(number, "stop", who)

    def resume(self, number: str, who: str = "") -> Job:
        return self._wish_and_wake(number, "go", who)

    def remove(self, number: str, who: str = "") -> None:
        """Its process ends at once; a finished model stays."""
        job = self.find(number)
        write(job.folder / WISH, b"pause")
        _wait_for_end(job.folder)
        with explained(job.folder):
            shutil.rmtree(job.folder)
        self._note(who, "remove training", job.request.name)

    def take_up(self) -> list[Job]:
        """Go on with whatever was running when the machine or its processes ended; for a server's start."""
        lost = [job for job in self.all() if job.status == "interrupted"]
        for job in lost:
            _launch(job.folder)
        return lost

    def collect(self) -> list[tuple[Job, Path]]:
        """Move the models of finished trainings to the workspace's; returns these, each once."""
        moved = []
        for job in self.all():
            model = job.folder / MODEL
            if job.status == "finished" and model.is_file():
                target = _free(self._workspace.folder / "models", job.request.name)
                with explained(target):
                    model.replace(target)
                self._note(job.request.who, "trained", job.request.name, model=target.stem)
                moved.append((job, target))
        return moved

    def _wish_and_wake(self, number: str, wish: Wish, who: str) -> Job:
        job = self._wish(number, wish, who)
        if job.status == "paused":  # its process may be about to end
            _wait_for_end(job.folder)
        if not _alive(job.folder):
            _launch(job.folder)
        return self.find(number)

    def _wish(self, number: str, wish: Wish, who: str) -> Job:
        job = self.find(number)
        if job.is_over:
            raise WorkspaceError(f"the training of {job.request.name} is over")
        write(job.folder / WISH, wish.encode())
        self._note(who, f"training: {wish}", job.request.name)
        return job

    def _note(self, who: str, action: str, name: str, **detail: Any) -> None:
        with self._workspace.writing() as db:
            events.add(db, who, action, name, detail)


def _copy(pictures: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, path in pictures.items():
        data = path.read_bytes()
        stem = hashlib.sha256(data).hexdigest()[:12]
        write(folder / f"{stem}-{Path(name).name[-60:]}", data, sync=False)


def _launch(folder: Path) -> None:
    """Start the job's process, which outlives this one."""
    write(folder / STATUS, json.dumps({"status": "waiting", "pid": None}).encode())
    if (folder / WISH).is_file() and (folder / WISH).read_text() == "pause":
        (folder / WISH).unlink()
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "diffad.workspace.trainer", str(folder)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    write(folder / "pid", f"{process.pid} {_begun(process.pid)}".encode())


def _read(folder: Path) -> Job:
    try:
        request = Request(**json.loads((folder / JOB).read_text()))
        says = json.loads((folder / STATUS).read_text()) if (folder / STATUS).is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise WorkspaceError(f"the training in {folder} is damaged ({error}): delete that folder") from None
    status: Status = says.get("status", "waiting")
    message = says.get("message", "")
    if status in ("waiting", "running") and not _alive(folder):
        message = "its process was ended: it goes on when the server starts again, or by Resume"
        status = "interrupted"
    return Job(folder.name, folder, request, status, says.get("done", 0.0), says.get("loss"), message)


def _alive(folder: Path) -> bool:
    """Whether the job's process is there: that number, begun at that time."""
    try:
        pid, begun = (folder / "pid").read_text().split()
        os.kill(int(pid), 0)
    except (OSError, ValueError):
        return False
    with suppress(ChildProcessError, OSError):
        os.waitpid(int(pid), os.WNOHANG)  # a child that has ended is there until somebody asks
    return _begun(int(pid)) == begun != ""


def _wait_for_end(folder: Path) -> None:
    """Returns once the job's process has ended, or does not end within 20 s."""
    deadline = time.monotonic() + 20
    while _alive(folder) and time.monotonic() < deadline:
        time.sleep(0.1)


def _begun(pid: int) -> str:
    """What tells a process from a later one of the same number; empty once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    try:  # no /proc: macOS
        os.kill(pid, 0)
        return "there"
    except OSError:
        return ""


def _free(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"{name}{'' if number == 1 else f' {number}'}.safetensors").exists():
        number += 1
    return path
