"""`Inspector`: load once, inspect and repair pictures. The one object that the page, the command line and
library users call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError
from diffad.inspection import (
    LOOK_RATE,
    Inspection,
    RepairStep,
    checked_alpha,
    checked_threshold,
    checked_timesteps,
)
from diffad.method.devices import pick_device, sharing, stepwise
from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.fusion import fuse
from diffad.method.image_score import ImageScore
from diffad.method.repair_options import RepairOptions
from diffad.method.scoring import TIMESTEPS, Embedding, RawMaps, evidence, shifted_embeddings
from diffad.method.tiling import Tiling, smallest_side
from diffad.method.unet import UNet
from diffad.pictures import quality
from diffad.pictures.depth import DEPTHS
from diffad.pictures.geometry import to_square, to_uint8
from diffad.pictures.reading import MIN_SIDE, DataError, Decoded, decode, read_image
from diffad.repairing import Repair

Picture = str | Path | Image.Image | np.ndarray
Turn = Callable[[], AbstractContextManager[None]]  # entered for each call of the network
SCALE_TOP = 8.0  # σ; where the colours of maps end, unless a category's threshold asks for more
# Median squared Mahalanobis distance per dimension: some 0.7 for parts, good or not, 3 or more for other
# things and for parts at another scale.
_FITS = 2.0
_FITS_WELL = 1.0  # what good pictures have on average
_WORTH_TILING = 0.2  # log-likelihood per dimension and place by which tiles must beat the whole picture
_ROWS_ON_CPU, _ROWS = 6, 96  # noised tiles a network call; more are no faster on a CPU, and fill memory


class Inspector:
    """A loaded checkpoint. Thread-safe: nothing changes after loading.

    network, extractor, schedule: what predicts, what that is compared with, and the noise. profiles: by
    category, with their distances on `device`. size: side of the square that the network was trained on, px;
    each category has its own (`size_of`). pixel_score, stride: see `scoring.pixel_score`.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", name: str = "model") -> None:
        """Raises CheckpointError if the weights do not fit their configuration, ValueError for a device that
        is not there.
        """
        self.name = name
        self.device = pick_device(device)
        self.size = checkpoint.config.size
        self.provenance = dict(checkpoint.provenance)
        self.timesteps = TIMESTEPS
        self.categories = tuple(checkpoint.profiles)
        self.pixel_score, self.stride = checkpoint.pixel_score, checkpoint.stride
        self.schedule = Schedule.named(checkpoint.schedule)
        self.profiles = {name: profile.to(self.device) for name, profile in checkpoint.profiles.items()}
        self.extractor = FeatureExtractor(checkpoint.backbone, checkpoint.config.cell)
        if self.extractor.channels != checkpoint.config.feature_channels:
            raise CheckpointError(f"its features are not those of the backbone {checkpoint.backbone}")
        self.network = UNet(checkpoint.config)
        try:
            self.network.load_state_dict(checkpoint.network)
            self.extractor.mean.copy_(checkpoint.feature_mean)
            self.extractor.std.copy_(checkpoint.feature_std)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit their configuration ({str(error).splitlines()[0]})"
            ) from None
        self.extractor.to(self.device)
        self.network.to(self.device).eval().requires_grad_(False)
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Inspector:
        """From a checkpoint file. device: "auto" (CUDA if present), "cpu", "cuda", "cuda:1". Raises
        CheckpointError, ValueError.
        """
        return cls(checkpoints.load(path), device, Path(path).stem)

    def size_of(self, category: str | None) -> int:
        """Side of the square in which a category is looked at, px; of None the network's own."""
        profile = self.profiles.get(category or "")
        return self.size if profile is None or profile.size is None else profile.size

    # -- good parts ------------------------------------------------------------------------------------------

    def good_scores(
        self, category: str, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS
    ) -> np.ndarray:
        """Scores of good pictures of a category, each as if it were none of those that its statistics are
        made of, inspected whole, float32 [pictures]; no network.
        """
        return self.scorer(category, alpha, timesteps).good

    def threshold(
        self, category: str, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS, rate: float = 0.01
    ) -> float:
        """Score that a share `rate` of good parts would exceed, inspected whole (`Inspection.threshold_at`
        knows about tiles); no network.
        """
        return self.scorer(category, alpha, timesteps).threshold(rate)

    def rate(
        self, category: str, score: float, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS
    ) -> float:
        """Share of good parts expected above `score`, in [0, 1], inspected whole; no network."""
        return self.scorer(category, alpha, timesteps).rate(score)

    def scorer(
        self, category: str, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS
    ) -> ImageScore:
        """How maps of a category are scored at this α and these timesteps; no network."""
        return self.profiles[self._known(category)].calibration.scorer(
            checked_alpha(alpha), checked_timesteps(timesteps)
        )

    def _known(self, category: str) -> str:
        if category not in self.profiles:
            raise ValueError(
                f"there is no category {category!r} in {self.name}; it knows {', '.join(self.categories)}"
            )
        return category

    def check_knows(self, categories: Iterable[str]) -> None:
        """Raises DataError if one of these, which pictures are labelled with, is not among the model's."""
        if unknown := [name for name in categories if name not in self.categories]:
            raise DataError(
                f"{self.name} has no category {', '.join(unknown)}: "
                f"give a model that has, or only folders of {', '.join(self.categories)}"
            )

    def scale_top(self, category: str) -> float:
        """Top of the colour scale in σ, the same for every picture of a category, so that two can be
        compared.
        """
        return max(SCALE_TOP, 2 * self.threshold(category))

    # -- inspection ------------------------------------------------------------------------------------------

    def inspect(
        self,
        image: Picture,
        category: str | None = None,
        timesteps: Sequence[int] = TIMESTEPS,
        alpha: float = 0.5,
        seed: int = 0,
        draws: int = 1,
        threshold: float | None = None,
        look_threshold: float | None = None,
        tile: int | Literal["auto"] | None = "auto",
        progress: Callable[[int, int], None] | None = None,
        bits: int | None = None,
        batch_bits: int | None = None,
        turn: Turn = nullcontext,
        max_tiles: int | None = None,
    ) -> Inspection:
        """Inspect one picture: a path, Pillow picture or array of any size.

        category: None recognises it. timesteps: 1 to 12 of 0 … 999; they are a set, so order and repetition
        do not count. alpha: balance of the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the
        pixels counts a twentieth of a σ of the features. draws: noise draws a timestep, 1 to 16, averaged.
        threshold: above it a part is anomalous; None takes the score that 1 good picture in 100 would exceed.
        look_threshold: above it, up to the threshold, it is one to look at; None takes the score that 1 in 10
        would exceed. One above the threshold counts as the threshold.

        tile: None shows the model the whole picture, scaled to the category's size (`size_of`). A number cuts
        the picture into squares of that side in px, overlapping by a quarter or more, for surfaces finer than
        the whole picture shows. "auto" decides for pictures at least twice that size, and for those longer
        than twice their width: it cuts where the features of tiles, of that size or larger, are those of good
        parts and the whole picture's are not. Parts that are turned upright are seen whole: "auto"
        never cuts them, a number is refused. max_tiles: more are refused; None takes any number.
        progress: called with the tiles done and their number; turn: `with turn():` encloses each call of the
        network, a handful of tiles at a time, for those who share it. What the two raise ends the inspection.

        bits: how many the camera has (8, 10, 12, 14, 16), whose pictures lie in files of more than 8. None
        takes those of the category's training pictures; where those were 8-bit files, `batch_bits`, those of
        the batch that this picture belongs to (`data.common_bits`); else what its own highest value asks for.
        A value that is beyond all that counts: see the result's `bits` and `notes`.

        Same arguments, same result with as many threads. Beside other programs a CPU computes with fewer
        (`devices.sharing`), and rounding then moves scores by some 0.02 %. Raises DataError for a picture
        that cannot be read, is too large for such small tiles or for `max_tiles`, or may not be cut into any,
        ValueError for settings out of range.
        """
        timesteps, alpha = checked_timesteps(timesteps), checked_alpha(alpha)
        if not 1 <= draws <= 16:
            raise ValueError(f"draws must lie in 1 … 16, not {draws}")
        if isinstance(tile, Integral):
            tile = int(tile)
        if tile not in (None, "auto") and not (isinstance(tile, int) and tile >= MIN_SIDE):
            raise ValueError(f'tile is None, "auto" or at least {MIN_SIDE} px, not {tile!r}')
        limits = [each if each is None else checked_threshold(each) for each in (threshold, look_threshold)]
        for each in (bits, batch_bits):
            if each not in (None, *DEPTHS):
                raise ValueError(f"bits are one of {', '.join(map(str, DEPTHS))}, not {each!r}")
        begun = time.perf_counter()
        decoded = decode(image)
        names = self.categories if category is None else (self._known(category),)
        turn = partial(_computing, turn, self.device)
        look, pixels, used = self._look_for_bits(decoded, names, tile, bits, batch_bits, turn)
        _check_number(look.tiling, max_tiles)
        maps, plain = self._blended_maps(pixels, look, timesteps, seed, draws, progress, turn)
        inspection = Inspection(
            image=pixels,
            category=look.category,
            recognised=category is None,
            category_fits=look.distance < _FITS,
            alpha=alpha,
            timesteps=timesteps,
            seed=seed,
            threshold=math.nan,
            _look=math.nan,
            _maps={t: (maps[0][i], maps[1][i]) for i, t in enumerate(timesteps)},
            _plain=plain,
            _tiling=look.tiling,
            _calibration=self.profiles[look.category].calibration,
            seconds=0.0,
            bits=used,
            notes=(*self._notes(decoded, used, look.category, bits, batch_bits), *self._quality_notes(look)),
        )
        threshold, look = (
            inspection.threshold_at(rate) if limit is None else limit
            for limit, rate in zip(limits, (0.01, LOOK_RATE))
        )
        return replace(inspection, threshold=threshold, _look=look, seconds=time.perf_counter() - begun)

    @torch.no_grad()
    def features(self, image: Picture) -> np.ndarray:
        """The backbone's features of a whole picture in a letterbox of `size`, standardised over good parts:
        float32 [channels, grid, grid]. Raises DataError.
        """
        square, _ = to_square(read_image(image), self.size)
        with sharing(self.device):
            return self.extractor(square[None].to(self.device))[0].cpu().numpy()

    def whole(self, image: np.ndarray, category: str) -> Tiling:
        """How the model sees a whole picture uint8 [H, W, 3] of a category: turned upright, if that is how it
        knows it, and if the picture shows a pose.
        """
        upright, size = self.profiles[self._known(category)].upright, self.size_of(category)
        turn = None if upright is None else upright.turn(to_square(image, size)[0])
        return Tiling.whole(*image.shape[:2], size, turn)

    def bits(self, category: str | None, found: int | None) -> int | None:
        """How many bits a category's camera has: those of its training pictures; if they were 8-bit files, or
        the category is not known, those `found` in a set of pictures.
        """
        profile = self.profiles.get(category or "")
        return found if profile is None else profile.bits or found

    def _look_for_bits(
        self,
        decoded: Decoded,
        names: Sequence[str],
        tile: int | Literal["auto"] | None,
        bits: int | None,
        batch_bits: int | None,
        turn: Turn,
    ) -> tuple[_Look, np.ndarray, int]:
        """Look at the picture with the bits of each category's camera, at each one's size: the best look, its
        image and bits.
        """
        by_reading: dict[tuple[int, int], list[str]] = {}
        for name in names:
            used = decoded.bits(bits or self.bits(name, batch_bits))
            by_reading.setdefault((used, self.size_of(name)), []).append(name)
        looks, refused = [], None
        for (used, _), some in by_reading.items():
            image = decoded.image(used)
            try:
                looks.append((self._look(image, some, tile, turn), image, used))
            except DataError as error:  # of categories that cannot be cut into tiles
                refused = error
        best = max(looks, key=lambda each: each[0].gain, default=None)
        if best is None or (refused is not None and best[0].distance >= _FITS):
            raise refused
        return best

    def _notes(
        self, decoded: Decoded, used: int, category: str, bits: int | None, batch_bits: int | None
    ) -> tuple[str, ...]:
        """Notes on how a picture's values were read."""
        expected = bits or self.bits(category, batch_bits)
        if decoded.is_plain or used == (expected or DEPTHS[-1]):
            return ()
        value = f"its highest value is {decoded.highest:.6g}"
        if expected is None:
            return (
                f"Read as {used} bits, since {value}: if your camera has more, inspect the picture in a "
                "batch with brighter ones, or say how many (bits, --bits).",
            )
        whose = f"the {expected} bits expected"
        if not bits and self.profiles[category].bits:
            whose = f"the {expected} bits of the pictures that {category} was trained on"
        return (f"Read as {used} bits, since {value}, beyond {whose}: it looks darker than those.",)

    def _quality_notes(self, look: _Look) -> tuple[str, ...]:
        """Notes on light, sharpness and noise that lie outside the range of the good pictures."""
        known = self.profiles[look.category].quality
        if known is None or look.distance >= _FITS:  # something else entirely, which has a note of its own
            return ()
        tiles = zip(to_uint8(look.squares).permute(0, 2, 3, 1).cpu().numpy(), look.tiling.sample())
        values = [quality.measured(square, look.tiling.inside(tile).numpy()) for square, tile in tiles]
        note = quality.note(np.median(values, axis=0), known)
        return (note,) if note else ()

    def _look(
        self, image: np.ndarray, names: Sequence[str], tile: int | Literal["auto"] | None, turn: Turn
    ) -> _Look:
        """Choose the tiling, and the category among several of one size, by how well a handful of tiles
        fit.
        """
        height, width = image.shape[:2]
        size = self.size_of(names[0])
        plain = [name for name in names if self.profiles[name].upright is None]  # tiles show no pose
        if isinstance(tile, int) and tile < max(height, width):
            self._check_not_turned(image, names, plain, turn)
            return self._look_at(image, plain, Tiling.squares(height, width, size, tile), turn)
        whole = self._look_at_whole(image, names, turn)
        if tile != "auto" or whole.distance < _FITS_WELL or not plain:
            return whole
        best = whole
        for side in _sides(height, width, size):
            tiled = self._look_at(image, plain, Tiling.squares(height, width, size, side), turn)
            ahead = _WORTH_TILING if best is whole else 0.0
            if tiled.distance < _FITS and tiled.likelihood > best.likelihood + ahead:
                best = tiled
        return best

    def _check_not_turned(
        self, image: np.ndarray, names: Sequence[str], plain: Sequence[str], turn: Turn
    ) -> None:
        """Raises DataError for a picture that shall be tiled, if it is of one of `names` that is turned
        upright, which are those that are not `plain`.
        """
        if len(plain) == len(names):
            return
        category = names[0]
        if len(names) > 1:
            whole = self._look_at_whole(image, names, turn)
            if plain and (whole.category in plain or whole.distance >= _FITS):
                return
            category = whole.category
        raise DataError(
            f"{category} is turned upright before it is looked at, which tiles cannot be: inspect it whole"
        )

    def _look_at_whole(self, image: np.ndarray, names: Sequence[str], turn: Turn) -> _Look:
        """As it is, for the categories that are seen so; if none fits, turned for each of the others."""
        plain = [name for name in names if self.profiles[name].upright is None]
        as_it_is = Tiling.whole(*image.shape[:2], self.size_of(names[0]))
        best = self._look_at(image, plain, as_it_is, turn) if plain else None
        for name in names:
            if name not in plain and (best is None or best.distance >= _FITS_WELL):
                look = self._look_at(image, [name], self.whole(image, name), turn)
                best = look if best is None or look.likelihood > best.likelihood else best
        assert best is not None  # a model knows a category
        return best

    @torch.no_grad()
    def _look_at(self, image: np.ndarray, names: Sequence[str], tiling: Tiling, turn: Turn) -> _Look:
        squares = torch.stack([tiling.square(image, tile) for tile in tiling.sample()]).to(self.device)
        with turn():
            embedding = self.extractor.embed(squares)
            gaussians = {name: self.profiles[name].gaussian for name in names}
            likelihoods = {
                name: float(gaussian.log_likelihood(embedding.features).mean(dim=(1, 2)).median())
                for name, gaussian in gaussians.items()
            }
            name = max(likelihoods, key=likelihoods.__getitem__)
            anything = -0.5 * gaussians[name].project(embedding.features).square().mean(dim=1)
            distances = gaussians[name].squared_mahalanobis(embedding.features).flatten(1)
            distance = float(distances.median(dim=1).values.median())
        gain = likelihoods[name] - float(anything.mean(dim=(1, 2)).median())
        return _Look(tiling, name, likelihoods[name], gain, distance, squares, embedding)

    @torch.no_grad()
    def _blended_maps(
        self,
        image: np.ndarray,
        look: _Look,
        timesteps: tuple[int, ...],
        seed: int,
        draws: int,
        progress: Callable[[int, int], None] | None,
        turn: Turn,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Standardised maps of all tiles on the tiling's grid, float32 [2 (pixel, feature), n_t, h, w], and
        those of the plain features [h, w], if the category has them.
        """
        tiling, tiles = look.tiling, look.tiling.tiles
        count = len(timesteps)
        blended = np.zeros((2 * count + 1, *tiling.shape), dtype=np.float32)
        rows = _ROWS_ON_CPU if self.device.type == "cpu" else _ROWS
        many = max(1, rows // (len(timesteps) * draws))
        for first in range(0, len(tiles), many):
            batch = tiles[first : first + many]
            x_start, embedding = look.squares, look.embedding
            if len(tiles) > 1:
                x_start = torch.stack([tiling.square(image, tile) for tile in batch]).to(self.device)
            with turn():
                embedding = embedding if len(tiles) == 1 else self.extractor.embed(x_start)
                maps = self._standard_maps(x_start, embedding, look.category, timesteps, seed, draws)
            plain = maps.pixel[:, :0] if maps.plain is None else maps.plain[:, None]
            every = torch.cat([maps.pixel, maps.feature, plain], dim=1).cpu()
            for tile, of_tile in zip(batch, every, strict=True):
                cells = tiling.to_cells(of_tile, tile).numpy()
                blended[(slice(len(cells)), *tile.cells)] += tile.weight * cells
            if progress is not None:
                progress(first + len(batch), len(tiles))
        branches = blended[: 2 * count].reshape(2, count, *tiling.shape)
        return branches, None if self.profiles[look.category].plain is None else blended[-1]

    @torch.no_grad()
    def _standard_maps(
        self,
        x_start: Tensor,
        embedding: Embedding,
        category: str,
        timesteps: tuple[int, ...],
        seed: int,
        draws: int,
    ) -> RawMaps:
        pixel, residual = evidence(
            self.schedule,
            self.network,
            x_start,
            shifted_embeddings(self.extractor.embed, x_start, embedding, timesteps),
            timesteps,
            perceive=self.extractor.perceptual,
            seed=seed,
            draws=draws,
            kind=self.pixel_score,
            stride=self.stride,
        )
        profile = self.profiles[category]
        return profile.calibration.standardise(
            profile.raw_maps(pixel, residual, embedding.features, x_start.shape[-1], timesteps)
        )

    # -- repair ----------------------------------------------------------------------------------------------

    def repair(
        self,
        image: Picture,
        category: str | None = None,
        options: RepairOptions = RepairOptions(),  # noqa: B008 - immutable
        *,
        seed: int = 0,
        alpha: float = 0.5,
        threshold: float | None = None,
        tile: int | Literal["auto"] | None = "auto",
        bits: int | None = None,
        turn: Turn = nullcontext,
        max_tiles: int | None = None,
    ) -> Iterator[RepairStep]:
        """Repair a picture by gradient denoising; yields step 0 (untouched), then every step.

        Only the change is resized, so details outside the repair keep the picture's own resolution. See
        `repairing.Repair` for how a repair goes on and when it ends.

        Args:
            seed, alpha, threshold, tile, bits, max_tiles: as in `inspect`.
            turn: as in `inspect`, and around each step.

        Raises:
            DataError, ValueError: as `inspect`, before the first step.
        """
        first = self.inspect(
            image, category, alpha=alpha, seed=seed, threshold=threshold, tile=tile, bits=bits, turn=turn,
            max_tiles=max_tiles,
        )  # fmt: skip
        return stepwise(iter(Repair(self, first, options)), partial(_computing, turn, self.device))

    @torch.no_grad()
    def fused_square(self, x: Tensor, first: Inspection) -> np.ndarray:
        """The fused map [size, size] of one square [1, 3, size, size] under an inspection's settings."""
        maps = self._standard_maps(
            x, self.extractor.embed(x), first.category, first.timesteps, first.seed, draws=1
        )
        plain = None if maps.plain is None else maps.plain[0].cpu().numpy()
        return fuse(maps.pixel[0].cpu().numpy(), maps.feature[0].cpu().numpy(), first.alpha, plain)


@dataclass(frozen=True)
class _Look:
    """What a handful of tiles say about a tiling: the category that fits best, the median log-likelihood and
    squared Mahalanobis distance under it; the tiles [b, 3, size, size] and what the backbone sees of them.

    gain: how much likelier its features are of the category than of any picture, whose standardised ones are
    N(0, I): so looks at other sizes and bits, which are densities of other things, can be compared.
    """

    tiling: Tiling
    category: str
    likelihood: float
    gain: float
    distance: float
    squares: Tensor
    embedding: Embedding


def _check_number(tiling: Tiling, most: int | None) -> None:
    count = len(tiling.tiles)
    if most is not None and count > most:
        raise DataError(
            f"a picture of {tiling.width} × {tiling.height} px needs {count} tiles of {tiling.side} px, and "
            f"no more than {most} are taken here: scale it down or cut it up"
        )


@contextmanager
def _computing(turn: Turn, device: torch.device) -> Iterator[None]:
    """A turn, and within it the fair number of threads."""
    with turn(), sharing(device):
        yield


def _sides(height: int, width: int, size: int) -> list[int]:
    """Of tiles, in px, worth a look: the model's size and its doubles in large pictures, the width of long
    ones.
    """
    short, longest = sorted((height, width))
    sides = [size << k for k in range(16) if 2 * (size << k) <= short]
    if longest > 2 * short:
        sides.append(short)
    smallest = smallest_side(height, width)
    return sorted({max(side, smallest) for side in sides if 2 * side >= smallest})
