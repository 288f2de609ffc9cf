"""Every system as a step, and from training to evaluation."""

import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SmallRun, random_batch, small_config
from test_main import save_arrays
from test_step import assert_close

from configs import digits
from eir_jax.data.order import SHUFFLE, epoch_order
from eir_jax.data.pipeline import make_train_batches
from eir_jax.evaluation.embed import make_embed
from eir_jax.evaluation.restore import restore_run
from eir_jax.experiments.coefficients import finished
from eir_jax.experiments.evaluate import evaluate
from eir_jax.models.encoder import make_encoder
from eir_jax.objectives.systems import EIR, SYSTEMS, warnings
from eir_jax.run.checkpoint import Checkpoints
from eir_jax.system import sharding
from eir_jax.system.errors import UserError
from eir_jax.training.loop import train_and_evaluate
from eir_jax.training.periods import make_refresh

SETTINGS = {
    "supervised": {"model.num_classes": 10},
    "simclr": {"on_top": True, "model.head": "mlp_bn", "temperature": 0.5},
    "isif": {"on_top": True},
    "moco": {"queue.size": 32, "model.head": "mlp", "batch_norm.groups": 2},
    "eir_moco": {"queue.size": 32, "batch_norm.groups": 2},
    "ir_nce": {"nce.negatives": 20},
    "and": {"num_rounds": 2},
    "clusters": {"clusters.count": 5, "clusters.isif_epochs": 1},
    "deepcluster": {"clusters.count": 5, "model.num_classes": 5},
    "cmc": {"model.towers": "lab"},
}
OTHERS = [name for name in SYSTEMS if name not in EIR]


def take_steps(run, state, count=2, spoil=None):
    """Take steps of noise; the view that `spoil` names is NaN. Return the last."""
    step = None
    images = np.random.default_rng(9).normal(size=(run.num_examples, 8, 8, 3))
    embed = make_embed(run.config, run.mesh)
    refresh = make_refresh(run.parts, images.astype(np.float32), embed)
    for number in range(count):
        if refresh:
            state = refresh(state, number, lambda note: None)
        step = step or run.compiled(state)
        batch = run.put(number)
        rng = np.random.default_rng(number)
        label = rng.integers(0, 10, run.config.batch_size).astype(np.int32)
        images = {"label": label, "weak": np.asarray(batch["view1"]) * 0.9}
        batch |= sharding.put_batch(images, run.mesh)
        if spoil:
            batch[spoil] = jnp.full_like(batch[spoil], jnp.nan)
        before, (state, metrics) = state, step(state, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
    return state, metrics


def in_float64(state):
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
    )


@pytest.mark.parametrize("name", OTHERS)
def test_one_device_equals_eight(name):
    """In float64: parameters, statistics, and all that is remembered."""
    config = small_config(objective=name, **SETTINGS.get(name, {}))
    ends = []
    with jax.enable_x64(True):
        for devices in (1, 8):
            run = SmallRun(config, devices)
            state, metrics = take_steps(run, in_float64(run.create()))
            assert all(np.isfinite(value) for value in metrics.values())
            ends.append(jax.device_get(state))
    assert_close(*ends, 1e-7)


def test_a_loss_that_is_not_finite_enqueues_nothing():
    run = SmallRun(small_config(objective="moco", **SETTINGS["moco"]))
    before = jax.device_get(run.create().memory)
    state, metrics = take_steps(run, run.create(), 1, spoil="view2")
    assert not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.memory))


def test_keys_are_of_the_key_encoder_and_of_a_shuffled_batch():
    """Each half of it by itself, as batch norm's groups; each key in its image's row.

    In float64 and by the encoder alone, of one group: the images of a half are all
    that it is given.
    """
    config = small_config(objective="moco", **SETTINGS["moco"], seed=3)
    half = config.batch_size // 2
    alone = make_encoder(small_config(**{"model.head": "mlp"}))

    def of_halves(params, statistics, images):
        return np.concatenate([
            alone.apply(
                {"params": params, "batch_stats": statistics},
                *(part, True),
                mutable=["batch_stats"],
            )[0].embedding
            for part in (images[:half], images[half:])
        ])  # fmt: skip

    with jax.enable_x64(True):
        run = SmallRun(config)
        state = in_float64(run.create())
        key = jax.tree.map(lambda x: 1.5 * x + 0.01, state.params)  # not the online one
        state = state.replace(memory=state.memory | {"key": key})
        images = np.asarray(random_batch(config, 0)["view2"])
        chance = jax.random.fold_in(jax.random.key(config.seed), SHUFFLE)
        chance = jax.random.fold_in(jax.random.fold_in(chance, 0), 0)
        shuffled = np.asarray(jax.random.permutation(chance, len(images)))
        wanted = np.empty((len(images), config.model.embedding_dim))
        wanted[shuffled] = of_halves(key, state.batch_stats, images[shuffled])
        in_order = of_halves(key, state.batch_stats, images)
        before = jax.device_get(key)
        state, _ = take_steps(run, state, 1)
        queue = np.asarray(state.memory["queue"])[: len(images)]
        # The key encoder follows the parameters that the step has made.
        jax.tree.map(
            lambda new, old, online: np.testing.assert_allclose(
                new, 0.99 * old + 0.01 * online, rtol=1e-12
            ),
            *jax.device_get((state.memory["key"], before, state.params)),
        )
    np.testing.assert_allclose(queue, wanted, atol=1e-6)
    assert np.abs(queue - in_order).max() > 1e-2


@pytest.mark.parametrize("name", ["eir_moco", "deepcluster"])
def test_a_memory_is_restored_on_other_devices(name, tmp_path):
    """Written by eight, read by one: key encoder, queue and pointer; or clusters."""
    config = small_config(objective=name, **SETTINGS[name])
    eight = SmallRun(config, 8)
    state = eight.create()
    if name == "deepcluster":  # of which all are 0 before
        images = np.random.default_rng(9).normal(size=(eight.num_examples, 8, 8, 3))
        embed = make_embed(config, eight.mesh)
        refresh = make_refresh(eight.parts, images.astype(np.float32), embed)
        state = refresh(state, 0, lambda note: None)
        assert len(np.unique(state.memory["cluster"])) == 5
    checkpoints = Checkpoints(tmp_path / "c")
    meta = {"num_examples": 70, "train_hash": "", "config": config.to_dict()}
    checkpoints.save(state, meta, None)
    checkpoints.wait()
    found = checkpoints.restore(0, SmallRun(config, 1).abstract())
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state)
    )


def tiny(name, **changes):
    """Return settings of a run on the digits that takes seconds."""
    config = digits.get_config()
    config.data.image_size = 8
    config.model.name = "resnet6"
    config.model.width, config.model.embedding_dim = 4, 16
    config.batch_size, config.num_epochs = 512, 1
    config.optimizer.milestones, config.optimizer.factors = (1,), (0.1,)
    config.eval_every_epochs = 0
    settings = {"objective": name} | SETTINGS.get(name, {})
    if "queue.size" in settings:
        settings["queue.size"] = 512
    config.update_from_flattened_dict(settings | changes)
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", [*OTHERS, "ir", "iraug_sum"])
def test_trains_and_evaluates(name, tmp_path):
    changes = {}
    if name == "clusters":  # in the first epoch it is IR
        changes = {"num_epochs": 2, "optimizer.milestones": (2,)}
    if name == "cmc":  # the digits are grey
        path = str(save_arrays(tmp_path / "a.npz"))
        changes = {"data.source": "arrays", "data.path": path, "batch_size": 64}
    config = tiny(name, **changes, **{"knn.k": (5, 20)})
    assert train_and_evaluate(config, tmp_path / "w") == 0
    found = evaluate(tmp_path / "w", tasks=("knn",))
    assert 0 < found["knn"]["20"] <= 1


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("clusters", "cluster"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("deepcluster", "cluster"),
                ("and", "neighbour"),
                ("moco", "queue"),
            )
        ),
    ],
)
def test_resumes_across_a_refresh_to_the_bit(name, key, tmp_path):
    """What is found anew each epoch or round: three at once, or some and the rest."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    period, first = ("num_rounds", 2) if name == "and" else ("num_epochs", 1)
    for count, workdir in ((3, whole), (first, parts), (3, parts)):
        changes = {"checkpoint_every_epochs": 1, period: count}
        train_and_evaluate(tiny(name, **changes), workdir)
    assert sums(whole, 6) == sums(parts, 6)
    found = np.asarray(restore_run(whole).state.memory[key])
    if key == "cluster":
        assert set(np.unique(found)) == set(range(5))
    elif key == "neighbour":  # half of the images have one
        assert np.sum(found[:1437] != np.arange(1437)) == 1437 // 2


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_resumes_amid_an_epoch_to_the_bit(tmp_path, monkeypatch):
    """By the order that the epoch's clusters gave, which are not found anew."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = tiny("deepcluster", num_epochs=2, batch_size=256)  # 5 steps an epoch
    drawn = []

    def noted(*arguments):
        for batch in make_train_batches(*arguments):
            drawn.append(batch["index"])
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr("eir_jax.training.loop.make_train_batches", noted)
        train_and_evaluate(config, whole)
    # Each cluster of the last epoch had as many places in it, to one.
    assert len(drawn) == 10
    clusters = np.asarray(restore_run(whole).state.memory["cluster"])
    places = np.bincount(clusters[np.concatenate(drawn[5:])], minlength=5)
    assert places.sum() == 5 * 256 and np.ptp(places) == 0
    others = np.bincount(clusters[np.concatenate(drawn[:5])], minlength=5)
    assert np.ptp(others) > 1
    with monkeypatch.context() as patch:
        stop = lambda _, step: signal.SIGTERM if step == 7 else None  # noqa: E731
        patch.setattr("eir_jax.system.processes.agreed_stop", stop)
        assert train_and_evaluate(config, parts) == 75
    train_and_evaluate(config, parts)
    assert sums(whole, 10) == sums(parts, 10)


def sums(workdir, step):
    notes = workdir / f"checkpoints/{step}/meta/metadata"
    return json.loads(notes.read_text())["checksums"]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "moco",
            {"queue.size": 1438},
            "size=1438 exceeds the 1,437.*use queue.size=512",
        ),
        ("clusters", {"clusters.count": 2000}, "exceeds the 1,437.*at most 1437"),
        ("and", {"num_rounds": 1}, "num_rounds=1 would be IR.*num_rounds=5"),
        ("supervised", {"on_top": True}, "takes no intra.*on_top=false"),
        ("supervised", {"model.num_classes": 0}, "give the number of classes"),
        ("supervised", {"model.num_classes": 9}, "less than the classes.*use 10"),
        ("isif", {"inter.negatives": "bank"}, "no bank; use inter.negatives=batch"),
        (
            "isif",
            {"model.num_classes": 9},
            "objective=supervised and deepcluster alone",
        ),
        ("deepcluster", {"clusters.count": 7}, "give the same number.*num_classes=7"),
        ("deepcluster", {"clusters.count": 1, "model.num_classes": 1}, "use 2 or more"),
        ("clusters", {"clusters.count": 1}, "use 2 or more"),
        ("isif", {"clusters.isif_epochs": 3}, "is for objective=clusters alone; use 0"),
        ("eir_moco", {"on_top": True}, "has both terms already.*on_top=false"),
        (
            "deepcluster",
            {"clusters.count": 2000, "model.num_classes": 2000},
            "exceeds the 1,437.*at most 1437",
        ),
        ("deepcluster", {"on_top": True}, "takes no intra.*on_top=false"),
        ("cmc", {}, "the first train images of digits are grey"),
        ("cmc", {"model.towers": "one"}, "model.towers=one.*use model.towers=lab"),
        ("iraug", {"model.towers": "lab"}, "model.towers=lab.*use model.towers=one"),
        ("isif", {"optimizer.warmup_epochs": 1}, "leaves none of num_epochs=1"),
        ("moco", {"bank.form": "fused"}, "has a queue and no bank.*use bank.form=auto"),
    ],
)
def test_bad_settings_are_refused_in_words(name, changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train_and_evaluate(tiny(name, **changes), tmp_path / "w")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (512, ["size=512 is long .*: 18 %.*size=512, and a smaller batch_size"]),
        (700, ["no multiple of batch_size=512: .* 512 or 1024", "long .*size=512$"]),
        (300, ["no multiple of batch_size=512: .*; 512 would be one", "long"]),
        (1024, ["size=1024 is long for 1,437 training images: 53 %.*use .*size=512$"]),
    ],
)
def test_a_queue_that_may_cost_numbers_is_warned_of(size, words):
    found = [*warnings(tiny("moco", **{"queue.size": size}), 1437)]
    assert len(found) == len(words)
    for said, wanted in zip(found, words, strict=True):
        assert re.search(wanted, said)
    assert not [*warnings(tiny("isif", **{"queue.size": size}), 1437)]


@pytest.mark.parametrize(
    ("images", "size"), [(10_000, 1024), (10_000, 4096), (10_000, 9728), (1437, 1024)]
)
def test_so_many_find_their_own_last_key_in_a_queue(images, size):
    """By the orders of epochs themselves."""
    batch = 512
    config = tiny("moco", **{"queue.size": size, "batch_size": batch})
    shares = []
    for epoch in range(20):
        keys, queries = (
            epoch_order(0, epoch + number, images)[: images // batch * batch]
            for number in (0, 1)
        )
        for at in range(0, len(queries), batch):
            held = np.concatenate([keys, queries[:at]])[-size:]
            shares.append(np.isin(queries[at : at + batch], held).mean())
    said = [*warnings(config, images)]
    if size == 1024 and images == 10_000:
        assert not said and np.mean(shares) < 0.01
    else:
        (share,) = (int(re.search(r"(\d+) % of them", word)[1]) for word in said)
        assert abs(100 * np.mean(shares) - share) < 1
        shorter = 2048 if images == 10_000 else 512
        assert f"use queue.size={shorter}" in said[0]


@pytest.mark.parametrize(
    "objective, learns, fails, says",
    [
        (
            "deepcluster",
            {"clusters.count": 156, "model.num_classes": 156, "batch_size": 128},
            {"clusters.count": 157, "model.num_classes": 157, "batch_size": 128},
            "in 78 steps; use some 156 or fewer",
        ),
        ("ir_nce", {"nce.z_momentum": 0.99}, {}, "0.99 follows the bank"),
        ("clusters", {"num_epochs": 2}, {"num_epochs": 1}, "IR in its first epoch"),
        (
            "moco",
            {"batch_norm.groups": 2},
            {"batch_norm.groups": 1},
            "hides nothing from batch norm",
        ),
        (
            "eir_moco",
            {"queue.key_momentum": 0.999},
            {"queue.key_momentum": 0.99},
            "use 0.999, as released",
        ),
    ],
)
def test_settings_that_were_seen_to_fail_are_warned_of(objective, learns, fails, says):
    assert not [*warnings(tiny(objective, **learns), 10_000)]
    (found,) = warnings(tiny(objective, **fails), 10_000)
    assert says in found


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_queue_of_odd_length_trains_and_says_so(tmp_path, capsys):
    """700 keys, two batches of 512: row 324 is the next to be written."""
    config = tiny("moco", **{"queue.size": 700})
    assert train_and_evaluate(config, tmp_path / "w") == 0
    assert "warning: queue.size=700 is no multiple" in capsys.readouterr().out
    assert restore_run(tmp_path / "w").state.memory["pointer"] == 1024 - 700


@pytest.mark.usefixtures("one_device")
def test_supervised_without_labels_is_refused(tmp_path):
    images = np.zeros((8, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images)
    changes = {"data.source": "arrays", "data.path": str(tmp_path / "a.npz")}
    with pytest.raises(UserError, match="have no labels, which objective=supervised"):
        train_and_evaluate(tiny("supervised", **changes), tmp_path / "w")


@pytest.mark.usefixtures("one_device")
def test_supervised_leaves_unlabelled_images_out(tmp_path):
    """Their steps are not taken, and the run can be evaluated on all its data."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 8, 8, 3)).astype(np.uint8)
    labels = np.where(np.arange(60) < 40, np.arange(60) % 10, -1)
    np.savez(
        tmp_path / "a.npz",
        **{"train_images": images, "train_labels": labels},
        **{"test_images": images[:40], "test_labels": labels[:40]},
    )
    changes = {"data.source": "arrays", "data.path": str(tmp_path / "a.npz")}
    config = tiny("supervised", batch_size=16, **changes, **{"knn.k": (5,)})
    assert train_and_evaluate(config, tmp_path / "w") == 0
    found = restore_run(tmp_path / "w")
    assert int(found.state.step) == 2 and found.meta["num_examples"] == 40
    found = evaluate(tmp_path / "w", tasks=("knn",))
    assert "knn" in found and found["trained_images"] == 40
    assert finished(tmp_path / "w").is_whole
