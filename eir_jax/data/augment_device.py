"""Training views made inside the step, from images in the accelerator's memory."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from eir_jax.data.augment import crop_planes, recolour
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.interpolation import mix
from eir_jax.data.order import VIEWS
from eir_jax.data.views import (
    NUM_UNIFORMS,
    VIEW_NUMBERS,
    Recipe,
    Slot,
    coefficients,
    drawn_views,
    make_recipe,
    mixes,
    recipe_of,
    view_parameters,
)
from eir_jax.system import sharding

Batch = dict[str, Array]


def put_images(
    images: UInt8[np.ndarray, "n side side 3"] | EncodedImages,
    config: ConfigDict,
    mesh: Mesh,
) -> UInt8[Array, "rows pixels"]:
    """Put all images onto the devices, as `data.placement` says.

    'replicated': each device holds all of them. 'sharded': each holds an equal part,
    black images at the end if need be. An image is one row: of four axes a TPU makes
    a layout of its own, out of which rows are gathered by copying all images.
    """
    images = np.asarray(images)
    like = abstract_images(len(images), images.shape[1], config, mesh)
    flat = images.reshape(len(images), -1)
    flat = np.pad(flat, ((0, like.shape[0] - len(flat)), (0, 0)))
    return jax.make_array_from_callback(
        flat.shape, like.sharding, lambda part: flat[part]
    )


def abstract_images(
    count: int, side: int, config: ConfigDict, mesh: Mesh
) -> jax.ShapeDtypeStruct:
    """Return the shape, type and sharding of what `put_images` gives.

    Args:
      count: of the images.
      side: height and width of each.
      config: all settings.
      mesh: as `make_mesh` returns it.
    """
    where = sharding.replicated(mesh)
    if config.data.placement != "replicated":
        where = sharding.split_rows(mesh)
        count += -count % mesh.size
    return jax.ShapeDtypeStruct((count, side * side * 3), np.uint8, sharding=where)


def make_batch_views(
    config: ConfigDict, slots: Sequence[Slot], mesh: Mesh
) -> Callable[[Batch], Batch]:
    """Return views_of(batch) -> batch, to be called inside the jitted step.

    From `images` [rows, pixels], the whole set as `put_images` gives it, and `index`,
    `epoch`, `partner`, `ratio`, `box` it makes the images of the slots, as the tf.data
    pipeline does on the host. A `label` is handed on.
    """
    split = sharding.split_rows(mesh)
    recipe = make_recipe(config)
    # A partner may lie on another device. Its view 2 is made once more then: what is
    # sent is one image, or where all are on every device nothing, no float32 view.
    remote = mixes(slots) and mesh.size > 1
    # Views of one recipe are made by the same kernels.
    by_recipe: dict[Recipe, list[str]] = {}
    for name in drawn_views(slots):
        by_recipe.setdefault(recipe_of(name, recipe), []).append(name)
    views_for = jax.vmap(apply_views, in_axes=(*[None] * 5, 0), out_axes=1)

    def views_of(batch: Batch) -> Batch:
        index, epoch = batch["index"], batch["epoch"]
        wanted = index[:, None]
        if remote:
            wanted = jnp.stack([index, index[batch["partner"]]], axis=1)
        rows = jax.lax.with_sharding_constraint(batch["images"][wanted], split)
        side = math.isqrt(rows.shape[-1] // 3)
        chosen = rows[:, 0].reshape(-1, side, side, 3)
        made: Batch = {"index": index}
        if "label" in batch:
            made["label"] = batch["label"]
        for how, names in by_recipe.items():
            numbers = jnp.array([VIEW_NUMBERS[name] for name in names])
            views = views_for(chosen, how, config.seed, epoch, index, numbers)
            made |= {name: views[:, i] for i, name in enumerate(names)}
        if mixes(slots):
            partner, ratio, box = (batch[x] for x in ("partner", "ratio", "box"))
            if remote:
                theirs = rows[:, 1].reshape(-1, side, side, 3)
                how = recipe_of("view2", recipe)
                view = VIEW_NUMBERS["view2"]
                other = apply_views(theirs, how, config.seed, epoch, wanted[:, 1], view)
            else:
                other = made["view2"][partner]
            kind = config.interpolation.kind
            made["mixed"] = mix(kind, made["view1"], other, ratio, box, jnp)
            made |= {"partner": partner, "ratio": ratio}
        return jax.lax.with_sharding_constraint(made, split)

    return views_of


def apply_views(
    images: UInt8[Array, "n height width 3"],
    recipe: Recipe,
    seed: int,
    epoch: Int[Array, " n"],
    index: Int[Array, " n"],
    view: int | Int[Array, ""],
) -> Float[Array, "n size size 3"]:
    """Make one view of each image, a function of (seed, epoch, index, view) alone."""
    height, width = images.shape[1:3]
    uniforms = draw_uniforms(seed, epoch, index, view, NUM_UNIFORMS)
    parameters = view_parameters(uniforms, recipe, height, width, jnp)
    numbers = coefficients(parameters, jnp)
    with jax.default_matmul_precision("highest"):
        planes = jnp.transpose(images.astype(jnp.float32), (0, 3, 1, 2))
        cropped = crop_planes(planes, numbers, recipe.image_size, jnp)
        return recolour(cropped, numbers, recipe, jnp)


def draw_uniforms(
    seed: int,
    epoch: Int[Array, " n"],
    index: Int[Array, " n"],
    view: int | Int[Array, ""],
    count: int,
) -> Float[Array, "n count"]:
    """Draw the numbers of `order.draw_uniforms`, to the bit."""
    key = jax.random.fold_in(jax.random.key(seed), VIEWS)

    def draw(epoch, index):
        own = jax.random.fold_in(jax.random.fold_in(key, epoch), index)
        return jax.random.uniform(jax.random.fold_in(own, view), (count,))

    return jax.vmap(draw)(epoch, index)
