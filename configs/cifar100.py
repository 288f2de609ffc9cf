"""EIR on CIFAR-100 (Table 5, "Ours", and section 4.2).

    python -m eir_jax.main --config=configs/cifar100.py --workdir=runs/cifar100

From a local file instead of TFDS: add `--config.data.source=arrays
--config.data.path=cifar100.npz`. Paper: kNN 61.4 % (k = 200, one round), R@1 45.6 %.
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()  # the paper's setting is that of CIFAR-10
    c.data.name = "cifar100"
    c.data.expected = (50_000, 10_000)
    c.data.pipeline = "device"
    c.paper.table = "Section 4.2 (1 round), and Table 5, Ours"
    c.paper.knn = {"200": 0.614}
    c.paper.retrieval = {"R@1": 0.456, "R@2": 0.565, "R@4": 0.669, "R@8": 0.765}
    return c
