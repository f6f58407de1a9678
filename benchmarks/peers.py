"""Our server beside the same model behind other people's, in one run on one machine.

    python -m benchmarks.peers --json results.json
    python -m benchmarks.peers --only ternaus litserve --seconds 3

Each is installed in an environment of its own below `--cache`, started, asked and ended with all
its processes: whether its masks are ours; how late one client alone is answered; pictures a second
with `--clients` in a closed loop; what becomes of good pictures that come at once with a
damaged one; how much is computed for clients that have left; and three times the load that it can
carry, first as it stands, then with the bounds that it has set for just this load. The deadline is
`--deadline` times its own latency alone. `--json` replaces in the file what was measured now and
keeps the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.bench.load import Load, drive
from app.bench.messages import Target, message
from app.bench.shots import Kind, Run
from app.errors import Unavailable
from benchmarks import reports
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.pictures import views
from benchmarks.processes import ROOT, Elsewhere, ServerProcess

MODEL = "buildings"
GENEROUS_S = 60.0
# The shortest stretch of overload that counts: deadlines may be short.
STRETCH_S = 15.0
OVERLOAD = 3.0
# Deadlines that a client waits, if it was not told to wait longer.
PATIENT = 1.5
# A server that uses this little of a core more than when nobody asks has nothing to do.
IDLE = 0.2

Masks = list[NDArray[np.bool_]]


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the closed loop")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="most pictures in a peer's batch")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--deadline", type=float, default=10.0, help="as a multiple of alone")
    parser.add_argument(
        "--patience", type=float, default=15.0, help="of a client, in seconds, at the least"
    )
    parser.add_argument("--no-overload", action="store_true", help="leave that part out")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "peers")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    # Ended from outside, it must still end the servers.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    model = newest()
    pictures = views(asked.side)
    truth = reference(model, pictures, asked.cache)
    results = earlier(asked.json)
    for contender in CONTENDERS:
        if contender.name not in asked.only:
            continue
        setup = contender.setup.format(batch=asked.batch)
        print(f"{contender.name}: {setup}", flush=True)
        try:
            found = examined(contender, model, pictures, truth, asked)
        except (Unavailable, RuntimeError, OSError) as exc:
            first, _, log = f"{type(exc).__name__}: {exc}".partition("\n")
            found = {"error": first, "log": log[-3000:]}
            print(first, log[-3000:], sep="\n", flush=True)
        results[contender.name] = {"setup": setup, "bounded": contender.bounded, **found}
        reports.write(asked.json, results, command=["python", "-m", "benchmarks.peers"])
    print(reports.table(rows(results)))


def newest() -> Path:
    """The folder of the shipped model's newest version."""
    return max((ROOT / "model_store" / MODEL).glob("[0-9]*"), key=lambda path: int(path.name))


def earlier(path: Path | None) -> dict[str, Any]:
    """What the file says of contenders already."""
    if path is None or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())["results"]
    return found


def reference(model: Path, pictures: Sequence[bytes], cache: Path) -> Masks:
    """Our masks in float32, from our server; kept, so that a peer can be compared alone."""
    key = hashlib.sha256((model / "manifest.json").read_bytes())
    for picture in pictures:
        key.update(picture)
    file = cache / f"masks-{key.hexdigest()[:16]}.npy"
    if not file.exists():
        ours = next(c for c in CONTENDERS if c.name == "ternaus-float32")
        python = ours.python(cache)
        bounds = {"timeout_s": GENEROUS_S, "limit": 0, "batch": 1}
        with ours.serving(python, model, cache=cache, **bounds) as server:  # type: ignore[arg-type]
            masks = [mask_of(answer(ours, server.url, picture)) for picture in pictures]
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, np.stack(masks))
    return list(np.load(file))


def answer(contender: Contender, url: str, picture: bytes) -> bytes:
    """The mask of one picture as a PNG. Raises RuntimeError where it is refused."""
    with httpx.Client(trust_env=False, timeout=GENEROUS_S) as client:
        if contender.form:
            found = client.post(f"{url}/segment", files={"file": ("a.jpg", picture, "image/jpeg")})
        else:
            kind = {"content-type": "image/jpeg"}
            found = client.post(f"{url}/segment", content=picture, headers=kind)
    if found.status_code != 200:
        raise RuntimeError(f"{contender.name} answered {found.status_code}: {found.text[:500]}")
    return found.content


def mask_of(png: bytes) -> NDArray[np.bool_]:
    """(H, W) bool, set where the PNG is not black."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L")) > 0


def differing(masks: Masks, truth: Masks) -> float:
    """Share of all pixels in which masks differ. Raises ValueError for another size."""
    if [mask.shape for mask in masks] != [mask.shape for mask in truth]:
        raise ValueError(f"masks of {masks[0].shape} instead of {truth[0].shape}")
    differ = sum(int((a != b).sum()) for a, b in zip(masks, truth, strict=True))
    return differ / sum(mask.size for mask in truth)


def examined(
    contender: Contender,
    model: Path,
    pictures: Sequence[bytes],
    truth: Masks,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Everything about one contender."""
    python = contender.python(asked.cache)
    start = partial(contender.serving, python, model, batch=asked.batch, cache=asked.cache)
    found: dict[str, Any] = {"versions": contender.versions(python)}

    def learnt(**facts: Any) -> None:
        found.update(facts)
        print("  " + json.dumps(facts), flush=True)

    begun = time.perf_counter()
    with start(timeout_s=GENEROUS_S, limit=0) as server:
        masks = [mask_of(answer(contender, server.url, picture)) for picture in pictures]
        start_s = round(time.perf_counter() - begun, 1)
        idle = idle_of(server)
        learnt(start_s=start_s, differing=differing(masks, truth), idle_cores=round(idle, 3))
        learnt(**carried(contender, server, pictures, asked))
        learnt(peak_bytes=server.peak_shared_once_bytes())
        lone_s, per_s = found["lone_ms"] / 1000, found["per_s"]
        learnt(beside_damaged=damaged(contender, server, pictures, lone_s, batch=asked.batch))
        settle(server, idle)
        learnt(left=left(contender, server, pictures, lone_s, idle, found["cpu_ms"]))
        if asked.no_overload:
            return found
        within_s = asked.deadline * lone_s
        offered = OVERLOAD * per_s
        # Who left before the deadline would tell of haste, not of the server.
        patience_s = max(asked.patience, PATIENT * within_s)
        sender = load(contender, server, pictures, patience_s=patience_s)
        learnt(as_it_stands=overloaded(server, sender, offered, within_s, per_s))
        learnt(peak_overloaded_bytes=server.peak_shared_once_bytes())
    timeout_s = GENEROUS_S if contender.ours else within_s
    with start(timeout_s=timeout_s, limit=asked.batch) as server:
        settle(server, found["idle_cores"])
        hurried = {"x-request-timeout-ms": str(round(1000 * within_s))} if contender.ours else {}
        sender = load(contender, server, pictures, headers=hurried, patience_s=patience_s)
        drive(partial(sender.closed, clients=1, seconds=2 * lone_s, to_the_end=True))
        learnt(with_bounds=overloaded(server, sender, offered, within_s, per_s))
    return found


def load(
    contender: Contender,
    server: ServerProcess,
    pictures: Sequence[bytes],
    *,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> Load:
    """What sends these pictures, and halves of them as damaged ones."""
    target = Target.of(server.url)
    write = partial(message, target, headers=headers, form=contender.form)
    cut = [write(picture[: len(picture) // 2]) for picture in pictures]
    return Load(target, [write(picture) for picture in pictures], damaged=cut, **options)


def carried(
    contender: Contender,
    server: ServerProcess,
    pictures: Sequence[bytes],
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Alone, then with many clients. Raises RuntimeError where no picture is answered."""
    sender = load(contender, server, pictures, patience_s=GENEROUS_S)
    with Elsewhere(server) as elsewhere:
        lone = drive(partial(sender.closed, clients=1, seconds=asked.seconds / 3, to_the_end=True))
        before = server.cpu_s()
        many = partial(sender.closed, clients=asked.clients, seconds=asked.seconds)
        run = drive(partial(many, to_the_end=True))
        used_s = server.cpu_s() - before
    if not lone.answered or not run.answered:
        raise RuntimeError(f"{lone.statuses()} alone, {run.statuses()} with clients")
    latency = run.summary()["latency_ms"]
    return {
        "lone_ms": round(1000 * statistics.median(shot.seconds for shot in lone.answered), 1),
        "per_s": round(len(run.answered) / run.seconds, 3),
        "answers": len(run.answered),
        "statuses": run.statuses(),
        "p50_ms": latency["p50"],
        "p99_ms": latency["p99"],
        "cpu_ms": round(1000 * used_s / len(run.answered), 1),
        "cores_elsewhere": elsewhere.cores,
        "client_cpu_ms": round(1000 * run.client_cpu_s / max(1, run.requests), 2),
    }


def damaged(
    contender: Contender,
    server: ServerProcess,
    pictures: Sequence[bytes],
    lone_s: float,
    *,
    batch: int,
) -> dict[str, Any]:
    """A full batch's worth of pictures at once, one in the middle damaged.

    Two others have come before, so that they wait together.
    """
    sender = load(contender, server, pictures, patience_s=GENEROUS_S)
    at, half = lone_s / 4, batch // 2
    early: tuple[float, Kind] = (0.0, "picture")
    late: tuple[float, Kind] = (at, "picture")
    bad_one: tuple[float, Kind] = (at, "damaged")
    moments = [early] * 2 + [late] * half + [bad_one] + [late] * (batch - half - 1)
    run = drive(partial(sender.volley, moments))
    bad = next(shot.status for shot in run.shots if shot.kind == "damaged")
    return {
        "good": batch + 1,
        "answered": len(run.answered),
        "statuses": run.statuses(),
        "bad": bad,
    }


def left(
    contender: Contender,
    server: ServerProcess,
    pictures: Sequence[bytes],
    lone_s: float,
    idle: float,
    cpu_ms: float,
) -> dict[str, Any]:
    """Four pictures at once; behind them, while the first is computed, come four clients that
    have left before it is ready. What they cost is counted in processor time.
    """
    sender = load(
        contender, server, pictures, patience_s=GENEROUS_S, leave_s=lone_s / 4, leave_at=(1.0,)
    )
    begun, before = time.perf_counter(), server.cpu_s()
    stays: tuple[float, Kind] = (0.0, "picture")
    leaves: tuple[float, Kind] = (lone_s / 4, "leaver")
    run = drive(partial(sender.volley, [stays] * 4 + [leaves] * 4))
    settle(server, idle)
    used_s = server.cpu_s() - before - idle * (time.perf_counter() - begun)
    pictures_worth = 1000 * used_s / cpu_ms
    return {
        "stayed": 4,
        "answered": len(run.answered),
        "statuses": run.statuses(),
        "left": 4,
        "computed_for_them": round(max(0.0, pictures_worth - 4), 1),
    }


def idle_of(server: ServerProcess, *, seconds: float = 1.0) -> float:
    """Cores that the server uses when nobody asks: some poll."""
    before = server.cpu_s()
    time.sleep(seconds)
    return (server.cpu_s() - before) / seconds


def settle(server: ServerProcess, idle: float, *, most_s: float = GENEROUS_S) -> None:
    """Wait until the server has nothing to do; `idle` is what it uses then, in cores."""
    until = time.monotonic() + most_s
    while idle_of(server, seconds=0.5) > idle + IDLE and time.monotonic() < until:
        pass


def overloaded(
    server: ServerProcess, sender: Load, offered: float, within_s: float, per_s: float
) -> dict[str, Any]:
    """More than it can carry; counted is what is due after the first deadline has passed."""
    seconds = max(within_s, STRETCH_S)
    with Elsewhere(server) as elsewhere:
        run = drive(partial(sender.opened, rate=offered, seconds=seconds, warm_s=within_s))
    found = run.summary(within_s=within_s)
    latency = found["latency_ms"]
    return {
        "offered_per_s": round(offered, 3),
        "within_s": round(within_s, 2),
        "requests": len(run.shots),
        "goodput_per_s": found["goodput"],
        "of_capacity": round(found["goodput"] / per_s, 3),
        "answered": len(run.answered),
        "p50_ms": latency.get("p50"),
        "p99_ms": latency.get("p99"),
        "statuses": found["statuses"],
        "refusals": refusals(run),
        "cores_elsewhere": elsewhere.cores,
    }


def refusals(run: Run) -> dict[str, Any]:
    """How soon those hear of it who are turned away, and whether they are told when to return."""
    turned = [shot for shot in run.shots if shot.status not in (0, 200)]
    if not turned:
        return {}
    waits = sorted(1000 * (shot.ended - shot.sent) for shot in turned)
    return {
        "count": len(turned),
        "p50_ms": round(statistics.median(waits), 1),
        "retry_after": sum(bool(shot.retry_after) for shot in turned),
    }


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The table: a row for each contender, in their order; ratios are to our server as it comes."""
    ours = results.get("ternaus", {}).get("per_s")
    return [
        row(contender.name, results[contender.name], ours)
        for contender in CONTENDERS
        if contender.name in results
    ]


def row(name: str, found: dict[str, Any], ours: float | None) -> dict[str, Any]:
    """The figures of one contender, or that there are none."""
    stands, bounds = found.get("as_it_stands", {}), found.get("with_bounds", {})
    beside, left = found.get("beside_damaged", {}), found.get("left", {})
    failed = "error" in found
    return {
        "name": name,
        "pictures/s": found.get("per_s"),
        "of ours": round(found["per_s"] / ours, 3) if ours and not failed else None,
        "alone ms": found.get("lone_ms"),
        "p99 ms": found.get("p99_ms"),
        "CPU ms": found.get("cpu_ms"),
        "MB": None if failed else round(found["peak_bytes"] / 1e6),
        "differ %": None if failed else round(100 * found["differing"], 4),
        "beside damaged": f"{beside['answered']}/{beside['good']}" if beside else None,
        "bad": beside.get("bad"),
        "for left": left.get("computed_for_them"),
        "3x": stands.get("of_capacity"),
        "3x p99 ms": stands.get("p99_ms"),
        "3x bounded": bounds.get("of_capacity"),
        "error": found["error"][:60] if failed else None,
    }


if __name__ == "__main__":
    main()
