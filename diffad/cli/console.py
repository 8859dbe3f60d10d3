"""Output of the commands.

With --json, standard output is exactly one JSON document; everything else, such as progress, warnings and the
output of libraries, goes to stderr.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

_Item = TypeVar("_Item")


@contextlib.contextmanager
def document(as_json: bool) -> Iterator[Callable[..., None]]:
    """Yield put(value, text), which prints one of the two; with JSON nothing else goes to standard output."""
    out = sys.stdout

    def put(value: Any, text: str | None = None) -> None:
        if as_json:
            print(json_text(value), file=out, flush=True)
        elif text is not None:
            print(text, file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield put


def json_text(value: Any, indent: int | None = 2) -> str:
    from diffad import batch  # imports torch

    return batch.json_text(value, indent)


def tracked(items: Iterable[_Item], what: str, total: int | None = None) -> Iterable[_Item]:
    """The items, with a progress bar that disappears at the end."""
    from tqdm import tqdm

    bar: Iterable[_Item] = tqdm(items, desc=what, total=total, leave=False, disable=None)
    return bar


@contextlib.contextmanager
def counter(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield progress(done, total), which updates a progress bar."""
    from tqdm import tqdm

    with tqdm(desc=what, leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


@contextlib.contextmanager
def training_bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield progress(row) for `training.train`."""
    from tqdm import tqdm

    last_line = -math.inf
    with tqdm(total=1.0, disable=None, bar_format="{percentage:3.0f}%|{bar:30}| {postfix}") as bar:

        def progress(row: dict[str, Any]) -> None:
            nonlocal last_line
            left = "" if row["eta"] is None else f"  {row['eta'] / 60:.1f} min left"
            line = f"step {row['step']}  loss {row['loss']:.4f}{left}"
            if not bar.disable:
                bar.n = min(1.0, row["done"])
                bar.set_postfix_str(line)
            elif time.monotonic() - last_line > 30:  # not a terminal: a line now and then
                _print(line)
                last_line = time.monotonic()

        yield progress


def tell(line: str, keep_on: Any) -> None:
    """Print a line on standard output. keep_on: ignore a closed pipe, as files are still to be written."""
    try:
        _print(line, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        if not keep_on:
            raise
        leave_stdout()


def leave_stdout() -> None:
    """Discard further output after its reader has closed the pipe, as in `diffad inspect … | head -1`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
    """Print a message on stderr."""
    _print(f"diffad: {' '.join(message.split())}")


def _print(line: str, file: Any = None) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=file or sys.stderr)  # appears above a progress bar instead of breaking it
