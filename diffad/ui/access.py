"""What whoever sent the present event may do."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr
from gradio.context import LocalContext

from diffad.ui import logins
from diffad.workspace.roles import Action, Login, Role, may

_FORBIDDEN: dict[str, str] = {
    "correct": "Your login may not correct verdicts: ask whoever gave it to you.",
    "teach": "Your login may not teach: ask whoever gave it to you.",
    "delete": "Your login may not delete inspections: ask whoever gave it to you.",
}


class Access:
    """Everybody's role. Without logins everybody may do everything."""

    def __init__(self, accounts: Sequence[Login] = ()) -> None:
        self._roles: dict[str, Role] = {each.user: each.role for each in accounts}

    def may(self, action: Action) -> bool:
        """Whether the sender of the present event may do that."""
        return not self._roles or may(self._roles.get(login(), "inspect"), action)

    def check(self, action: Action) -> None:
        """Raises gr.Error with a sentence unless the sender may do that."""
        if not self.may(action):
            raise gr.Error(_FORBIDDEN[action], print_exception=False)


def login() -> str:
    """The login's name of the present event's sender; empty without logins.

    An event has it in Gradio's request. What a script asks directly comes with a plain request, and the name
    from the gate.
    """
    request = LocalContext.request.get(None)
    name = request.username if isinstance(request, gr.Request) else logins.person.get()
    return name or ""
