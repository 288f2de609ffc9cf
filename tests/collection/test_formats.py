"""A collection in the forms of other programs, read back by them."""

import csv
import importlib.util
import json
import resource

import numpy as np
import pytest
from PIL import Image

from eir_jax.collection.embeddings import read_embeddings
from eir_jax.collection.formats import FORMS
from eir_jax.embed import main as embed
from eir_jax.system.errors import UserError

ROWS, DIM = 5, 3
NAMES = ["top.png", "a/1.png", "a/b/2.png", "ü/日本\tx.png", 'q",u.png']


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        "embedding": rng.normal(size=(ROWS, DIM)).astype(np.float32),
        "feature": rng.normal(size=(ROWS, 7)).astype(np.float32),
        "path": np.array(NAMES),
        "label": np.array([0, 1, -1, 1, 0], np.int32),
        "size": np.array([[10, 20]] * ROWS, np.int32),
        "hash": np.array([f"{i:064}" for i in range(ROWS)], "S64"),
        "grey": rng.integers(0, 256, (ROWS, 16, 16), np.uint8),
    }


@pytest.fixture(scope="module")
def file(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    for i, name in enumerate(NAMES[:-1]):
        place = folder / "pictures" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (0, 50 * i, 0)).save(place)
    meta = {"source": str(folder / "pictures"), "class_names": ["cat", "dog"]}
    np.savez(folder / "E.npz", **arrays, meta=json.dumps(meta))
    return folder / "E.npz"


def written(file, name):
    out = file.parent / name
    assert embed([f"--embeddings={file}", f"--out={out}"]) == 0
    return out


def expected_columns():
    return {
        "path": NAMES,
        "folder": ["", "a", "a/b", "ü", ""],
        "label": [0, 1, -1, 1, 0],
        "class": ["cat", "dog", "", "dog", "cat"],
        "width": [10] * ROWS,
        "height": [20] * ROWS,
        "hash": [f"{i:064}" for i in range(ROWS)],
    }


def test_npz_is_read_back_whole(file, arrays):
    found = vars(read_embeddings(written(file, "again.npz")))
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)
    assert found["meta"]["class_names"] == ["cat", "dog"]


def test_csv(file, arrays):
    with written(file, "E.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for name, values in expected_columns().items():
        assert [row[name] for row in rows] == [str(value) for value in values]
    vectors = [[float(row[f"e{i}"]) for i in range(DIM)] for row in rows]
    np.testing.assert_allclose(vectors, arrays["embedding"], rtol=1e-6)


def test_parquet(file, arrays):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    table = parquet.read_table(written(file, "E.parquet"))
    columns = table.to_pydict()
    for name, values in expected_columns().items():
        assert columns[name] == values
    for name in ("embedding", "feature"):
        np.testing.assert_array_equal(np.array(columns[name], "f"), arrays[name])
    assert "class_names" in json.loads(table.schema.metadata[b"eir_jax"])


def test_faiss(file, arrays):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    index = faiss.read_index(str(written(file, "E.faiss")))
    score, row = index.search(arrays["embedding"][:2], 2)
    product = arrays["embedding"] @ arrays["embedding"].T
    np.testing.assert_array_equal(row, np.argsort(-product, axis=1)[:2, :2])
    np.testing.assert_allclose(score, np.sort(product)[:2, ::-1][:, :2], rtol=1e-5)


def test_projector(file, arrays):
    """Its config is parsed by TensorBoard's own definition."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    folder = written(file, "projector/vectors.tsv").parent
    np.testing.assert_allclose(
        np.loadtxt(folder / "vectors.tsv", delimiter="\t"),
        arrays["embedding"],
        rtol=1e-5,
    )
    rows = [x.split("\t") for x in (folder / "metadata.tsv").read_text().splitlines()]
    assert len(rows) == ROWS + 1 and rows[0] == [*expected_columns()]
    assert {len(row) for row in rows} == {7} and rows[4][0] == "ü/日本\\tx.png"
    config = text_format.Parse(
        (folder / "projector_config.pbtxt").read_text(), ProjectorConfig()
    )
    (found,) = config.embeddings
    assert found.metadata_path == "metadata.tsv"
    assert found.sprite.image_path == "sprite.png"
    width, height = found.sprite.single_image_dim
    sheet = np.asarray(Image.open(folder / "sprite.png"))
    assert sheet.shape == (2 * height, 3 * width, 3)  # five pictures: three across
    middle = sheet[height // 2 :: height, width // 2 :: width].reshape(-1, 3)
    assert middle[:4, 1].tolist() == [0, 50, 100, 150]  # row by row
    assert middle[4].tolist() == [255] * 3  # gone: white


def test_refuses(file, tmp_path, monkeypatch):
    def said(name, source=file):
        with pytest.raises(UserError) as error:
            embed([f"--embeddings={source}", f"--out={tmp_path / name}"])
        return str(error.value)

    for suffix in FORMS:
        assert suffix in said("E.h5")
    assert "projector" in said("E.tsv") and "E/vectors.tsv" in said("E.tsv")
    assert "no file" in said("E.csv", tmp_path / "none.npz")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in said("folder.csv")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in ("pyarrow", "faiss") else find(name, *more),
    )
    assert "pip install pyarrow" in said("E.parquet")
    assert "pip install faiss-cpu" in said("E.faiss")
    with pytest.raises(SystemExit):
        embed([f"--embeddings={file}", f"--out={tmp_path / 'E.csv'}", "--split=test"])
    assert sorted(x.name for x in tmp_path.iterdir()) == ["folder.csv"]


@pytest.mark.parametrize("name", ["E.npz", "E.csv", "E.parquet", "E.faiss"])
def test_a_full_disk_is_one_line_in_every_form(arrays, name, tmp_path):
    file = tmp_path / "large.npz"
    rows = np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32)
    np.savez(file, embedding=rows)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=f"{name} cannot be written: .*too large"):
            embed([f"--embeddings={file}", f"--out={tmp_path / 'out' / name}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").iterdir())


def test_large_files_are_mapped(file, arrays, monkeypatch):
    from eir_jax.collection import embeddings

    monkeypatch.setattr(embeddings, "LEAST_MAPPED", 0)
    for name in ("E.npz", "packed.npz"):
        if name == "packed.npz":
            np.savez_compressed(file.with_name(name), **arrays)
        found = vars(read_embeddings(file.with_name(name)))
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)
            assert isinstance(found[key], np.memmap) == (name == "E.npz")
    cut = file.with_name("cut.npz")
    cut.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(UserError, match="cannot be read"):
        read_embeddings(cut)
