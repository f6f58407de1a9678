"""The command line as a process, on the shipped model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.processes import ROOT
from tests.journeys.test_serve import MODEL, agree, sample

pytestmark = pytest.mark.journey


def ternaus(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TERNAUS_")}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_folder_of_pictures_becomes_a_folder_of_masks(warm_cache: str, tmp_path: Path) -> None:
    data, expected = sample()
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "photos" / "a.2.jpg").write_bytes(data)
    (tmp_path / "photos" / "deep" / "b.jpg").write_bytes(data)
    (tmp_path / "photos" / "notes.txt").write_text("not a picture")
    done = ternaus(
        "segment",
        str(tmp_path / "photos"),
        "-o",
        str(tmp_path / "masks"),
        TERNAUS_CACHE_DIR=warm_cache,
    )
    assert done.returncode == 0, done.stderr
    masks = sorted(
        p.relative_to(tmp_path / "masks").as_posix() for p in (tmp_path / "masks").rglob("*.*")
    )
    assert masks == ["a.2.png", "deep/b.png"]
    for name in masks:
        with Image.open(tmp_path / "masks" / name) as image:
            assert agree(np.asarray(image) > 0, expected) > 0.99


def test_bad_picture_is_named_and_the_others_are_done(warm_cache: str, tmp_path: Path) -> None:
    data, _ = sample()
    (tmp_path / "good.jpg").write_bytes(data)
    (tmp_path / "bad.jpg").write_bytes(data[:500])
    done = ternaus(
        "segment",
        str(tmp_path),
        "-o",
        str(tmp_path / "masks"),
        "--format",
        "rle",
        TERNAUS_CACHE_DIR=warm_cache,
    )
    assert done.returncode == 1
    assert "bad.jpg" in done.stderr
    assert (tmp_path / "masks" / "good.json").exists()
    assert not (tmp_path / "masks" / "bad.json").exists()


def test_models_are_listed_and_verified() -> None:
    listed = ternaus("models", "list", COLUMNS="200")
    assert listed.returncode == 0, listed.stderr
    assert MODEL in listed.stdout
    verified = ternaus("models", "verify")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (("serve",), {"TERNAUS_PROT": "1"}, 2, "TERNAUS_PORT"),
        (("serve",), {"TERNAUS_PORT": "many"}, 2, "TERNAUS_PORT"),
        (("models", "verify", "nobody"), {}, 1, "nobody"),
        (("segment", "no-such-file.jpg"), {}, 1, "no-such-file.jpg"),
        (("segment", "README.md", "--format", "tiff"), {}, 1, "unknown format"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: tuple[str, ...], environment: dict[str, str], code: int, words: str
) -> None:
    done = ternaus(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
