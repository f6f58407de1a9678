"""Files are read without running their code; what cannot be read says why."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from app.architectures.weight_files import read, write
from app.errors import CheckpointError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, 2.0])}


class Burglar:
    """Creates a file when it is unpickled by an unpickler that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    # torch's own messages advise to load the file unsafely.
    assert "weights_only" not in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin", "X.PT"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_file_is_read(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save({"model": STATE, "epoch": 3}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    state = read(tmp_path / name)
    assert state["epoch"] == 3
    assert all(torch.equal(state["model"][key], value) for key, value in STATE.items())


def test_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    state = read(str(tmp_path / "x.safetensors"))
    assert all(torch.equal(state[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_file_that_needs_code_runs_none_and_names_it(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "burgled"
    path = tmp_path / "x.pt"
    torch.save({"w": Burglar(mark)}, path, _use_new_zipfile_serialization=zipped)
    words = refused(path)
    assert f"needs code to load (`{os.mkdir.__module__}.mkdir`)" in words
    assert "hint: save the `state_dict()`" in words
    assert not mark.exists()


def test_raw_pickle_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "burgled"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / "x.bin"
        path.write_bytes(pickle.dumps(Burglar(mark), protocol=protocol))
        refused(path)
        assert not mark.exists()


def test_whole_net_is_refused_with_a_hint(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    assert "needs code to load (`torch.nn.modules.linear.Linear`)" in refused(tmp_path / "x.pt")


def test_numbers_of_numpy_need_code(tmp_path: Path) -> None:
    torch.save({"model": STATE, "score": np.float64(0.5)}, tmp_path / "x.pt")
    assert "needs code to load (`numpy." in refused(tmp_path / "x.pt")


def test_torchscript_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    # Made by hand, for torch is about to give up writing such archives.
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"x/{name}", b"3\n")
    assert "is a TorchScript program" in refused(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_damaged_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    torch.save(STATE, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    path = tmp_path / "x.pt"
    for length in [*range(0, 64, 7), *range(64, len(whole) - 1, 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        words = refused(path)
        # The old format may end inside a name, which then is not one that torch knows.
        assert "`x.pt` is damaged" in words or (not zipped and "needs code" in words)


def test_truncated_safetensors_is_damaged_wherever_it_ends(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "`x.safetensors` is a damaged safetensors file" in refused(path)


def test_suffix_and_content_must_agree(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.pt")
    torch.save(STATE, tmp_path / "x.safetensors")
    assert "damaged" in refused(tmp_path / "x.pt")
    assert "damaged" in refused(tmp_path / "x.safetensors")


@pytest.mark.parametrize("held", [[1.0], torch.zeros(2), 5, None, "text"])
def test_anything_but_a_mapping_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "x.pt")
    assert f"holds a {type(held).__name__}, not a mapping" in refused(tmp_path / "x.pt")


def test_other_suffixes_list_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    assert "known suffixes: .pt, .pth, .bin, .safetensors" in refused(tmp_path / "x.onnx")


def test_missing_file_and_folder_are_said(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "x.pt")
    (tmp_path / "y.pt").mkdir()
    assert "cannot be read: Is a directory" in refused(tmp_path / "y.pt")


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    base = STATE["a.weight"]
    write({"one": base, "two": base, "turned": base.T}, path, metadata={"k": "v"})
    state = read(path)
    assert torch.equal(state["one"], base)
    assert torch.equal(state["turned"], base.T)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"`x\.pt` must end in `\.safetensors`"):
        write(STATE, tmp_path / "x.pt", metadata={})
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(STATE, tmp_path / "x.safetensors", metadata={})
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(STATE, tmp_path / "nowhere" / "x.safetensors", metadata={})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
