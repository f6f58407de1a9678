"""Who is compared: our server, and the same model behind other people's."""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environments import python_of, versions_of
from benchmarks.peer_servers.asked import Asked
from benchmarks.processes import ROOT, ServerProcess

FOLDER = "benchmarks.peer_servers"
# Nothing is sent to anybody, and no home folder is written to.
QUIET = {"BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True, slots=True)
class Contender:
    """A server and how it is set up; `setup` says so, with `{batch}` for the size of its batches.

    `packages` are what is installed for it, the first being its own; none for our server. `form`:
    pictures come as a form. `bounded` says how `limit` and `timeout_s` are kept to.
    """

    name: str
    setup: str
    bounded: str
    packages: tuple[str, ...] = ()
    arguments: Callable[[Asked], list[str]] = lambda asked: []
    ready: str = "/health"
    form: bool = False
    fast: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return not self.packages

    def python(self, cache: Path) -> Path:
        """Its interpreter, with its packages. Raises Unavailable."""
        if self.ours:
            return Path(sys.executable)
        return python_of(cache / self.packages[0].partition("[")[0], self.packages)

    def versions(self, python: Path) -> dict[str, str]:
        own = ["openvino"] if self.ours else [self.packages[0].partition("[")[0]]
        return versions_of(python, [*own, "torch"])

    @contextlib.contextmanager
    def serving(
        self, python: Path, model: Path, *, timeout_s: float, limit: int, batch: int, cache: Path
    ) -> Iterator[ServerProcess]:
        """The server until the block ends; it is ready when the block begins, and all of it has
        ended after it. Raises RuntimeError with its log where it does not start.
        """
        asked = Asked(free_port(), model, timeout_s, limit, batch, self.fast)
        # Sockets live there too, and their paths must be short.
        with tempfile.TemporaryDirectory(prefix="peer", ignore_cleanup_errors=True) as folder:
            given = {**self.environment}
            if self.ours:
                given["TERNAUS_CACHE_DIR"] = str((cache / "ternaus").absolute())
                given["TERNAUS_REQUEST_TIMEOUT_S"] = str(timeout_s)
            else:
                given |= {**QUIET, **asked.environment(), "PYTHONPATH": str(ROOT)}
                given |= {"TMPDIR": folder, "RAY_TMPDIR": folder, "BENTOML_HOME": folder}
            server = ServerProcess(
                self.arguments(asked),
                python=python,
                url="" if self.ours else f"http://127.0.0.1:{asked.port}",
                environment=given,
            )
            with contextlib.suppress(OSError):
                # Should memory run out, then the server under measurement goes, nobody else.
                Path(f"/proc/{server.popen.pid}/oom_score_adj").write_text("900")
            try:
                server.wait_ready(self.ready)
                yield server
            except RuntimeError as exc:
                raise RuntimeError("".join([f"{exc}\n", *server.log[-30:]])) from exc
            finally:
                server.end(grace_s=10)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _module(name: str) -> Callable[[Asked], list[str]]:
    return lambda asked: [f"{FOLDER}.{name}"]


def _serve(asked: Asked) -> list[str]:
    return ["app", "serve", "--model", asked.model.parent.name]


def _bentoml(asked: Asked) -> list[str]:
    service = f"{FOLDER}.with_bentoml:Segmentation"
    return ["bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(asked.port)]


def _mosec(asked: Asked) -> list[str]:
    arguments = [f"{FOLDER}.with_mosec", "--address", "127.0.0.1", "--port", str(asked.port)]
    arguments += ["--timeout", str(round(1000 * asked.timeout_s))]
    return arguments + (["--capacity", str(asked.limit)] if asked.limit else [])


_DOOR = "a count in the handler (503)"

CONTENDERS = (
    Contender(
        "ternaus",
        "`ternaus serve` as it comes: OpenVINO, bf16 where masks agree",
        "nothing is set: the deadline is in the request's header",
        arguments=_serve,
        ready="/health/ready",
    ),
    Contender(
        "ternaus-float32",
        "`TERNAUS_PRECISION=float32`: OpenVINO",
        "nothing is set: the deadline is in the request's header",
        arguments=_serve,
        ready="/health/ready",
        environment={"TERNAUS_PRECISION": "float32"},
    ),
    Contender(
        "ternaus-torch",
        "`TERNAUS_BACKEND=torch`, `TERNAUS_PRECISION=float32`: the peers' engine, channels last",
        "nothing is set: the deadline is in the request's header",
        arguments=_serve,
        ready="/health/ready",
        environment={"TERNAUS_BACKEND": "torch", "TERNAUS_PRECISION": "float32"},
    ),
    Contender(
        "fastapi",
        "a `def` handler on FastAPI's thread pool; no batches",
        _DOOR,
        packages=("fastapi[standard]",),
        arguments=_module("plain_fastapi"),
        form=True,
    ),
    Contender(
        "fastapi-batch",
        "an asyncio queue, batches of {batch} at most, a window of 10 ms",
        _DOOR + ", `wait_for` (504)",
        packages=("fastapi[standard]",),
        arguments=_module("batched_fastapi"),
        form=True,
    ),
    Contender(
        "fastapi-batch-bf16",
        "the same, the net in bf16 and channels last",
        _DOOR + ", `wait_for` (504)",
        packages=("fastapi[standard]",),
        arguments=_module("batched_fastapi"),
        form=True,
        fast=True,
    ),
    Contender(
        "litserve",
        "`max_batch_size={batch}`, `batch_timeout=0.01`, a worker a core",
        "`timeout`; it has no bound on how many wait",
        packages=("litserve", "python-multipart"),
        arguments=_module("with_litserve"),
        form=True,
    ),
    Contender(
        "bentoml",
        "a batchable service of the net (`max_batch_size={batch}`) behind one for requests",
        "`traffic`: `timeout`, `max_concurrency`",
        packages=("bentoml",),
        arguments=_bentoml,
        ready="/readyz",
        form=True,
    ),
    Contender(
        "ray",
        "one replica with all cores, `serve.batch` of {batch}, a wait of 10 ms",
        "`max_ongoing_requests`, `max_queued_requests=1`, `request_timeout_s`",
        packages=("ray[serve]",),
        arguments=_module("with_ray_serve"),
        ready="/-/healthz",
    ),
    Contender(
        "mosec",
        "decoding in a process a core, the net in one (batches of {batch}, 10 ms), encoding",
        "`--capacity`, `--timeout`",
        packages=("mosec",),
        arguments=_mosec,
        ready="/",
    ),
)
