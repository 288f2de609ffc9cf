"""The streamed relations against the dense ones, which test_losses.py checks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from eir_jax.objectives import losses
from eir_jax.objectives.fused import BLOCK, stream_fused
from eir_jax.objectives.memory_bank import padded_rows
from eir_jax.objectives.relations import (
    STREAMED_FROM,
    Candidates,
    Comparison,
    bank_candidates,
    log_probability,
    relate,
    streams,
)
from eir_jax.objectives.streaming import BLOCK_ROWS, other_rows, rows_at_once
from eir_jax.system import sharding

# N and temperature. N of a part of a block, a whole bank of 512, ragged blocks.
SIZES = ((1, 0.1), (5, 0.01), (512, 10), *((5000, t) for t in (0.01, 0.1, 1, 10)))
OPTIONS = (
    {"symmetric": True},
    {"stop_gradient": True},
    {"stop_gradient": True, "symmetric": True},
    {"temperature": 0.3, "symmetric": True},
    {"own_row": False, "symmetric": True},
    {"own_row": False, "stop_gradient": True, "temperature": 1.0},
    {"target_temperature": 0.04, "temperature": 0.1},
    {"target_temperature": 0.04, "temperature": 0.1, "own_row": False},
    {"target_temperature": 0.5, "temperature": 1.0, "stop_gradient": True},
)


class Case:
    """Views near their rows; indices repeat. Float32 values, whatever the type."""

    def __init__(self, n, batch=24, dim=16, rows=None, dtype="float32"):
        rng = np.random.default_rng(n)
        self.n, self.rows = n, rows or padded_rows(n)
        bank = reference.unit(rng.normal(size=(n, dim)))
        bank = np.asarray(jnp.asarray(bank, dtype), np.float32)
        # What stands in the padding does not matter.
        self.bank = np.full((self.rows, dim), 7, np.float32)
        self.bank[:n] = bank
        self.dtype = dtype
        self.index = rng.integers(0, n, batch).astype(np.int32)
        self.partner = rng.permutation(batch).astype(np.int32)
        v = reference.unit(bank[self.index] + 0.5 * rng.normal(size=(batch, dim)))
        w = reference.unit(v + 0.3 * rng.normal(size=v.shape))
        self.views = np.float32(v), np.float32(w)

    def relate(self, form, tau, float64=False, mesh=None, **options):
        """Return the relations, three losses made of the bank, and their gradients."""
        how = {"form": form, "mesh": mesh}
        n, index, partner = self.n, self.index, self.partner

        comparison = Comparison(**{"temperature": tau} | options)

        def compute(views, bank):
            rows = bank_candidates(bank, index, n)
            others = rows._replace(excluded=jnp.stack([index, index[partner]], 1))

            def values(v, w):
                found = relate(v, w, rows, tau, comparison, **how)
                loss = {
                    "eir": losses.iraug_loss(found) + 15 * losses.intra_loss(found),
                    "inter": losses.inter_candidates_loss(w, v, others, tau, **how),
                    "ir": -log_probability(v, rows, tau, **how).mean(),
                }
                return loss, found

            loss, pull, found = jax.vjp(values, *views, has_aux=True)
            one_of = {
                k: {j: jnp.ones_like(x) * (j == k) for j in loss}
                for k, x in loss.items()
            }
            return {
                "loss": loss,
                "gradient": {k: pull(x) for k, x in one_of.items()},
                "relations": found,
            }

        with jax.enable_x64(float64):
            bank = jnp.asarray(self.bank, "float64" if float64 else self.dtype)
            if mesh is not None:
                bank = jax.device_put(bank, sharding.split_rows(mesh))
            views = [jnp.asarray(x, "float64" if float64 else None) for x in self.views]
            return jax.device_get(jax.jit(compute)(views, bank))


def assert_close(found, wanted, tolerance=1e-5, tau=0.1):
    """Compare every array, relative to its largest entry.

    Or, of those that are differences of scores, to 1 or a tenth of a score's range.
    """
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        scale = max(np.abs(b).max(), max(1, 0.1 / tau) if "relations" in name else 1e-6)
        assert np.abs(a - b).max() <= tolerance * scale, (name, a, b)


@pytest.mark.parametrize(("n", "tau"), SIZES)
def test_equals_dense_in_float64(n, tau):
    case = Case(n)
    wanted = case.relate("dense", tau, float64=True)
    assert_close(case.relate("streamed", tau), wanted, tau=tau)
    if case.rows >= BLOCK:  # blocks of 32 rows are more sums, each rounded
        assert_close(case.relate("fused", tau), wanted, 2e-5, tau=tau)


@pytest.mark.parametrize("form", ["streamed", "fused"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options, form):
    case = Case(3000)
    found = case.relate(form, 0.1, **options)
    # Between two temperatures the scores are far apart, and so is their rounding.
    tolerance = 5e-5 if options.get("target_temperature") == 0.04 else 1e-5
    assert_close(found, case.relate("dense", 0.1, float64=True, **options), tolerance)


@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_bfloat16_rows(tau):
    """The rows are rounded; all that is computed of them is float32."""
    case = Case(5000, dtype="bfloat16")
    wanted = case.relate("dense", tau, float64=True)
    for form in ("streamed", "dense"):
        assert_close(case.relate(form, tau), wanted, tau=tau)
    # Of blocks of 32 rows, which are more sums, each rounded.
    assert_close(case.relate("fused", tau), wanted, 2e-5, tau=tau)


@pytest.mark.parametrize(
    ("n", "devices", "form"),
    [(70, 8, "streamed"), (5000, 3, "streamed"), (5000, 8, "dense"), (300, 8, "fused")],
)
def test_devices_change_nothing(n, devices, form):
    """Of 70 rows, most devices hold padding alone."""
    case = Case(n, rows=padded_rows(n, devices))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    one = case.relate(form, 0.1, float64=True)
    assert_close(case.relate(form, 0.1, float64=True, mesh=mesh), one, 1e-12)


def test_blocks_change_nothing():
    case = Case(1000)
    query = jnp.stack(case.views) / 0.1
    excluded = jnp.stack([case.index, case.index[case.partner]], axis=1)
    threshold = jnp.full(len(case.index), 3.0)
    arguments = (query, query[0] - query[1], excluded, threshold)
    whole, *others = [
        other_rows(jnp.asarray(case.bank), *arguments, 1000, block_rows=block)
        for block in (1024, 1, 7, 300, 1023, 5000)
    ]
    ragged = jnp.asarray(case.bank[:1003])
    others.append(other_rows(ragged, *arguments, 1000, fused=True))
    for other in others:
        assert_close(other, whole)
        np.testing.assert_array_equal(other.ahead, whole.ahead)
    score = np.float64(query) @ np.float64(case.bank[:1000]).T
    for k, rows in enumerate(np.asarray(excluded)):
        score[:, k, rows] = -np.inf
    np.testing.assert_array_equal(whole.ahead, (score[0] > 3).sum(1))


@pytest.mark.parametrize(
    ("rows", "batch", "moving", "multiples", "excluded"),
    [(1000, 24, (0,), (), 1), (700, 130, (2,), (2.0, 0.5), 2), (515, 8, (), (1.0,), 0)],
)
def test_the_kernel_of_a_tpu_finds_what_that_of_a_gpu_does(
    rows, batch, moving, multiples, excluded
):
    """Of ragged rows and tiles; without an excluded row, of groups."""
    rng = np.random.default_rng(0)
    views = 2 if len(multiples) < 2 else 4
    bank, query = rng.normal(size=(rows, 16)), rng.normal(size=(views, batch, 16))
    for place, times in enumerate(multiples, start=views - len(multiples)):
        query[place] = query[place - views + len(multiples)] * times
    arrays = [
        *(jnp.int32(5), jnp.float32(bank), jnp.float32(query)),
        jnp.int32(rng.integers(0, rows, (batch, excluded))),
        jnp.float32(rng.normal(size=batch)),
    ]
    if not excluded:
        arrays += [jnp.int32(rng.integers(0, 9, size)) for size in (rows, batch)]
    how = {
        "num_examples": rows - 3,
        "pair": (views - 2, views - 1),
        "moving": moving,
        "multiples": multiples,
        "interpret": True,
    }
    gpu, tpu = (stream_fused(*arrays, target=name, **how) for name in ("gpu", "tpu"))
    np.testing.assert_array_equal(tpu.ahead, gpu.ahead)
    for a, b in zip(tpu, gpu, strict=True):
        np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(initial=0)
        )


@pytest.mark.parametrize("n", [1, 300, 5000])
def test_rank_is_the_dense_one(n):
    case = Case(n)
    streamed, dense = (
        case.relate(form, 0.1)["relations"] for form in ("streamed", "dense")
    )
    np.testing.assert_array_equal(streamed.rank, dense.rank)
    cosine = case.views[0] @ case.bank[:n].T
    own = cosine[np.arange(len(cosine)), case.index]
    np.testing.assert_array_equal(streamed.rank, 1 + (cosine > own[:, None]).sum(1))


def test_equal_views_have_no_divergence():
    case = Case(5000)
    case.views = case.views[:1] * 2
    divergence = case.relate("streamed", 0.1)["relations"].divergence
    np.testing.assert_allclose(divergence, 0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("devices", [1, 8])
def test_no_array_of_batch_times_rows_exists(devices, dtype):
    """Temporaries are blocks; the largest array of the program is the bank."""
    n, batch, dim = 40 * BLOCK_ROWS * devices, 64, 16
    mesh = sharding.make_mesh(jax.devices()[:devices])

    def loss(view1, view2, bank, index):
        rows = bank_candidates(bank, index, n)
        relations = relate(view1, view2, rows, 0.1, Comparison(0.1), mesh=mesh)
        inter = losses.inter_candidates_loss(view1, view2, rows, 0.1, mesh=mesh)
        return losses.iraug_loss(relations) + losses.intra_loss(relations) + inter

    shape = jax.ShapeDtypeStruct
    everywhere = sharding.replicated(mesh)
    view = shape((batch, dim), jnp.float32, sharding=everywhere)
    compiled = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        .lower(
            view,
            view,
            shape((n, dim), dtype, sharding=sharding.split_rows(mesh)),
            shape((batch,), jnp.int32, sharding=everywhere),
        )
        .compile()
    )
    block = 4 * 2 * batch * BLOCK_ROWS
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * block
    sizes = [
        np.prod([int(x) for x in dims.split(",") if x], dtype=int)
        for dims in re.findall(r"\w+\[([\d,]*)\]", compiled.as_text())
    ]
    assert max(sizes) == n // devices * dim < batch * n // devices


def test_auto_streams_large_shares():
    small, large = jnp.zeros((STREAMED_FROM - 512, 1)), jnp.zeros((STREAMED_FROM, 1))
    mesh = sharding.make_mesh()
    assert streams("auto", large, 1, None) and not streams("auto", small, 1, None)
    assert not streams("auto", large, 1, mesh)  # an eighth on each device
    assert streams("streamed", small, 1, None) and not streams("dense", large, 1, None)


@pytest.mark.parametrize(
    ("platform", "devices", "batch", "streamed", "block"),
    [
        ("cpu", 1, 128, True, BLOCK_ROWS),  # by the rows a device alone
        ("cuda", 1, 128, False, 32768),
        ("tpu", 1, 1024, True, 4096),
        ("cuda", 8, 1024, False, 4096),
        ("tpu", 8, 8192, True, BLOCK_ROWS),
    ],
)
def test_accelerators_go_by_scores_a_device(platform, devices, batch, streamed, block):
    """Of 50,000 rows 2**24 scores are a batch of 336 on one device."""

    class Device:
        process_index = id = 0

    Device.platform = platform
    mesh = sharding.make_mesh([Device()] * devices)
    assert streams("auto", jnp.zeros((50176, 1)), batch, mesh) == streamed
    assert rows_at_once(batch, mesh) == block


@pytest.mark.parametrize("form", ["dense", "streamed"])
@pytest.mark.parametrize("own_row", [True, False])
def test_own_scores_stand_for_own_rows(form, own_row):
    """A queue or a batch, whose own score is given, and a bank that looks it up."""
    case = Case(700)
    rows = bank_candidates(jnp.asarray(case.bank), jnp.asarray(case.index), case.n)
    own_rows = jnp.asarray(case.bank)[case.index]
    how = {"temperature": 0.7, "target_temperature": 0.4, "symmetric": True}
    comparison = Comparison(**how, own_row=own_row)

    def values(v, w, given):
        own = jnp.stack([(v * own_rows).sum(1), (w * own_rows).sum(1)])
        own = own if given else None
        found = relate(v, w, rows, 0.1, comparison, own, form=form)
        alone = log_probability(v, rows, 0.1, None if own is None else own[0])
        return losses.iraug_loss(found) + losses.intra_loss(found) - alone.mean()

    views = tuple(map(jnp.asarray, case.views))
    compute = jax.jit(jax.value_and_grad(values, (0, 1)), static_argnums=2)
    assert_close(compute(*views, True), compute(*views, False))


def test_rows_of_no_instance_are_excluded_by_none():
    """-1 excludes no row, in both forms: it is not the last one."""
    case = Case(512)
    nobody = np.full((len(case.index), 1), -1, np.int32)
    rows = Candidates(jnp.asarray(case.bank), nobody, case.n)
    own = jnp.linspace(-1, 1, len(case.index))
    v = jnp.asarray(case.views[0])
    score = np.float64(case.views[0]) @ np.float64(case.bank).T
    score = np.concatenate([np.float64(own)[:, None], score], axis=1) / 0.1
    want = score[:, 0] - np.log(np.exp(score - score.max(1, keepdims=True)).sum(1))
    want -= score.max(1)
    for form in ("dense", "streamed"):
        found = log_probability(v, rows, 0.1, own, form=form)
        np.testing.assert_allclose(found, want, rtol=1e-5)
