"""The components of EIR (Table 1), and below them the untrained encoder and IR.

What is not set here is the config's own: lambda_intra = 15, lambda_inter = 2.
"""

GRID: dict[str, dict] = {
    "Random": {"num_epochs": 0},
    "IR": {"objective": "ir", "lambda_intra": 0.0, "lambda_inter": 0.0},
    "IRaug": {"lambda_intra": 0.0, "lambda_inter": 0.0},
    "intra": {"lambda_inter": 0.0},
    "inter": {"lambda_intra": 0.0},
    "EIR": {},
}
