"""What the commands print. With --json, standard output is exactly one JSON document; progress, warnings and
what libraries print go to stderr.
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
    """Yields put(value, text), which prints one of them; as JSON nothing else reaches standard output."""
    out = sys.stdout

    def put(value: Any, text: str | None = None) -> None:
        if as_json:
            print(json_text(value), file=out, flush=True)
        elif text is not None:
            print(text, file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield put


def json_text(value: Any, indent: int | None = 2) -> str:
    from diffad import batch  # brings torch

    return batch.json_text(value, indent)


def tracked(items: Iterable[_Item], what: str, total: int | None = None) -> Iterable[_Item]:
    """The items, with a bar that goes when they end."""
    from tqdm import tqdm

    bar: Iterable[_Item] = tqdm(items, desc=what, total=total, leave=False, disable=None)
    return bar


@contextlib.contextmanager
def counter(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields progress(done, total), which moves a bar."""
    from tqdm import tqdm

    with tqdm(desc=what, leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


@contextlib.contextmanager
def training_bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields progress(row) for `training.train`."""
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
            elif time.monotonic() - last_line > 30:  # into a log: now and then a line
                _print(line)
                last_line = time.monotonic()

        yield progress


def tell(line: str, keep_on: Any) -> None:
    """Print a line on standard output. keep_on: ignore a closed pipe, since files are still being written."""
    try:
        _print(line, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        if not keep_on:
            raise
        leave_stdout()


def leave_stdout() -> None:
    """Print into the void: the reader of our output has left, as in `diffad inspect … | head -1`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
    """A line on stderr."""
    _print(f"diffad: {' '.join(message.split())}")


def _print(line: str, file: Any = None) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=file or sys.stderr)  # goes above a progress bar instead of through it
