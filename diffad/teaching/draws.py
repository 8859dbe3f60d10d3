"""Batches of good pictures with artificial defects, drawn for training.

A batch depends on (seed, step, rank) alone, so that a resumed run draws what it would have drawn, in whatever
process. Drawing takes some 0.2 s a batch of one core, so beside a GPU worker processes do it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffad.method.artificial_defects import KINDS, add_defect, random_hole
from diffad.method.devices import cores
from diffad.method.features import FeatureExtractor
from diffad.method.gaussian import PlaceGaussian
from diffad.method.repair import FILLED_TO
from diffad.pictures.geometry import to_float
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.state import Run

_WORKERS = 8  # at most; enough for 40 batches of 16 a second

Key = tuple[int, int, int]  # category, picture, variant


def turned(pictures: Tensor, symmetry: int) -> Tensor:
    """One of the square's eight symmetries: 0 … 3 quarter turns, from 4 on after mirroring; [..., s, s]."""
    return torch.rot90(pictures.flip(-1) if symmetry >= 4 else pictures, symmetry % 4, (-2, -1))


@torch.no_grad()
def symmetries(extractor: FeatureExtractor, pictures: Tensor, device: torch.device) -> tuple[int, ...]:
    """The symmetries (see `turned`) under which a category's pictures, uint8 [n, 3, s, s], look as before.

    A Gaussian by place, fitted on three quarters of the pictures, measures the others as they are and turned;
    a symmetry is allowed if it raises their mean distance by less than 30 %.
    """
    few = pictures[:256]
    held = max(2, min(24, len(few) // 4))
    gaussian = PlaceGaussian.fit(extractor(to_float(batch, device)) for batch in few[held:].split(16))

    def distance(symmetry: int) -> float:
        batches = turned(few[:held], symmetry).split(16)
        maps = [gaussian.squared_mahalanobis(extractor(to_float(batch, device))) for batch in batches]
        return float(torch.cat(maps).mean())

    usual = distance(0)
    return (0, *(symmetry for symmetry in range(1, 8) if distance(symmetry) < 1.3 * usual))


class Draw(NamedTuple):
    """A batch, as arrays: between processes these need no shared memory, of which containers have little.

    keys: which variant of which picture each is. pictures: uint8 [b, 3, s, s]. shown: the same with
    artificial defects on some. t: int64 [b]. noise: float32 [b, 3, s, s]. holes: where each is noised, bool
    [b, 1, s, s].
    """

    keys: list[Key]
    pictures: npt.NDArray[np.uint8]
    shown: npt.NDArray[np.uint8]
    t: npt.NDArray[np.int64]
    noise: npt.NDArray[np.float32]
    holes: npt.NDArray[np.bool_]


class Draws(Dataset[Draw]):
    """The batch of every step: `variants` seeded variants of each picture, shifted and turned, every category
    equally often.

    categories: pictures uint8 [n, 3, s, s] each. allowed: the `symmetries` of each. steps: T of the schedule.
    """

    def __init__(
        self, config: TrainConfig, categories: Sequence[Tensor], allowed: Sequence[tuple[int, ...]],
        steps: int = 1000, rank: int = 0,
    ) -> None:  # fmt: skip
        self.config, self.categories, self.allowed = config, categories, allowed
        self.steps, self.rank = steps, rank

    @staticmethod
    def of(run: Run, categories: Sequence[Tensor]) -> Draws:
        allowed = [symmetries(run.extractor, pictures, run.device) for pictures in categories]
        return Draws(run.config, categories, allowed, run.schedule.steps, run.rank)

    def __getitem__(self, step: int) -> Draw:
        config = self.config
        seed = (config.seed * 1_000_003 + step) * 1_009 + self.rank
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        keys = []
        for draw in torch.rand(config.batch, 3, generator=generator, dtype=torch.float64).tolist():
            category = int(draw[0] * len(self.categories))
            picture = int(draw[1] * len(self.categories[category]))
            keys.append((category, picture, int(draw[2] * config.variants)))
        pictures = torch.stack([self._variant(*key) for key in keys])
        shown = self._spoiled(pictures, [category for category, *_ in keys], _rng(generator))
        t = (self.steps * torch.rand(config.batch, generator=generator) ** config.low_t).long()
        noise = torch.randn(pictures.shape, generator=generator)
        holes = holes_in(pictures, t, config.holes, _rng(generator))
        return Draw(keys, *(each.numpy() for each in (pictures, shown, t, noise, holes)))

    def batches(self, first: int, workers: int) -> Iterator[Draw]:
        """The draws of the steps from `first` on; workers: processes that draw ahead, 0 for none."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first, 10**9),
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_without_threads,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        return iter(loader)

    def _spoiled(self, pictures: Tensor, categories: list[int], rng: np.random.Generator) -> Tensor:
        """A copy, uint8 [b, 3, s, s]; patches and colours come from pictures of any category, half of them
        from their own.
        """
        shown = pictures.clone()
        for index, own in enumerate(categories):
            if rng.random() >= self.config.spoiled:
                continue
            picture = pictures[index].permute(1, 2, 0).numpy()
            for _ in range(rng.integers(1, 4)):
                some = self.categories[own if rng.random() < 0.5 else int(rng.integers(len(self.categories)))]
                other = some[int(rng.integers(len(some)))].permute(1, 2, 0).numpy()
                picture, _ = add_defect(picture, [other], KINDS[rng.integers(len(KINDS))], rng)
            shown[index] = torch.from_numpy(picture).permute(2, 0, 1)
        return shown

    def _variant(self, category: int, picture: int, variant: int) -> Tensor:
        """uint8 [3, s, s], shifted (edges repeated) and turned as (category, picture, variant) seed it."""
        image, shift = self.categories[category][picture], self.config.shift
        seed = (category * 1_000_003 + picture) * 1_009 + variant
        generator = torch.Generator().manual_seed(seed)
        size = image.shape[-1]
        y, x = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
        padded = F.pad(image[None].float(), (shift,) * 4, mode="replicate")[0].to(torch.uint8)
        allowed = self.allowed[category]
        which = int(torch.randint(0, len(allowed), (1,), generator=generator))
        return turned(padded[:, y : y + size, x : x + size], allowed[which])


class Features:
    """Features of the drawn pictures.

    The backbone is frozen, so on the CPU the features of a variant are computed once and kept in fp16, as
    long as they fit into a quarter of the memory.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.kept: dict[Key, Tensor] = {}
        bytes_each = 2 * run.config.unet.feature_channels * run.config.unet.feature_grid**2
        self.room = _memory() // 4 // bytes_each if run.device.type == "cpu" else 0

    def __call__(self, keys: Sequence[Key], x_start: Tensor) -> Tensor:
        """float32 [b, c, g, g] of x_start [b, 3, s, s] in [−1, 1]."""
        missing = [index for index, key in enumerate(keys) if key not in self.kept]
        found = {}
        if missing:
            with torch.no_grad():
                found = dict(zip(missing, self.run.extractor(x_start[missing])))
        for index, values in found.items():
            if len(self.kept) < self.room:
                self.kept[keys[index]] = values.half()
        rows = [found[i] if i in found else self.kept[key].float() for i, key in enumerate(keys)]
        return torch.stack(rows)


def holes_in(pictures: Tensor, t: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Where each picture, uint8 [b, 3, s, s], is noised, bool [b, 1, s, s].

    Everywhere, or for a `share` of the pictures in a few blobs, as repairs ask for; not so at small t.
    """
    holes = torch.ones_like(pictures[:, :1], dtype=torch.bool)
    for index, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        if rng.random() < share and t[index] >= FILLED_TO:
            holes[index, 0] = torch.from_numpy(random_hole(picture, rng))
    return holes


def workers_for(run: Run) -> int:
    """Processes that draw for a run.

    None on a CPU: threads that compute together wait for one another, so a process that takes a core from
    them would cost more than it saves. None either where processes cannot be forked: others would import the
    caller's script.
    """
    if run.device.type == "cpu" or sys.platform != "linux":
        return 0
    return max(0, min(_WORKERS, cores() // run.world - 1))


def _unchanged(draw: Any) -> Any:
    return draw


def _without_threads(_: int) -> None:
    cv2.setNumThreads(0)  # its threads do not survive a fork


def _rng(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))


def _memory() -> int:
    """Bytes of this machine's memory; 8 GB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
