"""Fair sharing of the network among all users of the page and the endpoints, one call at a time.

A turn lasts for a few tiles, a small picture or a step of a repair, so a small picture never waits for all of
somebody else's large one.
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

from diffad.recognition import Turn

AT_ONCE = 16  # concurrent calls of one kind (an endpoint, or the page); others wait in the queue


class Unwanted(Exception):
    """Raised to end work that nobody waits for any more."""


class Turns:
    """Users take turns, regardless of how much each requests. One user's requests keep their order."""

    def __init__(self, max_tiles: int | None = None) -> None:
        """max_tiles: the most tiles of one inspection, see `Inspector.inspect`."""
        self.max_tiles = max_tiles
        self._changed = threading.Condition()
        self._held = False
        self._waiting: dict[str, deque[object]] = {}  # by person; the first one is next

    def of(self, person: str, wanted: Callable[[], bool] = lambda: True) -> Turn:
        """The turn for one task of a person. Entering it raises Unwanted unless `wanted()`."""
        return partial(self._turn, person, wanted)

    def of_caller(self) -> Turn:
        """The turn for the current event, which is unwanted if its caller has cancelled or left."""
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
            if others:  # the person queues again behind everybody else
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
    """The sender of the current event: the user's name, otherwise the address."""
    request = LocalContext.request.get(None)
    client = getattr(request, "client", None)
    return getattr(request, "username", None) or getattr(client, "host", None) or ""


def give_up(blocks: gr.Blocks, number: str, session: Any) -> None:
    """Marks an event as unwanted, if it belongs to the session."""
    event = blocks._queue.event_ids_to_events.get(number)
    if event is not None and event.session_hash == session:
        event.alive = False


def still_waiting() -> Callable[[], bool]:
    """A function, usable in any thread, that tells whether the current event's caller still waits."""
    blocks, number = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or number is None:  # only the queue can tell
        return lambda: True
    known = blocks._queue.event_ids_to_events

    def waiting() -> bool:
        event = known.get(number)
        return event is not None and event.alive

    return waiting
