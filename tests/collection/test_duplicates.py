"""Duplicates: pairs by brute force, the background, the kinds, groups, the command."""

import os

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from eir_jax.collection.background import background
from eir_jax.collection.copies import correlation_as_part, unit_greys
from eir_jax.collection.duplicates import copies_of, find_duplicates
from eir_jax.collection.embed import grey_thumbnails
from eir_jax.collection.embeddings import Embeddings
from eir_jax.collection.pairs import similar_pairs
from eir_jax.search import main as search
from eir_jax.system.errors import UserError


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("two_sets", [False, True])
@pytest.mark.parametrize("limit", [10**6, 1, 7, 1000])
@pytest.mark.parametrize("threshold", [-1, 0.2, 0.6, 1])
def test_similar_pairs_against_brute_force(threshold, limit, two_sets):
    """Small whole numbers: there are equal rows and many ties."""
    rows = np.random.default_rng(0).integers(-2, 3, (83, 4)).astype(np.float32)
    rows[:, 0] += 0.5
    rows = unit(rows)
    other = rows[::2].copy() if two_sets else None
    double = rows.astype(np.float64)
    if two_sets:
        i, j = (x.ravel() for x in np.indices((83, 42)))
    else:
        i, j = np.triu_indices(83, 1)
    cosine = np.sum(double[i] * (double[::2] if two_sets else double)[j], axis=1)
    expected = cosine[cosine >= threshold - 1e-6]
    pairs, found, count = similar_pairs(
        rows, threshold, other, limit=limit, row_block=16, column_block=20
    )
    assert count == len(expected) > 0
    assert len(pairs) == len(found) == min(limit, count)
    np.testing.assert_allclose(found, np.sort(expected)[::-1][: len(found)], atol=1e-6)
    second = rows if other is None else other
    np.testing.assert_allclose(
        found, np.sum(rows[pairs[:, 0]] * second[pairs[:, 1]], axis=1), atol=1e-6
    )
    assert two_sets or (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_similar_pairs_of_a_collapsed_embedding_are_bounded():
    rows = unit(np.ones((9000, 16)))
    pairs, found, count = similar_pairs(rows, 0.98, limit=1000)
    assert count == 9000 * 8999 // 2
    assert pairs.shape == (1000, 2) and found.shape == (1000,)


def test_background_is_the_share_of_random_pairs():
    """On a sphere of 4 dimensions the share within an angle is known exactly."""
    rows = unit(np.random.default_rng(0).normal(size=(1500, 4)))
    found = background(rows)
    angle = np.array([0.02, 0.1, 0.3, 1.0, 2.0])
    exact = (angle - np.sin(2 * angle) / 2) / np.pi
    np.testing.assert_allclose(found.rate(np.cos(angle))[2:], exact[2:], rtol=0.05)
    np.testing.assert_allclose(found.rate(np.cos(angle))[:2], exact[:2], rtol=0.7)
    for rate in (1e-5, 1e-3, 0.03, 0.5):
        assert found.rate(np.array(found.cosine(rate))) == pytest.approx(rate, rel=0.01)


def test_duplicates_do_not_raise_their_own_background():
    """A hundred pairs among 200 rows are half a per cent of all, and no background."""
    rows = unit(np.random.default_rng(0).normal(size=(100, 8)))
    twice = unit(np.concatenate([rows, rows + 1e-3]))
    once, doubled = background(rows), background(twice)
    assert doubled.cosine(1e-4) == pytest.approx(once.cosine(1e-4), abs=0.05)
    assert doubled.cosine(1e-4) < 0.99


def scene(seed, size=96):
    """Return a picture of a few coloured shapes."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def collection(pictures, embedding=None, **columns):
    squares = [np.asarray(p.convert("RGB").resize((64, 64))) for p in pictures]
    names = np.array([f"{i}.png" for i in range(len(pictures))])
    if embedding is None:  # which says nothing against, and nothing for
        embedding = unit(np.random.default_rng(1).normal(size=(len(pictures), 24)) + 1)
    size = np.array([p.size for p in pictures], np.int32)
    return Embeddings(
        embedding, None, names, None, None, {"source": "/"}, size=size,
        grey=grey_thumbnails(squares), **columns,
    )  # fmt: skip


def test_correlation_is_numpys():
    one, two = (scene(i) for i in range(2))
    grey = collection([one, two]).grey
    expected = np.corrcoef(grey.reshape(2, -1))[0, 1]
    rows = unit_greys(grey)
    assert rows[0] @ rows[1] == pytest.approx(expected, abs=1e-5)
    mirrored = unit_greys(grey, mirrored=True)[0]
    expected = np.corrcoef(grey[0, :, ::-1].ravel(), grey[1].ravel())[0, 1]
    assert mirrored @ rows[1] == pytest.approx(expected, abs=1e-5)
    assert not unit_greys(np.full((1, 16, 16), 200, np.uint8)).any()


def test_a_part_is_found_in_the_whole():
    pictures = [scene(i, 160) for i in range(20)]
    whole = collection(pictures).grey
    parts = collection([p.crop((20, 4, 148, 132)) for p in pictures]).grey
    own = np.stack([np.arange(20)] * 2, axis=1)
    others = np.stack([np.arange(20), np.roll(np.arange(20), 1)], axis=1)
    found = correlation_as_part(whole, own, parts)
    assert found.min() > 0.95 > 0.9 > correlation_as_part(whole, others, parts).max()
    np.testing.assert_array_equal(found, correlation_as_part(parts, own, whole))


def made_set():
    """Return 40 pictures and copies of some, {row: (original, kind)}, an embedding."""
    pictures = [scene(i) for i in range(40)]
    copies = {
        "exact": pictures[3],
        "copy": ImageEnhance.Brightness(pictures[8].resize((40, 40))).enhance(0.8),
        "mirrored": ImageOps.mirror(pictures[12]),
        "crop": pictures[20].crop((8, 4, 88, 84)),
    }
    origin = [3, 8, 12, 20]
    pictures += copies.values()
    embedding = np.random.default_rng(0).normal(size=(44, 16))
    embedding[40:] = embedding[origin] + 0.1 * embedding[:4]
    digests = [f"{i:064}".encode() for i in [*range(40), 3, 41, 42, 43]]
    gallery = collection(pictures, unit(embedding), hash=np.array(digests))
    return gallery, {
        40 + i: (o, k) for i, (o, k) in enumerate(zip(origin, copies, strict=True))
    }


def test_kinds_of_duplicates():
    gallery, expected = made_set()
    found = find_duplicates(gallery)
    assert {
        b: (a, k) for (a, b), k in zip(found.pairs.tolist(), found.kind, strict=True)
    } == expected
    # What the embedding denies is none, whatever its pixels; but for the same file.
    embedding = gallery.embedding.copy()
    embedding[41:] = -embedding[[8, 12, 20]]
    denied = find_duplicates(collection([scene(0)] * 44, embedding, hash=gallery.hash))
    assert found.pairs[found.kind == "exact"].tolist() == [[3, 40]]
    assert not {(8, 41), (12, 42)} & set(map(tuple, denied.pairs.tolist()))


def test_without_pixels_or_with_a_cosine_the_embedding_decides():
    gallery, expected = made_set()
    bare = Embeddings(*list(vars(gallery).values())[:6])
    true = {(origin, row) for row, (origin, _) in expected.items()}
    by_rate = find_duplicates(bare)
    assert true <= set(map(tuple, by_rate.pairs.tolist())) and len(by_rate.pairs) < 6
    assert set(by_rate.kind) == {"near"}  # a false one in a hundred pictures is allowed
    by_cosine = find_duplicates(gallery, threshold=0.97)
    assert set(map(tuple, by_cosine.pairs.tolist())) == true
    assert set(by_cosine.kind) == {"near", "exact"}
    assert by_rate.threshold < 0.99


def test_between_two_sets():
    gallery, expected = made_set()
    half = [
        Embeddings(
            *[
                x[part] if isinstance(x, np.ndarray) else x
                for x in vars(gallery).values()
            ]
        )
        for part in (slice(40), slice(40, 44))
    ]
    found = find_duplicates(half[1], half[0])
    assert {
        40 + a: (b, k)
        for (a, b), k in zip(found.pairs.tolist(), found.kind, strict=True)
    } == expected
    with pytest.raises(UserError, match="dimensions"):
        find_duplicates(half[1], collection([scene(0)], np.ones((1, 3), np.float32)))


def test_groups_keep_the_largest_then_the_first():
    shapes = [(50, 50), (90, 90), (90, 90), (20, 20), (60, 60), (60, 60)]
    pictures = [scene(0).resize(s) for s in shapes[:3]]
    pictures += [scene(9).resize(shapes[3]), *(scene(7).resize(s) for s in shapes[4:])]
    embedding = np.random.default_rng(0).normal(size=(3, 8))[[0, 0, 0, 1, 2, 2]]
    embedding += 0.01 * np.arange(48).reshape(6, 8) % 0.07
    gallery = collection(pictures, unit(embedding))
    one, two = copies_of(find_duplicates(gallery), gallery)
    assert [(c.keep, c.row) for c in one] == [(1, 0), (1, 2)]
    assert [(c.keep, c.row, c.kind) for c in two] == [(4, 5, "copy")]
    x = gallery.embedding
    assert one[0].cosine == pytest.approx(float(x[1] @ x[0]), abs=1e-6)


def test_many_equal_files_are_one_group_in_time():
    """Of 3,000 equal files half a million pairs and more are not written down."""
    gallery = collection([scene(0)] * 4, np.ones((4, 8), np.float32))
    many = Embeddings(
        np.ones((3000, 8), np.float32), None, np.array(["x"] * 3000), None, None,
        {"source": "/"}, hash=np.array([b"0" * 64] * 3000),
    )  # fmt: skip
    (group,) = copies_of(find_duplicates(many, limit=100), many)
    assert len(group) == 2999
    assert len(copies_of(find_duplicates(gallery), gallery)[0]) == 3


def test_the_command(tmp_path, capsys):
    gallery, expected = made_set()
    arrays = {k: v for k, v in vars(gallery).items() if isinstance(v, np.ndarray)}
    file, train = tmp_path / "E.npz", tmp_path / "T.npz"
    np.savez(file, **arrays)
    search([f"--embeddings={file}", "--duplicates"])
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert {line[3]: line[:2] for line in lines} == {
        # of two of one size the first is kept, of others the larger one
        kind: [f"{origin}.png", f"{row}.png"]
        for row, (origin, kind) in expected.items()
    }
    assert "of random pairs half have a cosine above" in err
    assert "4 copies in 4 groups: 1 exact, 1 copy, 1 mirrored, 1 crop" in err

    np.savez(train, **{k: v[:40] for k, v in arrays.items()})
    np.savez(file, **{k: v[40:] for k, v in arrays.items()})
    search([f"--embeddings={file}", "--duplicates", f"--against={train}"])
    out, err = capsys.readouterr()
    assert sorted(line.split("\t")[0] for line in out.splitlines()) == [
        f"{row}.png" for row in expected
    ]
    assert "4 pairs that both hold" in err
    search([f"--embeddings={train}", "--duplicates=-1"])
    assert "about 780 pairs by chance alone" in capsys.readouterr().err
    with pytest.raises(UserError, match="one picture alone"):
        np.savez(file, embedding=arrays["embedding"][:1])
        search([f"--embeddings={file}", "--duplicates"])
    for words in (["--query=x", f"--against={train}"], ["--duplicates", "--least=0.5"]):
        with pytest.raises(SystemExit):
            search([f"--embeddings={file}", *words])
    assert os.listdir(tmp_path)
