"""EIR on CUB-200-2011, 224x224: unseen classes are retrieved (Table 5, "Ours").

    python -m eir_jax.main --config=configs/cub200.py --workdir=runs/cub200

Classes 1-100 train and 101-200 test, of both official splits, squashed to 256x256.
TFDS needs OpenCV once, to prepare them: `pip install opencv-python-headless`. The
unpacked archive does as well: add `--config.data.source=folder
--config.data.path=CUB_200_2011/images`. No kNN: the test classes are unseen; R@1 is
followed while training. Paper: R@1 14.6 %, R@2 22.1 %, R@4 32.6 %, R@8 44.1 %.
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.name = "caltech_birds2011"
    c.data.train_split = c.data.test_split = "train+test"
    c.data.train_classes = (0, 100)
    c.data.test_classes = (100, 200)
    c.data.expected = (5_864, 5_924)
    c.data.image_size = 224
    c.data.resize = c.data.get_oneway_ref("image_size") * 8 // 7  # 256
    c.data.fit = "squash"
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    c.model.stem = "imagenet"
    c.evaluation_batch_size = 256
    c.log_every_steps = 45  # an epoch
    c.paper.table = "Table 5, Ours"
    c.paper.retrieval = {"R@1": 0.146, "R@2": 0.221, "R@4": 0.326, "R@8": 0.441}
    return c
