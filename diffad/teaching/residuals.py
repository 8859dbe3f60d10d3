"""What the networks cannot explain of good pictures, summed up for the Gaussians that are fitted on it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.gaussian import LeftOut, ResidualGaussian, Scatter
from diffad.method.nuisances import random_copy
from diffad.method.scoring import TIMESTEPS, Embedding, evidence, shifted_embeddings
from diffad.method.unet import UNet
from diffad.pictures.geometry import to_float

ROWS = 4  # pictures a network call; a CPU is slower with more
FITTED = 768  # pictures that the covariances are fitted on, at most
CALIBRATED = 192  # of them, whose scores are remembered
_USUAL = 32  # places a side of the grid at 256 px; finer grids need fewer pictures
_KEPT_PLACES = 96 * 64**2  # of all calibrated pictures, whose residuals are in memory at once: 2 GB
FEATURE_BLOCK, PERCEPTUAL_BLOCK = 2, 4  # places a side that share a covariance; more on finer grids
_COPIES, _ENOUGH_COPIES = 4, 128  # of a picture at most, of all


def limits(grid: int) -> tuple[int, int]:
    """How many pictures are fitted, and how many of these calibrated, at most. grid: places a side.

    A block of a finer grid has more places, so that fewer pictures give as many observations; and the
    residuals of the calibrated pictures are all kept until the end.
    """
    fitted = min(FITTED, FITTED * _USUAL**2 // grid**2)
    return fitted, min(CALIBRATED, fitted, _KEPT_PLACES // grid**2)


def block(grid: int, least: int) -> int:
    """Places a side of a block that shares a covariance: `least` on grids of up to 32 places a side.

    Blocks of finer grids are larger, so that there are no more of them and a file stays as small.
    """
    wanted = max(least, least * grid / _USUAL)
    return next(places for places in range(1, grid + 1) if grid % places == 0 and places >= wanted)


def copies_of(count: int) -> int:
    """How many changed copies of each of `count` pictures are fitted: more of few, which vary less."""
    return max(1, min(_COPIES, _ENOUGH_COPIES // count))


def changed_copies(pictures: Tensor, number: int = 0) -> Tensor:
    """A changed copy of each picture, uint8 [n, 3, s, s] → the same shape (`nuisances.random_copy`).

    A picture always has the same copy of this number, whatever the other pictures are.
    """
    images = [picture.permute(1, 2, 0).contiguous().numpy() for picture in pictures]
    rngs = [np.random.default_rng((0, zlib.crc32(image), number)) for image in images]
    copies = [random_copy(image, rng) for image, rng in zip(images, rngs)]
    return torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Observer:
    """The networks that look at a category's pictures. kind, stride: of the pixel score (`evidence`)."""

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
        """`evidence` of the scored kind for uint8 [n, 3, s, s], on the CPU; residuals in fp16."""
        found = []
        for picture in pictures.split(1):
            x_start = to_float(picture, self.device)
            embeddings = self._embeddings(x_start, self.extractor.embed(x_start), timesteps)
            pixel, feature = self.evidence(x_start, embeddings, timesteps, self.kind)
            found.append(((pixel.half() if pixel.dim() > 4 else pixel).cpu(), feature.half().cpu()))
        return torch.cat([pixel for pixel, _ in found]), torch.cat([feature for _, feature in found])

    def observe(self, pictures: Tensor, copies: Sequence[Tensor], kept: int) -> Observations:
        """Residuals of good pictures and of their changed copies at every timestep, on its grid.

        Args:
            pictures: uint8 [n, 3, s, s].
            copies: changed copies of all of them, of the same shape.
            kept: of how many of the first pictures the residuals themselves are kept.
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
    """Residuals of good pictures and of their copies, of both branches: perceptual, then features.

    sums: by branch and grid. own: by branch, the residuals of the first pictures and of their copies, fp16 on
    the CPU, [kept, 1 + copies, 3, c, g, g]. features: of every batch, and after each those of its copies,
    fp16 [b, c, g, g].
    """

    sums: list[list[Scatter]]
    own: list[Tensor]
    features: list[Tensor]

    def add(self, residuals: tuple[Tensor, Tensor], rows: slice, number: int, grid: int) -> None:
        """Residuals [b, 1, 1, c, g, g] of the pictures `rows`: themselves (number 0) or a copy."""
        for total, own, residual in zip(self.sums, self.own, residuals):
            total[grid].add(residual[:, 0, 0])
            kept = own[rows, number, grid]
            kept.copy_(residual[: len(kept), 0, 0])

    def fit(self, stages: Sequence[int]) -> list[tuple[ResidualGaussian, LeftOut]]:
        """Of each branch its Gaussian, and how that would measure these pictures left out; on the CPU."""
        cpu = torch.device("cpu")
        fits = [ResidualGaussian.fit(grids, stages=stages) for grids in self.sums]
        return [(gaussian.to(cpu), left_out.to(cpu)) for gaussian, left_out in fits]
