"""Alpha of Beta(alpha, alpha) for mixup and cutmix (Fig. 3); dashed: the baseline.

The figure does not say whether the intra term takes part. Section 3.3, where it stands,
is of the inter term alone, and so is this.
"""

GRID: dict[str, dict] = {"IRaug": {"lambda_intra": 0.0, "lambda_inter": 0.0}}
for kind in ("mixup", "cutmix"):
    for alpha in (0.2, 0.5, 1.0, 2.0, 4.0):
        GRID[f"{kind}_{alpha:g}"] = {
            "lambda_intra": 0.0,
            "interpolation.kind": kind,
            "interpolation.alpha": alpha,
        }
FIGURES = {
    "fig3.png": {
        "x": "interpolation.alpha",
        "lines": "interpolation.kind",
        "rows": [name for name in GRID if name != "IRaug"],
        "baseline": "IRaug",
    }
}
