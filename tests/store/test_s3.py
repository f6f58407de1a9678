"""The store on S3, against a local imitation of it; passed over where that is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import app

pytest.importorskip("s3fs", reason="the s3 extra is not installed")
pytest.importorskip("moto.server", reason="moto[server], the imitation of S3, is not installed")

# In a process of its own: s3fs keeps an event loop and sockets that end with the process only.
JOURNEY = """
import json, sys, threading
from pathlib import Path
import s3fs
from app.errors import ModelDamaged, ModelNotFound, VersionExists
from app.store import ModelStore
from tests.store.makers import draft, files
cache = Path(sys.argv[1])
fs = s3fs.S3FileSystem()
fs.mkdir("bucket")
root = "s3://bucket/some/models"
store = ModelStore(root, cache)
told = {"empty": store.names()}
told["first"] = store.publish("lungs", draft(), files())
told["named"] = store.publish("lungs", draft(), files(), version=4)
try:
    store.publish("lungs", draft(), files(), version=4)
except VersionExists as exc:
    told["again"] = str(exc)
numbers = []
racers = [
    threading.Thread(
        target=lambda: numbers.append(ModelStore(root).publish("lungs", draft(), files()))
    )
    for _ in range(3)
]
for racer in racers: racer.start()
for racer in racers: racer.join()
told["race"] = sorted(numbers)
told["versions"] = store.versions("lungs")
told["sound"] = store.verify("lungs", finite=True).sound
told["weights"] = store.resolve("lungs@1").weights
told["problems"] = [str(one) for one in store.problems()]
try:
    fs.pipe_file("bucket/some/models/lungs/1/manifest.json", b"{}", mode="create")
    told["exclusive"] = False
except FileExistsError:
    told["exclusive"] = True
fs.pipe_file("bucket/some/models/lungs/4/README.md", b"x")
try:
    store.resolve("lungs@4")
except ModelDamaged as exc:
    told["damage"] = str(exc)
try:
    store.resolve("heart")
except ModelNotFound as exc:
    told["unknown"] = str(exc)
print(json.dumps(told))
"""


@pytest.fixture
def endpoint() -> Iterator[str]:
    code = (
        "from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start()\n"
        "print(server.get_host_and_port()[1], flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.terminate()


def test_store_on_s3(tmp_path: Path, endpoint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOURNEY, str(tmp_path / "cache")],
        cwd=Path(app.__file__).parents[1],
        env=os.environ
        | {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["empty"] == []
    assert told["first"] == 1
    assert told["named"] == 4
    assert "`lungs@4` is published, and a published version never changes" in told["again"]
    assert len(set(told["race"])) == 3
    assert told["versions"] == [1, 4, *told["race"]]
    assert told["sound"]
    assert told["weights"].startswith(str(tmp_path / "cache"))
    assert told["problems"] == []
    assert told["exclusive"]
    assert "README.md` is truncated: expected 10 bytes, found 1 bytes" in told["damage"]
    assert "no model `heart`; known: lungs" in told["unknown"]
