"""The metrics that the server really has, and those that a query names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.serving.metrics import Metrics, _Live

# What Prometheus adds to every series, and labels of its own metrics.
SCRAPED = {"instance", "job"}
FOREIGN = {"up", "ALERTS"}
WORD = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
# Names that stand for labels, and words of the language.
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
MATCHERS = re.compile(r"\{([^}]*)\}")


def real() -> dict[str, set[str]]:
    """Every series name that `/metrics` may show, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in Metrics().book.families:
        _add(found, metric.name, metric.kind, set(metric.label_names))
    for family in _Live(lambda: dict.fromkeys([*_Live.NAMES, "busy_seconds"], 0.0)).collect():
        _add(found, family.name, family.type, set())
    return found


def _add(found: dict[str, set[str]], name: str, kind: str, labels: set[str]) -> None:
    if kind == "counter":
        found[f"{name}_total"] = labels
    elif kind == "histogram":
        found |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
    else:
        found[name] = labels


@dataclass(frozen=True, slots=True)
class Query:
    """What a PromQL expression names."""

    series: set[str]
    matched: list[tuple[str, set[str]]]
    grouped: set[str]


def parse(expression: str) -> Query:
    """Not a parser of the language: enough to see every name of ours and every label."""
    matched = [
        (name, set(re.findall(rf'({WORD})\s*[!=~]+\s*"[^"]*"', labels)))
        for name, labels in re.findall(rf"({WORD})\{{([^}}]*)\}}", expression)
    ]
    grouped = {
        label.strip()
        for _, labels in GROUPING.findall(expression)
        for label in labels.split(",")
        if label.strip()
    }
    bare = MATCHERS.sub(" ", GROUPING.sub(" ", expression))
    bare = re.sub(r"\[[^\]]*\]|\"[^\"]*\"", " ", bare)
    series = {
        word for word in re.findall(rf"{WORD}(?!\s*\()\b", bare) if word.startswith("ternaus_")
    } | {name for name, _ in matched}
    return Query(series, matched, grouped)


def wrong(expression: str) -> list[str]:
    """What the expression names that no replica has."""
    known, query, found = real(), parse(expression), []
    for name in query.series - FOREIGN:
        if name not in known:
            found.append(f"no metric `{name}`")
    labels = set().union(*(known.get(name, set()) for name in query.series)) | SCRAPED
    for name, matchers in query.matched:
        allowed = known.get(name, labels) | SCRAPED
        found += [f"`{name}` has no label `{label}`" for label in matchers - allowed]
    if not query.series & FOREIGN:
        found += [f"no label `{label}` to group by" for label in query.grouped - labels]
    return found
