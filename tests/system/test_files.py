"""Files are written whole or not at all."""

import json

import pytest

from eir_jax.system.files import replacing, write_json


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "new folder" / "record.json"
    for text in ("one", "two"):
        with replacing(path) as part:
            part.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="half"), replacing(path) as part:
        part.write_text("half of")
        raise ValueError("half")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_what_every_reader_takes(tmp_path):
    """No NaN and no infinity, anywhere in it: null."""
    record = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": -float("inf")}}
    write_json(record | {"e": (1, "x", True, None)}, tmp_path / "r.json")

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    found = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert found == {
        **{"a": None, "b": [1.5, None], "c": {"d": None}},
        "e": [1, "x", True, None],
    }
