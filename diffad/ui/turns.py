"""Whose turn it is: everybody at the page and the endpoints shares the network, one call of it after another.

A turn lasts for a handful of tiles, a small picture or a step of a repair. So the largest picture of somebody
else costs a small one no more than one such call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from diffad.inspector import Turn

AT_ONCE = 16  # calls of an endpoint, or of the page, in hand; further ones wait until one of these is done


class Unwanted(Exception):
    """Ends work that nobody waits for any more."""


class Turns:
    """A fair turn: people come one after the other, however much each of them wants, and each one's requests
    in the order in which they ask.
    """

    def __init__(self, max_tiles: int | None = None) -> None:
        """max_tiles: of one inspection, see `Inspector.inspect`."""
        self.max_tiles = max_tiles
        self._changed = threading.Condition()
        self._held = False
        self._waiting: dict[str, deque[object]] = {}  # by person, who comes first is next

    def of(self, person: str, wanted: Callable[[], bool] = lambda: True) -> Turn:
        """The turn of one piece of a person's work; raises Unwanted instead if it is wanted no more."""
        return partial(self._turn, person, wanted)

    def of_caller(self) -> Turn:
        """The turn of the event that is being answered: unwanted once its caller has cancelled or gone."""
        return self.of(caller(), still_waiting())

    @contextmanager
    def _turn(self, person: str, wanted: Callable[[], bool]) -> Iterator[None]:
        if not wanted():
            raise Unwanted
        request = object()
        with self._changed:
            self._waiting.setdefault(person, deque()).append(request)
            self._changed.wait_for(lambda: self._is_next(person, request))
            self._held = True
            others = self._waiting.pop(person)
            others.popleft()
            if others:  # behind everybody else
                self._waiting[person] = others
        try:
            if not wanted():  # it may have been a long wait
                raise Unwanted
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()

    def _is_next(self, person: str, request: object) -> bool:
        return not self._held and next(iter(self._waiting)) == person and self._waiting[person][0] is request


def caller() -> str:
    """Who sent the event that is being answered: the login's name, else the address."""
    request = LocalContext.request.get(None)
    client = getattr(request, "client", None)
    return getattr(request, "username", None) or getattr(client, "host", None) or ""


def give_up(blocks: gr.Blocks, number: str, session: Any) -> None:
    """From now on nobody waits for the event of that number, if it is that session's."""
    event = blocks._queue.event_ids_to_events.get(number)
    if event is not None and event.session_hash == session:
        event.alive = False


def still_waiting() -> Callable[[], bool]:
    """Whether the caller of the event that is being answered still waits; may be asked in any thread."""
    blocks, number = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or number is None:  # not through the queue, which alone can tell
        return lambda: True
    known = blocks._queue.event_ids_to_events

    def waiting() -> bool:
        event = known.get(number)
        return event is not None and event.alive

    return waiting
