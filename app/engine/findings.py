"""What was found out about a model on a machine, kept as JSON so that a warm start asks nothing."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import EngineError

# Of a name that `key_of` gives, in hexadecimal digits.
KEY_LENGTH = 32


def key_of(facts: Mapping[str, Any]) -> str:
    """A name for a set of facts: equal facts, equal name."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def recall(path: Path) -> dict[str, Any] | None:
    """What stands in `path`, or None where it is missing or damaged: then it is found out again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def remember(path: Path, facts: Mapping[str, Any]) -> None:
    """Write whole or not at all. Raises EngineError where the folder does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1, sort_keys=True)
        os.replace(draft, path)
    except OSError as exc:
        raise EngineError(f"`cache_dir` cannot be written: {exc}") from exc
