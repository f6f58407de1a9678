"""Weights that do not fit are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.engine.nets import load_net
from app.errors import EngineError, ModelDamaged
from app.types import ModelSpec
from tests.engine.conftest import WriteSpec


def test_float16_on_disk_is_float32_in_the_net(specs: dict[str, ModelSpec]) -> None:
    net = load_net(specs["multilabel"])
    assert not net.training
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_type_of_float_on_disk_keeps_its_numbers(
    write_spec: WriteSpec, dtype: torch.dtype
) -> None:
    stored: dict[str, torch.Tensor] = {}

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update({name: value.to(dtype) for name, value in state.items()})
        stored.update(state)

    state = load_net(write_spec(change=change)).state_dict()
    for name, value in stored.items():
        assert torch.equal(state[name], value.float())


def _drop(state: dict[str, torch.Tensor]) -> None:
    del state["center.block.0.conv.weight"]


def _shrink(state: dict[str, torch.Tensor]) -> None:
    state["final.weight"] = state["final.weight"][:, :7]


def _add(state: dict[str, torch.Tensor]) -> None:
    state["stray"] = torch.zeros(2, 3)


def _poison(state: dict[str, torch.Tensor]) -> None:
    state["final.bias"][0] = float("nan")


def _exceed(state: dict[str, torch.Tensor]) -> None:
    state["final.bias"] = torch.full((1,), 1e39, dtype=torch.float64)


def _squeeze(state: dict[str, torch.Tensor]) -> None:
    state["final.bias"] = state["final.bias"].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, ["lack tensor `center.block.0.conv.weight` of shape (512, 512, 3, 3)"]),
        (_shrink, ["`final.weight` has shape (1, 7, 1, 1)", "expects (1, 32, 1, 1)"]),
        (_add, ["hold tensor `stray` of shape (2, 3)", "ternausnet11 does not know"]),
        (_poison, ["`final.bias` holds NaN or infinity"]),
        (_exceed, ["`final.bias` holds NaN or infinity"]),
        (_squeeze, ["`final.bias` has type F8_E4M3"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    write_spec: WriteSpec, change: object, words: list[str]
) -> None:
    with pytest.raises(ModelDamaged) as caught:
        load_net(write_spec(change=change))
    assert all(word in caught.value.detail for word in words)
    assert "fake@1" in caught.value.detail


def test_another_file_under_the_same_digest_is_refused(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    spec = specs["binary"]
    content = bytearray(Path(spec.weights).read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ModelDamaged, match="sha256"):
        load_net(replace(spec, weights=str(tmp_path / "weights")))
    with pytest.raises(ModelDamaged, match="cannot be read"):
        load_net(replace(spec, weights=str(tmp_path / "absent")))


def test_what_is_not_safetensors_is_refused(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "weights").write_bytes(b"hello")
    digest = hashlib.sha256(b"hello").hexdigest()
    spec = replace(specs["binary"], weights=str(tmp_path / "weights"), weights_sha256=digest)
    with pytest.raises(ModelDamaged, match="not safetensors"):
        load_net(spec)


def test_unknown_architecture_is_an_engine_error(specs: dict[str, ModelSpec]) -> None:
    with pytest.raises(EngineError, match=r"known: .*ternausnet11"):
        load_net(replace(specs["binary"], architecture="resnet"))
