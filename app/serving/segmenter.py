"""The journey of a picture: bytes in, the bytes of its mask out. Every way in meets it here.

decode [host threads] -> fit and tiles -> the batcher's queue -> the device -> tiles put together ->
the picture's own size -> encode [host threads, unless that takes no longer than getting there].
Down once, up once; a deadline holds at every stage, and when nobody waits any more the work is
dropped wherever it is.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from operator import attrgetter

from app.encodings import base as encodings
from app.encodings.base import Encoding
from app.engine.base import Engine
from app.engine.recent import Recent
from app.errors import BadParameter, DeadlineExceeded, DeviceOutOfMemory, Overloaded
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.header import Header
from app.imaging.probe import probe
from app.imaging.tiling import TileSpec
from app.serving.admission import Permit
from app.serving.catalog import Catalog, OpenModel
from app.serving.clock import Clock
from app.serving.device import Queue
from app.serving.lanes import Flow, Item, Lane, Outcome
from app.serving.layout import Layout, Sheet, Tiling
from app.serving.metrics import Metrics
from app.serving.pool import HostPool
from app.serving.series import Spread
from app.types import Inference, Mask, Picture

log = logging.getLogger("ternaus.segmenter")

# The stages of a request whose seconds are told and counted, in their order.
STAGES = ("receive", "decode", "queue", "infer", "encode")
_SECONDS = attrgetter(*STAGES)
_HEADER = ", ".join(f"{name};dur=%.2f" for name in STAGES)
# A shape that was asked for this often is worth preparing (compiling, capturing) in the background.
_HOT = 3
# How many times the time left a prediction must be to refuse a picture on an idle device.
_FAR_OFF = 3.0
_AGAIN = 256
# Of a picture in tiles: who waits for seconds anyway gives way to those who wait for milliseconds.
_HUGE_WEIGHT = 0.5
# Shapes whose use is counted; any number of others may come by.
_LANES = 1024


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants. `threshold` None: the model's own. `frame`: of an animation or a
    document.
    """

    model: str | None = None
    format: str = encodings.DEFAULT
    threshold: float | None = None
    frame: int | None = None
    background: tuple[int, int, int] | None = None


@dataclass(slots=True)
class Timings:
    """Seconds of one request, by stage, and what became known of it on the way.

    `begun` has the moments of the clock at which stages began.
    """

    receive: float = 0.0
    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    encode: float = 0.0
    stage: str = "receive"
    tiles: int = 0
    tiles_done: int = 0
    model: str = ""
    picture: Header | None = None
    begun: dict[str, float] = field(default_factory=dict)

    def stages(self) -> tuple[float, ...]:
        """Seconds in each of `STAGES`."""
        return _SECONDS(self)

    def place(self) -> str:
        """How far it got, in words."""
        if self.stage == "infer":
            return f"on the device, after {self.tiles_done} of {self.tiles} tiles"
        return f"in the stage `{self.stage}`"

    def header(self) -> str:
        """As a `Server-Timing` value: milliseconds."""
        return _HEADER % tuple([1000 * seconds for seconds in self.stages()])


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes of a mask and what there is to say about them."""

    body: bytes
    encoding: Encoding
    mask: Mask
    orientation: int
    timings: Timings


@dataclass(slots=True)
class _Progress:
    """How the tiles of a request fare: when the first reached the device, how many are done."""

    timings: Timings
    submitted: float
    launched: float | None = None
    device_s: float = 0.0


@dataclass(slots=True)
class Segmenter:
    """Takes pictures through. One per process; lives on one event loop."""

    catalog: Catalog
    queue: Queue
    metrics: Metrics
    clock: Clock
    host: HostPool
    preparer: HostPool
    limits: DecodeLimits
    tiling: Tiling
    tiles_in_flight: int
    _heat: Recent[Lane, int] = field(default_factory=lambda: Recent(_LANES))
    _preparing: dict[asyncio.Future[None], Engine] = field(default_factory=dict)
    _stages: list[Spread] = field(init=False)

    def __post_init__(self) -> None:
        self._stages = [self.metrics.stage_seconds.labels(name) for name in STAGES]

    async def segment(
        self, data: bytes, ask: Ask, *, deadline: float, permit: Permit, timings: Timings
    ) -> Answer:
        """The mask of the picture `data` in the format that is asked for.

        `deadline` is a moment of the clock. Raises the errors of decoding, ModelNotFound,
        BadParameter, Overloaded, DeadlineExceeded and InferenceFailed. Cancelling the task drops
        the work.
        """
        permit.begin()
        try:
            left = None if deadline == float("inf") else max(0.0, deadline - self.clock.now())
            async with asyncio.timeout(left):
                return await self._segment(data, ask, deadline, permit, timings)
        except DeadlineExceeded:
            if timings.tiles == 1:
                permit.end()
            raise
        except TimeoutError:
            self.metrics.late.labels(timings.stage).inc()
            if timings.tiles == 1:
                permit.end()
            raise DeadlineExceeded(
                f"the time of this request ran out {timings.place()} "
                "(TERNAUS_REQUEST_TIMEOUT_S, `X-Request-Timeout-Ms`)",
                stage=timings.stage,
                limit="TERNAUS_REQUEST_TIMEOUT_S",
            ) from None

    async def _segment(
        self, data: bytes, ask: Ask, deadline: float, permit: Permit, timings: Timings
    ) -> Answer:
        model = self.catalog.get(ask.model)
        timings.model = model.spec.label
        # From here on the model stays as it is for this request, whatever replaces it meanwhile.
        with model.loans:
            return await self._by(model, data, ask, deadline, permit, timings)

    async def _by(
        self,
        model: OpenModel,
        data: bytes,
        ask: Ask,
        deadline: float,
        permit: Permit,
        timings: Timings,
    ) -> Answer:
        encoding = encodings.get(ask.format)
        self._check(ask, encoding, model)
        header = timings.picture = probe(data)
        self.limits.check(header)
        permit.add_pixels(header.pixels)
        begun = timings.begun["decode"] = self.clock.now()
        timings.stage = "decode"
        # A tile of this shape is on its way: a batch may be worth holding back for it.
        coming = self._lane(header, model)
        self.queue.expect(coming, 1)
        try:
            picture, layout = await self.host.run(self._open, data, header, ask, model)
        finally:
            self.queue.expect(coming, -1)
        timings.decode = self.clock.now() - begun
        self._refuse_if_late(layout, model, deadline)
        timings.stage = "queue"
        mask = await self._infer(layout, model, ask, encoding, deadline, permit, timings)
        timings.stage = "encode"
        begun = timings.begun["encode"] = self.clock.now()
        if encoding.brief(mask):
            body = encoding.encode(mask)
        else:
            body = await self.host.run(encoding.encode, mask)
        timings.encode = self.clock.now() - begun
        if timings.tiles == 1:
            permit.end()
        self._count(picture, layout, timings)
        return Answer(body, encoding, mask, picture.orientation, timings)

    @staticmethod
    def _check(ask: Ask, encoding: Encoding, model: OpenModel) -> None:
        """Options that do not go together are refused before the picture is touched."""
        task = model.spec.task
        encoding.require(task, classes=model.spec.channels)
        if ask.threshold is not None and task == "multiclass":
            raise BadParameter(
                f"`threshold` means nothing to `{model.spec.label}`: its classes exclude each other"
            )

    def _open(
        self, data: bytes, header: Header, ask: Ask, model: OpenModel
    ) -> tuple[Picture, Layout]:
        picture = decode(
            data, limits=self.limits, frame=ask.frame, background=ask.background, header=header
        )
        return picture, Layout.of(picture.pixels, model.spec, self.tiling)

    def _lane(self, header: Header, model: OpenModel) -> Lane:
        """Where the tiles of a picture will wait that is not decoded yet."""
        width, height = header.seen_size
        _, plan = self.tiling.plan(height, width, model.spec)
        return Lane(model.engine, *plan.shape)

    def _refuse_if_late(self, layout: Layout, model: OpenModel, deadline: float) -> None:
        """Now that the size is known: work that cannot be done in time is not begun.

        On an idle device a prediction must be far off the mark to refuse, for what is never tried
        is never measured anew.
        """
        lane = Lane(model.engine, *layout.shape)
        tiles = len(layout.tiles)
        backlog = self.queue.estimated_wait_s()
        alone = self.queue.predicted_s(lane, tiles)
        wait = backlog + alone
        left = deadline - self.clock.now()
        if alone > left * (_FAR_OFF if backlog == 0 else 1):
            self.metrics.rejected.labels("too_long").inc()
            raise DeadlineExceeded(
                f"this picture alone needs about {alone:.0f} s of the device ({tiles} tiles); "
                f"{left:.1f} s are left (TERNAUS_REQUEST_TIMEOUT_S, `X-Request-Timeout-Ms`)",
                stage="admission",
                limit="TERNAUS_REQUEST_TIMEOUT_S",
            )
        if backlog and wait > left:
            self.metrics.rejected.labels("overloaded").inc()
            raise Overloaded(
                f"estimated wait {wait * 1000:.0f} ms exceeds the time left, {left * 1000:.0f} ms",
                retry_after_s=max(1.0, wait - left),
            )

    async def _infer(
        self,
        layout: Layout,
        model: OpenModel,
        ask: Ask,
        encoding: Encoding,
        deadline: float,
        permit: Permit,
        timings: Timings,
    ) -> Mask:
        threshold = model.spec.threshold if ask.threshold is None else ask.threshold
        progress = _Progress(timings, self.clock.now())
        timings.begun["queue"] = progress.submitted
        while True:
            try:
                sheet = await self._tiles(
                    layout, model, threshold, encoding.needs_probability, deadline, permit, progress
                )
                break
            except DeviceOutOfMemory:
                # A tile that does not fit alone is computed in smaller ones: same mask, less
                # memory.
                smaller = layout.smaller()
                if smaller is None:
                    raise
                layout = smaller
        done = self.clock.now()
        launched = progress.launched if progress.launched is not None else done
        timings.queue = launched - progress.submitted
        timings.infer = done - launched
        permit.release_device(progress.device_s)
        self._warm(Lane(model.engine, *layout.shape))
        shown = None if model.spec.task == "multiclass" else threshold
        return (
            await self.host.run(sheet.mask, shown)
            if len(layout.tiles) > 1 or layout.scaled
            else sheet.mask(shown)
        )

    async def _tiles(
        self,
        layout: Layout,
        model: OpenModel,
        threshold: float,
        probability: bool,
        deadline: float,
        permit: Permit,
        progress: _Progress,
    ) -> Sheet:
        """Every tile through the batcher, a few at a time, and back onto one sheet."""
        loop = asyncio.get_running_loop()
        lane = Lane(model.engine, *layout.shape)
        sheet = layout.sheet(probability=probability)
        soft = probability or layout.scaled
        progress.timings.tiles, progress.timings.tiles_done = len(layout.tiles), 0
        flow = Flow(deadline=deadline, weight=1.0 if len(layout.tiles) == 1 else _HUGE_WEIGHT)
        waiting: dict[asyncio.Future[Inference], TileSpec] = {}

        async def submit(tile: TileSpec) -> None:
            future: asyncio.Future[Inference] = loop.create_future()

            def deliver(item: Item, outcome: Outcome) -> None:
                loop.call_soon_threadsafe(_settle, future, outcome, item, progress)

            waiting[future] = tile
            await self.queue.submit(Item(lane, flow, layout.cut(tile), threshold, soft, deliver))

        tiles = iter(layout.tiles)
        try:
            for tile in tiles:
                await submit(tile)
                if len(waiting) >= self.tiles_in_flight:
                    break
            permit.in_queue()
            if len(layout.tiles) == 1:
                # Most pictures: there is nothing to choose among.
                future, tile = next(iter(waiting.items()))
                sheet.place(tile, await future)
                return sheet
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    sheet.place(waiting.pop(future), future.result())
                    following = next(tiles, None)
                    if following is not None:
                        await submit(following)
            return sheet
        finally:
            self.queue.forget(flow)
            for future in waiting:
                future.cancel()

    def _warm(self, lane: Lane) -> None:
        """Have a shape that keeps coming prepared, once, on the thread for that."""
        heat = (self._heat.get(lane) or 0) + 1
        self._heat.put(lane, heat)
        # Now and then again: a device that ran out of memory has thrown its preparations away.
        if heat < _HOT or (heat - _HOT) % _AGAIN:
            return
        for size in lane.engine.batch_sizes:
            job = self.preparer.run(lane.engine.prepare, lane.height, lane.width, size)
            self._preparing[job] = lane.engine
            job.add_done_callback(self._prepared)

    def _prepared(self, job: asyncio.Future[None]) -> None:
        del self._preparing[job]
        if not job.cancelled() and (exc := job.exception()) is not None:
            log.warning("a shape could not be prepared: %s", exc)

    def prepare_no_more(self) -> None:
        """Of shapes that are to be prepared, only the one that has been begun is finished."""
        for job in list(self._preparing):
            job.cancel()

    async def forget(self, engine: Engine) -> None:
        """Let an engine go that no request holds: its hot shapes, and what prepares them."""
        jobs = [job for job, one in self._preparing.items() if one is engine]
        if jobs:
            await asyncio.wait(jobs)
        self._heat.drop(lambda lane: lane.engine is engine)

    def _count(self, picture: Picture, layout: Layout, timings: Timings) -> None:
        for series, seconds in zip(self._stages, timings.stages(), strict=True):
            series.observe(seconds)
        height, width = layout.pixels.shape[:2]
        computed = len(layout.tiles) * layout.shape[0] * layout.shape[1]
        self.metrics.pixels.inc(picture.height * picture.width)
        self.metrics.padding.inc(computed - height * width)


def _settle(
    future: asyncio.Future[Inference], outcome: Outcome, item: Item, progress: _Progress
) -> None:
    """On the event loop: hand a tile's outcome to whoever waits, if anybody still does."""
    if item.launched:
        if progress.launched is None or item.launched < progress.launched:
            progress.launched = progress.timings.begun["infer"] = item.launched
        progress.device_s += item.device_s
        progress.timings.stage = "infer"
        progress.timings.tiles_done += 1
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
