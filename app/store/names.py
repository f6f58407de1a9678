"""Names of models, versions and files: what may become a path, and nothing else may.

A label is how users write a model: `name` (its latest version) or `name@version`. A mark is a
hidden name that work in progress bears, so that what a killed process left can be told by its age.
"""

from __future__ import annotations

import re
import secrets

NAME_LIMIT = 64
NAME_RULE = (
    f"at most {NAME_LIMIT} of the characters a-z, 0-9, `.`, `_` and `-`, "
    "the first a letter or a digit"
)
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"

FILE_LIMIT = 128
FILE_RULE = (
    f"a plain file name of at most {FILE_LIMIT} of the characters A-Z, a-z, 0-9, `.`, `_` and "
    "`-`, the first a letter or a digit, with no folder"
)

# Nine digits are more versions than anyone publishes, and no surprise for any program's integers.
VERSION_LIMIT = 999_999_999
VERSION_RULE = f"a whole number from 1 to {VERSION_LIMIT}"

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CARD = "README.md"

# `\Z` and not `$`, which also matches before a line feed at the end; `[0-9]` and not `\d`, which
# also matches the digits of other scripts.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_VERSION = re.compile(r"[1-9][0-9]{0,8}\Z")
_MARK = re.compile(r"\.(?:incoming|claim)-([0-9]{1,12})-[0-9a-f]{16}\Z")

# Longer than any publish takes; what is older was left by a process that is gone.
STALE_AFTER_S = 24 * 3600.0


def is_name(text: str) -> bool:
    """Whether `text` may name a model."""
    return len(text) <= NAME_LIMIT and _NAME.match(text) is not None


def is_file_name(text: str) -> bool:
    """Whether `text` may name a file of a version (`manifest.json` itself is not asked here)."""
    return len(text) <= FILE_LIMIT and _FILE.match(text) is not None


def version_of(text: str) -> int | None:
    """The version that a folder's name says, or None: `3` is one, `03`, `+3` and `v3` are not."""
    return int(text) if _VERSION.match(text) else None


def split_label(label: str) -> tuple[str, int | None] | None:
    """`name` -> (name, None), `name@7` -> (name, 7); None where it is neither."""
    name, at, tail = label.partition("@")
    version = version_of(tail)
    if not is_name(name) or (at and version is None):
        return None
    return name, version


def incoming_mark(now_s: float) -> str:
    """A new name for a file or folder that is being written since `now_s` (seconds since 1970)."""
    return f".incoming-{int(now_s)}-{secrets.token_hex(8)}"


def claim_mark(now_s: float) -> str:
    """A new name for the file that says: this version is being published since `now_s`."""
    return f".claim-{int(now_s)}-{secrets.token_hex(8)}"


def mark_age_s(text: str, now_s: float) -> float | None:
    """How old the work is that bears the mark `text`, in seconds; None where it is no mark."""
    match = _MARK.match(text)
    return now_s - int(match[1]) if match else None
