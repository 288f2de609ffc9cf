"""EIR on all 105,000 training images of STL-10, 96x96 (Table 3, "Ours", 105K).

    python -m eir_jax.main --config=configs/stl10_105k.py --workdir=runs/stl10_105k

The 100,000 unlabelled images (label -1) are trained on and take no part in any number:
kNN and linear probe see the 5,000 labelled ones. 2.9 GB of memory for the images.
Paper: linear 79.3 %, kNN 84.7 % (k = 200).
"""

from eir_jax.configs import stl10_5k


def get_config():
    c = stl10_5k.get_config()
    c.data.train_split = "train+unlabelled"
    c.data.expected = (105_000, 8_000)
    c.log_every_steps = 50
    c.paper.table = "Table 3, Ours (105K)"
    c.paper.knn = {"200": 0.847}
    c.paper.linear = {"top-1": 0.793}
    return c
