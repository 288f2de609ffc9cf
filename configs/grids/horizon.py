"""The components of EIR (Table 1) in runs of 100 epochs, beside a config's fewer.

The learning rate falls at the paper's shares of a run, 60 and 80 %.
"""

LONG = {"num_epochs": 100, "optimizer.milestones": (60, 80)}
GRID = {
    "IRaug_100_epochs": LONG | {"lambda_intra": 0.0, "lambda_inter": 0.0},
    "intra_100_epochs": LONG | {"lambda_inter": 0.0},
    "inter_100_epochs": LONG | {"lambda_intra": 0.0},
    "EIR_100_epochs": LONG,
}
