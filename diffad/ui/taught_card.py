"""The list of taught categories on the Teach tab: renamed, removed, exported, corrected, painted on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
import torch

from diffad.inspector import Inspector
from diffad.output import OutputError
from diffad.pictures.arrays import U8
from diffad.pictures.geometry import to_uint8
from diffad.pictures.reading import DataError, read_image
from diffad.teaching.quick import learn
from diffad.ui import teach_board
from diffad.ui.access import Access, login
from diffad.ui.cards import plural
from diffad.ui.files import Storage
from diffad.ui.inspect_tab import InspectTab
from diffad.ui.models import Models
from diffad.ui.teach_layout import lay_out_taught
from diffad.ui.turns import Turns
from diffad.workspace.history import History
from diffad.workspace.queries import Filter
from diffad.workspace.record import Entry
from diffad.workspace.store import Workspace, WorkspaceError
from diffad.workspace.summary import Share, confusion
from diffad.workspace.taught import Taught

CARD: dict[str, Any] = {
    "concurrency_id": "taught", "concurrency_limit": 1, "trigger_mode": "once", "api_visibility": "private",
    "show_progress": "hidden",
}  # fmt: skip
_AVERAGED = 24  # good pictures in the mean
_REMEMBERED = 50  # corrected inspections that are judged again after a change
_LEARNED = 10  # pictures at once
_ENOUGH = 8  # corrections of each kind before anything is proposed
_CONFIRM = "(name) => confirm(`Remove ${name} with its statistics and good pictures?`) ? name : null"


class TaughtCard:
    """Creates the card inside the current `gr.Blocks` and connects it."""

    def __init__(
        self, models: Models, workspace: Workspace, storage: Storage, turns: Turns, access: Access,
        inspect: InspectTab,
    ) -> None:  # fmt: skip
        assert models.taught is not None
        self._models, self._storage, self._turns, self._access = models, storage, turns, access
        self._taught: Taught = models.taught
        self._history, self._inspect = History(workspace), inspect
        self.parts = lay_out_taught()
        p = self.parts
        self.lists = [p.list, p.chosen]
        self._connect()

    def _connect(self) -> None:
        p = self.parts
        said = [p.said, *self.lists]
        painting = [p.editor, p.mode, p.said]
        p.chosen.change(self.mean_part, p.chosen, painting, **CARD)
        p.rename.click(self._safely(self.rename), [p.chosen, p.new_name], said, **CARD)
        p.undo.click(self._safely(self.undo), p.chosen, said, **CARD)
        p.remove.click(self._safely(self.remove), p.chosen, said, js=_CONFIRM, **CARD)
        p.imported.upload(self._safely(self.import_file), p.imported, said, **CARD)
        p.learn.click(self._safely(self.learn), p.chosen, said, **(CARD | {"show_progress": "full"}))
        p.propose.click(self._safely(self.propose), p.chosen, said, **CARD)
        p.ignore.click(self._safely(self.ignore), [p.chosen, p.editor, p.mode], said, **CARD)
        p.clear.click(self._safely(self.clear), p.chosen, said, **CARD).success(
            self.mean_part, p.chosen, painting, **CARD
        )
        p.export.click(self.export, p.chosen, p.file, **CARD).success(
            None, p.file, None, js="(file) => diffad.save(file)"
        )

    def listed(self, chosen: str | None = None) -> tuple[str, Any]:
        """The table and the choices."""
        every = self._taught.all()
        names = [each.name for each in every]
        choices = gr.Dropdown(choices=names, value=chosen) if chosen in names else gr.Dropdown(choices=names)
        return teach_board.taught(every, self._taught.damaged()), choices

    def _safely(self, change: Callable[..., tuple[str, str | None]]) -> Callable[..., tuple[Any, ...]]:
        """A change by somebody who may; what it says, and the lists after it."""

        def answer(name: Any, *more: Any) -> tuple[Any, ...]:
            self._access.check("teach")
            if not name:
                return teach_board.sentence("Choose a category first."), *self.listed()
            try:
                says, chosen = change(name, *more)
            except (DataError, WorkspaceError, OutputError) as error:
                return teach_board.sentence(
                    f"{str(error)[:1].upper()}{str(error)[1:]}.", "warm"
                ), *self.listed(name)
            self._models.refresh()
            return teach_board.sentence(says, "good"), *self.listed(chosen)

        answer.__name__ = change.__name__
        return answer

    def rename(self, name: str, new: str | None) -> tuple[str, str | None]:
        taken = [own for model in self._models for own in self._models.own(model)]
        found = self._taught.rename(name, new or "", taken, login())
        return f"{name} is called {found.name} now.", found.name

    def undo(self, name: str) -> tuple[str, str | None]:
        self._taught.undo(name, login())
        return f"{name} is as it was before its last change.", name

    def remove(self, name: str) -> tuple[str, str | None]:
        self._taught.remove(name, login())
        return f"{name} was removed.", None

    def import_file(self, given: str) -> tuple[str, str | None]:
        taken = [own for model in self._models for own in self._models.own(model)]
        with self._storage.using([given]):
            found = self._taught.import_from(Path(given), taken, login())
        fits = any(each.network_id == found.network for each in self._models.values())
        hint = "" if fits else " It was taught to another model: start diffad with that one to use it."
        return f"{found.name} was imported.{hint}", found.name

    def export(self, name: str | None) -> str:
        """The category as a file to download."""
        self._access.check("teach")
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = self._taught.export(name or "", Path(folder) / f"{name}.zip")
                return self._storage.take_over(file)
        except (WorkspaceError, OutputError) as error:
            raise gr.Error(f"{str(error)[:1].upper()}{str(error)[1:]}.", print_exception=False) from None

    # Correct

    def learn(self, name: str) -> tuple[str, str | None]:
        """Learns the pictures that were corrected to good, and says what that changed."""
        category, inspector = self._taught.find(name), self._model_of(name)
        known = category.about.get("pictures", {})
        wrong, _ = self._history.find(Filter(category=name, correction="good"), limit=200)
        new = [each for each in wrong if each.sha256 not in known][:_LEARNED]
        if not new:
            return (
                "No picture of it that was corrected to good is left to learn: correct verdicts in Inspect.",
                name,
            )
        remembered = self._remembered(name)
        before = self._verdicts(inspector, name, remembered)
        turn, fitted = self._turns.of_caller(), self._taught.fitted(name)
        for entry in new:
            fitted = learn(inspector, name, fitted, self._history.picture_path(entry), turn)
        pictures = [(each.picture, self._history.picture_path(each)) for each in new]
        learned = [each.picture for each in new]
        self._taught.change(name, fitted.profile, login(), "learn", fitted, pictures, learned=learned)
        self._models.refresh()
        model = self._model_of(name)
        scores = [
            (each.score, model.inspect(self._history.picture_path(each), name, turn=turn).score)
            for each in new
        ]
        after = self._verdicts(model, name, remembered)
        thresholds = inspector.threshold(name), model.threshold(name)
        return _learned_in_words(new, scores, thresholds, remembered, before, after), name

    def propose(self, name: str) -> tuple[str, str | None]:
        """What the corrections say of the threshold; nothing is changed."""
        labelled = self._remembered(name, 400)
        counts = confusion((each.verdict, each.correction) for each in labelled)
        bad = [each.score for each in labelled if each.is_defective]
        good = [each.score for each in labelled if each.is_defective is False]
        if min(len(bad), len(good)) < _ENOUGH:
            return (
                f"{plural(len(good), 'good picture')} and {plural(len(bad), 'defective one')} of {name} are "
                "labelled: "
                f"with {_ENOUGH} of each a threshold can be proposed.", name,
            )  # fmt: skip
        threshold, wrong = _best_threshold(np.array(good), np.array(bad))
        now = self._model_of(name).threshold(name)
        return (
            f"Of {len(labelled)} labelled pictures: precision {_share(counts.precision)}, recall "
            f"{_share(counts.recall)}. A threshold of {threshold:.2f} (now {now:.2f}) would have judged "
            f"{wrong} of {len(good) + len(bad)} wrong, each judged by one found without it. Nothing was "
            "changed: set it with the slider.", name,
        )  # fmt: skip

    def _remembered(self, name: str, most: int = _REMEMBERED) -> list[Entry]:
        said = Filter(category=name, correction=("right", "good", "defective"))
        found, _ = self._history.find(said, limit=most)
        return [each for each in found if each.is_defective is not None]

    def _verdicts(self, inspector: Inspector, name: str, entries: Sequence[Entry]) -> list[bool]:
        turn = self._turns.of_caller()
        paths = [self._history.picture_path(each) for each in entries]
        return [inspector.inspect(path, name, turn=turn).is_anomalous for path in paths]

    def _model_of(self, name: str) -> Inspector:
        network = self._taught.find(name).network
        for inspector in self._models.values():
            if inspector.network_id == network and name in inspector.categories:
                return inspector
        raise WorkspaceError(f"the model that {name} was taught to is not loaded: start diffad with it")

    # Ignore and attend

    def mean_part(self, name: str | None) -> tuple[Any, Any, Any]:
        """The mean of the good pictures as the model sees them, painted where nothing is judged."""
        if not name:
            return gr.ImageEditor(value=None, visible=False), gr.skip(), gr.skip()
        self._access.check("teach")
        try:
            category, inspector = self._taught.find(name), self._model_of(name)
            pictures = list(category.pictures.values())[:_AVERAGED]
            mean = _mean_square(inspector, name, pictures)
        except (WorkspaceError, DataError, IndexError, OSError) as error:
            says = teach_board.sentence(f"{error}.", "warm")
            return gr.ImageEditor(value=None, visible=False), gr.skip(), says
        profile = inspector.profiles[name]
        layers = []
        if profile.ignored is not None:
            square = profile.ignored.cpu().numpy().astype(np.uint8)
            where = cv2.resize(square, mean.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
            layer = np.zeros((*mean.shape[:2], 4), np.uint8)
            layer[where] = (209, 43, 106, 255)
            layers = [layer]
        value: Any = {"background": mean, "layers": layers, "composite": None}
        return gr.ImageEditor(value=value, visible=True), "ignore", gr.skip()

    def ignore(self, name: str, painted: Any, mode: str) -> tuple[str, str | None]:
        """Keeps what was painted on the mean part."""
        layers = painted.get("layers") if isinstance(painted, dict) else None
        if not layers:
            raise DataError("paint on the mean part first")
        marked = np.any([np.asarray(layer)[..., -1] > 127 for layer in layers], axis=0)
        size = self._taught.load(name).profile.size or 256
        marked = cv2.resize(marked.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST) > 0
        ignored = torch.from_numpy(~marked if mode == "attend" and marked.any() else marked)
        self._taught.ignore(name, ignored, login())
        return f"{float(ignored.float().mean()):.0%} of {name} is not judged now.", name

    def clear(self, name: str) -> tuple[str, str | None]:
        self._taught.ignore(name, None, login())
        return f"All of {name} is judged.", name


def _mean_square(inspector: Inspector, name: str, paths: Sequence[Path]) -> U8:
    """Mean of good pictures in the model's square, upright: uint8 [s, s, 3]."""
    squares = []
    for path in paths:
        image = read_image(path, inspector.bits(name, None))
        tiling = inspector.whole(image, name)
        squares.append(to_uint8(tiling.square(image, tiling.tiles[0])).permute(1, 2, 0).numpy())
    mean: U8 = np.mean(squares, axis=0).round().astype(np.uint8)
    return mean


def _share(share: Share) -> str:
    known = "unknown" if share.value is None else f"{share.value:.0%}"
    return f"{known} ({share.low:.0%} to {share.high:.0%})"


def _best_threshold(good: np.ndarray, bad: np.ndarray) -> tuple[float, int]:
    """The threshold with the fewest wrong verdicts, and how many are wrong, each judged without itself."""

    def fit(good: np.ndarray, bad: np.ndarray) -> float:
        every = np.sort(np.concatenate([good, bad]))
        between = np.concatenate([[every[0] - 1], (every[1:] + every[:-1]) / 2, [every[-1] + 1]])
        wrong = [(good > each).sum() + (bad <= each).sum() for each in between]
        return float(between[int(np.argmin(wrong))])

    wrong = sum(score > fit(np.delete(good, i), bad) for i, score in enumerate(good))
    wrong += sum(score <= fit(good, np.delete(bad, i)) for i, score in enumerate(bad))
    return fit(good, bad), int(wrong)


def _learned_in_words(
    new: Sequence[Entry], scores: Sequence[tuple[float, float]], thresholds: tuple[float, float],
    remembered: Sequence[Entry], before: Sequence[bool], after: Sequence[bool],
) -> str:  # fmt: skip
    bad = [i for i, each in enumerate(remembered) if each.is_defective]
    back = [
        each.picture
        for each, was, now in zip(remembered, before, after, strict=True)
        if was == bool(each.is_defective) != now
    ]
    told = "; ".join(
        f"{each.picture} {was:.2f} → {now:.2f}" for each, (was, now) in zip(new[:3], scores, strict=False)
    )
    words = (
        f"{plural(len(new), 'picture')} learned: score of {told}{' …' if len(new) > 3 else ''}; "
        f"threshold {thresholds[0]:.2f} → {thresholds[1]:.2f}. "
        f"Of {plural(len(bad), 'remembered defect')} {sum(before[i] for i in bad)} were found before, "
        f"{sum(after[i] for i in bad)} are now."
    )
    if back:
        words += f" Judged wrong again: {', '.join(back[:5])}. Undo takes back what was learned."
    return words
