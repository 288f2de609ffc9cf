"""The components of EIR (Table 1) in runs of 100 and 200 epochs.

And EIR with the lambda_1 that is best in short runs. The learning rate falls at the
paper's shares of a run, 60 and 80 %.
"""

from eir_jax.configs.grids import table1


def lasting(epochs: int) -> dict:
    """Return the settings of a run of so many epochs."""
    return {
        "num_epochs": epochs,
        "optimizer.milestones": (epochs * 3 // 5, epochs * 4 // 5),
    }


ROWS = {name: row for name, row in table1.GRID.items() if name != "Random"}
ROWS["EIR_lambda1_150"] = {"lambda_intra": 150.0}
GRID = {
    f"{name}_{epochs}_epochs": lasting(epochs) | row
    for epochs in (100, 200)
    for name, row in ROWS.items()
}
