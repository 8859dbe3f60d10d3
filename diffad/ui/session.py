"""The state of one open page, and the meaning of its controls' values."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
import numpy as np

from diffad.pictures.drawing import COLORMAPS
from diffad.ui.layout import AUTO

if TYPE_CHECKING:
    from diffad.inspection import Inspection
    from diffad.inspector import Inspector
    from diffad.ui.downloads import Film


@dataclass(frozen=True)
class Origin:
    """An inspection in the history whose picture is opened again."""

    kept: Future[int]  # its id
    model: str
    asked: Mapping[str, Any]  # see `keeping.asked_of`


class Opened(NamedTuple):
    """A picture to inspect.

    Attributes:
        path: of the picture.
        batch_bits: of the batch that it belongs to.
        origin: where it was inspected before.
    """

    path: str
    batch_bits: int | None = None
    origin: Origin | None = None


@dataclass(frozen=True)
class Request:
    """A request to inspect a picture."""

    turn: int  # number of the request, from the browser
    path: str | None  # None: the picture was removed
    settings: tuple[Any, ...]  # values of `Components.settings`
    batch_bits: int | None = None  # of the batch that the picture was opened from
    origin: Origin | None = None


@dataclass(frozen=True)
class Shown:
    """The result that the page shows. Later settings are only in the browser."""

    raw: Inspection
    model: str
    inspector: Inspector  # that judged it: the model may forget or change the category meanwhile
    request: Request
    kept: Future[int] | None = None  # its id in the history; None if it is not to be kept

    @property
    def name(self) -> str:
        """The picture's file name without its suffix."""
        return Path(self.request.path or "").stem

    def chosen(self, choices: Mapping[str, Any]) -> Inspection:
        """The inspection as the browser shows it, without running the network.

        Args:
            choices: the result of `diffad.choices()` in page.js.
        """
        return self.raw.fused(
            choices["alpha"],
            choices["timesteps"],
            threshold=choices["threshold"],
            look_threshold=choices["look"],
        )


@dataclass
class Session:
    """The state of one open page, shared by its event handlers."""

    asked: Request | None = None  # the newest request
    answered: Request | None = None  # the newest request that was answered or cancelled
    shown: Shown | None = None
    film: Film | None = None  # the newest repair, which ends when this is replaced

    def __post_init__(self) -> None:
        self.answering = threading.Lock()  # requests are answered one at a time

    def __deepcopy__(self, memo: Any) -> Session:
        """Gradio copies the initial state for every page, and a lock cannot be copied."""
        return Session()

    @property
    def picture(self) -> str | None:
        """The path of the last requested picture."""
        return None if self.asked is None else self.asked.path

    def ask(
        self, turn: Any, path: str | None, settings: tuple[Any, ...], batch_bits: int | None = None,
        origin: Origin | None = None,
    ) -> None:  # fmt: skip
        """Records a request unless a newer one arrived first. A running repair ends by itself."""
        if type(turn) not in (int, float) or not 0 <= turn < 1e15:
            raise misunderstood("turn is a number")
        if self.asked is None or turn > self.asked.turn:
            self.asked, self.film = Request(int(turn), path, settings, batch_bits, origin), None

    def wants(self, request: Request) -> bool:
        """Whether this request is the newest one and not yet answered."""
        return request is self.asked and request is not self.answered

    def cancel(self) -> None:
        """Cancels the newest request."""
        self.answered = self.asked

    def stop_repair(self) -> None:
        """Ends a running repair after its current step; the repair itself reports its end."""
        if self.film is not None:
            self.film.ending = self.film.ending or "stopped"

    def shown_for(self, choices: Any) -> Shown:
        """The result that these settings from the browser belong to.

        Raises:
            gr.Error: The browser does not show the newest result yet.
        """
        check_choices(choices)
        if self.shown is None or self.shown.request.turn != choices["turn"]:
            raise gr.Error("The picture has just changed: please press again.", print_exception=False)
        return self.shown


def misunderstood(why: str) -> gr.Error:
    """The error for an event that this page never sends."""
    return gr.Error(f"This request cannot be understood ({why}): reload the page.", print_exception=False)


def check_choices(choices: Any) -> None:
    """Raises `misunderstood` unless the settings have the form of `diffad.choices()` in page.js."""

    def number(name: str, low: float, high: float) -> bool:
        value = choices.get(name)
        return type(value) in (int, float) and low <= value <= high

    timesteps = choices.get("timesteps") if isinstance(choices, dict) else None
    if not (
        isinstance(timesteps, list)
        and all(type(t) is int for t in timesteps)
        and all(number(name, 0, 1) for name in ("alpha", "opacity", "rate"))
        and all(choices.get(limit) is None or number(limit, -1e9, 1e9) for limit in ("threshold", "look"))
        and choices.get("colormap") in COLORMAPS
        and "own" in choices
        and "turn" in choices
    ):
        raise misunderstood("choices")


def arguments(
    inspector: Inspector, category: str, alpha: float, lowest: float, highest: float, count: float,
    draws: float, tile: str,
) -> dict[str, Any]:  # fmt: skip
    """The controls' values as arguments of `Inspector.inspect`."""
    return {
        # The inspector does not know AUTO, nor categories of the model used before.
        "category": category if category in inspector.categories else None,
        "alpha": alpha,
        "draws": int(draws),
        "timesteps": spread(lowest, highest, count, inspector.timesteps),
        **({} if tile == AUTO else {"tile": None if tile == "whole" else int(tile)}),
    }


def spread(low: float, high: float, count: float, usual: tuple[int, ...]) -> tuple[int, ...]:
    """`count` timesteps evenly spread over a range, or `usual` if range and count match."""
    low, high = sorted((int(low), int(high)))
    if (low, high, count) == (usual[0], usual[-1], len(usual)):
        return usual
    return tuple(sorted({round(float(t)) for t in np.linspace(low, high, int(count))}))
