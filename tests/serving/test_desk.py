"""The desk: pictures from ordinary code, several at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.encodings import base as encodings
from app.errors import PictureDamaged, SelfTestFailed
from app.serving.desk import Desk
from app.serving.house import House
from app.serving.segmenter import Answer, Ask
from tests.fakes import FakeEngine
from tests.server import encoded, picture, sampled, truth
from tests.serving.test_segmenter import rules


def house(engine: FakeEngine) -> House:
    return House.local(
        rules(), resolve=lambda label: engine.spec, open_engine=lambda spec, sample: engine
    )


def test_answers_come_in_order_and_a_bad_picture_hurts_no_other(tmp_path: Path) -> None:
    engine = FakeEngine(sampled(tmp_path))
    pictures = [picture(40 + i, 60, seed=i) for i in range(12)]
    files = [encoded(pixels) for pixels in pictures]
    files.insert(5, files[0][:200])
    with Desk(lambda: house(engine), ("fake",)) as desk:
        answers = desk.segment(files, Ask())
        assert desk.segment([], Ask()) == []
    assert isinstance(answers.pop(5), PictureDamaged)
    for pixels, answer in zip(pictures, answers, strict=True):
        assert isinstance(answer, Answer)
        assert (encodings.get("png").decode(answer.body)[0] == truth(pixels)).all()
    assert engine.closed


def test_model_that_fails_its_own_sample_opens_no_desk(tmp_path: Path) -> None:
    spec = sampled(tmp_path)
    (tmp_path / "sample.png").write_bytes(encoded(picture(seed=8)))
    engine = FakeEngine(spec)
    with pytest.raises(SelfTestFailed):
        Desk(lambda: house(engine), ("fake",))
    assert engine.closed
