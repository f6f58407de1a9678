"""The Dockerfile and what goes into its images, without building them."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from app.settings import PREFIX, Settings
from tests.server import running
from tests.test_house import imports, modules

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "Dockerfile").read_text()
REQUIREMENTS = ROOT / "requirements"
# What the image for CUDA has and the other has not.
GPU_ALONE = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
FINAL = ("cpu", "cuda")


def stages() -> dict[str, list[str]]:
    """Instructions by stage, in order, continuation lines joined and comments left out."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        start = re.match(r"FROM (\S+) AS (\S+)", line)
        if start:
            found[start[2]] = [line]
        elif line.strip() and found:
            found[next(reversed(found))].append(re.sub(r"\s+", " ", line.strip()))
    return found


def pins(name: str) -> dict[str, str]:
    """Each requirement with its marker, and its hashes."""
    text = (REQUIREMENTS / f"{name}.txt").read_text().replace("\\\n", " ")
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            assert hashes, f"{requirement} has no hash"
            found[requirement] = " ".join(sorted(hashes))
    return found


def names(name: str) -> set[str]:
    return {requirement.split("==")[0] for requirement in pins(name)}


@pytest.mark.parametrize("stage", FINAL)
def test_final_stage_runs_as_it_should(stage: str) -> None:
    body = stages()[stage]
    assert "USER 10001:10001" in body
    assert "STOPSIGNAL SIGTERM" in body
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "ternaus"]' in body
    assert 'CMD ["serve"]' in body
    assert "EXPOSE 8000" in body
    assert 'VOLUME ["/models", "/var/cache/ternaus"]' in body
    assert any(line.startswith("HEALTHCHECK ") and "health.py" in line for line in body)
    labels = " ".join(line for line in body if line.startswith("LABEL"))
    for label in ("title", "description", "licenses", "version", "revision", "created"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f"ARG VERSION={__version__}" in body


@pytest.mark.parametrize("stage", FINAL)
def test_final_stage_installs_nothing(stage: str) -> None:
    """Compilers, package managers of Python and caches stay in the stages before it."""
    body, base = stages()[stage], stages()[f"{stage}-base"]
    assert body[0] == f"FROM {stage}-base AS {stage}"
    assert not [line for line in body[1:] if re.search(r"\b(apt-get|pip|uv) ", line)]
    installed = next(line for line in base if "apt-get install" in line)
    packages = re.search(r"--no-install-recommends ([^&]*)&&", installed)
    assert packages is not None
    assert packages[1].split() == ["ca-certificates", "python3", "tini"]
    assert "rm -rf /var/lib/apt/lists/*" in installed


def test_images_differ_where_they_must_and_nowhere_else() -> None:
    def rest(stage: str) -> list[str]:
        varies = ("FROM", "LABEL", "HEALTHCHECK", "COPY --from=templates")
        body = [line for line in stages()[stage] if not line.startswith(varies)]
        text = "\n".join(body).replace(f"{stage}-packages", "packages")
        text = re.sub(r" ?TERNAUS_DEVICE=\w+| ?NVIDIA_\w+=\S+", "", text)
        return [line.strip() for line in text.splitlines()]

    assert rest("cpu") == rest("cuda")
    assert "TERNAUS_DEVICE=cpu" in "".join(stages()["cpu"])
    assert list(stages())[-1] == "cuda", "`docker build .` makes the last stage"


@pytest.mark.parametrize("stage", FINAL)
def test_settings_of_the_image_exist(stage: str) -> None:
    set_here = re.findall(rf"\b{PREFIX}(\w+)=", " ".join(stages()[stage]))
    assert set_here
    assert {name.lower() for name in set_here} <= set(Settings.model_fields)


def test_base_has_the_cuda_of_torch() -> None:
    pinned = re.search(r"^cuda-toolkit==([\d.]+)", "\n".join(pins("cuda")), re.MULTILINE)
    base = re.search(r"^ARG CUDA_BASE=nvidia/cuda:([\d.]+)-base-", TEXT, re.MULTILINE)
    assert pinned is not None
    assert base is not None
    assert base[1] == pinned[1]


def test_every_package_is_installed_by_hash() -> None:
    for line in TEXT.replace("\\\n", " ").splitlines():
        for command in re.findall(r"(?:pip|uv pip) install[^&]*", line):
            assert "--require-hashes" in command
    assert pins("uv")


def test_images_serve_with_the_packages_of_make_serve() -> None:
    """The same versions and files everywhere; the image for the CPU has no torch."""
    serve, cuda, cpu = pins("serve"), pins("cuda"), pins("cpu")
    assert serve.items() <= cuda.items()
    assert cpu.items() <= cuda.items()
    assert not [name for name in names("cpu") if GPU_ALONE.match(name)]
    assert {"openvino", "s3fs"} <= names("cpu")


def test_packages_of_the_cpu_image_suffice() -> None:
    """Whatever serving imports is in requirements/cpu.txt, or only needed for conversions."""
    owners = importlib.metadata.packages_distributions()
    there = {name.replace("_", "-").lower() for name in names("cpu")}
    for module, path in modules().items():
        if module.startswith(("training", "architectures", "cli", "cluster")):
            continue
        for name in imports(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in ("app", "torch", "torchvision", "nncf"):
                continue
            found = {owner.replace("_", "-").lower() for owner in owners.get(top, [])}
            assert found & there, f"{module} imports {top}, which the image for the CPU has not"


def test_serving_imports_no_torch() -> None:
    code = (
        "import sys, app.cli, app.api.app, app.api.server, app.store.store, app.engine.choose, "
        "app.engine.conversion, app.engine.openvino_cpu; "
        "print([n for n in ('torch', 'torchvision') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_only_what_is_named_goes_into_a_build() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in rules if line and not line.startswith("#")]
    assert rules[0] == "*"
    named = {line[1:] for line in rules if line.startswith("!")}
    assert all((ROOT / name).exists() for name in named)
    copied: set[str] = set()
    for line in TEXT.splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            copied |= {word for word in line.split()[1:-1] if not word.startswith("--")}
    assert all(any(c == n or c.startswith(f"{n}/") for n in named) for c in copied)
    assert all(any(c == n or c.startswith(f"{n}/") for c in copied) for n in named)


@pytest.mark.fleet
def test_dockerfile_is_lint_free() -> None:
    from tests.fleet.processes import needed

    config = str(ROOT / "docker" / "hadolint.yaml")
    done = subprocess.run(
        [needed("hadolint"), "--config", config, str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def health(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "docker" / "image" / "health.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_health_check_of_the_image_tells_ready_from_not(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        port = run.url.rsplit(":", 1)[1]
        done = health(TERNAUS_PORT=port, TERNAUS_HOST="0.0.0.0")
        assert (done.returncode, '"ready":true' in done.stdout) == (0, True), done.stdout
        run.house.drain()
        done = health(TERNAUS_PORT=port)
        assert (done.returncode, "draining" in done.stdout) == (1, True), done.stdout
    done = health(TERNAUS_PORT=port)
    assert done.returncode == 1
    assert "no answer on port" in done.stdout
