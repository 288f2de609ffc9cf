"""The colour space of CMC's two towers (Tian et al., 2020)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

# sRGB's primaries in XYZ, each row over that of its white, D65.
WHITE = np.array([0.95047, 1.0, 1.08883])
TO_XYZ = (
    np.array(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    / WHITE[:, None]
)
# As CMC's release normalises L in [0, 100], a and b.
LAB_MEAN = (50.0, 6.025, -6.6895)
LAB_STD = (50.0, 92.208, 101.1675)


def rgb_to_lab(rgb: Float[jnp.ndarray, "*image 3"]) -> Float[jnp.ndarray, "*image 3"]:
    """Return CIE L*a*b* (white D65) of sRGB in [0, 1], clipped to that."""
    rgb = jnp.clip(rgb, 0, 1)
    linear = jnp.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = jnp.matmul(linear, jnp.asarray(TO_XYZ.T, rgb.dtype), precision="highest")
    f = jnp.where(xyz > 0.008856, jnp.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
