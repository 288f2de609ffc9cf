"""EIR on ImageNet-100, 224x224 (Table 4, "Ours").

    python -m eir_jax.main --config=configs/imagenet100.py --workdir=runs/imagenet100

TFDS's imagenet2012, of which the 100 classes of eir_jax/data/imagenet100_classes.txt
are kept: its two tars must be placed by hand. About 14 GB of memory for the files as
they are. Extracted files stay on the disk: add `--config.data.source=folder
--config.data.path=DIR`, DIR with train/<wnid>/ and val/<wnid>/. Paper: linear 66.4 %,
kNN 66.5 % (k = 200).
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.name = "imagenet2012"
    c.data.test_split = "validation"
    c.data.class_list = "imagenet100"
    c.data.expected = (126_689, 5_000)
    c.data.image_size = 224
    c.data.resize = c.data.get_oneway_ref("image_size") * 8 // 7  # 256
    c.data.keep = "encoded"
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    c.model.stem = "imagenet"
    c.evaluation_batch_size = 256
    c.paper.table = "Table 4, Ours"
    c.paper.knn = {"200": 0.665}
    c.paper.linear = {"top-1": 0.664}
    return c
