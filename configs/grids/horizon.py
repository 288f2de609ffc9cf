"""The components of EIR (Table 1) in runs of 100 and 200 epochs.

The learning rate falls at the paper's shares of a run, 60 and 80 %.
"""

COMPONENTS = {
    "IRaug": {"lambda_intra": 0.0, "lambda_inter": 0.0},
    "intra": {"lambda_inter": 0.0},
    "inter": {"lambda_intra": 0.0},
    "EIR": {},
}
GRID = {
    f"{name}_{epochs}_epochs": {
        "num_epochs": epochs,
        "optimizer.milestones": (epochs * 3 // 5, epochs * 4 // 5),
        **settings,
    }
    for epochs in (100, 200)
    for name, settings in COMPONENTS.items()
}
