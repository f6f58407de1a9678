"""What `kubectl kustomize` makes of our folders, as far as they use it; anything else is an error.

A test of the fleet holds it equal to the real one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {"apiVersion", "kind", "labels", "resources", "components", "images", "patches"}
# Lists that are merged by a key of their entries; every other list is replaced.
KEYS = {
    "containers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}


def render(folder: Path) -> list[Object]:
    """The resources of a kustomization."""
    return _apply(folder, [])


def _apply(folder: Path, resources: list[Object]) -> list[Object]:
    file = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(file) <= KNOWN, f"{folder}: {set(file) - KNOWN} is not understood here"
    found = list(resources)
    for name in file.get("resources", []):
        path = folder / name
        found += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for name in file.get("components", []):
        found = _apply(folder / name, found)
    for patch in file.get("patches", []):
        change = yaml.safe_load((folder / patch["path"]).read_text())
        target = next(r for r in found if identity(r) == identity(change))
        if change.get("$patch") == "delete":
            found.remove(target)
        else:
            found[found.index(target)] = _merge(target, change)
    for labels in file.get("labels", []):
        for resource in found:
            _label(resource, labels)
    for image in file.get("images", []):
        for resource in found:
            for container in _pod(resource).get("containers", []):
                if container["image"] == image["name"]:
                    container["image"] += f":{image['newTag']}"
    return found


def identity(resource: Object) -> tuple[str, str]:
    return resource["kind"], resource["metadata"]["name"]


def _pod(resource: Object) -> Object:
    template: Object = resource.get("spec", {}).get("template", {})
    pod: Object = template.get("spec", {})
    return pod


def _label(resource: Object, labels: Object) -> None:
    assert not labels.get("includeSelectors", False)
    resource["metadata"].setdefault("labels", {}).update(labels["pairs"])
    if labels.get("includeTemplates") and _pod(resource):
        resource["spec"]["template"]["metadata"].setdefault("labels", {}).update(labels["pairs"])


def _merge(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        merged = {name: copy.deepcopy(value) for name, value in old.items()}
        for name, value in new.items():
            merged[name] = _merge(old[name], value, name) if name in old else value
        return merged
    by = KEYS.get(key)
    if isinstance(old, list) and isinstance(new, list) and by:
        entries = {entry[by]: entry for entry in old}
        for entry in new:
            entries[entry[by]] = _merge(entries.get(entry[by], {}), entry)
        return list(entries.values())
    return new


def ordered(value: Any, key: str = "") -> Any:
    """The same with keyed lists in a fixed order, for comparing."""
    if isinstance(value, dict):
        return {name: ordered(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        entries = [ordered(entry) for entry in value]
        by = KEYS.get(key)
        if by and all(isinstance(entry, dict) and by in entry for entry in entries):
            entries.sort(key=lambda entry: str(entry[by]))
        return entries
    return value
