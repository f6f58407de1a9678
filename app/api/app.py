"""The one assembly point: settings in, an application out. Two can live in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
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
from app.api.segment import Receive, Scope, SegmentEndpoint, Send, request_id_of
from app.errors import BadParameter, TernausError
from app.serving.admission import Bounds
from app.serving.catalog import OpenEngine, Resolve
from app.serving.house import House, Rules
from app.settings import Settings


def rules_of(settings: Settings) -> Rules:
    """The plain values that serving needs."""
    return Rules(
        bounds=Bounds(
            max_requests=settings.max_requests,
            max_body_bytes=settings.max_body_bytes,
            max_body_bytes_in_flight=settings.max_body_bytes_in_flight,
            max_pixels_in_flight=settings.max_pixels_in_flight,
        ),
        max_pixels=settings.max_pixels,
        max_decoded_bytes=settings.max_decoded_bytes,
        whole_pixels=settings.whole_pixels,
        tile=settings.tile,
        default_model=settings.default_model,
        host_threads=settings.host_threads,
        tiles_in_flight=settings.tiles_in_flight,
        max_batch=settings.max_batch,
        max_batch_pixels=settings.max_batch_pixels,
        max_hold_s=settings.max_hold_ms / 1000,
        stall_after_s=settings.stall_after_s,
        canary_s=settings.canary_s,
    )


class Application(FastAPI):
    """FastAPI, with the hot path in front of it: where no middleware was added, a picture goes
    straight to its endpoint, past the layers that have nothing to do for it (0.1 ms of 0.9).
    """

    endpoint: SegmentEndpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] == self.endpoint.route
            and scope["method"] == "POST"
            and not self.user_middleware
        ):
            await self.endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


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
    house = House(rules_of(settings), resolve=resolve, open_engine=open_engine, on_lost=on_failure)

    async def open_models() -> None:
        try:
            await house.open(await asyncio.to_thread(labels))
        except Exception as exc:
            on_failure(exc)
            if wait:
                raise

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(open_models())
        try:
            if wait:
                await opening
            yield
        finally:
            opening.cancel()
            await asyncio.wait((opening,))
            await house.close()

    app = Application(
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
    app.endpoint = endpoint
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
