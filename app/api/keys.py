"""API keys: `Authorization: Bearer KEY` or `X-API-Key: KEY`, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping


class Keys:
    """The keys that open a door. None at all: the door does not exist, `known` is False."""

    def __init__(self, keys: Iterable[str]) -> None:
        # Digests have one length, so that the time of a comparison tells nothing of a key's.
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def known(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers (names in lower case) bears one of the keys."""
        given = _digest(_given(headers))
        # Every key is compared, found or not.
        return bool(sum(hmac.compare_digest(given, digest) for digest in self._digests))


def _given(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
