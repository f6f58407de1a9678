"""Weight files on disk: reading those of others without running their code, writing ours whole.

What a file holds is not judged here; see `checkpoints`.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.errors import CheckpointError

PICKLED = (".pt", ".pth", ".bin")
SAFE = ".safetensors"


def read(path: str | Path) -> dict[str, Any]:
    """What the file maps names to, on the CPU: tensors, or a wrapper around such a mapping.

    Reads `.safetensors`, and `.pt`, `.pth`, `.bin` with torch's weights-only unpickler, which runs
    no code. Raises CheckpointError where the file cannot be opened, has another suffix, is damaged,
    holds anything but a mapping, or needs code to load.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (SAFE, *PICKLED):
        raise CheckpointError(
            f"`{path.name}` is not a weights file that we read; "
            f"known suffixes: {', '.join((*PICKLED, SAFE))}"
        )
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as exc:
        raise CheckpointError(f"`{path}` cannot be read: {exc.strerror or exc}") from exc
    state = _read_safe(path) if suffix == SAFE else _read_pickled(path)
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"`{path.name}` holds a {type(state).__name__}, not a mapping of names to tensors"
        )
    return dict(state)


def _read_safe(path: Path) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = load_file(path, device="cpu")
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"`{path.name}` is a damaged safetensors file: {exc}") from exc
    return state


def _read_pickled(path: Path) -> Any:
    if _is_program(path):
        raise CheckpointError(
            f"`{path.name}` is a TorchScript program, and we run no code from files\n"
            "hint: save its `state_dict()` instead"
        )
    try:
        with warnings.catch_warnings():
            # torch remarks on unusual pickle protocols; whatever loads is checked by name later.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle can make the unpickler raise nearly any exception (KeyError, EOFError, ...).
    except Exception as exc:
        # torch's own message is not passed on: it advises to load the file unsafely.
        unsafe = re.search(r"GLOBAL ([\w.]+\.\w+)\s", str(exc))
        if unsafe:
            raise CheckpointError(
                f"`{path.name}` needs code to load (`{unsafe[1]}`), and we run no code from files\n"
                "hint: save the `state_dict()` of the net alone"
            ) from exc
        raise CheckpointError(
            f"`{path.name}` is damaged, or not a file of `torch.save` with tensors and numbers "
            f"({type(exc).__name__})"
        ) from exc


def _is_program(path: Path) -> bool:
    """Whether this is a TorchScript archive: only those hold a table of constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def write(
    state: Mapping[str, torch.Tensor], path: str | Path, *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file that is either whole or not there.

    Raises CheckpointError where `path` does not end in `.safetensors` or cannot be written.
    """
    path = Path(path)
    if path.suffix != SAFE:
        raise CheckpointError(f"`{path.name}` must end in `{SAFE}`")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    # Cloned, because safetensors refuses tensors that share memory or are not contiguous.
    apart = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    try:
        save_file(apart, partial, metadata=dict(metadata))
        os.replace(partial, path)
    except (SafetensorError, OSError) as exc:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"`{path}` cannot be written: {exc}") from exc
