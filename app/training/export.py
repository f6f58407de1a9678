"""A published model as ONNX or as a `torch.export` program, proven on the model's own sample.

The graph takes pixels as they are decoded, (N, H, W, 3) uint8 RGB, H and W multiples of the stride,
and gives probabilities (N, C, H, W) float32: normalisation cannot be forgotten outside. N, H and W
are free. What is written is read back, run on the sample picture, and compared with the mask that
the engine gives; a file that disagrees is not kept.

ONNX needs the packages of the extra `export`: two to write it, ONNX Runtime to prove it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.engine.agreement import EXACT, TOLERANCES, Agreement, compare
from app.engine.base import Engine
from app.engine.nets import load_net
from app.errors import TrainingError
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.fit import fit
from app.training.segmenters import EngineSegmenter
from app.types import ModelSpec, Pixels, Task

OPSET = 18
INPUT, OUTPUT = "pixels", "probability"
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2"}

Answers = Callable[[Pixels], NDArray[np.float32]]


class Probabilities(nn.Module):
    """(N, H, W, 3) uint8 pixels -> (N, C, H, W) float32 probabilities."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.net = net.float()
        self.exclusive = spec.task == "multiclass"
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", (torch.tensor(spec.mean) * 255).view(shape))
        self.register_buffer("scale", (1 / (torch.tensor(spec.std) * 255)).view(shape))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) - self.mean) * self.scale
        logits: torch.Tensor = self.net(x)
        return logits.softmax(dim=1) if self.exclusive else logits.sigmoid()


@dataclass(frozen=True, slots=True)
class Exported:
    """A file and how far its masks agree with those of the engine; `largest` in probability."""

    path: Path
    checked_with: str
    agreement: Agreement
    largest: float


def export(engine: Engine, path: Path, *, format: str) -> Exported:
    """Write the model of `engine` to `path` and prove it.

    `format` is `onnx` or `torch`. Raises TrainingError for an unknown one, for missing packages,
    and where the written file does not give the engine's mask; then nothing is left at `path`.
    """
    if format not in SUFFIXES:
        raise TrainingError(f"unknown format `{format}`; known: {', '.join(SUFFIXES)}")
    spec = engine.spec
    pixels = decode(Path(spec.sample_picture).read_bytes(), limits=DecodeLimits()).pixels
    net = Probabilities(load_net(spec), spec).eval()
    partial = path.with_name(f".{path.name}.partial{SUFFIXES[format]}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write = _write_onnx if format == "onnx" else _write_torch
            write(net, spec, partial)
        except OSError as exc:
            raise TrainingError(f"`{path}` cannot be written: {exc}") from exc
        name, answers = (_read_onnx if format == "onnx" else _read_torch)(partial)
        found = _proven(engine, pixels, answers, path, name)
        os.replace(partial, path)
        return found
    finally:
        partial.unlink(missing_ok=True)


def format_of(path: Path) -> str:
    """By the suffix. Raises TrainingError that lists the known ones."""
    for name, suffix in SUFFIXES.items():
        if path.suffix.lower() == suffix:
            return name
    raise TrainingError(
        f"`{path.name}` does not say the format; known: {', '.join(SUFFIXES.values())}"
    )


def _proven(engine: Engine, pixels: Pixels, answers: Answers, path: Path, name: str) -> Exported:
    """Raise TrainingError unless the masks of the sample agree."""
    spec = engine.spec
    padded, margins = fit(pixels, spec.stride)
    # Two pictures of another size first: a batch or a side that was fixed by mistake shows here.
    side = 2 * spec.stride
    pair = answers(np.zeros((2, side, side + spec.stride, 3), np.uint8))
    if pair.shape != (2, spec.channels, side, side + spec.stride):
        raise TrainingError(
            f"the exported model gave {pair.shape} for two pictures of another size"
        )
    height, width = pixels.shape[:2]
    found = answers(np.ascontiguousarray(padded)[None])[0]
    soft = found[:, margins.top : margins.top + height, margins.left : margins.left + width]
    answer = EngineSegmenter(engine).segment(pixels)
    first = 1 if spec.task == "multiclass" else 0
    agreement = compare(planes_of(soft, spec.task, spec.threshold), answer.planes)
    tolerance = TOLERANCES.get(engine.describe()["precision"], EXACT)
    if not tolerance.accepts(agreement):
        raise TrainingError(
            f"the exported model disagrees with the engine on the sample of {spec.label}: "
            f"{agreement.changed:.3%} of the pixels differ, intersection over union "
            f"{agreement.iou:.4f}; `{path}` was not written"
        )
    assert answer.probability is not None
    largest = float(np.abs(soft[first:] * 255 - answer.probability).max() / 255)
    return Exported(path, name, agreement, largest)


def planes_of(soft: NDArray[np.float32], task: Task, threshold: float) -> NDArray[np.bool_]:
    """(C, H, W) probabilities -> planes of the classes that are listed."""
    if task == "multiclass":
        index = np.arange(1, len(soft))[:, None, None]
        planes: NDArray[np.bool_] = soft.argmax(axis=0) == index
        return planes
    return soft > np.float32(threshold)


def traced(net: Probabilities, spec: ModelSpec) -> torch.export.ExportedProgram:
    """Traced once for every size: sides are stride times a free number."""
    stride = spec.stride
    rows, columns = torch.export.Dim("rows", min=1), torch.export.Dim("columns", min=1)
    shapes = {
        "pixels": {0: torch.export.Dim("batch", min=1), 1: stride * rows, 2: stride * columns}
    }
    # Sides that differ from each other and from 1 step: equal numbers would be taken for one.
    example = torch.zeros(2, 3 * stride, 4 * stride, 3, dtype=torch.uint8, device=net.mean.device)
    with torch.no_grad():
        return torch.export.export(net, (example,), dynamic_shapes=shapes)


def _write_torch(net: Probabilities, spec: ModelSpec, path: Path) -> None:
    torch.export.save(traced(net, spec), path)


def _read_torch(path: Path) -> tuple[str, Answers]:
    net = torch.export.load(path).module()

    def answers(pixels: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = net(torch.from_numpy(pixels)).numpy()
        return found

    return f"torch {torch.__version__}", answers


def _write_onnx(net: Probabilities, spec: ModelSpec, path: Path) -> None:
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if absent:
        raise TrainingError(
            f"{' and '.join(absent)} not installed, which this format needs\n"
            "hint: `pip install 'ternausnet-serve[export]'`, or `--format torch`"
        )
    with warnings.catch_warnings():
        # The exporter's own libraries warn of each other's ways.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            traced(net, spec),
            (),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _read_onnx(path: Path) -> tuple[str, Answers]:
    # Not by name: the package is optional and comes without types.
    onnxruntime = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answers(pixels: Pixels) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run([OUTPUT], {INPUT: pixels})[0]
        return found

    return f"ONNX Runtime {onnxruntime.__version__}", answers
