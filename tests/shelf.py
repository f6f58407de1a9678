"""A model store and its engines in memory: versions appear, are damaged, and are opened slowly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.engine.base import Engine, Turn
from app.errors import ModelNotFound
from app.store.store import Edition
from app.types import ModelSpec, Pixels
from tests.fakes import FakeEngine, model_spec


class Shelf:
    """What `create_app` asks of a store and of the engine room.

    `opening` is called with a model before its engine is made: it may wait or raise. `engines`
    holds every engine that was ever made, by label, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: dict[str, list[Engine]] = {}
        self.opening: Callable[[ModelSpec], None] = lambda spec: None
        self.before: Callable[[Pixels], None] = lambda pixels: None
        self.looks = 0
        self.turns: list[bool] = []
        self._specs: dict[str, ModelSpec] = {}
        self._given: dict[str, Engine] = {}
        self._marks: dict[str, str] = {}
        self._lock = threading.Lock()

    def publish(self, name: str, version: int, *, mark: str = "", **changes: Any) -> ModelSpec:
        """A version with a sample; version 2 has a threshold, and so masks, of its own."""
        from tests.server import THRESHOLDS, sampled

        changes.setdefault("threshold", THRESHOLDS.get(version, 0.5))
        place = self.folder / name / str(version)
        spec = sampled(place, name=name, version=version, **changes)
        with self._lock:
            self._specs[spec.label] = spec
            self._marks[spec.label] = mark
        return spec

    def damage(self, label: str) -> None:
        """From now on the model's sample mask is no mask."""
        Path(self._specs[label].sample_mask).write_bytes(b"no mask")

    def add(self, engine: Engine) -> None:
        """A version whose engine is given."""
        self._specs[engine.spec.label] = engine.spec
        self._given[engine.spec.label] = engine

    def engine(self, label: str) -> FakeEngine:
        """The engine that was made last for it."""
        found = self.engines[label][-1]
        assert isinstance(found, FakeEngine)
        return found

    # What the application asks.

    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec.name for spec in self._specs.values()))

    def newest(self, name: str) -> Edition:
        self.looks += 1
        versions = [spec.version for spec in self._specs.values() if spec.name == name]
        if not versions:
            raise ModelNotFound(f"no model `{name}`; known: {', '.join(self.names())}")
        return Edition(max(versions), self._marks.get(f"{name}@{max(versions)}", ""))

    def resolve(self, label: str) -> ModelSpec:
        if "@" not in label:
            label = f"{label}@{self.newest(label).version}"
        if label not in self._specs:
            raise ModelNotFound(f"model `{label}` is not there")
        return self._specs[label]

    def open_engine(self, spec: ModelSpec, sample: Pixels, turn: Turn | None) -> Engine:
        self.turns.append(turn is not None)
        self.opening(spec)
        engine = self._given.get(spec.label) or FakeEngine(
            spec, before=lambda pixels: self.before(pixels)
        )
        self.engines.setdefault(spec.label, []).append(engine)
        return engine


class PublicShelf(Shelf):
    """A shelf to which other processes bring versions: `FOLDER/NAME/VERSION`, once it says so."""

    def publish(self, name: str, version: int, *, mark: str = "", **changes: Any) -> ModelSpec:
        spec = super().publish(name, version, mark=mark, **changes)
        (self.folder / name / str(version) / "published").touch()
        return spec

    def _see(self) -> None:
        from tests.server import THRESHOLDS

        for found in sorted(self.folder.glob("*/*/published")):
            place = found.parent
            spec = model_spec(
                name=place.parent.name,
                version=int(place.name),
                threshold=THRESHOLDS[int(place.name)],
                sample_picture=str(place / "sample.png"),
                sample_mask=str(place / "sample.mask.png"),
            )
            with self._lock:
                self._specs.setdefault(spec.label, spec)

    def names(self) -> tuple[str, ...]:
        self._see()
        return super().names()

    def newest(self, name: str) -> Edition:
        self._see()
        return super().newest(name)

    def resolve(self, label: str) -> ModelSpec:
        self._see()
        return super().resolve(label)
