"""Which models answer, what they say of themselves, and, for whoever has the admin key, which."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request

from app.api.keys import Keys
from app.errors import BadParameter, BodyTooLarge, BodyTooSlow, KeyRequired, MalformedRequest
from app.serving.house import House

# `{"version": 12}` and what a client may add of white space.
_BODY_BYTES = 4096

_LAST = 999_999_999
_VERSION = {"type": "integer", "minimum": 1, "maximum": _LAST}


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
        return _described(house, name)

    return router


def change_routes(house: House, keys: Keys, body_timeout_s: float) -> APIRouter:
    """`/models/{name}/load` and `/models/{name}/unload`, for those who know one of `keys`."""
    router = APIRouter(tags=["models"])

    def check(request: Request) -> None:
        if not keys.known(dict(request.scope["headers"])):
            raise KeyRequired("this needs the admin key: `Authorization: Bearer KEY`")

    # The body is read by hand: FastAPI would read any amount of it before the key is looked at.
    @router.post(
        "/models/{name}/load",
        summary="Open or change a model",
        responses=_problems(400, 401, 404, 500, 503),
        openapi_extra={
            "security": [{"admin": []}],
            "parameters": [{"name": "version", "in": "query", "schema": _VERSION}],
            "requestBody": {
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {"version": _VERSION},
                            "additionalProperties": False,
                        }
                    }
                }
            },
        },
    )
    async def load(name: str, request: Request) -> dict[str, Any]:
        """Answers once the version (the newest of the store, if none is named) answers to its name.
        It is opened and tested beside the one that it replaces, which serves until then, finishes
        what it has, and is closed. What fails changes nothing."""
        check(request)
        version = await _version(request, body_timeout_s)
        if version is not None and "@" in name:
            raise BadParameter(f"`{name}` names a version already; say it once")
        done = await house.load(name if version is None else f"{name}@{version}")
        return {"model": done.model, "replaced": done.replaced, "opened": done.opened}

    @router.post(
        "/models/{name}/unload",
        summary="Close a model",
        responses=_problems(401, 404, 409, 503),
        openapi_extra={"security": [{"admin": []}]},
    )
    async def unload(name: str, request: Request) -> dict[str, Any]:
        """Answers once every open version of `name`, or the one of `name@version`, is closed; it
        finishes what it has. The last model, and that of TERNAUS_DEFAULT_MODEL, stay."""
        check(request)
        return {"unloaded": await house.unload(name)}

    return router


def _described(house: House, name: str) -> dict[str, Any]:
    label = house.catalog.get(name).spec.label
    return next(m for m in house.catalog.describe() if f"{m['name']}@{m['version']}" == label)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": words, "content": {"application/problem+json": {"schema": schema}}}
        for status, words in {
            400: "not understood",
            401: "the admin key is needed",
            404: "no such model or version",
            409: "it must stay open",
            500: "the version could not be opened; nothing has changed",
            503: "starting or shutting down, or the engine is gone",
        }.items()
        if status in statuses
    }


async def _version(request: Request, timeout_s: float) -> int | None:
    """From the query or the body, where one of them names a version."""
    query = dict(request.query_params)
    asked: dict[str, Any] = {name: _number(value) for name, value in query.items()}
    body = await _body(request, timeout_s)
    if body:
        try:
            told = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise MalformedRequest(f"the body is not JSON: {exc}") from exc
        if not isinstance(told, dict):
            raise MalformedRequest('the body must be an object such as {"version": 2}')
        if asked.keys() & told.keys():
            raise BadParameter("`version` stands in the query and in the body; say it once")
        asked |= told
    version = asked.pop("version", None)
    if asked:
        raise BadParameter(f"unknown parameter `{next(iter(asked))[:100]}`; known: version")
    if version is not None and not (type(version) is int and 1 <= version <= _LAST):
        raise BadParameter("`version` must be a whole number from 1 to 999,999,999")
    return version


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


async def _body(request: Request, timeout_s: float) -> bytes:
    found = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                found += part
                if len(found) > _BODY_BYTES:
                    raise BodyTooLarge(f"the body is larger than {_BODY_BYTES:,} bytes")
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come within {timeout_s:g} s") from None
    return found
