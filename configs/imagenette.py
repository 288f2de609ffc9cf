"""EIR on Imagenette at 96 px: ten ImageNet classes, the settings of STL-10.

    python -m eir_jax.main --config=configs/imagenette.py \
        --config.data.path=imagenette2-160 --workdir=runs/imagenette

The path is the unpacked archive imagenette2-160 (or -320), with train/ and
val/: 9,469 and 3,925 pictures, of which the centre square is taken. Not in the paper.
"""

from eir_jax.configs import base


def get_config():
    c = base.get_config()
    c.data.source = "folder"
    c.data.name = "imagenette"
    c.data.image_size = 96
    c.data.keep = "pixels"
    c.data.expected = (9469, 3925)
    c.data.pipeline = "device"
    c.model.stem = "small"
    return c
