"""The contract, for every architecture of the registry and every variant of each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import vgg

from app.architectures.base import Architecture, get, register, registry
from app.errors import EngineError

from .nets import filled, hashed, positive, thin

VARIANTS = [(a, p) for a in registry().values() for p in a.variants()]
IDS = [".".join((a.name, *map(str, p.values()))) for a, p in VARIANTS]
LOCAL = [(a, p) for a, p in VARIANTS if a.local(**p)]
every_variant = pytest.mark.parametrize(("architecture", "parameters"), VARIANTS, ids=IDS)
every_architecture = pytest.mark.parametrize("architecture", registry().values(), ids=registry())


def test_registry_holds_every_net_that_we_promise() -> None:
    assert list(registry()) == [
        "albunet34",
        "ternausnet11",
        "ternausnet11-pyramid",
        "ternausnet16",
        "unet",
        "unet-surgical",
    ]


@every_variant
def test_logits_have_a_channel_per_class_and_the_size_of_the_input(
    architecture: Architecture, parameters: dict[str, Any]
) -> None:
    s = architecture.stride
    with torch.device("meta"):
        for classes in (1, 5):
            net = architecture.build(classes=classes, **parameters)
            assert net(torch.zeros(2, 3, s, 3 * s)).shape == (2, classes, s, 3 * s)


@every_architecture
def test_a_side_that_the_stride_does_not_divide_fails(architecture: Architecture) -> None:
    with torch.device("meta"):
        net = architecture.build()
        with pytest.raises(RuntimeError):
            net(torch.zeros(1, 3, architecture.stride, architecture.stride * 3 // 2))


@every_variant
def test_logits_are_raw_and_rows_of_a_batch_do_not_meet(
    architecture: Architecture, parameters: dict[str, Any]
) -> None:
    net = _uneven(thin(architecture, classes=5, **parameters))
    s = architecture.stride
    with torch.no_grad():
        *_, weight = (v for name, v in net.named_parameters() if name.endswith("final.weight"))
        weight.mul_(torch.tensor([1, -1, 1, -2, 3]).reshape(5, 1, 1, 1))
    batch = torch.stack([hashed((3, s, s), seed).double() for seed in range(3)])
    with torch.inference_mode():
        logits = net(batch)
        alone = net(batch[1:2])
    torch.testing.assert_close(logits[1:2], alone, rtol=1e-12, atol=1e-12)
    assert not torch.equal(logits[0], logits[1])
    # Neither a sigmoid nor a softmax: the classes neither stay in 0..1 nor sum to anything.
    assert float(logits.min()) < 0
    assert float(logits.exp().sum(dim=1).std()) > 0


@every_architecture
def test_a_built_net_is_in_evaluation_mode(architecture: Architecture) -> None:
    with torch.device("meta"):
        assert not any(module.training for module in architecture.build().modules())


@every_variant
def test_layout_is_that_of_the_net_and_costs_no_memory(
    architecture: Architecture, parameters: dict[str, Any]
) -> None:
    layout = architecture.layout(classes=7, **parameters)
    assert all(value.is_meta for value in layout.values())
    assert 7 in {value.shape[0] for name, value in layout.items() if "final" in name}


@every_variant
def test_spellings_are_all_that_mean_the_same(
    architecture: Architecture, parameters: dict[str, Any]
) -> None:
    whole = architecture.complete(parameters)
    defaults = architecture.complete({})
    spellings = architecture.spellings(parameters)
    assert parameters in spellings
    assert all(architecture.complete(spelling) == whole for spelling in spellings)
    left_out = sum(value == defaults[name] for name, value in parameters.items())
    assert len({str(sorted(spelling.items())) for spelling in spellings}) == 2**left_out


@every_architecture
def test_an_encoder_has_the_names_of_torchvision(architecture: Architecture) -> None:
    if architecture.encoder is None:
        assert "encoder" not in dict(thin(architecture).named_children())
        return
    with torch.device("meta"):
        original = models.get_model(architecture.encoder, weights=None).state_dict()
    ours = {
        name.removeprefix("encoder."): tuple(value.shape)
        for name, value in architecture.layout().items()
        if name.startswith("encoder.")
    }
    theirs = {
        name.removeprefix("features."): tuple(value.shape)
        for name, value in original.items()
        if not name.startswith(("classifier.", "fc."))
    }
    assert ours == theirs


@pytest.mark.parametrize(("name", "layers"), [("ternausnet11", "A"), ("ternausnet16", "D")])
def test_a_vgg_encoder_is_that_of_torchvision(name: str, layers: str) -> None:
    def fresh(make: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(1)
        return make()

    theirs = fresh(lambda: vgg.make_layers(vgg.cfgs[layers], batch_norm=False))
    # Its encoder is made first, so the same seed gives it the same initial weights.
    ours = fresh(get(name).build).get_submodule("encoder")
    assert str(ours) == str(theirs)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.inference_mode():
        pixels = hashed((1, 3, 64, 96), seed=3)
        assert torch.equal(ours(pixels), theirs(pixels))


def test_a_ternausnet_is_built_without_torchvision_and_compilers() -> None:
    """Their import takes longer than torch's, at every start and every conversion."""
    script = (
        "import sys; from app.architectures.base import get; get('ternausnet16').build();"
        "print([n for n in ('torchvision', 'torch._dynamo', 'sympy') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("architecture", "parameters"), LOCAL, ids=[IDS[VARIANTS.index(case)] for case in LOCAL]
)
def test_tiles_with_halo_equal_the_whole_picture(
    architecture: Architecture, parameters: dict[str, Any]
) -> None:
    s = architecture.stride
    halo = architecture.halo(**parameters)
    net = _uneven(thin(architecture, **parameters))
    for top, bottom, flip in ((halo.left, halo.right, False), (halo.top, halo.bottom, True)):
        # A strip as high as the stride: one axis at a time, with room beyond both halos.
        picture = hashed((1, 3, s, top + bottom + 4 * s), seed=5).double()
        start, stop = top + s, top + 2 * s
        tile = picture[..., start - top : stop + bottom]
        with torch.inference_mode():
            if flip:
                whole, part = net(picture.mT).mT, net(tile.mT).mT
            else:
                whole, part = net(picture), net(tile)
        core = whole[..., start:stop]
        assert float(core.std()) > 1e-6 * float(core.abs().max())
        torch.testing.assert_close(part[..., top : top + s], core, rtol=1e-13, atol=0)


def test_tiles_equal_the_whole_at_full_width() -> None:
    architecture = get("ternausnet11")
    net = filled(architecture).double()
    halo = architecture.halo()
    picture = hashed((1, 3, 32, halo.left + 64 + halo.right), seed=5).double()
    with torch.inference_mode():
        whole = net(picture)[..., halo.left + 32 : halo.left + 64]
        part = net(picture[..., 32:])[..., halo.left : halo.left + 32]
    assert float(whole.std()) > 0.1
    torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)


def _uneven(net: nn.Module) -> nn.Module:
    """Positive weights that differ, so that every path counts and none cancels another."""
    positive(net)
    with torch.no_grad():
        for seed, value in enumerate(net.parameters()):
            value.mul_(1 + 0.5 * hashed(tuple(value.shape), seed).double())
    return net


@pytest.mark.parametrize("name", ["ternausnet11", "ternausnet16", "albunet34", "unet"])
def test_aligned_corners_are_not_local(name: str) -> None:
    architecture = get(name)
    assert architecture.local(upsampling="bilinear")
    assert not architecture.local(upsampling="bilinear", align_corners=True)
    with torch.device("meta"):
        net = architecture.build(upsampling="bilinear", align_corners=True)
    assert [m.align_corners for m in net.modules() if isinstance(m, nn.Upsample)].count(True) >= 4


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"depth": 5}, "architecture `ternausnet11` has no parameter `depth`; known: classes"),
        ({"upsampling": "cubic"}, "`upsampling` of `ternausnet11` cannot be 'cubic'; known: trans"),
        ({"upsampling": ["bilinear"]}, "cannot be ['bilinear']"),
        ({"classes": 0}, "`classes` must be a whole number from 1 to 256, not 0"),
        ({"classes": 257}, "not 257"),
        ({"classes": True}, "not True"),
        ({"classes": 2.0}, "not 2.0"),
        ({"align_corners": 0}, "`align_corners` of `ternausnet11` cannot be 0"),
        ({"align_corners": True}, "concerns `bilinear` upsampling, not `transposed-3x3`"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError) as caught:
        get("ternausnet11").complete(parameters)
    assert words in caught.value.detail


def test_parameters_are_completed_with_the_first_choices() -> None:
    assert get("unet").complete({"classes": 3}) == {
        "classes": 3,
        "upsampling": "transposed-2x2",
        "align_corners": False,
        "bottleneck": 1024,
    }


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(EngineError, match="unknown architecture `linknet`; known: albunet34, tern"):
        get("linknet")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="`unet` is registered twice"):
        register(get("unet"))
