"""Means of weights, against numpy; and what is no mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.testing import CliRunner

from app.cli import app
from app.errors import ModelNotFound, TrainingError
from app.training.averaging import average


def write(path: Path, value: float, **more: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(int(value))
    weight = torch.randn(4, 3, generator=generator)
    state = {"w": weight.half() if value == 2 else weight, "seen": torch.tensor(int(value))}
    save_file({**state, **more}, path)
    return path


def test_mean_is_that_of_numpy_by_share(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.safetensors", i) for i in (1, 2, 3)]
    average(dict(zip(files, (3.0, 1.0, 1.0), strict=True)), tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    states = [load_file(file) for file in files]
    expected = np.average(
        [state["w"].astype(np.float64) for state in states], axis=0, weights=(0.6, 0.2, 0.2)
    )
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6)
    assert found["w"].dtype == np.float32
    assert found["seen"] == 1


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((1.0,), "two files"),
        ((1.0, 0.0), "above 0"),
        ((1.0, float("nan")), "above 0"),
    ],
)
def test_shares_that_are_none(tmp_path: Path, shares: tuple[float, ...], words: str) -> None:
    files = [write(tmp_path / f"{i}.safetensors", i + 1) for i in range(len(shares))]
    with pytest.raises(TrainingError, match=words):
        average(dict(zip(files, shares, strict=True)), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_other_architectures_and_damaged_files_are_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one.safetensors", 1)
    other = write(tmp_path / "other.safetensors", 1, w=torch.zeros(4, 4))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(one.read_bytes()[:40])
    for file, words in ((other, "differ in `w`"), (damaged, "cannot be read as weights")):
        with pytest.raises(TrainingError, match=words):
            average({one: 1.0, file: 1.0}, tmp_path / "out.safetensors")


def test_command_takes_files_and_models(tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{i}.safetensors", i) for i in (1, 3))
    out = tmp_path / "out.safetensors"
    run = CliRunner()
    done = run.invoke(app, ["models", "average", f"{one}:3", str(two), "-o", str(out)])
    assert done.exit_code == 0, done.output
    average({one: 3.0, two: 1.0}, tmp_path / "same.safetensors")
    assert out.read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    refused = run.invoke(app, ["models", "average", str(one), "nobody", "-o", str(out)])
    assert isinstance(refused.exception, ModelNotFound)
