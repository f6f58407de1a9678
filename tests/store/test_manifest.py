"""A manifest says all that serving needs, in one form, and names the field that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.errors import ManifestInvalid
from app.store.manifest import (
    MANIFEST_LIMIT,
    Draft,
    Manifest,
    complete,
    manifest_schema,
    manifest_text,
    parse_draft,
    parse_manifest,
)
from app.store.tensors import signatures_digest
from tests.store.makers import draft

GOLDEN = Path(__file__).parents[1] / "golden" / "store"
HOW = "write it anew with `python -m tests.store.golden` and look at the difference"
SHAPES = {"encoder.0.weight": "F32[4,3,3,3]", "final.weight": "F32[1,4,1,1]", "steps": "I64[]"}


def measured(**changes: Any) -> dict[str, Any]:
    names = ("weights.safetensors", "sample.jpg", "sample.mask.png", "README.md")
    found: dict[str, Any] = {
        "name": "lungs",
        "version": 3,
        "files": {name: {"sha256": f"{i}" * 64, "size": 10 + i} for i, name in enumerate(names)},
        "tensors": {"digest": signatures_digest(SHAPES), "elements": 113, "shapes": SHAPES},
    }
    return found | changes


def example() -> Manifest:
    return complete(parse_draft(draft()), **measured())


def parse(raw: bytes, version: int = 3) -> Manifest:
    return parse_manifest(raw, where="m/lungs/3/manifest.json", name="lungs", version=version)


def edited(path: str, value: Any) -> bytes:
    """The example with one field, such as `input.halo.top` or `classes.0.name`, replaced."""
    whole = json.loads(manifest_text(example()))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place = whole
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(whole).encode()


def test_text_is_the_golden_one() -> None:
    assert manifest_text(example()) == (GOLDEN / "manifest.json").read_text("utf-8"), HOW


def test_schema_is_the_golden_one() -> None:
    golden = json.loads((GOLDEN / "manifest.schema.json").read_text("utf-8"))
    assert manifest_schema() == golden, HOW


def test_schema_accepts_the_example_and_refuses_an_unknown_field() -> None:
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    validator = jsonschema.Draft202012Validator(manifest_schema())
    whole = json.loads(manifest_text(example()))
    assert list(validator.iter_errors(whole)) == []
    assert list(validator.iter_errors(whole | {"treshold": 0.5}))


def test_every_field_is_written_and_documented() -> None:
    assert set(json.loads(manifest_text(example()))) == set(Manifest.model_fields)
    for name, field in Manifest.model_fields.items():
        assert field.description, name


def test_text_reads_back_as_the_same_manifest() -> None:
    manifest = example()
    assert parse(manifest_text(manifest).encode()) == manifest
    assert manifest_text(parse(manifest_text(manifest).encode())) == manifest_text(manifest)


@given(
    note=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    more=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=3,
    ),
)
def test_any_provenance_reads_back_unchanged(note: str, more: dict[str, Any]) -> None:
    provenance = draft()["provenance"] | {"note": note, "more": more}
    manifest = complete(parse_draft(draft(provenance=provenance)), **measured())
    again = parse(manifest_text(manifest).encode())
    assert again.provenance.more == more
    assert again.provenance.note == note


def test_manifest_cannot_be_changed() -> None:
    manifest = example()
    with pytest.raises(ValidationError, match="frozen"):
        manifest.threshold = 0.3


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("format", 2, "`format`: expected 1, found 2"),
        ("threshold", ..., "`threshold`: expected a value, found nothing"),
        ("threshold", 0, "`threshold`: expected greater than 0, found 0"),
        ("threshold", 1.0, "`threshold`: expected less than 1, found 1.0"),
        ("threshold", "0.5", '`threshold`: expected a valid number, found "0.5"'),
        ("treshold", 0.5, "`treshold`: expected no field of that name, found 0.5"),
        ("name", "Lungs", "`name`: expected at most 64 of the characters a-z"),
        ("version", 0, "`version`: expected greater than or equal to 1, found 0"),
        ("version", True, "`version`: expected a valid integer, found true"),
        ("architecture", "../net", "`architecture`: expected at most 64 of"),
        ("task", "panoptic", "`task`: expected 'binary', 'multilabel' or 'multiclass'"),
        ("precision", "int4", "`precision`: expected 'auto', 'float32' or 'bfloat16'"),
        ("classes", [], "`classes`: expected Tuple should have at least 1 item"),
        ("classes/0/name", "", "`classes[0].name`: expected String should have at least 1"),
        ("classes/0/name", " lung", "`classes[0].name`: expected printable characters"),
        ("classes/0/name", "a\u0000b", "`classes[0].name`: expected printable characters"),
        ("classes/0/colour/2", 256, "`classes[0].colour[2]`: expected less than or equal to 255"),
        ("classes/0/colour", [1, 2], "`classes[0].colour[2]`: expected a value, found nothing"),
        ("input/std/1", 0, "`input.std[1]`: expected greater than 0, found 0"),
        ("input/stride", 48, "`input.stride`: expected a power of two, found 48"),
        ("input/stride", 2048, "`input.stride`: expected less than or equal to 1024"),
        ("input/halo/top", 100, "`input.halo`: expected multiples of the stride, 32"),
        ("input/halo/top", -32, "`input.halo.top`: expected greater than or equal to 0"),
        ("input/fit", "resize", "`input.fit`: expected 'pad', found \"resize\""),
        ("sample", ..., "`sample`: expected a value, found nothing"),
        ("sample/picture", "a/b.jpg", "`sample.picture`: expected a plain file name"),
        ("sample/mask", "mask.gif", "`sample.mask`: expected a `.png` or `.json` file"),
        ("sample/picture", "other.jpg", "`files`: expected an entry for `other.jpg`"),
        ("files/README.md", ..., "`files`: expected an entry for `README.md`"),
        ("files/manifest.json", {}, "expected a file other than `manifest.json`"),
        ("files/..", {}, "expected a plain file name"),
        ("files/README.md/sha256", "0" * 63, "`files.README.md.sha256`: expected String should"),
        ("files/README.md/size", 0, "`files.README.md.size`: expected greater than or equal"),
        ("tensors/elements", 114, "`tensors.shapes`: expected shapes that hold `elements`"),
        ("tensors/digest", "0" * 64, "`tensors.shapes`: expected shapes whose digest"),
        ("tensors/shapes/steps", "I64", "`tensors.shapes`: expected type and shape such as"),
        ("parameters/classes", 2, "`classes`: expected as many classes as `parameters.classes`"),
        ("scores/0/of_class", "liver", "`scores`: expected scores of the model's classes"),
        ("provenance/date", "yesterday", "`provenance.date`: expected a valid date"),
        ("licence/identifier", "", "`licence.identifier`: expected String should have at least"),
    ],
)
def test_wrong_field_is_named_with_what_was_expected(path: str, value: Any, told: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse(edited(path, value))
    assert "`m/lungs/3/manifest.json`" in caught.value.detail
    assert told in caught.value.detail


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"classes": [{"name": "a", "colour": [0, 0, 0]}, {"name": "a", "colour": [1, 1, 1]}]},
            "each class name once, not `a` again",
        ),
        (
            {"classes": [{"name": "a", "colour": [0, 0, 0]}, {"name": "b", "colour": [1, 1, 1]}]},
            "exactly 1 class for a binary task, not 2",
        ),
        ({"task": "multiclass"}, "at least 2 classes for a multiclass task"),
    ],
)
def test_classes_must_fit_the_task(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ManifestInvalid, match="the manifest's draft is not valid") as caught:
        parse_draft(draft(**changes))
    assert told in caught.value.detail


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "is not JSON in UTF-8: Expecting value"),
        (b'{"format": 1,', "is not JSON in UTF-8: Expecting property name"),
        (b"\xff\xfe{}", "is not JSON in UTF-8"),
        (b'{"format": 1, "format": 1}', "expected each name once, found `format` twice"),
        (b'{"threshold": NaN}', "expected a finite number, found NaN"),
        (b"[" * 200_000, "nested too deeply"),
        (b" " * (MANIFEST_LIMIT + 1), f"expected at most {MANIFEST_LIMIT}"),
        (b"3", "`(the whole)`: expected an object"),
        (b"{}", "`architecture`: expected a value, found nothing"),
    ],
)
def test_file_that_is_no_manifest_is_named(raw: bytes, told: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse(raw)
    assert "`m/lungs/3/manifest.json`" in caught.value.detail
    assert told in caught.value.detail


def test_many_faults_are_counted_and_not_all_told() -> None:
    with pytest.raises(ManifestInvalid, match=r"; and 8 more$"):
        parse(b"{}")


def test_manifest_must_be_that_of_its_folder() -> None:
    with pytest.raises(ManifestInvalid, match="expected lungs@4, found lungs@3"):
        parse(manifest_text(example()).encode(), version=4)


def test_huge_number_is_refused_as_not_finite() -> None:
    raw = manifest_text(example()).replace('"threshold": 0.5', '"threshold": 1e999')
    with pytest.raises(ManifestInvalid, match="`threshold`: expected"):
        parse(raw.encode())


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_draft_must_be_plain_json(value: object) -> None:
    with pytest.raises(ManifestInvalid, match="must be plain JSON"):
        parse_draft(draft(threshold=value))


def test_draft_object_passes_unchanged() -> None:
    made = parse_draft(draft())
    assert isinstance(made, Draft)
    assert parse_draft(made) is made


# What changes an answer changes the digest, and nothing else does.


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("architecture", "ternausnet16"),
        ("parameters/align_corners", True),
        ("task", "multilabel"),
        ("classes/0/name", "liver"),
        ("classes/0/colour", [1, 2, 3]),
        ("input/mean/0", 0.5),
        ("input/std/2", 0.5),
        ("input/halo/top", 160),
        ("threshold", 0.3),
        ("precision", "float32"),
        ("files/weights.safetensors/sha256", "f" * 64),
    ],
)
def test_digest_changes_with_what_changes_an_answer(path: str, value: Any) -> None:
    raw = json.loads(edited(path, value))
    raw["scores"] = []
    assert parse(json.dumps(raw).encode()).digest != example().digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("description", "other"),
        ("licence/identifier", "Apache-2.0"),
        ("provenance/command", "other"),
        ("scores", []),
        ("files/README.md/sha256", "f" * 64),
        ("files/sample.jpg/sha256", "f" * 64),
    ],
)
def test_digest_is_the_same_where_answers_are(path: str, value: Any) -> None:
    assert parse(edited(path, value)).digest == example().digest


def test_digest_is_fixed_for_ever() -> None:
    # Caches outlive a release: a change here makes every cached answer of every model strange.
    assert example().digest == (GOLDEN / "digest.txt").read_text().strip()
