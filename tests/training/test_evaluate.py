"""Scores through an engine, in tiles, and over HTTP are the same scores."""

from __future__ import annotations

import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.errors import TrainingError
from app.training.evaluate import Report, evaluate_places
from app.training.segmenters import EngineSegmenter, HttpSegmenter
from app.types import ClassSpec, Halo
from tests.fakes import FakeEngine, model_spec
from tests.server import Running, running
from tests.training.pictures import write_pairs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Blobs are red 230 on noise below 90: the fake engine, which looks at red, finds them all."""
    folder = write_pairs(tmp_path / "data", ["a", "b", "c"], size=(90, 130))
    # One mask says too much, so that scores are not all 1.
    wrong = np.asarray(Image.open(folder / "masks" / "b.png")).copy()
    wrong[:30] = 255
    Image.fromarray(wrong).save(folder / "masks" / "b.png")
    return folder


def scored(data: Path) -> Report:
    return evaluate_places(EngineSegmenter(FakeEngine()), [str(data)])


def test_engine_is_scored_by_class_and_picture(data: Path) -> None:
    report = scored(data)
    by_name = {p.name: p.counts[0] for p in report.pictures}
    assert by_name["a"].iou == by_name["c"].iou == 1.0
    iou = by_name["b"].iou
    assert iou is not None
    assert iou < 1
    assert by_name["b"].precision == 1.0
    scores = report.classes[0].scores
    assert scores.mean_iou == pytest.approx((2 + iou) / 3)
    # Above 230 / 255 nothing is found any more.
    assert report.sweep[0.95] == (0.0,)
    assert report.sweep[0.5] == (scores.iou,)
    assert report.best_threshold() == 0.5


def test_tiles_give_the_scores_of_the_whole(data: Path) -> None:
    engine = FakeEngine(model_spec(halo=Halo(0, 0, 0, 0)))
    tiled = evaluate_places(EngineSegmenter(engine, whole_pixels=64 * 64, tile=64), [str(data)])
    assert len(engine.batches) == 15
    assert tiled.json() == scored(data).json()


def test_server_gives_the_scores_of_the_engine(data: Path, tmp_path: Path) -> None:
    with running(tmp_path) as server:
        segmenter = HttpSegmenter(server.url, "fake", client=server.client)
        assert segmenter.model.classes == (ClassSpec("bright", (255, 0, 0)),)
        report = evaluate_places(segmenter, [str(data)])
    assert report.json() == scored(data).json()


def test_server_without_the_model_or_without_a_server_is_told(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert isinstance(server, Running)
        with pytest.raises(TrainingError, match="answered 404"):
            HttpSegmenter(server.url, "nobody", client=server.client)
    with pytest.raises(TrainingError, match="does not answer"):
        HttpSegmenter("http://127.0.0.1:9", "fake")


def test_busy_server_is_asked_again_when_it_says() -> None:
    waits: list[float] = []
    answers = [(503, {"retry-after": "3"}), (429, {}), (200, {})]

    def answer(request: httpx.Request) -> httpx.Response:
        status, headers = answers.pop(0)
        classes = [{"name": "bg", "colour": "#000000"}, {"name": "x", "colour": "#0a0b0c"}]
        model = {
            "name": "m",
            "version": 2,
            "task": "multiclass",
            "threshold": None,
            "classes": classes,
        }
        return httpx.Response(status, headers=headers, json=model)

    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server")
    segmenter = HttpSegmenter("http://server", "m", client=client, pause=waits.append)
    assert waits == [3.0, 1.0]
    assert segmenter.model.label == "m@2"
    assert segmenter.model.listed == (ClassSpec("x", (10, 11, 12)),)


def test_report_is_written_whole_and_shown_as_a_table(data: Path) -> None:
    report = scored(data)
    said = json.loads(report.json())
    assert set(said["pictures"]) == {"a", "b", "c"}
    assert said["classes"]["bright"]["counted"] == 3
    assert said["pictures"]["a"]["bright"]["boundary_iou"] == 1.0
    assert "bright" in report.table()


def test_contact_sheet_shows_worst_and_best(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    evaluate_places(EngineSegmenter(FakeEngine()), [str(data)], sheet=path)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # Missed ground of `b`, in blue, stands on the left, where the worst are.
    blue = (pixels[..., 2] > pixels[..., 0] + 60) & (pixels[..., 2] > pixels[..., 1] + 60)
    green = (pixels[..., 1] > pixels[..., 0] + 20) & (pixels[..., 1] > pixels[..., 2] + 60)
    assert blue[:, : pixels.shape[1] // 2].sum() > 500
    assert green.any()


def test_data_of_other_classes_is_refused_before_it_is_scored(data: Path) -> None:
    spec = model_spec(
        task="multiclass", classes=tuple(ClassSpec(f"c{i}", (i, 0, 0)) for i in range(3))
    )
    many = write_pairs(data.parent / "many", ["m"], classes=4)
    with pytest.raises(TrainingError, match="holds 3, 4, which is no class"):
        evaluate_places(EngineSegmenter(FakeEngine(spec)), [str(many)])
    with pytest.raises(TrainingError, match="has 3 classes, the data"):
        evaluate_places(EngineSegmenter(FakeEngine(spec)), [str(data)], classes=["a", "b"])
