"""What is open and what was decided about it, for an engine process that goes on from there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Served:
    """Plain values: it travels as JSON. Models are named by label, `name@version`.

    `labels`: what is open, in order; `plain`: which of them answers to a name; `followed`: names of
    which the newest version is wanted; `pinned`: versions that stay beside others; `passed`:
    versions up to which a name is not changed by itself; `bad`: the edition of a name, as [version,
    mark], that failed or is just being tried; `failures`: what is shown of those that failed.
    """

    labels: list[str]
    plain: dict[str, str]
    followed: list[str]
    pinned: list[str]
    passed: dict[str, int]
    bad: dict[str, tuple[int, str]]
    failures: dict[str, str]
