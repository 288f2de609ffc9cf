"""EIR on a small folder of pictures, at 64 px, for a machine without a GPU.

    python -m eir_jax.main --config=configs/small_folder.py \
        --config.data.path=PICTURES --workdir=runs/pictures

A narrow encoder (one block a stage), the pictures in memory, views made in the step:
for hundreds to thousands of pictures and minutes on two cores. PICTURES is laid out as
image_folder.py says (docs/data.md). Not in the paper.
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "folder"
    c.data.name = "pictures"
    c.data.image_size = 64
    c.data.fit = "crop"
    c.data.keep = "pixels"
    c.data.pipeline = "device"
    c.data.mean = (0.485, 0.456, 0.406)  # ImageNet's
    c.data.std = (0.229, 0.224, 0.225)
    c.model.name = "resnet10"
    c.model.width = 16
    c.model.stem = "small"
    c.num_epochs = 60
    c.batch_size = 64
    c.optimizer.milestones = (36, 48)  # the paper's shares, 60 and 80 %
    return c
