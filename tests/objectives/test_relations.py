"""The streamed relations against the dense ones, which test_losses.py checks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from eir_jax.objectives import losses
from eir_jax.objectives.memory_bank import (
    STREAMED_FROM,
    padded_rows,
    relate_view,
    relate_views,
    streams,
)
from eir_jax.objectives.relations import BLOCK_ROWS, other_rows
from eir_jax.system import sharding

# N and temperature. N of a part of a block, a whole bank of 512, ragged blocks.
SIZES = ((1, 0.1), (5, 0.01), (512, 10), *((5000, t) for t in (0.01, 0.1, 1, 10)))
OPTIONS = (
    {"symmetric": True},
    {"stop_gradient": True},
    {"stop_gradient": True, "symmetric": True},
    {"divergence_temperature": 0.3, "symmetric": True},
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

        def compute(views, bank):
            def values(v, w):
                found = relate_views(bank, v, w, index, n, tau, **options, **how)
                inter = losses.inter_bank_loss(
                    w, v, bank, index, partner, n, tau, **how
                )
                loss = {
                    "eir": losses.iraug_loss(found) + 15 * losses.intra_loss(found),
                    "inter": inter,
                    "ir": -relate_view(bank, v, index, n, tau, **how).mean(),
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options):
    case = Case(3000)
    found = case.relate("streamed", 0.1, **options)
    assert_close(found, case.relate("dense", 0.1, float64=True, **options))


@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_bfloat16_rows(tau):
    """The rows are rounded; all that is computed of them is float32."""
    case = Case(5000, dtype="bfloat16")
    wanted = case.relate("dense", tau, float64=True)
    assert_close(case.relate("streamed", tau), wanted, tau=tau)
    assert_close(case.relate("dense", tau), wanted, tau=tau)


@pytest.mark.parametrize(
    ("n", "devices", "form"),
    [(70, 8, "streamed"), (5000, 3, "streamed"), (5000, 8, "dense")],
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
    whole, *others = (
        other_rows(jnp.asarray(case.bank), *arguments, 1000, (), None, block)
        for block in (1024, 1, 7, 300, 1023, 5000)
    )
    for other in others:
        assert_close(other, whole)
        np.testing.assert_array_equal(other.ahead, whole.ahead)
    score = np.float64(query) @ np.float64(case.bank[:1000]).T
    for k, rows in enumerate(np.asarray(excluded)):
        score[:, k, rows] = -np.inf
    np.testing.assert_array_equal(whole.ahead, (score[0] > 3).sum(1))


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
        relations = relate_views(bank, view1, view2, index, n, 0.1, mesh=mesh)
        inter = losses.inter_bank_loss(
            view1, view2, bank, index, index, n, 0.1, mesh=mesh
        )
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
    assert streams("auto", large, None) and not streams("auto", small, None)
    assert not streams("auto", large, mesh)  # an eighth on each device
    assert streams("streamed", small, None) and not streams("dense", large, None)
