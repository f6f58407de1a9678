"""`converter.py` in a process of its own, which takes torch and its memory away when it ends."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.engine.converter import FAILURE
from app.engine.findings import recall
from app.engine.kept import PATIENCE_S
from app.errors import EngineError, by_code

log = logging.getLogger("ternaus.conversion")

# Of a conversion beside an engine that serves.
NICENESS = 10
# The child finds its modules where this process finds them. NNCF, which quantises, would report its
# use over the network.
CHILD = (
    "import json, os, sys; os.environ['NNCF_CI'] = '1'; sys.path[:] = json.loads(sys.argv[1]); "
    "from app.engine.converter import main; main(sys.argv[2])"
)


def in_a_child(request: Mapping[str, Any], draft: Path, label: str, *, beside: bool) -> None:
    """Have `converter.py` do what `request` says, into the folder `draft`.

    `label` names the model in errors; `beside`: another engine serves meanwhile and goes first.
    Raises what the child raised, and EngineError where it ended without a word. It ends with this
    process: it holds the other end of a pipe, and removes `draft`.
    """
    more = {"draft": str(draft.absolute()), "label": label, "niceness": NICENESS if beside else 0}
    text = json.dumps({**request, **more})
    with tempfile.TemporaryFile(dir=draft) as said:
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps(sys.path), text],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                # A terminal's Ctrl-C is for the server, which then ends in order.
                start_new_session=True,
            )
        except OSError as exc:
            raise EngineError(f"the conversion of {label} cannot be started: {exc}") from exc
        # The pipe stays open until here: the child takes its end for the end of this process.
        with child:
            try:
                status = child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired as exc:
                raise EngineError(
                    f"the conversion of {label} did not end within {PATIENCE_S:g} s"
                ) from exc
            finally:
                child.kill()
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if words:
        log.log(logging.DEBUG if status == 0 else logging.ERROR, "the conversion said: %s", words)
    if status != 0:
        raise _failure(label, draft, status, words)


def _failure(label: str, draft: Path, status: int, words: str) -> Exception:
    told = recall(draft / FAILURE)
    if told is not None:
        return by_code()[told["code"]](told["detail"])
    if status < 0:
        end = f"was killed ({signal.Signals(-status).name})"
        if -status == signal.SIGKILL:
            end += "; the system does that where memory runs out"
    else:
        end = f"ended with status {status}"
    last = words.splitlines()[-1] if words else ""
    return EngineError(f"the conversion of {label} {end}" + (f": {last}" if last else ""))
