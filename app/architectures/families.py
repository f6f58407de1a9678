"""The published families of weights, as facts: what gives each away, what it names twice.

The original nets register each encoder convolution twice, inside `encoder` and as an attribute, so
their files hold every encoder tensor under two names. We keep the `encoder` name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

Aliases = Mapping[str, str]


def _pairs(kept: Iterable[int], aliases: Iterable[str]) -> Aliases:
    return {f"encoder.{index}": alias for index, alias in zip(kept, aliases, strict=True)}


_VGG11 = (0, 3, 6, 8, 11, 13, 16, 18)
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_UNET11_UPSTREAM = _pairs(
    _VGG11, ("conv1", "conv2", "conv3s", "conv3", "conv4s", "conv4", "conv5s", "conv5")
)
_UNET11_SURGICAL = _pairs(
    _VGG11,
    ("conv1.0", "conv2.0", "conv3.0", "conv3.2", "conv4.0", "conv4.2", "conv5.0", "conv5.2"),
)
_UNET16 = _pairs(
    _VGG16,
    (
        *("conv1.0", "conv1.2", "conv2.0", "conv2.2"),
        *("conv3.0", "conv3.2", "conv3.4"),
        *("conv4.0", "conv4.2", "conv4.4"),
        *("conv5.0", "conv5.2", "conv5.4"),
    ),
)
_ALBUNET = {
    "encoder.conv1": "conv1.0",
    "encoder.bn1": "conv1.1",
    "encoder.layer1": "conv2",
    "encoder.layer2": "conv3",
    "encoder.layer3": "conv4",
    "encoder.layer4": "conv5",
}


@dataclass(frozen=True, slots=True)
class Family:
    """Files that one published class wrote.

    `upsamplings` are those that the class can build; `aliases` maps the beginning of a kept name to
    that of its second name; `unused` maps names in the file that no output depends on to their
    shapes.
    """

    name: str
    title: str
    upsamplings: tuple[str, ...] = ()
    aliases: Aliases = field(default_factory=dict)
    unused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    one_class: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """Files of one net, whoever wrote them.

    `signatures`: names any one of which gives the net away, where no earlier kind matched.
    `architecture` is ours, or None where we have none. `output` is the last convolution.
    """

    title: str
    architecture: str | None
    signatures: tuple[str, ...]
    families: tuple[Family, ...]
    output: str = "final"


# In the order of the tests: the first kind that matches wins.
KINDS = (
    Kind(
        title="robot-surgery UNet",
        architecture="unet-surgical",
        signatures=("down.0.l1.conv.weight",),
        families=(Family("unet-surgical", "UNet of robot-surgery-segmentation"),),
        output="conv_final",
    ),
    Kind(
        title="LinkNet34",
        architecture=None,
        signatures=("firstconv.weight",),
        families=(Family("linknet34", "LinkNet34 of robot-surgery-segmentation"),),
        output="finalconv3",
    ),
    Kind(
        title="AlbuNet",
        architecture="albunet34",
        signatures=("encoder.layer1.0.conv1.weight", "conv2.0.conv1.weight"),
        families=(
            Family(
                "albunet",
                "AlbuNet of TernausNet and robot-surgery-segmentation",
                upsamplings=("bilinear", "transposed-4x4"),
                aliases=_ALBUNET,
                unused={"encoder.fc.weight": (1000, 512), "encoder.fc.bias": (1000,)},
            ),
        ),
    ),
    Kind(
        title="UNet16",
        architecture="ternausnet16",
        signatures=("encoder.28.weight", "conv5.4.weight"),
        families=(
            Family(
                "unet16",
                "UNet16 of TernausNet and robot-surgery-segmentation",
                upsamplings=("bilinear", "transposed-4x4"),
                aliases=_UNET16,
            ),
        ),
    ),
    Kind(
        title="UNet11",
        architecture="ternausnet11",
        signatures=("encoder.18.weight", "conv5.weight", "conv5.2.weight"),
        families=(
            Family(
                "unet11-upstream",
                "UNet11 of TernausNet",
                upsamplings=("transposed-3x3",),
                aliases=_UNET11_UPSTREAM,
                one_class=True,
            ),
            Family(
                "unet11-surgical",
                "UNet11 of robot-surgery-segmentation",
                upsamplings=("transposed-4x4",),
                aliases=_UNET11_SURGICAL,
            ),
        ),
    ),
    Kind(
        title="classic U-Net of this project",
        architecture="unet",
        signatures=("bottleneck.conv1.weight",),
        families=(),
    ),
)


def families() -> dict[str, Family]:
    """Every published family by name."""
    return {family.name: family for kind in KINDS for family in kind.families}


def second_names(name: str, aliases: Aliases) -> Iterator[str]:
    """The other name of a kept name, if `aliases` gives it one."""
    for kept, alias in aliases.items():
        if name.startswith(kept + "."):
            yield alias + name.removeprefix(kept)
