"""The client against a real server; its retries against a transport that obeys orders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.api.problems import problem
from app.client import Client, error_of
from app.encodings import base as encodings
from app.errors import (
    BadParameter,
    DeadlineExceeded,
    ModelNotFound,
    Overloaded,
    PictureUnsupported,
    TernausError,
    Unavailable,
    every_error,
)
from tests.server import Running, encoded, picture, running, truth


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store")) as found:
        yield found


def test_picture_in_mask_out(server: Running, tmp_path: Path) -> None:
    pixels = picture()
    (tmp_path / "roof.png").write_bytes(encoded(pixels))
    with Client(server.url) as client:
        reply = client.segment(tmp_path / "roof.png", request_id="mine")
        planes = encodings.get("png").decode(reply.content)
        assert (planes[0] == truth(pixels)).all()
        assert (reply.model, reply.request_id) == ("fake@1", "mine")
        assert set(reply.timings_ms) == {"receive", "decode", "queue", "infer", "encode"}
        rle = client.segment(encoded(pixels), format="rle", threshold=0.25).json()
        assert rle["classes"][0]["area"] == np.count_nonzero(truth(pixels, 0.25))
        assert client.models()[0]["name"] == "fake"
        assert client.health()["ready"]


def test_errors_of_the_server_are_the_clients(server: Running) -> None:
    with Client(server.url) as client:
        with pytest.raises(ModelNotFound, match="fake@1"):
            client.segment(encoded(picture()), model="nobody")
        with pytest.raises(BadParameter, match="unknown format"):
            client.segment(encoded(picture()), format="gif")
        with pytest.raises(PictureUnsupported):
            client.segment(b"hello")


@pytest.mark.parametrize("error", list(every_error()), ids=lambda error: error.__name__)
def test_every_error_survives_the_way(error: type[TernausError]) -> None:
    options = {"stage": "queue"} if issubclass(error, DeadlineExceeded) else {}
    sent = error("what was wrong", limit="TERNAUS_X", limit_value=3, **options)
    if isinstance(sent, Unavailable):
        sent.retry_after_s = 2.5
    status, _, body = problem(sent, request_id="r", instance="/segment")
    back = error_of(httpx.Response(status, content=body))
    assert type(back) is error
    assert back.members() == sent.members()
    assert str(back) == "what was wrong"


def test_foreign_page_is_an_error_too() -> None:
    assert "502" in str(error_of(httpx.Response(502, text="<html>bad gateway</html>")))


class Orders:
    """Answers in turn; time passes only by sleeping."""

    def __init__(self, *errors: TernausError) -> None:
        self.errors = list(errors)
        self.now = 0.0
        self.timeouts: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.timeouts.append(int(request.headers["x-request-timeout-ms"]))
        if not self.errors:
            return httpx.Response(200, content=b"mask")
        status, _, body = problem(self.errors.pop(0), request_id="r", instance="/segment")
        return httpx.Response(status, content=body)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def client(self, patience_s: float) -> Client:
        return Client(
            "http://server",
            patience_s=patience_s,
            transport=httpx.MockTransport(self),
            sleep=self.sleep,
            clock=lambda: self.now,
        )


def test_overload_is_waited_out() -> None:
    orders = Orders(Overloaded("busy", retry_after_s=2.0), Overloaded("busy", retry_after_s=3.0))
    with orders.client(10.0) as client:
        assert client.segment(b"x").content == b"mask"
    assert orders.timeouts == [10_000, 8_000, 5_000]


def test_patience_ends() -> None:
    orders = Orders(Overloaded("busy", retry_after_s=20.0))
    with orders.client(10.0) as client, pytest.raises(Overloaded):
        client.segment(b"x")
    assert json.dumps(orders.timeouts) == "[10000]"
