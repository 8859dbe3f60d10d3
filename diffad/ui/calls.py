"""Checks calls before Gradio handles them: their form, and whether the caller may use the files they name.

A call that fails a check is answered with one sentence.
"""

from __future__ import annotations

import math
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import gradio as gr

from diffad.pictures.reading import DataError
from diffad.ui.files import Storage
from diffad.ui.turns import Unwanted, give_up

FILE_FORM = '{"path": …, "meta": {"_type": "gradio.FileData"}}'
# The address of an upload or a result; the path on this server follows "file=".
OWN_ADDRESS = re.compile(r"https?://[^/]+(?:/.*)?/gradio_api/file=(?P<path>[^?]+).*")
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)
FAILED = "The server could not do this; its log says why."


class Refusal(Exception):
    """Makes the server answer a request with an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def check(blocks: gr.Blocks, route: str, sent: dict[str, Any]) -> None:
    """Checks that a call names something that exists and has all its inputs.

    Args:
        blocks: the page and its endpoints.
        route: of Gradio's API, to which the call was posted.
        sent: the call's JSON.

    Raises:
        Refusal: The call is malformed, or names something that does not exist.
    """
    if route == "component_server":
        _check_component(blocks, sent)
    elif route.startswith("call/v2/"):
        fn = _endpoint(blocks, route.removeprefix("call/v2/"))
        names = [str(each.label) for each in fn.inputs]
        if extra := [name for name in sent if name not in names]:
            raise Refusal(400, f"{extra[0][:40]!r} is not an input; there are: {', '.join(names)}.")
        needed = [str(each.label) for each in fn.inputs if each.value is None]
        if missing := [name for name in needed if name not in sent]:
            raise Refusal(400, f"{missing[0]} is missing.")
        _check_inputs(fn.inputs, [sent.get(name) for name in names])
    elif route == "queue/join" or route.startswith(("call/", "run/", "api/")):
        _check_call(blocks, route, sent)
    elif route == "cancel":  # without this, Gradio would wait until the work is done
        give_up(blocks, str(sent.get("event_id")), sent.get("session_hash"))


def bring_in(sent: Any, storage: Storage, person: str | None) -> bool:
    """Checks the files that a call names, and replaces addresses of files on this server by their paths.

    Args:
        sent: the call's JSON, which is changed in place.
        storage: where files are.
        person: who calls; None may use every file.

    Returns:
        Whether anything was replaced.

    Raises:
        Refusal: The person may not use a file, or an address is on another server.
    """
    changed = False
    for file in _files_named(sent):
        if own := OWN_ADDRESS.fullmatch(file["path"]):
            file["path"], changed = unquote(own["path"]), True
        if storage.find(file["path"], person) is None:
            if ADDRESS.match(file["path"]):
                raise Refusal(400, "No address is fetched here: upload the file and give its path.")
            raise Refusal(400, "This file was not uploaded here, or is no longer here: upload it first.")
        if file.get("is_stream"):
            raise Refusal(400, "A stream is not taken: upload the file and give its path.")
    return changed


def guard(app: gr.Blocks) -> None:
    """Makes an app answer failed events with one sentence; details of internal errors are only logged."""
    read, process = app.preprocess_data, app.process_api

    async def preprocess_data(*given: Any, **more: Any) -> list[Any]:
        try:
            inputs: list[Any] = await read(*given, **more)
            return inputs
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:  # one of our own sentences
                raise
            print(f"diffad: a call with invalid inputs ({type(error).__name__})", file=sys.stderr)
            message = "An input of this call is not valid: see “Use via API” on the page, or reload the page."
            raise gr.Error(message, print_exception=False) from None

    async def process_api(*given: Any, **more: Any) -> dict[str, Any]:
        try:
            return await process(*given, **more)
        except gr.Error:
            raise
        except Unwanted:
            raise gr.Error("Cancelled.", print_exception=False) from None
        except DataError as error:
            raise gr.Error(as_sentence(error), print_exception=False) from None
        except Exception:
            traceback.print_exc()
            raise gr.Error(FAILED, print_exception=False) from None

    app.preprocess_data = preprocess_data  # type: ignore[method-assign]  # Gradio has no hook for this
    app.process_api = process_api  # type: ignore[method-assign]


def as_sentence(error: Exception) -> str:
    """The error's message with a capital and a full stop."""
    message = str(error)
    return f"{message[:1].upper()}{message[1:]}."


def _check_call(blocks: gr.Blocks, route: str, sent: dict[str, Any]) -> None:
    data, number = sent.get("data"), sent.get("fn_index")
    if not isinstance(data, list):
        raise Refusal(400, "data is missing: a list of the inputs.")
    if route.startswith("call/") or (number is None and route != "queue/join"):
        fn = _endpoint(blocks, route.partition("/")[2])
        if len(data) != len(fn.inputs):
            names = ", ".join(str(each.label) for each in fn.inputs)
            raise Refusal(400, f"data holds {len(data)} values instead of {len(fn.inputs)}: {names}.")
    else:  # an event of the page, which may send more than is needed
        fn = blocks.fns.get(number) if type(number) is int else None
        if fn is None or fn.fn is None or len(data) < len(fn.inputs):
            raise Refusal(400, "The page has no such event: reload it.")
        if route == "queue/join" and not isinstance(sent.get("session_hash"), str):
            raise Refusal(400, "session_hash is missing.")
    _check_inputs(fn.inputs, data)


def _endpoint(blocks: gr.Blocks, name: str) -> Any:
    public = {fn.api_name: fn for fn in blocks.fns.values() if fn.api_name and fn.api_visibility == "public"}
    if name not in public:
        raise Refusal(400, f"There is no endpoint {name[:40]!r} here; there are: {', '.join(public)}.")
    return public[name]


def _check_component(blocks: gr.Blocks, sent: dict[str, Any]) -> None:
    number, name = sent.get("component_id"), sent.get("fn_name")
    block = blocks.blocks.get(number) if type(number) is int else None
    known = block is not None and isinstance(name, str) and hasattr(block, name)
    if not known or not isinstance(sent.get("session_hash"), str) or "data" not in sent:
        raise Refusal(400, "The page has nothing that answers this: reload it.")


def _check_inputs(components: Sequence[Any], values: Sequence[Any]) -> None:
    for component, value in zip(components, values, strict=False):
        name = component.label or "This"
        several = value if isinstance(value, list) else [value]
        if isinstance(component, gr.Image) and not (value is None or _is_file(value)):
            raise Refusal(400, f"{name} is a file: upload it and give {FILE_FORM}.")
        if isinstance(component, gr.File) and not (value is None or all(map(_is_file, several))):
            raise Refusal(400, f"{name} are files: upload them and give a list of {FILE_FORM}.")
        if isinstance(component, gr.Textbox) and not (value is None or isinstance(value, str)):
            raise Refusal(400, f"{name} is a text.")
        if isinstance(component, gr.Slider) and not (type(value) in (int, float) and math.isfinite(value)):
            raise Refusal(400, f"{name} is a number.")
        if isinstance(component, gr.Dropdown) and not isinstance(value, str | int | float):
            if value is not None or component.value is not None:
                raise Refusal(400, f"{name} is one of its choices.")


def _is_file(value: Any) -> bool:
    meta = value.get("meta") if isinstance(value, dict) else None
    named = isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"
    return named and isinstance(value.get("path"), str) and bool(value["path"])


def _files_named(sent: Any) -> Iterator[dict[str, Any]]:
    """Every object inside the JSON that Gradio might take for a file."""
    remaining = [sent]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value
            remaining.extend(value.values())
        elif isinstance(value, list):
            remaining.extend(value)
