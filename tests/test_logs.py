"""Log lines: one event a line, whatever is logged by whom, and nobody can forge one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.logs import JsonFormatter, TextFormatter

ROOT = Path(__file__).parent.parent
EVIL = 'x\r\n2026-01-01T00:00:00.000Z INFO forged: all is well\x1b[2J\u2028\x85 "quoted"'


def record(message: str, *args: object, **rest: Any) -> logging.LogRecord:
    made = logging.LogRecord("ternaus.x", logging.WARNING, "file", 1, message, args, None)
    for name, value in rest.items():
        setattr(made, name, value)
    return made


def test_json_line_has_what_machines_ask_for() -> None:
    made = record("%d of %s", 3, "tiles", fields={"request_id": "r", "status": 200})
    line = JsonFormatter().format(made)
    event = json.loads(line)
    assert event == {
        "time": event["time"],
        "level": "warning",
        "logger": "ternaus.x",
        "message": "3 of tiles",
        "request_id": "r",
        "status": 200,
    }
    told = datetime.fromisoformat(event["time"])
    assert told.utcoffset() is not None
    assert abs(told.timestamp() - made.created) < 0.0011


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_no_line_can_be_forged(formatter: logging.Formatter) -> None:
    line = formatter.format(record("said %s", EVIL, fields={"path": EVIL, "n": 1}))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert line.isprintable()


def test_json_keeps_what_was_said() -> None:
    event = json.loads(JsonFormatter().format(record("%s", EVIL, fields={"path": EVIL})))
    assert event["message"] == event["path"] == EVIL


def test_text_fields_cannot_be_mistaken() -> None:
    made = record("request", fields={"path": "/a b=c", "status": 200, "id": "plain-1"})
    assert TextFormatter().format(made).endswith('request path="/a b=c" status=200 id=plain-1')


def test_stack_is_in_the_event() -> None:
    try:
        raise ValueError("what\nhappened")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    line = JsonFormatter().format(made)
    assert len(line.splitlines()) == 1
    told = json.loads(line)["exception"]
    assert (told["type"], told["message"]) == ("ValueError", "what\nhappened")
    assert "test_logs.py" in told["stack"]


def events(code: str, format: str = "json") -> list[dict[str, Any]]:
    """What a process that sets logs up and runs `code` writes."""
    done = subprocess.run(
        [sys.executable, "-c", f"from app import logs; logs.set_up('info', {format!r})\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_whatever_a_process_says_is_an_event() -> None:
    code = """
import logging, threading, warnings
logging.getLogger("somebody.else").info("hello")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
raise RuntimeError("the end")
"""
    hello, warning, thread, end = events(code, "auto")
    assert (hello["logger"], hello["message"]) == ("somebody.else", "hello")
    assert "old" in warning["message"]
    assert thread["exception"]["type"] == "ZeroDivisionError"
    assert end["exception"]["message"] == "the end"
    assert end["level"] == "critical"
