"""The page: its header, its tabs and its dialogs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad.ui import cards, link
from diffad.ui.batch_tab import SETTING, BatchTab
from diffad.ui.endpoints import Endpoints
from diffad.ui.files import Storage
from diffad.ui.history_tab import HistoryTab
from diffad.ui.inspect_tab import LIVE, InspectTab
from diffad.ui.keeping import Keeping
from diffad.ui.layout import categories, html
from diffad.ui.models import Models
from diffad.ui.teach_tab import TeachTab
from diffad.ui.turns import Turns

if TYPE_CHECKING:
    from diffad.inspector import Inspector


def build_app(
    models: Models, turns: Turns, storage: Storage, data_root: Path | None = None,
    keeping: Keeping | None = None,
) -> gr.Blocks:  # fmt: skip
    """The page as Gradio blocks, ready for `server.serve`.

    Args:
        models: by their names in the list; the first is the default.
        turns: shared by all users of the network.
        storage: for uploads and results.
        data_root: the folder on the server below which a batch may read files; None allows uploads only.
        keeping: the history; None keeps nothing, and there is no such tab.

    Raises:
        ValueError: There is no model.
    """
    if not models:
        raise ValueError("The page needs at least one model.")
    workspace = None if keeping is None else keeping.history.workspace
    app = gr.Blocks(title="diffad", analytics_enabled=False, fill_width=True)
    with app:
        header = html(cards.header(next(iter(models.values()))), elem_id="header")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Inspect", id="inspect"):
                inspect = InspectTab(models, turns, storage, keeping)
            with gr.Tab("Batch", id="batch", render_children=True) as tab:
                batch = BatchTab(models, inspect, tab, turns, storage, data_root, keeping)
            if keeping is not None and workspace is not None:
                with gr.Tab("Teach", id="teach", render_children=True) as tab:
                    access = keeping.access
                    TeachTab(models, inspect, tab, turns, storage, workspace, access, data_root)
                with gr.Tab("History", id="history", render_children=True) as tab:
                    HistoryTab(models, inspect, tab, storage, keeping)
        # Beside the tabs, because a hidden tab hides its dialogs too.
        html(cards.ENLARGED + cards.SHORTCUTS, elem_id="dialogs")
        p = inspect.parts
        p.category.focus(_choices(models), p.model, p.category, **LIVE)
        p.model.change(lambda model: cards.header(models[model]), p.model, header, **LIVE)
        _open_link(app, models, inspect).then(None, [*p.settings, p.keep], batch.setting, js=SETTING)
        Endpoints(models, turns, storage)
        if keeping is not None:
            app.load(None, None, p.keep, js="() => diffad.keeps()")
    return app


def _choices(models: Models) -> Callable[[str], gr.Dropdown]:
    """What an open page can choose from, whatever was taught since it was loaded."""
    return lambda model: gr.Dropdown(choices=categories(models[model]))


def _open_link(app: gr.Blocks, inspectors: Mapping[str, Inspector], inspect: InspectTab) -> Any:
    """When the page loads, sets the controls from its address, and opens the sample that it names."""
    p = inspect.parts
    live = [p.alpha, p.rate, p.opacity, p.colormap, p.threshold, p.look_rate, p.look]

    def arrive(parameters: dict[str, str] | None) -> Any:
        if not parameters or not isinstance(parameters, dict):
            return gr.skip()
        return link.controls_of(parameters, inspectors, p)

    controls = [*p.settings, *(each for each in live if each is not p.alpha)]
    return app.load(arrive, p.link, controls, js="() => diffad.link()", **LIVE).then(
        None, live, None, js="(...live) => { diffad.arrive(...live); }"
    )
