"""A model as OpenVINO's intermediate representation, converted once and kept by what it rests on.

Layout of a cache: `<cache_dir>/openvino-<key>/{model.xml, model.bin, seal.json}`; the seal holds
the sha256 of both files. A folder whose seal does not fit is thrown away and made anew, so a
damaged cache costs a conversion and never a wrong mask. The conversion itself runs in a process of
its own (`converter.py`), which takes torch and a gigabyte of memory away with it when it ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from app.engine.converter import FAILURE
from app.engine.findings import key_of, recall, remember
from app.engine.openvino_library import openvino
from app.errors import EngineError, by_code
from app.types import ModelSpec, Pixels

log = logging.getLogger("ternaus.conversion")

FILES = ("model.xml", "model.bin")
SEAL = "seal.json"
# Far longer than any conversion takes.
PATIENCE_S = 1800.0
# An older draft was left by processes that were killed.
STALE_S = 2 * PATIENCE_S
# Of a conversion beside an engine that serves.
NICENESS = 10
# The child finds its modules where this process finds them. NNCF, which quantises, would report its
# use over the network.
CHILD = (
    "import json, os, sys; os.environ['NNCF_CI'] = '1'; sys.path[:] = json.loads(sys.argv[1]); "
    "from app.engine.converter import main; main(sys.argv[2])"
)


def converted(spec: ModelSpec, cache_dir: Path, *, beside: bool = False) -> Path:
    """The path of `model.xml` of `spec` below `cache_dir`; converted now if missing or damaged.

    `beside`: another engine serves meanwhile and goes first.

    Inputs `pixels` (N, H, W, 3) uint8 and `thresholds` (N,) float32; outputs ordered as in `Core`,
    the mask of `binary` and `multilabel` as (N, C, H, W) bool. All of N, H and W are free. Raises
    ModelDamaged for weights that do not fit and EngineError where `cache_dir` cannot be written.
    """

    def make(target: Path) -> None:
        _require(
            "torch",
            f"{spec.label} is not converted for this version of the server, and torch, which "
            "converts, is not installed; serve it from an installation or image with torch, or "
            "build the image with this model in its store",
        )
        values = asdict(replace(spec, parameters=dict(spec.parameters)))
        values["weights"] = str(Path(spec.weights).absolute())
        _in_a_child({"spec": values, "target": str(target.absolute())}, spec, beside=beside)

    return _kept(cache_dir / f"openvino-{conversion_key(spec)}", make)


def quantised(
    spec: ModelSpec, cache_dir: Path, sample: Pixels | None, *, beside: bool = False
) -> Path:
    """The same in int8, with ranges that `sample`, (H, W, 3) uint8, asks for.

    Raises as `converted`, and EngineError where the extra `int8` is needed and not installed.
    """
    if sample is None:
        raise EngineError(f"{spec.label} has no sample picture to be quantised on")
    key = {
        "conversion": conversion_key(spec),
        "sample": hashlib.sha256(repr(sample.shape).encode() + sample.tobytes()).hexdigest(),
    }

    def make(target: Path) -> None:
        _require(
            "nncf",
            f"{spec.label} is not quantised yet, and the extra `int8`, which quantises, is not "
            "installed\nhint: `pip install 'ternausnet-serve[int8]'`",
        )
        source = converted(spec, cache_dir, beside=beside)
        picture = target.with_name("sample.npy")
        np.save(picture, sample)
        request = {"source": source, "sample": picture, "target": target.absolute()}
        _in_a_child({k: str(v) for k, v in request.items()}, spec, beside=beside)
        picture.unlink()

    return _kept(cache_dir / f"openvino-int8-{key_of(key)}", make)


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """`model.xml` in `folder`; made now if it is missing or damaged."""
    if not _sealed(folder):
        cache_dir = folder.parent
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            _sweep(cache_dir)
            draft = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".draft-"))
        except OSError as exc:
            raise EngineError(f"`cache_dir` cannot be written: {exc}") from exc
        try:
            make(draft / FILES[0])
            remember(draft / SEAL, {name: _digest(draft / name) for name in FILES})
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder / FILES[0]


def _require(package: str, words: str) -> None:
    if find_spec(package) is None:
        raise EngineError(words)


def conversion_key(spec: ModelSpec) -> str:
    """Changes with everything that the converted file depends on, our own sources included."""
    return key_of(
        {
            "weights": spec.weights_sha256,
            "architecture": spec.architecture,
            "parameters": dict(spec.parameters),
            "channels": spec.channels,
            "task": spec.task,
            "mean": spec.mean,
            "std": spec.std,
            "openvino": openvino.get_version(),
            "sources": _sources(),
        }
    )


def _sources() -> str:
    """One digest over the code that a conversion runs; found without importing torch."""
    found = find_spec("app.architectures")
    places = list(found.submodule_search_locations or ()) if found else []
    files = [Path(__file__).with_name(name) for name in ("converter.py", "core.py")]
    for place in places:
        files += sorted(Path(place).glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(folder: Path) -> bool:
    seal = recall(folder / SEAL)
    try:
        return seal is not None and all(seal.get(name) == _digest(folder / name) for name in FILES)
    except OSError:
        return False


def _sweep(cache_dir: Path) -> None:
    """Remove drafts of processes that were killed before they could do so."""
    for path in cache_dir.glob(".draft-*"):
        try:
            if time.time() - path.stat().st_mtime > STALE_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue  # another process was first, or it is not ours


def _publish(draft: Path, folder: Path) -> None:
    """Move a finished folder into place; if another process was first, its folder stays."""
    for _ in range(2):
        try:
            os.rename(draft, folder)
        except OSError:
            if _sealed(folder):
                return
            # A damaged folder stands in the way. Whoever has it open keeps its files until closed.
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return
    raise EngineError(f"`cache_dir` cannot be written: `{folder}` stays in the way")


def _in_a_child(request: Mapping[str, Any], spec: ModelSpec, *, beside: bool) -> None:
    """Have `converter.py` do what `request` says in a process of its own.

    Raises what the child raised, and EngineError where it ended without a word. It ends with this
    process: it holds the other end of a pipe, and removes its draft.
    """
    text = json.dumps({**request, "label": spec.label, "niceness": NICENESS if beside else 0})
    draft = Path(request["target"]).parent
    log.info("converting %s for OpenVINO, in a process of its own", spec.label)
    with tempfile.TemporaryFile(dir=draft) as said:
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps(sys.path), text],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                # A terminal's Ctrl-C is for the server, which then ends in order.
                start_new_session=True,
            )
        except OSError as exc:
            raise EngineError(f"the conversion of {spec.label} cannot be started: {exc}") from exc
        # The pipe stays open until here: the child takes its end for the end of this process.
        with child:
            try:
                status = child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired as exc:
                raise EngineError(
                    f"the conversion of {spec.label} did not end within {PATIENCE_S:g} s"
                ) from exc
            finally:
                child.kill()
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if words:
        log.log(logging.DEBUG if status == 0 else logging.ERROR, "the conversion said: %s", words)
    if status != 0:
        raise _failure(spec, draft, status, words)


def _failure(spec: ModelSpec, draft: Path, status: int, words: str) -> Exception:
    told = recall(draft / FAILURE)
    if told is not None:
        return by_code()[told["code"]](told["detail"])
    if status < 0:
        end = f"was killed ({signal.Signals(-status).name})"
        if -status == signal.SIGKILL:
            end += "; the system does that where memory runs out"
    else:
        end = f"ended with status {status}"
    last = words.splitlines()[-1] if words else ""
    return EngineError(f"the conversion of {spec.label} {end}" + (f": {last}" if last else ""))
