"""Skeletons of the published nets: what they register under which names, for the names alone.

Each registers its encoder as `encoder` and again stage by stage, as described of the originals;
torch itself then says which names a file of such a net holds. Nothing here computes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torchvision import models


def unet11_upstream() -> list[str]:
    """Names of the one-class UNet11 with 3x3 kernels."""
    return _names(
        _vgg("vgg11"),
        {
            "conv1": 0,
            "conv2": 3,
            "conv3s": 6,
            "conv3": 8,
            "conv4s": 11,
            "conv4": 13,
            "conv5s": 16,
            "conv5": 18,
        },
        _decoder(("center", "dec5", "dec4", "dec3", "dec2"), ("dec1",), interpolating=False),
    )


def unet11_surgical() -> list[str]:
    """Names of the UNet11 with 4x4 kernels."""
    stages = {"conv1": [0], "conv2": [3], "conv3": [6, 8], "conv4": [11, 13], "conv5": [16, 18]}
    decoder = _decoder(("center", "dec5", "dec4", "dec3", "dec2"), ("dec1",), interpolating=False)
    return _names(_vgg("vgg11"), stages, decoder)


def unet16(*, interpolating: bool) -> list[str]:
    """Names of the UNet16, bilinear or with 4x4 kernels."""
    stages = {
        "conv1": [0, 2],
        "conv2": [5, 7],
        "conv3": [10, 12, 14],
        "conv4": [17, 19, 21],
        "conv5": [24, 26, 28],
    }
    blocks = ("center", "dec5", "dec4", "dec3", "dec2")
    return _names(_vgg("vgg16"), stages, _decoder(blocks, ("dec1",), interpolating=interpolating))


def albunet(*, interpolating: bool) -> list[str]:
    """Names of the AlbuNet, bilinear or with 4x4 kernels, the unused classifier included."""
    with torch.device("meta"):
        encoder = models.resnet34(weights=None)
        net = nn.Module()
        net.encoder = encoder
        net.conv1 = nn.Sequential(encoder.conv1, encoder.bn1, encoder.relu, nn.MaxPool2d(2))
        net.conv2, net.conv3 = encoder.layer1, encoder.layer2
        net.conv4, net.conv5 = encoder.layer3, encoder.layer4
    blocks = ("center", "dec5", "dec4", "dec3", "dec2", "dec1")
    return [*net.state_dict(), *_decoder(blocks, ("dec0",), interpolating=interpolating)]


def unet_surgical() -> list[str]:
    """Names of the robot-surgery UNet."""
    stages = [f"down.{i}" for i in range(5)] + [f"up.{i}" for i in range(4)]
    layers = [f"{stage}.{layer}.conv" for stage in stages for layer in ("l1", "l2")]
    return [f"{name}.{part}" for name in [*layers, "conv_final"] for part in ("weight", "bias")]


def _vgg(name: str) -> nn.Sequential:
    with torch.device("meta"):
        features = models.get_model(name, weights=None).features
    assert isinstance(features, nn.Sequential)
    return features


def _names(
    encoder: nn.Sequential, stages: dict[str, int] | dict[str, list[int]], decoder: list[str]
) -> list[str]:
    net = nn.Module()
    net.encoder = encoder
    for stage, places in stages.items():
        if isinstance(places, int):
            setattr(net, stage, encoder[places])
        else:
            layers: list[nn.Module] = []
            for place in places:
                layers += [encoder[place], nn.ReLU()]
            setattr(net, stage, nn.Sequential(*layers))
    return [*net.state_dict(), *decoder]


def _decoder(
    blocks: tuple[str, ...], convolutions: tuple[str, ...], *, interpolating: bool
) -> list[str]:
    inner = ("block.1.conv", "block.2.conv") if interpolating else ("block.0.conv", "block.1")
    layers = [f"{block}.{name}" for block in blocks for name in inner]
    layers += [f"{name}.conv" for name in convolutions]
    return [f"{name}.{part}" for name in [*layers, "final"] for part in ("weight", "bias")]


def linknet34() -> dict[str, torch.Tensor]:
    """A few tensors of a LinkNet34, enough to know it by."""
    widths = list(pairwise((512, 256, 128, 64, 64)))
    state = {"firstconv.weight": torch.zeros(64, 3, 7, 7), "firstbn.weight": torch.zeros(64)}
    for stage, (inputs, _) in zip((4, 3, 2, 1), widths, strict=True):
        state[f"decoder{stage}.conv1.weight"] = torch.zeros(inputs // 4, inputs, 1, 1)
    return {**state, "finalconv3.weight": torch.zeros(1, 32, 2, 2)}
