"""From settings to the parts that everything stands on: the store and the engines."""

from __future__ import annotations

from app.engine.base import Engine, Turn
from app.engine.choose import EngineOptions, open_engine
from app.serving.catalog import OpenEngine
from app.settings import Settings
from app.store.store import ModelStore
from app.types import ModelSpec, Pixels


def store_of(settings: Settings) -> ModelStore:
    """The model store, with its local copies in the cache."""
    return ModelStore(settings.model_store, cache=settings.cache_dir / "store")


def labels_of(settings: Settings, store: ModelStore) -> tuple[str, ...]:
    """The models to open. Reads the store, where the settings name none."""
    return settings.models or tuple(store.names())


def engines_of(settings: Settings) -> OpenEngine:
    """Places a model on the device that the settings name."""
    options = EngineOptions(
        device=settings.device,
        backend=settings.backend,
        precision=settings.precision,
        threads=settings.engine_threads,
        cache_dir=settings.cache_dir / "engines",
    )

    def place(spec: ModelSpec, sample: Pixels | None = None, turn: Turn | None = None) -> Engine:
        return open_engine(spec, options, sample=sample, turn=turn)

    return place
