"""Residuals of good pictures (what the network fails to predict), summed up for fitting Gaussians."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.gaussian import Moments, PlainMoments, Scatter
from diffad.method.nuisances import random_copy
from diffad.method.scoring import TIMESTEPS, Embedding, evidence, shifted_embeddings
from diffad.method.unet import UNet
from diffad.pictures.geometry import to_float

ROWS = 4  # pictures per network call; a CPU is slower with more
FITTED = 768  # most pictures that covariances are fitted on
CALIBRATED = 192  # most of these whose scores are kept
_USUAL = 32  # places per side of the grid at 256 px; finer grids need fewer pictures
_KEPT_PLACES = 96 * 64**2  # of all calibrated pictures together: 2 GB of residuals in memory
FEATURE_BLOCK, PERCEPTUAL_BLOCK = 2, 4  # places per side that share a covariance; more on finer grids
_COPIES, _ENOUGH_COPIES = 4, 128  # most changed copies of a picture; copies of all pictures that suffice


def limits(grid: int) -> tuple[int, int]:
    """The largest numbers of pictures to fit, and to calibrate among these.

    A block of a finer grid has more places, so fewer pictures give as many observations. The residuals of
    all calibrated pictures are kept in memory until the end.

    Args:
        grid: places per side.
    """
    fitted = min(FITTED, FITTED * _USUAL**2 // grid**2)
    return fitted, min(CALIBRATED, fitted, _KEPT_PLACES // grid**2)


def block(grid: int, least: int) -> int:
    """Places per side of a block that shares a covariance: `least` on grids of up to 32 places per side.

    Finer grids have larger blocks, so the number of blocks, and the size of the checkpoint, stay the same.
    """
    wanted = max(least, least * grid / _USUAL)
    return next(places for places in range(1, grid + 1) if grid % places == 0 and places >= wanted)


def copies_of(count: int) -> int:
    """The number of changed copies of each of `count` pictures: few pictures need more copies."""
    return max(1, min(_COPIES, _ENOUGH_COPIES // count))


def changed_copies(pictures: Tensor, number: int = 0) -> Tensor:
    """A changed copy of each picture (`nuisances.random_copy`), uint8 [n, 3, s, s] → the same shape.

    The copy depends only on the picture and on `number`.
    """
    images = [picture.permute(1, 2, 0).contiguous().numpy() for picture in pictures]
    rngs = [np.random.default_rng((0, zlib.crc32(image), number)) for image in images]
    copies = [random_copy(image, rng) for image, rng in zip(images, rngs)]
    return torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Observer:
    """The networks, and the pixel score (`kind` and `stride`, see `scoring.evidence`)."""

    network: UNet
    extractor: FeatureExtractor
    schedule: Schedule
    kind: str = "perceptual"
    stride: int = 4

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def evidence(
        self, x_start: Tensor, embeddings: Mapping[int, Embedding], timesteps: tuple[int, ...], kind: str
    ) -> tuple[Tensor, Tensor]:
        """`scoring.evidence` of this network."""
        return evidence(
            self.schedule, self.network, x_start, embeddings, timesteps,
            perceive=self.extractor.perceptual, kind=kind, stride=self.stride,
        )  # fmt: skip

    def look(self, pictures: Tensor, timesteps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """`evidence` of the scored kind for pictures uint8 [n, 3, s, s], on the CPU, residuals in fp16."""
        found = []
        for picture in pictures.split(1):
            x_start = to_float(picture, self.device)
            embeddings = self._embeddings(x_start, self.extractor.embed(x_start), timesteps)
            pixel, feature = self.evidence(x_start, embeddings, timesteps, self.kind)
            found.append(((pixel.half() if pixel.dim() > 4 else pixel).cpu(), feature.half().cpu()))
        return torch.cat([pixel for pixel, _ in found]), torch.cat([feature for _, feature in found])

    def observe(self, pictures: Tensor, copies: Sequence[Tensor], kept: int) -> Observations:
        """Sum up the residuals of good pictures and of their changed copies, at each timestep's grid.

        Args:
            pictures: uint8 [n, 3, s, s].
            copies: changed copies of all pictures, of the same shape.
            kept: number of pictures, from the first, whose residuals themselves are kept.
        """
        grid = pictures.shape[-1] // self.extractor.cell
        shape = min(kept, len(pictures)), 1 + len(copies), len(TIMESTEPS), self.extractor.channels, grid, grid
        blocks = block(grid, PERCEPTUAL_BLOCK), block(grid, FEATURE_BLOCK)
        observed = Observations(
            sums=[[Scatter(places) for _ in TIMESTEPS] for places in blocks],
            own=[torch.empty(shape, dtype=torch.float16) for _ in blocks],
            features=[],
        )
        for begin in range(0, len(pictures), ROWS):
            rows = slice(begin, begin + ROWS)
            for number, batch in enumerate(each[rows] for each in (pictures, *copies)):
                x_start = to_float(batch, self.device)
                embedding = self.extractor.embed(x_start)
                observed.features.append(embedding.features.half())
                embeddings = self._embeddings(x_start, embedding, TIMESTEPS)
                for nth, t in enumerate(TIMESTEPS):
                    observed.add(self.evidence(x_start, embeddings, (t,), "perceptual"), rows, number, nth)
        return observed

    def _embeddings(
        self, x_start: Tensor, embedding: Embedding, timesteps: tuple[int, ...]
    ) -> dict[int, Embedding]:
        return shifted_embeddings(self.extractor.embed, x_start, embedding, timesteps)


@dataclass(frozen=True)
class Observations:
    """Residuals of good pictures and of their copies in both branches: perceptual, then features.

    Attributes:
        sums: by branch and grid.
        own: by branch, the residuals of the first pictures and of their copies, fp16
            [kept, 1 + copies, 3, c, g, g], on the CPU.
        features: of each batch, followed by those of its copies, fp16 [b, c, g, g].
    """

    sums: list[list[Scatter]]
    own: list[Tensor]
    features: list[Tensor]

    def add(self, residuals: tuple[Tensor, Tensor], rows: slice, number: int, grid: int) -> None:
        """Add residuals [b, 1, 1, c, g, g] of the pictures `rows`: as they are (number 0) or a copy."""
        for total, own, residual in zip(self.sums, self.own, residuals):
            total[grid].add(residual[:, 0, 0])
            kept = own[rows, number, grid]
            kept.copy_(residual[: len(kept), 0, 0])

    def moments(self, stages: Sequence[int], plain: bool) -> Sums:
        """What the Gaussians are fitted to, on the CPU. stages: see `ResidualGaussian.fit`."""
        cpu = torch.device("cpu")
        perceptual, residual = (Moments.of(grids, stages=stages).to(cpu) for grids in self.sums)
        if not plain:
            return Sums(perceptual, residual, None)
        places = block(self.features[0].shape[-1], FEATURE_BLOCK)
        return Sums(perceptual, residual, PlainMoments.of(self.features, block=places, stages=stages).to(cpu))


@dataclass(frozen=True)
class Sums:
    """What a profile's Gaussians are fitted to, from which they are fitted again with further pictures.

    Attributes:
        perceptual, residual: second moments of both branches' residuals.
        plain: of the plain features; None for a category without them.
    """

    perceptual: Moments
    residual: Moments
    plain: PlainMoments | None

    def plus(self, observed: Observations) -> Sums:
        """With the pictures that were observed, and their copies."""
        pixel, feature = observed.sums
        plain = None if self.plain is None else self.plain.plus(torch.cat(observed.features).float().cpu())
        return Sums(self.perceptual.plus(pixel), self.residual.plus(feature), plain)
