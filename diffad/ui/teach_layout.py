"""The components of the Teach tab. `teach_tab.py` and `taught_card.py` connect them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from diffad.ui import teach_board
from diffad.ui.files import several_files
from diffad.ui.layout import html

BRUSH = gr.Brush(colors=["#d12b6a"], color_mode="fixed", default_size=24)
MODES = [("nothing is judged where I paint", "ignore"), ("only what I paint is judged", "attend")]


@dataclass(frozen=True)
class TeachParts:
    """What events on the tab read and change."""

    files: gr.File
    folder: gr.Dropdown
    use_folder: gr.Button
    name: gr.Textbox
    model: gr.Dropdown
    teach: gr.Button
    cancel: gr.Button
    minutes: gr.Slider
    train: gr.Button
    status: gr.HTML
    offered: gr.HTML
    expected: gr.HTML
    again: gr.Button
    more: gr.Button
    job: gr.HTML
    pause: gr.Button
    resume: gr.Button
    stop: gr.Button
    timer: gr.Timer


@dataclass(frozen=True)
class TaughtParts:
    """What events on the list of taught categories read and change."""

    list: gr.HTML
    chosen: gr.Dropdown
    said: gr.HTML
    new_name: gr.Textbox
    rename: gr.Button
    undo: gr.Button
    export: gr.Button
    remove: gr.Button
    imported: gr.UploadButton
    file: gr.File
    learn: gr.Button
    propose: gr.Button
    editor: gr.ImageEditor
    mode: gr.Dropdown
    ignore: gr.Button
    clear: gr.Button


def lay_out_teaching(models: Sequence[str], folders: Sequence[str]) -> TeachParts:
    """Pictures and settings on the left, what to expect on the right."""
    with gr.Row(elem_id="teach", equal_height=False):
        with gr.Column(elem_id="teach-controls", min_width=300, scale=0):
            with gr.Column(elem_classes="card"):
                html("<h3>1. Good parts</h3>")
                files = several_files(show_label=False, height=120, elem_id="teach-files", label="Pictures")
                folder = gr.Dropdown(
                    list(folders),
                    label="or a folder on the server",
                    visible=bool(folders),
                    elem_id="teach-folder",
                )
                use_folder = gr.Button("Look over this folder", size="sm", visible=bool(folders))
                name = gr.Textbox(label="Name of the part", max_length=60, elem_id="teach-name")
                model = gr.Dropdown(
                    list(models), value=models[0], label="Model", visible=len(models) > 1,
                    elem_id="teach-model", filterable=False,
                )  # fmt: skip
            with gr.Column(elem_classes="card"):
                html("<h3>2. Teach</h3>")
                with gr.Row(elem_classes="buttons"):
                    teach = gr.Button("Teach", variant="primary", elem_id="teach-now", min_width=80)
                    cancel = gr.Button("Cancel", elem_id="teach-cancel", min_width=60)
                html('<p class="quiet">Statistics of your pictures on the loaded model: a minute or two.</p>')
                minutes = gr.Slider(
                    5,
                    600,
                    60,
                    step=5,
                    label="Thorough: minutes of training",
                    elem_id="teach-minutes",
                    buttons=[],
                )
                train = gr.Button("Train a model of its own", size="sm", elem_id="teach-train")
                job = html("", elem_id="teach-job")
                with gr.Row(elem_classes="buttons"):
                    pause, resume, stop = (
                        gr.Button(word, size="sm", visible=False, min_width=60, elem_id=f"job-{word.lower()}")
                        for word in ("Pause", "Resume", "Finish now")
                    )
        with gr.Column(elem_id="teach-results", scale=1):
            with gr.Column(elem_classes="card"):
                status = html(teach_board.sentence(teach_board.EMPTY), elem_id="teach-status")
                offered = html(
                    "", elem_id="teach-offered",
                    js_on_load="diffad.offered(element, props, watch, trigger)  // 'select'",
                )  # fmt: skip
            with gr.Column(elem_classes="card", elem_id="teach-expected-card"):
                expected = html('<p class="quiet">What to expect appears here.</p>', elem_id="teach-expected")
                with gr.Row(elem_classes="buttons"):
                    again = gr.Button(
                        "Leave out the unusual ones and teach again",
                        size="sm",
                        visible=False,
                        elem_id="teach-again",
                    )
                    more = gr.Button(
                        "Would more pictures help?", size="sm", visible=False, elem_id="teach-more"
                    )
    return TeachParts(
        files, folder, use_folder, name, model, teach, cancel, minutes, train, status, offered, expected,
        again, more, job, pause, resume, stop, gr.Timer(3, active=False),
    )  # fmt: skip


def lay_out_taught() -> TaughtParts:
    """The list of taught categories, and what can be done with one of them."""
    with gr.Column(elem_classes="card", elem_id="taught-card"):
        html("<h3>Taught categories</h3>")
        listed = html("", elem_id="taught-list")
        said = html("", elem_id="taught-said")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                chosen = gr.Dropdown([], label="Category", elem_id="taught-chosen", filterable=False)
                with gr.Row(elem_classes="buttons"):
                    new_name = gr.Textbox(
                        show_label=False, label="New name", placeholder="new name", max_length=60,
                        elem_id="taught-name", container=False,
                    )  # fmt: skip
                    rename = gr.Button("Rename", size="sm", min_width=60, elem_id="taught-rename")
                with gr.Row(elem_classes="buttons"):
                    learn = gr.Button(
                        "Learn pictures corrected to good", size="sm", elem_id="taught-learn", min_width=80
                    )
                    propose = gr.Button("What did corrections show?", size="sm", elem_id="taught-propose")
                with gr.Row(elem_classes="buttons"):
                    undo = gr.Button("Undo last change", size="sm", elem_id="taught-undo", min_width=60)
                    export = gr.Button("Export", size="sm", elem_id="taught-export", min_width=60)
                    remove = gr.Button("Remove", size="sm", elem_id="taught-remove", min_width=60)
                imported = gr.UploadButton(
                    "Import an exported category", size="sm", file_types=[".zip"], elem_id="taught-import"
                )
                file = gr.File(visible="hidden", elem_id="taught-file", interactive=False)
            with gr.Column(min_width=320):
                editor = gr.ImageEditor(
                    label="Mean good part", brush=BRUSH, eraser=gr.Eraser(default_size=24), layers=False,
                    transforms=(), sources=(), type="numpy", height=380, visible=False,
                    elem_id="taught-editor",
                )  # fmt: skip
                mode = gr.Dropdown(
                    MODES, value="ignore", label="Meaning", filterable=False, elem_id="taught-mode"
                )
                with gr.Row(elem_classes="buttons"):
                    ignore = gr.Button("Keep what I painted", size="sm", elem_id="taught-ignore")
                    clear = gr.Button("Judge everything", size="sm", elem_id="taught-clear")
    return TaughtParts(
        listed, chosen, said, new_name, rename, undo, export, remove, imported, file, learn, propose, editor,
        mode, ignore, clear,
    )  # fmt: skip
