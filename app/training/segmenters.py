"""Who answers when a model is scored: an engine in this process, or a running server over HTTP.

Both say of a picture what a user would get: the mask at the model's own threshold, and the
probabilities as they are served, round(255 p).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from app.encodings import base as encodings
from app.engine.base import Engine
from app.errors import TrainingError
from app.imaging.fit import margins
from app.imaging.scale import enlarged, shown_size, shrink
from app.imaging.tiling import Canvas, Kind, cut, plan_tiles
from app.training.examples import Example
from app.types import ClassSpec, ModelSpec, Pixels, Task

# As the server's own defaults: up to this many pixels a picture is computed whole.
WHOLE_PIXELS = 2_359_296
TILE = 1536
# A busy server is asked again so often, waiting as long as it says each time.
TRIES = 20
LONGEST_WAIT_S = 30.0
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`planes` (C, H, W) bool of the classes that are listed; `probability` of the same, uint8."""

    planes: NDArray[np.bool_]
    probability: NDArray[np.uint8] | None

    def above(self, threshold: float) -> NDArray[np.bool_]:
        """(C, H, W) bool at another threshold, of an answer that has probabilities."""
        assert self.probability is not None
        return self.probability > threshold * 255


@dataclass(frozen=True, slots=True)
class Answering:
    """What is being scored."""

    label: str
    task: Task
    classes: tuple[ClassSpec, ...]
    threshold: float

    @property
    def listed(self) -> tuple[ClassSpec, ...]:
        """The classes that have scores: all but the background."""
        return self.classes[1:] if self.task == "multiclass" else self.classes

    @classmethod
    def of(cls, spec: ModelSpec) -> Answering:
        return cls(spec.label, spec.task, spec.classes, spec.threshold)


class Segmenter(Protocol):
    """Answers for examples."""

    @property
    def model(self) -> Answering:
        """Of which model."""
        ...

    def answer(self, example: Example, pixels: Pixels) -> Answer:
        """The mask of a picture, given as the file and as what was decoded of it."""
        ...


class EngineSegmenter:
    """An engine of this process; large pictures in tiles whose masks are the whole's exactly."""

    def __init__(
        self,
        engine: Engine,
        *,
        probability: bool = True,
        whole_pixels: int = WHOLE_PIXELS,
        tile: int = TILE,
    ) -> None:
        self.engine, self.probability, self.tile = engine, probability, tile
        self.model = Answering.of(engine.spec)
        self._whole = whole_pixels if engine.spec.local else 1 << 62

    def answer(self, example: Example, pixels: Pixels) -> Answer:
        return self.segment(pixels)

    def segment(self, pixels: Pixels) -> Answer:
        """Of (H, W, 3) uint8. Raises InferenceFailed."""
        spec = self.engine.spec
        size = pixels.shape[0], pixels.shape[1]
        height, width = shown_size(*size, spec.longest_side)
        scaled = (height, width) != size
        pixels = shrink(pixels, (height, width))
        fitting = margins(height, width, spec.stride)
        plan = plan_tiles(
            *fitting.padded(height, width),
            stride=spec.stride,
            halo=spec.halo,
            whole_pixels=self._whole,
            tile=self.tile,
        )
        kind: Kind = "labels" if spec.task == "multiclass" else "bits"
        masks = Canvas(plan, channels=spec.channels, kind=kind)
        soft = Canvas(plan, channels=spec.channels, kind="probability")
        threshold = np.array([spec.threshold], np.float32)
        for tile in plan.tiles:
            part = np.ascontiguousarray(cut(pixels, fitting, tile))[None]
            found = self.engine.infer(part, threshold, probability=self.probability or scaled)
            if not found.finite.all():
                raise TrainingError(f"{spec.label} gave NaN or infinity for a picture")
            if not scaled:
                plane = found.labels if kind == "labels" else found.bits
                assert plane is not None
                masks.place(tile, plane[0])
            if found.probability is not None:
                soft.place(tile, found.probability[0])
        probability = soft.crop(fitting, height=height, width=width) if soft.missing == 0 else None
        if scaled:
            assert probability is not None
            limit = None if kind == "labels" else spec.threshold
            mask, probability = enlarged(probability, size, threshold=limit, keep=self.probability)
        else:
            mask = masks.crop(fitting, height=height, width=width)
        first = 1 if kind == "labels" else 0
        if kind == "labels":
            planes = mask == np.arange(first, spec.channels, dtype=np.uint8)[:, None, None]
        else:
            planes = np.unpackbits(mask, axis=2, count=size[1]).view(np.bool_)
        return Answer(planes, None if probability is None else probability[first:])


class HttpSegmenter:
    """A server, asked as any client asks it: the file's own bytes, `rle` for the mask, `npy`."""

    def __init__(
        self,
        url: str,
        label: str,
        *,
        key: str = "",
        client: httpx.Client | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises TrainingError where no server answers, or has no such model."""
        self._client = client or httpx.Client(
            base_url=url.rstrip("/"),
            timeout=TIMEOUT_S,
            trust_env=False,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )
        self._pause = pause
        self._url, self._name = url, label
        said = self._ask("GET", f"/models/{label}").json()
        try:
            self.model = Answering(
                f"{said['name']}@{said['version']}",
                said["task"],
                tuple(ClassSpec(c["name"], _colour(c["colour"])) for c in said["classes"]),
                float(said["threshold"] or 0.5),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise TrainingError(f"`{url}` does not describe a model: {exc!r}") from exc

    def answer(self, example: Example, pixels: Pixels) -> Answer:
        shape = pixels.shape[0], pixels.shape[1]
        data = example.picture.read_bytes()
        planes = self._segment(data, "rle", shape)
        probability = self._segment(data, "npy", shape)
        first = 1 if self.model.task == "multiclass" else 0
        return Answer(planes.astype(np.bool_), probability.astype(np.uint8)[first:])

    def _segment(self, data: bytes, format: str, shape: tuple[int, int]) -> NDArray[Any]:
        answer = self._ask(
            "POST", "/segment", params={"format": format, "model": self._name}, content=data
        )
        return encodings.get(format).decode(answer.content, shape)

    def _ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        for _ in range(TRIES):
            try:
                answer = self._client.request(method, path, **rest)
            except httpx.HTTPError as exc:
                raise TrainingError(f"`{self._url}` does not answer: {exc}") from exc
            if answer.status_code not in (429, 503):
                break
            wait = answer.headers.get("retry-after", "1")
            self._pause(min(LONGEST_WAIT_S, float(wait) if wait.isdigit() else 1.0))
        if answer.status_code != 200:
            raise TrainingError(
                f"`{self._url}{path}` answered {answer.status_code}: {_words(answer)}"
            )
        return answer


def _words(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail") or answer.text[:200])
    except (ValueError, AttributeError):
        return answer.text[:200]


def _colour(value: Any) -> tuple[int, int, int]:
    if isinstance(value, str):
        text = value.removeprefix("#")
        return int(text[:2], 16), int(text[2:4], 16), int(text[4:6], 16)
    red, green, blue = (int(part) for part in value)
    return red, green, blue
