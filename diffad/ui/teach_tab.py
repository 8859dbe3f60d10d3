"""The Teach tab: from pictures of good parts to a category that can be chosen, and to a model of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from diffad.inspector import Inspector
from diffad.output import OutputError
from diffad.pictures import intake
from diffad.pictures.reading import DataError
from diffad.recognition import Turn
from diffad.teaching.categories import Lesson
from diffad.teaching.examination import Offered, examine, in_words
from diffad.teaching.good_pictures import FEWEST
from diffad.teaching.quick import Example, changes_borne, check_count, check_name, examples, teach
from diffad.ui import teach_board
from diffad.ui.access import Access, login
from diffad.ui.batch_tab import folders
from diffad.ui.files import Storage
from diffad.ui.inspect_tab import InspectTab
from diffad.ui.layout import categories
from diffad.ui.models import Models
from diffad.ui.taught_card import TaughtCard
from diffad.ui.teach_layout import lay_out_teaching
from diffad.ui.turns import Turns, Unwanted, caller, still_waiting
from diffad.workspace.jobs import Job, Jobs, Request
from diffad.workspace.store import Workspace, WorkspaceError
from diffad.workspace.taught import Taught

MOST = 2000  # pictures
WORK: dict[str, Any] = {
    "concurrency_id": "teach", "concurrency_limit": 4, "trigger_mode": "once", "api_visibility": "private",
    "show_progress": "full",
}  # fmt: skip
AT_ONCE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
CANCELLED = "Cancelled. Nothing was kept."


@dataclass
class TeachSession:
    """What one open page is teaching."""

    offered: list[Offered] = field(default_factory=list)
    left_out: set[int] = field(default_factory=set)
    folder: Path | None = None
    name: str = ""
    model: str = ""
    lesson: Lesson | None = None
    made: list[Example] = field(default_factory=list)
    changes: Mapping[str, Any] | None = None
    work: object = None  # the newest piece of work; another one, or None, ends those before

    def __deepcopy__(self, memo: Any) -> TeachSession:
        return TeachSession()

    def forget(self) -> None:
        """Ends the work, and removes the copies of the pictures."""
        self.work = None
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def used(self) -> dict[str, Path]:
        """The pictures that are to be learned from."""
        return {each.name: each.path for i, each in enumerate(self.offered) if i not in self.left_out}


class TeachTab:
    """Creates the tab inside the current `gr.Blocks` and connects its components to the methods below."""

    def __init__(
        self, models: Models, inspect: InspectTab, tab: gr.Tab, turns: Turns, storage: Storage,
        workspace: Workspace, access: Access, data_root: Path | None,
    ) -> None:  # fmt: skip
        """See `page.build_app`. inspect: the tab whose list of categories grows."""
        assert models.taught is not None  # there is a workspace
        self._models, self._turns, self._storage, self._access = models, turns, storage, access
        self._taught: Taught = models.taught
        self._jobs, self._data_root, self._inspect = Jobs(workspace), data_root, inspect
        self._session = gr.State(TeachSession(), delete_callback=TeachSession.forget)
        self.parts = lay_out_teaching(list(models), folders(data_root) if data_root else [])
        self._card = TaughtCard(models, workspace, storage, turns, access, inspect)
        self._jobs.take_up()
        self._connect(tab)

    def _connect(self, tab: gr.Tab) -> None:
        p, session = self.parts, self._session
        seen = [session, p.status, p.offered]
        p.files.upload(self.look_over_files, [session, p.files], [*seen, p.files], **WORK)
        p.use_folder.click(self.look_over_folder, [session, p.folder], seen, **WORK)
        p.offered.select(self.toggle, session, seen, **AT_ONCE)
        outcome = [
            session, p.status, p.expected, p.again, p.more, *self._card.lists, self._inspect.parts.category
        ]  # fmt: skip
        for button, method in ((p.teach, self.teach), (p.again, self.teach_again)):
            button.click(
                method, [session, p.name, p.model, self._inspect.parts.model], outcome,
                show_progress_on=[p.status], **WORK,
            ).success(
                self.try_changes, session, [session, p.status, p.expected],
                show_progress_on=[p.status], **WORK,
            )  # fmt: skip
        p.more.click(self.would_more_help, session, p.status, show_progress_on=[p.status], **WORK)
        p.cancel.click(self.cancel, session, p.status, **AT_ONCE)
        live = [p.job, p.pause, p.resume, p.stop, p.timer]
        p.train.click(self.train, [session, p.name, p.model, p.minutes], [p.status, *live], **AT_ONCE)
        for button, wish in ((p.pause, "pause"), (p.resume, "resume"), (p.stop, "stop")):
            button.click(self._wish(wish), None, [p.status, *live], **AT_ONCE)
        p.timer.tick(self.live, None, [*live, p.model, self._inspect.parts.model], **AT_ONCE)
        tab.select(self.live, None, [*live, p.model, self._inspect.parts.model], **AT_ONCE)
        tab.select(self._card.listed, None, self._card.lists, **AT_ONCE)

    # Pictures in

    def look_over_files(
        self,
        session: TeachSession,
        given: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Looks over uploaded files, and clears the upload."""
        if not given:
            return session, gr.skip(), gr.skip(), gr.skip()
        with self._storage.using(given):
            return *self._look_over(session, [Path(file) for file in given], None, progress), None

    def look_over_folder(
        self,
        session: TeachSession,
        folder: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        if self._data_root is None or not folder:
            return session, teach_board.sentence("Choose a folder first.", "warm"), ""
        return self._look_over(session, [self._data_root / str(folder)], self._data_root, progress)

    def _look_over(
        self, session: TeachSession, paths: list[Path], within: Path | None, progress: gr.Progress
    ) -> tuple[Any, ...]:
        self._access.check("teach")
        folder = self._storage.batch_folder()
        try:
            samples = intake.sources(paths, folder / "pictures", within, self._storage.make_room)
            if len(samples) > MOST:
                raise DataError(f"these are {len(samples)} pictures: give at most {MOST:,}")
            self._storage.make_room(sum(each.image.stat().st_size for each in samples.values()))
            files = _kept({name: each.image for name, each in samples.items()}, folder / "good")
        except DataError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return session, teach_board.sentence(f"{str(error)[:1].upper()}{str(error)[1:]}.", "warm"), ""
        found = examine(
            files, progress=lambda done, total: progress((done, total), desc="Looking at the pictures")
        )
        session.forget()
        session.offered, session.folder, session.lesson = found, folder, None
        session.left_out = {i for i, each in enumerate(found) if each.unusable}
        return session, *self._seen(session)

    def _seen(self, session: TeachSession) -> tuple[str, str]:
        out = len(session.left_out - {i for i, each in enumerate(session.offered) if each.unusable})
        says = in_words(session.offered) + (f" You left out {out} more." if out else "")
        kind = "" if len(session.used) >= FEWEST else "warm"
        return teach_board.sentence(says, kind), teach_board.offered(session.offered, session.left_out)

    def toggle(self, event: gr.EventData, session: TeachSession) -> tuple[Any, ...]:
        """Leaves a picture out, or takes it back."""
        number = event._data.get("offered") if isinstance(event._data, dict) else None
        if (
            type(number) is int
            and 0 <= number < len(session.offered)
            and not session.offered[number].unusable
        ):
            session.left_out ^= {number}
        return session, *self._seen(session)

    # Quick

    def teach(
        self,
        session: TeachSession,
        name: str | None,
        model: str,
        inspecting: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Learns the category; it can be chosen as soon as this returns. inspecting: Inspect's model."""
        self._access.check("teach")
        inspector = self._models[model]
        try:
            others = [each.name for each in self._taught.all() if each.network != inspector.network_id]
            name = check_name(name or "", [*self._models.own(model), *others])
            check_count(len(session.used))
            wanted = self._begin(session)
            turn = self._turns.of(f"teach {caller()}", wanted)
            lesson = teach(
                inspector, name, list(session.used.values()), turn=turn,
                progress=lambda done: progress(done, desc="Statistics of the good parts"),
            )  # fmt: skip
            self._taught.add(inspector, name, lesson.fitted, _learned_from(session, lesson), login())
            self._models.refresh()
            progress(0.99, desc="Artificial defects")
            made = self._examples(self._models[model], name, session, lesson, turn)
        except Unwanted:
            return self._refused(session, CANCELLED)
        except (DataError, WorkspaceError, OutputError) as error:
            return self._refused(session, f"{str(error)[:1].upper()}{str(error)[1:]}.")
        session.name, session.model, session.lesson = name, model, lesson
        session.made, session.changes, session.work = made, None, None
        return self._outcome(session, inspecting)

    @staticmethod
    def _examples(
        inspector: Inspector, name: str, session: TeachSession, lesson: Lesson, turn: Turn
    ) -> list[Example]:
        """Empty if it is cancelled by now; the category is there all the same."""
        try:
            return examples(inspector, name, list(session.used.values()), lesson.profile.bits, turn)
        except Unwanted:
            return []

    def teach_again(
        self,
        session: TeachSession,
        name: str | None,
        model: str,
        inspecting: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Leaves the unusual pictures out and learns the category anew."""
        if session.lesson is not None:
            numbers = session.lesson.unusual | session.lesson.left_out
            names = {session.lesson.names[i] for i in numbers}
            session.left_out |= {i for i, each in enumerate(session.offered) if each.path.name in names}
        return self.teach(session, session.name or name, session.model or model, inspecting, progress)

    def try_changes(
        self,
        session: TeachSession,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Judges changed good pictures, while the category can be used already."""
        lesson = session.lesson
        self._access.check("teach")
        if lesson is None or session.changes is not None:
            return session, gr.skip(), gr.skip()
        turn = self._turns.of(f"teach {caller()}", self._begin(session))
        try:
            changes = changes_borne(
                self._models[session.model], session.name, lesson.judged, turn=turn,
                progress=lambda done: progress(done, desc="Changes of light, noise, sharpness, position"),
            )  # fmt: skip
        except (Unwanted, ValueError):  # cancelled, or removed meanwhile
            return (
                session,
                teach_board.sentence(f"{session.name} was taught; changes were not tried."),
                gr.skip(),
            )
        session.changes, session.work = {**changes, "held_out": lesson.aside}, None
        return session, gr.skip(), self._expectations(session)

    def would_more_help(
        self,
        session: TeachSession,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        """Learns from half of the pictures and compares; nothing is kept."""
        self._access.check("teach")
        lesson = session.lesson
        if lesson is None or len(session.used) < 2 * FEWEST:
            return teach_board.sentence(f"Teach at least {2 * FEWEST} pictures first.", "warm")
        try:
            half = teach(
                self._models[session.model], "half", list(session.used.values())[::2],
                turn=self._turns.of(f"teach {caller()}", self._begin(session)),
                progress=lambda done: progress(done, desc="Statistics of half of the pictures"),
            )  # fmt: skip
        except (Unwanted, DataError) as error:
            return teach_board.sentence(str(error) or "Cancelled.", "warm")
        session.work = None
        few, all_ = half.profile.forecast, lesson.profile.forecast
        if not few.get("defects") or not all_.get("defects"):
            return teach_board.sentence("The pictures are too dark for artificial defects to show.", "warm")
        gain = all_["found"] - few["found"]
        advice = "more pictures will help" if gain > 0.05 else "more pictures would hardly help"
        return teach_board.sentence(
            f"With half of the pictures {few['found']:.0%} of the artificial defects are found, with all of "
            f"them {all_['found']:.0%}: {advice}."
        )

    def cancel(self, session: TeachSession) -> str:
        running, session.work = session.work is not None, None
        return teach_board.sentence("Cancelling…" if running else "Nothing is running.")

    def _begin(self, session: TeachSession) -> Callable[[], bool]:
        """A piece of work; returns whether it is still wanted."""
        work, waits = object(), still_waiting()
        session.work = work
        return lambda: session.work is work and waits()

    def _refused(self, session: TeachSession, says: str) -> tuple[Any, ...]:
        return session, teach_board.sentence(says, "warm"), *(gr.skip(),) * (3 + len(self._card.lists) + 1)

    def _outcome(self, session: TeachSession, inspecting: str) -> tuple[Any, ...]:
        lesson = session.lesson
        assert lesson is not None
        says = f"{session.name} can be chosen in Inspect now: try pictures of your own, good and defective."
        return (
            session, teach_board.sentence(says, "good"), self._expectations(session),
            gr.Button(visible=bool(lesson.unusual)), gr.Button(visible=len(session.used) >= 2 * FEWEST),
            *self._card.listed(session.name), gr.Dropdown(choices=categories(self._models[inspecting])),
        )  # fmt: skip

    def _expectations(self, session: TeachSession) -> str:
        assert session.lesson is not None
        inspector = self._models[session.model]
        return teach_board.expectations(
            session.name, session.lesson, inspector, session.made, session.changes
        )

    # Thorough

    def train(self, session: TeachSession, name: str | None, model: str, minutes: float) -> tuple[Any, ...]:
        """Begins a training in a process of its own."""
        self._access.check("teach")
        try:
            name = check_name(name or "", [])
            check_count(len(session.used))
            inspector = self._models[model]
            if inspector.file is None:
                raise WorkspaceError("this model has no file to start from: choose another one")
            base = str(inspector.file.absolute())
            request = Request(name, base, float(minutes), str(inspector.device), login())
            self._jobs.start(request, session.used)
        except (DataError, WorkspaceError, OutputError) as error:
            return teach_board.sentence(f"{str(error)[:1].upper()}{str(error)[1:]}.", "warm"), *self.live()[
                :-2
            ]
        says = f"{name} is being trained. It goes on if you close this page."
        return teach_board.sentence(says, "good"), *self.live()[:-2]

    def _wish(self, wish: str) -> Callable[[], tuple[Any, ...]]:
        def answer() -> tuple[Any, ...]:
            self._access.check("teach")
            try:
                if now := self._latest():
                    getattr(self._jobs, wish)(now.id, login())
            except (WorkspaceError, OutputError) as error:
                return teach_board.sentence(f"{error}.", "warm"), *self.live()[:-2]
            return gr.skip(), *self.live()[:-2]

        return answer

    def live(self) -> tuple[Any, ...]:
        """The newest training as it is now; a finished one becomes a model to choose."""
        if self._jobs.collect():
            self._models.refresh()
        now = self._latest()
        busy = now is not None and now.status in ("waiting", "running")
        waits = now is not None and now.status in ("paused", "interrupted")
        names = gr.Dropdown(choices=list(self._models), visible=len(self._models) > 1)
        return (
            teach_board.job(now), gr.Button(visible=busy), gr.Button(visible=waits),
            gr.Button(visible=busy or waits), gr.Timer(active=busy), names, names,
        )  # fmt: skip

    def _latest(self) -> Job | None:
        jobs = self._jobs.all()
        return jobs[0] if jobs else None


def _kept(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Copies of the files, which stay while the page is open, whatever becomes of the upload."""
    folder.mkdir(parents=True)
    kept = {}
    for number, (name, path) in enumerate(files.items()):
        kept[name] = folder / f"{number:05}-{path.name[-80:]}"
        shutil.copyfile(path, kept[name])
    return kept


def _learned_from(session: TeachSession, lesson: Lesson) -> dict[str, Path]:
    """The pictures that a lesson learned from, by the names that people know."""
    foreign = {lesson.names[i] for i in lesson.left_out}
    return {name: path for name, path in session.used.items() if path.name not in foreign}
