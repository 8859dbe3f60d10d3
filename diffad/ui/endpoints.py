"""Named endpoints for `gradio_client` and plain HTTP: inspect, reconstruct, categories."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from diffad import render
from diffad.data import DataError
from diffad.ui import cards
from diffad.ui.files import keep, picture_upload

if TYPE_CHECKING:
    from diffad.inspector import Inspector


def add(inspectors: Mapping[str, Inspector]) -> None:
    """Adds the endpoints to the Blocks being built. Unseen on the page: they have components of their own."""

    def find(model: str) -> Inspector:
        if model not in inspectors:
            raise gr.Error(
                f"No model {model!r} here; there are: {', '.join(inspectors)}.", print_exception=False
            )
        return inspectors[model]

    def inspect(image: str | None, category: str, timesteps: list[int], alpha: float, seed: float,
                draws: float, threshold: float, model: str) -> tuple[dict[str, Any], np.ndarray]:
        """Judges one picture: score, threshold, verdict and regions as JSON, and the heat map over it.

        category "": recognised. timesteps []: the model's usual ones. threshold 0: the category's own.
        """
        inspector = find(model)
        try:
            inspection = inspector.inspect(
                required(image), category=category or None, timesteps=tuple(timesteps or inspector.timesteps),
                alpha=alpha, seed=int(seed), draws=int(draws), threshold=threshold or None,
            )
        except ValueError as error:  # DataError, or a setting out of range
            raise gr.Error(str(error), print_exception=False) from error
        vmax = inspector.scale_top(inspection.category)
        heat = render.overlay(inspection.image, inspection.anomaly_map, vmax, inspection.threshold)
        return inspection.to_dict(), heat

    def reconstruct(image: str | None, category: str, steps: float, denoise_every: float, step_size: float,
                    method: str, seed: float, model: str) -> tuple[dict[str, Any], np.ndarray, str]:
        """Repairs one picture: score and loss per step, the repaired picture, and the film as a GIF."""
        frames, scores, losses = [], [], []
        try:
            for step in find(model).reconstruct(
                required(image), category=category or None, steps=int(steps), step_size=step_size or None,
                denoise_every=int(denoise_every), method=method, seed=int(seed),
            ):
                scores.append(float(step.score))
                losses.append(float(step.mahalanobis))
                frames.append(cards.reduced(step.image, 768))
                last = step.image
        except ValueError as error:  # DataError, or a setting out of range
            raise gr.Error(str(error), print_exception=False) from error
        with tempfile.TemporaryDirectory() as folder:
            data = render.animation(frames, Path(folder) / "repair.gif").read_bytes()
        return {"scores": scores, "mahalanobis": losses}, last, keep(film, data, "repair.gif")

    def categories(model: str) -> list[dict[str, Any]]:
        """What the model knows: its categories, each with its threshold."""
        inspector = find(model)
        return [{"category": name, "threshold": inspector.threshold(name)} for name in inspector.categories]

    def required(image: str | None) -> str:
        if image is None:
            raise DataError("Send a picture.")
        return image

    default = next(iter(inspectors))
    with gr.Row(visible=False):
        image = picture_upload(label="image")
        category = gr.Textbox("", label="category")
        timesteps = gr.JSON([], label="timesteps")
        alpha = gr.Number(0.5, label="alpha", minimum=0, maximum=1)
        seed = gr.Number(0, label="seed", precision=0)
        draws = gr.Number(1, label="draws", precision=0, minimum=1, maximum=16)
        threshold = gr.Number(0, label="threshold")
        steps = gr.Number(100, label="steps", precision=0, minimum=1, maximum=2000)
        denoise_every = gr.Number(5, label="denoise_every", precision=0, minimum=1)
        step_size = gr.Number(0, label="step_size")
        method = gr.Textbox("weighed", label="method")
        model = gr.Textbox(default, label="model")
        answer = gr.JSON(label="result")
        picture = gr.Image(format="png", label="picture")
        film = gr.File(label="film")
        call = gr.Button("call")
    call.click(
        inspect, [image, category, timesteps, alpha, seed, draws, threshold, model], [answer, picture],
        api_name="inspect", concurrency_id="network", concurrency_limit=1,
    )
    call.click(
        reconstruct, [image, category, steps, denoise_every, step_size, method, seed, model],
        [answer, picture, film], api_name="reconstruct", concurrency_id="repair", concurrency_limit=2,
    )
    call.click(categories, model, answer, api_name="categories", queue=False)
