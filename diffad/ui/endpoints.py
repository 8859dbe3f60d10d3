"""Named endpoints for `gradio_client`, plain HTTP and MCP: inspect, batch, repair, categories.

Gradio shows their docstrings to users and to language models. Settings that are null or missing have their
defaults. Errors are answered with one sentence. Progress is reported during a call
(`job.status().progress_data` in `gradio_client`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffad import batch as batches
from diffad.method.repair_options import RepairOptions
from diffad.pictures import animation, drawing, intake
from diffad.pictures.reading import DataError
from diffad.ui.files import Storage, picture_upload, room, sentence, several_files
from diffad.ui.turns import AT_ONCE, Turns
from diffad.verdicts import LOOK_RATE

if TYPE_CHECKING:
    from diffad.inspector import Inspector


class Endpoints:
    """The methods inspect, batch, repair and categories are the endpoints."""

    def __init__(self, inspectors: Mapping[str, Inspector], turns: Turns, storage: Storage) -> None:
        """Adds the endpoints to the current `gr.Blocks`, with components that the page does not show.

        Args:
            inspectors: by their public names; the first is the default.
            turns: shared by all users of the network.
            storage: for results.
        """
        self._inspectors, self._turns, self._storage = inspectors, turns, storage
        self._connect()

    def _connect(self) -> None:
        usual = RepairOptions()
        with gr.Row(visible=False):
            image = picture_upload(label="image")
            images = several_files(label="images")
            category = text("category", "")
            timesteps = gr.JSON([], label="timesteps")
            alpha = number("alpha", 0.5)
            seed = number("seed", 0)
            draws = number("draws", 1)
            threshold = number("threshold", 0)
            look_threshold = number("look_threshold", 0)
            steps = number("steps", usual.steps)
            denoise_every = number("denoise_every", usual.denoise_every)
            step_size = number("step_size", 0)
            method = text("method", usual.method)
            model = text("model", next(iter(self._inspectors)))
            bits = number("bits", 0)
            answer = gr.JSON(label="result")
            picture = gr.Image(format="png", label="picture")
            film = gr.File(label="film")
            call = gr.Button("call")
        # Each endpoint has its own queue, separate from the page's.
        settings = [category, timesteps, alpha, seed, draws, threshold, look_threshold, model, bits]
        call.click(
            self.inspect, [image, *settings], [answer, picture], api_name="inspect",
            concurrency_id="inspect", concurrency_limit=AT_ONCE,
        )  # fmt: skip
        call.click(
            self.batch, [images, *settings], answer, api_name="batch", concurrency_id="batch",
            concurrency_limit=AT_ONCE,
        )  # fmt: skip
        call.click(
            self.repair, [image, category, steps, denoise_every, step_size, method, seed, model, bits],
            [answer, picture, film], api_name="repair", concurrency_id="repair", concurrency_limit=AT_ONCE,
        )  # fmt: skip
        call.click(self.categories, model, answer, api_name="categories", queue=False)

    def _find(self, model: str) -> Inspector:
        if model not in self._inspectors:
            raise ValueError(f"No model {model!r} here; there are: {', '.join(self._inspectors)}.")
        return self._inspectors[model]

    def _settings(
        self, inspector: Inspector, timesteps: Any, alpha: float, seed: float, draws: float,
        threshold: float, look_threshold: float, bits: float,
    ) -> dict[str, Any]:  # fmt: skip
        """The arguments of `Inspector.inspect` that `inspect` and `batch` share."""
        return {
            "timesteps": levels(timesteps, inspector), "alpha": alpha, "seed": whole("seed", seed),
            "draws": whole("draws", draws), "threshold": threshold or None,
            "look_threshold": look_threshold or None, "bits": whole("bits", bits) or None,
            "turn": self._turns.of_caller(), "max_tiles": self._turns.max_tiles,
        }  # fmt: skip

    def inspect(
        self, image: str | None, category: str, timesteps: Any, alpha: float, seed: float,
        draws: float, threshold: float, look_threshold: float, model: str, bits: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str]:  # fmt: skip
        """Judges one picture of a part: returns score, limits, verdict (good, look, anomalous) and regions as
        JSON, and the picture with its anomaly map.

        Args:
            image: the picture.
            category: what the part is, one of `categories`; empty to have it recognised.
            timesteps: noise levels, 1 to 12 whole numbers from 0 to 999; empty for the model's usual ones.
            alpha: balance of the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the pixels
                counts a twentieth of a σ of the features.
            seed: of the noise.
            draws: noise draws a level, 1 to 16.
            threshold: the part is anomalous above this score; 0 for the category's own.
            look_threshold: above this score, up to the threshold, it is one to look at; 0 for the
                category's own.
            model: one of the served models.
            bits: of the camera, for a picture in a 16-bit file: 8, 10, 12, 14 or 16; 0 to find out.
        """
        with refusals(image):
            inspector = self._find(model)
            inspection = inspector.inspect(
                required(image),
                category=category or None,
                **self._settings(inspector, timesteps, alpha, seed, draws, threshold, look_threshold, bits),
                progress=lambda done, total: progress((done, total), unit="tiles"),
            )
            heat = drawing.overlay(
                inspection.hatched, inspection.anomaly_map, inspector.scale_top(inspection.category),
                inspection.map_limit, contour=inspection.verdict != "good",
            )  # fmt: skip
            return inspection.to_dict(), self._storage.keep(drawing.png_bytes(heat), "picture.png")

    def batch(
        self, images: Sequence[str] | None, category: str, timesteps: Any, alpha: float, seed: float,
        draws: float, threshold: float, look_threshold: float, model: str, bits: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Judges several pictures: returns a list of results like those of `inspect`, each with its file's
        `name`. A picture that cannot be read has an entry with the reason as `error`.

        Args:
            images: picture files, or zip archives of them.
            category: what the parts are, one of `categories`; empty to have each recognised.
            timesteps: noise levels, 1 to 12 whole numbers from 0 to 999; empty for the model's usual ones.
            alpha: balance of the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the pixels
                counts a twentieth of a σ of the features.
            seed: of the noise.
            draws: noise draws a level, 1 to 16.
            threshold: a part is anomalous above this score; 0 for the category's own.
            look_threshold: above this score, up to the threshold, it is one to look at; 0 for the
                category's own.
            model: one of the served models.
            bits: of the camera, for pictures in 16-bit files: 8, 10, 12, 14 or 16; 0 to find out from the
                highest value of all pictures.
        """
        with (
            refusals(*(images or ())),
            batch_folder(self._storage) as folder,
            self._storage.using(images or ()),
        ):
            inspector = self._find(model)
            if not images:
                raise DataError("Send pictures.")
            pictures = intake.sources(map(Path, images), folder, claim=self._storage.make_room)
            shared = {} if bits else batches.shared_bits(inspector, pictures, category or None)
            found: list[dict[str, Any]] = []
            rows = batches.run(
                inspector,
                pictures,
                category or None,
                shared,
                **self._settings(inspector, timesteps, alpha, seed, draws, threshold, look_threshold, bits),
            )
            for row, _ in rows:  # not "path", which gradio_client would fetch as a file
                error = {"error": row.error} if row.error else {}
                found.append({"name": row.name, **row.result, **error})
                progress((len(found), len(pictures)), unit="pictures")
            return found

    def repair(
        self, image: str | None, category: str, steps: float, denoise_every: float, step_size: float,
        method: str, seed: float, model: str, bits: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str, str]:  # fmt: skip
        """Repairs one picture of a part: returns score and loss per step and notes as JSON, the repaired
        picture, and the animation as a GIF.

        Args:
            image: the picture.
            category: what the part is, one of `categories`; empty to have it recognised.
            steps: in each round of the repair, 1 to 5000; there are five rounds at most.
            denoise_every: gradient steps between two denoising steps.
            step_size: length of a gradient step; 0 for the method's default.
            method: "weighed" acts where the anomaly map is high, "paper" everywhere.
            seed: of the noise.
            model: one of the served models.
            bits: of the camera, for a picture in a 16-bit file: 8, 10, 12, 14 or 16; 0 to find out.
        """
        reel, scores, losses = animation.Reel(), [], []
        with refusals(image):
            options = RepairOptions(
                whole("steps", steps), whole("denoise_every", denoise_every), step_size or None, method=method
            )
            for step in self._find(model).repair(
                required(image), category or None, options, seed=whole("seed", seed),
                bits=whole("bits", bits) or None, turn=self._turns.of_caller(),
                max_tiles=self._turns.max_tiles,
            ):  # fmt: skip
                scores.append(float(step.score))
                losses.append(float(step.mahalanobis))
                reel.add(step.image)
                last, notes = step.image, list(step.notes)
                progress((step.index, step.total))
            with room(), tempfile.TemporaryDirectory() as folder:
                data = animation.animation(reel.frames, Path(folder) / "repair.gif").read_bytes()
            repaired = self._storage.keep(drawing.png_bytes(last), "repaired.png")
            numbers = {"scores": scores, "mahalanobis": losses, "notes": notes}
            return numbers, repaired, self._storage.keep(data, "repair.gif")

    def categories(self, model: str) -> list[dict[str, Any]]:
        """Lists a model's categories, each with its threshold and look limit.

        Args:
            model: one of the served models.
        """
        with refusals():
            inspector = self._find(model)
        return [
            {"category": name, "threshold": inspector.threshold(name),
             "look_threshold": inspector.threshold(name, rate=LOOK_RATE)}
            for name in inspector.categories
        ]  # fmt: skip


@contextmanager
def refusals(*paths: str | None) -> Iterator[None]:
    """Turns errors of the caller (DataError, or a setting out of range) into sentences.

    Args:
        paths: the call's pictures, whose folders on the server are removed from the sentences.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        for path in filter(None, paths):
            message = sentence(message, path)
        raise gr.Error(message, print_exception=False) from error
    except MemoryError as error:
        message = "This does not fit in the server's memory: scale the picture down or cut it into parts."
        raise gr.Error(message, print_exception=False) from error


@contextmanager
def batch_folder(storage: Storage) -> Iterator[Path]:
    """A temporary folder for one call."""
    folder = storage.batch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def required(image: str | None) -> str:
    """Raises DataError if the picture is missing."""
    if image is None:
        raise DataError("Send a picture.")
    return image


def levels(timesteps: Any, inspector: Inspector) -> tuple[int, ...]:
    """The requested noise levels, or the model's defaults. `Inspector.inspect` checks their range."""
    if not timesteps:
        return inspector.timesteps
    if not isinstance(timesteps, list) or not all(type(t) is int for t in timesteps):
        raise ValueError("timesteps is a list of whole numbers, such as [20, 200, 400]")
    return tuple(timesteps)


def whole(name: str, value: float) -> int:
    """A setting as an int; raises ValueError unless it is a whole number."""
    if value != int(value):
        raise ValueError(f"{name} is a whole number, not {value}")
    return int(value)


def text(name: str, default: str) -> gr.Textbox:
    """A text input, for which null means its default."""
    component = gr.Textbox(default, label=name)
    # Replaced on the instance, as in `files.picture_upload`.
    component.preprocess = lambda payload: (  # type: ignore[method-assign]
        default if payload is None else payload
    )
    return component


def number(name: str, default: float) -> gr.Number:
    """A number input, for which null means its default; other values are refused with a sentence."""
    component = gr.Number(default, label=name)

    def checked(payload: Any) -> float:
        if payload is None:
            return default
        if type(payload) not in (int, float) or not abs(payload) < 1e15:  # which excludes NaN
            instead = f", not {str(payload)[:40]!r}" if isinstance(payload, str | int | float) else ""
            raise gr.Error(f"{name} is a number{instead}", print_exception=False)
        value: float = payload
        return value

    component.preprocess = checked  # type: ignore[method-assign]  # as in `text`
    return component
