"""One frozen Settings, read once at the entry point and handed down as plain values.

Every field is an environment variable `TERNAUS_<FIELD>`; a variable with that prefix and an unknown
name is an error, so that a misspelt limit cannot be ignored. This is the one room that reads the
process environment.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.errors import SettingsError

PREFIX = "TERNAUS_"

# Where OpenTelemetry's own variables say that somebody waits for spans.
_COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_ORIGIN = re.compile(r"\*|https?://[^/\s,?#@]+")


def _cache_home() -> Path:
    """Where this user keeps what can be made again (XDG base directory specification)."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ternaus"


class Settings(BaseSettings):
    """What an operator may set. Sizes in bytes or pixels, times in seconds, as the names say."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: str = Field("0.0.0.0", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    model_store: str = Field("model_store", description="folder or fsspec URL of the model store")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="models to serve, `name` or `name@version`, comma separated; empty: all",
    )
    default_model: str = Field(
        "", description="model of a request that names none; empty: the first"
    )
    cache_dir: Path = Field(
        default_factory=_cache_home, description="converted models and downloads; may be deleted"
    )

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    backend: Literal["auto", "openvino", "torch"] = Field("auto", description="engine on the CPU")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto keeps bfloat16 only where masks agree with float32"
    )
    engine_threads: int = Field(0, ge=0, description="cores for the net on the CPU; 0: all")
    host_threads: int = Field(
        0, ge=0, description="threads that decode and encode; 0: one per core"
    )

    frontends: int = Field(
        0,
        ge=0,
        le=64,
        description="processes that decode and encode; 1: with the engine in the same process; "
        "0: found by measurement",
    )
    slot_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="with several processes: memory of each front end for tiles on their way to "
        "the engine and back",
    )

    max_body_bytes: int = Field(100 * 2**20, gt=0, description="largest request body")
    max_pixels: int = Field(100_000_000, gt=0, description="largest picture, width x height")
    max_decoded_bytes: int = Field(
        600_000_000, gt=0, description="largest picture, width x height x channels x sample bytes"
    )
    whole_pixels: int = Field(
        2_359_296, gt=0, description="a picture up to this many padded pixels is one tile"
    )
    tile: int = Field(1536, ge=256, description="side of the tiles of larger pictures")
    tiles_in_flight: int = Field(4, ge=1, description="tiles of one picture waiting or computing")

    request_timeout_s: float = Field(
        30.0, gt=0, description="deadline of a request, from its headers"
    )
    body_timeout_s: float = Field(
        20.0, gt=0, description="longest silence while a body is received"
    )
    max_requests: int = Field(256, ge=1, description="requests being worked on")
    max_pixels_in_flight: int = Field(
        400_000_000, gt=0, description="decoded pixels of all requests being worked on"
    )
    max_body_bytes_in_flight: int = Field(
        512 * 2**20, gt=0, description="received bytes of all requests being worked on"
    )
    max_hold_ms: float = Field(
        2.0, ge=0, description="longest wait of a batch for a picture known to be on its way"
    )
    max_batch: int = Field(32, ge=1, description="most tiles in one batch")
    max_batch_pixels: int = Field(8_388_608, gt=0, description="most pixels in one batch")
    overload_status: Literal[503, 429] = Field(
        503, description="HTTP status of a refusal for overload"
    )
    stall_after_s: float = Field(
        60.0, gt=0, description="work waits and no batch ends for so long: not live"
    )
    canary_s: float = Field(
        30.0, ge=0, description="idle time after which the device is tried; 0: never"
    )
    drain_grace_s: float = Field(
        5.0, ge=0, description="after SIGTERM, how long new requests are still taken"
    )
    admin_key: SecretStr = Field(
        SecretStr(""), description="key that may load and unload models; empty: nobody may"
    )
    admin_key_file: Path | None = Field(
        None, description="file with such keys, one a line; added to `TERNAUS_ADMIN_KEY`"
    )

    api_keys: SecretStr = Field(
        SecretStr(""), description="keys that clients must send, comma separated; empty: none"
    )
    api_keys_file: Path | None = Field(
        None, description="file with such keys, one a line; added to `TERNAUS_API_KEYS`"
    )
    api_key: SecretStr = Field(
        SecretStr(""), description="key that the command line sends (`evaluate --url`)"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose pages may read answers, comma separated, or `*`; empty: none"
    )
    max_connections: int = Field(
        1024, ge=1, description="open connections; beyond, the longest idle one makes room"
    )
    max_url_bytes: int = Field(8192, ge=64, description="longest address of a request")
    max_header_bytes: int = Field(32_768, ge=256, description="all headers of a request together")
    max_headers: int = Field(100, ge=1, description="headers of a request")
    header_timeout_s: float = Field(
        20.0, gt=0, description="longest wait for the headers of a request to be whole"
    )
    send_timeout_s: float = Field(
        120.0, gt=0, description="longest time that a client may take to receive an answer"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level logged"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, JSON otherwise"
    )
    access_log: Literal["all", "failures", "none"] = Field(
        "all", description="a log line for each request, for those answered 5xx, or for none"
    )
    tracing: Literal["auto", "on", "off"] = Field(
        "auto", description="OpenTelemetry spans; auto: where `OTEL_EXPORTER_OTLP_ENDPOINT` is set"
    )

    @classmethod
    def read(cls, **overrides: Any) -> Settings:
        """Settings from the environment, `overrides` first (None means not given).

        Raises SettingsError naming the variable, what it held and what it may hold.
        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        for name in sorted(os.environ):
            if name.upper().startswith(PREFIX) and name.upper() not in known:
                near = difflib.get_close_matches(name.upper(), known, n=1)
                hint = f"\nhint: did you mean `{near[0]}`?" if near else ""
                raise SettingsError(
                    f"unknown setting `{name}`; known: {', '.join(sorted(known))}{hint}"
                )
        try:
            return cls(**{k: v for k, v in overrides.items() if v is not None})
        except ValidationError as exc:
            first = exc.errors()[0]
            field = str(first["loc"][0])
            name = PREFIX + field.upper()
            # A wrong key is a key all the same, and messages end up in logs.
            shown = "what it is" if field in _SECRETS else repr(first["input"])
            wrong = SettingsError(f"`{name}` cannot be {shown}: {first['msg']}", limit=name)
            raise wrong from (None if field in _SECRETS else exc)

    def admin_keys(self) -> tuple[str, ...]:
        """The keys that may load and unload models. Raises SettingsError for an unreadable file."""
        key = self.admin_key.get_secret_value().strip()
        return (*((key,) if key else ()), *_keys_of("admin_key_file", self.admin_key_file))

    def client_keys(self) -> tuple[str, ...]:
        """The keys that clients may send; none: they need none. Raises as `admin_keys` does."""
        given = _parts(self.api_keys.get_secret_value())
        return (*given, *_keys_of("api_keys_file", self.api_keys_file))

    def traced(self) -> bool:
        """Whether spans are asked for, here or by OpenTelemetry's own variables."""
        if self.tracing != "auto":
            return self.tracing == "on"
        if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return False
        if os.environ.get("OTEL_TRACES_EXPORTER") == "none":
            return False
        return any(os.environ.get(name) for name in _COLLECTORS)

    @field_validator("api_keys")
    @classmethod
    def _some(cls, value: SecretStr) -> SecretStr:
        # An open door where somebody meant to lock it would be found out too late.
        if value.get_secret_value() and not _parts(value.get_secret_value()):
            raise ValueError("there is no key in it")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"`{origin}` is no origin, such as `https://example.org`")
        return value

    @field_validator("models", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _parts(value) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment; no files."""
        return (init_settings, env_settings)


_SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _keys_of(field: str, path: Path | None) -> tuple[str, ...]:
    """The lines of a file of keys, as secrets are mounted. A file without any is an error: the door
    would stand open.
    """
    if path is None:
        return ()
    name = PREFIX + field.upper()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"`{name}`: `{path}` cannot be read: {exc}", limit=name) from exc
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise SettingsError(f"`{name}`: there is no key in `{path}`", limit=name)
    return keys
