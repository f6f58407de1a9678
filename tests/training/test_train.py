"""From data to a published model, on the way that the command line takes."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from app.cli import app
from app.engine.choose import open_engine
from app.engine.options import EngineOptions
from app.errors import TrainingError
from app.store.store import ModelStore
from app.training import charts, options
from app.training.charts import Curves, draw
from app.training.examples import Reading
from app.training.journal import Journal, rows_of
from app.training.losses import PAPER
from app.training.material import Material
from app.training.precision import computes_bfloat16
from app.training.progress import Bar, counted
from app.training.train import About, train, train_and_publish
from tests.training.pictures import write_pairs
from tests.training.runs import QUIET, tiny

TORCH = EngineOptions(device="cpu", backend="torch", precision="float32", batch_sizes=(1,))


def test_trained_model_is_published_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    plan = tiny(tmp_path, steps=12, average=0.8)
    store = ModelStore(tmp_path / "store")
    about = About("blobs", "Finds red blobs.", "CC0-1.0", "CC0-1.0", "Only for tests.")
    assert train_and_publish(plan, store=store, about=about, options=TORCH, console=QUIET) == (
        "blobs@1"
    )
    manifest = store.manifest("blobs")
    assert store.verify("blobs", finite=True).sound
    assert manifest.licence.identifier == "CC0-1.0"
    assert manifest.provenance.encoder == "none"
    assert manifest.provenance.more["plan"] == plan.as_json()
    said = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert manifest.threshold == said["threshold"] == said["best_threshold"]
    scores = {(s.measure, s.averaging): s for s in manifest.scores}
    assert scores["iou", "pixels"].value == pytest.approx(said["iou"], abs=1e-5)
    assert scores["iou", "pixels"].of_class == "foreground"
    assert scores["boundary-iou", "pixels"].pictures == 1
    spec = store.resolve("blobs")
    card = (Path(spec.weights).parent / "README.md").read_text()
    assert "Only for tests." in card
    assert str(tmp_path) not in card
    with Image.open(spec.sample_mask) as image:
        assert 0.01 < (np.asarray(image) > 0).mean() < 0.99
    # A run that is resumed after its end is not published twice.
    again = train_and_publish(
        plan, store=store, about=about, options=TORCH, console=QUIET, resume=True
    )
    assert again == "blobs@1"
    assert store.versions("blobs") == [1]


def test_several_classes_are_published_with_a_score_each(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", [f"p{i}" for i in range(4)], classes=2)
    reading = Reading(("background", "red", "green"))
    plan = tiny(tmp_path, steps=2, reading=reading, held_back=0.3)
    store = ModelStore(tmp_path / "store")
    train_and_publish(plan, store=store, about=About("two"), options=TORCH, console=QUIET)
    manifest = store.manifest("two")
    assert [c.name for c in manifest.classes] == ["background", "red", "green"]
    assert {s.of_class for s in manifest.scores} == {"red", "green"}
    assert manifest.threshold == 0.5


def test_name_that_no_store_takes_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be named"):
        train_and_publish(
            tiny(tmp_path), store=ModelStore(tmp_path / "s"), about=About("My Model"), console=QUIET
        )
    assert not (tmp_path / "run").exists()


# What a run is made of.


def test_pictures_held_back_are_of_other_ground(tmp_path: Path) -> None:
    west = [f"t-{x}-{y}-19" for x in (0, 1) for y in (0, 1)]
    east = [f"t-{x}-0-19" for x in (50, 51)]
    write_pairs(tmp_path / "data", [*west, *east], size=(64, 64))
    material = Material.of(tiny(tmp_path, held_back=0.3))
    assert sorted(e.name for e in material.validation) == sorted(east)
    assert sorted(material.training) == sorted(west)
    # Four tiles that touch are one ground, and a crop may reach across them.
    assert [len(town) for town in material.towns] == [1]
    assert material.pixels == 4 * 64 * 64
    assert material.epoch_steps(tiny(tmp_path)) == pytest.approx(2.0)


def test_places_are_weighed_and_validated_on_their_own(tmp_path: Path) -> None:
    for i, name in enumerate(("one", "two", "held")):
        write_pairs(tmp_path / name, ["a", "b"], seed=10 * i)
    plan = tiny(
        tmp_path,
        data={str(tmp_path / "one"): 1.0, str(tmp_path / "two"): 3.0},
        validate=(str(tmp_path / "held"),),
        memory=0,
    )
    material = Material.of(plan)
    assert material.shares == (1.0, 3.0)
    assert len(material.towns) == 2
    assert [e.name for e in material.validation] == ["a", "b"]
    kept = Material.of(replace(plan, memory=2**30))
    for index in range(3):
        for one, other in zip(material.crops(plan)[index], kept.crops(plan)[index], strict=True):
            assert bool((one == other).all())


def test_places_of_different_classes_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", ["a", "b"])
    for name in ("left", "top"):
        (tmp_path / "two" / "masks" / name).mkdir(parents=True)
    write_pairs(tmp_path / "two", ["c"], seed=5)
    mask = tmp_path / "two" / "masks" / "c.png"
    mask.rename(tmp_path / "two" / "masks" / "left" / "c.png")
    plan = tiny(tmp_path, data={str(tmp_path / "one"): 1.0, str(tmp_path / "two"): 1.0})
    with pytest.raises(TrainingError, match="hint: say which with `--class`"):
        Material.of(plan)


# Options.


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_options_become_a_plan(tmp_path: Path) -> None:
    assert options.shares(["a:3", "b", "c:d", "/x/y:0.5"]) == {
        "a": 3.0, "b": 1.0, "c:d": 1.0, "/x/y": 0.5,
    }  # fmt: skip
    assert options.weights(["dice", "focal:0.5"]) == {"dice": 1.0, "focal": 0.5}
    with pytest.raises(TrainingError, match="named twice"):
        options.shares(["a", "a:2"])
    with pytest.raises(TrainingError, match="`name:weight`"):
        options.weights(["dice:much"])
    with pytest.raises(TrainingError, match="F \\(down columns\\)"):
        options.reading(classes=(), task=None, ignore=None, order="Z")
    with pytest.raises(TrainingError, match="known: binary"):
        options.reading(classes=(), task="regression", ignore=None, order="F")
    assert options.start(None, ModelStore(tmp_path)) is None


def test_scale_of_training_is_the_scale_of_serving(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", [f"p{i}" for i in range(6)], size=(180, 240))
    plan = tiny(tmp_path, longest_side=80, steps=4)
    store = ModelStore(tmp_path / "store")
    train_and_publish(plan, store=store, about=About("small"), options=TORCH, console=QUIET)
    spec = store.resolve("small")
    assert spec.longest_side == 80
    with Image.open(spec.sample_picture) as sample, Image.open(spec.sample_mask) as mask:
        assert sample.size == mask.size == (80, 60)
    ground = Material.of(plan).towns[0][0].pyramid()
    assert ground.pictures[0].size == ground.labels[0][0].size == (80, 60)
    with pytest.raises(TrainingError, match="at least 32"):
        tiny(tmp_path, longest_side=31).check()


@pytest.mark.parametrize("zoom", ["2", "2:1", "0:1", "a:b", "1:", "1:inf", "nan:1"])
def test_zoom_that_is_no_range_is_refused(tmp_path: Path, zoom: str) -> None:
    refused = command("train", "--data", str(tmp_path), "--name", "n", "--zoom", zoom)
    assert refused.exit_code == 1
    assert "LOW:HIGH" in str(refused.exception)


def test_command_trains_publishes_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERNAUS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TERNAUS_MODEL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TERNAUS_BACKEND", "torch")
    data = write_pairs(tmp_path / "data", [f"p{i}" for i in range(6)])
    trained = command(
        "train", "--data", str(data), "--name", "blobs", "-o", str(tmp_path / "run"),
        "--architecture", "unet-surgical", "--encoder", "none", "--steps", "4", "--batch", "2",
        "--crop", "64", "--score", "2", "--rate", "0.001", "--workers", "0", "--float32",
        "--augmentation", "light", "--no-charts", "--loss", "cross-entropy", "--loss", "dice:0.5",
        "--class", "blob:#ff0000", "--device", "cpu", "--zoom", "0.8:1.25", "--average", "0.9",
    )  # fmt: skip
    assert trained.exit_code == 0, (trained.output, trained.exception)
    assert "published blobs@1" in trained.output
    report = tmp_path / "report.json"
    shown: list[Any] = []

    def seen(*arguments: Any, sample: Any = None, **others: Any) -> Any:
        shown.append(sample)
        return open_engine(*arguments, sample=sample, **others)

    monkeypatch.setattr("app.assembly.open_engine", seen)
    scored = command(
        "evaluate", "blobs", "--data", str(data), "--json", str(report), "--device", "cpu",
        "--sheet", str(tmp_path / "sheet.png"),
    )  # fmt: skip
    assert scored.exit_code == 0, (scored.output, scored.exception)
    assert "blob" in scored.output
    assert json.loads(report.read_text())["model"] == "blobs@1"
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    # The engine that serves is chosen on the model's sample, and so is the one that is scored.
    assert [sample.shape[2] for sample in shown] == [3]
    plan = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]
    assert plan["loss"] == {"cross-entropy": 1.0, "dice": 0.5} != PAPER
    assert plan["half"] is False
    assert (plan["crop"]["zoom"], plan["average"]) == ([0.8, 1.25], 0.9)


def planned(out: Path, half: bool | None = None) -> Any:
    return options.plan(
        data=["a"], name=None, out=out, validate=(), classes=(), task=None, ignore=None, order="F",
        upsampling=None, loss=(), class_weights=(), crop=64, augmentation="light", zoom=None,
        half=half,
    )  # fmt: skip


def test_precision_is_what_the_device_computes_and_a_run_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for native in (True, False):
        monkeypatch.setattr(options, "computes_bfloat16", lambda device, native=native: native)
        assert planned(tmp_path / "new").half is native
        assert planned(tmp_path / "new", half=not native).half is not native
        run = tmp_path / str(native)
        run.mkdir()
        (run / "run.json").write_text(json.dumps({"plan": {"half": not native}}))
        # Nothing was learnt there yet: the run begins afresh, on the device that is here.
        assert planned(run).half is native
        (run / "last.pt").touch()
        assert planned(run).half is not native
        (run / "run.json").write_text("{")
        assert planned(run).half is native


def test_processor_is_asked_what_its_convolutions_ask() -> None:
    layer, x = nn.Conv2d(8, 8, 3), torch.zeros(1, 8, 16, 16)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as seen, torch.no_grad():
        layer.bfloat16()(x.bfloat16())
    kernels = {event.key for event in seen.key_averages()}
    assert "aten::convolution" in kernels
    native = "aten::mkldnn_convolution" in kernels
    assert computes_bfloat16(torch.device("cpu")) is native


def test_emulated_precision_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for native, half in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr(
            "app.training.train.computes_bfloat16", lambda device, native=native: native
        )
        plan = tiny(tmp_path, steps=1, score=9, half=half, out=str(tmp_path / f"{native}-{half}"))
        train(plan, console=Console(file=sys.stdout, width=200))
        said = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("training: "))
        assert f"cpu, {'bfloat16' if half else 'float32'}" in said
        assert ("emulated" in said) == (half and not native)


def test_command_tells_mistakes_in_a_sentence(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", ["a", "b"])
    for arguments, words in (
        (["--data", str(data)], "needs `--name`"),
        (["--data", str(tmp_path / "none"), "--name", "x", "-o", str(tmp_path / "r")], "exist"),
        (["--data", str(data), "--name", "x", "--crop", "70"], "multiple of 32"),
        (["--data", str(data), "--name", "x", "--augmentation", "wild"], "known: aerial"),
    ):
        done = command("train", *arguments)
        assert isinstance(done.exception, TrainingError), done.output
        assert words in str(done.exception)


# What a run tells.


def test_log_is_rewound_to_where_a_run_goes_on(tmp_path: Path) -> None:
    class Heard(list[Any]):
        def told(self, row: dict[str, Any]) -> None:
            self.append(row)

        def close(self) -> None:
            self.append("closed")

    heard = Heard()
    journal = Journal(tmp_path / "log.jsonl", [heard])
    for step in (1, 2, 3):
        journal.note(step, loss=1.0 / step)
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')
    journal.rewind(2)
    assert [row["step"] for row in rows_of(journal.path)] == [1, 2]
    journal.close()
    journal.close()
    assert [row.get("past") for row in heard[3:5]] == [True, True]
    assert heard[5:] == ["closed"]


def test_progress_names_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(10, epoch_steps=4, console=Console(force_terminal=False, width=200))
    bar.told({"step": 2, "loss": 0.5, "pictures_per_second": 3.2, "minutes_left": 1.5})
    bar.told({"step": 2, "iou": 0.75})
    bar.told({"step": 1, "iou": 0.1, "past": True})
    bar.close()
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "step 2/10 epoch 0.50  loss 0.500  3.2 pictures/s  1.5 min left",
        "step 2/10 epoch 0.50  IoU 0.7500",
    ]


def test_pictures_are_counted_now_and_then_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = [0.0]
    monkeypatch.setattr("app.training.progress.time.monotonic", lambda: at[0])
    console = Console(force_terminal=False, width=200)
    with counted("scoring", console, 5) as tick:
        for seconds in (30.0, 61.0, 62.0, 122.0, 300.0):
            at[0] = seconds
            tick()
    # The last one says itself by what comes after.
    assert capsys.readouterr().out.splitlines() == [
        "scoring: 2 of 5 pictures", "scoring: 4 of 5 pictures",
    ]  # fmt: skip
    with counted("looking", console) as tick:
        at[0] = 400.0
        tick()
    assert capsys.readouterr().out == "looking: 1 pictures\n"
    bar = Bar(10, epoch_steps=4, console=console)
    tick = bar.scoring(2)
    at[0] = 500.0
    tick()
    bar.close()
    assert capsys.readouterr().out == "scoring: 1 of 2 pictures\n"


def test_pictures_are_counted_one_by_one_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    bar = Bar(10, epoch_steps=4, console=console)
    tick = bar.scoring(2)
    tick()
    bar.close()
    assert "scoring: 1 of 2 pictures" in out.getvalue()


def test_published_weights_are_scored_once_where_the_run_knew_their_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny(tmp_path, steps=4)
    thresholds = []

    def opened(spec: Any, options: EngineOptions) -> Any:
        thresholds.append(spec.threshold)
        return open_engine(spec, options)

    monkeypatch.setattr("app.training.finishing.open_engine", opened)
    store = ModelStore(tmp_path / "store")
    train_and_publish(plan, store=store, about=About("a"), options=TORCH, console=QUIET)
    said = json.loads((tmp_path / "run" / "scores.json").read_text())
    rows = [row for row in rows_of(tmp_path / "run" / "log.jsonl") if "iou" in row]
    assert thresholds[0] == max(rows, key=lambda row: row["iou"])["threshold"]
    assert thresholds[-1] == said["threshold"] == said["best_threshold"]
    assert len(thresholds) == 1 + (thresholds[0] != said["best_threshold"])


def test_curves_are_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = Curves(tmp_path / "curves.png")
    for step in range(5):
        curves.told({"step": step, "loss": 1.0 / (1 + step), "rate": 0.1})
    curves.told({"step": 5, "iou": 0.5})
    curves.close()
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size[0] > 500


def test_runs_of_one_kind_are_drawn_in_one_colour(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {"a": [[(0.0, 0.1), (1.0, 0.9)], [(0.0, 0.2), (1.0, 0.8)]], "b": [[(0.0, 0.5)]]}
    charts.draw_lines(runs, tmp_path / "runs.png", across="minutes", up="IoU")
    with Image.open(tmp_path / "runs.png") as image:
        colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    # matplotlib's first two colours, and not its third.
    assert {(31, 119, 180), (255, 127, 14)} <= colours
    assert (44, 160, 44) not in colours


def test_tensorboard_logs_are_written_where_it_is(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = charts.Board(tmp_path / "board")
    board.told({"step": 1, "loss": 0.5})
    board.close()
    (file,) = (tmp_path / "board").iterdir()
    assert b"loss" in file.read_bytes()


def test_missing_extras_are_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in `sys.modules` is how Python itself says that a module cannot be imported.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(TrainingError, match=r"hint: `pip install 'ternausnet-serve\[train\]'`"):
        draw([{"step": 1, "loss": 0.5}], tmp_path / "curves.png")
