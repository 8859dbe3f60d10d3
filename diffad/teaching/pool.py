"""Batches of good pictures with artificial defects, drawn for training."""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffad.method.artificial_defects import KINDS, add_defect
from diffad.method.features import FeatureExtractor
from diffad.method.gaussian import PlaceGaussian
from diffad.pictures.geometry import to_float
from diffad.teaching.state import Run


def turned(pictures: Tensor, symmetry: int) -> Tensor:
    """One of the square's eight symmetries: 0 … 3 quarter turns, from 4 on after mirroring; [..., s, s]."""
    return torch.rot90(pictures.flip(-1) if symmetry >= 4 else pictures, symmetry % 4, (-2, -1))


@torch.no_grad()
def symmetries(extractor: FeatureExtractor, pictures: Tensor, device: torch.device) -> tuple[int, ...]:
    """The symmetries that a category allows: turned (see `turned`), its pictures look as before.

    A Gaussian per place of three quarters of the pictures measures the others, as they are and turned; a
    symmetry is allowed that moves their mean distance by less than 30 %. pictures: uint8 [n, 3, s, s].
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


class Pool:
    """Training pictures with their features: `variants` seeded variants of each, shifted and turned.

    The backbone is frozen, so on the CPU the features of a variant are computed once and kept in fp16, as
    long as they fit into a quarter of the memory.
    """

    def __init__(self, run: Run, categories: list[Tensor]) -> None:
        self.run, self.categories = run, categories
        self.allowed = [symmetries(run.extractor, pictures, run.device) for pictures in categories]
        self.kept: dict[tuple[int, int, int], Tensor] = {}
        cell = run.config.unet.feature_channels * run.config.unet.feature_grid**2 * 2
        self.room = _memory() // 4 // cell if run.device.type == "cpu" else 0

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_start [count, 3, s, s] in [−1, 1], the same with artificial defects on some, and the features of
        x_start; every category equally often.
        """
        keys = []
        for number in torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist():
            category = int(number[0] * len(self.categories))
            picture = int(number[1] * len(self.categories[category]))
            keys.append((category, picture, int(number[2] * self.run.config.variants)))
        pictures = torch.stack([self._variant(*key) for key in keys])
        shown = self._spoiled(pictures, [key[0] for key in keys], generator)
        x_start, shown = (to_float(each, self.run.device) for each in (pictures, shown))
        missing = [index for index, key in enumerate(keys) if key not in self.kept]
        found = {}
        if missing:
            with torch.no_grad():
                features = self.run.extractor(x_start[missing])
            found = dict(zip(missing, features))
        for index, values in found.items():
            if len(self.kept) < self.room:
                self.kept[keys[index]] = values.half()
        rows = [found[i] if i in found else self.kept[key].float() for i, key in enumerate(keys)]
        return x_start, shown, torch.stack(rows)

    def _spoiled(self, pictures: Tensor, categories: list[int], generator: torch.Generator) -> Tensor:
        """A copy, uint8 [b, 3, s, s]; patches and colours come from pictures of any category, half of them
        from their own.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        shown = pictures.clone()
        for index, own in enumerate(categories):
            if rng.random() >= self.run.config.spoiled:
                continue
            picture = pictures[index].permute(1, 2, 0).numpy()
            for _ in range(rng.integers(1, 4)):
                some = self.categories[own if rng.random() < 0.5 else rng.integers(len(self.categories))]
                other = some[rng.integers(len(some))].permute(1, 2, 0).numpy()
                picture, _ = add_defect(picture, [other], KINDS[rng.integers(len(KINDS))], rng)
            shown[index] = torch.from_numpy(picture).permute(2, 0, 1)
        return shown

    def _variant(self, category: int, picture: int, variant: int) -> Tensor:
        """uint8 [3, s, s], shifted (edges repeated) and turned as (category, picture, variant) seed it."""
        image, shift = self.categories[category][picture], self.run.config.shift
        seed = (category * 1_000_003 + picture) * 1_009 + variant
        generator = torch.Generator().manual_seed(seed)
        size = image.shape[-1]
        y, x = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
        padded = F.pad(image[None].float(), (shift,) * 4, mode="replicate")[0].to(torch.uint8)
        allowed = self.allowed[category]
        which = int(torch.randint(0, len(allowed), (1,), generator=generator))
        return turned(padded[:, y : y + size, x : x + size], allowed[which])


def _memory() -> int:
    """Bytes of this machine's memory; 8 GB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
