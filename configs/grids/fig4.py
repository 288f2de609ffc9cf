"""lambda_1 with and without the inter term, and lambda_2 with lambda_1 = 15 (Fig. 4).

The values are ours, wide enough to show where the best lies: the text names only the
best, 15 and 2. The paper draws lambda_1 without the inter term alone. The runs of
lambda_1 = 15 belong to both figures.
"""

WITHOUT = {
    f"lambda1_{value}": {"lambda_intra": float(value), "lambda_inter": 0.0}
    for value in (0, 1, 5, 15, 40, 150)
}
WITH = {
    f"lambda1_{value}_inter": {"lambda_intra": float(value), "lambda_inter": 2.0}
    for value in (0, 1, 5, 40, 150)
}
LAMBDA_2 = {
    f"lambda2_{value:g}": {"lambda_intra": 15.0, "lambda_inter": value}
    for value in (0.5, 1.0, 2.0, 4.0, 8.0)
}
GRID = WITHOUT | WITH | LAMBDA_2
FIGURES = {
    "fig4_lambda1.png": {
        "x": "lambda_intra",
        "lines": "lambda_inter",
        "rows": [*WITHOUT, *WITH, "lambda2_2"],
        "baseline": "lambda1_0",
    },
    "fig4_lambda2.png": {
        "x": "lambda_inter",
        "rows": ["lambda1_15", *LAMBDA_2],
        "baseline": "lambda1_0",
    },
}
