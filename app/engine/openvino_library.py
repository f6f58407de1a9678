"""OpenVINO, imported without its reports: `from app.engine.openvino_library import openvino`.

Merely to import it sends an event to its maker's analytics over the network, from a process that it
forks while this one goes on importing; the copy may hang in between, holding on to what it was
given. Its reporter is a package of its own, and OpenVINO does without where that is missing, as it
is here from now on.
"""

from __future__ import annotations

import sys

# None makes an import fail as if the package were not installed.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

__all__ = ["openvino"]
