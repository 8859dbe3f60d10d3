"""What people did: corrections, teaching, deletions, roles. Nothing is ever taken back from this list."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from time import time as now
from typing import Any

from diffad.workspace.record import plain_text


@dataclass(frozen=True)
class Event:
    """Something that was done.

    Attributes:
        time: UTC, s since 1970.
        who: the login's name; empty without logins, and of what the program did by itself.
        action: "correct", "undo", "delete", "limit", or another part's own word.
        subject: what it was done to; of an inspection its id.
        detail: what there is to know; of a correction the values `before` and `after`.
    """

    id: int
    time: float
    who: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def add(db: sqlite3.Connection, who: str, action: str, subject: str | int, detail: Mapping[str, Any]) -> None:
    """Adds an event to the transaction."""
    values = (now(), plain_text(who), action, plain_text(str(subject)), json.dumps(detail))
    db.execute("INSERT INTO events (time, who, action, subject, detail) VALUES (?, ?, ?, ?, ?)", values)


def find(
    db: sqlite3.Connection, subject: str | int | None = None, actions: tuple[str, ...] = (), limit: int = 100
) -> list[Event]:
    """The latest events first. subject, actions: None or empty for any. limit: −1 for all."""
    conditions, values = ["1"], []
    if subject is not None:
        conditions.append("subject = ?")
        values.append(str(subject))
    if actions:
        conditions.append(f"action IN ({', '.join('?' * len(actions))})")
        values += actions
    rows = db.execute(
        f"SELECT id, time, who, action, subject, detail FROM events WHERE {' AND '.join(conditions)} "
        "ORDER BY id DESC LIMIT ?",
        [*values, limit],
    )
    return [
        Event(id, time, who, action, about, json.loads(detail))
        for id, time, who, action, about, detail in rows
    ]
