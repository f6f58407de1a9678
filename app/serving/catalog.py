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

from app.encodings import base as encodings
from app.engine.base import Engine
from app.engine.self_test import self_test
from app.errors import ModelNotFound, NotReady, TernausError
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.fit import fit
from app.types import ModelSpec

log = logging.getLogger("ternaus.catalog")

OpenEngine = Callable[[ModelSpec], Engine]
Resolve = Callable[[str], ModelSpec]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that answers."""

    spec: ModelSpec
    engine: Engine


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
        self._wanted: tuple[str, ...] = ()
        self._failures: dict[str, TernausError] = {}

    def open(self, labels: tuple[str, ...]) -> None:
        """Open these models, blocking; raises the first error. Nothing is ready before all are."""
        self._wanted = labels
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

    def _open_one(self, label: str) -> OpenModel:
        spec = self._resolve(label)
        engine = self._open_engine(spec)
        try:
            self.try_sample(engine)
        except BaseException:
            engine.close()
            raise
        log.info("model %s is ready: %s", spec.label, dict(engine.describe()))
        return OpenModel(spec, engine)

    def try_sample(self, engine: Engine) -> None:
        """Segment the model's own sample, blocking. Raises SelfTestFailed with the figures."""
        spec = engine.spec
        picture = decode(Path(spec.sample_picture).read_bytes(), limits=DecodeLimits())
        pixels, margins = fit(picture.pixels, spec.stride)
        # One PNG cannot hold planes that overlap; such a model's mask is COCO RLE.
        format = "rle" if Path(spec.sample_mask).suffix == ".json" else "png"
        expected = encodings.get(format).decode(Path(spec.sample_mask).read_bytes())
        self_test(engine, pixels, expected, top=margins.top, left=margins.left)

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
            raise ModelNotFound(f"no model `{label}` is open; open: {', '.join(sorted(self._open))}")
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

