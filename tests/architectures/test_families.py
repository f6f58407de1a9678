"""The table of families is sound: names distinct, architectures there, second names unambiguous."""

from __future__ import annotations

from app.architectures.base import get, registry
from app.architectures.families import KINDS, families, second_names


def test_families_are_those_that_were_published() -> None:
    assert sorted(families()) == [
        "albunet",
        "linknet34",
        "unet-surgical",
        "unet11-surgical",
        "unet11-upstream",
        "unet16",
    ]
    assert len(families()) == sum(len(kind.families) for kind in KINDS)


def test_every_architecture_is_told_by_one_kind() -> None:
    told = [kind.architecture for kind in KINDS if kind.architecture]
    # A pyramid's weights are those of the net on one scale, and cannot be told from them.
    assert sorted([*told, "ternausnet11-pyramid"]) == list(registry())


def test_families_of_a_net_differ_by_upsampling_and_name_choices_of_it() -> None:
    for kind in KINDS:
        upsamplings = [u for family in kind.families for u in family.upsamplings]
        assert len(set(upsamplings)) == len(upsamplings)
        if kind.architecture:
            assert set(upsamplings) <= set(get(kind.architecture).choices.get("upsampling", ()))


def test_second_names_cover_the_encoder_and_nothing_twice() -> None:
    for kind in KINDS:
        for family in kind.families:
            if not family.aliases or kind.architecture is None:
                continue
            layout = get(kind.architecture).layout(upsampling=family.upsamplings[0])
            aliases = [list(second_names(name, family.aliases)) for name in layout]
            encoder = [name.startswith("encoder.") for name in layout]
            assert [len(found) for found in aliases] == [int(inside) for inside in encoder]
            flat = [alias for found in aliases for alias in found]
            assert len({*flat, *layout}) == len(flat) + len(layout)


def test_no_kind_is_hidden_by_an_earlier_one() -> None:
    for place, kind in enumerate(KINDS):
        if kind.architecture is None:
            continue
        layout = get(kind.architecture).layout()
        assert any(name in layout for name in kind.signatures)
        for earlier in KINDS[:place]:
            assert not any(name in layout for name in earlier.signatures)
