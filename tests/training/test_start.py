"""A run on a folder that has grown since another one was trained on it."""

import jax
import numpy as np
import pytest
from PIL import Image
from small import small_config

from eir_jax.evaluation.restore import restore_run
from eir_jax.system.errors import UserError
from eir_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.slow


def pictures(folder, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


def config_of(folder, **changes):
    data = {"source": "folder", "name": "mine", "path": str(folder)}
    fixed = {f"data.{key}": value for key, value in data.items()}
    fixed |= {"data.pipeline": "device", "batch_size": 8, "eval_every_epochs": 0}
    return small_config(**fixed | changes)


@pytest.fixture(scope="module")
def first(one_device, tmp_path_factory):
    """Return the workdir of one epoch on the pictures 10 to 29 of a folder."""
    folder = tmp_path_factory.mktemp("grown") / "pictures"
    pictures(folder, range(10, 30))
    (folder / "15.png").write_bytes(b"broken")
    workdir = folder.parent / "first"
    assert train_and_evaluate(config_of(folder, num_epochs=1), workdir) == 0
    return workdir


@pytest.mark.parametrize("objective", ["iraug", "moco"])
def test_encoder_and_known_rows_are_kept(first, objective, capsys):
    folder = first.parent / "pictures"
    pictures(folder, [1, 2, 40])  # before and behind the others
    (folder / "20.png").unlink(missing_ok=True)
    pictures(folder, [21])
    (folder / "12.png").write_bytes((folder / "11.png").read_bytes())  # another one
    changes = {"objective": objective, "num_epochs": 0, "grow_from": str(first)}
    if objective == "moco":
        changes |= {"queue.size": 8, "lambda_intra": 0.0, "lambda_inter": 0.0}
    workdir = first.parent / objective
    assert train_and_evaluate(config_of(folder, **changes), workdir) == 0
    before, after = restore_run(first).state, restore_run(workdir).state
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)
    said = capsys.readouterr().out
    if objective == "moco":
        jax.tree.map(np.testing.assert_array_equal, after.params, after.memory["key"])
        assert "the memory begins anew" in said
        return
    old = [n for n in range(10, 30) if n != 15]
    new = [1, 2, *(n for n in old if n != 20), 40]
    rows, were = np.array(after.memory["bank"]), np.array(before.memory["bank"])
    kept = 0
    for row, number in enumerate(new):
        same = number in old and (rows[row] == were[old.index(number)]).all()
        kept += same
        # Of the changed picture the size of the file decides, as of the record.
        assert same == (number in old) or number == 12
    np.testing.assert_allclose(np.linalg.norm(rows[: len(new)], axis=1), 1, rtol=1e-6)
    assert f"{kept} of {len(new)} pictures keep their row" in said


def test_what_a_run_cannot_grow_from(first, tmp_path):
    pictures(tmp_path / "some", range(8))

    def said(**changes):
        config = config_of(tmp_path / "some", num_epochs=1, **changes)
        with pytest.raises(UserError) as error:
            train_and_evaluate(config, tmp_path / "run")
        return str(error.value)

    assert "none" in said(grow_from=str(tmp_path / "none"))
    words = said(**{"grow_from": str(first), "model.width": 2})
    assert "another model; give --config.model.width=4" in words
    both = {"grow_from": str(first), "model.weights": "F.safetensors"}
    assert "use grow_from=" in said(**both)
    (first / "pictures.jsonl").rename(first / "kept")
    assert "only a run on a folder" in said(grow_from=str(first))
    (first / "kept").rename(first / "pictures.jsonl")
