"""Nets for OpenVINO without weights: drawn once by torch, filled for each model without it.

A template is the graph of one variant of an architecture, whose tensors are inputs by their names
in the net; the normalisation's are `mean` and `scale`. It serves every model of that variant, of
any number of classes. To fill one is a matter of a moment; to draw one is done in a process of its
own (`converter.py`), which needs torch, or when an image is built (`docker/image/templates.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from app.engine.child import in_a_child
from app.engine.converter import GRAPH, LAYOUT
from app.engine.findings import key_of
from app.engine.kept import kept
from app.engine.openvino_library import openvino
from app.engine.weights import read_weights
from app.errors import EngineError
from app.types import ModelSpec, Task

log = logging.getLogger("ternaus.conversion")


def template_name(architecture: str, parameters: Mapping[str, Any], task: Task) -> str:
    """Changes with everything that the template depends on, our own sources included.

    `parameters` as a manifest has them; how many classes does not matter.
    """
    return "template-" + key_of(
        {
            "architecture": architecture,
            "parameters": {k: v for k, v in parameters.items() if k != "classes"},
            "multiclass": task == "multiclass",
            "openvino": openvino.get_version(),
            "sources": _sources(),
        }
    )


def template(spec: ModelSpec, cache_dir: Path, *, beside: bool = False) -> Path:
    """The folder of the template for `spec` below `cache_dir`; drawn now if missing or damaged.

    `beside`: another engine serves meanwhile and goes first. Raises EngineError for an unknown
    architecture or parameter, where torch is needed and not installed, and where `cache_dir` cannot
    be written.
    """

    def make(draft: Path) -> None:
        if find_spec("torch") is None:
            raise EngineError(
                f"{spec.label} asks for `{spec.architecture}` with {dict(spec.parameters)}, for "
                "which this server has no template, and torch, which draws one, is not installed"
                "\nhint: `architecture` or `parameters` of its manifest may be misspelled; an "
                "installation or image with torch says which are known"
            )
        log.info("drawing `%s` for OpenVINO, in a process of its own", spec.architecture)
        asked = {"architecture": spec.architecture, "parameters": dict(spec.parameters)}
        in_a_child({**asked, "task": spec.task}, draft, spec.label, beside=beside)

    name = template_name(spec.architecture, spec.parameters, spec.task)
    return kept(cache_dir / name, make)


def fill(folder: Path, spec: ModelSpec, target: Path) -> None:
    """Save the template in `folder` with the weights and the normalisation of `spec` in it.

    Raises ModelDamaged for weights that do not fit.
    """
    from openvino.passes import ConstantFolding, Manager

    layout = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
    arrays = read_weights(
        spec,
        {
            name: tuple(spec.channels if side is None else side for side in shape)
            for name, shape in layout.items()
        },
    )
    # As `Core` has them: in units of 0..255, computed in float32.
    shape = (1, 3, 1, 1)
    mean = (np.array(spec.mean, np.float32) * np.float32(255)).reshape(shape)
    scale = (1 / (np.array(spec.std, np.float32) * np.float32(255))).reshape(shape)
    values = {
        **{f"net.{name}": array.astype(np.float32, copy=False) for name, array in arrays.items()},
        "mean": mean,
        "scale": scale,
    }
    model = openvino.Core().read_model(folder / GRAPH)
    for place in model.get_parameters():
        name = place.get_friendly_name()
        if name in values:
            # Not copied: `values` outlives the graph.
            constant = openvino.op.Constant(values[name], shared_memory=True)
            constant.set_friendly_name(name)
            place.output(0).replace(constant.output(0))
            model.remove_parameter(place)
    model.validate_nodes_and_infer_types()
    # What the drawing computed from the shapes of tensors is known now; quantisation looks for
    # plain biases.
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    # Not compressed to float16: that would round the mean and the deviation too, and cost the
    # probabilities 3e-4.
    openvino.save_model(model, target, compress_to_fp16=False)


def _sources() -> str:
    """One digest over the code that draws and fills; found without importing torch."""
    found = find_spec("app.architectures")
    places = list(found.submodule_search_locations or ()) if found else []
    files = [Path(__file__).with_name(name) for name in ("converter.py", "core.py", "templates.py")]
    for place in places:
        files += sorted(Path(place).glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
