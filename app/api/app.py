"""The one assembly point: settings in, an application out. Two can live in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from app import __version__
from app.api.connections import Line
from app.api.docs import ANSWERS, docs_routes, openapi_of
from app.api.health import health_routes
from app.api.journal import Journal
from app.api.keys import Keys
from app.api.models import change_routes, model_routes
from app.api.problems import MEDIA_TYPE, document, problem
from app.api.reception import Reception
from app.api.segment import SegmentEndpoint
from app.api.visits import Tracing, Visit, visit_of
from app.errors import BadParameter, SettingsError, TernausError
from app.serving.catalog import OpenEngine, Resolve
from app.serving.changes import Newest
from app.serving.house import House
from app.serving.metrics import Metrics
from app.serving.rules import rules_of
from app.settings import Settings

__all__ = ["build_app", "create_app", "line_of", "rules_of"]

log = logging.getLogger("ternaus.api")


# What pages of other origins may send and read.
_ASKED = ("Authorization", "Content-Type", "X-Api-Key", "X-Request-Id", "X-Request-Timeout-Ms")
_TOLD = (*ANSWERS, "Retry-After", "Traceparent")


def create_app(
    settings: Settings,
    *,
    labels: Callable[[], tuple[str, ...]],
    resolve: Resolve,
    open_engine: OpenEngine,
    newest: Newest | None = None,
    on_failure: Callable[[BaseException], None] = lambda exc: None,
    wait: bool = False,
) -> FastAPI:
    """The HTTP application; `app.state.house` is what serves.

    `labels` says which models to open, `resolve` finds one in the store and `open_engine` places it
    on the device; all three are called on a thread once the server listens, so that probes answer
    meanwhile. `newest` looks for the newest version of a name; without it `resolve` does, at the
    cost of verifying its files. `on_failure` hears of a model that could not be opened and of a
    lost engine. With `wait` the application is not up before its models are open, and does not come
    up without them.
    """
    house = House.local(
        rules_of(settings),
        resolve=resolve,
        open_engine=open_engine,
        newest=newest,
        on_lost=on_failure,
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
    keys = keys_of(settings)
    journal = Journal(settings.access_log)
    tracing, stop_tracing = _tracing(settings)

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
            # Spans on their way may have to wait for a collector.
            await asyncio.to_thread(stop_tracing)

    app = FastAPI(
        title="TernausNet Serve",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # Our own spans and figures are in use; FastAPI would look for others at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
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
        journal=journal,
        tracing=tracing,
    )
    app.router.routes.append(Route(endpoint.route, endpoint, methods=["POST"]))
    app.include_router(health_routes(house, _about(settings)))
    app.include_router(model_routes(house))
    admins = Keys(settings.admin_keys())
    if admins:
        app.include_router(change_routes(house, admins, settings.body_timeout_s))
    app.include_router(docs_routes(app))
    app.openapi = lambda: openapi_of(app, keys=bool(keys))  # type: ignore[method-assign]
    _add_error_handlers(app, settings)
    app.add_middleware(
        Reception,
        pictures=endpoint,
        keys=keys,
        journal=journal,
        metrics=house.metrics,
        clock=house.clock,
    )
    if settings.cors_origins:
        # Outside of the keys: browsers ask for leave without one.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=(*_ASKED, "Traceparent", "Tracestate"),
            expose_headers=_TOLD,
        )
    return app


def line_of(settings: Settings, metrics: Metrics) -> Line:
    """What connections may do."""
    return Line(
        max_connections=settings.max_connections,
        max_url_bytes=settings.max_url_bytes,
        max_header_bytes=settings.max_header_bytes,
        max_headers=settings.max_headers,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        send_timeout_s=settings.send_timeout_s,
        cut=lambda reason: metrics.cut.labels(reason).inc(),
        logged=settings.access_log == "all",
    )


def keys_of(settings: Settings) -> Keys:
    """The keys that open this server; none where no client key is set. An admin's key opens it too.

    Raises SettingsError for a file of keys that cannot be read.
    """
    clients, admins = settings.client_keys(), settings.admin_keys()
    if not clients and settings.api_key.get_secret_value():
        raise SettingsError(
            "`TERNAUS_API_KEY` is what a client sends, and this server would ask for none\n"
            "hint: `TERNAUS_API_KEYS` is what a server asks for"
        )
    return Keys((*clients, *admins) if clients else ())


def _tracing(settings: Settings) -> tuple[Tracing | None, Callable[[], None]]:
    """Who hears of requests as spans, and how to stop it. Imports nothing where nobody does."""
    if not settings.traced():
        return None, lambda: None
    try:
        from app.api.telemetry import Spans
    except ModuleNotFoundError as exc:
        words = f"no spans: {exc.name} is missing; install `ternausnet-serve[telemetry]`"
        if settings.tracing == "on":
            raise SettingsError(f"`TERNAUS_TRACING` is on, but {words}") from exc
        log.warning(words)
        return None, lambda: None
    spans = Spans.exporting()
    return spans, spans.close


def _about(settings: Settings) -> dict[str, Any]:
    hidden = {"cache_dir", "host", "port", "model_store"}
    hidden |= {"admin_key", "admin_key_file", "api_keys", "api_keys_file", "api_key"}
    return {"version": __version__, "settings": settings.model_dump(mode="json", exclude=hidden)}


def _add_error_handlers(app: FastAPI, settings: Settings) -> None:
    """Every other route tells of its errors in the same form."""

    def visit(request: Request, reason: str) -> Visit:
        found: Visit | None = getattr(request.state, "visit", None)
        found = found or visit_of(request.scope, dict(request.scope["headers"]), 0.0)
        found.reason = reason
        return found

    async def known(request: Request, exc: Exception) -> Response:
        seen = visit(request, getattr(exc, "code", TernausError.code))
        status, headers, body = problem(
            exc,
            request_id=seen.request_id,
            trace_id=seen.trace_id,
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
        seen = visit(request, code)
        body = document(
            exc.status_code,
            code=code,
            title=str(exc.detail),
            detail=detail,
            request_id=seen.request_id,
            instance=request.url.path,
            **({"trace_id": seen.trace_id} if seen.trace_id else {}),
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
