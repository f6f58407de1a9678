"""Pictures to score on, held back from training by groups that share ground or origin.

Web-map tiles of one ground, of whatever zoom, are one group, and so are pictures that a pattern
gives one key: scores on a neighbour, another frame or another view of what was learnt would lie.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from app.errors import TrainingError
from app.training.scenes import Tile, touching


def groups(names: Sequence[str], pattern: str | None = None) -> list[list[str]]:
    """Names that must stay together, sorted. Raises TrainingError for a pattern that is none.

    `pattern`: a regular expression; what it finds in a name (its first group, if it has one) is the
    key, and a name in which it finds nothing is alone.
    """
    if pattern is not None:
        try:
            expression = re.compile(pattern)
        except re.error as exc:
            raise TrainingError(f"`{pattern}` is not a regular expression: {exc}") from exc
        keyed: dict[str, list[str]] = defaultdict(list)
        for name in names:
            match = expression.search(_stem(name))
            keyed[f"key {match[expression.groups and 1]}" if match else f"name {name}"].append(name)
        return sorted(sorted(group) for group in keyed.values())
    tiles = {name: tile for name in names if (tile := Tile.of(_stem(name))) is not None}
    found = [[name] for name in names if name not in tiles]
    for source in sorted({tile.source for tile in tiles.values()}):
        here = {name: tile for name, tile in tiles.items() if tile.source == source}
        coarsest = min(tile.zoom for tile in here.values())
        ground = {name: tile.at(coarsest) for name, tile in here.items()}
        for patch in touching({(tile.x, tile.y) for tile in ground.values()}):
            places = set(patch)
            found.append(sorted(n for n, tile in ground.items() if (tile.x, tile.y) in places))
    return sorted(found)


def _stem(name: str) -> str:
    """Without the place that a name may begin with: places can show the same ground, or film."""
    return name.rpartition("/")[2]


def hold_back(
    names: Sequence[str], share: float, *, seed: int, pattern: str | None = None
) -> set[str]:
    """Names to score on: whole groups, in an order drawn by `seed`, until `share` is reached.

    At least one group is held back and one is left. Raises TrainingError where there is one group.
    """
    found = groups(names, pattern)
    if len(found) < 2:
        raise TrainingError(
            "all pictures belong together (one picture, or tiles of one connected ground), so none "
            "can be held back to score on\nhint: name other data with `--validate`"
        )
    order = np.random.default_rng(seed).permutation(len(found))
    # A group that would overshoot by more than half, or leave nothing, stays to be learnt from.
    most = min(1.5 * share * len(names), len(names) - 1)
    held: set[str] = set()
    for index in order:
        if len(held) >= share * len(names):
            break
        if len(held) + len(found[index]) <= most:
            held.update(found[index])
    smallest: list[str] = min((found[index] for index in order), key=len)
    return held or set(smallest)
