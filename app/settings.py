"""One frozen Settings, read once at the entry point and handed down as plain values.

Every field is an environment variable `TERNAUS_<FIELD>`; a variable with that prefix and an unknown
name is an error, so that a misspelt limit cannot be ignored. This is the one room that reads the
process environment.
"""

from __future__ import annotations

import difflib
import os
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
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="auto keeps bfloat16 only where masks agree with float32; int8 (CPU, extra "
        "`int8`) is kept where they agree to an IoU of 0.98, else as auto",
    )
    engine_threads: int = Field(0, ge=0, description="cores for the net on the CPU; 0: all")
    host_threads: int = Field(
        0, ge=0, description="threads that decode and encode; 0: one per core"
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
    watch_store_s: float = Field(
        0.0, ge=0, description="how often to look for newer versions of open models; 0: never"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level logged"
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
            name = PREFIX + str(first["loc"][0]).upper()
            raise SettingsError(
                f"`{name}` cannot be {first['input']!r}: {first['msg']}", limit=name
            ) from exc

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

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
