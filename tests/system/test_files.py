"""Files are written whole or not at all."""

import pytest

from eir_jax.system.files import replacing


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
