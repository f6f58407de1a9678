"""Which models answer, and what they say of themselves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.serving.house import House


def model_routes(house: House) -> APIRouter:
    """`/models` and `/models/{name}`."""
    router = APIRouter(tags=["models"])

    @router.get("/models", summary="Open models")
    async def models() -> dict[str, Any]:
        """Every open model: name, version, classes with colours, threshold, engine."""
        return {"models": house.catalog.describe() if house.catalog.ready else []}

    @router.get("/models/{name}", summary="One model", responses={404: {"description": "not open"}})
    async def model(name: str) -> dict[str, Any]:
        """`name` or `name@version`."""
        label = house.catalog.get(name).spec.label
        return next(m for m in house.catalog.describe() if f"{m['name']}@{m['version']}" == label)

    return router
