"""A Ray Data job: masks for any number of pictures, on every machine of a cluster.

    pictures = ray.data.read_binary_files("s3://tiles/", include_paths=True)
    masks = segment(pictures, {"model_store": "s3://models/store"}, workers=8, num_gpus=1)
    masks.write_parquet("s3://masks/")

Each worker is an actor that keeps its model on its device and takes the very way of a request. A
bad picture makes one row that says so, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from app.api.app import rules_of
from app.assembly import engines_of, labels_of, store_of
from app.errors import TernausError
from app.serving.desk import Desk
from app.serving.house import House
from app.serving.segmenter import Answer, Ask
from app.settings import Settings

Batch = dict[str, NDArray[Any]]


class Worker:
    """Turns batches of rows with a column `bytes` into rows with `mask`, `model` and `error`.

    `options`: settings by their names in lower case without the prefix. The bytes of the picture
    are not passed on; all other columns are.
    """

    def __init__(self, options: Mapping[str, Any], ask: Ask, cores: int) -> None:
        settings = Settings.read(**{"engine_threads": cores or None, **options})
        store, engines = store_of(settings), engines_of(settings)
        self._ask = ask
        self._desk = Desk(
            lambda: House.local(rules_of(settings), resolve=store.resolve, open_engine=engines),
            labels_of(settings, store) if ask.model is None else (ask.model,),
        )

    def __call__(self, batch: Batch) -> Batch:
        """`mask`: bytes in the format that is asked for, empty where `error` says why."""
        answers = self._desk.segment([bytes(data) for data in batch["bytes"]], self._ask)
        found = {name: column for name, column in batch.items() if name != "bytes"}
        for index, name in enumerate(("mask", "model", "error")):
            column = np.empty(len(answers), object)
            column[:] = [_row(answer)[index] for answer in answers]
            found[name] = column
        return found


def _row(answer: Answer | TernausError) -> tuple[bytes, str, str]:
    if isinstance(answer, TernausError):
        return b"", "", f"{answer.code}: {answer.detail}"
    return answer.body, f"{answer.mask.model}@{answer.mask.version}", ""


def segment(
    pictures: ray.data.Dataset,
    options: Mapping[str, Any],
    *,
    ask: Ask | None = None,
    workers: int = 1,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    batch_size: int = 64,
) -> ray.data.Dataset:
    """Rows of `pictures` with their masks; lazy, as all of Ray Data is.

    `pictures` has a column `bytes`, as `ray.data.read_binary_files` makes it. `workers` actors are
    kept, each with `num_cpus` cores and `num_gpus` devices. Raises nothing by itself: settings that
    are wrong and models that cannot be opened fail the job when it runs.
    """
    return pictures.map_batches(
        Worker,
        fn_constructor_args=(dict(options), ask or Ask(), int(num_cpus or 0)),
        concurrency=workers,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        batch_size=batch_size,
        batch_format="numpy",
    )
