"""What the service says of itself: `/`, `/docs` (Swagger UI from a package, no foreign host),
OpenAPI. Pages run no script but those of their own files, and nobody may frame them.
"""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path
from typing import Any

import swagger_ui_bundle
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response

from app import __version__
from app.api.options import options
from app.api.reception import needs_key
from app.encodings import base as encodings
from app.errors import every_error

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "td{padding:.1rem 1rem .1rem 0}pre{background:#f3f3f3;padding:.6rem;white-space:pre-wrap}"
)
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  layout: "BaseLayout",
});
"""
_DOCS = """<!doctype html><html lang="en"><meta charset="utf-8"><title>TernausNet Serve</title>
<meta name="viewport" content="width=device-width">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon-32x32.png">
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script></html>
"""


def _guarded(**sources: str) -> dict[str, str]:
    """The headers of a page that may load from these sources alone."""
    policy = {
        "default-src": "'none'",
        **{f"{kind}-src": source for kind, source in sources.items()},
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{kind} {what}" for kind, what in policy.items()),
        "referrer-policy": "no-referrer",
        # For browsers that do not know `frame-ancestors`.
        "x-frame-options": "DENY",
        "cache-control": "no-cache",
    }


def _digest(text: str) -> str:
    found = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{found}'"


_INDEX_HEADERS = _guarded(style=_digest(_STYLE))
# Swagger UI sets styles on its elements and draws icons and answers from `data:` and `blob:`.
_DOCS_HEADERS = _guarded(
    script="'self'",
    style="'self' 'unsafe-inline'",
    img="'self' data: blob:",
    connect="'self'",
)

EXAMPLES = (
    (
        "the mask as a PNG",
        "curl --data-binary @roof.jpg -H 'Content-Type: image/jpeg' {url}/segment -o mask.png",
    ),
    ("the same from a form", "curl -F file=@roof.jpg {url}/segment -o mask.png"),
    (
        "COCO RLE with area, box and score of each class",
        "curl --data-binary @roof.jpg -H 'Accept: application/json' {url}/segment",
    ),
    ("Kaggle RLE", "curl --data-binary @roof.jpg '{url}/segment?format=kaggle'"),
    (
        "another threshold, a named model",
        "curl --data-binary @roof.jpg '{url}/segment?threshold=0.4&model=buildings' -o mask.png",
    ),
    (
        "the probability map",
        "curl --data-binary @roof.jpg '{url}/segment?format=probability' -o probability.png",
    ),
)

_PLACES = (
    ("POST", "/segment", "a picture in, its mask out"),
    ("GET", "/docs", "the API, to read and to try"),
    ("GET", "/openapi.json", "the API, for programs"),
    ("GET", "/models", "which models answer"),
    ("GET", "/health", "how the server is, for people"),
    ("GET", "/health/live", "liveness probe"),
    ("GET", "/health/ready", "readiness probe"),
    ("GET", "/metrics", "Prometheus metrics"),
)


def docs_routes(app: FastAPI) -> APIRouter:
    """`/`, `/docs` and the files that it needs."""
    router = APIRouter(include_in_schema=False)
    assets = Path(swagger_ui_bundle.swagger_ui_path)

    @router.get("/")
    async def index(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            page = _page(str(request.base_url).rstrip("/"))
            return HTMLResponse(page, headers={**_INDEX_HEADERS, "vary": "Accept"})
        return JSONResponse(
            {
                "name": "TernausNet Serve",
                "version": __version__,
                "places": {path: words for _, path, words in _PLACES},
            }
        )

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS, headers=_DOCS_HEADERS)

    @router.get("/docs/start.js")
    async def start() -> Response:
        return Response(_START, media_type="text/javascript")

    @router.get("/docs/{name}")
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            return JSONResponse({"error": "no such file"}, 404)
        return FileResponse(assets / name, headers={"cache-control": "max-age=86400"})

    return router


def _page(url: str) -> str:
    places = "".join(
        f"<tr><td>{method}</td><td>"
        + (f'<a href="{path}">{path}</a>' if method == "GET" else path)
        + f"</td><td>{words}</td></tr>"
        for method, path, words in _PLACES
    )
    examples = "".join(
        f"<p>{html.escape(words)}</p><pre>{html.escape(command.format(url=url))}</pre>"
        for words, command in EXAMPLES
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>TernausNet Serve</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style>"
        f"<h1>TernausNet Serve {__version__}</h1><p>A picture in, a mask out.</p>"
        f"<table>{places}</table><h2>Examples</h2>{examples}</html>"
    )


def openapi_of(app: FastAPI, *, keys: bool = False) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's for the plain routes, ours for `/segment`. Made once.

    `keys`: this server asks for one wherever it is not said otherwise.
    """
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            # Swagger UI 4, the newest that ships as a package, reads 3.0.
            openapi_version="3.0.3",
            description=_description(),
            routes=app.routes,
        )
        # First, as it is what people come for.
        schema["paths"] = {"/segment": {"post": _segment_operation()}, **schema["paths"]}
        # FastAPI announces its own form of a refused parameter; ours are problem documents.
        schema["components"] = {"schemas": {"Problem": _PROBLEM}}
        for path in schema["paths"].values():
            for operation in path.values():
                refusal = operation["responses"].get("422", {})
                if "application/json" in refusal.get("content", {}):
                    del operation["responses"]["422"]
        if keys:
            _lock(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _lock(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if needs_key(path):
                operation["security"] = [{"bearer": []}, {"header": []}]
                operation["responses"].setdefault("401", _refusal(["key_required"]))


def _description() -> str:
    shown = "\n".join(
        f"{words}:\n\n    {command.format(url='http://localhost:8000')}\n"
        for words, command in EXAMPLES
    )
    return "A picture in, a mask out.\n\n" + shown


def _segment_operation() -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {
            "name": option.name,
            "in": "query",
            "required": False,
            "description": option.words,
            "schema": option.schema,
        }
        for option in options().values()
    ]
    parameters += [
        {
            "name": "X-Request-Timeout-Ms",
            "in": "header",
            "required": False,
            "description": "Lowers the deadline of this request, in milliseconds.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 999999999},
        },
        {
            "name": "X-Request-Id",
            "in": "header",
            "required": False,
            "description": "Comes back in the answer and stands in the log; made up where absent.",
            "schema": {"type": "string", "maxLength": 128, "pattern": "^[!-~]+$"},
        },
    ]
    picture = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": {
            "type": "object",
            "required": ["file"],
            "properties": {
                "file": {"type": "string", "format": "binary"},
                **{option.name: option.schema for option in options().values()},
            },
        }
    }
    pictures = ("jpeg", "png", "webp", "tiff", "bmp", "gif")
    return {
        "tags": ["segmentation"],
        "summary": "A picture in, its mask out",
        "description": (
            "Send the bytes of a picture as the body, or as the part `file` of a form. The mask "
            "has the size of the picture as a person sees it (EXIF turn applied). The format "
            "comes from `?format=` or from the `Accept` header."
        ),
        "operationId": "segment",
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {
                **{f"image/{kind}": picture for kind in pictures},
                "multipart/form-data": form,
                "application/octet-stream": picture,
            },
        },
        "responses": {
            "200": {
                "description": "The mask.",
                "headers": {
                    name: {"schema": {"type": "string"}, "description": words}
                    for name, words in ANSWERS.items()
                },
                "content": _answers(),
            },
            **_refusals(),
        },
    }


def _answers() -> dict[str, Any]:
    content: dict[str, Any] = {}
    for encoding in encodings.registry().values():
        kind = (
            {"type": "object"} if encoding.media_type == "application/json" else {"type": "string"}
        )
        if kind["type"] == "string" and not encoding.media_type.startswith("text/"):
            kind["format"] = "binary"
        content.setdefault(encoding.media_type, {"schema": kind})
    return content


def _refusals() -> dict[str, Any]:
    """One response per status that a request can meet, naming its codes."""
    codes: dict[int, list[str]] = {}
    for error in every_error():
        if error.status in (400, 404, 406, 408, 413, 414, 415, 422, 431, 500, 503, 504) and not (
            error.__name__.startswith(
                ("Store", "Manifest", "Model", "Checkpoint", "Training", "Settings")
            )
            and error.__name__ != "ModelNotFound"
        ):
            codes.setdefault(error.status, []).append(error.code)
    return {str(status): _refusal(found) for status, found in sorted(codes.items())}


def _refusal(codes: list[str]) -> dict[str, Any]:
    return {
        "description": "`code`: " + ", ".join(f"`{code}`" for code in codes),
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }


ANSWERS = {
    "X-Request-Id": "The client's own, or a new one.",
    "X-Model": "`name@version` that answered.",
    "Server-Timing": "Milliseconds of receive, decode, queue, infer, encode.",
    "X-Queue-Time": "Milliseconds waited for the device.",
    "X-Inference-Time": "Milliseconds on the device.",
    "X-Total-Time": "Milliseconds from the request's headers to the answer's.",
    "X-Orientation-Applied": "The EXIF orientation that was undone, where there was one.",
}

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "error": {"type": "string"},
        "code": {"type": "string"},
        "instance": {"type": "string"},
        "request_id": {"type": "string"},
        "trace_id": {"type": "string"},
        "limit": {"type": "string"},
        "limit_value": {},
        "retry_after_ms": {"type": "integer"},
        "stage": {"type": "string"},
    },
}
