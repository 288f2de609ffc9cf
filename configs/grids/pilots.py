"""What the paper leaves unsaid, where it has a number to decide it (Tables 1 and 2).

kNN (k = 200) on CIFAR-10: Random 33.4, IR 80.8, IRaug 83.4, intra 86.3, inter 85.5,
EIR 87.6 %.
"""

INSTANCE_ALONE = {"lambda_intra": 0.0, "lambda_inter": 0.0}
HE = {"model.init": "he"}
GRID: dict[str, dict] = {
    "Random": {"num_epochs": 0},
    "Random_he": {"num_epochs": 0} | HE,
    "IR": INSTANCE_ALONE | {"instance.form": "ir", "views.flip": 0.5},
    "IR_without_flip": INSTANCE_ALONE | {"instance.form": "ir", "views.flip": 0.0},
    "IRaug": INSTANCE_ALONE | {"instance.form": "iraug"},
    "IRaug_he": INSTANCE_ALONE | HE,
    "IRaug_sum": INSTANCE_ALONE | {"instance.form": "iraug_sum"},
    "intra": {"lambda_inter": 0.0, "intra.stop_gradient": False},
    "intra_stop_gradient": {"lambda_inter": 0.0, "intra.stop_gradient": True},
    "inter_batch": {"lambda_intra": 0.0, "inter.negatives": "batch"},
    "inter_bank": {"lambda_intra": 0.0, "inter.negatives": "bank"},
    "EIR": {},
    "EIR_he": HE,
}
