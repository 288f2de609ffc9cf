import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from eir_jax.evaluation import nearest as module
from eir_jax.evaluation.nearest import _without_the_small, nearest
from eir_jax.system import sharding
from eir_jax.system.errors import UserError


def unit(seed, rows, dim=16):
    x = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def grid(seed, rows, dim=4):
    """Small whole numbers: products are exact, and there are many ties."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, dim)).astype(np.float32)


def brute(queries, gallery, k, exclude=None):
    """Float64; of equal similarities the lower row first."""
    similarity = queries.astype(np.float64) @ gallery.astype(np.float64).T
    if exclude is not None:
        similarity[np.arange(len(queries)), exclude] = -np.inf
    index = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, index, axis=1), index


def check(queries, gallery, k, **kwargs):
    similarity, index = nearest(queries, gallery, k, **kwargs)
    expected = brute(queries, gallery, k, kwargs.get("exclude"))
    assert similarity.shape == index.shape == (len(queries), k)
    assert similarity.dtype == np.float32 and index.dtype == np.int32
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(similarity, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 8, 200])
def test_equals_brute_force_and_scikit_learn(k):
    queries, gallery = unit(0, 37), unit(1, 4001)
    similarity, index = nearest(queries, gallery, k)
    expected = brute(queries, gallery, k)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    theirs = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine")
    distance, found = theirs.fit(gallery.astype(np.float64)).kneighbors(queries)
    np.testing.assert_array_equal(index, found)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-6)


def test_by_hand():
    gallery = np.array([[1, 0], [0, 1], [3, 4], [-1, 0]])
    similarity, index = nearest(np.array([[1.0, 0], [0, -2]]), gallery, 3)
    np.testing.assert_array_equal(index, [[2, 0, 1], [0, 3, 1]])
    np.testing.assert_array_equal(similarity, [[3, 1, 0], [0, 0, -2]])


@pytest.mark.parametrize("gallery_block", [1, 150, 65536])
@pytest.mark.parametrize(("k", "rows"), [(1, 1), (5, 700), (130, 700), (700, 700)])
def test_ties_come_in_order_across_ragged_blocks(k, rows, gallery_block):
    check(grid(0, 9), grid(1, rows), k, gallery_block=gallery_block, query_block=4)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("rows", [unit, grid])
def test_what_is_dropped_before_top_k_is_not_in_it(rows, k):
    x = rows(3, 30, 161)
    x[0, 9:], x[1] = -np.inf, -np.inf
    kept = np.asarray(_without_the_small(x, k))
    np.testing.assert_array_equal(np.sort(kept)[:, -k:], np.sort(x)[:, -k:])
    if rows is unit and k < 40:  # of as many parts as k little is dropped
        assert (kept[2:] > -np.inf).mean() < 0.5


def test_random_shapes():
    rng = np.random.default_rng(5)
    for seed in range(6):
        queries, rows, block = (int(x) for x in rng.integers(1, [40, 2000, 900]))
        k = int(rng.integers(1, min(rows, 60) + 1))
        shapes = dict(query_block=int(rng.integers(1, 20)), gallery_block=block)
        check(grid(seed, queries), grid(seed + 99, rows), k, **shapes)


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize(("rows", "k"), [(9, 8), (61, 50), (5000, 20)])
def test_excludes_itself_by_index_on_any_devices(devices, rows, k):
    x = grid(2, rows)
    x[rows // 2] = x[0]  # a double of another row stays a neighbour
    mesh = sharding.make_mesh(jax.devices()[:devices])
    everyone = np.arange(rows)[:50]
    check(x[:50], x, k, exclude=everyone, mesh=mesh, gallery_block=300)


def test_exclude_is_one_row_of_any_place():
    check(unit(0, 5), unit(1, 30), 29, exclude=np.array([29, 3, 0, 11, 3]))


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (10, 10), (4003, 30)])
def test_devices_and_blocks_change_no_bit(rows, k):
    queries, gallery = unit(3, 33), unit(4, rows)
    one = nearest(queries, gallery, k)
    five = sharding.make_mesh(jax.devices()[:5])
    for mesh, block in ((sharding.make_mesh(), 65536), (five, 100), (None, 999)):
        other = nearest(queries, gallery, k, mesh=mesh, gallery_block=block)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("devices", [1, 8])
def test_all_rows_equal(devices):
    gallery = np.repeat(unit(0, 1), 1000, axis=0)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    _, index = nearest(gallery[:3], gallery, 7, gallery_block=90, mesh=mesh)
    np.testing.assert_array_equal(index, np.tile(np.arange(7), (3, 1)))


def test_rising_and_falling_similarities():
    ramp = np.linspace(-1, 1, 3000, dtype=np.float32)[:, None]
    for gallery in (ramp, ramp[::-1]):
        check(np.array([[1.0], [-1.0]]), gallery, 9, gallery_block=256)


@pytest.mark.parametrize("devices", [1, 8])
def test_padding_takes_the_place_of_no_group(devices):
    """All similarities are negative, the padding's too, and the top k lie apart."""
    rng = np.random.default_rng(0)
    gallery = -1 - rng.permutation(8001).astype(np.float32)[:, None] / 8001
    mesh = sharding.make_mesh(jax.devices()[:devices])
    check(np.array([[1.0], [2.0]]), gallery, 6, mesh=mesh)


def test_zero_and_minus_zero_are_equal():
    gallery = np.array([[-0.0], [0.0], [-0.0], [-1.0]])
    _, index = nearest(np.array([[1.0], [-1.0]]), np.tile(gallery, (40, 1)), 3)
    np.testing.assert_array_equal(index, [[0, 1, 2], [3, 7, 11]])


def test_many_chunks_of_queries_and_progress():
    seen = []
    queries, gallery = grid(0, 8500, 2), grid(1, 100, 2)
    report = lambda done, of: seen.append((done, of))  # noqa: E731
    check(queries, gallery, 3, gallery_block=64, progress=report)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_sizes_of_one_shape_compile_once():
    module._make_step.cache_clear()
    for rows in (700, 760):  # four blocks of 192 rows, after rounding
        nearest(unit(0, 10), unit(1, rows), 2, gallery_block=210)
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    assert module._make_step.cache_info().currsize == 1
    step = module._make_step(mesh, 10, 8)
    assert step._cache_size() == 1


@pytest.mark.parametrize("k", [8, 200])
def test_memory_is_one_block_however_large_the_gallery(k):
    """The compiled step sees a block, never the gallery, and sorts no whole rows."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    queries, block, tile = 1024, 16384, 128
    shape = jax.ShapeDtypeStruct
    lowered = module._make_step(mesh, tile, 8).lower(
        shape((1, queries, k), jnp.float32),
        shape((1, queries, k), jnp.int32),
        shape((queries, 16), jnp.float32),
        shape((block, 16), jnp.float32),
        shape((3,), jnp.int32),
    )
    compiled = lowered.compile()
    similarities = 4 * tile * block
    state = 2 * 4 * queries * k
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 1.5 * similarities + 3 * state + 8 * 4 * tile * k * 8
    sorts = [x for x in compiled.as_text().splitlines() if " sort(" in x]
    assert not any("f32[" in x for x in sorts), sorts


def test_other_dtypes():
    queries, gallery = unit(0, 4), unit(1, 50)
    halves = [x.astype(np.float16) for x in (queries, gallery)]
    check(*halves, 5)
    check(queries.astype(np.float64), np.asfortranarray(gallery), 5)
    _, index = nearest(jnp.asarray(queries), jnp.asarray(gallery), 5)
    np.testing.assert_array_equal(index, brute(queries, gallery, 5)[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("name", ["queries", "gallery"])
def test_values_that_are_not_finite(name, value):
    arrays = {"queries": unit(0, 4), "gallery": unit(1, 9)}
    arrays[name][[1, 3], 2] = value
    with pytest.raises(UserError, match=f"2 of {len(arrays[name])} rows of {name}"):
        nearest(arrays["queries"], arrays["gallery"], 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(k=10), "k=10 must be from 1 to 9"),
        (dict(k=0), "k=0 must be from 1 to 9"),
        (dict(k=9, exclude=np.arange(4)), "k=9 must be from 1 to 8.*itself excluded"),
        (dict(k=2, exclude=np.arange(3)), r"exclude \(3,\) must be \(4,\)"),
        (dict(k=2, gallery=unit(0, 9, 8)), "differ in dimension"),
        (dict(k=2, gallery=unit(0, 9)[:0]), "gallery must be .* not empty"),
        (dict(k=2, queries=unit(0, 9)[0]), r"queries must be \[row, dim\]"),
    ],
)
def test_what_is_wrong_is_said(kwargs, message):
    arguments = dict(queries=unit(0, 4), gallery=unit(1, 9)) | kwargs
    with pytest.raises(UserError, match=message):
        nearest(**arguments)
