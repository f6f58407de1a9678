"""Write the tables of the documentation that the code knows best: settings, errors, formats,
metrics.

python scripts/tables.py           # rewrites what stands between <!-- table:NAME --> and <!-- end
--> python scripts/tables.py --check   # exit 1 where a table is out of date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from app.api.options import options  # noqa: E402
from app.encodings import base as encodings  # noqa: E402
from app.errors import every_error  # noqa: E402
from app.serving.metrics import Metrics, _Live  # noqa: E402
from app.settings import PREFIX, Settings  # noqa: E402


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if name == "cache_dir":
            shown = "`$XDG_CACHE_HOME/ternaus` or `~/.cache/ternaus`"
        else:
            shown = "empty" if str(default) in ("", "()", "None") else f"`{default}`"
        rows.append((f"`{PREFIX}{name.upper()}`", shown, field.description or ""))
    return table(("variable", "default", "what"), rows)


def errors() -> str:
    seen: dict[str, tuple[str, ...]] = {}
    for error in every_error():
        words = (error.__doc__ or "").strip().splitlines()[0]
        seen.setdefault(error.code, (f"`{error.code}`", str(error.status), words))
    return table(("code", "status", "when"), list(seen.values()))


def formats() -> str:
    rows = [
        (f"`{e.name}`", f"`{e.media_type}`", ", ".join(e.tasks), e.title)
        for e in encodings.registry().values()
    ]
    return table(("format", "media type", "models", "what"), rows)


def parameters() -> str:
    return table(("parameter", "what"), [(f"`{o.name}`", o.words) for o in options().values()])


def metrics() -> str:
    rows = [
        (f"`{family.name}`", family.type, family.documentation)
        for family in Metrics().registry.collect()
    ]
    rows += [(f"`{name}`", "gauge", words) for name, words in _Live.NAMES.values()]
    rows.append(("`ternaus_device_busy_seconds`", "counter", "Seconds the device computed"))
    return table(("metric", "type", "what"), sorted(rows))


TABLES = {
    "settings": settings,
    "errors": errors,
    "formats": formats,
    "parameters": parameters,
    "metrics": metrics,
}


def filled(text: str) -> str:
    """The text with every marked table made anew."""
    return re.sub(
        r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        fresh = filled(text)
        if fresh != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(fresh)
    print(f"out of date: {', '.join(stale)}" if stale else "all tables are up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
