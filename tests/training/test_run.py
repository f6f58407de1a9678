"""A run learns, survives SIGKILL to the same bits, shares its work, and refuses what cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app.errors import CheckpointRefused, EngineError, TrainingError
from app.training.crops import crop_plan
from app.training.examples import Reading
from app.training.journal import rows_of
from app.training.material import Material
from app.training.nets import build
from app.training.ranks import Ranks
from app.training.run import Run
from app.training.schedule import SCHEDULES, factor
from app.training.train import train
from tests.training.pictures import write_pairs
from tests.training.runs import QUIET, tiny

ROOT = Path(__file__).parent.parent.parent
ALONE = Ranks(0, 1, torch.device("cpu"))
WALL_S = 120


def in_process(*arguments: str, module: tuple[str, ...] = ("-m",)) -> subprocess.Popen[bytes]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TERNAUS_")}
    return subprocess.Popen(
        [sys.executable, *module, *arguments],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def losses(run: str | Path) -> list[float]:
    return [row["loss"] for row in rows_of(Path(run) / "log.jsonl") if "loss" in row]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


def test_loss_falls_and_the_mask_is_learnt(tmp_path: Path) -> None:
    best = train(tiny(tmp_path, steps=16, average=0.8), console=QUIET)
    found = losses(tmp_path / "run")
    assert len(found) == 16
    assert np.mean(found[-4:]) < 0.6 * np.mean(found[:4])
    scores = [r["iou"] for r in rows_of(tmp_path / "run" / "log.jsonl") if "iou" in r]
    assert len(scores) == 4
    assert max(scores) > 0.7
    assert all(torch.isfinite(value).all() for value in load_file(best).values())


def test_run_describes_itself_whole(tmp_path: Path) -> None:
    plan = tiny(tmp_path, steps=1)
    train(plan, console=QUIET)
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert said["plan"] == plan.as_json()
    assert len(said["training"]) + len(said["validation"]) == 6
    assert not set(said["training"]) & set(said["validation"])


def test_same_plan_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    states = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        plan = tiny(tmp_path, out=str(tmp_path / out), seed=seed, steps=2)
        states.append(load_file(train(plan, console=QUIET)))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted; its data lie beside it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train(tiny(folder), console=QUIET)
    return folder / "run"


@pytest.fixture(scope="module")
def both(
    whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The same run by two processes, going on beside whatever else is tested; and its folder."""
    out = tmp_path_factory.mktemp("both") / "run"
    process = in_process(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "tests.training.resumed", str(whole.parent), str(out), "-1",
        module=(),
    )  # fmt: skip
    with process:
        yield process, out
        # SIGTERM and not SIGKILL: the launcher passes it on to its processes.
        process.terminate()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.usefixtures("both")
def test_killed_run_resumes_to_the_very_bits(whole: Path, tmp_path: Path) -> None:
    # Killed after step 5: step 4 was saved and scored, step 5 is done again.
    killed = in_process("tests.training.resumed", str(whole.parent), str(tmp_path / "run"), "5")
    out, _ = killed.communicate(timeout=WALL_S)
    assert killed.returncode == -signal.SIGKILL, out.decode()
    assert len(losses(tmp_path / "run")) == 5
    train(tiny(whole.parent, out=str(tmp_path / "run")), resume=True, console=QUIET)
    one, other = tmp_path / "run", whole
    assert (one / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()
    states = [torch.load(f / "last.pt", weights_only=True) for f in (one, other)]
    for part in ("net", "average"):
        assert same(states[0][part], states[1][part])
    for slow, fast in zip(
        states[0]["optimiser"]["state"].values(),
        states[1]["optimiser"]["state"].values(),
        strict=True,
    ):
        assert same(slow, fast)
    assert losses(one) == losses(other)
    assert len(losses(one)) == 8


def test_two_processes_learn_what_one_learns(
    whole: Path, both: tuple[subprocess.Popen[bytes], Path]
) -> None:
    process, folder = both
    out, _ = process.communicate(timeout=WALL_S)
    assert process.returncode == 0, out.decode()
    said = json.loads((folder / "run.json").read_text())
    assert said["processes"] == 2
    # The loss is that of the whole batch, Jaccard's sums included, so only rounding may differ.
    assert losses(folder) == pytest.approx(losses(whole), rel=2e-3)
    one, two = (load_file(f / "best.safetensors") for f in (whole, folder))
    assert list(one) == list(two)
    # Where a gradient is nothing but rounding, Adam's step has its sign and full length: one weight
    # in thousands may differ by as much as it moved, so all of them together are looked at.
    first = build(tiny(whole.parent), 1)[0].state_dict()
    apart = torch.cat([(one[k] - two[k]).flatten() for k in one])
    moved = torch.cat([(one[k] - first[k]).flatten() for k in one])
    assert apart.norm() < 0.1 * moved.norm()
    rows = rows_of(folder / "log.jsonl")
    assert [r["step"] for r in rows if "iou" in r] == [4, 8]


def test_folder_with_a_run_is_neither_overwritten_nor_mixed_up(tmp_path: Path) -> None:
    plan = tiny(tmp_path, steps=2)
    train(plan, console=QUIET)
    with pytest.raises(TrainingError, match="--resume"):
        train(plan, console=QUIET)
    with pytest.raises(TrainingError, match=r"`rate` was 0\.001, is 0\.002"):
        train(replace(plan, rate=2e-3), resume=True, console=QUIET)
    # What changes no number may change.
    train(replace(plan, report=5, save=7), resume=True, console=QUIET)


# Python 3.12 warns of every fork; the workers touch nothing that a thread could hold.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_draw_the_same_crops(tmp_path: Path) -> None:
    states = []
    for workers in (0, 1):
        plan = tiny(tmp_path, out=str(tmp_path / str(workers)), workers=workers, steps=2)
        states.append(load_file(train(plan, console=QUIET)))
    assert same(states[0], states[1])


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    plan = tiny(tmp_path, steps=2)
    train(plan, console=QUIET)
    (tmp_path / "run" / "last.pt").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="cannot be resumed"):
        train(plan, resume=True, console=QUIET)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    # Cross-entropy of fully labelled crops is a mean, so two halves are the whole.
    loss = {"cross-entropy": 1.0}
    crop = replace(tiny(tmp_path).crop, least_valid=1.0, zoom=(1.2, 1.2))
    states = []
    for out, batch, accumulate in (("whole", 4, 1), ("halves", 2, 2)):
        plan = tiny(
            tmp_path, out=str(tmp_path / out), batch=batch, accumulate=accumulate, loss=loss,
            crop=crop, steps=2,
        )  # fmt: skip
        train(plan, console=QUIET)
        states.append(losses(plan.out))
    assert states[0] == pytest.approx(states[1], rel=0.05)


def test_frozen_encoder_stays_until_it_thaws(tmp_path: Path) -> None:
    plan = tiny(tmp_path, architecture="ternausnet11", steps=3, freeze=2, score=9, batch=1)
    material = Material.of(plan)
    run = Run(plan, material, ALONE, resume=False)
    first = {k: v.clone() for k, v in run.net.state_dict().items()}
    crops = iter(run._loader())
    for _ in range(2):
        run._learn([next(crops)])
        run.step += 1
    second = {k: v.clone() for k, v in run.net.state_dict().items()}
    moved = {k for k in first if not torch.equal(first[k], second[k])}
    assert moved
    assert not any(name.startswith("encoder.") for name in moved)
    run.trained = run._wrap()
    run._learn([next(crops)])
    third = run.net.state_dict()
    assert any(not torch.equal(second[k], third[k]) for k in third if k.startswith("encoder."))


@pytest.mark.parametrize(
    ("classes", "changes"),
    [
        (2, {"reading": "background,red,green", "class_weights": (1.0, 2.0, 2.0)}),
        (1, {"loss": {"dice": 1.0, "focal": 2.0}, "half": True, "schedule": "poly"}),
        (1, {"loss": {"lovasz": 1.0}, "accumulate": 2, "schedule": "step"}),
    ],
)
def test_every_kind_of_run_goes(tmp_path: Path, classes: int, changes: dict[str, Any]) -> None:
    write_pairs(tmp_path / "data", [f"p{i}" for i in range(4)], classes=classes)
    if "reading" in changes:
        changes = {**changes, "reading": Reading(tuple(changes["reading"].split(",")))}
    best = train(tiny(tmp_path, steps=2, score=2, held_back=0.25, **changes), console=QUIET)
    assert load_file(best)["conv_final.weight"].shape[0] == (3 if classes == 2 else 1)


def test_run_goes_on_from_another_model_with_other_classes(tmp_path: Path) -> None:
    first = train(tiny(tmp_path, steps=1), console=QUIET)
    plan = tiny(tmp_path, start=str(first))
    for classes, kept in ((1, True), (3, False)):
        net, words = build(plan, classes)
        state, own = load_file(first), net.state_dict()
        assert torch.equal(own["down.0.l1.conv.weight"], state["down.0.l1.conv.weight"])
        assert torch.equal(own["conv_final.bias"][:1], state["conv_final.bias"]) == kept
        assert words.startswith("best (")
    with pytest.raises(TrainingError, match="not of the same architecture"):
        build(replace(plan, architecture="ternausnet11"), 1)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"crop": crop_plan("light", 70)}, TrainingError, "multiple of 32"),
        ({"architecture": "resnet"}, EngineError, "known: "),
        ({"schedule": "wavy"}, TrainingError, "known: cosine"),
        ({"scheme": "zeros"}, TrainingError, "known: he"),
        ({"loss": {"mse": 1.0}}, TrainingError, "unknown loss"),
        ({"held_back": 1.5}, TrainingError, "held_back"),
        ({"encoder": "imagenet"}, CheckpointRefused, "no torchvision encoder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_it_begins(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(tiny(tmp_path, **changes), console=QUIET)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_rates_warm_up_and_come_down() -> None:
    for name in SCHEDULES:
        rates = [factor(name, step, steps=100, warmup=10) for step in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert rates[9] == rates[10] == 1.0
        assert all(a >= b for a, b in pairwise(rates[10:]))
        assert all(rate > 0 for rate in rates)
    assert factor("cosine", 100, steps=100, warmup=10) == pytest.approx(0.02)
    assert factor("step", 60, steps=100, warmup=0) == 0.1


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    plan = tiny(tmp_path, rate=1e30, clip=1e30, warmup=0, steps=6)
    with pytest.raises(TrainingError, match="lower `--rate`"):
        train(plan, console=QUIET)
