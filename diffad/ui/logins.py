"""Who may log in. Wrong passwords slow down further attempts."""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from collections.abc import Sequence
from contextvars import ContextVar

from fastapi import HTTPException

from diffad.ui import files

FREE = {"user": 3, "address": 10}  # consecutive wrong logins without a wait
LONGEST_WAIT = 60.0  # s; short, because somebody else's guesses lock out the real user too
FORGOTTEN = 3600.0  # s after the last wrong login
REMEMBERED = 4096  # users and addresses

address: ContextVar[str] = ContextVar("address", default="")  # of the request being answered
person: ContextVar[str] = ContextVar("person", default="")  # logged in, who sent it; empty if nobody is


class Logins:
    """Checks users and passwords for Gradio.

    After a few wrong logins of one user or from one address, the next one has to wait a second, then twice as
    long each time.
    """

    def __init__(self, accounts: Sequence[tuple[str, str]]) -> None:
        self._passwords = dict(accounts)
        # Wrong logins in a row and the time of the last one, by ("user" or "address", name); oldest first.
        self._wrong: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def __call__(self, user: str, password: str) -> bool:
        """Whether the login is correct.

        Raises:
            HTTPException: 429 with a sentence if the login has to wait, even if it is correct.
        """
        who = [("user", user[:200]), ("address", address.get())]
        wait = max(map(self._wait, who))
        if wait > 0:
            seconds = math.ceil(wait)
            message = f"There were too many wrong logins: wait {seconds} s, then try again."
            raise HTTPException(429, message, {"Retry-After": str(seconds)})
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
        """Remaining seconds; 0 or less if there is no wait."""
        count, last = self._wrong.get(who, (0, 0.0))
        passed = files.clock() - last
        if passed > FORGOTTEN:
            self._wrong.pop(who, None)
            return 0.0
        beyond = count - FREE[who[0]]
        return 0.0 if beyond < 0 else min(LONGEST_WAIT, 2.0 ** min(beyond, 10)) - passed
