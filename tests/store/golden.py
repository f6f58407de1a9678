"""Write the golden files anew: `python -m tests.store.golden`, then look at the difference."""

from __future__ import annotations

import json

from app.store.manifest import manifest_schema, manifest_text
from tests.store.test_manifest import GOLDEN, example

if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    (GOLDEN / "manifest.json").write_text(manifest_text(example()), "utf-8")
    (GOLDEN / "manifest.schema.json").write_text(
        json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    (GOLDEN / "digest.txt").write_text(example().digest + "\n", "utf-8")
