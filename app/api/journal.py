"""A log line for each request: what came, what went, how long it took. Never what was in it, nor
the query, nor a header but the request's id.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from app.api.visits import Scope, Visit
from app.serving.segmenter import STAGES

log = logging.getLogger("ternaus.access")

# Asked every few seconds by machines; of interest to nobody unless they fail.
_OFTEN = {"/health/live", "/health/ready", "/metrics"}
_LONGEST_PATH = 200


class Journal:
    """`wanted`: all requests, those answered 5xx (failures), or none."""

    def __init__(self, wanted: Literal["all", "failures", "none"]) -> None:
        self._wanted = wanted

    def enter(self, scope: Scope, visit: Visit, status: int, now: float) -> None:
        """`now` is the moment of the clock when the last byte was handed over."""
        failed = status >= 500
        if self._wanted == "none" or (self._wanted == "failures" and not failed):
            return
        path = scope["path"]
        level = logging.WARNING if failed else logging.INFO
        if path in _OFTEN:
            level = logging.DEBUG
        if log.isEnabledFor(level):
            # Made here, because `log.log` would look for the line of code that asked.
            fields = _fields(scope, visit, status, now)
            log.handle(
                log.makeRecord(
                    log.name, level, "", 0, "request", (), None, extra={"fields": fields}
                )
            )


def _fields(scope: Scope, visit: Visit, status: int, now: float) -> dict[str, Any]:
    client = scope.get("client")
    timings = visit.timings
    fields: dict[str, Any] = {
        "request_id": visit.request_id,
        "method": scope["method"],
        "path": scope["path"][:_LONGEST_PATH],
        "status": status,
        "code": visit.reason,
        "duration_ms": round((now - visit.arrived) * 1000, 2),
        "bytes_in": visit.received,
        "bytes_out": visit.sent,
        "client": client[0] if client else "",
    }
    if visit.trace is not None:
        fields["trace_id"] = visit.trace.trace_id
    if timings.model:
        fields["model"] = timings.model
    if timings.picture is not None:
        width, height = timings.picture.seen_size
        fields |= {"format": timings.picture.format, "width": width, "height": height}
    if timings.receive:
        spent = zip(STAGES, timings.stages(), strict=True)
        fields["stages_ms"] = {stage: round(seconds * 1000, 2) for stage, seconds in spent}
    return fields
