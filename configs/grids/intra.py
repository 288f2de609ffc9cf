"""What may decide whether the intra term helps in a short run, one change at a time.

Where a change is of more than the term, the baseline stands beside it with that change.
"""

from eir_jax.configs.grids import table1

IRAUG = table1.GRID["IRaug"]
INTRA = table1.GRID["intra"]
GRID: dict[str, dict] = {
    "IRaug": IRAUG,
    "intra": INTRA,
    "lambda1_3": INTRA | {"lambda_intra": 3.0},
    "ramp": INTRA | {"intra.ramp_steps": 1000},
    "temperature_0.2": INTRA | {"intra.temperature": 0.2},
    "stop_gradient": INTRA | {"intra.stop_gradient": True},
    "symmetric": INTRA | {"intra.symmetric": True},
}
CHANGES: dict[str, dict] = {
    "groups_4": {"batch_norm.groups": 4},
    "bank_momentum_0": {"bank_momentum": 0.0},
    "width_32": {"model.width": 32},
}
for name, change in CHANGES.items():
    GRID[f"IRaug_{name}"] = IRAUG | change
    GRID[f"intra_{name}"] = INTRA | change
