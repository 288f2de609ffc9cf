"""NT-Xent and MoCo's loss and queue against those of lightly, where it is installed.

`make oracle` installs it. Of the package only the loss and its memory bank are loaded:
all of `lightly.loss` would need torchvision.
"""

import importlib
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import small_config

from eir_jax.models.encoder import EncoderOutput
from eir_jax.objectives import losses
from eir_jax.objectives.systems import make_objective

torch = pytest.importorskip("torch", reason="lightly needs PyTorch (`make oracle`)")
if find_spec("lightly") is None:
    pytest.skip("lightly is not installed (`make oracle`)", allow_module_level=True)

BATCH, DIM, SIZE = 4, 6, 12


@pytest.fixture(scope="module")
def nt_xent():
    """Return lightly's class, of its packages none of what they do when imported."""
    root = Path(find_spec("lightly").origin).parent
    with pytest.MonkeyPatch.context() as patch:
        for name in ("", ".loss", ".models", ".models.modules", ".utils"):
            package = types.ModuleType(f"lightly{name}")
            package.__path__ = [str(root.joinpath(*name.split(".")))]
            patch.setitem(sys.modules, package.__name__, package)
        # What the memory bank takes of it is for several processes.
        sys.modules["lightly.models"].utils = types.ModuleType("lightly.models.utils")
        yield importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss


def unit(seed, rows=BATCH):
    return reference.unit(np.random.default_rng(seed).normal(size=(rows, DIM)))


def theirs(loss, *arguments):
    """Return its value and the gradients."""
    given = [torch.tensor(x, dtype=torch.float64) for x in arguments]
    for x in given:
        x.requires_grad_()
    value = loss(*given)
    return value.item(), [g.numpy() for g in torch.autograd.grad(value, given)]


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_nt_xent_is_lightlys(nt_xent, tau):
    """Value and gradient, at vectors that both scale to unit length."""
    views = [3 * unit(0), 0.5 * unit(1)]
    wanted, by_wanted = theirs(nt_xent(temperature=tau), *views)
    with jax.enable_x64(True):

        def ours(*views):
            scaled = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in views]
            return losses.nt_xent_loss(*scaled, tau)

        value, by_found = jax.value_and_grad(ours, (0, 1))(*map(jnp.asarray, views))
    assert value == pytest.approx(wanted, rel=1e-12)
    for found, want in zip(by_found, by_wanted, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("form", ["dense", "streamed"])
def test_queue_loss_is_lightlys_with_its_memory_bank(nt_xent, form):
    """Four steps, once around: loss, gradient by the query, and the keys kept."""
    loss = nt_xent(temperature=0.2, memory_bank_size=(SIZE, DIM)).double()
    config = small_config(
        **{"objective": "moco", "temperature": 0.2, "queue.size": SIZE},
        **{"bank.form": form, "model.embedding_dim": DIM},
    )
    objective = make_objective(config, 100)
    with jax.enable_x64(True):
        memory = {
            "key": {"w": jnp.ones(2)},
            "queue": jnp.asarray(loss.memory_bank.bank.numpy().astype(np.float64)),
            "pointer": jnp.int32(0),
        }
        for step in range(4):
            q, k = unit(step), unit(100 + step)
            wanted, (by_q, _) = theirs(loss, q, k)
            batch = {"index": jnp.arange(BATCH)}

            def outputs(q, k=k):
                views = {"view1": q, "view2": jnp.asarray(k)}
                return {name: EncoderOutput(x, x) for name, x in views.items()}

            def ours(q, memory=memory, batch=batch, outputs=outputs):
                return objective.terms(outputs(q), memory, batch)["loss_instance"]

            value, gradient = jax.value_and_grad(ours)(jnp.asarray(q))
            assert value == pytest.approx(wanted, rel=1e-7)
            # Theirs passes the scaling to unit length, ours comes before it.
            tangent = gradient - jnp.sum(gradient * q, axis=1, keepdims=True) * q
            np.testing.assert_allclose(tangent, by_q, atol=1e-7)
            memory, _ = objective.update(
                memory, outputs(jnp.asarray(q)), batch, memory["key"], jnp.array(True)
            )
            bank = loss.memory_bank.bank.numpy()
            np.testing.assert_allclose(memory["queue"], bank, atol=1e-7)
            assert memory["pointer"] == int(loss.memory_bank.bank_ptr)
