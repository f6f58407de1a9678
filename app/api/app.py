"""The one assembly point: settings in, an application out. Two can live in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from app import __version__
from app.api.docs import docs_routes, openapi_of
from app.api.health import health_routes
from app.api.models import model_routes
from app.api.problems import MEDIA_TYPE, document, problem
from app.api.segment import SegmentEndpoint, request_id_of
from app.errors import BadParameter, TernausError
from app.serving.catalog import OpenEngine, Resolve
from app.serving.house import House
from app.serving.rules import rules_of
from app.settings import Settings

__all__ = ["build_app", "create_app", "rules_of"]


def create_app(
    settings: Settings,
    *,
    labels: Callable[[], tuple[str, ...]],
    resolve: Resolve,
    open_engine: OpenEngine,
    on_failure: Callable[[BaseException], None] = lambda exc: None,
    wait: bool = False,
) -> FastAPI:
    """The HTTP application; `app.state.house` is what serves.

    `labels` says which models to open, `resolve` finds one in the store and `open_engine` places it
    on the device; all three are called on a thread once the server listens, so that probes answer
    meanwhile. `on_failure` hears of a model that could not be opened and of a lost engine. With
    `wait` the application is not up before its models are open, and does not come up without them.
    """
    house = House.local(
        rules_of(settings), resolve=resolve, open_engine=open_engine, on_lost=on_failure
    )

    async def open_models() -> None:
        try:
            await house.open(await asyncio.to_thread(labels))
        except Exception as exc:
            on_failure(exc)
            if wait:
                raise

    return build_app(settings, house, opening=open_models, wait=wait)


def build_app(
    settings: Settings,
    house: House,
    *,
    opening: Callable[[], Coroutine[Any, Any, None]],
    wait: bool = False,
) -> FastAPI:
    """The HTTP application in front of `house`; `opening` opens it once the server listens, or,
    with `wait`, before.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(opening())
        try:
            if wait:
                await task
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            await house.close()

    app = FastAPI(
        title="TernausNet Serve",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.house = house
    endpoint = SegmentEndpoint(
        segmenter=house.segmenter,
        admission=house.admission,
        metrics=house.metrics,
        clock=house.clock,
        request_timeout_s=settings.request_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        overload_status=settings.overload_status,
        closing=lambda: house.draining,
    )
    app.router.routes.append(Route(endpoint.route, endpoint, methods=["POST"]))
    app.include_router(health_routes(house, _about(settings)))
    app.include_router(model_routes(house))
    app.include_router(docs_routes(app))
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]
    _add_error_handlers(app, settings)
    return app


def _about(settings: Settings) -> dict[str, Any]:
    shown = settings.model_dump(mode="json", exclude={"cache_dir", "host", "port", "model_store"})
    return {"version": __version__, "settings": shown}


def _add_error_handlers(app: FastAPI, settings: Settings) -> None:
    """Every other route tells of its errors in the same form."""

    async def known(request: Request, exc: Exception) -> Response:
        status, headers, body = problem(
            exc,
            request_id=request_id_of(dict(request.scope["headers"])),
            instance=request.url.path,
            overload_status=settings.overload_status,
        )
        return Response(body, status, {k.decode(): v.decode() for k, v in headers})

    async def routing(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(
            exc.status_code, "http_error"
        )
        detail = {
            404: f"there is nothing at `{request.url.path}`; `/` says where to go",
            405: f"`{request.url.path}` does not take {request.method}",
        }.get(exc.status_code, str(exc.detail))
        body = document(
            exc.status_code,
            code=code,
            title=str(exc.detail),
            detail=detail,
            request_id=request_id_of(dict(request.scope["headers"])),
            instance=request.url.path,
        )
        return Response(body, exc.status_code, dict(exc.headers or {}), media_type=MEDIA_TYPE)

    async def invalid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        first = exc.errors()[0]
        return await known(request, BadParameter(f"`{first['loc'][-1]}`: {first['msg']}"))

    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, known)
    app.add_exception_handler(TernausError, known)
