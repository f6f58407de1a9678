"""Every error of the product, in one tree.

    TernausError                      anything that we raise on purpose
    |- RequestError                   the request is at fault
    |  |- MalformedRequest            the body or a header cannot be understood
    |  |- BadParameter                a query or form parameter is unknown or has a wrong value
    |  |- EmptyBody                   there is no picture in the request
    |  |- NotAcceptable               no format that the client accepts is offered
    |  |- BodyTooLarge                more bytes than the limit
    |  |- BodyTooSlow                 the client did not send its body in time
    |  |- KeyRequired                 no valid API key came with the request
    |  |- UrlTooLong                  an address longer than the limit
    |  |- HeadersTooLarge             more headers, or larger ones, than the limit
    |  |- HeadersTooSlow              the client did not send its headers in time
    |  `- ModelNotFound               no such model or version
    |- PictureError                   the picture is at fault
    |  |- PictureUnsupported          not a format that we read
    |  |- PictureDamaged              the decoder gave up
    |  |- PictureTooLarge             more pixels or decoded bytes than the limit
    |  |- PictureSeveralFrames        animated or many pages, and none was named
    |  `- PictureDepth                samples whose range we cannot know
    |- Unavailable                    come back later (carries a retry time)
    |  |- Overloaded                  the wait would outlast the deadline
    |  |- QueueFull                   a bound on waiting work is reached
    |  |- TooManyConnections          a bound on open connections is reached
    |  |- Draining                    the server is shutting down
    |  `- NotReady                    no live model yet, or its engine is gone
    |- DeadlineExceeded               the time of the request ran out
    |- ClientGone                     nobody waits for the answer (never sent)
    |- InferenceFailed                the device failed for this picture
    |  |- DeviceOutOfMemory           the device has no memory for it
    |  `- EngineLost                  the device is beyond help; the process must end
    |- EngineError                    a model could not be placed on the device
    |  `- SelfTestFailed              the model's sample did not give its mask
    |- StoreError                     a file of the model store is at fault
    |  |- ManifestInvalid             manifest.json does not say what it must
    |  |- ModelDamaged                a file is missing, altered, truncated or wrongly shaped
    |  `- VersionExists               a published version never changes
    |- CheckpointError                a foreign weights file
    |  |- CheckpointUnknown           no family recognises it
    |  `- CheckpointRefused           recognised, and not accepted
    |- TrainingError                  data or options of a training run
    `- SettingsError                  a setting is unknown or has a wrong value

Each class bears `code` (stable, for programs), `status` (HTTP) and `title` (for people). The server
renders them, the client raises the same class again from `code`. No framework is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class TernausError(Exception):
    """Anything that we raise on purpose.

    `detail` is the sentence a person reads. `limit` names the setting that was exceeded and
    `limit_value` its value, where there is one.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        limit: str | None = None,
        limit_value: int | float | str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.limit = limit
        self.limit_value = limit_value

    def members(self) -> dict[str, Any]:
        """The extension members of a problem document that this error carries."""
        found = {"limit": self.limit, "limit_value": self.limit_value}
        return {name: value for name, value in found.items() if value is not None}


class RequestError(TernausError):
    """The request is at fault."""

    code, status, title = "bad_request", 400, "Bad request"


class MalformedRequest(RequestError):
    """The body or a header cannot be understood."""

    code, title = "malformed_request", "Malformed request"


class BadParameter(RequestError):
    """A query or form parameter is unknown or has a wrong value."""

    code, title = "bad_parameter", "Bad parameter"


class EmptyBody(RequestError):
    """There is no picture in the request."""

    code, title = "empty_body", "Empty body"


class NotAcceptable(RequestError):
    """No format that the client accepts is offered."""

    code, status, title = "not_acceptable", 406, "Not acceptable"


class BodyTooLarge(RequestError):
    """More bytes than the limit."""

    code, status, title = "body_too_large", 413, "Body too large"


class BodyTooSlow(RequestError):
    """The client did not send its body in time."""

    code, status, title = "body_too_slow", 408, "Body too slow"


class KeyRequired(RequestError):
    """No valid API key came with the request."""

    code, status, title = "key_required", 401, "API key required"


class UrlTooLong(RequestError):
    """An address longer than the limit."""

    code, status, title = "url_too_long", 414, "Address too long"


class HeadersTooLarge(RequestError):
    """More headers, or larger ones, than the limit."""

    code, status, title = "headers_too_large", 431, "Headers too large"


class HeadersTooSlow(RequestError):
    """The client did not send its headers in time."""

    code, status, title = "headers_too_slow", 408, "Headers too slow"


class ModelNotFound(RequestError):
    """No such model or version."""

    code, status, title = "model_not_found", 404, "Model not found"


class PictureError(TernausError):
    """The picture is at fault."""

    code, status, title = "picture_refused", 422, "Picture refused"


class PictureUnsupported(PictureError):
    """Not a format that we read."""

    code, status, title = "picture_unsupported", 415, "Not a picture that we read"


class PictureDamaged(PictureError):
    """The decoder gave up."""

    code, title = "picture_damaged", "Picture damaged"


class PictureTooLarge(PictureError):
    """More pixels or decoded bytes than the limit."""

    code, title = "picture_too_large", "Too many pixels"


class PictureSeveralFrames(PictureError):
    """Animated or many pages, and none was named."""

    code, title = "picture_several_frames", "Several frames"


class PictureDepth(PictureError):
    """Samples whose range we cannot know."""

    code, title = "picture_depth", "Sample depth not supported"


class Unavailable(TernausError):
    """Come back later: `retry_after_s` says when."""

    code, status, title = "unavailable", 503, "Unavailable"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0, **rest: Any) -> None:
        super().__init__(detail, **rest)
        self.retry_after_s = retry_after_s

    def members(self) -> dict[str, Any]:
        return {**super().members(), "retry_after_ms": round(self.retry_after_s * 1000)}


class Overloaded(Unavailable):
    """The wait would outlast the deadline."""

    code, title = "overloaded", "Overloaded"


class QueueFull(Unavailable):
    """A bound on waiting work is reached."""

    code, title = "queue_full", "Queue is full"


class TooManyConnections(Unavailable):
    """A bound on open connections is reached."""

    code, title = "too_many_connections", "Too many connections"


class Draining(Unavailable):
    """The server is shutting down."""

    code, title = "draining", "Shutting down"


class NotReady(Unavailable):
    """No live model yet, or its engine is gone."""

    code, title = "not_ready", "Not ready"


class DeadlineExceeded(TernausError):
    """The time of the request ran out; `stage` says where."""

    code, status, title = "deadline_exceeded", 504, "Deadline exceeded"

    def __init__(self, detail: str, *, stage: str, **rest: Any) -> None:
        super().__init__(detail, **rest)
        self.stage = stage

    def members(self) -> dict[str, Any]:
        return {**super().members(), "stage": self.stage}


class ClientGone(TernausError):
    """Nobody waits for the answer. For logs and metrics; never sent."""

    code, status, title = "client_gone", 499, "Client closed request"


class InferenceFailed(TernausError):
    """The device failed for this picture."""

    code, title = "inference_failed", "Inference failed"


class DeviceOutOfMemory(InferenceFailed):
    """The device has no memory for it."""

    code, title = "device_out_of_memory", "Device out of memory"


class EngineLost(InferenceFailed):
    """The device is beyond help; the process must end."""

    code, status, title = "engine_lost", 503, "Engine lost"


class EngineError(TernausError):
    """A model could not be placed on the device."""

    code, title = "engine_error", "Engine error"


class SelfTestFailed(EngineError):
    """The model's sample did not give its mask."""

    code, title = "self_test_failed", "Self-test failed"


class StoreError(TernausError):
    """A file of the model store is at fault."""

    code, title = "store_error", "Model store error"


class ManifestInvalid(StoreError):
    """manifest.json does not say what it must."""

    code, title = "manifest_invalid", "Manifest invalid"


class ModelDamaged(StoreError):
    """A file is missing, altered, truncated or wrongly shaped."""

    code, title = "model_damaged", "Model damaged"


class VersionExists(StoreError):
    """A published version never changes."""

    code, status, title = "version_exists", 409, "Version exists"


class CheckpointError(TernausError):
    """A foreign weights file."""

    code, status, title = "checkpoint_error", 422, "Checkpoint error"


class CheckpointUnknown(CheckpointError):
    """No family recognises it."""

    code, title = "checkpoint_unknown", "Checkpoint not recognised"


class CheckpointRefused(CheckpointError):
    """Recognised, and not accepted."""

    code, title = "checkpoint_refused", "Checkpoint refused"


class TrainingError(TernausError):
    """Data or options of a training run."""

    code, status, title = "training_error", 422, "Training error"


class SettingsError(TernausError):
    """A setting is unknown or has a wrong value."""

    code, title = "settings_error", "Settings error"


def every_error(root: type[TernausError] = TernausError) -> Iterator[type[TernausError]]:
    """Walk the tree, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def by_code() -> dict[str, type[TernausError]]:
    """The table from `code` to class, built by walking the tree."""
    return {error.code: error for error in every_error()}
