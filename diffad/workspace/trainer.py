"""The process of one training: `python -m diffad.workspace.trainer JOB`. See `jobs`."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffad.checkpoint import CheckpointError
from diffad.method.artificial_defects import add_defect
from diffad.output import OutputError, write
from diffad.pictures.arrays import U8
from diffad.pictures.drawing import heatmap, png_bytes
from diffad.pictures.geometry import to_float, to_square, to_uint8
from diffad.pictures.reading import DataError, read_image
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.state import Run, state_file
from diffad.teaching.training import train
from diffad.workspace.jobs import JOB, MODEL, PREVIEW, STATUS, WISH, Request

_ASKED_EVERY = 0.5  # s between two looks at what the server wishes
_PREVIEW_T = 200
_NICENESS = 10  # inspections go first


class Paused(Exception):
    """The training shall go on later."""


class _Trainer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.request = Request(**json.loads((folder / JOB).read_text()))
        self._asked = 0.0
        self._row: dict[str, Any] = {}

    def run(self) -> None:
        """Train until the budget is spent, or the server wishes otherwise; says how it ended."""
        out, request = self._folder / MODEL, self.request
        self.say("running", message="reading the pictures")
        train(
            TrainConfig(minutes=request.minutes),
            [self._folder / "data" / request.name],
            out,
            resume=state_file(out).exists(),
            start_from=request.base,
            device=request.device,
            progress=self._progress,
            snapshot=self._snapshot,
            skip_unreadable=True,
            tell=print,
        )
        self.say("finished", message="finished")

    def say(self, status: str, **more: Any) -> None:
        says = {"status": status, "pid": os.getpid(), **self._row, **more}
        write(self._folder / STATUS, json.dumps(says).encode(), sync=False)

    def _progress(self, row: dict[str, Any]) -> bool:
        now = time.monotonic()
        if now - self._asked < _ASKED_EVERY and 0 < row["done"] < 1:
            return False
        self._asked = now
        self._row = {name: row.get(name) for name in ("done", "loss", "eta", "step")}
        learned = row["done"] >= 1
        self.say("running", message="fitting the statistics of good parts" if learned else "training")
        wish = ""
        with suppress(OSError):
            wish = (self._folder / WISH).read_text()
        if wish == "pause":
            raise Paused
        if wish == "stop":
            self.say("running", message="fitting the statistics of good parts")
        return wish == "stop"

    def _snapshot(self, run: Run) -> None:
        """Draw what the network, averaged so far, makes of a good picture and of an artificial defect."""
        path = next(iter(sorted((self._folder / "data" / self.request.name).iterdir())))
        square, _ = to_square(read_image(path), run.config.unet.size)
        good = to_uint8(square).permute(1, 2, 0).numpy()
        spoiled, _ = add_defect(good, [good], "scratch", np.random.default_rng(0))
        own = {name: value.clone() for name, value in run.network.state_dict().items()}
        run.network.load_state_dict(run.average)
        run.network.eval()
        try:
            pairs = [np.concatenate([each, _map_of(run, each)], axis=1) for each in (good, spoiled)]
        finally:
            run.network.load_state_dict(own)
            run.network.train()
        write(self._folder / PREVIEW, png_bytes(np.concatenate(pairs, axis=1)), sync=False)


@torch.no_grad()
def _map_of(run: Run, picture: U8) -> U8:
    """How far the features are from those predicted at one noise level, as a heat map of that size."""
    x_start = to_float(torch.from_numpy(picture).permute(2, 0, 1)[None], run.device)
    t = torch.tensor([_PREVIEW_T])
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(0)).to(run.device)
    prediction = run.network(run.schedule.q_sample(x_start, t, noise), t)
    residual: Tensor = run.extractor(x_start).float() - prediction.features.float()
    size = picture.shape[:2]
    square = torch.nn.functional.interpolate(
        residual.square().mean(dim=1, keepdim=True), size, mode="bilinear"
    )
    values = square[0, 0].cpu().numpy()
    return heatmap(values, max(1e-6, 3 * float(np.median(values)) + float(values.std())))


def main(folder: Path) -> int:
    with suppress(OSError, AttributeError):
        os.nice(_NICENESS)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    trainer = _Trainer(folder)
    try:
        trainer.run()
    except (Paused, KeyboardInterrupt):
        trainer.say("paused", message="paused")
    except (DataError, CheckpointError, OutputError, ValueError) as error:
        trainer.say("failed", message=str(error))
        return 1
    except Exception as error:
        trainer.say(
            "failed", message=f"the training failed ({type(error).__name__}): see output.txt in its folder"
        )
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
