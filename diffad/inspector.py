"""`Inspector`, which loads a checkpoint and inspects and repairs pictures.

It is used by the page, by the command line and by library users.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffad import checkpoint as checkpoints
from diffad.checkpoint import Checkpoint, CheckpointError
from diffad.inspection import Inspection, RepairStep
from diffad.method.devices import pick_device, sharing, stepwise
from diffad.method.diffusion import Schedule
from diffad.method.features import FeatureExtractor
from diffad.method.fusion import fuse
from diffad.method.image_score import ImageScore
from diffad.method.profile import Profile
from diffad.method.repair_options import RepairOptions
from diffad.method.scoring import TIMESTEPS, Embedding, RawMaps, evidence, shifted_embeddings
from diffad.method.tiling import Tiling
from diffad.method.unet import UNet
from diffad.pictures.arrays import F32, U8, Bools
from diffad.pictures.depth import DEPTHS
from diffad.pictures.geometry import resize_maps, to_square
from diffad.pictures.reading import MIN_SIDE, DataError, Picture, decode, read_image
from diffad.recognition import FITS, Look, Recognition, TileSide, Turn
from diffad.repairing import Repair
from diffad.verdicts import LOOK_RATE, checked_alpha, checked_threshold, checked_timesteps

SCALE_TOP = 8.0  # σ; minimum top of the colour scale of maps
_ROWS_ON_CPU, _ROWS = 6, 96  # noised tiles per network call; more are not faster on a CPU and need memory


class Inspector:
    """A loaded checkpoint. Thread-safe, since nothing changes after loading.

    Attributes:
        name: for messages.
        device: where it computes.
        network: the U-Net.
        extractor: the backbone, whose features the network predicts.
        schedule: of the noise.
        profiles: by category, with their Gaussians on `device`.
        categories: their names.
        size: side of the square that the network was trained on, px; see also `size_of`.
        timesteps: the default ones.
        pixel_score, stride: see `scoring.pixel_score`.
        provenance: see `Checkpoint`.
        parameters: their number in the network.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", name: str = "model") -> None:
        """Move a checkpoint to a device.

        Raises:
            CheckpointError: the weights do not fit their configuration.
            ValueError: the device does not exist.
        """
        self.name = name
        self.file: Path | None = None  # that it was loaded from
        self.device = pick_device(device)
        self.size = checkpoint.config.size
        self.provenance = dict(checkpoint.provenance)
        self.timesteps = TIMESTEPS
        self.categories = tuple(checkpoint.profiles)
        self.pixel_score, self.stride = checkpoint.pixel_score, checkpoint.stride
        self.schedule = Schedule.named(checkpoint.schedule)
        self.profiles: Mapping[str, Profile] = {
            name: profile.to(self.device) for name, profile in checkpoint.profiles.items()
        }
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
        """Load a checkpoint file.

        Args:
            path: the file.
            device: "auto" (CUDA if available), "cpu", "cuda", "cuda:1" etc.

        Raises:
            CheckpointError: the file cannot be used.
            ValueError: the device does not exist.
        """
        inspector = cls(checkpoints.load(path), device, Path(path).stem)
        inspector.file = Path(path)
        return inspector

    def with_profiles(self, profiles: Mapping[str, Profile]) -> Inspector:
        """The same networks with other categories; neither inspector changes the other.

        Raises ValueError without a category.
        """
        if not profiles:
            raise ValueError("an inspector needs at least one category")
        other = copy(self)
        other.profiles = {name: profile.to(self.device) for name, profile in profiles.items()}
        other.categories = tuple(profiles)
        return other

    @cached_property
    def network_id(self) -> str:
        """16 hexadecimal digits that tell networks apart; categories taught to one suit no other."""
        digest = hashlib.sha256()
        for value in (*self.network.state_dict().values(), self.extractor.mean, self.extractor.std):
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def _recognition(self) -> Recognition:
        return Recognition(self.profiles, self.extractor, self.size, self.device)

    def size_of(self, category: str | None) -> int:
        """See `Recognition.size_of`."""
        return self._recognition.size_of(category)

    def whole(self, image: U8, category: str) -> Tiling:
        """See `Recognition.whole`. Raises ValueError for a category that the model does not know."""
        return self._recognition.whole(image, self._known(category))

    def ignored(self, image: U8, category: str) -> Bools | None:
        """Where nothing of a whole picture of a category is judged, bool [H, W]; None if everything is."""
        cells = self._ignored_cells(self.whole(image, category), category)
        return None if cells is None else resize_maps(cells, image.shape[:2]) > 0.5

    def _ignored_cells(self, tiling: Tiling, category: str) -> F32 | None:
        ignored = self.profiles[category].ignored
        return None if ignored is None else tiling.ignored_cells(ignored)

    def bits(self, category: str | None, found: int | None) -> int | None:
        """See `Recognition.bits`."""
        return self._recognition.bits(category, found)

    # -- good parts, without the network ---------------------------------------------------------------------

    def threshold(
        self, category: str, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS, rate: float = 0.01
    ) -> float:
        """Score that a share `rate` of good parts is expected to exceed if inspected whole.

        For tiled pictures see `Inspection.threshold_at`.
        """
        return self.scorer(category, alpha, timesteps).threshold(rate)

    def scorer(self, category: str, alpha: float = 0.5, timesteps: Sequence[int] = TIMESTEPS) -> ImageScore:
        """The image score of a category at this α and these timesteps. Raises ValueError for invalid ones."""
        return self.profiles[self._known(category)].judging.scorer(
            checked_alpha(alpha), checked_timesteps(timesteps)
        )

    def _known(self, category: str) -> str:
        if category not in self.profiles:
            raise ValueError(
                f"there is no category {category!r} in {self.name}; it has {', '.join(self.categories)}"
            )
        return category

    def check_knows(self, categories: Iterable[str]) -> None:
        """Raise DataError if the model lacks one of these categories."""
        if unknown := [name for name in categories if name not in self.categories]:
            raise DataError(
                f"{self.name} has no category {', '.join(unknown)}: "
                f"give a model that has, or only folders of {', '.join(self.categories)}"
            )

    def scale_top(self, category: str) -> float:
        """Top of the colour scale in σ, the same for all pictures of a category."""
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
        tile: TileSide = "auto",
        progress: Callable[[int, int], None] | None = None,
        bits: int | None = None,
        batch_bits: int | None = None,
        turn: Turn = nullcontext,
        max_tiles: int | None = None,
    ) -> Inspection:
        """Inspect one picture of any size.

        The result is deterministic for the same arguments and number of threads. Beside other programs a CPU
        uses fewer threads (`devices.sharing`), and rounding then changes scores by about 0.02 %.

        Args:
            image: a path, Pillow image or array, see `reading.decode`.
            category: None recognises it.
            timesteps: 1 to 12 from 0 to 999; order and repetitions do not matter.
            alpha: balance of the two branches: 0 features only, 1 pixels only; at 0.5 a σ of the pixels
                counts a twentieth of a σ of the features.
            seed: of the noise.
            draws: noise draws per timestep, averaged, 1 to 16.
            threshold: score above which a part is anomalous; None is the score that 1 good picture in 100 is
                expected to exceed.
            look_threshold: score above which, up to the threshold, a person should look at the part; None is
                the score that 1 good picture in 10 is expected to exceed. At most the threshold.
            tile: None inspects the whole picture, scaled to the category's size (`size_of`). A number cuts it
                into square tiles of that side in px, overlapping by at least a quarter, for finer detail.
                "auto" tiles a picture at least twice as large as the category's size, or more than twice as
                long as wide, if the features of tiles fit those of good parts and the whole picture's do not.
                Categories whose parts are rotated are always inspected whole: "auto" never tiles them and a
                number is refused.
            progress: called with the numbers of tiles done and of all tiles.
            bits: bit depth of the camera (8, 10, 12, 14 or 16), for files with more than 8 bits. None is that
                of the category's training pictures or, if those were 8-bit files, `batch_bits`, or else what
                the highest value requires. Higher values than expected raise it; see `Inspection.bits`.
            batch_bits: bit depth found in the batch that this picture belongs to (`reading.common_bits`).
            turn: context manager entered for each use of the networks, for callers that share a device.
            max_tiles: refuse pictures that need more tiles.

        Raises:
            DataError: the picture cannot be read, is too large for such small tiles or for `max_tiles`, or
                cannot be tiled.
            ValueError: a setting is out of range.
        """
        timesteps, alpha = checked_timesteps(timesteps), checked_alpha(alpha)
        if isinstance(tile, Integral):
            tile = int(tile)
        _check_settings(draws, tile, bits, batch_bits)
        limits = [each if each is None else checked_threshold(each) for each in (threshold, look_threshold)]
        begun = time.perf_counter()
        decoded = decode(image)
        names = self.categories if category is None else (self._known(category),)
        turn = partial(_computing, turn, self.device)
        look, pixels, used = self._recognition.look(decoded, names, tile, bits, batch_bits, turn)
        _check_number(look.tiling, max_tiles)
        maps, plain = self._blended_maps(pixels, look, timesteps, seed, draws, progress, turn)
        if (ignored := self._ignored_cells(look.tiling, look.category)) is not None:
            maps, plain = maps * (1 - ignored), None if plain is None else plain * (1 - ignored)
        inspection = Inspection(
            image=pixels,
            category=look.category,
            recognised=category is None,
            category_fits=look.distance < FITS,
            alpha=alpha,
            timesteps=timesteps,
            seed=seed,
            threshold=math.nan,
            _look=math.nan,
            _maps={t: (maps[0][i], maps[1][i]) for i, t in enumerate(timesteps)},
            _plain=plain,
            _tiling=look.tiling,
            _calibration=self.profiles[look.category].judging,
            _ignored=ignored,
            seconds=0.0,
            bits=used,
            notes=(
                *self._recognition.reading_notes(decoded, used, look.category, bits, batch_bits),
                *self._recognition.quality_notes(look),
            ),
        )
        threshold, look_threshold = (
            inspection.threshold_at(rate) if limit is None else limit
            for limit, rate in zip(limits, (0.01, LOOK_RATE))
        )
        return replace(
            inspection, threshold=threshold, _look=look_threshold, seconds=time.perf_counter() - begun
        )

    @torch.no_grad()
    def features(self, image: Picture) -> F32:
        """Standardised backbone features of a whole picture letterboxed to `size` px.

        Returns float32 [channels, grid, grid]. Raises DataError if the picture cannot be read.
        """
        square, _ = to_square(read_image(image), self.size)
        with sharing(self.device):
            return self.extractor.embed(square[None].to(self.device)).features[0].cpu().numpy()

    @torch.no_grad()
    def _blended_maps(
        self,
        image: U8,
        look: Look,
        timesteps: tuple[int, ...],
        seed: int,
        draws: int,
        progress: Callable[[int, int], None] | None,
        turn: Turn,
    ) -> tuple[F32, F32 | None]:
        """Blend the standardised maps of all tiles on the tiling's grid.

        Returns:
            Maps of both branches, float32 [2 (pixel, feature), n_t, h, w], and of the plain features [h, w]
            if the category uses them.
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
        tile: TileSide = "auto",
        bits: int | None = None,
        turn: Turn = nullcontext,
        max_tiles: int | None = None,
    ) -> Iterator[RepairStep]:
        """Repair a picture by gradient denoising.

        Only the change is resampled, so details outside the repaired places keep the picture's resolution.
        See `repairing.Repair` for the course of a repair and when it ends.

        Args:
            image, category, seed, alpha, threshold, tile, bits, max_tiles: as in `inspect`.
            options: settings of the repair.
            turn: as in `inspect`; also entered for each step.

        Yields:
            Step 0, the unchanged picture, then every step.

        Raises:
            DataError, ValueError: as `inspect`, before the first step.
        """
        first = self.inspect(
            image, category, alpha=alpha, seed=seed, threshold=threshold, tile=tile, bits=bits, turn=turn,
            max_tiles=max_tiles,
        )  # fmt: skip
        return stepwise(iter(Repair(self, first, options)), partial(_computing, turn, self.device))

    @torch.no_grad()
    def fused_square(self, x: Tensor, first: Inspection) -> F32:
        """The fused map, float32 [size, size], of a square [1, 3, size, size] by an inspection's settings.

        Ignored places count here.
        """
        maps = self._standard_maps(
            x, self.extractor.embed(x), first.category, first.timesteps, first.seed, draws=1
        )
        plain = None if maps.plain is None else maps.plain[0].cpu().numpy()
        return fuse(maps.pixel[0].cpu().numpy(), maps.feature[0].cpu().numpy(), first.alpha, plain)


def _check_settings(draws: int, tile: TileSide, bits: int | None, batch_bits: int | None) -> None:
    """Raise ValueError for settings of `Inspector.inspect` that are out of range."""
    if not 1 <= draws <= 16:
        raise ValueError(f"draws must be from 1 to 16, not {draws}")
    if tile not in (None, "auto") and not (isinstance(tile, int) and tile >= MIN_SIDE):
        raise ValueError(f'tile is None, "auto" or at least {MIN_SIDE} px, not {tile!r}')
    for each in (bits, batch_bits):
        if each not in (None, *DEPTHS):
            raise ValueError(f"bits are one of {', '.join(map(str, DEPTHS))}, not {each!r}")


def _check_number(tiling: Tiling, most: int | None) -> None:
    count = len(tiling.tiles)
    if most is not None and count > most:
        raise DataError(
            f"a picture of {tiling.width} × {tiling.height} px needs {count} tiles of {tiling.side} px, and "
            f"no more than {most} are allowed: scale it down or cut it up"
        )


@contextmanager
def _computing(turn: Turn, device: torch.device) -> Iterator[None]:
    """Enter `turn`, and within it limit the number of threads (`sharing`)."""
    with turn(), sharing(device):
        yield
