"""Every system at one setting: the config's views, encoder, rate and batch.

Each has its own temperature, weights and head. An instance is encoded once by
Supervised, IR, AND, clusters and CMC (by two towers of half the width), once and a
third (without gradient, each epoch) by DeepCluster, twice by IRaug, ISIF, SimCLR and
MoCo (once by the key encoder) and by clusters with ISIF's loss, three times by EIR and
four times by its form of 2022. AND has two rounds: twice the epochs of the others.
DeepCluster has the 1,000 clusters of the paper's tables, too many for the 78 steps of a
pilot's epoch.
"""

ALONE: dict = {"lambda_intra": 0.0, "lambda_inter": 0.0}
MOCO = {"batch_norm.groups": 2}  # the paper's two GPUs: what its shuffling is for
GRID: dict[str, dict] = {
    "Random": {"num_epochs": 0},
    "Supervised": {"objective": "supervised", "model.num_classes": 10},  # CIFAR-10's
    "IR": ALONE | {"objective": "ir"},
    "IR_nce": {"objective": "ir_nce", "temperature": 0.07},
    "IRaug": ALONE,
    "EIR": {},
    "ISIF": {"objective": "isif"},
    "ISIF_augmented": {"objective": "isif_augmented"},
    "SimCLR": {"objective": "simclr", "model.head": "mlp_bn", "temperature": 0.5},
    "MoCo": {"objective": "moco", **MOCO},
    "EIR_2022": {
        "objective": "eir_moco",
        "model.head": "mlp",
        "temperature": 0.2,
        "queue.key_momentum": 0.999,
        **MOCO,
    },
    "AND_2_rounds": {
        "objective": "and",
        "num_rounds": 2,
        "views.flip": 0.0,
        "optimizer.nesterov": True,
    },
    "clusters": {"objective": "clusters"},
    "clusters_with_ISIF": {"objective": "clusters", "clusters.isif_epochs": 27},
    "DeepCluster": {"objective": "deepcluster", "model.num_classes": 1000},
    "CMC": {
        "objective": "cmc",
        "model.towers": "lab",
        "model.embedding_dim": 256,
        "temperature": 0.07,
        "views.jitter": 0.0,
        "views.grey": 0.0,
    },
}
