"""Who may log in, and how long they wait who have been wrong."""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from collections.abc import Sequence
from contextvars import ContextVar

from fastapi import HTTPException

from diffad.ui import files

FREE = {"user": 3, "address": 10}  # wrong logins in a row before the next has to wait
LONGEST_WAIT = 60.0  # s; whoever is kept out by somebody else's guesses is not for long
FORGOTTEN = 3600.0  # s after the last wrong one
REMEMBERED = 4096  # users and addresses

address: ContextVar[str] = ContextVar("address", default="")  # whose request is being answered


class Logins:
    """Answers Gradio whether a user and password are right. Wrong ones slow down the next login of that user
    and from that address: a second, then twice as long each time.
    """

    def __init__(self, accounts: Sequence[tuple[str, str]]) -> None:
        self._passwords = dict(accounts)
        # How many in a row, and when the last was; what was added to longest ago comes first.
        self._wrong: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def __call__(self, user: str, password: str) -> bool:
        """Raises HTTPException 429 with a sentence, whatever the password, while they have to wait."""
        who = [("user", user[:200]), ("address", address.get())]
        wait = max(map(self._wait, who))
        if wait > 0:
            seconds = math.ceil(wait)
            said = f"There were too many wrong logins: wait {seconds} s, then try again."
            raise HTTPException(429, said, {"Retry-After": str(seconds)})
        expected = self._passwords.get(user, "")
        if hmac.compare_digest(password.encode(), expected.encode()) and expected:
            self._wrong.pop(who[0], None)
            return True
        for each in who:
            count, _ = self._wrong.pop(each, (0, 0.0))
            self._wrong[each] = count + 1, files.clock()
        while len(self._wrong) > REMEMBERED:
            self._wrong.popitem(last=False)
        return False

    def _wait(self, who: tuple[str, str]) -> float:
        """Seconds that are left, 0 or less if none."""
        count, last = self._wrong.get(who, (0, 0.0))
        passed = files.clock() - last
        if passed > FORGOTTEN:
            self._wrong.pop(who, None)
            return 0.0
        beyond = count - FREE[who[0]]
        return 0.0 if beyond < 0 else min(LONGEST_WAIT, 2.0 ** min(beyond, 10)) - passed
