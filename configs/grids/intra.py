"""What the paper leaves unsaid of the intra term, one change at a time.

Eq. 4-5 print bare cosines: a temperature of 1. What pulls is lambda_intra over its
square. Where a change is of more than the term, the baseline stands beside it with that
change.
"""

from eir_jax.configs.grids import table1

IRAUG = table1.GRID["IRaug"]
INTRA = table1.GRID["intra"]
TEMPERATURES = {
    f"temperature_{value}": INTRA | {"intra.temperature": value}
    for value in (0.5, 0.3, 0.1)
}
# The authors' release of 2022: the other rows alone, a sharper target without gradient.
AUTHORS_2022 = {
    "lambda_intra": 1.0,
    "intra.temperature": 0.1,
    "intra.target_temperature": 0.04,
    "intra.own_row": False,
    "intra.stop_gradient": True,
}
# No view shares statistics with another, as on the paper's two GPUs.
APART = {"batch_norm.sharing": "none"}
GRID: dict[str, dict] = {
    "IRaug": IRAUG,
    "intra": INTRA,
    "EIR": table1.GRID["EIR"],
    **TEMPERATURES,
    "other_rows": INTRA | {"intra.own_row": False},
    "authors_2022": INTRA | AUTHORS_2022,
    "stop_gradient": INTRA | {"intra.stop_gradient": True},
    "symmetric": INTRA | {"intra.symmetric": True},
    "IRaug_apart": IRAUG | APART,
    "intra_apart": INTRA | APART,
    "EIR_apart": table1.GRID["EIR"] | APART,
}
FIGURES = {
    "intra_temperature.png": {
        "x": "intra.temperature",
        "rows": ["intra", *TEMPERATURES],
        "baseline": "IRaug",
    }
}
