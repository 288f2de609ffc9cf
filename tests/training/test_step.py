"""The step: pure, compiled once, donated, the same on 1 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import NUM_EXAMPLES, STEPS_PER_EPOCH, SmallRun, random_batch, small_config

from eir_jax.objectives import losses
from eir_jax.objectives.memory_bank import update_memory_bank
from eir_jax.objectives.relations import Comparison, bank_candidates, relate
from eir_jax.run.optimizer import make_schedule
from eir_jax.training.step import Together


def in_type(state, dtype):
    """Return a state whose numbers are of another type."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state
    )


def run_steps(devices, num_steps=5, dtype=jnp.float32, **changes):
    """Return the state and the metrics of each step."""
    run = SmallRun(small_config(**changes), devices)
    state = in_type(run.create(), dtype)
    step = run.compiled(state)
    history = []
    for number in range(num_steps):
        state, metrics = step(state, run.put(number))
        history.append(jax.device_get(metrics))
    assert step._cache_size() == 1
    return jax.device_get(state), history


def assert_close(state1, state8, tolerance):
    """Compare every leaf, relative to its largest entry or 1."""
    for (path, a), b in zip(
        jax.tree.leaves_with_path(state1), jax.tree.leaves(state8), strict=True
    ):
        difference = np.abs(np.asarray(a, np.float64) - b).max()
        assert difference <= tolerance * max(np.abs(a).max(), 1), jax.tree_util.keystr(
            path
        )


VARIANTS = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_norm.groups": 2, "batch_norm.sharing": "all"},
        {
            "inter.negatives": "bank",
            "intra.symmetric": True,
            "bank.form": "streamed",
        },
        {"bank.form": "fused", "intra.temperature": 0.5, "model.embedding_dim": 16},
    ],
    ids=["paper", "groups", "streamed bank negatives", "fused"],
)


@VARIANTS
def test_one_device_equals_eight(changes):
    """After 5 steps: metrics, parameters, statistics and bank.

    A batch of 64 and small steps: batch norm over few 1x1 maps, and weights that leap,
    magnify float32's rounding. The test in float64 below needs neither.
    """
    changes = changes | {"batch_size": 64, "optimizer.learning_rate": 1e-5}
    one, history1 = run_steps(1, **changes)
    eight, history8 = run_steps(8, **changes)
    for metrics1, metrics8 in zip(history1, history8, strict=True):
        assert metrics1.keys() == metrics8.keys()
        for name, value in metrics1.items():
            assert metrics8[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert_close(one.replace(opt_state=()), eight.replace(opt_state=()), 1e-5)


@VARIANTS
def test_one_device_equals_eight_in_float64(changes):
    """Where no rounding excuses a difference: gradients and momentum too."""
    with jax.enable_x64(True):
        one, _ = run_steps(1, dtype=jnp.float64, **changes)
        eight, _ = run_steps(8, dtype=jnp.float64, **changes)
    assert_close(one, eight, 1e-7)


def test_odd_device_counts_split_too():
    with jax.enable_x64(True):
        one, _ = run_steps(1, 2, jnp.float64, batch_size=15)
        three, _ = run_steps(3, 2, jnp.float64, batch_size=15)
    real = slice(0, NUM_EXAMPLES)  # three devices have other padding rows
    np.testing.assert_allclose(
        one.memory["bank"][real], three.memory["bank"][real], atol=1e-7
    )


@pytest.fixture(scope="module")
def run():
    return SmallRun()


def test_step_is_pure_and_does_what_eq_10_says(run):
    """One step by hand, in float64: loss, gradient, SGD and bank from the parts."""
    with jax.enable_x64(True):
        check_step_by_hand(run)


def check_step_by_hand(run):
    config = run.config
    state = in_type(run.create(), jnp.float64)
    batch = {k: jnp.asarray(v) for k, v in random_batch(config, 0).items()}
    images = np.stack([batch["view1"], batch["view2"], batch["mixed"]], axis=1)

    def total(params):
        output, updates = run.encoder.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images.reshape(-1, 8, 8, 3),
            train=True,
            mutable=["batch_stats"],
        )
        v, w, mixed = output.embedding.reshape(16, 3, -1).swapaxes(0, 1)
        bank = bank_candidates(state.memory["bank"], batch["index"], NUM_EXAMPLES)
        relations = relate(v, w, bank, 0.1, Comparison())
        target = losses.mixed_target(v, batch["partner"], batch["ratio"])
        terms = (
            losses.iraug_loss(relations),
            losses.intra_loss(relations),
            losses.inter_loss(mixed, target, 0.1),
        )
        loss = terms[0] + 15 * terms[1] + 2 * terms[2]
        return loss, (terms, v, updates["batch_stats"])

    (loss, (terms, v, stats)), gradient = jax.jit(
        jax.value_and_grad(total, has_aux=True)
    )(state.params)
    before = jax.tree.map(np.array, state)
    step = jax.jit(run.pure_step)
    once, metrics = step(state, batch)
    again, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, before, state)
    jax.tree.map(np.testing.assert_array_equal, once, again)

    names = ("loss_instance", "loss_intra", "loss_inter")
    for name, value in zip(names, terms, strict=True):
        assert metrics[name] == pytest.approx(float(value), rel=1e-9)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-9)
    want_params = jax.tree.map(
        lambda p, g: p - 0.03 * (g + 5e-4 * p), state.params, gradient
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9)  # noqa: E731
    jax.tree.map(close, once.params, want_params)
    jax.tree.map(close, once.batch_stats, stats)
    close(
        once.memory["bank"],
        update_memory_bank(state.memory["bank"], batch["index"], v, 0.5),
    )
    assert once.step == 1


@pytest.mark.parametrize("term", ["intra", "inter"])
def test_a_lambda_grows_over_its_ramp(term):
    ramp = SmallRun(small_config(**{f"{term}.ramp_steps": 3}))
    state = ramp.create()
    take = ramp.compiled(state)
    states, history = [], []
    for number in range(4):
        state, metrics = take(state, ramp.put(number))
        states.append(jax.device_get(state))
        history.append(jax.device_get(metrics))
    for step, m in enumerate(history):
        weights = {"intra": 15.0, "inter": 2.0}
        weights[term] *= min(step / 3, 1)
        wanted = m["loss_instance"] + sum(
            weight * m[f"loss_{name}"] for name, weight in weights.items()
        )
        assert m["loss"] == pytest.approx(float(wanted), rel=1e-5), step
    # The gradient has that weight too: the first step is one without the term.
    without, _ = run_steps(1, 1, **{f"lambda_{term}": 0.0})
    assert_close(states[0].params, without.params, 1e-6)


def test_state_is_donated(run):
    state = run.create()
    step = run.compiled(state)
    new, _ = step(state, run.put(0))
    assert state.memory["bank"].is_deleted()
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert not new.memory["bank"].is_deleted()


def test_bank_is_split_by_rows():
    run = SmallRun(devices=8)
    state = run.create()
    assert state.memory["bank"].sharding.shard_shape(state.memory["bank"].shape) == (
        64,
        16,
    )
    state, _ = run.compiled(state)(state, run.put(0))
    assert state.memory["bank"].sharding.shard_shape(state.memory["bank"].shape) == (
        64,
        16,
    )


@pytest.mark.parametrize(
    ("network", "told_by"), [("resnet10", "loss"), ("resnet6", "gradient_norm")]
)
def test_a_step_that_is_not_finite_writes_no_row(network, told_by):
    """Nor where the loss does not tell: the mean of max(nan, 0) over pixels is 0."""
    run = SmallRun(small_config(**{"model.name": network}))
    state, batch = run.create(), run.put(0)
    before = np.array(state.memory["bank"])
    batch["view2"] = jnp.full_like(batch["view2"], jnp.nan)
    state, metrics = run.compiled(state)(state, batch)
    assert not np.isfinite(metrics[told_by])
    np.testing.assert_array_equal(state.memory["bank"], before)


def test_learning_rate_follows_the_schedule(run):
    config = small_config(**{"optimizer.milestones": (1, 2)})
    schedule = make_schedule(config, STEPS_PER_EPOCH)
    _, history = run_steps(1, 5, **{"optimizer.milestones": (1, 2)})
    for step, metrics in enumerate(history):
        assert metrics["learning_rate"] == schedule(step)
    assert history[-1]["learning_rate"] == pytest.approx(0.0003)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"lambda_inter": 0.0}, {"loss_instance", "loss_intra"}),
        ({"lambda_intra": 0.0}, {"loss_instance", "loss_inter"}),
        (
            {"lambda_intra": 0.0, "lambda_inter": 0.0, "objective": "ir"},
            {"loss_instance"},
        ),
        ({"objective": "ir"}, {"loss_instance", "loss_intra", "loss_inter"}),
    ],
)
def test_terms_left_out_are_not_computed(changes, names):
    config = small_config(**changes)
    run = SmallRun(config)
    batch = random_batch(config, 0)
    if not config.lambda_inter:
        del batch["mixed"], batch["partner"], batch["ratio"]
    if names == {"loss_instance"}:
        del batch["view2"]
    _, metrics = jax.eval_shape(run.pure_step, run.create(), batch)
    health = {"embedding_std", "bank_drift", "gradient_norm"}
    if "view2" in batch:
        health |= {"alignment", "positive_rank", "entropy_p", "entropy_q"}
    assert metrics.keys() == names | health | {"loss", "learning_rate"}


def test_training_lowers_the_loss():
    """Twenty steps on one batch: the views find their rows."""
    run = SmallRun()
    state = run.create()
    step = run.compiled(state)
    batch = run.put(0)
    history = []
    for _ in range(20):
        state, metrics = step(state, batch)
        history.append(float(metrics["loss_instance"]))
    assert history[-1] < history[0] - 0.5
    assert np.isfinite(optax.tree.norm(state.params))


def test_metrics_come_to_the_host_by_one_copy(run):
    state, batch = run.create(), run.put(0)
    _, apart = jax.eval_shape(run.pure_step, state, batch)
    _, together = jax.eval_shape(run.compiled(state), state, batch)
    assert len(jax.tree.leaves(together)) == 1
    assert list(together) == list(apart)
    found = jax.device_get(Together.of({"b": jnp.ones(()), "a": jnp.zeros(())}))
    assert dict(found.items()) == {"a": 0, "b": 1}
    with pytest.raises(KeyError):
        found["c"]
