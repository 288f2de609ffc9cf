"""The page of a collection: what stands in it, and what a browser makes of it."""

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eir_jax.browse import main
from eir_jax.collection import gallery
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
N, DIM = 40, 12
GONE = 7  # a picture that vanishes
TWIN = 11, 12  # the same file twice
ODD = "x/a</script><b>&{{data}}'\"é.png"  # of row 0, in the folder "a<"


def colour(row):
    return row * 5 + 20, 255 - row * 6, row * 37 % 200


def shape(row):  # width, height
    return [(40, 30), (20, 50), (90, 90)][row % 3]


def write_embeddings(file, folder, rows=None, **changed):
    """Write what eir_jax.embed would, of N flat pictures whose rows are random."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(N, DIM)) + 1.5 * np.eye(DIM)[np.arange(N) % 3]
    embedding[TWIN[1]] = embedding[TWIN[0]]
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    paths = [f"{'xy'[row % 2]}/{row:02}.png" for row in range(N)]
    paths[0] = ODD
    arrays = {
        "embedding": embedding.astype(np.float32),
        "path": np.array(paths),
        "size": np.array([shape(row) for row in range(N)], np.int32),
        "hash": np.array(
            [hashlib.sha256(b"%d" % row).hexdigest().encode() for row in range(N)]
        ),
        "grey": rng.integers(0, 256, (N, 16, 16), np.uint8),
        "meta": json.dumps({"source": str(folder)}),
    }
    arrays["hash"][TWIN[1]] = arrays["hash"][TWIN[0]]
    arrays |= changed
    arrays = {k: v for k, v in arrays.items() if v is not None}
    for key in set(arrays) - {"meta"} if rows is not None else ():
        arrays[key] = arrays[key][:rows]
    np.savez(file, **arrays)
    return arrays


class Page(HTMLParser):
    """The parts of a page: its addresses, pictures and data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.data, self.title = [], [], "", ""
        self._within = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self._within = attrs.get("id") or tag
        self.addresses += [attrs[k] for k in ("src", "href") if k in attrs]

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within in ("data", "title"):
            setattr(self, self._within, getattr(self, self._within) + data)

    def array(self, name, dtype):
        return np.frombuffer(base64.b64decode(json.loads(self.data)[name]), dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of a collection of which one picture is gone, by the command."""
    folder = tmp_path_factory.mktemp("pictures")
    arrays = write_embeddings(folder / "E.npz", folder)
    for row, path in enumerate(arrays["path"]):
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        if row != GONE:
            Image.new("RGB", shape(row), colour(row)).save(folder / path)
    words = ["--k=5", "--clusters=4", f"--out={folder / 'page.html'}"]
    assert main([f"--embeddings={folder / 'E.npz'}", *words]) == 0
    return folder, arrays


@pytest.fixture(scope="module")
def page(made):
    return Page((made[0] / "page.html").read_text(encoding="ascii"))


def test_page_parses_and_reaches_for_nothing_outside(made, page):
    text = (made[0] / "page.html").read_text(encoding="ascii")
    assert page.addresses and all(a.startswith("data:") for a in page.addresses)
    assert "default-src 'none'" in text and not re.search(r"https?://|url\(", text)
    assert page.tags.count("script") == 2  # no name of a file ends one
    assert page.title == made[0].name
    assert json.loads(page.data)["names"] == made[1]["path"].tolist()


def test_neighbours_are_those_of_float64(made, page):
    rows = made[1]["embedding"].astype(np.float64)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(page.array("neighbour", "<i4").reshape(N, 5), order)
    found = page.array("cosine", "<f2").reshape(N, 5).astype(np.float64)
    expected = np.take_along_axis(cosine, order, axis=1)
    np.testing.assert_allclose(found, expected, atol=2**-11)
    outliers = np.argsort(expected[:, -1], kind="stable")
    np.testing.assert_array_equal(page.array("outliers", "<i4"), outliers)


def test_clusters_are_numbered_by_size_and_hold_what_is_alike(made, page):
    cluster = page.array("cluster", "<i4")
    size = np.bincount(cluster)
    assert len(size) == 4 and (np.diff(size) <= 0).all() and size.min() > 0
    rows = made[1]["embedding"].astype(np.float64)
    centres = np.stack([rows[cluster == c].mean(axis=0) for c in range(4)])
    distance = np.linalg.norm(rows[:, None] - centres, axis=2)
    np.testing.assert_array_equal(distance.argmin(axis=1), cluster)
    units = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    expected = np.einsum("nd,nd->n", rows, units[cluster])
    np.testing.assert_allclose(page.array("nearCentre", "<f2"), expected, atol=1e-3)


def test_pictures_are_in_their_cells(page):
    data = json.loads(page.data)
    shapes = page.array("shape", "u1").reshape(N, 2)
    cell, across = data["cell"], data["across"]
    assert cell % gallery.BLOCK == 0
    sheets = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))))
        for a in page.addresses
    ]
    for row in range(N):
        scale = min(1, gallery.CELL / max(shape(row)))
        expected = [0, 0] if row == GONE else [round(x * scale) for x in shape(row)]
        assert np.abs(shapes[row] - expected).max() <= 1
        top, left = (x * cell for x in divmod(row % across**2, across))
        width, height = shapes[row].tolist()
        part = sheets[row // across**2][top : top + height, left : left + width]
        if row != GONE:
            assert np.abs(part.astype(int) - colour(row)).max() <= 6, row


def test_places_duplicates_and_groups(page):
    data = json.loads(page.data)
    place = page.array("place", "<f4").reshape(N, 2)
    assert place.min() >= 0 and place.max() <= 1 and np.isfinite(place).all()
    assert np.ptp(place, axis=0).max() == pytest.approx(1)
    assert [TWIN[0], [[TWIN[1], 1.0, "exact"]]] in data["duplicates"]
    names = np.array(data["groups"]["names"])
    of = np.frombuffer(base64.b64decode(data["groups"]["of"]), "<i4")
    assert names[of].tolist() == ["x/a<", *("xy"[row % 2] for row in range(1, N))]


# In a browser.

VISIT = """
<script>
addEventListener("error", event => log("error " + event.message));
const lines = [], log = line => lines.push(line);
const wait = what => new Promise(done => {
  const look = () => (what() ? done() : setTimeout(look, 20));
  look();
});
const fire = (kind, name, settings) => map.dispatchEvent(
  new kind(name, {bubbles: true, cancelable: true, ...settings}));
(async () => {
  await wait(() => sheets.filter(Boolean).length === images.length);
  map.setPointerCapture = () => {};  // of fingers that there are none
  const box = map.getBoundingClientRect();
  const at = row => ({clientX: box.left + across(row), clientY: box.top + down(row),
    pointerId: 1, button: 0});
  openView("map");
  const before = view.zoom;
  fire(WheelEvent, "wheel", {...at(20), deltaY: -900});
  log("zoomed " + (view.zoom > before));
  const x = view.x;
  fire(KeyboardEvent, "keydown", {key: "ArrowRight"});
  log("panned " + (view.x > x));
  view.zoom = MOST_ZOOM;  // nothing lies over another
  [view.x, view.y] = place.subarray(40, 42);
  fire(PointerEvent, "pointerdown", at(20));
  fire(PointerEvent, "pointerup", at(20));
  log("picked " + state.row);
  const tiles = [...document.querySelectorAll("#panel .tile")];
  log("near " + tiles.map(tile => tile.dataset.tile));
  const dot = $("large").getContext("2d").getImageData(128, 128, 1, 1).data;
  log("colour " + [...dot].slice(0, 3));
  dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  log("closed " + $("panel").hidden);
  for (const name of ["clusters", "duplicates", "outliers"]) {
    document.querySelector(`[data-view=${name}]`).click();
    log(name + " " + document.querySelectorAll("#list .tile").length);
  }
  $("find").value = "X/0";
  $("find").dispatchEvent(new Event("input"));
  await wait(() => state.view === "find");
  log("found " + document.querySelectorAll("#list .tile").length);
  location.hash = "#picture=0";
  await wait(() => state.row === 0);
  log("named " + document.querySelector(".path").textContent);
  log("bold " + document.querySelectorAll("#panel b").length);
  document.title = JSON.stringify(lines);
})();
</script>
"""


def test_in_a_browser(made, page, tmp_path):
    """Wheel, keys, a click, all views, a link: no error, and the right pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH to open the page with")
    file = tmp_path / "page.html"
    file.write_text((made[0] / "page.html").read_text(encoding="ascii") + VISIT)
    flags = (
        "headless no-sandbox disable-gpu disable-quic no-first-run dump-dom "
        "disable-background-networking disable-component-update disable-sync "
        f"virtual-time-budget=20000 user-data-dir={tmp_path / 'profile'}"
    )
    words = [chromium, *(f"--{flag}" for flag in flags.split()), file.as_uri()]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    (title,) = re.findall("<title>(.*?)</title>", result.stdout, re.DOTALL)
    seen = dict(line.split(" ", 1) for line in json.loads(html.unescape(title)))
    assert "error" not in seen
    dot = np.array(seen.pop("colour").split(","), int)
    assert np.abs(dot - colour(20)).max() <= 6
    near = page.array("neighbour", "<i4").reshape(N, 5)[20]
    copies = sum(1 + len(group[1]) for group in json.loads(page.data)["duplicates"])
    assert seen == {
        "zoomed": "true",
        "panned": "true",
        "picked": "20",
        "near": ",".join(map(str, near)),
        "closed": "true",
        "clusters": str(N),
        "duplicates": str(copies),
        "outliers": str(N),
        "found": "4",  # x/02, x/04, x/06, x/08
        "named": ODD,
        "bold": "0",
    }


# What is not as it should be.


def nan_row():
    rows = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
    rows[3, 2] = np.nan
    return rows


@pytest.mark.parametrize(
    ("changed", "flags", "said"),
    [
        ({"rows": 2}, [], "needs 3 pictures, and there are 2"),
        ({"embedding": nan_row()}, [], "1 of 40 rows of the embeddings hold NaN"),
        ({"embedding": np.zeros((N, DIM), np.float32)}, [], "40 of 40 .* are zero"),
        ({"path": None}, [], "is no file here; give --images=FILE.npz"),
        ({}, ["--clusters=41"], "--clusters=41 must be from 1 to 40"),
        ({}, ["--k=0"], "--k=0 must be at least 1"),
        ({}, ["--most=2"], "--most=2 must be at least 3"),
        ({}, ["--images=NONE"], "there is no folder or file .*NONE.* \\(--images\\)"),
        ({}, ["--on=feature"], "come without 'feature'"),
        ({}, ["--out=G.png"], "ends in .html"),
        ({}, ["--out=E.npz/G.html"], "cannot be written"),
        ({}, ["--map=umap"], "pip install umap-learn"),
    ],
)
def test_bad_input_is_one_line(changed, flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_embeddings(tmp_path / "E.npz", tmp_path, **changed)
    with pytest.raises(UserError, match=said):
        main(["--embeddings=E.npz", "--out=G.html", *flags])
    assert [p.name for p in tmp_path.iterdir()] == ["E.npz"]


def test_missing_file_ends_with_status_2(tmp_path):
    words = [
        sys.executable,
        "-m",
        "eir_jax.browse",
        "--embeddings=E.npz",
        "--out=G.html",
    ]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2 and not result.stdout
    assert result.stderr == f"error: there is no file E.npz (in {tmp_path})\n"
    assert not [*tmp_path.iterdir()]


def test_pictures_that_are_gone_are_named_and_left_grey(tmp_path, capsys):
    """All of them, here; of an older file without sizes, hashes and thumbnails."""
    older = dict.fromkeys(("size", "hash", "grey"))
    write_embeddings(tmp_path / "E.npz", tmp_path / "gone", rows=3, **older)
    assert (
        main([f"--embeddings={tmp_path / 'E.npz'}", f"--out={tmp_path / 'a.html'}"])
        == 0
    )
    out, said = capsys.readouterr()
    assert f"3 of 3 pictures cannot be read, the first is {tmp_path}/gone/{ODD}" in said
    assert "give --images=DIR" in said and out.endswith("MB\n")
    page = Page((tmp_path / "a.html").read_text())
    assert not page.array("shape", "u1").any()
    assert json.loads(page.data)["k"] == 2


def test_a_part_of_an_npz_is_drawn_as_the_whole_is(tmp_path, capsys):
    """Rows by index, of arrays; of more than --most the names and pictures agree."""
    images = np.stack([np.full((8, 8, 3), colour(row), np.uint8) for row in range(N)])
    labels = np.arange(N) % 4
    np.savez(tmp_path / "images.npz", images=images)
    columns = {"path": None, "index": np.arange(N), "label": labels}
    write_embeddings(tmp_path / "E.npz", tmp_path / "moved.npz", **columns)
    words = ["E.npz", "images.npz", "a.html"]
    names = [tmp_path / word for word in words]
    flags = [
        f"--{k}={v}"
        for k, v in zip(("embeddings", "images", "out"), names, strict=True)
    ]
    assert main([*flags, "--most=10"]) == 0
    assert "of 40 pictures 10 are shown" in capsys.readouterr().err
    page = Page(names[2].read_text())
    data = json.loads(page.data)
    rows = np.array([int(name.removeprefix("picture ")) for name in data["names"]])
    assert len(rows) == 10 and (np.diff(rows) > 0).all()
    of = np.frombuffer(base64.b64decode(data["groups"]["of"]), "<i4")
    assert [data["groups"]["names"][i] for i in of] == [
        str(labels[row]) for row in rows
    ]
    (sheet,) = page.addresses
    sheet = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(sheet.partition(",")[2])))
    )
    for place, row in enumerate(rows):
        top, left = (8 * x + 4 for x in divmod(place, data["across"]))
        assert np.abs(sheet[top, left].astype(int) - colour(row)).max() <= 6
