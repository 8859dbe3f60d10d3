"""What a login may do: inspect, or correct verdicts too, or teach and delete too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["inspect", "correct", "teach"]
ROLES: tuple[Role, ...] = ("inspect", "correct", "teach")  # each may do what those before it may
Action = Literal["inspect", "correct", "teach", "delete"]
_NEEDED: dict[str, Role] = {
    "inspect": "inspect", "correct": "correct", "teach": "teach", "delete": "teach",
}  # fmt: skip


@dataclass(frozen=True)
class Login:
    """Who may log in, and what for."""

    user: str
    password: str = field(repr=False)
    role: Role = "teach"


def logins(lines: str, source: str) -> list[Login]:
    """The logins of every line user:password or user/role:password; without a role: teach.

    Args:
        source: where the lines come from, for the error's message.

    Raises:
        ValueError: A line has another form, or an unknown role. The message never shows what may be a
            password.
    """
    found = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        name, colon, password = line.partition(":")
        user, slash, role = name.partition("/")
        if not (user and colon and password):
            raise ValueError(
                f"{source} contains a line that is not user:password or user/role:password: correct it"
            )
        if slash and role not in ROLES:
            raise ValueError(f"{source} gives {user} an unknown role: write {_choices(user)}")
        found.append(Login(user, password, next((each for each in ROLES if each == role), "teach")))
    return found


def may(role: Role, action: Action) -> bool:
    """Whether somebody in that role may do that. Raises ValueError for an unknown role or action."""
    if role not in ROLES or action not in _NEEDED:
        raise ValueError(f'there is no role "{role}" or no action "{action}"')
    return ROLES.index(role) >= ROLES.index(_NEEDED[action])


def _choices(user: str) -> str:
    *most, last = (f"{user}/{role}:…" for role in ROLES)
    return f"{', '.join(most)} or {last}"
