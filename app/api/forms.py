"""`multipart/form-data` bodies (RFC 7578), parsed in memory: one picture and a few short fields."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import BadParameter, EmptyBody, MalformedRequest

_MOST_PARTS = 16
_LONGEST_FIELD = 1024


@dataclass(frozen=True, slots=True)
class Form:
    """The bytes of the part named `file`, and the other parts as text."""

    file: bytes
    fields: dict[str, str]


class _Collector:
    """Callbacks of the parser: remembers where each part lies, copies nothing but headers."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[bytes, bytes], list[bytes | memoryview]]] = []
        self._name = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes | memoryview] = []
        self.whole = False

    def on_end(self) -> None:
        self.whole = True

    def on_part_begin(self) -> None:
        if len(self.parts) >= _MOST_PARTS:
            raise MalformedRequest(f"a form may have at most {_MOST_PARTS} parts")
        self._headers, self._pieces = {}, []
        self.parts.append((self._headers, self._pieces))

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(memoryview(data)[start:end])


def parse_form(body: bytes, content_type: bytes) -> Form:
    """Read a form. Raises MalformedRequest, EmptyBody without a `file`, BadParameter for
    repeats.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedRequest("`multipart/form-data` without a boundary")
    if not body:
        raise EmptyBody("the body is empty; send a picture in the part `file`")
    collector = _Collector()
    callbacks = {
        name: getattr(collector, name) for name in dir(collector) if name.startswith("on_")
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except MultipartParseError as exc:
        raise MalformedRequest(f"the form cannot be parsed: {exc}") from exc
    if not collector.whole:
        raise MalformedRequest("the form ends before its closing boundary")
    file: bytes | None = None
    fields: dict[str, str] = {}
    for headers, pieces in collector.parts:
        _, disposition = parse_options_header(headers.get(b"content-disposition", b""))
        name = disposition.get(b"name", b"").decode("utf-8", "replace")
        data = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        if name == "file":
            if file is not None:
                raise BadParameter("the form has more than one `file`; send one picture a request")
            file = data
        elif name in fields:
            raise BadParameter(f"the form has `{name}` more than once")
        elif b"filename" in disposition:
            raise BadParameter(f"the picture belongs into the part `file`, not `{name}`")
        else:
            if len(data) > _LONGEST_FIELD:
                raise BadParameter(f"form field `{name}` is longer than {_LONGEST_FIELD} bytes")
            fields[name] = data.decode("utf-8", "replace")
    if not file:
        raise EmptyBody("the form has no picture; send it in the part `file`")
    return Form(file, fields)
