"""Checkpoints: whole, checked, kept, found again on other devices."""

import itertools
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small import NUM_EXAMPLES, SmallRun, small_config

from eir_jax.run import checkpoint
from eir_jax.run.checkpoint import Checkpoints, DamagedCheckpoint
from eir_jax.system.errors import UserError

META = {"num_examples": NUM_EXAMPLES, "train_hash": "x"}


@pytest.fixture(scope="module")
def run():
    return SmallRun()


@pytest.fixture(scope="module")
def states(run):
    """Return the states after 0..4 steps, as NumPy."""
    state = run.create()
    step = run.compiled(state)
    found = [jax.device_get(state)]
    for number in range(4):
        state, _ = step(state, run.put(number))
        found.append(jax.device_get(state))
    return found


@pytest.fixture
def saved(states, tmp_path):
    """Return a folder with the checkpoints of steps 1..3 (2 is the best)."""
    directory = tmp_path / "checkpoints"
    checkpoints = Checkpoints(directory, keep=3)
    for state, knn in zip(states[1:4], [0.1, 0.9, 0.2], strict=True):
        checkpoints.save(jax.device_put(state), META, knn)
    checkpoints.close()
    return directory


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), b)


def test_restores_bit_for_bit(run, states, saved):
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.steps == [3, 2, 1]
    for step in (1, 2, 3):
        equal(checkpoints.restore(step, run.abstract()), states[step])
    state, meta = checkpoints.restore_newest(run.abstract)
    assert int(state.step) == 3
    assert meta["num_examples"] == NUM_EXAMPLES


@pytest.mark.parametrize("devices", [8, 4, 3])
def test_restores_on_other_device_counts(states, saved, devices):
    """Three devices need other padding rows; the real ones are the same."""
    other = SmallRun(devices=devices)
    state = Checkpoints(saved, read_only=True).restore(3, other.abstract())
    assert state.memory["bank"].sharding.mesh.size == devices
    rows = slice(0, NUM_EXAMPLES)
    np.testing.assert_array_equal(
        state.memory["bank"][rows], states[3].memory["bank"][rows]
    )
    assert not np.asarray(state.memory["bank"])[NUM_EXAMPLES:].any()
    equal(state.params, states[3].params)


def test_a_run_goes_on_with_other_numbers_of_devices(tmp_path):
    """A step on 8 devices, one on 1, on 4, on 8: the loss curve of one device."""
    # Small steps: a tiny encoder magnifies rounding (see test_step.py).
    changes = {"batch_size": 64, "optimizer.learning_rate": 1e-5}
    runs = {n: SmallRun(small_config(**changes), devices=n) for n in (1, 4, 8)}
    steps = {n: run.compiled(run.create()) for n, run in runs.items()}
    state, want = runs[1].create(), []
    for number in range(4):
        state, metrics = steps[1](state, runs[1].put(number))
        want.append(metrics["loss"])
    for number, devices in enumerate([8, 1, 4, 8]):
        run = runs[devices]
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        found = checkpoints.restore_newest(run.abstract)
        assert bool(found) == bool(number)
        before = found[0] if found else run.create()
        after, metrics = steps[devices](before, run.put(number))
        assert float(metrics["loss"]) == pytest.approx(float(want[number]), rel=1e-5)
        checkpoints.save(after, META, None)
        checkpoints.close()
    banks = jax.device_get((after.memory["bank"], state.memory["bank"]))
    np.testing.assert_allclose(*banks, atol=1e-5)


def test_bank_of_bfloat16_keeps_its_type(tmp_path):
    run = SmallRun(small_config(**{"bank.dtype": "bfloat16"}))
    state = run.create()
    assert state.memory["bank"].dtype == jax.numpy.bfloat16
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(state, META, None)
    checkpoints.wait()
    restored = checkpoints.restore(0, SmallRun(run.config, devices=8).abstract())
    assert restored.memory["bank"].dtype == jax.numpy.bfloat16
    equal(restored, jax.device_get(state))
    overwrite(tmp_path / "c" / "0")
    with pytest.raises(DamagedCheckpoint):
        checkpoints.restore(0, run.abstract())
    checkpoints.close()


def test_keeps_the_newest_and_the_best(states, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    for state, knn in zip(states, [0.5, 0.9, None, 0.2, None], strict=True):
        checkpoints.save(jax.device_put(state), META, knn)
    checkpoints.wait()
    assert checkpoints.steps == [4, 1]
    checkpoints.close()


def test_the_best_is_among_those_of_one_protocol(states, tmp_path):
    """Of another k, say: 100 % by the old one is no reason to keep a checkpoint."""
    states = [jax.device_put(state) for state in states]
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    for state, knn in zip(states[:2], [1.0, 0.4], strict=True):
        checkpoints.save(state, META, knn, "k=1")
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    assert checkpoints.best == 0
    for state, knn in zip(states[2:], [0.3, 0.2, None], strict=True):
        checkpoints.save(state, META, knn, "k=60")
    checkpoints.wait()
    assert checkpoints.steps == [4, 2] and checkpoints.best == 2
    checkpoints.close()
    assert Checkpoints(tmp_path / "c", read_only=True).best == 2


def largest_file(directory):
    return max((directory / "state").rglob("*"), key=lambda p: p.stat().st_size)


def overwrite(directory):
    file = largest_file(directory)
    content = bytearray(file.read_bytes())
    for part in range(1, 16):  # some of a file may be space that nothing reads
        place = part * len(content) // 16
        content[place : place + 12] = b"overwritten!"
    file.write_bytes(content)


def truncate(directory):
    file = largest_file(directory)
    file.write_bytes(file.read_bytes()[:100])


def lose_file(directory):
    largest_file(directory).unlink()


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def change_number(directory):
    """Change a checksum: as if the array had changed and Orbax had not noticed."""
    file = directory / "meta" / "metadata"
    meta = json.loads(file.read_text())
    meta["checksums"]["memory.bank"] += 1
    file.write_text(json.dumps(meta))


# Reads that Orbax leaves behind when one fails end when the event loop is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage", [overwrite, truncate, lose_file, empty, change_number]
)
def test_damage_is_noticed_and_the_one_before_used(run, states, saved, capsys, damage):
    damage(saved / "3")
    checkpoints = Checkpoints(saved)
    with pytest.raises(DamagedCheckpoint):
        checkpoints.restore(3, run.abstract())
    state, _ = checkpoints.restore_newest(run.abstract)
    equal(state, states[2])
    assert "checkpoint 3 is damaged" in capsys.readouterr().err
    checkpoints.set_aside(after=2)
    assert checkpoints.steps == [2, 1]
    assert (saved.parent / "damaged" / "3").is_dir()  # nothing is thrown away
    checkpoints.save(jax.device_put(states[3]), META, None)
    checkpoints.wait()
    equal(checkpoints.restore(3, run.abstract()), states[3])
    checkpoints.close()


def test_processes_go_on_from_what_all_can_read(
    run, states, saved, capsys, monkeypatch
):
    """Another process does not see step 3, and cannot read the notes of step 2."""
    others = itertools.chain(["2 1", "stale file handle"], itertools.repeat(""))
    monkeypatch.setattr(
        "eir_jax.run.checkpoint.processes.exchange",
        lambda text="": [text, next(others)],
    )
    checkpoints = Checkpoints(saved, read_only=True)
    state, meta = checkpoints.restore_newest(lambda _: run.abstract())
    assert meta["step"] == 1
    equal(state, states[1])
    said = capsys.readouterr().err
    assert "checkpoint 3 is not seen by all processes" in said
    assert "2 is damaged: its notes cannot be read (stale file handle)" in said


@pytest.mark.parametrize(
    "content", [b"", b'{"kn', b"\xff\xfe", b"[]", b'{"knn": "x"}', b"{}"]
)
def test_a_damaged_number_beside_a_checkpoint_loses_no_checkpoint(
    run, states, saved, capsys, content
):
    for step in (2, 3):
        (saved / str(step) / "metrics" / "metrics").write_bytes(content)
    assert Checkpoints(saved, read_only=True).best == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("kNN noted beside checkpoint" in x for x in said)
    checkpoints = Checkpoints(saved, keep=1)
    state, _ = checkpoints.restore_newest(run.abstract)
    equal(state, states[3])
    checkpoints.set_aside(after=3)
    checkpoints.save(jax.device_put(states[4]), META, 0.05)
    checkpoints.wait()
    assert checkpoints.steps == [4, 1] and checkpoints.best == 1
    checkpoints.close()


def test_leftovers_of_a_killed_save_are_ignored(run, saved):
    shutil.copytree(saved / "3", saved / "4.orbax-checkpoint-tmp")
    assert Checkpoints(saved, read_only=True).steps == [3, 2, 1]


def test_state_that_is_not_finite_is_refused(run, states, saved):
    bad = states[4].replace(
        memory={"bank": np.full_like(states[4].memory["bank"], np.nan)}
    )
    checkpoints = Checkpoints(saved, keep=3)
    with pytest.raises(UserError, match="not finite at step 4"):
        checkpoints.save(jax.device_put(bad), META, None)
    assert checkpoints.steps == [3, 2, 1]
    checkpoints.close()


def test_a_bank_of_version_0_1_is_read_under_its_old_name(run, states, tmp_path):
    """What that version saved: the bank beside the parameters, no memory."""
    state = jax.device_put(states[3])
    arrays = {n: getattr(state, n) for n in checkpoint.KEPT_SINCE_0_1}
    arrays["memory_bank"] = state.memory["bank"]
    checkpoints = Checkpoints(tmp_path / "c")
    checksums = jax.device_get(checkpoint._checksums(arrays)[0])
    meta = META | {"step": 3, "checksums": checkpoint._named(checksums)}
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
    )
    checkpoints._manager.save(3, args=args)
    checkpoints.wait()
    equal(checkpoints.restore(3, run.abstract()), states[3])
    queue = run.abstract().replace(memory={"queue": None})
    with pytest.raises(UserError, match=r"version 0.1 .*another objective"):
        checkpoints.restore(3, queue)
    checkpoints.close()
