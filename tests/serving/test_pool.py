"""Host threads behave as the standard library's executor does, which is asked beside them."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.serving.pool import HostPool

PATIENCE = 60.0
Run = Callable[..., "asyncio.Future[Any]"]


class Library:
    """The executor of the standard library, with our names."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads)

    def run(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def close(self) -> None:
        self._executor.shutdown()


@pytest.fixture(params=[HostPool, Library])
def pool(request: pytest.FixtureRequest) -> Iterator[HostPool | Library]:
    made = request.param(1)
    yield made
    made.close()


def test_gives_back_what_the_work_returns(pool: HostPool) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(pool.run(pow, 2, n) for n in range(50)))

    assert asyncio.run(main()) == [2**n for n in range(50)]


def test_works_beside_the_loop(pool: HostPool) -> None:
    async def main() -> int:
        return await pool.run(threading.get_ident)

    assert asyncio.run(main()) != threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("k"), SystemExit(3)])
def test_gives_back_what_the_work_raises(pool: HostPool, error: BaseException) -> None:
    def work() -> None:
        raise error

    async def main() -> BaseException:
        future = pool.run(work)
        await asyncio.wait([future], timeout=PATIENCE)
        caught = future.exception()
        assert caught is not None
        # And the thread lives on.
        assert await pool.run(pow, 2, 3) == 8
        return caught

    assert asyncio.run(main()) is error


def test_stop_iteration_is_an_error_like_others() -> None:
    # Of ours alone: before Python 3.12 the library's future never ends.
    pool = HostPool(1)

    async def main() -> None:
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(pool.run(next, iter(())), PATIENCE)

    asyncio.run(main())
    pool.close()


def test_what_is_cancelled_before_it_begins_is_dropped(pool: HostPool) -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def block() -> None:
        begun.set()
        go.wait(PATIENCE)

    async def main() -> None:
        first = pool.run(block)
        while not begun.is_set():
            await asyncio.sleep(0.001)
        second, third = pool.run(done.append, "second"), pool.run(done.append, "third")
        second.cancel()
        # One turn: the library tells its own future so by a callback.
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, third)

    asyncio.run(main())
    assert done == ["third"]


def test_what_is_cancelled_at_work_is_finished_and_forgotten(pool: HostPool) -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        go.wait(PATIENCE)
        done.append("finished")

    async def main() -> None:
        future = pool.run(work)
        while not begun.is_set():
            await asyncio.sleep(0.001)
        future.cancel()
        go.set()
        await pool.run(int)
        assert future.cancelled()

    asyncio.run(main())
    assert done == ["finished"]


def test_closing_finishes_what_was_taken(pool: HostPool) -> None:
    done: list[int] = []

    async def main() -> None:
        futures = [pool.run(done.append, n) for n in range(20)]
        await asyncio.to_thread(pool.close)
        await asyncio.gather(*futures)
        with pytest.raises(RuntimeError):
            pool.run(done.append, 20)

    asyncio.run(main())
    assert done == list(range(20))


def test_a_loop_that_is_gone_hurts_nobody(pool: HostPool) -> None:
    go = threading.Event()

    async def leave() -> None:
        pool.run(go.wait, PATIENCE)

    async def stay() -> int:
        return await pool.run(pow, 3, 3)

    asyncio.run(leave())
    go.set()
    assert asyncio.run(stay()) == 27


def test_an_idle_thread_keeps_nothing(pool: HostPool) -> None:
    class Picture:
        pass

    picture = Picture()
    seen = weakref.ref(picture)

    def work(_: Picture) -> Picture:
        raise ValueError("a damaged one")

    async def main() -> None:
        nonlocal picture
        future = pool.run(work, picture)
        await asyncio.wait([future], timeout=PATIENCE)
        assert isinstance(future.exception(), ValueError)
        # Another job: the thread is done with the first for certain.
        await pool.run(int)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        del picture
        assert seen() is None
    finally:
        gc.enable()
