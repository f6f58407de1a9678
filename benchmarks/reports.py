"""Results as a table on the screen and as JSON with the versions and the machine behind them."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app import __version__

PACKAGES = ("numpy", "openvino", "uvicorn", "uvloop", "httptools", "simplejpeg", "isal", "pillow")


def machine() -> dict[str, Any]:
    """What the figures depend on, without a name."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "avx512": " avx512f " in Path("/proc/cpuinfo").read_text(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def write(path: Path | None, results: Any, *, command: Sequence[str] | None = None) -> None:
    """Write the JSON, where a file was named."""
    if path is None:
        return
    module = Path(sys.argv[0]).stem
    report = {
        "command": " ".join(command or ["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
        "ternaus": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "results": results,
    }
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one kind, columns as the first row names them."""
    if not rows:
        return ""
    names = list(rows[0])
    texts = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(t[i]) for t in texts)) for i, name in enumerate(names)]
    lines = ["  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))]
    lines += ["  ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) for line in texts]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)
