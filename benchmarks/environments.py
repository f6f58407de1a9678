"""Virtual environments for other people's servers: made once, kept in a folder of the user's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from app.errors import Unavailable

# The same for all, in the versions that this environment has.
SAME = ("torch", "torchvision", "numpy", "pillow", "safetensors")


def python_of(folder: Path, packages: Sequence[str]) -> Path:
    """The interpreter of an environment in `folder` with `packages` and those of `SAME`.

    Made where it is not there or was made with others. Raises Unavailable with the installer's
    words where that fails.
    """
    wanted = [*packages, *(f"{name}=={version(name).partition('+')[0]}" for name in SAME)]
    # As written, not resolved: a virtual environment's own python is a link out of it.
    python, stamp = folder.absolute() / "bin" / "python", folder / "packages.txt"
    text = "\n".join([*wanted, f"python=={sys.version_info.major}.{sys.version_info.minor}", ""])
    if python.exists() and stamp.exists() and stamp.read_text() == text:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv")
    if uv:
        _run(uv, "venv", "-q", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "-q", "--python", str(python), *wanted)
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted)
    stamp.write_text(text)
    return python


def versions_of(python: Path, names: Sequence[str]) -> dict[str, str]:
    """The versions of packages in another environment."""
    code = "import sys; from importlib.metadata import version\n"
    code += "for name in sys.argv[1:]: print(name, version(name))"
    lines = _run(str(python), "-c", code, *names).splitlines()
    return dict(line.split() for line in lines)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise Unavailable(f"`{' '.join(command[:4])} ...` failed: {said[-2000:]}")
    return done.stdout
