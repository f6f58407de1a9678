"""Which models are open: resolved from the store, placed on the device, tested, then ready.

A model is ready only when its own sample picture gave its own mask on this device. Opening is slow
and blocking, so it runs on a thread of its own; the event loop only reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.encodings import base as encodings
from app.encodings.base import Decoded
from app.engine.base import Engine
from app.engine.self_test import self_test
from app.errors import (
    MalformedRequest,
    ModelDamaged,
    ModelNotFound,
    NotReady,
    PictureError,
    TernausError,
)
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.fit import fit
from app.imaging.scale import shown_size
from app.types import ModelSpec, Pixels

log = logging.getLogger("ternaus.catalog")

# A model and its own sample, padded (H, W, 3) uint8, to an engine that has been tested on nothing
# yet.
OpenEngine = Callable[[ModelSpec, Pixels], Engine]
Resolve = Callable[[str], ModelSpec]


@dataclass(frozen=True, slots=True)
class Sample:
    """A model's own picture, padded for the net, and the mask that it must give.

    `pixels` (H, W, 3) uint8; `expected` planes (C, h, w) bool or labels (h, w) uint8, which begin
    at row `top`, column `left` of the pixels.
    """

    pixels: Pixels
    expected: Decoded
    top: int
    left: int

    @classmethod
    def of(cls, spec: ModelSpec) -> Sample:
        """Read both files. Raises the errors of decoding, naming the file, as ModelDamaged."""
        try:
            picture = decode(Path(spec.sample_picture).read_bytes(), limits=DecodeLimits())
        except (OSError, PictureError) as exc:
            raise ModelDamaged(f"`{spec.sample_picture}` is not a readable picture: {exc}") from exc
        # One PNG cannot hold planes that overlap; such a model's mask is COCO RLE.
        format = "rle" if Path(spec.sample_mask).suffix == ".json" else "png"
        try:
            expected = encodings.get(format).decode(Path(spec.sample_mask).read_bytes())
        except (OSError, MalformedRequest) as exc:
            raise ModelDamaged(f"`{spec.sample_mask}` is not a readable mask: {exc}") from exc
        height, width = picture.pixels.shape[:2]
        if shown_size(height, width, spec.longest_side) != (height, width):
            raise ModelDamaged(
                f"`{spec.sample_picture}` is larger than the {spec.longest_side} pixels that "
                f"{spec.label} is shown, so it proves nothing of its net"
            )
        pixels, margins = fit(picture.pixels, spec.stride)
        return cls(np.ascontiguousarray(pixels), expected, margins.top, margins.left)

    def test(self, engine: Engine) -> None:
        """Blocking. Raises SelfTestFailed with the figures unless the engine gives this mask."""
        self_test(engine, self.pixels, self.expected, top=self.top, left=self.left)


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that answers. `sample` is None where the engine is in another process, which has
    it.
    """

    spec: ModelSpec
    engine: Engine
    sample: Sample | None


class Catalog:
    """The open models of one device, by name."""

    def __init__(
        self,
        *,
        resolve: Resolve,
        open_engine: OpenEngine,
        default: str = "",
    ) -> None:
        self._resolve = resolve
        self._open_engine = open_engine
        self._default = default
        self._open: dict[str, OpenModel] = {}
        self._failures: dict[str, TernausError] = {}

    def open(self, labels: tuple[str, ...]) -> None:
        """Open these models, blocking; raises the first error. Nothing is ready before all are."""
        opened: dict[str, OpenModel] = {}
        try:
            for label in labels:
                model = self._open_one(label)
                opened[model.spec.label] = model
        except TernausError as exc:
            self._failures[label] = exc
            for model in opened.values():
                model.engine.close()
            raise
        self._open = opened

    def show(self, models: Mapping[str, OpenModel]) -> None:
        """These are open, by `name@version`; somebody else opened them."""
        self._open = dict(models)

    def _open_one(self, label: str) -> OpenModel:
        spec = self._resolve(label)
        sample = Sample.of(spec)
        engine = self._open_engine(spec, sample.pixels)
        try:
            sample.test(engine)
        except BaseException:
            engine.close()
            raise
        found = engine.describe()
        log.info(
            "model %s gave its own mask on %s (%s, %s)",
            spec.label,
            found.get("device_name", found.get("device")),
            found.get("backend"),
            found.get("precision"),
        )
        return OpenModel(spec, engine, sample)

    def get(self, label: str | None) -> OpenModel:
        """The open model of that name, `name@version`, or the default.

        Raises ModelNotFound listing what is open, NotReady before anything is.
        """
        if not self._open:
            raise NotReady("no model is ready")
        if label is None:
            label = self._default or next(iter(self._open))
        found = self._open.get(label)
        if found is None:
            found = max(
                (m for m in self._open.values() if m.spec.name == label),
                key=lambda m: m.spec.version,
                default=None,
            )
        if found is None:
            raise ModelNotFound(
                f"no model `{label}` is open; open: {', '.join(sorted(self._open))}"
            )
        return found

    @property
    def default(self) -> OpenModel:
        """The model of a request that names none."""
        return self.get(None)

    @property
    def models(self) -> Mapping[str, OpenModel]:
        """Everything open, by `name@version`."""
        return self._open

    @property
    def ready(self) -> bool:
        """Every wanted model is open."""
        return bool(self._open)

    @property
    def failures(self) -> Mapping[str, TernausError]:
        """What could not be opened, and why."""
        return self._failures

    def describe(self) -> list[dict[str, Any]]:
        """For `/models` and `/health`."""
        return [
            {
                "name": model.spec.name,
                "version": model.spec.version,
                "default": model is self.default,
                "architecture": model.spec.architecture,
                "task": model.spec.task,
                "classes": [
                    {"name": c.name, "colour": "#{:02x}{:02x}{:02x}".format(*c.colour)}
                    for c in model.spec.classes
                ],
                "longest_side": model.spec.longest_side,
                "threshold": model.spec.threshold if model.spec.task != "multiclass" else None,
                "digest": model.spec.digest,
                "engine": dict(model.engine.describe()),
            }
            for model in self._open.values()
        ]

    def close(self) -> None:
        """Close every engine."""
        for model in self._open.values():
            model.engine.close()
        self._open = {}
