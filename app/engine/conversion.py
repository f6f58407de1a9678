"""A model as OpenVINO's intermediate representation, converted once and kept by what it rests on.

Layout of a cache: `<cache_dir>/openvino-<key>/{model.xml, model.bin, seal.json}`; the seal holds
the sha256 of both files. A folder whose seal does not fit is thrown away and made anew, so a
damaged cache costs a conversion and never a wrong mask. torch is imported only for a conversion.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openvino

from app.engine.findings import key_of, recall, remember
from app.errors import EngineError
from app.types import ModelSpec

FILES = ("model.xml", "model.bin")
SEAL = "seal.json"


def converted(spec: ModelSpec, cache_dir: Path) -> Path:
    """The path of `model.xml` of `spec` below `cache_dir`; converted now if missing or damaged.

    Inputs `pixels` (N, H, W, 3) uint8 and `thresholds` (N,) float32; outputs ordered as in `Core`,
    the mask of `binary` and `multilabel` as (N, C, H, W) bool. All of N, H and W are free. Raises
    ModelDamaged for weights that do not fit and EngineError where `cache_dir` cannot be written.
    """
    folder = cache_dir / f"openvino-{conversion_key(spec)}"
    if not _sealed(folder):
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".draft-"))
        except OSError as exc:
            raise EngineError(f"`cache_dir` cannot be written: {exc}") from exc
        try:
            _convert(spec, draft / FILES[0])
            remember(draft / SEAL, {name: _digest(draft / name) for name in FILES})
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder / FILES[0]


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
    files = [Path(__file__), Path(__file__).with_name("core.py")]
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


def _convert(spec: ModelSpec, target: Path) -> None:
    """Trace the core, translate it, and save it."""
    import warnings

    try:
        import torch
    except ModuleNotFoundError as exc:
        raise EngineError(
            f"{spec.label} is not converted for this version of the server, and torch, which "
            "converts, is not installed; serve it from an installation or image with torch, or "
            "build the image with this model in its store"
        ) from exc
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from app.engine.core import Core
    from app.engine.weights import load_net

    core = Core(load_net(spec), task=spec.task, mean=spec.mean, std=spec.std, packed=False).eval()
    side = spec.stride * 2
    example = (torch.zeros(1, side, side, 3, dtype=torch.uint8), torch.full((1,), 0.5))
    with warnings.catch_warnings():
        # torch wants `torch.export` instead of tracing; OpenVINO reads both, and only a trace
        # leaves every size free without constraints on the sides.
        warnings.filterwarnings("ignore", message="`torch.jit", category=Warning)
        with torch.no_grad():
            traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
                core, example, check_trace=False
            )
    # The frontend itself and not `openvino.convert_model`, which reports its use over the network
    # unless the user has opted out.
    frontend = FrontEndManager().load_by_framework("pytorch")
    # The decoder is asked during the conversion, and nothing but this name keeps it alive.
    decoder = TorchScriptPythonDecoder(traced)
    model = frontend.convert(frontend.load(decoder))
    model.reshape({0: openvino.PartialShape([-1, -1, -1, 3]), 1: openvino.PartialShape([-1])})
    # Not compressed to float16: that would round the mean and the deviation too, and cost the
    # probabilities 3e-4.
    openvino.save_model(model, target, compress_to_fp16=False)
