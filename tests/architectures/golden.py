"""Golden files: names with shapes, parameter count, and logits of every variant, as JSON.

    python -m tests.architectures.golden                 compare, and say what differs
    python -m tests.architectures.golden --regenerate    write them anew

A changed file means that weights made before no longer mean the same: regenerate only on purpose.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from app.architectures.base import Architecture, registry

from .nets import filled, hashed

FOLDER = Path(__file__).parent.parent / "golden" / "architectures"
TOLERANCE = 1e-4


def cases() -> list[tuple[Architecture, dict[str, Any]]]:
    """Every variant of every architecture; how bilinear treats corners adds no names."""
    return [
        (architecture, parameters)
        for architecture in registry().values()
        for parameters in architecture.variants()
        if not parameters.get("align_corners")
    ]


def name_of(architecture: Architecture, parameters: dict[str, Any]) -> str:
    """The golden file of a variant."""
    words = [architecture.name]
    words += [str(v) for k, v in parameters.items() if k != "align_corners"]
    return ".".join(words) + ".json"


def golden(architecture: Architecture, parameters: dict[str, Any]) -> dict[str, Any]:
    """What the golden file should hold, computed now."""
    net = filled(architecture, **parameters)
    with torch.inference_mode():
        logits = net(hashed((1, 3, 64, 64), seed=1))
    state = net.state_dict()
    return {
        "architecture": architecture.name,
        "parameters": parameters,
        "count": sum(value.numel() for value in net.parameters()),
        "names": {name: "x".join(map(str, state[name].shape)) for name in sorted(state)},
        "logits_every_8th": [round(float(v), 6) for v in logits[0, 0, ::8, ::8].flatten()],
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """In words, what differs beyond the tolerance of the logits."""
    words = [key for key in expected if key != "logits_every_8th" and found[key] != expected[key]]
    one, other = (
        torch.tensor(d["logits_every_8th"], dtype=torch.float64) for d in (found, expected)
    )
    worst = float((one - other).abs().max())
    if worst > TOLERANCE * max(1.0, float(other.abs().max())):
        words.append(f"logits (by {worst:.2g})")
    return words


def main(arguments: list[str]) -> int:
    """Compare or regenerate every file; the exit status counts the differing ones."""
    torch.set_num_threads(1)
    differing = 0
    if arguments == ["--regenerate"]:
        for stale in FOLDER.glob("*.json"):
            stale.unlink()
    for architecture, parameters in cases():
        path = FOLDER / name_of(architecture, parameters)
        found = golden(architecture, parameters)
        if arguments == ["--regenerate"]:
            path.write_text(json.dumps(found, indent=1) + "\n")
            continue
        words = differences(found, json.loads(path.read_text()))
        differing += bool(words)
        print(path.name, ", ".join(words) or "same")
    return differing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
