"""Every published family is recognised, folded exactly, refused by name, and written back."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file, save_model

from app.architectures.base import get, registry
from app.architectures.checkpoints import (
    canonical,
    convert,
    export_published,
    families,
    read,
    recognise,
)
from app.errors import CheckpointError, CheckpointRefused, CheckpointUnknown

from . import originals
from .nets import filled

Weights = dict[str, torch.Tensor]

# family, architecture, parameters besides the classes, names in the original's file.
PUBLISHED: list[tuple[str, str, dict[str, Any], list[str]]] = [
    (
        "unet11-upstream",
        "ternausnet11",
        {"upsampling": "transposed-3x3"},
        originals.unet11_upstream(),
    ),
    (
        "unet11-surgical",
        "ternausnet11",
        {"upsampling": "transposed-4x4"},
        originals.unet11_surgical(),
    ),
    ("unet16", "ternausnet16", {"upsampling": "bilinear"}, originals.unet16(interpolating=True)),
    (
        "unet16",
        "ternausnet16",
        {"upsampling": "transposed-4x4"},
        originals.unet16(interpolating=False),
    ),
    ("albunet", "albunet34", {"upsampling": "bilinear"}, originals.albunet(interpolating=True)),
    (
        "albunet",
        "albunet34",
        {"upsampling": "transposed-4x4"},
        originals.albunet(interpolating=False),
    ),
    ("unet-surgical", "unet-surgical", {}, originals.unet_surgical()),
]
IDS = [f"{p[0]}.{p[2].get('upsampling', 'nearest')}" for p in PUBLISHED]
every_family = pytest.mark.parametrize(
    ("family", "architecture", "parameters", "names"), PUBLISHED, ids=IDS
)


def weights(architecture: str, **parameters: Any) -> Weights:
    """A whole state dict of almost no memory: each tensor repeats one value of its own."""
    state = {}
    for place, (name, like) in enumerate(get(architecture).layout(**parameters).items()):
        value = torch.tensor(place if like.dtype == torch.int64 else 0.01 * (place + 1))
        state[name] = value.to(like.dtype).expand(like.shape)
    return state


def encoder_pair(published: Weights) -> tuple[str, str]:
    """A kept name and its second name: two entries with one memory."""
    for name, value in published.items():
        for other, same in published.items():
            if name.startswith("encoder.") and not other.startswith("encoder.") and same is value:
                return name, other
    raise AssertionError("no second names")


@every_family
def test_published_file_has_the_names_and_folds_bit_equal(
    family: str, architecture: str, parameters: dict[str, Any], names: list[str]
) -> None:
    kept = weights(architecture, **parameters)
    published = export_published(kept, family)
    assert sorted(published) == sorted(names)
    found, folded = canonical(published)
    assert (found.family, found.architecture) == (family, architecture)
    assert found.parameters == get(architecture).complete(parameters)
    assert list(folded) == list(kept)
    assert all(torch.equal(folded[name], kept[name]) for name in kept)


def test_originals_have_as_many_names_as_published() -> None:
    assert [len(names) for *_, names in PUBLISHED] == [56, 56, 76, 76, 462, 462, 38]


@every_family
def test_wrapped_and_parallel_file_folds_to_the_same(
    family: str, architecture: str, parameters: dict[str, Any], names: list[str]
) -> None:
    published = export_published(weights(architecture, classes=1, **parameters), family)
    parallel = OrderedDict((f"module.{name}", value) for name, value in published.items())
    found, folded = canonical({"model": parallel, "epoch": 19, "step": 1234})
    plain, expected = canonical(published)
    assert found == plain
    assert all(torch.equal(folded[name], expected[name]) for name in expected)


@every_family
def test_file_with_second_names_alone_folds_to_the_same(
    family: str, architecture: str, parameters: dict[str, Any], names: list[str]
) -> None:
    kept = weights(architecture, **parameters)
    published = export_published(kept, family)
    alone = {name: value for name, value in published.items() if not name.startswith("encoder.")}
    found, folded = canonical(alone)
    assert found.family == family
    assert all(torch.equal(folded[name], kept[name]) for name in kept)
    if family != "unet-surgical":
        assert "under its second names" in found.dialect


@every_family
def test_counters_of_batch_norm_may_be_missing(
    family: str, architecture: str, parameters: dict[str, Any], names: list[str]
) -> None:
    kept = weights(architecture, **parameters)
    old = {name: value for name, value in kept.items() if not name.endswith("batches_tracked")}
    _, folded = canonical(old)
    assert folded.keys() == kept.keys()
    assert all(int(folded[name]) == 0 for name in kept.keys() - old.keys())


@every_family
def test_several_classes_are_seen(
    family: str, architecture: str, parameters: dict[str, Any], names: list[str]
) -> None:
    found = recognise(weights(architecture, classes=8, **parameters))
    assert found.parameters["classes"] == 8
    # The upstream UNet11 has one class only; with more, nobody published it.
    assert found.family == ("ternausnet11" if family == "unet11-upstream" else family)


def test_second_name_that_differs_is_refused_by_name() -> None:
    published = export_published(weights("ternausnet11"), "unet11-upstream")
    kept, alias = encoder_pair(published)
    published[alias] = published[alias] + 1
    with pytest.raises(CheckpointRefused, match=f"`{kept}` and `{alias}` are two names of one"):
        canonical(published)
    published[alias] = published[kept].double()
    with pytest.raises(CheckpointRefused, match="values differ"):
        canonical(published)


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (a.name, p)
        for a in registry().values()
        for p in a.variants()
        if a.name != "ternausnet11-pyramid"
    ],
    ids=str,
)
def test_our_own_files_are_recognised(architecture: str, parameters: dict[str, Any]) -> None:
    state = weights(architecture, classes=3, **parameters)
    upsampling = parameters.get("upsampling")
    options: dict[str, Any] = {}
    if upsampling in ("nearest", "bilinear"):
        assumed = recognise(state)
        assert assumed.parameters["upsampling"] == "bilinear"
        assert "cannot tell nearest from bilinear" in assumed.notes[0]
        options["interpolation"] = upsampling
        options["align_corners"] = parameters["align_corners"]
    found, tensors = canonical(state, **options)
    assert found.architecture == architecture
    assert found.parameters == {"classes": 3, **parameters}
    assert found.notes == ()
    assert tensors.keys() == state.keys()


def test_weights_of_a_pyramid_are_those_of_one_scale() -> None:
    one, other = get("ternausnet11"), get("ternausnet11-pyramid")
    for upsampling in other.choices["upsampling"]:
        shapes = [
            {k: v.shape for k, v in a.layout(upsampling=upsampling).items()} for a in (one, other)
        ]
        assert shapes[0] == shapes[1]
    found, _ = canonical(weights("ternausnet11-pyramid"))
    assert found.architecture == "ternausnet11"


@pytest.mark.parametrize(
    ("architecture", "parameters", "options", "words"),
    [
        ("ternausnet11", {}, {"interpolation": "nearest"}, "has kernels (transposed-3x3)"),
        ("ternausnet11", {}, {"align_corners": True}, "has kernels (transposed-3x3)"),
        ("unet-surgical", {}, {"interpolation": "bilinear"}, "one way of upsampling only"),
        ("ternausnet16", {}, {"interpolation": "cubic"}, "unknown interpolation `cubic`; known: "),
        (
            "ternausnet16",
            {},
            {"interpolation": "nearest", "align_corners": True},
            "concerns `bilinear` upsampling, not `nearest`",
        ),
    ],
)
def test_options_that_contradict_the_file_are_refused(
    architecture: str, parameters: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointRefused) as caught:
        recognise(weights(architecture, **parameters), **options)
    assert words in caught.value.detail


def test_linknet34_is_refused_by_name() -> None:
    with pytest.raises(CheckpointRefused, match=r"this is LinkNet34, for which .* known: robot-"):
        recognise({"model": originals.linknet34()})


def test_unknown_file_is_told_what_was_looked_for() -> None:
    with pytest.raises(CheckpointUnknown) as caught:
        recognise({"layers.0.w": torch.zeros(1), 7: torch.zeros(1), "x" * 500: torch.zeros(1)})  # type: ignore[dict-item]
    words = caught.value.detail
    assert "`encoder.28.weight` (UNet16)" in words
    assert "`bottleneck.conv1.weight` (classic U-Net of this project)" in words
    assert all(family in words for family in families())
    assert "first names seen: `layers.0.w`, `7`, `xxx" in words
    assert len(words) < 1500


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"model": 5}, {"epoch": 3}])
def test_mapping_without_weights_is_unknown(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointUnknown):
        recognise(state)


def spoil(name: str, value: Any) -> dict[str, Any]:
    return {**weights("unet"), name: value}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (spoil("final.bias", torch.tensor([float("nan")])), "`final.bias` holds NaN or infinity"),
        (spoil("final.bias", torch.tensor([float("inf")])), "`final.bias` holds NaN or infinity"),
        (spoil("final.bias", torch.tensor([3])), "`final.bias` should hold float32, float16, bf"),
        (spoil("final.bias", torch.tensor([1j])), "or float64, holds complex64"),
        (spoil("final.bias", "yes"), "`final.bias` is a str, not a tensor"),
        (spoil("final.bias", torch.zeros(1).to_sparse()), "`final.bias` is not a dense tensor"),
        (spoil("final.bias", torch.zeros(1, device="meta")), "`final.bias` is not a dense tensor"),
        (spoil("final.bias", torch.zeros(2)), "`final.bias` should have shape (1,), has (2,)"),
        (spoil("final.weight", None), "`final.weight` is a NoneType, not a tensor"),
        (spoil("final.weight", torch.zeros(1, 64)), "should have 4 dimensions, has shape (1, 64)"),
        (spoil("final.weight", torch.zeros(0, 64, 1, 1)), "from 1 to 256, not 0"),
        (spoil("final.weight", torch.zeros(300, 64, 1, 1)), "from 1 to 256, not 300"),
        (spoil("bottleneck.conv1.weight", torch.zeros(100, 512, 3, 3)), "`bottleneck` of `unet`"),
        (spoil("up.0.enlarge.weight", torch.zeros(9, 9, 5, 5)), "cannot be 'transposed-5x5'"),
        (spoil("extra.thing", torch.zeros(2)), "`extra.thing` is left over"),
        (spoil("module.final.bias", torch.zeros(1)), "`final.bias` is there twice, with and with"),
        (
            spoil("down.0.norm1.num_batches_tracked", torch.tensor(1.0)),
            "`down.0.norm1.num_batches_tracked` should be int64, is float32",
        ),
    ],
)
def test_tensor_at_fault_is_named(state: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointRefused) as caught:
        canonical(state)
    assert words in caught.value.detail


def test_missing_names_are_named_and_counted() -> None:
    state = weights("ternausnet11")
    del state["dec3.block.0.conv.bias"], state["dec3.block.0.conv.weight"]
    with pytest.raises(CheckpointRefused, match=r"`dec3.block.0.conv.weight` is missing, and 1 mo"):
        canonical(state)
    del state["center.block.1.weight"]
    with pytest.raises(CheckpointRefused, match=r"`center\.block\.1\.weight` is missing"):
        recognise(state)


def test_other_number_of_filters_is_refused_by_value() -> None:
    state = weights("ternausnet16")
    state["final.weight"] = torch.zeros(1, 64, 1, 1)
    with pytest.raises(CheckpointRefused, match="`num_filters` 64; only 32"):
        recognise(state)


def test_module_is_stripped_from_the_front_only() -> None:
    state = {f"module.module.{name}": value for name, value in weights("unet").items()}
    assert recognise(state).architecture == "unet"
    state["module.final.module.bias"] = torch.zeros(1)
    with pytest.raises(CheckpointRefused, match=r"`final\.module\.bias` is left over"):
        canonical(state)


def test_published_family_is_exported_only_for_its_own_weights() -> None:
    state = weights("ternausnet16", upsampling="nearest")
    with pytest.raises(CheckpointRefused, match="of family `ternausnet16`, not `unet16`"):
        export_published(state, "unet16", interpolation="nearest")
    with pytest.raises(CheckpointRefused, match="of family `unet16`, not `unet11-upstream`"):
        export_published(state, "unet11-upstream")
    with pytest.raises(CheckpointUnknown, match="`unet` is not a published family; known: albunet"):
        export_published(state, "unet")


def test_file_that_kept_the_alphabetically_first_names_converts(tmp_path: Path) -> None:
    # What `save_model` of safetensors does with tensors that have two names.
    net = filled(get("ternausnet11"))
    twice = torch.nn.Module()
    for name, child in net.named_children():
        twice.add_module(name, child)
    encoder = net.get_submodule("encoder")
    stages = dict(conv1=0, conv2=3, conv3s=6, conv3=8, conv4s=11, conv4=13, conv5s=16, conv5=18)
    for stage, place in stages.items():
        twice.add_module(stage, encoder.get_submodule(str(place)))
    save_model(twice, str(tmp_path / "first.safetensors"))
    state = read(tmp_path / "first.safetensors")
    assert not any(name.startswith("encoder.") for name in state)
    found, folded = canonical(state)
    assert found.family == "unet11-upstream"
    assert all(torch.equal(folded[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_conversion_writes_our_names_with_a_description(tmp_path: Path, suffix: str) -> None:
    net = filled(get("unet-surgical"), classes=2)
    source, out = tmp_path / f"theirs{suffix}", tmp_path / "ours.safetensors"
    if suffix == ".safetensors":
        save_file(net.state_dict(), source)
    else:
        torch.save({"model": net.state_dict(), "epoch": 3}, source)
    found = convert(source, out)
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == found.architecture == "unet-surgical"
    assert json.loads(metadata["parameters"]) == found.parameters == {"classes": 2}
    assert metadata["family"] == "unet-surgical"
    written = read(out)
    assert all(torch.equal(written[name], value) for name, value in net.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.safetensors", source.name]


def test_half_precision_spares_the_counters_and_refuses_overflow(tmp_path: Path) -> None:
    state = weights("albunet34")
    torch.save(state, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors", precision="float16")
    written = read(tmp_path / "a.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float16, torch.int64}
    state["final.bias"] = torch.tensor([7e4])
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(CheckpointRefused, match=r"`final\.bias` has values too large for float16"):
        convert(tmp_path / "b.pt", tmp_path / "b.safetensors", precision="float16")
    assert not (tmp_path / "b.safetensors").exists()
    convert(tmp_path / "b.pt", tmp_path / "b.safetensors", precision="bfloat16")
    with pytest.raises(CheckpointError, match="unknown precision `int8`; known: bfloat16, float16"):
        convert(tmp_path / "a.pt", tmp_path / "c.safetensors", precision="int8")
