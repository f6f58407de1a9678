"""`ternaus bench` against a real server, as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.bench.examination import Report, Step
from app.bench.shots import Run, Shot
from tests.server import encoded, picture, running

ROOT = Path(__file__).parent.parent.parent


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TERNAUS_")}
    return subprocess.run(
        [sys.executable, "-m", "app", "bench", *arguments],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_bench_says_what_a_server_can_do(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(encoded(picture(seed=seed)))
    with running(tmp_path) as server:
        done = bench(
            *[server.url, "--pictures", str(tmp_path / "photos"), "--seconds", "0.3"],
            *["--clients", "4", "--json", str(tmp_path / "found.json"), "--format", "rle"],
        )
        served = server.client.get("/metrics").text
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [step["clients"] for step in found["closed"]][:2] == [1, 2]
    assert found["knee_per_second"] > 0
    assert len(found["open"]) == 7
    assert 'code="200"' in served
    for words in ("closed loop", "open loop", "milliseconds by stage", "pictures/s"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:1"], "nobody answers"),
        (["nonsense"], "is not an address"),
        (["http://127.0.0.1:1", "--header", "no colon"], "a header is"),
        (["http://127.0.0.1:1", "--pictures", "app"], "there is no picture in `app`"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments: list[str], words: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 1, done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def run_of(answered: int, late: int, *, seconds: float = 10.0) -> Run:
    """`answered` pictures at once, and `late` ones after two seconds."""
    shots = [Shot(0.0, ended=took, status=200) for took in [0.1] * answered + [2.0] * late]
    return Run(tuple(shots), 0.0, seconds, 0.0, len(shots))


def test_knee_is_the_fewest_clients_that_nearly_do_it() -> None:
    steps = [Step(run_of(n, 0), clients=c) for c, n in [(1, 100), (2, 190), (4, 198), (8, 197)]]
    assert Report(1.0, tuple(steps), ()).knee.clients == 2


def test_carried_is_the_highest_load_with_99_of_100_in_time() -> None:
    steps = [
        Step(run_of(100, 0), offered=10.0),
        Step(run_of(198, 2), offered=20.0),
        Step(run_of(290, 10), offered=30.0),
        Step(run_of(400, 0), offered=40.0),  # luck: a lower load was not carried
    ]
    assert Report(1.0, (), tuple(steps)).carried == pytest.approx(19.8)
    assert Report(1.0, (), (steps[2],)).carried == 0.0
    # More came than were offered on average.
    assert Report(1.0, (), (Step(run_of(110, 0), offered=10.0),)).carried == 10.0
