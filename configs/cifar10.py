"""EIR on CIFAR-10, the paper's setting in full (Table 2, "Ours", one round).

    python -m eir_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

From a local file instead of TFDS: add `--config.data.source=arrays
--config.data.path=cifar10.npz`. Paper: kNN 86.6 / 87.5 / 87.6 % (k = 5 / 20 / 200),
R@1 79.9 % (Table 5).
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()  # the base *is* the paper's CIFAR-10 setting
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.image_size = 32
    c.data.expected = (50_000, 10_000)
    c.data.pipeline = "device"
    c.num_epochs = 200
    c.batch_size = 128
    c.optimizer.learning_rate = 0.03
    c.optimizer.milestones = (120, 160)
    c.optimizer.factors = (0.1, 0.01)
    c.paper.table = "Table 2, Ours (1 round), and Table 5, Ours"
    c.paper.knn = {"5": 0.866, "20": 0.875, "200": 0.876}
    c.paper.retrieval = {"R@1": 0.799, "R@2": 0.885, "R@4": 0.936, "R@8": 0.971}
    return c
