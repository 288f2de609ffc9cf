"""The numbers of IR, IRaug and EIR from before an objective was a value of its own.

golden.json was written at commit aaa7388, whose step knew each equation:
`python tests/training/test_golden.py` writes it anew.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SmallRun, small_config

FILE = Path(__file__).with_name("golden.json")
ALONE = {"lambda_intra": 0.0, "lambda_inter": 0.0}
VARIANTS = {
    "ir": {**ALONE, "objective": "ir"},
    "iraug": ALONE,
    "intra": {"lambda_inter": 0.0, "intra.temperature": 1.0},
    "eir": {"intra.temperature": 0.1, "batch_norm.sharing": "none"},
    "eir_streamed": {
        "intra.temperature": 1.0,
        "intra.symmetric": True,
        "bank.form": "streamed",
        "inter.negatives": "bank",
    },
}
STEPS = 3


def take_steps(changes, dtype, devices=1):
    """Return each step's metrics, and sums of what the last one left."""
    config = small_config(**{"model.name": "resnet10"}, **changes)
    run = SmallRun(config, devices)
    state = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, run.create()
    )
    step = run.compiled(state)
    idle = set()
    if not run.config.lambda_inter:
        idle |= {"mixed", "partner", "ratio"}
        if run.config.objective == "ir":
            idle.add("view2")
    history = []
    for number in range(STEPS):
        batch = run.put(number)
        state, metrics = step(state, {k: v for k, v in batch.items() if k not in idle})
        history.append({k: float(v) for k, v in jax.device_get(metrics).items()})
    memory = getattr(state, "memory", None)
    bank = state.memory_bank if memory is None else memory["bank"]
    left = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "bank": bank,
    }
    sums = {}
    for name, tree in left.items():
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
        sums[name] = [
            float(sum(x.sum() for x in leaves)),
            float(sum(np.square(x).sum() for x in leaves)),
        ]
    return {"metrics": history, "left": sums}


def measure(name, kind):
    if kind == "float64":
        with jax.enable_x64(True):
            return take_steps(VARIANTS[name], jnp.float64)
    return take_steps(VARIANTS[name], jnp.float32)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_are_those_of_before(name, kind):
    """To the bit where they were written; elsewhere the processor rounds its way."""
    before, now = json.loads(FILE.read_text())[kind][name], measure(name, kind)
    tolerance = 2e-4 if kind == "float32" else 1e-9
    for old, new in zip(before["metrics"], now["metrics"], strict=True):
        assert old.keys() == new.keys()
        for key, value in old.items():
            assert new[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key
    for key, value in before["left"].items():
        assert now["left"][key] == pytest.approx(value, rel=tolerance, abs=tolerance)


if __name__ == "__main__":
    found = {
        kind: {name: measure(name, kind) for name in VARIANTS}
        for kind in ("float32", "float64")
    }
    FILE.write_text(json.dumps(found, indent=1) + "\n")
