"""Training batches: good pictures, shifted and turned, some with artificial defects.

A batch depends only on (seed, step, rank), so a resumed run draws the same batches, in whichever process.
A batch takes one core about 0.2 s, so worker processes draw them when the network runs on a GPU.
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
from diffad.method.place_gaussian import PlaceGaussian
from diffad.method.repair import FILLED_TO
from diffad.pictures.geometry import to_float
from diffad.teaching.recipe import TrainConfig
from diffad.teaching.state import Run

_WORKERS = 8  # at most; enough for 40 batches of 16 pictures per second

Key = tuple[int, int, int]  # category, picture, variant


def turned(pictures: Tensor, symmetry: int) -> Tensor:
    """Apply one of the square's eight symmetries to [..., s, s].

    Args:
        symmetry: 0 to 3 quarter turns; 4 to 7 the same after mirroring.
    """
    return torch.rot90(pictures.flip(-1) if symmetry >= 4 else pictures, symmetry % 4, (-2, -1))


@torch.no_grad()
def symmetries(extractor: FeatureExtractor, pictures: Tensor, device: torch.device) -> tuple[int, ...]:
    """The symmetries (see `turned`) that leave a category's pictures, uint8 [n, 3, s, s], looking the same.

    A Gaussian per place is fitted on three quarters of the pictures and measures the others, both as they are
    and turned. A symmetry is allowed if it raises the mean distance by less than 30 %.
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
    """A batch, as arrays: tensors from worker processes would need shared memory, which containers lack.

    Attributes:
        keys: category, picture and variant of each.
        pictures: uint8 [b, 3, s, s].
        shown: the same pictures, some with artificial defects.
        t: int64 [b].
        noise: float32 [b, 3, s, s].
        holes: where each picture is noised, bool [b, 1, s, s].
    """

    keys: list[Key]
    pictures: npt.NDArray[np.uint8]
    shown: npt.NDArray[np.uint8]
    t: npt.NDArray[np.int64]
    noise: npt.NDArray[np.float32]
    holes: npt.NDArray[np.bool_]


class Draws(Dataset[Draw]):
    """The batch of each step, with every category equally often.

    Each picture has `variants` variants, shifted and turned, which depend only on its number.

    Args:
        config: the recipe.
        categories: pictures of each category, uint8 [n, 3, s, s].
        allowed: the `symmetries` of each category.
        steps: T of the schedule.
        rank: of this process in its group.
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
        """The batches of all steps from `first` on.

        Args:
            workers: number of processes that draw in advance; 0 for none.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first, 10**9),
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_without_threads,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # otherwise it would draw from the global generator
        )
        return iter(loader)

    def _spoiled(self, pictures: Tensor, categories: list[int], rng: np.random.Generator) -> Tensor:
        """A copy, uint8 [b, 3, s, s], with defects on some pictures.

        Patches and colours come from pictures of the same category in half of the cases, otherwise of any.
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
        """A variant, uint8 [3, s, s]: shifted, with edges repeated, and turned."""
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

    The backbone is frozen, so on a CPU each variant's features are computed once and kept in fp16, until they
    fill a quarter of the memory.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.kept: dict[Key, Tensor] = {}
        bytes_each = 2 * run.config.unet.feature_channels * run.config.unet.feature_grid**2
        self.room = _memory() // 4 // bytes_each if run.device.type == "cpu" else 0

    def __call__(self, keys: Sequence[Key], x_start: Tensor) -> Tensor:
        """Features float32 [b, c, g, g] of x_start [b, 3, s, s] in [−1, 1]."""
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

    A `share` of the pictures is noised only in a few blobs, as in a repair, unless t is small; all others are
    noised everywhere.
    """
    holes = torch.ones_like(pictures[:, :1], dtype=torch.bool)
    for index, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        if rng.random() < share and t[index] >= FILLED_TO:
            holes[index, 0] = torch.from_numpy(random_hole(picture, rng))
    return holes


def workers_for(run: Run) -> int:
    """The number of processes that draw batches for a run.

    On a CPU there are none: the network's threads wait for each other, so a process that takes one of their
    cores would cost more than it saves. Nor are there any where processes cannot be forked, because spawned
    ones would import the caller's script.
    """
    if run.device.type == "cpu" or sys.platform != "linux":
        return 0
    return max(0, min(_WORKERS, cores() // run.world - 1))


def _unchanged(draw: Any) -> Any:
    return draw


def _without_threads(_: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork


def _rng(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))


def _memory() -> int:
    """This machine's memory in bytes; 8 GB if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
