"""Log lines: one event a line, as JSON for machines or text for people, whoever logs.

What an event is about goes into fields: `log.info("...", extra={"fields": {"request_id": ...}})`.
Whatever comes from outside is escaped, so that nobody can forge a line.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import threading
import time
import warnings
from types import TracebackType
from typing import Any

from pydantic_core import to_json

from app.errors import TernausError

# C0 and C1 controls, and what some terminals and log readers take for the end of a line.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[\w.:/@+-]+", re.ASCII)


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ..., fields ..., "exception": ...}`"""

    def __init__(self) -> None:
        super().__init__()
        self._encode = json.JSONEncoder(default=str).encode

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if fields:
            event |= fields
        if record.exc_info and record.exc_info[0] is not None:
            event["exception"] = {
                "type": record.exc_info[0].__qualname__,
                "message": str(record.exc_info[1]),
                "stack": self.formatException(record.exc_info),
            }
        try:
            line = to_json(event, fallback=str)
        except ValueError:  # text that is no Unicode, such as half of a surrogate pair
            return self._encode(event)
        # What some readers take for the end of a line is outside of ASCII: the slow way escapes it.
        return line.decode() if line.isascii() and b"\x7f" not in line else self._encode(event)


class TextFormatter(logging.Formatter):
    """The same for people: `time LEVEL logger: message field=value ...`, then any stack."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            f"{_utc(record.created)} {record.levelname} {record.name}: "
            f"{_CONTROLS.sub(_escaped, record.getMessage())}"
        ]
        fields = getattr(record, "fields", None) or {}
        parts += [f"{name}={_shown(value)}" for name, value in fields.items()]
        line = " ".join(parts)
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(level: str, format: str) -> None:
    """Send every log line of this process to standard error: ours, the libraries', warnings, and
    whatever ends the process or a thread unexpectedly.

    `format` is json, text or auto: text where a person watches.
    """
    if format == "auto":
        format = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # Nobody reads these of a record; to find them out takes longer than the rest of it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Pillow warns of odd but harmless files; what matters it raises, and the decoder checks.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def tell(exc: TernausError) -> bool:
    """Log what ends the process, where logs are set up. False: nobody heard it."""
    if not logging.getLogger().handlers:
        return False
    logging.getLogger("ternaus").critical("%s", exc, extra={"fields": {"code": exc.code}})
    return True


def _uncaught(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exc, trace)
        return
    logging.getLogger("ternaus").critical("uncaught", exc_info=(kind, exc, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    name = args.thread.name if args.thread is not None else "unknown"
    logging.getLogger("ternaus").critical(
        "uncaught in thread %s",
        name,
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )


def _utc(moment: float) -> str:
    """RFC 3339, milliseconds."""
    whole = int(moment)
    return f"{_second(whole)}.{int((moment - whole) * 1000):03d}Z"


@functools.lru_cache(maxsize=2)
def _second(whole: int) -> str:
    # Kept, as most lines share their second with the one before.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _shown(value: Any) -> str:
    """A field's value that cannot be mistaken for the next field."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value)
    return json.dumps(value, default=str)
