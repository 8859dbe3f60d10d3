"""Files in and out of the page: uploads as they were sent, and what is made while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache


def picture_upload(**settings: Any) -> gr.Image:
    """An image component whose value is the path of the uploaded file itself.

    `gr.Image` opens and converts an upload before the event sees it: 16 bits become 8, and a file that is no
    picture ends in a stack trace. Here `data.read_image` meets the file. (Overridden on the instance, because
    Gradio writes a .pyi into the package for every subclass. An event that has the component as output must
    give it a value: an update, `gr.skip()` too, makes another instance.)
    """
    picture = gr.Image(type="filepath", format="png", image_mode=None, **settings)
    usual = picture.preprocess
    picture.preprocess = lambda payload: (
        payload.path if payload is not None and payload.path else usual(payload)
    )
    return picture


def keep(component: gr.blocks.Block, data: bytes, name: str) -> str:
    """Stores a file where the page may serve it, and `delete_cache` finds it; returns its path."""
    with room():
        path = save_bytes_to_cache(data, name, component.GRADIO_CACHE)
    component.temp_files.add(path)
    return path


@contextmanager
def room() -> Iterator[None]:
    """A file that this server cannot store is told to whoever waits for it."""
    try:
        yield
    except OSError as error:
        raise gr.Error(
            "The server could not store this file: its disk may be full, free some space and try again.",
            print_exception=False,
        ) from error


def sentence(message: str, path: str | Path) -> str:
    """A message about a picture, which is called by its name and not by where the server keeps it."""
    return message.replace(str(path), Path(path).name)
