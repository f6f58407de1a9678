"""`manifest.json`: everything needed to serve a version, and to know where it came from.

What names and shapes of tensors cannot tell (classes, threshold, normalisation, whether classes
exclude each other, `align_corners` among the architecture's parameters) is said here. A publisher
writes a `Draft`; publishing adds what can be measured (files, tensors) and the version's own name,
which makes it a `Manifest`. This file reads and writes bytes only; it opens nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
)

from app.errors import ManifestInvalid
from app.store.names import (
    CARD,
    FILE_RULE,
    MANIFEST,
    NAME_LIMIT,
    NAME_PATTERN,
    NAME_RULE,
    VERSION_LIMIT,
    WEIGHTS,
    is_file_name,
    is_name,
)
from app.store.tensors import signatures_digest
from app.types import ClassSpec, Halo, ModelSpec, Task

FORMAT = 1
MANIFEST_LIMIT = 4 * 2**20
CLASS_LIMIT = 256  # a pixel of a multiclass mask is one byte
STRIDE_LIMIT = 1024
PROBLEMS_SHOWN = 8

_Kind = TypeVar("_Kind", bound="Draft")

_SIGNATURE = re.compile(r"[A-Z][A-Z0-9]*\[((?:[0-9]+(?:,[0-9]+)*)?)\]\Z")


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(NAME_RULE)
    return value


def _file_name(value: str) -> str:
    if not is_file_name(value):
        raise ValueError(FILE_RULE)
    if value == MANIFEST:
        raise ValueError(f"a file other than `{MANIFEST}`, which cannot hold its own digest")
    return value


Name = Annotated[
    str,
    AfterValidator(_name),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN, "maxLength": NAME_LIMIT}),
]
FileName = Annotated[str, AfterValidator(_file_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]
Shade = Annotated[int, Field(ge=0, le=255)]


class Part(BaseModel):
    """Frozen, nothing unknown, nothing converted: `"3"` is not a number and `1` is not true."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ClassEntry(Part):
    """One output channel of the net."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """What it shows, as answers name it. Unique in the model."""
    colour: tuple[Shade, Shade, Shade]
    """Red, green, blue, each 0..255."""

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable() or value != value.strip():
            raise ValueError("printable characters with no blank at either end")
        return value


class HaloEntry(Part):
    """How far an output pixel looks beyond its own place, in pixels."""

    top: Annotated[int, Field(ge=0)]
    left: Annotated[int, Field(ge=0)]
    bottom: Annotated[int, Field(ge=0)]
    right: Annotated[int, Field(ge=0)]


class InputEntry(Part):
    """From a picture's pixels to the net's input: RGB, divided by 255, minus mean, over std."""

    mean: tuple[float, float, float]
    """Of red, green, blue in 0..1."""
    std: tuple[
        Annotated[float, Field(gt=0)],
        Annotated[float, Field(gt=0)],
        Annotated[float, Field(gt=0)],
    ]
    """Of red, green, blue in 0..1."""
    stride: Annotated[int, Field(ge=1, le=STRIDE_LIMIT)]
    """Every side of a tile is a multiple of it. A power of two."""
    halo: HaloEntry
    """Makes tiling exact. Each side a multiple of the stride."""
    fit: Literal["pad"] = "pad"
    """How a picture reaches a multiple of the stride: by reflection at its borders."""
    longest_side: Annotated[int, Field(ge=32, le=65_535)] | None = None
    """Larger pictures are shown to the net scaled down to this longer side, in pixels, and their
    masks scaled up again. Left out: every picture is shown as it is."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Left out where it is not set, so that older versions keep their digests."""
        fields: dict[str, Any] = write(self)
        if self.longest_side is None:
            fields.pop("longest_side", None)
        return fields

    @field_validator("stride")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("a power of two")
        return value

    @field_validator("halo")
    @classmethod
    def _aligned(cls, value: HaloEntry, info: ValidationInfo) -> HaloEntry:
        stride = info.data.get("stride")
        if stride and any(side % stride for side in value.model_dump().values()):
            raise ValueError(f"multiples of the stride, {stride}")
        return value


class FileEntry(Part):
    """What a file of the version must be, bit for bit."""

    sha256: Sha256
    size: Annotated[int, Field(ge=1)]
    """In bytes."""


class TensorsEntry(Part):
    """What the weights must hold, so that wrong ones are named before a net is built."""

    digest: Sha256
    """Of names, types and shapes; two versions of one architecture have the same."""
    elements: Annotated[int, Field(ge=1)]
    """How many numbers: the parameters, and the running statistics where a net has them."""
    shapes: dict[str, str]
    """Name -> type and shape in the words of the file format: `F32[64,3,3,3]`."""

    @field_validator("shapes")
    @classmethod
    def _agree(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        total = 0
        for name, signature in value.items():
            match = _SIGNATURE.match(signature)
            if match is None:
                raise ValueError(f"type and shape such as `F32[64,3,3,3]` for `{name}`")
            total += math.prod(int(side) for side in match[1].split(",") if side)
        if info.data.get("elements", total) != total:
            raise ValueError(f"shapes that hold `elements` numbers, not {total}")
        if info.data.get("digest", "") not in ("", signatures_digest(value)):
            raise ValueError("shapes whose digest is `digest`")
        return value


class SampleEntry(Part):
    """A picture and the mask that this model must give for it, on whatever device."""

    picture: FileName
    mask: FileName

    @field_validator("mask")
    @classmethod
    def _readable(cls, value: str) -> str:
        # COCO RLE where planes overlap, which no PNG can hold.
        if not value.endswith((".png", ".json")):
            raise ValueError("a `.png` or `.json` file")
        return value


class LicenceEntry(Part):
    """Under which the weights may be used."""

    identifier: Text
    """The SPDX identifier where there is one, else the licence's own name."""
    url: str = ""
    note: str = ""


class DataEntry(Part):
    """One set of pictures that shaped the weights or the scores."""

    name: Text
    licence: Text
    use: Text
    """Such as `training`, `validation` or `pre-training`."""
    url: str = ""
    note: str = ""


class ProvenanceEntry(Part):
    """Where the weights come from, so that somebody else could make them again."""

    data: tuple[DataEntry, ...]
    encoder: Text
    """What the encoder started from, such as `imagenet` or `he`."""
    command: Text
    """What was run."""
    date: date
    frameworks: dict[str, str]
    """Name -> version."""
    note: str = ""
    more: dict[str, JsonValue] = {}
    """Whatever else the maker wants kept."""


class ScoreEntry(Part):
    """One measured number, with what it takes to compare it."""

    measure: Text
    """Such as `iou` or `dice`."""
    value: float
    averaging: Literal["pixels", "pictures"]
    """`pixels`: one number over all pixels. `pictures`: the mean over pictures that have one."""
    data: Text
    """The name of the data set and its split."""
    pictures: Annotated[int, Field(ge=1)]
    counted: Annotated[int, Field(ge=0)]
    """Of these pictures, those where the class is in truth or mask, so that they have a score."""
    of_class: str = ""
    """The class that was scored; empty for all of them together."""
    note: str = ""


class Draft(Part):
    """What a publisher says of a model; publishing measures the rest."""

    description: str = ""
    """One sentence for people."""
    architecture: Name
    """The name of the net's code."""
    parameters: dict[str, JsonValue]
    """What the architecture is built with, such as `upsampling` and `align_corners`."""
    task: Task
    """`binary`: one class, sigmoid. `multilabel`: independent classes, sigmoid each. `multiclass`:
    exclusive classes, argmax; the first is the background."""
    classes: Annotated[tuple[ClassEntry, ...], Field(min_length=1, max_length=CLASS_LIMIT)]
    """What the net has output channels for, in their order."""
    input: InputEntry
    """From pixels to the net's input."""
    threshold: Annotated[float, Field(gt=0, lt=1)]
    """A pixel belongs to a class where its probability is above. Unused by `multiclass`."""
    precision: Literal["auto", "float32", "bfloat16"]
    """The permission to calculate with fewer bits. `float32`: none. `bfloat16`: that type too.
    `auto`: any type whose masks agree with those of float32 on the sample."""
    sample: SampleEntry
    """What the model proves itself with before it is ready."""
    licence: LicenceEntry
    """Under which the weights may be used."""
    provenance: ProvenanceEntry
    """Where the weights come from."""
    scores: tuple[ScoreEntry, ...]
    """What was measured; empty where nothing was."""

    @field_validator("classes")
    @classmethod
    def _fit_task(
        cls, value: tuple[ClassEntry, ...], info: ValidationInfo
    ) -> tuple[ClassEntry, ...]:
        names = [entry.name for entry in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"each class name once, not `{repeated[0]}` again")
        task = info.data.get("task")
        if task == "binary" and len(value) != 1:
            raise ValueError(f"exactly 1 class for a binary task, not {len(value)}")
        if task == "multiclass" and len(value) < 2:
            raise ValueError("at least 2 classes for a multiclass task, the first the background")
        asked = info.data.get("parameters", {}).get("classes", len(value))
        if asked != len(value):
            raise ValueError(f"as many classes as `parameters.classes` says, {asked}")
        return value

    @field_validator("scores")
    @classmethod
    def _score_known_classes(
        cls, value: tuple[ScoreEntry, ...], info: ValidationInfo
    ) -> tuple[ScoreEntry, ...]:
        known = [entry.name for entry in info.data.get("classes", ())]
        for score in value:
            if known and score.of_class and score.of_class not in known:
                raise ValueError(f"scores of the model's classes, not of `{score.of_class}`")
        return value


class Manifest(Draft):
    """`manifest.json` of one published version."""

    format: Literal[1]
    """The version of this format."""
    name: Name
    """Equal to the name of the model's folder."""
    version: Annotated[int, Field(ge=1, le=VERSION_LIMIT)]
    """Equal to the name of the version's folder."""
    tensors: TensorsEntry
    """What the weights must hold."""
    files: dict[FileName, FileEntry]
    """Every file of the version but this one."""

    @field_validator("files")
    @classmethod
    def _complete(cls, value: dict[str, FileEntry], info: ValidationInfo) -> dict[str, FileEntry]:
        needed = [WEIGHTS, CARD]
        if "sample" in info.data:
            needed += [info.data["sample"].picture, info.data["sample"].mask]
        missing = [name for name in needed if name not in value]
        if missing:
            raise ValueError(f"an entry for `{missing[0]}`")
        return value

    @property
    def label(self) -> str:
        """`name@version`, as users write it."""
        return f"{self.name}@{self.version}"

    def draft(self) -> Draft:
        """What its publisher said: this manifest without what publishing measured."""
        return Draft.model_validate({name: getattr(self, name) for name in Draft.model_fields})

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that can change an answer but the model's own name.

        The weights' sha256 and the fields of `_ANSWERS`, as JSON with sorted keys. Class names and
        colours are among them, since answers show them. Licence, provenance, scores, model card and
        sample are not: a version that only corrects those gives the same answers.
        """
        fields = self.model_dump(mode="json", include=set(_ANSWERS))
        fields["weights"] = self.files[WEIGHTS].sha256
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def spec(self, paths: Mapping[str, Path]) -> ModelSpec:
        """What an engine needs. `paths` says where each of `files` lies on a local disk."""
        halo = self.input.halo
        return ModelSpec(
            name=self.name,
            version=self.version,
            architecture=self.architecture,
            parameters=dict(self.parameters),
            task=self.task,
            classes=tuple(ClassSpec(entry.name, entry.colour) for entry in self.classes),
            mean=self.input.mean,
            std=self.input.std,
            stride=self.input.stride,
            halo=Halo(halo.top, halo.left, halo.bottom, halo.right),
            threshold=self.threshold,
            precision=self.precision,
            digest=self.digest,
            weights=str(paths[WEIGHTS]),
            weights_sha256=self.files[WEIGHTS].sha256,
            sample_picture=str(paths[self.sample.picture]),
            sample_mask=str(paths[self.sample.mask]),
            fit=self.input.fit,
            longest_side=self.input.longest_side,
        )


_ANSWERS = (
    "architecture",
    "parameters",
    "task",
    "classes",
    "input",
    "threshold",
    "precision",
)

# A reader meets what the model is before what its files are.
_ORDER = (
    "format",
    "name",
    "version",
    "description",
    *_ANSWERS,
    "licence",
    "scores",
    "provenance",
    "sample",
    "files",
    "tensors",
)


def parse_draft(draft: Draft | Mapping[str, Any]) -> Draft:
    """A draft from what a program or a JSON file says. Raises ManifestInvalid."""
    if isinstance(draft, Draft):
        return draft
    where = "the manifest's draft"
    try:
        raw = json.dumps(dict(draft), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ManifestInvalid(f"{where} must be plain JSON: {exc}") from exc
    return _validated(Draft, raw, where)


def parse_manifest(raw: bytes, *, where: str, name: str, version: int) -> Manifest:
    """The manifest that lies at `where`, in the folder of `name` and `version`.

    Raises ManifestInvalid that names the file, the field, what was expected and what was found.
    """
    if len(raw) > MANIFEST_LIMIT:
        raise ManifestInvalid(f"`{where}` has {len(raw)} bytes; expected at most {MANIFEST_LIMIT}")
    try:
        text = raw.decode()
        # pydantic's own parser keeps the last of two equal names and so hides one of them.
        json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except RecursionError as exc:
        raise ManifestInvalid(f"`{where}` is nested too deeply for a manifest") from exc
    except ValueError as exc:
        raise ManifestInvalid(f"`{where}` is not JSON in UTF-8: {exc}") from exc
    manifest = _validated(Manifest, text, f"`{where}`")
    if (manifest.name, manifest.version) != (name, version):
        raise ManifestInvalid(
            f"`{where}` is not that of its folder: `name` and `version` expected "
            f"{name}@{version}, found {manifest.label}"
        )
    return manifest


def complete(draft: Draft, **measured: Any) -> Manifest:
    """A draft with the fields that publishing knows, as JSON values. Raises ManifestInvalid."""
    fields = {**draft.model_dump(mode="json"), "format": FORMAT, **measured}
    return _validated(Manifest, json.dumps(fields), "the manifest")


def manifest_text(manifest: Manifest) -> str:
    """The one way to write it: fixed order, two blanks, lists of plain values on one line."""
    fields = manifest.model_dump(mode="json")
    return _pretty({name: fields[name] for name in _ORDER}, "") + "\n"


def manifest_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `manifest.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Manifest.model_json_schema(),
    }


def _validated(kind: type[_Kind], text: str, where: str) -> _Kind:
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        raise ManifestInvalid(f"{where} is not valid: {_explain(exc)}") from exc


def _explain(error: ValidationError) -> str:
    """`field.path`: expected this, found that; one after the other."""
    lines = []
    for one in error.errors(include_url=False)[:PROBLEMS_SHOWN]:
        path = ""
        for step in one["loc"]:
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
        path = path or "(the whole)"
        if one["type"] == "missing":
            lines.append(f"`{path}`: expected a value, found nothing")
        elif one["type"] == "extra_forbidden":
            lines.append(f"`{path}`: expected no field of that name, found {_short(one['input'])}")
        else:
            expected = one["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            lines.append(f"`{path}`: expected {expected}, found {_short(one['input'])}")
    more = error.error_count() - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"expected each name once, found `{name[:80]}` twice")
        found[name] = value
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"expected a finite number, found {text}")


def _pretty(value: Any, indent: str) -> str:
    """JSON as a person would set it; `json.dumps` puts each number of a list on its own line."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        inner = [
            f"{deeper}{json.dumps(name, ensure_ascii=False)}: {_pretty(one, deeper)}"
            for name, one in value.items()
        ]
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        inner = [deeper + _pretty(one, deeper) for one in value]
        return "[\n" + ",\n".join(inner) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)
