"""What a request may ask for, as one table: parsed from it, documented from it.

An unknown name or value is an error that lists the right ones; nothing is silently ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from app.encodings import base as encodings
from app.errors import BadParameter, NotAcceptable
from app.serving.segmenter import Ask

# Queries, with their `Accept` headers, whose meaning is kept.
_KNOWN = 256


@dataclass(frozen=True, slots=True)
class Option:
    """One parameter: how its text is read, and its OpenAPI schema."""

    name: str
    words: str
    read: Callable[[str], Any]
    schema: dict[str, Any]
    example: Any = None


def _format(text: str) -> str:
    return encodings.get(text).name


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise BadParameter(f"`threshold` must be a number from 0 to 1, not `{text}`")
    return value


def _frame(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise BadParameter(f"`frame` must be a whole number from 0 on, not `{text}`")
    return int(text)


def _background(text: str) -> tuple[int, int, int]:
    digits = text.removeprefix("#")
    try:
        value = int(digits, 16)
    except ValueError:
        value = -1
    if len(digits) != 6 or value < 0 or not digits.isalnum():
        raise BadParameter(f"`background` must be a colour such as `ffffff`, not `{text}`")
    return (value >> 16, value >> 8 & 255, value & 255)


def _model(text: str) -> str:
    if not text:
        raise BadParameter("`model` is empty; give `name` or `name@version`")
    return text


def options() -> dict[str, Option]:
    """Every option of a segmentation request, by name."""
    formats = list(encodings.registry())
    table = [
        Option(
            "format",
            "Format of the answer. Without it the `Accept` header decides; `png` is the default.",
            _format,
            {"type": "string", "enum": formats, "default": encodings.DEFAULT},
            "rle",
        ),
        Option(
            "model",
            "`name` or `name@version`; see `/models`.",
            _model,
            {"type": "string"},
        ),
        Option(
            "threshold",
            "A pixel belongs to a class when its probability is strictly greater. "
            "Default: the model's own.",
            _threshold,
            {"type": "number", "minimum": 0, "maximum": 1},
            0.4,
        ),
        Option(
            "frame",
            "Which frame of an animation or page of a TIFF, from 0. Needed only for those.",
            _frame,
            {"type": "integer", "minimum": 0},
            0,
        ),
        Option(
            "background",
            "Colour (rrggbb) behind transparent pixels. Default: transparency is dropped.",
            _background,
            {"type": "string", "pattern": "^#?[0-9a-fA-F]{6}$"},
            "ffffff",
        ),
    ]
    return {option.name: option for option in table}


class Asks:
    """Reads requests into `Ask`s; the table is made once."""

    def __init__(self) -> None:
        self._options = options()
        # Clients ask for the same again and again.
        self._again = lru_cache(_KNOWN)(self._read)
        self._by_media: dict[str, str] = {}
        for encoding in [
            encodings.get(encodings.DEFAULT),
            encodings.get("rle"),
            *encodings.registry().values(),
        ]:
            self._by_media.setdefault(encoding.media_type, encoding.name)

    def read(self, query: bytes, accept: str | None, fields: dict[str, str] | None = None) -> Ask:
        """From query string, `Accept` header and form fields (which may not contradict the
        query).
        """
        return self._read(query, accept, fields) if fields else self._again(query, accept)

    def _read(self, query: bytes, accept: str | None, fields: dict[str, str] | None = None) -> Ask:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []
        values = self._collect(pairs)
        for name, value in self._collect((fields or {}).items()).items():
            if values.setdefault(name, value) != value:
                raise BadParameter(f"`{name}` differs between the query and the form")
        if "format" not in values:
            values["format"] = self.negotiate(accept)
        return Ask(**values)

    def _collect(self, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, text in pairs:
            option = self._options.get(name)
            if option is None:
                raise BadParameter(f"unknown parameter `{name}`; known: {', '.join(self._options)}")
            if name in values:
                raise BadParameter(f"parameter `{name}` is given more than once")
            values[name] = option.read(text)
        return values

    def negotiate(self, accept: str | None) -> str:
        """The format for an `Accept` header (RFC 9110, section 12.5.1). Raises NotAcceptable."""
        if not accept:
            return encodings.DEFAULT
        ranges = []
        for place, part in enumerate(accept.split(",")):
            media, *parameters = [piece.strip().lower() for piece in part.split(";")]
            quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            try:
                weight = float(quality)
            except ValueError:
                weight = 0.0
            if weight > 0:
                ranges.append((-weight, place, media))
        for _, _, media in sorted(ranges):
            if media in ("*/*", "image/*"):
                return encodings.DEFAULT
            for offered, name in self._by_media.items():
                if media == offered or (media.endswith("/*") and offered.startswith(media[:-1])):
                    return name
        raise NotAcceptable(
            f"none of `{accept}` is offered; offered: {', '.join(self._by_media)} "
            "(or use `?format=`)"
        )
