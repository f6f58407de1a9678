"""What front ends, the engine and the supervisor say to each other, as bytes.

A packet of a SOCK_SEQPACKET Unix socket is either any number of fixed records (what happens per
tile; one system call carries many) or one JSON message (what happens seldom). Pixels and masks
never travel here: a record names a slot. Times are those of CLOCK_MONOTONIC, which all processes of
a machine share.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from app.errors import InferenceFailed, TernausError, by_code

# A packet must fit into the socket's buffer, 212,992 bytes by Linux's default.
MOST = 128 * 1024
_RECORDS, _MESSAGE = b"R"[0], b"M"[0]


class Submit(NamedTuple):
    """Front end to engine: the tile in the slot at `offset` waits. `tag` counts up from 1."""

    tag: int
    flow: int
    offset: int
    deadline: float
    threshold: float
    model: int
    height: int
    width: int
    priority: int
    weight: float
    probability: bool


class Forget(NamedTuple):
    """Front end to engine: nobody waits for this flow any more. Its slots are still in use."""

    flow: int


class Expect(NamedTuple):
    """Front end to engine: so many tiles of this lane more (or fewer) are on their way."""

    model: int
    height: int
    width: int
    tiles: int


class Prepare(NamedTuple):
    """Front end to engine: this shape keeps coming."""

    model: int
    height: int
    width: int
    batch: int


class Done(NamedTuple):
    """Engine to front end: the result lies in the slot, and what the lane costs by now."""

    tag: int
    launched: float
    device_s: float
    per_item_s: float
    per_launch_s: float
    largest: int


class Dropped(NamedTuple):
    """Engine to front end: nobody waited; the slot is free."""

    tag: int


Record: TypeAlias = Submit | Forget | Expect | Prepare | Done | Dropped

_FORMS: dict[type[Record], struct.Struct] = {
    Submit: struct.Struct("<BQQQddIIIid?"),
    Forget: struct.Struct("<BQ"),
    Expect: struct.Struct("<BIIIi"),
    Prepare: struct.Struct("<BIIII"),
    Done: struct.Struct("<BQddddI"),
    Dropped: struct.Struct("<BQ"),
}
_KINDS: list[tuple[type[Record], struct.Struct]] = list(_FORMS.items())
_NUMBERS = {kind: number for number, kind in enumerate(_FORMS)}
# What an error carries besides its words.
_MEMBERS = ("stage", "retry_after_s", "limit", "limit_value")


def record(what: Record) -> bytes:
    """One record as bytes."""
    kind = type(what)
    return _FORMS[kind].pack(_NUMBERS[kind], *what)


def packets(records: Iterable[bytes]) -> Iterator[bytes]:
    """Records in as few packets as hold them."""
    parts, size = [b"R"], 1
    for part in records:
        if size + len(part) > MOST:
            yield b"".join(parts)
            parts, size = [b"R"], 1
        parts.append(part)
        size += len(part)
    if size > 1:
        yield b"".join(parts)


def message(kind: str, **values: Any) -> bytes:
    """A JSON message as a packet. Raises ValueError for one that does not fit."""
    packet = b"M" + json.dumps({"kind": kind, **values}).encode()
    if len(packet) > MOST:
        raise ValueError(f"a message of {len(packet)} bytes does not fit into a packet")
    return packet


def read(packet: memoryview) -> list[Record] | dict[str, Any]:
    """What a packet holds. Raises ValueError for anything else."""
    if not packet:
        raise ValueError("an empty packet")
    if packet[0] == _MESSAGE:
        found = json.loads(bytes(packet[1:]))
        if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
            raise ValueError("a message without a kind")
        return found
    if packet[0] != _RECORDS:
        raise ValueError(f"a packet of kind {packet[0]}")
    records: list[Record] = []
    at = 1
    while at < len(packet):
        if packet[at] >= len(_KINDS):
            raise ValueError(f"a record of kind {packet[at]}")
        kind, form = _KINDS[packet[at]]
        if at + form.size > len(packet):
            raise ValueError("a record that is cut off")
        _, *values = form.unpack_from(packet, at)
        records.append(kind(*values))
        at += form.size
    return records


def error_values(exc: TernausError) -> dict[str, Any]:
    """An error for a message."""
    members = {k: getattr(exc, k) for k in _MEMBERS if getattr(exc, k, None) is not None}
    return {"code": exc.code, "detail": exc.detail, "members": members}


def error_of(values: dict[str, Any]) -> TernausError:
    """The error that `error_values` described."""
    return by_code().get(values["code"], InferenceFailed)(values["detail"], **values["members"])
