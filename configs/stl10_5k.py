"""EIR on the 5,000 labelled training images of STL-10, 96x96 (Table 3, "Ours", 5K).

    python -m eir_jax.main --config=configs/stl10_5k.py --workdir=runs/stl10_5k

TFDS fetches one archive of 2.6 GB. Paper: linear 76.4 %, kNN 78.2 % (k = 200) on the
8,000 test images.

Others' protocol of 64 pixels, cut from the 96 (at random to train, the centre to
judge), is `--config.data.image_size=64 --config.data.resize=96`, in stl10_105k too.
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.name = "stl10"
    c.data.image_size = 96
    c.data.expected = (5_000, 8_000)
    c.evaluation_batch_size = 250
    c.log_every_steps = 39  # an epoch
    c.paper.table = "Table 3, Ours (5K)"
    c.paper.knn = {"200": 0.782}
    c.paper.linear = {"top-1": 0.764}
    return c
