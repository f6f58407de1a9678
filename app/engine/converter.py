"""What takes torch or NNCF to be made for OpenVINO, in a process of its own; `child.py` starts it.

Its argument is JSON: `draft`, `label`, `niceness`, and `architecture`, `parameters`, `task` of a
template to draw, or `source` and `sample` of a converted model to quantise. Writes into the folder
`draft`: GRAPH and LAYOUT, or MODEL; or `failure.json` with the error (`code`, `detail`). Standard
input stays open as long as the parent lives; at its end this process removes `draft` and ends too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from app.errors import EngineError, TernausError
from app.types import Task

FAILURE = "failure.json"
# Of a template: the graph, and the shape of each tensor of the net by name, with null for the
# number of classes.
GRAPH = "template.xml"
LAYOUT = "layout.json"
# Of a model with its weights; they lie beside it.
MODEL = "model.xml"
# Of the net that is drawn; a template holds for any number.
CLASSES = 2
# Side in pixels of the parts of a sample that int8 is fitted to; a multiple of every stride.
PART = 256


def main(asked: str) -> NoReturn:
    """Do what the JSON `asked` says, and exit: 0, or 1 with the error told."""
    request = json.loads(asked)
    draft = Path(request["draft"])
    threading.Thread(target=_end_with, args=(sys.stdin, draft), daemon=True).start()
    if request["niceness"] and hasattr(os, "nice"):
        os.nice(request["niceness"])
    label = request["label"]
    try:
        if "architecture" in request:
            draw(request["architecture"], request["parameters"], request["task"], draft)
        else:
            quantise(Path(request["source"]), Path(request["sample"]), draft / MODEL)
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
    (draft / FAILURE).write_text(told, encoding="utf-8")
    os._exit(1)


def _end_with(parent: IO[str], draft: Path) -> None:
    """Wait for the end of the parent's pipe."""
    while parent.read(1):
        pass
    shutil.rmtree(draft, ignore_errors=True)
    os._exit(1)


def draw(architecture: str, parameters: Mapping[str, Any], task: Task, folder: Path) -> None:
    """Save GRAPH and LAYOUT of the core with this net, whose tensors are inputs.

    Inputs `pixels` and `thresholds` as of `Core`, then every tensor that the graph reads, by its
    name in `Core`. Raises EngineError for an unknown architecture or parameter.
    """
    import torch

    from app.architectures.base import get
    from app.engine.core import Core
    from app.engine.openvino_library import openvino

    # Only now: the first import of OpenVINO is the library's own.
    from openvino.frontend import FrontEndManager  # isort: skip
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # isort: skip

    family = get(architecture)
    given = {name: value for name, value in parameters.items() if name != "classes"}
    layout = _layout(
        family.layout(**given, classes=CLASSES), family.layout(**given, classes=CLASSES + 1)
    )
    net = family.build(**given, classes=CLASSES)
    # The normalisation is an input like the weights, so that any will do here.
    core = Core(net, task=task, mean=(0.0,) * 3, std=(1.0,) * 3, packed=False).eval()
    run, tensors = _opened(core)
    side = family.stride * 2
    example = (torch.zeros(1, side, side, 3, dtype=torch.uint8), torch.full((1,), 0.5))
    with warnings.catch_warnings():
        # torch wants `torch.export` instead of tracing; OpenVINO reads both, and only a trace
        # leaves every size free without constraints on the sides.
        warnings.filterwarnings("ignore", message="`torch.jit", category=Warning)
        with torch.no_grad():
            traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
                run, (*example, *tensors.values()), check_trace=False
            )
    # The frontend itself and not `openvino.convert_model`, which would report its use.
    frontend = FrontEndManager().load_by_framework("pytorch")
    # The decoder is asked during the conversion, and nothing but this name keeps it alive.
    decoder = TorchScriptPythonDecoder(traced)
    source = frontend.load(decoder)
    shapes = [[-1, -1, -1, 3], [-1], *(_free(n, value, layout) for n, value in tensors.items())]
    for place, shape in zip(source.get_inputs(), shapes, strict=True):
        source.set_partial_shape(place, openvino.PartialShape(shape))
    model = frontend.convert(source)
    for place, name in zip(model.get_parameters()[2:], tensors, strict=True):
        place.set_friendly_name(name)
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
    (folder / LAYOUT).write_text(json.dumps(layout), encoding="utf-8")


def _opened(core: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """`core` as a function of its inputs and of its tensors, and these by their names.

    The counters of training steps that a batch norm keeps are none of them: nothing is computed
    from them. `core` is good for nothing else afterwards.
    """
    tensors = {
        name: value.detach()
        for name, value in (*core.named_parameters(), *core.named_buffers())
        if value.is_floating_point()
    }
    places = []
    for name in tensors:
        module, _, attribute = name.rpartition(".")
        places.append((core.get_submodule(module), attribute))
        # A plain attribute from here on, so that a trace sees where it comes from.
        delattr(*places[-1])

    def run(pixels: Any, thresholds: Any, *values: Any) -> Any:
        for (module, attribute), value in zip(places, values, strict=True):
            setattr(module, attribute, value)
        return core(pixels, thresholds)

    return run, tensors


def _layout(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Shapes by name; null where two nets that differ in the number of classes differ."""
    return {
        name: [
            side if side == another else None
            for side, another in zip(value.shape, other[name].shape, strict=True)
        ]
        for name, value in one.items()
    }


def _free(name: str, value: Any, layout: Mapping[str, list[int | None]]) -> list[int]:
    """The shape of an input, -1 where it depends on the number of classes."""
    sides = layout.get(name.removeprefix("net."), list(value.shape))
    return [-1 if side is None else side for side in sides]


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
