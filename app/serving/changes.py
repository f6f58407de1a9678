"""Which models are open, changed while the others serve: loading, unloading, following the store.

A new version is resolved, opened and tested beside the old one, and takes over in one step between
two requests. The old one finishes what it has, and is closed. What fails changes nothing. Changes
happen one after the other. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from app.engine.base import Engine
from app.errors import Draining, EngineError, ModelNotFound, NotReady, TernausError
from app.serving.batcher import Batcher
from app.serving.catalog import Catalog, OpenModel
from app.serving.metrics import Metrics
from app.serving.served import Served
from app.store.names import split_label
from app.store.store import Edition

log = logging.getLogger("ternaus.changes")

Result = TypeVar("Result")
# The newest published version of a name. Blocking; raises ModelNotFound and StoreError.
Newest = Callable[[str], Edition]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load came to: `name@version` that answers to the name, and the one that did until now.

    `opened` is False where the version was open already. `model` is what `/models` says of it.
    """

    label: str
    replaced: str | None
    opened: bool
    model: dict[str, Any]


class Changes:
    """Loads and unloads the models of a catalog.

    `leaving` is waited for when no request holds an engine any more, before it is closed; `changed`
    is called when something else is open, or there is something else to be told. With `draining`
    set nothing is changed.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        batcher: Batcher,
        metrics: Metrics,
        newest: Newest,
        leaving: Callable[[Engine], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._batcher = batcher
        self._metrics = metrics
        self._newest = newest
        self._on_leaving = leaving
        self._changed = changed
        self.draining = False
        self._one_at_a_time = asyncio.Lock()
        self._working: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        # Versions up to this are not loaded by themselves: somebody has decided otherwise.
        self._passed: dict[str, int] = {}
        # The last edition that failed, which is not tried again as it is.
        self._bad: dict[str, Edition] = {}

    async def load(self, label: str) -> Loaded:
        """Have the newest version of `name`, or `name@version`, answer to the name.

        Returns once it does; what it replaced is closed after its last request. Raises the errors
        of the store and of opening, Draining and NotReady; nothing has changed then. Cancelling
        stops the waiting and not the work.
        """
        return await self._detached(self._load(label))

    async def unload(self, label: str) -> list[str]:
        """Close every version of `name`, or `name@version`; the labels, once they are closed.

        Raises ModelNotFound, ModelNeeded, Draining and NotReady. Cancelling stops the waiting.
        """
        return await self._detached(self._unload(label))

    def watch(self, every_s: float) -> None:
        """From now on look at the store every so many seconds."""

        async def watching() -> None:
            while True:
                await asyncio.sleep(every_s)
                await self.look()

        self._watch = asyncio.create_task(watching())

    async def look(self) -> None:
        """Load what is newer in the store than the version that answers to a followed name.

        Never raises for a model or a store: the old version goes on, and `/health` shows why.
        """
        for name, model in self._catalog.followed.items():
            try:
                edition = await asyncio.to_thread(self._newest, name)
            except TernausError as exc:
                if self._catalog.failures.get(name) != exc.detail:
                    log.warning("the store cannot be looked at for %s: %s", name, exc)
                self._catalog.fail(name, exc.detail)
                continue
            if self._catalog.failures.get(name):
                self._catalog.clear_failure(name)
            known = max(model.spec.version, self._passed.get(name, 0))
            if edition.version <= known or edition == self._bad.get(name):
                continue
            log.info("the store has %s@%d", name, edition.version)
            try:
                await self.load(f"{name}@{edition.version}")
            except Exception:
                continue  # told and shown where it was caught first

    def served(self) -> Served:
        """What is open, and what was decided about it."""
        catalog = self._catalog
        return Served(
            labels=list(catalog.models),
            plain={name: model.spec.label for name, model in catalog.plain.items()},
            followed=sorted(catalog.followed),
            pinned=sorted(catalog.pinned),
            passed=dict(self._passed),
            bad={name: (found.version, found.mark) for name, found in self._bad.items()},
            failures=dict(catalog.failures),
        )

    def resume(self, served: Served) -> None:
        """Go on where another process ended, whose models the catalog has opened again.

        A version that was being opened when it ended may well be why: it is not tried by itself.
        """
        self._passed = dict(served.passed)
        self._bad = {name: Edition(*found) for name, found in served.bad.items()}
        for name, found in self._bad.items():
            label = f"{name}@{found.version}"
            if label not in self._catalog.failures:
                log.error("%s was not loaded: the engine process ended while it was opened", label)
                self._metrics.model_loads.labels(name, "failed").inc()
                self._catalog.fail(label, "the engine process ended while it was opened")

    async def close(self) -> None:
        """Wait for the end of a change at work, and close what leaves. The server is draining."""
        if self._watch is not None:
            self._watch.cancel()
        for task in (leaving := set(self._leaving)):
            task.cancel()
        if self._working:
            await asyncio.wait(self._working)
        for task in self._leaving - leaving:
            task.cancel()
        if self._leaving:
            await asyncio.wait(self._leaving)

    # Inside.

    async def _detached(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The work as a task of its own: whoever asked may leave."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._worked)
        return await asyncio.shield(task)

    def _worked(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, for there may be nobody left who does

    def _check(self) -> None:
        if self.draining:
            raise Draining("this server is shutting down", retry_after_s=1.0)
        if not self._catalog.ready:
            raise NotReady("the server is still opening its models", retry_after_s=2.0)

    async def _load(self, label: str) -> Loaded:
        name, version = _parts(label)
        async with self._one_at_a_time:
            self._check()
            edition = None
            try:
                found = self._catalog.models.get(f"{name}@{version}")
                if found is None or self._catalog.get(name) is not found:
                    edition = await self._edition(name, version)
                    label = f"{name}@{version or edition.version}" if edition else label
                    found = self._catalog.models.get(label)
                if found is not None:
                    return self._switch(found, edition, opened=False)
                # No more than two versions stand in memory at once.
                if self._leaving:
                    await asyncio.wait(self._leaving)
                if edition is not None and label == f"{name}@{edition.version}":
                    # Until it is proven: opening it may end the process.
                    self._bad[name] = edition
                    self._changed()
                found = await self._open(label)
                return self._switch(found, edition, opened=True)
            except (Draining, NotReady):
                self._bad.pop(name, None)
                raise
            except Exception as exc:
                self._failed(name, label, edition, exc)
                raise

    async def _edition(self, name: str, version: int | None) -> Edition | None:
        """The newest in the store; None where it does not matter and the store does not say."""
        try:
            return await asyncio.to_thread(self._newest, name)
        except TernausError:
            if version is None:
                raise
            return None

    async def _open(self, label: str) -> OpenModel:
        log.info("opening %s beside what serves", label)
        try:
            model = await asyncio.to_thread(self._catalog.open_beside, label, self._batcher.turn)
        except MemoryError as exc:
            raise EngineError(f"there is no memory to open {label}") from exc
        if self.draining:
            await self._close_engine(model)
            self._check()
        return model

    def _switch(self, model: OpenModel, edition: Edition | None, *, opened: bool) -> Loaded:
        """The one step. From here on every new request of this name is the model's."""
        name = model.spec.name
        if opened:
            self._metrics.opened(model.engine)
        leaving = self._catalog.take_over(model)
        if edition is not None:
            self._passed[name] = edition.version
        self._bad.pop(name, None)
        self._changed()
        self._metrics.model_loads.labels(name, "loaded" if opened else "already_open").inc()
        replaced = leaving.spec.label if leaving else None
        if opened or leaving:
            log.info("%s answers to `%s`; it replaced %s", model.spec.label, name, replaced)
        if leaving is not None:
            self._let_go(leaving)
        return Loaded(model.spec.label, replaced, opened, self._catalog.describe_one(model))

    def _failed(self, name: str, label: str, edition: Edition | None, exc: Exception) -> None:
        ours = isinstance(exc, TernausError)
        log.error("%s was not loaded: %s", label, exc, exc_info=None if ours else exc)
        concerns = any(name == model.spec.name for model in self._catalog.models.values())
        if isinstance(exc, ModelNotFound) and not concerns:
            # A slip of the pen concerns nobody that serves.
            self._metrics.model_loads.labels("unknown", "failed").inc()
            self._bad.pop(name, None)
            return
        self._metrics.model_loads.labels(name, "failed").inc()
        self._catalog.fail(label, exc.detail if isinstance(exc, TernausError) else repr(exc))
        self._changed()

    async def _unload(self, label: str) -> list[str]:
        _parts(label)
        async with self._one_at_a_time:
            self._check()
            leaving = self._catalog.take_out(label)
            self._changed()
            for model in leaving:
                log.info("%s no longer answers", model.spec.label)
                self._let_go(model)
            await asyncio.wait(self._leaving)
        return [model.spec.label for model in leaving]

    def _let_go(self, model: OpenModel) -> None:
        task = asyncio.create_task(self._retire(model))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _retire(self, model: OpenModel) -> None:
        """Wait for those who hold it, each of whom has a deadline; then forget and close it."""
        engine = model.engine
        try:
            await model.loans.ended()
            await self._on_leaving(engine)
            await asyncio.to_thread(self._batcher.forget_engine, engine)
        finally:
            self._metrics.closed(engine)
            await self._close_engine(model)

    async def _close_engine(self, model: OpenModel) -> None:
        try:
            await asyncio.to_thread(self._batcher.exclusively, model.engine.close)
        except Exception:  # it serves no longer, and what serves must not suffer
            log.exception("the engine of %s could not be closed", model.spec.label)
        log.info("%s is closed", model.spec.label)


def _parts(label: str) -> tuple[str, int | None]:
    parts = split_label(label)
    if parts is None:
        raise ModelNotFound(f"`{label[:100]}` names no model; expected `name` or `name@version`")
    return parts
