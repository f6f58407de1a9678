"""What the benchmark asks of a peer's program, by the environment: some have no other door."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PREFIX = "PEER_"


@dataclass(frozen=True, slots=True)
class Asked:
    """`port` on loopback, the `model` folder; `timeout_s` for a request.

    `limit`: requests in the server at once, where the peer knows such a bound; 0: none.
    `fast`: bfloat16 and channels last instead of eager float32.
    """

    port: int
    model: Path
    timeout_s: float = 120.0
    limit: int = 0
    batch: int = 8
    fast: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Asked:
        """From `PEER_*`, by default of this process."""
        given = os.environ if environment is None else environment
        return cls(
            port=int(given[PREFIX + "PORT"]),
            model=Path(given[PREFIX + "MODEL"]),
            timeout_s=float(given[PREFIX + "TIMEOUT_S"]),
            limit=int(given[PREFIX + "LIMIT"]),
            batch=int(given[PREFIX + "BATCH"]),
            fast=given[PREFIX + "FAST"] == "1",
        )

    def environment(self) -> dict[str, str]:
        """What `read` reads."""
        return {
            PREFIX + "PORT": str(self.port),
            PREFIX + "MODEL": str(self.model),
            PREFIX + "TIMEOUT_S": str(self.timeout_s),
            PREFIX + "LIMIT": str(self.limit),
            PREFIX + "BATCH": str(self.batch),
            PREFIX + "FAST": str(int(self.fast)),
        }
