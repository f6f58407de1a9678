"""The comparison with other servers: its plain parts, and one peer as a real process."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.engine.torch_engine import TorchEngine
from app.errors import Unavailable
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.store.store import ModelStore
from benchmarks import reports
from benchmarks.contenders import CONTENDERS
from benchmarks.environments import python_of
from benchmarks.peer_servers.asked import Asked
from benchmarks.peers import answer, damaged, differing, earlier, left, mask_of, newest, rows
from benchmarks.pictures import views
from benchmarks.processes import ROOT, ServerProcess

# Burns processor time in a child of a child that has left its parents, then says where it listens.
_PARENTS = """
import os, subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.3: pass\\n"
stay = burn + "held = bytearray(50_000_000)\\nprint('running on http://127.0.0.1:9', flush=True)\\n"
stay += "import signal\\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\\nsignal.pause()"
child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stay!r}])"
subprocess.run([sys.executable, "-c", child], start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Any:
    (tmp_path / "parents.py").write_text(_PARENTS)
    server = ServerProcess(["parents"], environment={"PYTHONPATH": str(tmp_path)})
    assert server._listening.wait(60)
    yield server
    server.end(grace_s=0.1)


def test_processes_that_left_their_parents_are_counted(family: ServerProcess) -> None:
    assert family.url == "http://127.0.0.1:9", "".join(family.log)
    assert len(family.processes()) == 2
    assert family.cpu_s() >= 0.3
    assert 50_000_000 < family.peak_shared_once_bytes() < family.peak_bytes()


def test_end_leaves_nobody_behind(family: ServerProcess) -> None:
    pids = family.processes()
    family.end(grace_s=0.1)
    for pid in pids:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or ") Z " in state.read_text(), pid


def test_differing_counts_pixels() -> None:
    truth = [np.zeros((4, 5), np.bool_), np.ones((4, 5), np.bool_)]
    other = [mask.copy() for mask in truth]
    other[1][0, 0] = False
    assert differing(truth, truth) == 0
    assert differing(other, truth) == 1 / 40
    with pytest.raises(ValueError, match="instead of"):
        differing([mask[:2] for mask in truth], truth)


def test_mask_of_reads_one_bit_and_eight() -> None:
    mask = np.arange(12).reshape(3, 4) % 3 == 0
    for image in (Image.fromarray(mask), Image.fromarray(mask.astype(np.uint8) * 255)):
        out = io.BytesIO()
        image.save(out, "PNG")
        assert (mask_of(out.getvalue()) == mask).all()


def test_table_has_failures_beside_figures(tmp_path: Path) -> None:
    figures = {
        "per_s": 2.0,
        "lone_ms": 500.0,
        "p99_ms": 4000.0,
        "cpu_ms": 950.0,
        "peak_bytes": 5e8,
        "differing": 0.0005,
        "beside_damaged": {"good": 7, "answered": 7, "bad": 422},
        "left": {"computed_for_them": 0.0},
        "as_it_stands": {"of_capacity": 0.1, "p99_ms": 9000.0},
        "with_bounds": {"of_capacity": 0.9},
    }
    results = {"mosec": {"error": "no such package"}, "ray": {**figures, "per_s": 1.0}}
    results["ternaus"] = figures
    file = tmp_path / "results.json"
    reports.write(file, results, command=["x"])
    table = rows(earlier(file))
    assert [row["name"] for row in table] == ["ternaus", "ray", "mosec"]
    assert [row["of ours"] for row in table] == [1.0, 0.5, None]
    assert table[2]["error"] == "no such package"
    assert "no such package" in reports.table(table)
    assert earlier(tmp_path / "none.json") == {}


def test_asked_travels_through_the_environment(tmp_path: Path) -> None:
    asked = Asked(8123, tmp_path, timeout_s=2.5, limit=3, batch=4, fast=True)
    assert Asked.read(asked.environment()) == asked


def test_environment_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="failed"):
        python_of(tmp_path / "environment", ("./no-such-folder/package.whl",))


def test_every_contender_has_its_program() -> None:
    asked = Asked(8000, newest())
    for contender in CONTENDERS:
        for argument in contender.arguments(asked):
            if argument.startswith("benchmarks."):
                module = argument.partition(":")[0]
                assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
        assert contender.setup
        assert contender.bounded


@pytest.mark.journey
def test_plain_fastapi_gives_our_masks(tmp_path: Path) -> None:
    contender = next(c for c in CONTENDERS if c.name == "fastapi")
    model, pictures = newest(), views(128)
    spec = ModelStore(str(ROOT / "model_store"), cache=tmp_path).resolve("buildings")
    engine = TorchEngine(spec, precision="float32")
    truth = []
    for picture in pictures:
        pixels = decode(picture, limits=DecodeLimits()).pixels
        bits = engine.infer(pixels[None], np.array([spec.threshold], np.float32)).bits
        assert bits is not None
        truth.append(np.unpackbits(bits[0, 0], axis=1).astype(np.bool_))
    bounds: dict[str, Any] = {"timeout_s": 120.0, "limit": 0, "batch": 8}
    with contender.serving(Path(sys.executable), model, cache=tmp_path, **bounds) as server:
        masks = [mask_of(answer(contender, server.url, picture)) for picture in pictures]
        assert any(mask.any() for mask in truth)
        assert differing(masks, truth) < 0.002
        found = damaged(contender, server, pictures, 0.1, batch=4)
        assert found == {"good": 5, "answered": 5, "statuses": {200: 5}, "bad": 422}
        assert left(contender, server, pictures, 0.1, 0.0, 50.0)["answered"] == 4
