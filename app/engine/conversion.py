"""A model as OpenVINO's intermediate representation, converted once and kept by what it rests on:
`<cache_dir>/openvino-<key>/{model.xml, model.bin, seal.json}`.
"""

from __future__ import annotations

import hashlib
import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from app.engine.child import in_a_child
from app.engine.converter import MODEL
from app.engine.findings import key_of
from app.engine.kept import kept, used, whole
from app.engine.templates import fill, template, template_name
from app.errors import EngineError
from app.types import ModelSpec, Pixels

log = logging.getLogger("ternaus.conversion")

# Of each kind; some 90 MB each in float32. One that is needed again is filled again.
MOST = 16


def converted(spec: ModelSpec, cache_dir: Path, *, beside: bool = False) -> Path:
    """The path of `model.xml` of `spec` below `cache_dir`; converted now if missing or damaged.

    `beside`: another engine serves meanwhile and goes first.

    Inputs `pixels` (N, H, W, 3) uint8 and `thresholds` (N,) float32; outputs ordered as in `Core`,
    the mask of `binary` and `multilabel` as (N, C, H, W) bool. All of N, H and W are free. Raises
    ModelDamaged for weights that do not fit and EngineError as `template`.
    """
    folder = cache_dir / f"openvino-{conversion_key(spec)}"
    if not whole(folder):
        # Before there is a draft of ours: that of a template ends with us, however we end.
        drawn = template(spec, cache_dir, beside=beside)
        log.info("converting %s for OpenVINO", spec.label)
        kept(folder, lambda draft: fill(drawn, spec, draft / MODEL))
    used(folder, most=MOST)
    return folder / MODEL


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
    folder = cache_dir / f"openvino-int8-{key_of(key)}"
    if not whole(folder):
        if find_spec("nncf") is None:
            raise EngineError(
                f"{spec.label} is not quantised yet, and the extra `int8`, which quantises, is "
                "not installed\nhint: `pip install 'ternausnet-serve[int8]'`"
            )
        source = converted(spec, cache_dir, beside=beside)

        def make(draft: Path) -> None:
            picture = draft / "sample.npy"
            np.save(picture, sample)
            asked = {"source": str(source), "sample": str(picture)}
            in_a_child(asked, draft, spec.label, beside=beside)
            picture.unlink()

        log.info("quantising %s, in a process of its own", spec.label)
        kept(folder, make)
    used(folder, most=MOST)
    return folder / MODEL


def conversion_key(spec: ModelSpec) -> str:
    """Changes with everything that the converted file depends on, our own sources included."""
    return key_of(
        {
            "weights": spec.weights_sha256,
            "template": template_name(spec.architecture, spec.parameters, spec.task),
            "channels": spec.channels,
            "mean": spec.mean,
            "std": spec.std,
        }
    )
