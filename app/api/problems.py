"""Errors as RFC 9457 problem documents: the one place where a status meets a body.

The top-level `error` repeats `detail`, so that clients of the Open Inference Protocol find it too.
`code` is stable and is what a client maps back to an error class.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from app.errors import KeyRequired, Overloaded, QueueFull, TernausError, Unavailable

log = logging.getLogger("ternaus.api")

MEDIA_TYPE = "application/problem+json"
Header = tuple[bytes, bytes]
CHALLENGE = (b"www-authenticate", b'Bearer realm="ternaus"')


def status_of(exc: BaseException, *, overload_status: int = 503) -> int:
    """The HTTP status of an error."""
    if isinstance(exc, QueueFull | Overloaded):
        return overload_status
    return exc.status if isinstance(exc, TernausError) else 500


def problem(
    exc: BaseException,
    *,
    request_id: str,
    instance: str,
    trace_id: str = "",
    overload_status: int = 503,
) -> tuple[int, list[Header], bytes]:
    """Status, headers and body that tell a client of `exc`; nothing internal leaks."""
    status = status_of(exc, overload_status=overload_status)
    if isinstance(exc, TernausError):
        code, title, detail, members = exc.code, exc.title, exc.detail, exc.members()
    else:
        fields = {"request_id": request_id} | ({"trace_id": trace_id} if trace_id else {})
        log.error("request failed", exc_info=exc, extra={"fields": fields})
        code, title = TernausError.code, TernausError.title
        detail, members = "something broke on our side; the log has it under the request id", {}
    body = document(
        status,
        code=code,
        title=title,
        detail=detail,
        request_id=request_id,
        instance=instance,
        **({"trace_id": trace_id} if trace_id else {}),
        **members,
    )
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    if isinstance(exc, KeyRequired):
        # RFC 9110, section 11.6.1: a 401 says how to do better.
        headers.append(CHALLENGE)
    if isinstance(exc, Unavailable):
        # RFC 9110, section 10.2.3: whole seconds; zero would mean "at once".
        headers.append((b"retry-after", str(max(1, math.ceil(exc.retry_after_s))).encode()))
    return status, headers, body


def document(
    status: int,
    *,
    code: str,
    title: str,
    detail: str,
    request_id: str,
    instance: str,
    **members: Any,
) -> bytes:
    """A problem document."""
    return json.dumps(
        {
            "type": f"urn:ternaus:problem:{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "error": detail,
            "code": code,
            "instance": instance,
            "request_id": request_id,
            **members,
        },
        ensure_ascii=False,
    ).encode()
