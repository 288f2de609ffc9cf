"""EIR on Cars-196, 224x224: unseen classes are retrieved (Table 5, "Ours").

    python -m eir_jax.main --config=configs/cars196.py --workdir=runs/cars196

Classes 1-98 train and 99-196 test, of both official splits, squashed to 256x256. The
download links are dead: without the archives the command says which go where. A folder
with a directory for each class, named after it, does as well, or with train/ and test/
of such: add `--config.data.source=folder --config.data.path=DIR`. Paper: R@1 28.5 %,
R@2 38.1 %, R@4 49.5 %, R@8 62.1 %.
"""

from eir_jax.configs import cub200


def get_config():
    c = cub200.get_config()
    c.data.name = "cars196"
    c.data.train_classes = (0, 98)
    c.data.test_classes = (98, 196)
    c.data.expected = (8_054, 8_131)
    c.log_every_steps = 62  # an epoch
    c.paper.retrieval = {"R@1": 0.285, "R@2": 0.381, "R@4": 0.495, "R@8": 0.621}
    return c
