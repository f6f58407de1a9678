"""One cache of converted models for all journeys: the first start converts, the others are warm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.journeys.process import Process, serving


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def server(warm_cache: str) -> Iterator[Process]:
    environment = {
        "TERNAUS_CACHE_DIR": warm_cache,
        "TERNAUS_DRAIN_GRACE_S": "0",
        # So that half a megapixel is large: it comes in tiles.
        "TERNAUS_WHOLE_PIXELS": "400000",
        "TERNAUS_TILE": "512",
    }
    with serving(**environment) as process:
        process.wait_ready()
        yield process
