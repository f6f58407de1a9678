"""The load generator against real servers: every request is sent, answered and counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from app.bench.load import Load, drive
from app.bench.messages import Target, message
from app.bench.shots import Run
from app.errors import BadParameter
from tests.server import Running, encoded, picture, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store")) as found:
        yield found


def counted(server: Running, reason: str) -> float:
    """Pictures that ended so, by the server's own books."""
    for line in server.client.get("/metrics").text.splitlines():
        if line.startswith(f'ternaus_images_total{{outcome="{reason}"}}'):
            return float(line.split()[1])
    return 0.0


@pytest.mark.parametrize("form", [False, True])
def test_closed_loop_counts_what_the_server_counts(server: Running, form: bool) -> None:
    target = Target.of(server.url)
    before = counted(server, "ok")
    load = Load(target, [message(target, encoded(picture()), form=form)])
    run = drive(partial(load.closed, clients=3, seconds=0.3))
    assert run.statuses() == {200: len(run.shots)}
    # What was on its way when the time was up is awaited, and counted by the server alone.
    assert counted(server, "ok") - before == run.requests
    assert 3 < len(run.shots) <= run.requests <= len(run.shots) + 3
    assert list(run.stages_ms()) == ["receive", "decode", "queue", "infer", "encode"]
    assert all(shot.size_bytes > 50 for shot in run.shots)


def test_open_loop_sends_what_was_drawn_whatever_the_server_does(server: Running) -> None:
    target = Target.of(server.url)
    load = Load(target, [message(target, encoded(picture()))], seed=3)

    def once() -> Run:
        return drive(partial(load.opened, rate=200, seconds=0.5))

    first, second = once(), once()
    assert first.statuses() == {200: len(first.shots)}
    assert len(first.shots) == len(second.shots), "the same seed drew other moments"
    gaps = [shot.due - first.begun for shot in sorted(first.shots, key=lambda s: s.due)]
    again = [shot.due - second.begun for shot in sorted(second.shots, key=lambda s: s.due)]
    assert gaps == pytest.approx(again, abs=1e-6)


def test_damaged_pictures_and_leavers_reach_the_server_as_such(server: Running) -> None:
    target = Target.of(server.url)
    data = encoded(picture(400, 600), "JPEG")
    damaged = counted(server, "picture_damaged")
    load = Load(
        target,
        [message(target, data)],
        damaged=[message(target, data[: len(data) // 2])],
        damaged_share=0.3,
        leaver_share=0.3,
    )
    run = drive(partial(load.opened, rate=300, seconds=0.5))
    kinds = {kind: sum(s.kind == kind for s in run.shots) for kind in ("damaged", "leaver")}
    assert min(kinds.values()) > 10
    assert run.statuses() == {200: len(run.shots) - sum(kinds.values())}
    assert {s.status for s in run.shots if s.kind == "damaged"} == {422}
    assert counted(server, "picture_damaged") - damaged == kinds["damaged"]


def test_closed_loop_to_the_end_counts_every_answer(server: Running) -> None:
    target = Target.of(server.url)
    load = Load(target, [message(target, encoded(picture()))])
    run = drive(partial(load.closed, clients=3, seconds=0.0, to_the_end=True))
    assert run.statuses() == {200: 3}
    assert run.requests == 3
    assert run.seconds == max(shot.ended for shot in run.shots) - run.begun


def test_volley_is_just_what_was_asked_for(server: Running) -> None:
    target = Target.of(server.url)
    data = encoded(picture(400, 600), "JPEG")
    load = Load(
        target,
        [message(target, data)],
        damaged=[message(target, data[: len(data) // 2])],
        leave_s=0.0,
        leave_at=(1.0,),
    )
    run = drive(
        partial(
            load.volley, [(0.1, "leaver"), (0.0, "picture"), (0.0, "damaged"), (0.0, "picture")]
        )
    )
    assert run.statuses() == {200: 2}
    assert [shot.status for shot in run.shots if shot.kind == "damaged"] == [422]
    gone = next(shot for shot in run.shots if shot.kind == "leaver")
    assert gone.due - run.begun == pytest.approx(0.1)
    assert gone.status == 0


def test_waiting_in_the_client_counts_from_the_moment_it_was_due() -> None:
    """One connection, and a server that keeps its first answer until five more are due."""

    async def scenario() -> Run:
        closed = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readline():
                while (await reader.readline()).strip():
                    pass
                while len(load._waiting) < 5 and load._turn < 6:
                    await asyncio.sleep(0)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            writer.close()
            await writer.wait_closed()
            closed.set()

        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        target = Target.of(f"http://127.0.0.1:{port}")
        load = Load(target, [message(target, b"")], most_connections=1)
        async with listening:
            run = await load.opened(rate=500, seconds=0.2)
            await closed.wait()
            return run

    run = asyncio.run(scenario())
    assert len(run.shots) > 6
    assert {shot.status for shot in run.shots} == {200}
    second = sorted(run.shots, key=lambda shot: shot.due)[1]
    sixth = sorted(run.shots, key=lambda shot: shot.due)[5]
    assert second.sent >= sixth.due, "it was sent although the only connection was taken"
    assert second.seconds >= sixth.due - second.due, "its waiting was not counted"


def test_server_that_is_gone_is_told(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        url = server.url
    target = Target.of(url)
    load = Load(target, [message(target, b"x")])
    with pytest.raises(OSError, match="onnect"):
        drive(partial(load.closed, clients=2, seconds=0.1))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:port", ""])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadParameter, match="is not an address"):
        Target.of(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://a", "a", 80, "/segment?format=rle"),
        ("https://a:8443/", "a", 8443, "/segment?format=rle"),
        ("http://a:1/other?x=1", "a", 1, "/other?x=1"),
    ],
)
def test_address_keeps_what_it_says(url: str, host: str, port: int, path: str) -> None:
    target = Target.of(url, query="format=rle")
    assert (target.host, target.port, target.path) == (host, port, path)
    assert target.secure == url.startswith("https")
