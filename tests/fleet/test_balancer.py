"""What operators do to a fleet, and what happens to it, under load: who loses how much."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fleet.load import Load, steady_load
from tests.fleet.processes import Fleet, Replica, fleet, until
from tests.server import encoded, picture

pytestmark = pytest.mark.fleet

# Any of these is noticed while the request is still on its way through the balancer.
A_MOMENT_S = 0.25


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet"), reply_timeout="6s") as started:
        yield started


def wait_replies(load: Load, count: int, *, from_all: Fleet | None = None) -> None:
    """Until so many more have come, in which every replica of `from_all` has a part."""
    begun = len(load.replies)

    def enough() -> bool:
        assert not load.failed, load.failed
        came = load.replies[begun:]
        parts = {reply.replica for reply in came if reply.right}
        wanted = {replica.name for replica in from_all.replicas} if from_all else set()
        return len(came) >= count and wanted <= parts

    until(enough, f"{count} more replies")


def test_rolling_restart_loses_no_request(three: Fleet) -> None:
    with steady_load(three.url) as load:
        wait_replies(load, 20, from_all=three)
        for replica in three.replicas:
            before = replica.program.popen.pid
            replica.program.signal(signal.SIGTERM)
            assert replica.program.wait() == 0, replica.program.text
            replica.start()
            assert replica.program.popen.pid != before
            three.balancer.wait_up(replica.name)
            wait_replies(load, 20, from_all=three)
    assert not load.lost
    assert len(load.replies) > 100


def test_model_is_changed_on_every_replica_and_no_request_is_lost(tmp_path: Path) -> None:
    """One replica after the other, each told by itself: the balancer lets nobody do it."""
    admin = {"authorization": "Bearer sesame"}
    with fleet(tmp_path, TERNAUS_ADMIN_KEY="sesame") as three:
        through = httpx.post(f"{three.url}/models/fake/load", headers=admin, trust_env=False)
        assert through.status_code == 404
        assert "balancer" in through.text
        with steady_load(three.url) as load:
            wait_replies(load, 20, from_all=three)
            for replica in three.replicas:
                answer = httpx.post(
                    f"{replica.url}/models/fake/load",
                    headers=admin,
                    timeout=60,
                    trust_env=False,
                )
                assert answer.status_code == 200, answer.text
                assert answer.json()["replaced"] == "fake@1"
                wait_replies(load, 20, from_all=three)
            changed = time.monotonic()
            wait_replies(load, 20, from_all=three)
        assert not load.lost
        assert {reply.model for reply in load.after(changed)} == {"fake@2"}
        for replica in three.replicas:
            assert set(load.models(replica.name)) == {"fake@1", "fake@2"}
            until(
                lambda replica=replica: "fake@1 is closed" in replica.program.text,  # type: ignore[misc]
                "the old engine is closed",
            )
            assert three.balancer.up(replica.name)


def test_killed_replica_loses_only_what_it_had(three: Fleet) -> None:
    victim = three.replicas[1]
    with steady_load(three.url) as load:
        wait_replies(load, 20, from_all=three)
        inside = len(load.pending)
        killed = time.monotonic()
        victim.program.signal(signal.SIGKILL)
        assert victim.program.wait() == -signal.SIGKILL
        three.balancer.wait_down(victim.name)
        wait_replies(load, 30)
        victim.start()
        three.balancer.wait_up(victim.name)
        wait_replies(load, 20, from_all=three)
    lost = load.lost
    # What it had in flight began before it was killed; later ones went elsewhere, though the
    # balancer did not know yet: a refused connection is tried on another replica.
    assert all(reply.begun <= killed + A_MOMENT_S for reply in lost), lost
    assert len(lost) <= inside
    # HAProxy says 502 on a client's first request, and on a kept-alive connection just closes it:
    # the client is to try again (RFC 9112, section 9.3.1).
    assert {reply.status for reply in lost} <= {0, 502}, lost
    assert all("replica_lost" in reply.words for reply in lost if reply.status == 502)


def test_hung_replica_loses_nothing_once_the_balancer_noticed(three: Fleet) -> None:
    victim = three.replicas[2]
    with steady_load(three.url) as load:
        wait_replies(load, 20, from_all=three)
        stopped = time.monotonic()
        victim.program.signal(signal.SIGSTOP)
        try:
            took = three.balancer.wait_down(victim.name)
            noticed = time.monotonic()
            wait_replies(load, 30)
        finally:
            victim.program.signal(signal.SIGCONT)
        three.balancer.wait_up(victim.name)
        wait_replies(load, 20, from_all=three)
    lost = load.lost
    assert took < 10
    assert all(stopped - 6 < reply.begun < noticed + A_MOMENT_S for reply in lost), lost
    # Least connections: it is given no more while the others have fewer inside.
    assert len(lost) <= 3, lost
    assert {reply.status for reply in lost} <= {504}, lost
    assert not [reply for reply in load.after(noticed + A_MOMENT_S) if reply.lost]


def test_refused_request_is_served_by_another_replica(tmp_path: Path) -> None:
    """One without grace refuses at once; the balancer has not noticed and nobody is the wiser."""
    with fleet(tmp_path, 2, batch_s=0.4, TERNAUS_DRAIN_GRACE_S="0") as two:
        with steady_load(two.url, large_every=0) as load:
            wait_replies(load, 10, from_all=two)
            leaving = two.replicas[0]
            leaving.program.signal(signal.SIGTERM)
            assert leaving.program.wait() == 0, leaving.program.text
            leaving.start()
            two.balancer.wait_up(leaving.name)
            wait_replies(load, 10, from_all=two)
        assert not load.lost
        # They were refused, and sent again: the balancer counts them.
        assert int(two.balancer.rows()[leaving.name]["wretr"]) > 0


def full(replica: Replica) -> bool:
    figures = httpx.get(f"{replica.url}/health", trust_env=False).json()["figures"]
    return bool(figures["requests"] >= 1)


def test_refusal_of_a_full_fleet_reaches_the_client_with_retry_after(tmp_path: Path) -> None:
    with fleet(tmp_path, 2, batch_s=2.0, TERNAUS_MAX_REQUESTS="1") as two:
        data = encoded(picture())
        with steady_load(two.url, clients=2, pause_s=0.0, large_every=0):
            until(lambda: all(full(replica) for replica in two.replicas), "both are full")
            answer = httpx.post(f"{two.url}/segment", content=data, timeout=30, trust_env=False)
        assert answer.status_code == 503
        assert answer.json()["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1


def test_balancer_says_so_when_no_replica_is_ready(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as one:
        one.replicas[0].program.signal(signal.SIGKILL)
        one.balancer.wait_down("replica1")
        answer = httpx.post(f"{one.url}/segment", content=b"x", timeout=30, trust_env=False)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["code"] == "not_ready"
        assert httpx.get(f"{one.url}/metrics", trust_env=False).status_code == 404
