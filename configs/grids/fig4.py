"""lambda_1 without the inter term, and lambda_2 with lambda_1 = 15 (Fig. 4).

The values are ours: the text names only the best, 15 and 2. The run of lambda_1 = 15
and lambda_2 = 0 belongs to both.
"""

LAMBDA_1 = {
    f"lambda1_{value}": {"lambda_intra": float(value), "lambda_inter": 0.0}
    for value in (0, 1, 5, 10, 15, 20, 30)
}
LAMBDA_2 = {
    f"lambda2_{value:g}": {"lambda_intra": 15.0, "lambda_inter": value}
    for value in (0.5, 1.0, 2.0, 4.0, 8.0)
}
GRID = LAMBDA_1 | LAMBDA_2
FIGURES = {
    "fig4_lambda1.png": {
        "x": "lambda_intra",
        "rows": list(LAMBDA_1),
        "baseline": "lambda1_0",
    },
    "fig4_lambda2.png": {
        "x": "lambda_inter",
        "rows": ["lambda1_15", *LAMBDA_2],
        "baseline": "lambda1_0",
    },
}
