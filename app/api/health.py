"""Probes and figures. A probe reports what was observed, is cheap, and is never behind the
queue.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from app.serving.house import House


def health_routes(house: House, about: dict[str, Any]) -> APIRouter:
    """`/health`, `/health/live`, `/health/ready`, `/metrics`."""
    router = APIRouter(tags=["health"])

    def probe(key: str, good: bool) -> JSONResponse:
        return JSONResponse(
            {key: good, "state": house.state},
            status_code=200 if good else 503,
            headers={"cache-control": "no-store"},
        )

    @router.get(
        "/health/live",
        summary="Liveness",
        responses={503: {"description": "a restart is needed"}},
    )
    async def live() -> JSONResponse:
        """200 unless only a restart would help: the engine is lost, or work waits and none ends."""
        return probe("live", house.live)

    @router.get(
        "/health/ready",
        summary="Readiness",
        responses={503: {"description": "send requests elsewhere"}},
    )
    async def ready() -> JSONResponse:
        """200 while new requests are welcome: every model gave its own sample's mask on this
        device, the device makes progress, and the server is not shutting down."""
        return probe("ready", house.ready)

    @router.get("/health", summary="Health, for people")
    async def health() -> JSONResponse:
        """Models, engines and the settings they found, queue and limits, as JSON."""
        return JSONResponse({**house.describe(), **about}, headers={"cache-control": "no-store"})

    @router.get(
        "/metrics",
        summary="Metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Prometheus text format."""
        return Response(
            house.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return router
