"""Conversions kept, damaged and made anew; memory that is bounded; a start without torch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from app.engine.base import Engine
from app.types import ModelSpec, Pixels
from tests.engine.conftest import template_of
from tests.engine.plain import limits

pytest.importorskip("openvino")

from app.engine import kept, openvino_cpu
from app.engine.child import in_a_child
from app.engine.conversion import conversion_key, converted
from app.engine.openvino_cpu import OpenVinoEngine
from app.errors import EngineError, ModelDamaged

Engines = dict[str, Engine]


def folder_of(spec: ModelSpec, cache_dir: Path) -> Path:
    return cache_dir / f"openvino-{conversion_key(spec)}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_key_follows_what_the_conversion_depends_on(specs: dict[str, ModelSpec]) -> None:
    spec = specs["binary"]
    assert conversion_key(spec) == conversion_key(replace(spec, name="other", threshold=0.1))
    others = [
        replace(spec, weights_sha256="1" * 64),
        replace(spec, std=(0.1, 0.2, 0.3)),
        replace(spec, parameters={"classes": 1, "upsampling": "nearest"}),
        replace(spec, task="multiclass"),
    ]
    assert len({conversion_key(other) for other in [spec, *others]}) == 5


@pytest.mark.parametrize("damage", ["flip", "truncate", "unseal", "lose"])
def test_a_damaged_conversion_is_made_anew(
    specs: dict[str, ModelSpec],
    openvino_engines: Engines,
    cache_dir: Path,
    drawn_dir: Path,
    damage: str,
) -> None:
    spec = specs["binary"]
    before = names(drawn_dir)
    folder = folder_of(spec, drawn_dir)
    shutil.copytree(folder_of(spec, cache_dir), folder)
    whole = {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}
    target = folder / "model.bin"
    if damage == "flip":
        content = bytearray(whole["model.bin"])
        content[1_000_000] ^= 1
        target.write_bytes(content)
    elif damage == "truncate":
        target.write_bytes(whole["model.bin"][:1000])
    elif damage == "unseal":
        (folder / "seal.json").write_text("{}")
    else:
        (folder / "model.xml").unlink()
    converted(spec, drawn_dir)
    assert target.read_bytes() == whole["model.bin"]
    seal = json.loads((folder / "seal.json").read_text())
    assert seal.keys() == {"model.xml", "model.bin"}
    assert names(drawn_dir) == {*before, folder.name}


def test_a_damaged_template_is_drawn_anew(
    specs: dict[str, ModelSpec], cache_dir: Path, drawn_dir: Path
) -> None:
    spec = specs["binary"]
    target = template_of(spec, drawn_dir) / "layout.json"
    whole = target.read_bytes()
    target.write_bytes(whole[:-3])
    converted(spec, drawn_dir)
    assert target.read_bytes() == whole
    ours, theirs = (folder_of(spec, folder) / "model.bin" for folder in (drawn_dir, cache_dir))
    assert ours.read_bytes() == theirs.read_bytes()


def test_models_of_one_net_share_its_template(specs: dict[str, ModelSpec]) -> None:
    here = Path()
    one = template_of(specs["binary"], here)
    assert one == template_of(specs["multilabel"], here)
    assert one != template_of(specs["multiclass"], here)
    assert one != template_of(replace(specs["binary"], parameters={"upsampling": "nearest"}), here)


def test_a_whole_conversion_needs_no_weights(
    specs: dict[str, ModelSpec], cache_dir: Path, drawn_dir: Path, tmp_path: Path
) -> None:
    spec = replace(specs["binary"], weights=str(tmp_path / "absent"))
    assert converted(spec, cache_dir) == folder_of(spec, cache_dir) / "model.xml"
    before = names(drawn_dir)
    with pytest.raises(ModelDamaged):
        converted(spec, drawn_dir)
    assert names(drawn_dir) == before


def test_a_cache_that_cannot_be_written_is_named(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match="cache_dir"):
        converted(specs["binary"], tmp_path / "file")


def test_many_shapes_start_afresh_and_masks_stay(
    openvino_engines: Engines, tiles: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = openvino_engines["binary"]
    expected = engine.infer(tiles, limits(0.5, 0.5)).bits
    monkeypatch.setattr(openvino_cpu, "SHAPES", 3)
    monkeypatch.setattr(openvino_cpu, "LARGE", 1024)
    for side in (32, 64, 96, 128):
        engine.prepare(side, 64, 1)
        engine.prepare(32, 32, 1)
        assert len(engine.describe()["shapes"]) <= 3
    np.testing.assert_array_equal(engine.infer(tiles, limits(0.5, 0.5)).bits, expected)


WARM_START = """
import json, re, sys, time
began = time.perf_counter()
from pathlib import Path
import numpy as np
from app.engine.choose import EngineOptions, open_engine
from app.types import ClassSpec, Halo, ModelSpec
values = json.loads(sys.argv[1])
values["classes"] = tuple(ClassSpec(**c) for c in values["classes"])
values["halo"] = Halo(**values["halo"])
cache = Path(sys.argv[2])
options = EngineOptions(device="cpu", backend="openvino", batch_sizes=(1,), cache_dir=cache)
engine = open_engine(ModelSpec(**values), options)
result = engine.infer(np.full((1, 256, 256, 3), 9, np.uint8), np.array([0.5], np.float32))
assert result.finite.all()
for name in ("torch", "torchvision"):
    assert sys.modules.get(name) is None, name
seconds = time.perf_counter() - began
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else None
print(json.dumps({"seconds": seconds, "megabytes": int(peak[1]) / 1024 if peak else 0}))
"""


def started(script: str, spec: ModelSpec, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, with the model and a cache."""
    values = json.dumps(asdict(spec), default=str)
    return subprocess.run(
        [sys.executable, "-c", script, values, str(folder)], capture_output=True, text=True
    )


def test_a_warm_start_imports_no_torch(
    specs: dict[str, ModelSpec], openvino_engines: Engines, cache_dir: Path
) -> None:
    done = started(WARM_START, specs["binary"], cache_dir)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print(f"warm start: {seen['seconds']:.2f} s, {seen['megabytes']:.0f} MB")
    assert seen["megabytes"] < 800


def test_a_cold_start_imports_no_torch_either(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    done = started(WARM_START, specs["binary"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["megabytes"] < 800


def converters(parent: int) -> list[int]:
    """The conversions at work that a process has started."""
    found = []
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in file.read_text().split() if "converter" in command(pid)]
    return found


def command(pid: str | int) -> str:
    """The arguments of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_converter(parent: int) -> int:
    until = time.monotonic() + 60
    while not (found := converters(parent)):
        assert time.monotonic() < until, "no conversion was started"
        time.sleep(0.005)
    return found[0]


on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


@on_linux
def test_a_killed_conversion_is_told_and_leaves_nothing(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(converted, specs["binary"], tmp_path)
        os.kill(wait_converter(os.getpid()), signal.SIGKILL)
        with pytest.raises(EngineError, match=r"fake@1 was killed \(SIGKILL\).*memory"):
            future.result(60)
    assert list(tmp_path.iterdir()) == []


PARENT = """
import json, sys
from pathlib import Path
from app.engine.conversion import converted
from app.types import ClassSpec, Halo, ModelSpec
values = json.loads(sys.argv[1])
values["classes"] = tuple(ClassSpec(**c) for c in values["classes"])
values["halo"] = Halo(**values["halo"])
converted(ModelSpec(**values), Path(sys.argv[2]))
"""


@on_linux
def test_a_conversion_ends_with_its_server_and_leaves_nothing(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    values = json.dumps(asdict(specs["binary"]), default=str)
    with subprocess.Popen([sys.executable, "-c", PARENT, values, str(tmp_path)]) as parent:
        child = wait_converter(parent.pid)
        parent.kill()
    until = time.monotonic() + 60
    while command(child) or list(tmp_path.iterdir()):
        assert time.monotonic() < until, (command(child), list(tmp_path.iterdir()))
        time.sleep(0.01)


def test_drafts_of_killed_processes_are_swept_in_time(tmp_path: Path) -> None:
    for name, age in ((".draft-old", 2 * kept.STALE_S), (".draft-new", 0.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.xml").write_text("half")
        moment = time.time() - age
        os.utime(tmp_path / name, (moment, moment))
    kept.kept(tmp_path / "whole", lambda draft: None)
    assert names(tmp_path) == {"whole", ".draft-new"}


def test_conversions_that_were_used_last_stay(tmp_path: Path) -> None:
    def key(number: int) -> str:
        return f"{number:032x}"

    for number in range(6):
        for kind in ("openvino", "openvino-int8"):
            kept.kept(tmp_path / f"{kind}-{key(number)}", lambda draft: None)
            moment = 1e9 + number
            os.utime(tmp_path / f"{kind}-{key(number)}", (moment, moment))
    (tmp_path / "findings-x.json").touch()
    kept.used(tmp_path / f"openvino-{key(1)}", most=3)
    assert names(tmp_path) == {
        "findings-x.json",
        *(f"openvino-{key(number)}" for number in (1, 4, 5)),
        *(f"openvino-int8-{key(number)}" for number in range(6)),
    }
    # Gone in the meantime, or in a folder that nobody may change: nothing is lost.
    kept.used(tmp_path / f"openvino-{key(0)}", most=3)
    assert (tmp_path / f"openvino-{key(4)}").is_dir()


def test_a_conversion_that_breaks_says_why(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="unknown architecture"):
        converted(replace(specs["binary"], architecture="nonet"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    # A defect of ours: nothing says what to draw.
    with pytest.raises(EngineError, match=r"fake@1 cannot be converted: KeyError: 'parameters'"):
        in_a_child({"architecture": "ternausnet11"}, tmp_path, "fake@1", beside=False)


AUDITED = """
import sys
def look(event, arguments):
    if event in ("os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        if "ldconfig" not in str(arguments):
            raise AssertionError(f"{event} {arguments}")
sys.addaudithook(look)
import json
from pathlib import Path
from app.engine import converter, openvino_cpu
openvino_cpu.device_name()
converter.draw("ternausnet11", {}, "binary", Path(sys.argv[1]))
assert sys.modules["openvino_telemetry"] is None
"""


def test_openvino_reports_to_nobody_and_forks_nothing(tmp_path: Path) -> None:
    """Left alone, the import of OpenVINO sends an event over the network from a forked process."""
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "template.xml").exists()


def test_without_a_cache_nothing_is_kept(
    specs: dict[str, ModelSpec], tiles: Pixels, openvino_engines: Engines
) -> None:
    engine = OpenVinoEngine(specs["binary"], precision="float32")
    expected = openvino_engines["binary"].infer(tiles, limits(0.5, 0.5))
    np.testing.assert_array_equal(engine.infer(tiles, limits(0.5, 0.5)).bits, expected.bits)
    engine.close()


# None in sys.modules makes an import fail as if the package were not installed.
WITHOUT_TORCH = WARM_START.replace(
    "import json,", "import sys; sys.modules['torch'] = None\nimport json,"
)


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
def test_a_model_never_seen_is_served_without_torch_where_its_net_was_drawn(
    specs: dict[str, ModelSpec], drawn_dir: Path, task: str
) -> None:
    done = started(WITHOUT_TORCH, specs[task], drawn_dir)
    assert done.returncode == 0, done.stderr
    assert folder_of(specs[task], drawn_dir).is_dir()


def test_a_cold_start_without_torch_says_what_is_missing(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    done = started(WITHOUT_TORCH, specs["binary"], tmp_path)
    assert done.returncode == 1
    assert "torch, which draws one, is not installed" in done.stderr
