"""From a model and options to an engine: which backend, which precision, which batch sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.engine.base import Engine, Precision
from app.engine.drivers import DRIVER_TRACES, driver_present
from app.engine.findings import key_of, recall, remember
from app.engine.options import EngineOptions
from app.engine.trials import batches_that_pay, precision_pays
from app.errors import EngineError
from app.types import ModelSpec, Pixels

__all__ = ["DRIVER_TRACES", "EngineOptions", "driver_present", "open_engine"]

CPU_BATCHES = (1, 2, 4)
CUDA_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run models here: `place(precision, batch_sizes)` gives an engine."""

    name: str
    device: str
    place: Callable[[Precision, tuple[int, ...]], Engine]
    precisions: Callable[[], tuple[Precision, ...]]
    device_name: Callable[[], str]
    batches: tuple[int, ...]


def open_engine(
    spec: ModelSpec, options: EngineOptions | None = None, *, sample: Pixels | None = None
) -> Engine:
    """Place `spec` as `options` ask.

    `sample`: the model's sample picture, decoded and padded, (H, W, 3) uint8; without it `auto`
    precision stays float32, for nothing shows that masks would agree. What is found is kept in
    `cache_dir`, so that a warm start tries nothing. The engine has not been tested on its sample:
    `self_test` does that. Raises EngineError and ModelDamaged.
    """
    options = options or EngineOptions()
    if spec.precision == "float32" and options.precision == "auto":
        # The model's publisher permits nothing else; an operator may still insist.
        options = replace(options, precision="float32")
    backend = _backend(spec, options)
    file = _findings_file(spec, options, backend, sample)
    known = recall(file) if file else None
    if known is not None and _fits(known):
        return backend.place(known["precision"], options.batch_sizes or tuple(known["batches"]))
    engine, facts = _settle(backend, options, sample)
    if file:
        remember(file, facts)
    return engine


def _settle(
    backend: Backend, options: EngineOptions, sample: Pixels | None
) -> tuple[Engine, dict[str, Any]]:
    """Try what is not chosen, on engines that are placed for it; the better one is kept."""
    batches = options.batch_sizes or backend.batches[:1]
    first: Precision = "float32" if options.precision == "auto" else options.precision
    engine = backend.place(first, batches)
    facts: dict[str, Any] = {"precision": first}
    if options.precision == "auto" and sample is not None and "bfloat16" in backend.precisions():
        reduced = backend.place("bfloat16", batches)
        pays, agreement, ratio = precision_pays(engine, reduced, sample)
        facts |= {"changed": agreement.changed, "iou": agreement.iou, "time_ratio": ratio}
        kept, left = (reduced, engine) if pays else (engine, reduced)
        left.close()
        engine = kept
        facts["precision"] = "bfloat16" if pays else "float32"
    found = options.batch_sizes or batches_that_pay(engine, backend.batches)
    facts["batches"] = list(found)
    if found != engine.batch_sizes:
        engine.close()
        engine = backend.place(facts["precision"], found)
    return engine, facts


def _fits(known: dict[str, Any]) -> bool:
    batches = known.get("batches")
    return (
        known.get("precision") in ("float32", "bfloat16")
        and isinstance(batches, list)
        and bool(batches)
        and all(isinstance(size, int) and size > 0 for size in batches)
    )


def _findings_file(
    spec: ModelSpec, options: EngineOptions, backend: Backend, sample: Pixels | None
) -> Path | None:
    if options.cache_dir is None:
        return None
    key = key_of(
        {
            "weights": spec.weights_sha256,
            "architecture": spec.architecture,
            "parameters": dict(spec.parameters),
            "task": spec.task,
            "normalisation": (spec.mean, spec.std),
            "threshold": spec.threshold,
            "sample": None if sample is None else hashlib.sha256(sample.tobytes()).hexdigest(),
            "backend": backend.name,
            "device": backend.device_name(),
            "options": (options.precision, options.threads, options.batch_sizes),
            "versions": (_version("openvino"), _version("torch")),
        }
    )
    return options.cache_dir / f"findings-{key}.json"


def _version(package: str) -> str | None:
    """Of an installed package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _backend(spec: ModelSpec, options: EngineOptions) -> Backend:
    """What was named; else CUDA, OpenVINO, torch. Raises EngineError: asked this, there is that."""
    wants_cuda = options.device.startswith("cuda")
    if wants_cuda and options.backend == "openvino":
        raise EngineError(
            f"`device` {options.device} and `backend` openvino do not go together; "
            "OpenVINO serves the CPU here"
        )
    if wants_cuda:
        return _cuda(spec, options, _cuda_device(options.device))
    if options.device == "auto" and options.backend != "openvino" and driver_present():
        import torch

        if torch.cuda.is_available():
            return _cuda(spec, options, "cuda:0")
    if options.backend == "torch":
        return _torch_cpu(spec, options)
    if find_spec("openvino") is not None:
        return _openvino(spec, options)
    if options.backend == "openvino":
        raise EngineError("`backend` openvino was asked for and openvino is not installed")
    return _torch_cpu(spec, options)


def _cuda_device(asked: str) -> str:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(asked.partition(":")[2] or 0)
    if index >= there:
        raise EngineError(f"`device` {asked} was asked for; CUDA devices here: {there}")
    return f"cuda:{index}"


def _openvino(spec: ModelSpec, options: EngineOptions) -> Backend:
    from app.engine.openvino_cpu import OpenVinoEngine, device_name, precisions

    def place(precision: Precision, batch_sizes: tuple[int, ...]) -> Engine:
        return OpenVinoEngine(
            spec,
            precision=precision,
            threads=options.threads,
            batch_sizes=batch_sizes,
            cache_dir=options.cache_dir,
        )

    return Backend("openvino", "cpu", place, precisions, device_name, CPU_BATCHES)


def _torch_cpu(spec: ModelSpec, options: EngineOptions) -> Backend:
    import torch

    from app.engine.torch_engine import TorchEngine, device_name

    def place(precision: Precision, batch_sizes: tuple[int, ...]) -> Engine:
        return TorchEngine(
            spec, precision=precision, threads=options.threads, batch_sizes=batch_sizes
        )

    # torch computes bfloat16 on any processor; where that is emulated the trial finds it slower.
    return Backend(
        "torch",
        "cpu",
        place,
        lambda: ("float32", "bfloat16"),
        lambda: device_name(torch.device("cpu")),
        CPU_BATCHES,
    )


def _cuda(spec: ModelSpec, options: EngineOptions, device: str) -> Backend:
    import torch

    from app.engine.cuda import CudaEngine
    from app.engine.torch_engine import device_name

    def place(precision: Precision, batch_sizes: tuple[int, ...]) -> Engine:
        return CudaEngine(spec, precision=precision, device=device, batch_sizes=batch_sizes)

    return Backend(
        "cuda",
        device,
        place,
        lambda: ("float32", "bfloat16"),
        lambda: device_name(torch.device(device)),
        CUDA_BATCHES,
    )
