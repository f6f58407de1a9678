"""Folders, CSV and COCO are read to the same labels; whatever is bad is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from app.encodings.kaggle import encode_runs
from app.errors import TrainingError
from app.training.examples import Collection, Reading, open_data
from app.training.losses import IGNORE
from app.training.polygons import fill
from app.training.survey import require_sound, survey
from tests.training.pictures import blobs, write_pairs


def save(path: Path, array: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def only(found: Collection) -> NDArray[np.uint8]:
    """The labels of a collection's one example."""
    (example,) = found.examples
    return example.read().labels


# Folders.


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("images/a.jpg", "masks/a.png"),
        ("imgs/a.png", "labels/a_mask.png"),
        ("a.jpg", "a.png"),
        ("a.jpg", "a_mask.gif"),
        ("a.png", "a.mask.png"),
    ],
)
def test_pairs_are_found_in_folders_and_in_one_flat_folder(
    tmp_path: Path, picture: str, mask: str
) -> None:
    pixels, labels = blobs(40, 50, seed=1)
    save(tmp_path / picture, pixels)
    save(tmp_path / mask, labels * np.uint8(255))
    found = open_data(tmp_path, Reading())
    assert (found.task, found.problems) == ("binary", ())
    np.testing.assert_array_equal(only(found)[0], labels)


def test_masks_of_one_bit_and_of_any_value_count(tmp_path: Path) -> None:
    pixels, labels = blobs(40, 50, seed=2)
    save(tmp_path / "images" / "a.png", pixels)
    save(tmp_path / "masks" / "a.png", labels.astype(bool))
    np.testing.assert_array_equal(only(open_data(tmp_path, Reading()))[0], labels)


def test_lossy_masks_are_read_at_half_brightness_and_never_as_values(tmp_path: Path) -> None:
    pixels, labels = blobs(64, 64, seed=2)
    save(tmp_path / "images" / "a.png", pixels)
    save(tmp_path / "masks" / "a.jpg", labels * np.uint8(255), quality=60)
    found = only(open_data(tmp_path, Reading()))[0]
    assert (found == labels).mean() > 0.99
    with pytest.raises(TrainingError, match="saved with loss"):
        only(open_data(tmp_path, Reading(classes=("roof=255",))))


def test_value_and_ignore_label_read_a_trimap(tmp_path: Path) -> None:
    trimap = np.array([[1, 2, 3]] * 4, np.uint8)
    save(tmp_path / "images" / "a.png", np.zeros((4, 3, 3), np.uint8))
    save(tmp_path / "masks" / "a.png", trimap)
    reading = Reading(classes=("animal=1",), ignore=3)
    assert only(open_data(tmp_path, reading))[0, 0].tolist() == [1, 0, IGNORE]


def test_indices_are_classes_and_255_is_ignored(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2, 255]] * 3, np.uint8)
    save(tmp_path / "images" / "a.png", np.zeros((3, 4, 3), np.uint8))
    palette = Image.fromarray(values)
    (tmp_path / "masks").mkdir()
    palette.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    palette.save(tmp_path / "masks" / "a.png")
    found = open_data(tmp_path, Reading(classes=("background", "road", "car")))
    assert found.task == "multiclass"
    assert only(found)[0, 0].tolist() == [0, 1, 2, IGNORE]


def test_colours_are_classes(tmp_path: Path) -> None:
    colours = np.array([[[0, 0, 0], [255, 0, 0], [0, 0, 255]]] * 2, np.uint8)
    save(tmp_path / "images" / "a.png", np.zeros((2, 3, 3), np.uint8))
    save(tmp_path / "masks" / "a.png", colours)
    texts = ("background:#000000", "roof:#ff0000", "pool:#0000ff")
    assert only(open_data(tmp_path, Reading(classes=texts)))[0, 0].tolist() == [0, 1, 2]
    with pytest.raises(TrainingError, match="#0000ff"):
        only(open_data(tmp_path, Reading(classes=(*texts[:2], "tree:#00ff00"))))


def test_folder_for_each_class_makes_overlapping_classes(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    left, top = np.zeros((2, 4, 4), np.uint8)
    left[:, :2], top[:2] = 255, 255
    save(tmp_path / "masks" / "left" / "a.png", left)
    save(tmp_path / "masks" / "top" / "a.png", top)
    found = open_data(tmp_path, Reading())
    assert (found.task, [c.name for c in found.classes]) == ("multilabel", ["left", "top"])
    np.testing.assert_array_equal(only(found), np.stack([left, top]) // 255)
    exclusive = open_data(tmp_path, Reading(task="multiclass"))
    assert [c.name for c in exclusive.classes] == ["background", "left", "top"]
    assert only(exclusive)[0].tolist()[0] == [2, 2, 2, 2]


def test_everything_bad_is_named_at_once(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["good", "small", "torn", "odd", "alone"], size=(40, 40))
    save(tmp_path / "masks" / "small.png", np.zeros((40, 41), np.uint8))
    whole = (tmp_path / "images" / "torn.png").read_bytes()
    (tmp_path / "images" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "masks" / "alone.png").unlink()
    save(tmp_path / "masks" / "nobody.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "masks" / "odd.png").write_bytes(b"not a picture")
    (found,) = survey([str(tmp_path)], Reading())
    with pytest.raises(TrainingError) as caught:
        require_sound([found], [found], skip_bad=False)
    text = str(caught.value)
    for words in (
        "small.png` is 40 x 40, its mask 41 x 40",
        "torn.png",
        "`odd.png",
        "has no mask",
        "is the mask of no picture",
    ):
        assert words.replace("`odd.png", "odd.png") in text
    assert [c.example.name for c in found.checked] == ["good"]


def test_bad_files_can_be_left_out_and_leaks_cannot(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", ["p", "q"], size=(40, 40))
    write_pairs(tmp_path / "b", ["r"], size=(40, 40), seed=9)
    (tmp_path / "a" / "masks" / "q.png").unlink()
    (one,), (other,) = (survey([str(tmp_path / n)], Reading()) for n in "ab")
    assert require_sound([one], [other], skip_bad=True)
    with pytest.raises(TrainingError, match="the same picture as `p`, which is trained on"):
        require_sound([one], [one], skip_bad=True)


def test_class_without_a_pixel_to_learn_from_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["p"], size=(40, 40), classes=2)
    reading = Reading(classes=("background", "a", "b", "c"))
    (found,) = survey([str(tmp_path)], reading)
    with pytest.raises(TrainingError, match="class `c` has no pixel"):
        require_sound([found], [], skip_bad=True)


def test_values_of_no_class_are_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["p"], size=(40, 40), classes=3)
    (found,) = survey([str(tmp_path)], Reading(classes=("background", "a")))
    assert "holds 2, 3, which is no class" in found.problems[0]


def test_two_pictures_of_one_stem_are_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["p"], size=(40, 40))
    save(tmp_path / "images" / "p.jpg", np.zeros((40, 40, 3), np.uint8))
    assert "have one stem" in open_data(tmp_path, Reading()).problems[0]


def test_folder_without_data_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="COCO"):
        open_data(tmp_path, Reading())
    with pytest.raises(TrainingError, match="does not exist"):
        open_data(tmp_path / "nowhere", Reading())


# Tables.


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("header", ["id,rle", "img,rle_mask", "ImageId,EncodedPixels"])
def test_run_lengths_become_labels(tmp_path: Path, order: Any, header: str) -> None:
    pixels, labels = blobs(30, 44, seed=3)
    save(tmp_path / "images" / "a.png", pixels)
    save(tmp_path / "images" / "b.png", pixels[::-1])
    half = labels.astype(bool)
    first, second = half.copy(), half.copy()
    first[:, 20:], second[:, :20] = False, False
    rows = [f"a.png,{encode_runs(first, order)}", f"a.png,{encode_runs(second, order)}", "b.png,"]
    (tmp_path / "train.csv").write_text("\n".join([header, *rows, ""]))
    found = open_data(tmp_path, Reading(order=order))
    assert found.task == "binary"
    by_name = {e.name: e.read().labels[0] for e in found.examples}
    np.testing.assert_array_equal(by_name["a"], labels)
    assert not by_name["b"].any()


def test_class_column_makes_overlapping_classes(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "t.csv").write_text(
        "ImageId,ClassId,EncodedPixels\na.png,rust,1 4\na.png,dent,1 2\n"
    )
    found = open_data(tmp_path / "t.csv", Reading())
    assert (found.task, [c.name for c in found.classes]) == ("multilabel", ["dent", "rust"])
    labels = only(found)
    assert (labels[0].sum(), labels[1].sum()) == (2, 4)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    table = tmp_path / "t.csv"
    table.write_text("id,rle\na,15 9\nghost,1 1\n")
    (found,) = survey([str(table)], Reading())
    assert any("ends after the 16 pixels" in problem for problem in found.problems)
    assert any("`ghost`" in problem for problem in found.problems)
    table.write_text("id,rle\na,1 1,2\n")
    with pytest.raises(TrainingError, match="line 2"):
        open_data(table, Reading())


# COCO.


def write_coco(folder: Path, segmentations: list[tuple[int, Any]], size: tuple[int, int]) -> Path:
    save(folder / "images" / "a.png", np.zeros((*size, 3), np.uint8))
    said = {
        "images": [{"id": 7, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "roof"}, {"id": 3, "name": "tree"}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": category, "segmentation": segmentation}
            for i, (category, segmentation) in enumerate(segmentations)
        ],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(said))
    return path


def test_coco_run_lengths_are_read_as_pycocotools_reads_them(tmp_path: Path) -> None:
    _, labels = blobs(30, 44, seed=5)
    rle = coco_mask.encode(np.asfortranarray(labels))
    plain = {"size": [30, 44], "counts": _counts(labels)}
    compressed = {"size": [30, 44], "counts": rle["counts"].decode()}
    path = write_coco(tmp_path, [(1, compressed), (3, plain)], (30, 44))
    found = open_data(path, Reading())
    assert (found.task, [c.name for c in found.classes]) == ("multilabel", ["roof", "tree"])
    np.testing.assert_array_equal(only(found), np.stack([labels, labels]))


def _counts(labels: NDArray[np.uint8]) -> list[int]:
    flat = np.concatenate([[0], labels.ravel(order="F"), [2]])
    borders = np.flatnonzero(np.diff(flat)).tolist()
    return [b - a for a, b in zip([0, *borders[:-1]], borders, strict=True)]


def test_coco_polygons_agree_with_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        radii = random.uniform(20, 60, 9)
        ring = np.stack([75 + radii * np.cos(angles), 70 + radii * np.sin(angles)], 1).ravel()
        theirs = coco_mask.decode(coco_mask.frPyObjects([ring.tolist()], 140, 150))[..., 0] > 0
        ours = fill(ring.tolist(), 140, 150)
        # They round corners to fifths of a pixel; only pixels along the contour may differ.
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97


def test_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    square = fill([1, 1, 4, 1, 4, 3, 1, 3], 5, 6)
    assert square.sum() == 6
    assert square[1:3, 1:4].all()
    assert fill([-5, -5, 50, -5, 50, 50, -5, 50], 5, 6).all()
    with pytest.raises(ValueError, match="three corners"):
        fill([0, 0, 1, 1], 5, 6)


def test_coco_as_exclusive_classes_puts_small_over_large(tmp_path: Path) -> None:
    large = [[0, 0, 8, 0, 8, 8, 0, 8]]
    small = [[2, 2, 4, 2, 4, 4, 2, 4]]
    path = write_coco(tmp_path, [(3, small), (1, large)], (8, 8))
    labels = only(open_data(path, Reading(task="multiclass")))[0]
    assert (labels == 1).sum() == 60
    assert (labels[2:4, 2:4] == 2).all()


def test_coco_of_one_wanted_category_is_binary(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [(1, [[0, 0, 8, 0, 8, 8, 0, 8]])], (8, 8))
    found = open_data(path, Reading(classes=("tree",)))
    assert found.task == "binary"
    assert not only(found).any()
    with pytest.raises(TrainingError, match="no category `pool`; known: roof, tree"):
        open_data(path, Reading(classes=("pool",)))


def test_broken_coco_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(TrainingError, match="is not COCO"):
        open_data(tmp_path / "a.json", Reading())
    path = write_coco(tmp_path / "b", [(1, {"size": [8, 8], "counts": [1, 2]})], (8, 8))
    (found,) = survey([str(path)], Reading(classes=("roof",)))
    assert "do not sum to 64" in found.problems[0]
