"""Published weights, recognised from names and shapes alone and brought to this project's names.

    found, tensors = canonical(read("UNet11_kaggle_carvana.pt"))
    net = get(found.architecture).build(**found.parameters)
    net.load_state_dict(tensors)

What names and shapes cannot tell: class names, threshold, normalisation, whether classes exclude
one another, and, where the decoder interpolates, how. The caller must know. No code from a file is
ever run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.architectures.base import get
from app.architectures.families import KINDS, Kind, families, second_names
from app.architectures.weight_files import read, write
from app.errors import CheckpointError, CheckpointRefused, CheckpointUnknown, EngineError

__all__ = [
    "Recognised",
    "canonical",
    "convert",
    "export_published",
    "families",
    "read",
    "recognise",
]

WRAPPERS = ("model", "state_dict")
INTERPOLATIONS = ("bilinear", "nearest")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FLOATS = (*PRECISIONS.values(), torch.float64)
# Width of the last feature map. The originals take it as an argument; only this one was published.
FILTERS = 32
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a file is.

    `family` is a published family, or the architecture's own name for a variant that nobody
    published. `parameters` are complete: `get(architecture).build(**parameters)`. `dialect` says in
    words what gave it away; `notes` what was assumed because no file can tell.
    """

    family: str
    architecture: str
    parameters: Mapping[str, Any]
    dialect: str
    notes: tuple[str, ...] = ()


def recognise(
    state: Mapping[str, Any], *, interpolation: str | None = None, align_corners: bool = False
) -> Recognised:
    """Say what a mapping of names to tensors is, looking at names and shapes only.

    `interpolation` (`bilinear` or `nearest`) and `align_corners` tell what no file can, for
    decoders that interpolate; without them `bilinear` is assumed and noted. Raises
    CheckpointUnknown where no family matches and CheckpointRefused where one does but cannot be
    used.
    """
    return _recognise(_names(state), interpolation=interpolation, align_corners=align_corners)[1]


def canonical(
    state: Mapping[str, Any], *, interpolation: str | None = None, align_corners: bool = False
) -> tuple[Recognised, dict[str, torch.Tensor]]:
    """Bring weights to this project's names: exactly those of the built net, nothing else.

    Unwraps, strips a leading `module.`, folds second names, drops what no output depends on, and
    supplies the batch-norm counters that old files lack. Tensors are handed on as they are, in
    their own precision. Options and errors as for `recognise`; raises CheckpointRefused naming the
    tensor where second names disagree, a value is not finite or not a float, or a name is missing,
    left over or wrongly shaped.
    """
    names = _names(state)
    kind, found = _recognise(names, interpolation=interpolation, align_corners=align_corners)
    layout = get(found.architecture).layout(**found.parameters)
    kept_of = {
        alias: name
        for family in kind.families
        for name in layout
        for alias in second_names(name, family.aliases)
    }
    unused = {name for family in kind.families for name in family.unused}
    folded: dict[str, torch.Tensor] = {}
    for name, value in names.items():
        if name in unused:
            continue
        tensor = _sound(name, value)
        kept = kept_of.get(name, name)
        if kept in folded and not _same(folded[kept], tensor):
            alias = next(a for a, k in kept_of.items() if k == kept and a in names)
            raise CheckpointRefused(
                f"`{kept}` and `{alias}` are two names of one tensor, but their values differ"
            )
        folded.setdefault(kept, tensor)
    for name, expected in layout.items():
        if name.endswith(COUNTER):
            folded.setdefault(name, torch.zeros(expected.shape, dtype=expected.dtype))
    _check(folded, layout, found)
    return found, {name: folded[name] for name in layout}


def convert(
    path: str | Path,
    out: str | Path,
    *,
    precision: str = "float32",
    interpolation: str | None = None,
    align_corners: bool = False,
) -> Recognised:
    """Read a checkpoint and write it as a safetensors file with this project's names.

    `precision` is `float32`, `float16` or `bfloat16`; batch-norm counters stay whole numbers. The
    file's metadata holds the architecture, its parameters (JSON) and the family. Raises
    CheckpointError as `read` and `canonical` do, where `out` cannot be written, and (Refused) where
    a value does not fit the precision.
    """
    if precision not in PRECISIONS:
        raise CheckpointError(
            f"unknown precision `{precision}`; known: {', '.join(sorted(PRECISIONS))}"
        )
    found, tensors = canonical(read(path), interpolation=interpolation, align_corners=align_corners)
    converted = {}
    for name, value in tensors.items():
        if value.is_floating_point():
            value = value.to(PRECISIONS[precision])
            if not bool(torch.isfinite(value).all()):
                raise CheckpointRefused(f"`{name}` has values too large for {precision}")
        converted[name] = value
    metadata = {
        "architecture": found.architecture,
        "parameters": json.dumps(dict(found.parameters), sort_keys=True),
        "family": found.family,
    }
    write(converted, out, metadata=metadata)
    return found


def export_published(
    state: Mapping[str, Any], family: str, *, interpolation: str | None = None
) -> dict[str, torch.Tensor]:
    """Weights as the original class of `family` loads them, every second name included.

    `state` is anything that `canonical` takes. Second names share memory with the first, as in the
    originals; unused parts are zeros. Raises CheckpointRefused where the weights are not of that
    family, and CheckpointUnknown for a family that nobody published.
    """
    known = families()
    if family not in known:
        raise CheckpointUnknown(
            f"`{family}` is not a published family; known: {', '.join(sorted(known))}"
        )
    found, tensors = canonical(state, interpolation=interpolation)
    if found.family != family:
        raise CheckpointRefused(
            f"these weights ({found.dialect}) are of family `{found.family}`, not `{family}`"
        )
    layout = known[family]
    exported: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        exported[name] = value
        for alias in second_names(name, layout.aliases):
            exported[alias] = value
    like = next(value for value in tensors.values() if value.is_floating_point())
    for name, shape in layout.unused.items():
        exported[name] = like.new_zeros(shape)
    return exported


def _names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Unwrapped, with the `module.` that DataParallel leaves at the front taken off."""
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    names: dict[str, Any] = {}
    for key, value in state.items():
        # The front only: anywhere else `module.` would be part of a real name.
        name = re.sub(r"^(module\.)+", "", key) if isinstance(key, str) else repr(key)
        if name in names:
            raise CheckpointRefused(f"`{name}` is there twice, with and without `module.`")
        names[name] = value
    return names


def _recognise(
    names: Mapping[str, Any], *, interpolation: str | None, align_corners: bool
) -> tuple[Kind, Recognised]:
    kind = next((k for k in KINDS if any(s in names for s in k.signatures)), None)
    if kind is None:
        raise CheckpointUnknown(_unknown(names))
    if kind.architecture is None:
        raise CheckpointRefused(
            f"this is {kind.title}, for which there is no architecture here; "
            f"known: {', '.join(k.title for k in KINDS if k.architecture)}"
        )
    architecture = get(kind.architecture)
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise CheckpointRefused(
            f"unknown interpolation `{interpolation}`; known: {', '.join(INTERPOLATIONS)}"
        )
    parameters: dict[str, Any] = {"classes": _shape(names, f"{kind.output}.weight", 4)[0]}
    notes: tuple[str, ...] = ()
    if "upsampling" in architecture.choices:
        seen = _upsampling(names, kind)
        if seen is not None and (interpolation is not None or align_corners):
            raise CheckpointRefused(
                f"the decoder of this {kind.title} has kernels ({seen}); `interpolation` and "
                "`align_corners` concern decoders that interpolate"
            )
        if seen is None and interpolation is None:
            notes = (
                "names and shapes cannot tell nearest from bilinear upsampling: bilinear assumed",
                f"nor how bilinear treats corners: align_corners={align_corners} assumed",
            )
        parameters["upsampling"] = seen or interpolation or "bilinear"
        parameters["align_corners"] = align_corners
    elif interpolation is not None or align_corners:
        raise CheckpointRefused(f"a {kind.title} has one way of upsampling only")
    if "bottleneck" in architecture.choices:
        parameters["bottleneck"] = _shape(names, "bottleneck.conv1.weight", 4)[0]
    elif kind.output == "final":
        _check_filters(_shape(names, "final.weight", 4)[1])
    try:
        parameters = architecture.complete(parameters)
    except EngineError as exc:
        raise CheckpointRefused(f"this {kind.title} cannot be built: {exc.detail}") from exc
    return kind, Recognised(
        family=_family(kind, parameters),
        architecture=kind.architecture,
        parameters=parameters,
        dialect=_dialect(names, kind, parameters),
        notes=notes,
    )


def _upsampling(names: Mapping[str, Any], kind: Kind) -> str | None:
    """The decoder's way up as the names tell it; None where it interpolates in some way."""
    if kind.architecture == "unet":
        interpolates, kernel = "up.0.enlarge.0.weight", "up.0.enlarge.weight"
    else:
        interpolates, kernel = "center.block.2.conv.weight", "center.block.1.weight"
    if interpolates in names:
        return None
    size = _shape(names, kernel, 4)[3]
    return f"transposed-{size}x{size}"


def _shape(names: Mapping[str, Any], name: str, dimensions: int) -> tuple[int, ...]:
    value = names.get(name)
    if not isinstance(value, torch.Tensor):
        word = "is missing" if name not in names else f"is a {type(value).__name__}, not a tensor"
        raise CheckpointRefused(f"`{name}` {word}")
    if value.ndim != dimensions:
        raise CheckpointRefused(
            f"`{name}` should have {dimensions} dimensions, has shape {tuple(value.shape)}"
        )
    return tuple(value.shape)


def _check_filters(filters: int) -> None:
    if filters != FILTERS:
        raise CheckpointRefused(
            f"`final.weight` tells of `num_filters` {filters}; only {FILTERS} is supported, "
            "the value of every published file"
        )


def _family(kind: Kind, parameters: Mapping[str, Any]) -> str:
    for family in kind.families:
        if family.one_class and parameters["classes"] != 1:
            continue
        if not family.upsamplings or parameters["upsampling"] in family.upsamplings:
            return family.name
    assert kind.architecture is not None
    return kind.architecture


def _dialect(names: Mapping[str, Any], kind: Kind, parameters: Mapping[str, Any]) -> str:
    words = [kind.title]
    if "upsampling" in parameters:
        words.append(f"{parameters['upsampling']} upsampling")
    pairs = [
        (kept + ".weight" in names, alias + ".weight" in names)
        for family in kind.families
        for kept, alias in family.aliases.items()
    ]
    aliased = any(alias for _, alias in pairs)
    if aliased:
        both = any(kept and alias for kept, alias in pairs)
        words.append("encoder under both names" if both else "encoder under its second names")
    return ", ".join(words)


def _unknown(names: Mapping[str, Any]) -> str:
    looked = ", ".join(f"`{s}` ({k.title})" for k in KINDS for s in k.signatures)
    first = ", ".join(f"`{name[:80]}`" for name in list(names)[:5]) or "none"
    return (
        f"no known family: looked for {looked}; "
        f"known families: {', '.join(sorted(families()))}; first names seen: {first}"
    )


def _sound(name: str, value: Any) -> torch.Tensor:
    """The value as a dense tensor of finite floats (or a batch-norm counter)."""
    if not isinstance(value, torch.Tensor):
        raise CheckpointRefused(f"`{name[:80]}` is a {type(value).__name__}, not a tensor")
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise CheckpointRefused(f"`{name}` is not a dense tensor with values")
    if name.endswith("." + COUNTER):
        if value.dtype != torch.int64:
            raise CheckpointRefused(f"`{name}` should be int64, is {_word(value.dtype)}")
        return value.detach()
    if value.dtype not in FLOATS:
        raise CheckpointRefused(
            f"`{name}` should hold {', '.join(_word(f) for f in FLOATS[:-1])} or "
            f"{_word(FLOATS[-1])}, holds {_word(value.dtype)}"
        )
    # The sum is quick, and finite only where all values are; where it is not, it may be too large.
    if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
        raise CheckpointRefused(f"`{name}` holds NaN or infinity")
    return value.detach()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(
    tensors: Mapping[str, torch.Tensor], layout: Mapping[str, torch.Tensor], found: Recognised
) -> None:
    """Raise CheckpointRefused unless names and shapes are exactly those of the net."""
    what = f"weights do not fit {found.architecture} ({found.dialect})"
    missing = [name for name in layout if name not in tensors]
    if missing:
        raise CheckpointRefused(f"{what}: `{missing[0]}` is missing{_more(missing)}")
    extra = [name for name in tensors if name not in layout]
    if extra:
        raise CheckpointRefused(f"{what}: `{extra[0][:80]}` is left over{_more(extra)}")
    for name, expected in layout.items():
        if tensors[name].shape != expected.shape:
            raise CheckpointRefused(
                f"{what}: `{name}` should have shape {tuple(expected.shape)}, "
                f"has {tuple(tensors[name].shape)}"
            )


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
