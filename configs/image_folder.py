"""EIR on a folder of one's own pictures, at 224 px as ImageNet-100 has it.

    python -m eir_jax.main --config=configs/image_folder.py \
        --config.data.path=PICTURES --workdir=runs/pictures

PICTURES holds train/CLASS/* and test/CLASS/*, CLASS/*, or pictures without classes, of
any format that Pillow opens and any size (docs/data.md). With classes kNN is measured
while training, within train where there is no test split (--config.data.held_out=0.1
makes one); without, use eir_jax.embed and eir_jax.search. Not in the paper.
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "folder"
    c.data.name = "pictures"
    c.data.image_size = 224
    c.data.resize = c.data.get_oneway_ref("image_size") * 8 // 7  # 256
    c.data.fit = "crop"
    c.data.keep = "encoded"
    c.data.mean = (0.485, 0.456, 0.406)  # ImageNet's
    c.data.std = (0.229, 0.224, 0.225)
    c.model.stem = "imagenet"
    c.evaluation_batch_size = 250
    return c
