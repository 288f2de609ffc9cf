"""What is too large for the memory ends in one line that says what to lower."""

import jax
import jax.numpy as jnp
import pytest
from test_main import records
from test_rounds import train as train_small

from eir_jax import embed, evaluate
from eir_jax.evaluation.restore import restore_run
from eir_jax.system import cli
from eir_jax.system.errors import UserError, enough_memory, lacks_memory

pytestmark = pytest.mark.usefixtures("one_device")
TOO_MUCH = 2**50  # float32: more than any machine's addresses
NUMBER = "--config.evaluation_batch_size"


def test_xla_says_so_where_it_is_called_and_inside_a_program():
    for make in (
        lambda: jnp.zeros(TOO_MUCH),
        # No power of two: there XLA's compiler, as of JAX 0.12, ends the process.
        jax.jit(lambda: jax.random.uniform(jax.random.key(0), (40, 10**14))),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError) as caught:
            jax.block_until_ready(make())
        assert lacks_memory(caught.value)
        words = r"out of memory: use less \((RESOURCE_EXHAUSTED|INTERNAL): .*allocating"
        with pytest.raises(UserError, match=words), enough_memory("use less"):
            jax.block_until_ready(make())


def test_other_errors_pass():
    """Such as XLA's of another kind, and a message that gRPC finds too long."""
    for text in (
        "INTERNAL: out of memory bank",
        "RESOURCE_EXHAUSTED: Received message larger than max (9 vs. 4)",
    ):
        error = jax.errors.JaxRuntimeError(text)
        with (
            pytest.raises(type(error), match=text[:9]),
            enough_memory("use less"),
        ):
            raise error


def test_what_xla_says_elsewhere_is_understood():
    for text in (
        "INTERNAL: Error dispatching computation: Out of memory allocating 16 bytes.",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.",
        "RESOURCE_EXHAUSTED: Failed to allocate request for 64.00GiB on device ordinal",
        "RESOURCE_EXHAUSTED: TPU backend error: Ran out of memory in memory space hbm.",
    ):
        assert lacks_memory(jax.errors.JaxRuntimeError(text))


def test_training_says_what_to_lower(tmp_path, monkeypatch):
    """No room for the images; then, gone on with, for what is restored."""
    workdir = tmp_path / "w"
    assert train_small(workdir, num_epochs=1) == 0
    advice = (
        r"out of memory: lower batch_size=64, model.width=4, or set "
        r"bank.form=streamed, or data.placement=sharded .*; what was saved is kept "
        r"\(RESOURCE_EXHAUSTED: Out of memory"
    )
    for place in (
        "training.loop.put_images",
        "run.checkpoint.ocp.Checkpointer.restore",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"eir_jax.{place}", lambda *_, **__: jnp.zeros(TOO_MUCH))
            with pytest.raises(UserError, match=advice):
                train_small(workdir)
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["2"]
    assert not (workdir / "damaged").exists()


def test_evaluation_says_what_to_lower_and_what_is_saved_is_kept(tmp_path, monkeypatch):
    """While training, then of what was trained; with room it goes on."""
    workdir, out = tmp_path / "w", tmp_path / "E.npz"
    assert train_small(workdir, num_epochs=1) == 0
    advice = rf"out of memory: lower evaluation_batch_size=\d+ \({NUMBER}=N\)"
    with monkeypatch.context() as patch:
        patch.setattr(
            "eir_jax.evaluation.embed.make_embed_batch",
            lambda *_: lambda *_: jnp.zeros(TOO_MUCH),
        )
        with pytest.raises(UserError, match=advice):
            train_small(workdir, eval_every_epochs=2)
        assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["2"]
        with pytest.raises(UserError, match=advice):
            evaluate.main([f"--workdir={workdir}", "--tasks=health"])
        with pytest.raises(UserError, match=advice):
            embed.main([f"--workdir={workdir}", "--split=train", f"--out={out}"])
    for word, why in (("--config.seed=1", "settled"), (f"{NUMBER}=0", "at least 1")):
        with pytest.raises(UserError, match=why):
            restore_run(workdir, overrides=[word])
    assert train_small(workdir, eval_every_epochs=2) == 0
    assert len(records(workdir)) == 4


def test_whatever_else_a_command_does_ends_in_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda argv: print(jnp.zeros(TOO_MUCH)))
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: out of memory: ") and line.count("\n") == 1
