"""Who may import whom, and where each library lives. Read from the source, lazy imports
included.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "app"

# Room -> rooms it may import. Whatever is not listed fails.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "settings": {"errors"},
    "logs": {"errors"},
    "architectures": {"types", "errors"},
    "imaging": {"types", "errors"},
    "encodings": {"types", "errors"},
    "store": {"types", "errors"},
    "engine": {"architectures", "types", "errors"},
    "serving": {"engine", "imaging", "encodings", "store", "types", "errors"},
    "serving.rules": {"serving", "settings"},
    "fronts": {"serving", "api", "engine", "imaging", "encodings", "types", "errors", "settings"},
    "api": {"serving", "encodings.base", "types", "errors"},
    "api.app": {"serving", "encodings.base", "types", "errors", "settings"},
    "training": {"engine", "architectures", "imaging", "encodings", "store", "types", "errors"},
    "assembly": {"engine", "serving", "store", "settings", "types"},
    "cluster": {"api.app", "assembly", "serving", "settings", "errors"},
    "client": {"errors"},
    "bench": {"errors"},
    "cli": {
        "api",
        "assembly",
        "fronts",
        "serving",
        "engine",
        "store",
        "training",
        "bench",
        "settings",
        "logs",
        "errors",
        "architectures",
    },
    "__main__": {"cli"},
}

# Library -> the rooms that may import it.
HOMES: dict[str, set[str]] = {
    "fastapi": {"api", "cluster"},
    "starlette": {"api"},
    "uvicorn": {"api"},
    "httptools": {"api.connections", "bench.connections"},
    "opentelemetry": {"api.telemetry"},
    "python_multipart": {"api"},
    "swagger_ui_bundle": {"api"},
    "torch": {"architectures", "engine", "training"},
    "torchvision": {"architectures", "training"},
    "openvino": {"engine.openvino_library", "engine.converter", "engine.templates"},
    "nncf": {"engine.converter"},
    "PIL": {"imaging", "encodings", "training"},
    "simplejpeg": {"imaging"},
    "isal": {"encodings"},
    "pydantic_settings": {"settings"},
    "fsspec": {"store"},
    "prometheus_client": {"serving.metrics", "serving.series"},
    "asyncio": {"serving", "api", "fronts", "bench"},
    "uvloop": {"fronts", "bench"},
    "multiprocessing": {"fronts", "training"},
    "rich": {"serving.files", "cli", "training"},
    "typer": {"cli"},
    "ray": {"cluster"},
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__init__.py"
    }


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from app.encodings import base` names the module app.encodings.base.
            found |= {
                f"{module}.{a.name}" if module.startswith("app") else module for a in node.names
            }
    return found


def room_of(module: str) -> str:
    return module if module in ROOMS else module.split(".")[0]


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_plan(module: str) -> None:
    room = room_of(module)
    assert room in ROOMS, f"`{room}` is a room that the plan does not know"
    for name in imports(modules()[module]):
        if not name.startswith("app.") or name.startswith("app.__version__"):
            continue
        target = name.removeprefix("app.")
        if target.split(".")[0] == module.split(".")[0] and "." in module:
            continue
        assert any(target == ok or target.startswith(ok + ".") for ok in ROOMS[room]), (
            f"{module} may not import {name}"
        )


@pytest.mark.parametrize("module", modules())
def test_each_library_has_one_home(module: str) -> None:
    for name in imports(modules()[module]):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None:
            assert any(module == home or module.startswith(home + ".") for home in homes), (
                f"{module} imports {name}, whose home is {', '.join(sorted(homes))}"
            )


@pytest.mark.parametrize("module", modules())
def test_environment_is_read_in_settings_alone(module: str) -> None:
    if module == "settings":
        return
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("os", "environ"), ("os", "getenv")}, module


def test_nobody_imports_training_but_the_command_line() -> None:
    for module, path in modules().items():
        if module.startswith(("training", "cli")):
            continue
        assert not any(name.startswith("app.training") for name in imports(path)), module
