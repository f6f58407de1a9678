"""The conversion itself, in a process of its own: `conversion.py` starts it and waits.

Its argument is JSON: `label`, `target`, `niceness`, and `spec` of a model to convert, or `source`
and `sample` of a converted one to quantise. Writes `target`, or beside it `failure.json` with the
error (`code`, `detail`). Standard input stays open as long as the parent lives; at its end this
process removes its draft and ends too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import warnings
from pathlib import Path
from typing import IO, Any, NoReturn

from app.errors import EngineError, TernausError
from app.types import ClassSpec, Halo, ModelSpec

FAILURE = "failure.json"
# Side in pixels of the parts of a sample that int8 is fitted to; a multiple of every stride.
PART = 256


def main(asked: str) -> NoReturn:
    """Do what the JSON `asked` says, and exit: 0, or 1 with the error told."""
    request = json.loads(asked)
    target = Path(request["target"])
    threading.Thread(target=_end_with, args=(sys.stdin, target.parent), daemon=True).start()
    if request["niceness"] and hasattr(os, "nice"):
        os.nice(request["niceness"])
    label = request["label"]
    try:
        if "spec" in request:
            convert(_spec(request["spec"]), target)
        else:
            quantise(Path(request["source"]), Path(request["sample"]), target)
    except TernausError as exc:
        error = exc
    except MemoryError:
        error = EngineError(f"no memory to convert {label}")
    except Exception as exc:
        import traceback

        traceback.print_exc()
        words = str(exc).strip().splitlines()
        error = EngineError(
            f"{label} cannot be converted: {type(exc).__name__}: {words[0] if words else ''}"
        )
    else:
        # At once: there is nothing here that an orderly end of so many libraries would save.
        os._exit(0)
    told = json.dumps({"code": error.code, "detail": error.detail})
    (target.parent / FAILURE).write_text(told, encoding="utf-8")
    os._exit(1)


def _end_with(parent: IO[str], draft: Path) -> None:
    """Wait for the end of the parent's pipe."""
    while parent.read(1):
        pass
    shutil.rmtree(draft, ignore_errors=True)
    os._exit(1)


def _spec(values: dict[str, Any]) -> ModelSpec:
    return ModelSpec(
        **{
            **values,
            "classes": tuple(ClassSpec(**entry) for entry in values["classes"]),
            "halo": Halo(**values["halo"]),
        }
    )


def convert(spec: ModelSpec, target: Path) -> None:
    """Trace the core, translate it, and save it. Raises ModelDamaged and EngineError."""
    import torch

    from app.engine.core import Core
    from app.engine.openvino_library import openvino
    from app.engine.weights import load_net

    # Only now: the first import of OpenVINO is the library's own.
    from openvino.frontend import FrontEndManager  # isort: skip
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # isort: skip

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
    # The frontend itself and not `openvino.convert_model`, which would report its use.
    frontend = FrontEndManager().load_by_framework("pytorch")
    # The decoder is asked during the conversion, and nothing but this name keeps it alive.
    decoder = TorchScriptPythonDecoder(traced)
    model = frontend.convert(frontend.load(decoder))
    model.reshape({0: openvino.PartialShape([-1, -1, -1, 3]), 1: openvino.PartialShape([-1])})
    # Not compressed to float16: that would round the mean and the deviation too, and cost the
    # probabilities 3e-4.
    openvino.save_model(model, target, compress_to_fp16=False)


def quantise(source: Path, sample: Path, target: Path) -> None:
    """int8 for weights and for what passes between layers, with ranges met on the sample picture.

    The sample is seen in its four turns and in parts, as pictures are seen in tiles.
    """
    # First: NNCF would import OpenVINO with its reports.
    from app.engine.openvino_library import openvino  # isort: skip
    import nncf
    import numpy as np

    pixels = np.load(sample)
    threshold = np.array([0.5], np.float32)
    parts = []
    for turns in range(4):
        turned = np.rot90(pixels, turns)
        for top in range(0, turned.shape[0], PART):
            for left in range(0, turned.shape[1], PART):
                part = turned[top : top + PART, left : left + PART]
                parts.append(np.ascontiguousarray(part)[None])
    model = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(parts, lambda part: [part, threshold]),
        subset_size=len(parts),
        preset=nncf.QuantizationPreset.PERFORMANCE,
    )
    openvino.save_model(model, target, compress_to_fp16=False)
