"""Initial weights have the promised spread; encoder weights arrive whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate
from torchvision import models

from app.architectures.base import Architecture, get, registry
from app.architectures.blocks import transposed
from app.architectures.initialise import bilinear_kernel, initialise, load_encoder
from app.errors import CheckpointError, CheckpointRefused

from .nets import hashed

ENCODERS = [a for a in registry().values() if a.encoder]
every_encoder = pytest.mark.parametrize("architecture", ENCODERS, ids=[a.name for a in ENCODERS])

LAYERS: list[tuple[nn.Conv2d | nn.ConvTranspose2d, float]] = [
    (nn.Conv2d(64, 128, 3), 64 * 9),
    (nn.Conv2d(64, 256, 1), 64),
    (nn.Conv2d(64, 128, 3, groups=4), 16 * 9),
    # A transposed convolution of stride 2 sums a quarter of its taps into each output pixel.
    (nn.ConvTranspose2d(64, 128, 3, stride=2), 64 * 9 / 4),
    (nn.ConvTranspose2d(64, 128, 4, stride=2), 64 * 4),
    (nn.ConvTranspose2d(64, 256, 2, stride=2), 64),
]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize(("layer", "fan_in"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
@pytest.mark.parametrize("scheme", ["he", "lecun-uniform"])
def test_spread_follows_the_formula(
    layer: nn.Conv2d | nn.ConvTranspose2d, fan_in: float, scheme: str
) -> None:
    initialise(layer, scheme=scheme, generator=seeded())
    weight = layer.weight.detach().double()
    variance = (2 if scheme == "he" else 1) / fan_in
    # Four standard errors of the mean and, generously, of the variance (kurtosis 3).
    assert abs(float(weight.mean())) < 4 * math.sqrt(variance / weight.numel())
    assert abs(float(weight.var()) / variance - 1) < 4 * math.sqrt(2 / weight.numel())
    kurtosis = float((weight**4).mean()) / float(weight.var()) ** 2
    assert kurtosis == pytest.approx(3.0 if scheme == "he" else 1.8, rel=0.05)
    if scheme == "lecun-uniform":
        assert float(weight.abs().max()) <= math.sqrt(3 / fan_in)
    assert layer.bias is not None
    assert float(layer.bias.detach().abs().max()) == 0


def test_he_keeps_the_size_of_the_signal() -> None:
    layers = nn.Sequential(*(nn.Conv2d(128, 128, 3, padding=1) for _ in range(6)))
    initialise(layers, generator=seeded())
    x = torch.randn(1, 128, 24, 24, generator=seeded())
    with torch.inference_mode():
        for layer in layers:
            x = layer(x.relu())
    # The mean square stays near that of the input (1), not 2^-6 or 2^6; borders lose some.
    assert 0.4 < float(x.square().mean()) < 2.0


def test_batch_norm_becomes_the_identity() -> None:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        for value in norm.state_dict().values():
            value.fill_(5)
    initialise(norm)
    x = hashed((1, 4, 3, 3), seed=1)
    torch.testing.assert_close(norm.eval()(x), x, rtol=1e-4, atol=1e-5)
    assert int(norm.state_dict()["num_batches_tracked"]) == 0


def test_same_seed_gives_the_same_net() -> None:
    one, other = (nn.Conv2d(8, 8, 3) for _ in range(2))
    initialise(one, generator=seeded())
    initialise(other, generator=seeded())
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("architecture", registry().values(), ids=registry())
def test_every_convolution_of_every_net_is_reached(architecture: Architecture) -> None:
    with torch.device("meta"):
        net = architecture.build()
    reached = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    held = {
        id(p)
        for module in net.modules()
        if isinstance(module, reached)
        for p in module.parameters()
    }
    assert {id(p) for p in net.parameters()} == held


def test_bilinear_kernel_of_four_interpolates_between_pixels() -> None:
    layer = transposed(3, 3, "transposed-4x4")
    initialise(layer, transposed="bilinear")
    x = hashed((1, 3, 6, 7), seed=2)
    expected = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(layer(x)[inner], expected[inner], rtol=0, atol=1e-6)


def test_bilinear_kernel_of_three_keeps_pixels_and_fills_between() -> None:
    layer = transposed(3, 3, "transposed-3x3")
    initialise(layer, transposed="bilinear")
    x = hashed((1, 3, 6, 7), seed=3)
    expected = interpolate(x, size=(11, 13), mode="bilinear", align_corners=True)
    torch.testing.assert_close(layer(x)[..., :11, :13], expected, rtol=0, atol=1e-6)


def test_bilinear_kernel_of_two_repeats_pixels() -> None:
    layer = transposed(3, 3, "transposed-2x2")
    initialise(layer, transposed="bilinear")
    x = hashed((1, 3, 6, 7), seed=4)
    torch.testing.assert_close(layer(x), interpolate(x, scale_factor=2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 2), (2, 6), (5, 3), (4, 4)])
def test_bilinear_kernel_keeps_brightness_whatever_the_widths(inputs: int, outputs: int) -> None:
    layer = transposed(inputs, outputs, "transposed-4x4")
    with torch.no_grad():
        layer.weight.copy_(bilinear_kernel(inputs, outputs, 4))
        assert layer.bias is not None
        layer.bias.zero_()
        grey = layer(torch.full((1, inputs, 5, 5), 0.7))
    torch.testing.assert_close(grey[..., 1:-1, 1:-1], torch.full((1, outputs, 8, 8), 0.7))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown initialisation `xavier`; known: he, lecun-unif"):
        initialise(nn.Conv2d(1, 1, 1), scheme="xavier")
    with pytest.raises(ValueError, match="convolutions `nearest`; known: same, bilinear"):
        initialise(nn.Conv2d(1, 1, 1), transposed="nearest")


def torchvision_weights(encoder: str) -> dict[str, torch.Tensor]:
    """What torchvision's file of that net holds, each tensor one value that repeats."""
    with torch.device("meta"):
        layout = models.get_model(encoder, weights=None).state_dict()
    return {
        name: torch.tensor((place + 1) / 1000).to(like.dtype).expand(like.shape)
        for place, (name, like) in enumerate(layout.items())
    }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """torch's cache of downloads moved to an empty folder, by torch's own function."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@every_encoder
def test_torchvision_weights_arrive(architecture: Architecture, hub: Path) -> None:
    assert architecture.encoder is not None
    state = torchvision_weights(architecture.encoder)
    url = models.get_model_weights(architecture.encoder)["IMAGENET1K_V1"].url
    torch.save(state, hub / url.rsplit("/", 1)[1])
    net = architecture.build()
    words = load_encoder(net, "imagenet", encoder=architecture.encoder)
    assert words == f"{architecture.encoder} ImageNet (torchvision IMAGENET1K_V1)"
    check_arrival(net, state)


@every_encoder
def test_file_without_classifier_arrives_from_half_precision(
    architecture: Architecture, tmp_path: Path
) -> None:
    assert architecture.encoder is not None
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in torchvision_weights(architecture.encoder).items()
        if not name.startswith(("classifier.", "fc.")) and not name.endswith("num_batches_tracked")
    }
    path = tmp_path / "some_encoder.safetensors"
    save_file(state, path)
    net = architecture.build()
    assert load_encoder(net, str(path), encoder=architecture.encoder) == "some_encoder"
    check_arrival(net, state)


def check_arrival(net: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, value in net.get_submodule("encoder").state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == 0
            continue
        given = state[name] if name in state else state[f"features.{name}"]
        assert value.dtype == torch.float32
        assert torch.equal(value, given.float())


def test_damaged_download_is_said(hub: Path) -> None:
    url = models.get_model_weights("vgg11")["IMAGENET1K_V1"].url
    (hub / url.rsplit("/", 1)[1]).write_bytes(b"not a file of weights")
    with pytest.raises(CheckpointError, match=r"vgg11 weights in `.*hub` are damaged") as caught:
        load_encoder(nn.Module(), "imagenet", encoder="vgg11")
    assert "\nhint: give a weights file instead" in caught.value.detail
    assert "weights_only" not in caught.value.detail


def test_download_without_network_is_said(hub: Path) -> None:
    # A folder in the place of the file fails as a fetch does: with an error of the system.
    url = models.get_model_weights("vgg11")["IMAGENET1K_V1"].url
    (hub / url.rsplit("/", 1)[1]).mkdir()
    with pytest.raises(
        CheckpointError, match=r"vgg11 weights could not be fetched: .*\nhint: give"
    ):
        load_encoder(nn.Module(), "imagenet", encoder="vgg11")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features.18.bias": None}, "`18.bias` should have shape (512,), is missing"),
        (
            {"features.3.weight": torch.zeros(2, 2)},
            "`3.weight` should have shape (128, 64, 3, 3), has (2, 2)",
        ),
        ({"features.0.bias": torch.full((64,), math.nan)}, "`0.bias` holds NaN or infinity"),
        ({"features.0.bias": torch.zeros(64).int()}, "`0.bias` is not a tensor of floats"),
        ({"features.0.bias": "text"}, "`0.bias` is not a tensor of floats"),
    ],
)
def test_file_that_does_not_fit_is_refused_and_leaves_the_net(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    state = {**torchvision_weights("vgg11"), **change}
    state = {name: value for name, value in state.items() if value is not None}
    torch.save(state, tmp_path / "x.pt")
    net = get("ternausnet11").build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointRefused) as caught:
        load_encoder(net, str(tmp_path / "x.pt"), encoder="vgg11")
    assert f"do not fit a vgg11 encoder: {words}" in caught.value.detail
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision_weights("vgg16"), tmp_path / "vgg16.pt")
    with torch.device("meta"):
        net = get("ternausnet11").build()
    with pytest.raises(CheckpointRefused, match=r"do not fit a vgg11 encoder: `3\.weight`"):
        load_encoder(net, str(tmp_path / "vgg16.pt"), encoder="vgg11")


def test_no_encoder_weights_and_nets_without_encoder(tmp_path: Path) -> None:
    assert load_encoder(nn.Module(), "none", encoder="vgg11") == "none"
    assert load_encoder(nn.Module(), "none", encoder=None) == "none"
    with pytest.raises(CheckpointRefused, match="has no torchvision encoder; `--encoder` must be"):
        load_encoder(nn.Module(), "imagenet", encoder=None)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_encoder(nn.Module(), str(tmp_path / "x.pt"), encoder="vgg11")
