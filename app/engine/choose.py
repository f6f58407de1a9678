"""From a model and options to an engine: which backend, which precision, which batch sizes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from app.engine.base import Engine, Precision, Turn
from app.engine.drivers import DRIVER_TRACES, driver_present
from app.engine.findings import key_of, recall, remember
from app.engine.options import PRECISIONS, EngineOptions
from app.engine.timings import Timings, are_sizes
from app.engine.trials import GATES, WORTH, batches_that_pay, precision_pays
from app.errors import EngineError
from app.types import ModelSpec, Pixels

__all__ = ["DRIVER_TRACES", "EngineOptions", "driver_present", "open_engine"]

log = logging.getLogger("ternaus.engine")

CPU_BATCHES = (1, 2, 4)
CUDA_BATCHES = (1, 2, 4, 8, 16, 32)


class Placed(Engine, Protocol):
    """An engine that tells of the precisions that were tried for it."""

    trials: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run models here: `place(precision, batch_sizes)` gives an engine."""

    name: str
    device: str
    place: Callable[[Precision, tuple[int, ...]], Placed]
    precisions: Callable[[], tuple[Precision, ...]]
    device_name: Callable[[], str]
    batches: tuple[int, ...]


def open_engine(
    spec: ModelSpec,
    options: EngineOptions | None = None,
    *,
    sample: Pixels | None = None,
    turn: Turn | None = None,
) -> Engine:
    """Place `spec` as `options` ask.

    `sample`: the model's sample picture, decoded and padded, (H, W, 3) uint8; without it `auto`
    precision stays float32, for nothing shows that masks would agree. What is found is kept in
    `cache_dir`, so that a warm start tries nothing. `turn`: of a device from which another engine
    serves meanwhile; what is measured beside it is used and not kept. The engine has not been
    tested on its sample: `self_test` does that. Raises EngineError and ModelDamaged.
    """
    options = options or EngineOptions()
    if spec.precision == "float32" and options.precision == "auto":
        # The model's publisher permits nothing else; an operator may still insist.
        options = replace(options, precision="float32")
    backend = _backend(spec, options, sample, beside=turn is not None)
    files = _files(spec, options, backend, sample)
    known = recall(files.findings) if files else None
    if known is not None and _fits(known):
        engine = backend.place(known["precision"], options.batch_sizes or tuple(known["batches"]))
        engine.trials = known.get("trials", {})
        return engine
    kept = Timings.of(recall(files.timings)) if files else Timings()
    engine, facts, found = _settle(backend, options, sample, kept, turn or nullcontext)
    engine.trials = facts["trials"]
    if files and (found == kept or turn is None):
        remember(files.findings, facts)
        if found != kept:
            remember(files.timings, found.facts())
    return engine


def _settle(
    backend: Backend, options: EngineOptions, sample: Pixels | None, known: Timings, turn: Turn
) -> tuple[Placed, dict[str, Any], Timings]:
    """Try what is neither chosen nor known, on engines placed for it; the better one is kept."""
    trials = _trials(backend, options, sample, known)
    asked = options.precision
    first: Precision = "float32" if asked == "auto" or asked == "int8" else asked
    found = Timings(known.ratio, dict(known.batches))
    facts: dict[str, Any] = {"precision": first, "trials": {}}

    def sizes(precision: Precision) -> tuple[int, ...]:
        return options.batch_sizes or known.batches.get(precision) or backend.batches[:1]

    with ExitStack() as stack:
        engine = _closing(stack, backend.place(first, sizes(first)))
        for tried in trials:
            assert sample is not None
            reduced = _closing(stack, backend.place(tried, sizes(tried)))
            pays, agreement, ratio = precision_pays(
                engine,
                reduced,
                sample,
                gate=GATES[tried],
                ratio=known.ratio if tried == "bfloat16" else None,
                turn=turn,
            )
            facts["trials"][tried] = {
                "accepted": pays,
                "changed": agreement.changed,
                "iou": agreement.iou,
                "time_ratio": ratio,
            }
            if tried == "bfloat16":
                found.ratio = ratio
            kept, left = (reduced, engine) if pays else (engine, reduced)
            left.close()
            engine = kept
            if pays:
                facts["precision"] = tried
                break
            if tried == "int8":
                log.warning(
                    "int8 is not taken for %s: %.2f %% of its sample's pixels change, IoU %.4f "
                    "(at least %g), %.2f times the time of float32",
                    engine.spec.label,
                    100 * agreement.changed,
                    agreement.iou,
                    GATES["int8"].iou,
                    ratio,
                )
        precision: Precision = facts["precision"]
        if not options.batch_sizes and precision not in known.batches:
            found.batches[precision] = batches_that_pay(engine, backend.batches, turn=turn)
        batches = options.batch_sizes or found.batches[precision]
        facts["batches"] = list(batches)
        if batches != engine.batch_sizes:
            engine.close()
            engine = backend.place(precision, batches)
        stack.pop_all()
    return engine, facts, found


def _trials(
    backend: Backend, options: EngineOptions, sample: Pixels | None, known: Timings
) -> tuple[Precision, ...]:
    """Precisions to try against float32, the most wanted first. Raises EngineError for int8 where
    it cannot be tried."""
    able = backend.precisions()
    found: list[Precision] = []
    if options.precision == "int8":
        if "int8" not in able:
            raise EngineError(
                f"`precision` int8 is for OpenVINO on the CPU, not for {backend.name}; "
                f"it offers: {', '.join(able)}"
            )
        if sample is None:
            raise EngineError("`precision` int8 needs the model's sample picture to be proven on")
        found.append("int8")
    if (
        options.precision in ("auto", "int8")
        and sample is not None
        and "bfloat16" in able
        and (known.ratio is None or known.ratio <= WORTH)
    ):
        found.append("bfloat16")
    return tuple(found)


def _closing(stack: ExitStack, engine: Placed) -> Placed:
    """The engine, which is closed unless all goes well."""
    stack.callback(engine.close)
    return engine


def _fits(known: dict[str, Any]) -> bool:
    return known.get("precision") in PRECISIONS[1:] and are_sizes(known.get("batches"))


@dataclass(frozen=True, slots=True)
class Files:
    """Where what is found is kept: of a model, and of every model of its architecture."""

    findings: Path
    timings: Path


def _files(
    spec: ModelSpec, options: EngineOptions, backend: Backend, sample: Pixels | None
) -> Files | None:
    if options.cache_dir is None:
        return None
    net = {
        "architecture": spec.architecture,
        "parameters": dict(spec.parameters),
        "task": spec.task,
        "backend": backend.name,
        "device": backend.device_name(),
        "options": (options.precision, options.threads, options.batch_sizes),
        "versions": (_version("openvino"), _version("torch")),
    }
    model = {
        **net,
        "weights": spec.weights_sha256,
        "normalisation": (spec.mean, spec.std),
        "threshold": spec.threshold,
        "sample": None if sample is None else hashlib.sha256(sample.tobytes()).hexdigest(),
    }
    return Files(
        options.cache_dir / f"findings-{key_of(model)}.json",
        options.cache_dir / f"timings-{key_of({**net, 'channels': spec.channels})}.json",
    )


def _version(package: str) -> str | None:
    """Of an installed package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _backend(
    spec: ModelSpec, options: EngineOptions, sample: Pixels | None, *, beside: bool
) -> Backend:
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
        return _openvino(spec, options, sample, beside=beside)
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


def _openvino(
    spec: ModelSpec, options: EngineOptions, sample: Pixels | None, *, beside: bool
) -> Backend:
    from app.engine.openvino_cpu import OpenVinoEngine, device_name, precisions

    def place(precision: Precision, batch_sizes: tuple[int, ...]) -> Placed:
        return OpenVinoEngine(
            spec,
            precision=precision,
            threads=options.threads,
            batch_sizes=batch_sizes,
            cache_dir=options.cache_dir,
            beside=beside,
            sample=sample,
        )

    return Backend("openvino", "cpu", place, precisions, device_name, CPU_BATCHES)


def _torch_cpu(spec: ModelSpec, options: EngineOptions) -> Backend:
    import torch

    from app.engine.torch_engine import TorchEngine, device_name

    def place(precision: Precision, batch_sizes: tuple[int, ...]) -> Placed:
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

    def place(precision: Precision, batch_sizes: tuple[int, ...]) -> Placed:
        return CudaEngine(spec, precision=precision, device=device, batch_sizes=batch_sizes)

    return Backend(
        "cuda",
        device,
        place,
        lambda: ("float32", "bfloat16"),
        lambda: device_name(torch.device(device)),
        CUDA_BATCHES,
    )
