"""Choices within the inter term, one at a time, beside the config's own.

The bank's rows as negatives of a target without gradient are the form of the authors'
later release (2022).
"""

GRID = {
    "EIR": {},
    "inter_stop_gradient": {"inter.stop_gradient": True},
    "inter_bank": {"inter.negatives": "bank"},
    "inter_bank_stop_gradient": {
        "inter.negatives": "bank",
        "inter.stop_gradient": True,
    },
    "mixup": {"interpolation.kind": "mixup"},
    "per_sample": {"interpolation.per_sample": True},
}
