"""W3C Trace Context, level 1: `traceparent` and `tracestate` of a request, or nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Header = tuple[bytes, bytes]

# version, trace id, parent id, flags; later versions may go on after another `-`.
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# Section 3.3.1.5 asks for 512 at least to be passed on.
_LONGEST_STATE = 2048
_STATE = re.compile(rb"[\x20-\x7e\t]*")


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a request belongs to. `state` is the client's `tracestate`, untouched."""

    trace_id: str
    parent_id: str
    flags: str
    state: str = ""

    def headers(self) -> list[Header]:
        """The same as headers."""
        found = [(b"traceparent", f"00-{self.trace_id}-{self.parent_id}-{self.flags}".encode())]
        if self.state:
            found.append((b"tracestate", self.state.encode()))
        return found


def trace_of(headers: Sequence[Header]) -> Trace | None:
    """The trace that these headers (names in lower case) name; None where there is no valid one.

    What is invalid is ignored, as the specification wants: it never fails a request.
    """
    parents = [value for name, value in headers if name == b"traceparent"]
    if len(parents) != 1:
        return None
    found = _TRACEPARENT.fullmatch(parents[0].strip(b" \t"))
    if found is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if not trace_id.strip(b"0") or not parent_id.strip(b"0"):
        return None
    if version != b"00":
        # Of a later version no more is known than the `sampled` flag.
        flags = b"%02x" % (int(flags, 16) & 1)
    # Several `tracestate` headers are one list (section 3.3.1.1).
    state = b",".join(value for name, value in headers if name == b"tracestate")
    if len(state) > _LONGEST_STATE or not _STATE.fullmatch(state):
        state = b""
    return Trace(trace_id.decode(), parent_id.decode(), flags.decode(), state.decode())
