"""Rounds, runs of no epoch, and the record of a run's starts, on noise."""

import json

import pytest
from test_main import save_arrays

from configs import digits
from eir_jax.experiments.evaluate import evaluate
from eir_jax.run.record import read_sessions
from eir_jax.system.errors import UserError
from eir_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("one_device")


def train(workdir, **changes):
    """Train two steps an epoch; the workdir's folder holds the data."""
    config = digits.get_config()
    config.data.source = "arrays"
    config.data.path = str(save_arrays(workdir.parent / "a.npz"))
    config.data.image_size = 8
    config.model.name, config.model.width = "resnet6", 4
    config.model.embedding_dim = 32
    config.batch_size = 64
    config.knn.k = (5, 20)
    config.num_epochs = 2
    config.optimizer.milestones, config.optimizer.factors = (1,), (0.1,)
    config.eval_every_epochs = 0
    config.log_every_steps = 1
    config.checkpoint_every_epochs = 1
    config.update_from_flattened_dict(changes)
    return train_and_evaluate(config, workdir)


def checksums(workdir, step):
    meta = workdir / f"checkpoints/{step}/meta/metadata"
    return json.loads(meta.read_text())["checksums"]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Return the workdir of two rounds of two epochs."""
    workdir = tmp_path_factory.mktemp("rounds") / "w"
    assert train(workdir, num_rounds=2, checkpoint_every_epochs=3) == 0
    return workdir


def test_rates_of_the_second_round_are_those_of_the_first(rounds):
    lines = (rounds / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    assert len(rates) == 8 and len(set(rates[:4])) == 2
    assert rates[:4] == rates[4:]


def test_two_rounds_are_one_and_another(rounds, tmp_path, capsys):
    """A run of one round, started again with num_rounds=2, ends with the same bits."""
    workdir = tmp_path / "w"
    train(workdir)
    train(workdir, num_rounds=2)
    output = capsys.readouterr().out
    assert "2 rounds of 2 epochs, 8 steps" in output
    assert "going on from the checkpoint of step 4" in output
    assert checksums(workdir, 8) == checksums(rounds, 8)
    sessions = read_sessions(workdir)
    assert [(s["from_step"], s["to_step"]) for s in sessions] == [(0, 4), (4, 8)]
    assert all(s["seconds"] > 0 and s["num_devices"] >= 1 for s in sessions)


def test_epochs_of_a_round_are_settled_by_several_rounds(rounds):
    with pytest.raises(UserError, match="num_epochs: 2 there, 3 here"):
        train(rounds, num_rounds=2, num_epochs=3)
    with pytest.raises(UserError, match="num_epochs: 2 there, 4 here"):
        train(rounds, num_epochs=4)


def test_each_rounds_end_is_kept_and_evaluated(rounds):
    """None is due there, after two epochs of three, and two newer ones are kept."""
    steps = {int(p.name) for p in (rounds / "checkpoints").iterdir()}
    assert steps == {4, 6, 8}
    assert evaluate(rounds, "4", tasks=("retrieval",))["step"] == 4


def test_fewer_steps_than_taken_are_refused(rounds, tmp_path):
    """And leave the settings: else a longer first round would pass for one of these."""
    with pytest.raises(UserError, match=r"to step 8, beyond the 4 of num_epochs=2, n"):
        train(rounds)
    workdir = tmp_path / "w"
    train(workdir, num_epochs=3)
    settings = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match=r"to step 6, beyond the 4 of num_epochs=2, n"):
        train(workdir)
    assert (workdir / "config.json").read_text() == settings
    with pytest.raises(UserError, match="num_epochs: 3 there, 2 here"):
        train(workdir, num_rounds=2)


def test_no_epoch_saves_the_untrained_encoder_to_evaluate(tmp_path, capsys):
    workdir = tmp_path / "w"
    assert train(workdir, num_epochs=0) == 0
    assert "the untrained encoder is saved" in capsys.readouterr().out
    record = evaluate(workdir, tasks=("knn", "retrieval"))
    assert record["step"] == 0 and record.keys() >= {"knn", "retrieval"}
    assert train(workdir, num_epochs=0) == 0
    assert "already trained: 0 of 0 steps" in capsys.readouterr().out
    assert len(read_sessions(workdir)) == 1


def test_a_damaged_record_is_refused_in_words(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        read_sessions(tmp_path)
