"""What the paper leaves unsaid, where it has a number to decide it (Tables 1 and 2).

kNN (k = 200) on CIFAR-10: Random 33.4, IR 80.8, IRaug 83.4, intra 86.3, inter 85.5,
EIR 87.6 %.
"""

from eir_jax.configs.grids import table1

IRAUG, INTRA, INTER = (table1.GRID[name] for name in ("IRaug", "intra", "inter"))
HE = {"model.init": "he"}
GRID: dict[str, dict] = {
    "Random": table1.GRID["Random"],
    "Random_he": table1.GRID["Random"] | HE,
    "IR": IRAUG | {"objective": "ir", "views.flip": 0.5},
    "IR_without_flip": IRAUG | {"objective": "ir", "views.flip": 0.0},
    "IRaug": IRAUG | {"objective": "iraug"},
    "IRaug_he": IRAUG | HE,
    "IRaug_sum": IRAUG | {"objective": "iraug_sum"},
    "intra": INTRA | {"intra.stop_gradient": False},
    "intra_stop_gradient": INTRA | {"intra.stop_gradient": True},
    "inter_batch": INTER | {"inter.negatives": "batch"},
    "inter_bank": INTER | {"inter.negatives": "bank"},
    "EIR": {},
    "EIR_he": HE,
}
