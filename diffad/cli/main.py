"""The command line `diffad`. Each group of commands has a file beside this one, with its parsers."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence

from diffad import __version__
from diffad.cli import inspecting, measuring, serving, teaching, timing, workspace
from diffad.cli.common import FINISHED, INTERRUPTED, REFUSED, Refused
from diffad.cli.console import leave_stdout, say
from diffad.cli.options import Parser
from diffad.output import OutputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (`options.EXIT_CODES`); expected errors print one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # so that unprintable names do not stop the run
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
        with _terminated_like_interrupted():
            code: int = arguments.run(arguments)
            return code
    except SystemExit as stop:  # argparse: --help, --version or a wrong option
        return stop.code if isinstance(stop.code, int) else REFUSED
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        leave_stdout()
        return FINISHED
    except (Refused, OutputError) as error:
        say(str(error))
        return REFUSED
    except OSError as error:
        say(f"{error.filename or 'the system'}: {error.strerror or error}")
        return REFUSED
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        say("there is not enough memory: use smaller pictures, or a smaller --batch or --size")
        return REFUSED
    except ValueError as error:
        from diffad.checkpoint import CheckpointError
        from diffad.pictures.reading import DataError

        if not isinstance(error, (CheckpointError, DataError)):
            raise
        say(str(error))
        return REFUSED


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether it is a MemoryError, or torch's RuntimeError for the same on a CPU."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or ("memory" in message and "allocate" in message)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt like Ctrl+C, so that results so far are written and a training can
    be resumed.
    """
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="diffad", description="Finds, shows and repairs defects in pictures of parts.")
    parser.add_argument("--version", action="version", version=f"diffad {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, parser_class=Parser)
    for add in (
        teaching.add_train, inspecting.add_inspect, inspecting.add_repair, measuring.add_evaluate,
        measuring.add_ablate, measuring.add_compare, measuring.add_stress, timing.add_benchmark,
        teaching.add_samples, workspace.add_workspace, workspace.add_mask, serving.add_serve,
    ):  # fmt: skip
        add(commands)
    return parser
