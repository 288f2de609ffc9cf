"""Choices within the inter term, one at a time, beside the config's own."""

GRID = {
    "EIR": {},
    "inter_stop_gradient": {"inter.stop_gradient": True},
    "inter_bank": {"inter.negatives": "bank"},
    "mixup": {"interpolation.kind": "mixup"},
    "per_sample": {"interpolation.per_sample": True},
}
