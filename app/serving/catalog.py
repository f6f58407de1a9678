"""Which models are open: resolved from the store, placed on the device, tested, then ready.

A model is ready only when its own sample picture gave its own mask on this device. Opening is slow
and blocking, so it runs on a thread of its own; the event loop reads, and changes what is open in
one step between two requests. Who holds a model while it leaves is counted by its loans.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.encodings import base as encodings
from app.encodings.base import Decoded
from app.engine.base import Engine, Turn
from app.engine.self_test import self_test
from app.errors import (
    MalformedRequest,
    ModelDamaged,
    ModelNeeded,
    ModelNotFound,
    NotReady,
    PictureError,
    TernausError,
)
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.fit import fit
from app.imaging.scale import shown_size
from app.serving.served import Served
from app.types import ModelSpec, Pixels

log = logging.getLogger("ternaus.catalog")

# A model and its own sample, padded (H, W, 3) uint8, to an engine that has been tested on nothing
# yet; with the turns of the device, where another engine serves from it meanwhile.
OpenEngine = Callable[[ModelSpec, Pixels, Turn | None], Engine]
Resolve = Callable[[str], ModelSpec]

# Failures that are shown.
_FAILURES = 32


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


class Loans:
    """How many hold a model just now. A context manager; lives on the event loop."""

    def __init__(self) -> None:
        self.held = 0
        self._none = asyncio.Event()
        self._none.set()

    async def ended(self) -> None:
        """Return once nobody holds it."""
        await self._none.wait()

    def __enter__(self) -> None:
        self.held += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self.held -= 1
        if self.held == 0:
            self._none.set()


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """A model that answers. Its engine is not closed while it is on loan.

    `sample` is None where the engine is in another process, which has it.
    """

    spec: ModelSpec
    engine: Engine
    sample: Sample | None
    loans: Loans = field(default_factory=Loans)


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
        # Which version answers to a plain name.
        self._plain: dict[str, OpenModel] = {}
        # Names of which the operator wants the newest version, and versions that he named.
        self._followed: set[str] = set()
        self._pinned = {default} if "@" in default else set()
        self._failures: dict[str, str] = {}

    def open(self, labels: tuple[str, ...]) -> None:
        """Open these models, blocking; raises the first error. Nothing is ready before all are."""
        opened = self._place_all(labels)
        self._pinned |= {label for label in labels if "@" in label}
        self._followed = {label for label in labels if "@" not in label}
        self._put(opened)

    def reopen(self, served: Served) -> None:
        """Open what another process served last, and no newer version; else as `open`."""
        opened = self._place_all(served.labels)
        self._pinned, self._followed = set(served.pinned), set(served.followed)
        self._failures = dict(served.failures)
        self._put(opened, {name: opened[label] for name, label in served.plain.items()})

    def _place_all(self, labels: Iterable[str]) -> dict[str, OpenModel]:
        opened: dict[str, OpenModel] = {}
        try:
            for label in labels:
                spec = self._resolve(label)
                if spec.label not in opened:
                    opened[spec.label] = self._place(spec, None)
        except TernausError as exc:
            self._failures[label] = exc.detail
            for model in opened.values():
                model.engine.close()
            raise
        return opened

    def show(self, models: Iterable[OpenModel], plain: Mapping[str, OpenModel]) -> None:
        """These are open, and who answers to which name; somebody else opened them."""
        self._put({model.spec.label: model for model in models}, plain)

    def open_beside(self, label: str, turn: Turn) -> OpenModel:
        """Open one model while others serve, blocking. It does not answer before `take_over`.

        `turn` is taken for whatever uses the device. Raises the errors of the store and of opening.
        """
        return self._place(self._resolve(label), turn)

    def _place(self, spec: ModelSpec, turn: Turn | None) -> OpenModel:
        sample = Sample.of(spec)
        engine = self._open_engine(spec, sample.pixels, turn)
        try:
            with turn() if turn else nullcontext():
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
        found = self._open.get(label) or self._plain.get(label)
        if found is None:
            raise ModelNotFound(
                f"no model `{label}` is open; open: {', '.join(sorted(self._open))}"
            )
        return found

    def take_over(self, model: OpenModel) -> OpenModel | None:
        """From now on `model` answers to its name; what did so before and has to go, or None.

        The default keeps its place. Versions that the settings name stay open.
        """
        name, label = model.spec.name, model.spec.label
        former = self._plain.get(name)
        leaving = None
        if former is not None and former is not model and former.spec.label not in self._pinned:
            leaving = former
        found: dict[str, OpenModel] = {}
        for each in self._open.values():
            if each is not leaving:
                found[each.spec.label] = each
            elif label not in self._open:
                found[label] = model
        found.setdefault(label, model)
        self._followed.add(name)
        self._put(found, {name: model})
        self.clear_failures(name)
        return leaving

    def take_out(self, label: str) -> list[OpenModel]:
        """Every open version of a name, or the one of `name@version`, which no longer answer.

        Raises ModelNotFound, and ModelNeeded where nothing, or not the default, would be left.
        """
        leaving = [m for m in self._open.values() if label in (m.spec.name, m.spec.label)]
        if not leaving:
            raise ModelNotFound(
                f"no model `{label}` is open; open: {', '.join(sorted(self._open))}"
            )
        staying = {m.spec.label: m for m in self._open.values() if m not in leaving}
        if not staying:
            raise ModelNeeded(f"`{label}` is all that is open; nothing would be left to serve")
        default = self._default
        if default and not any(default in (m.spec.name, m.spec.label) for m in staying.values()):
            raise ModelNeeded(
                f"`{label}` is the model of requests that name none (TERNAUS_DEFAULT_MODEL)",
                limit="TERNAUS_DEFAULT_MODEL",
                limit_value=default,
            )
        name = leaving[0].spec.name
        if not any(m.spec.name == name for m in staying.values()):
            self._followed.discard(name)
        former = self._plain[name]
        self._put(staying, {} if former in leaving else {name: former})
        self.clear_failures(label)
        return leaving

    def _put(
        self, found: dict[str, OpenModel], plain: Mapping[str, OpenModel] | None = None
    ) -> None:
        """Change what is open, in one step. `plain` says who answers to a name from now on; the
        others stay where they can, else the newest open version does."""
        newest: dict[str, OpenModel] = {}
        for model in sorted(found.values(), key=lambda m: m.spec.version):
            newest[model.spec.name] = model
        kept = {name: m for name, m in self._plain.items() if m in found.values()}
        self._open, self._plain = found, {**newest, **kept, **(plain or {})}

    @property
    def plain(self) -> Mapping[str, OpenModel]:
        """What answers to each plain name."""
        return self._plain

    @property
    def pinned(self) -> frozenset[str]:
        """Versions that stay open when another takes over."""
        return frozenset(self._pinned)

    @property
    def followed(self) -> Mapping[str, OpenModel]:
        """What answers to the names of which the newest version is wanted."""
        return {name: m for name, m in self._plain.items() if name in self._followed}

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
    def failures(self) -> Mapping[str, str]:
        """What could not be opened, and why: sentences, for an error holds on to what it saw."""
        return self._failures

    def fail(self, label: str, why: str) -> None:
        """Show that a model could not be opened; of many such, the latest are shown."""
        self._failures.pop(label, None)
        self._failures[label] = why
        while len(self._failures) > _FAILURES:
            del self._failures[next(iter(self._failures))]

    def clear_failure(self, label: str) -> None:
        """Show no more what stands under this label alone."""
        self._failures.pop(label, None)

    def clear_failures(self, label: str) -> None:
        """Show nothing more of `name@version`, or of a name and its versions."""
        for known in list(self._failures):
            if label in (known, known.partition("@")[0]):
                del self._failures[known]

    def describe(self) -> list[dict[str, Any]]:
        """For `/models` and `/health`."""
        return [self.describe_one(model) for model in self._open.values()]

    def describe_one(self, model: OpenModel) -> dict[str, Any]:
        """What an open model says of itself."""
        spec = model.spec
        return {
            "name": spec.name,
            "version": spec.version,
            "default": model is self.default,
            "architecture": spec.architecture,
            "task": spec.task,
            "classes": [
                {"name": c.name, "colour": "#{:02x}{:02x}{:02x}".format(*c.colour)}
                for c in spec.classes
            ],
            "longest_side": spec.longest_side,
            "threshold": spec.threshold if spec.task != "multiclass" else None,
            "digest": spec.digest,
            "engine": dict(model.engine.describe()),
        }

    def close(self) -> None:
        """Close every engine."""
        for model in self._open.values():
            model.engine.close()
        self._open, self._plain = {}, {}
