"""Convert every model of a store for OpenVINO, while an image is built: `convert.py STORE FOLDER`.

The image that serves on the CPU has no torch; it finds each conversion in FOLDER under the key that
`app.engine.conversion` computes from the weights, the sources and the version of OpenVINO.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.engine.conversion import converted
from app.errors import TernausError
from app.store.store import ModelStore


def main(store: str, folder: str) -> int:
    shelf, target = ModelStore(store), Path(folder)
    labels = [f"{name}@{version}" for name in shelf.names() for version in shelf.versions(name)]
    if not labels:
        sys.stderr.write(f"error: no model in `{store}`; the image would have nothing to serve\n")
        return 1
    try:
        for label in labels:
            print(f"{label}: {converted(shelf.resolve(label), target)}")
    except TernausError as exc:
        sys.stderr.write(f"error: {label}: {exc}\n")
        return 1
    # The server runs as another user than the build.
    for path in [target, *target.rglob("*")]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
