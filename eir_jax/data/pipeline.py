"""The tf.data pipeline: from uint8 images to batches of views and mixed images."""

from collections.abc import Generator, Iterator

import numpy as np
from ml_collections import ConfigDict

from eir_jax.data.augment import (
    Recipe,
    apply_view,
    draw_view,
    make_recipe,
    view_seed,
)
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.order import draw_interpolation, epoch_order, steps_per_epoch
from eir_jax.errors import UserError
from eir_jax.interpolation import cutmix, mixup


def make_train_batches(
    images: np.ndarray | EncodedImages,
    config: ConfigDict,
    start_step: int,
    num_steps: int,
) -> Generator[dict[str, np.ndarray]]:
    """Yield the batches of the steps from `start_step` to before `num_steps`.

    Close it (`contextlib.closing`) unless it is read to its end: its threads call
    Python, and a program that ends while they run may hang.

    A batch is a pure function of (settings, images, step): `view1`, `view2`, `mixed`
    float32 [batch, size, size, 3], normalised; `partner`, `index` int32 [batch];
    `ratio` float32 [batch]. What no loss term looks at is left out.

    Args:
      images: uint8 [n, height, width, 3].
      config: all settings.
      start_step: of the first batch, from 0 on.
      num_steps: the step after the last batch.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = _import_tensorflow()
    make_view = _view_maker(tf, images, config.seed, make_recipe(config))
    batch_size, size = config.batch_size, config.data.image_size
    per_epoch = steps_per_epoch(len(images), batch_size)
    mixes = config.lambda_inter > 0
    views = 1 if config.instance.form == "ir" and not config.lambda_intra else 2
    views = 2 if mixes else views

    def instances(epoch: np.ndarray) -> np.ndarray:
        order = epoch_order(config.seed, int(epoch), len(images))
        return order[: per_epoch * batch_size].astype(np.int64)

    def epoch_instances(epoch):
        """Return (epoch, index) of each instance of an epoch from the first step on."""
        index = tf.numpy_function(instances, [epoch], tf.int64, stateful=False)
        first = tf.maximum(start_step - epoch * per_epoch, 0) * batch_size
        dataset = tf.data.Dataset.from_tensor_slices(index[first:])
        return dataset.map(lambda index: (epoch, index))

    def make_views(epoch, index):
        made = {f"view{n + 1}": make_view(epoch, index, n) for n in range(views)}
        return made | {"index": tf.cast(index, tf.int32)}

    def draw(step):
        drawn = draw_interpolation(
            config.seed, int(step), batch_size, size, **config.interpolation
        )
        return tuple(np.ascontiguousarray(x) for x in drawn)

    def mix(step, batch):
        types = [tf.int32, tf.float32, tf.int32]
        partner, ratio, box = tf.numpy_function(draw, [step], types, stateful=False)
        ratio, box = (
            tf.ensure_shape(ratio, [batch_size]),
            tf.ensure_shape(box, [batch_size, 4]),
        )
        other = tf.gather(batch["view2"], partner)
        if config.interpolation.kind == "cutmix":
            mixed = cutmix(batch["view1"], other, box, tf)
        else:
            mixed = mixup(batch["view1"], other, ratio)
        return batch | {"mixed": mixed, "partner": partner, "ratio": ratio}

    epochs = tf.data.Dataset.range(start_step // per_epoch, -(-num_steps // per_epoch))
    dataset = epochs.flat_map(epoch_instances)
    dataset = dataset.map(make_views, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if mixes:
        steps = tf.data.Dataset.range(start_step, num_steps)
        dataset = tf.data.Dataset.zip(steps, dataset)
        dataset = dataset.map(mix, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.take(num_steps - start_step).prefetch(tf.data.AUTOTUNE)
    yield from dataset.as_numpy_iterator()


def make_view_batches(
    images: np.ndarray | EncodedImages, config: ConfigDict, epoch: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Return one fresh view of each image, in order, in batches (the last one short).

    The views are view 1 of that epoch of training, float32 [<= batch_size, size, size,
    3], normalised.
    """
    tf = _import_tensorflow()
    recipe = make_recipe(config)
    make_view = _view_maker(tf, images, config.seed, recipe)
    indices = tf.data.Dataset.range(len(images))
    number = tf.constant(epoch, tf.int64)
    dataset = indices.map(
        lambda index: make_view(number, index, 0), num_parallel_calls=tf.data.AUTOTUNE
    )
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _import_tensorflow():
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"data.pipeline=tf.data needs TensorFlow ({error}); install "
            "requirements.txt"
        ) from None
    tf.config.set_visible_devices([], "GPU")  # they are JAX's
    return tf


def _view_maker(tf, images: np.ndarray | EncodedImages, seed: int, recipe: Recipe):
    """Return make_view(epoch, index, view): a view of an image, by its number."""
    height, width = images.shape[1:3]

    def fetch(index):
        return images[index]

    def make_view(epoch, index, view: int):
        image = tf.numpy_function(fetch, [index], tf.uint8, stateful=False)
        image = tf.ensure_shape(image, images.shape[1:])
        parameters = draw_view(
            view_seed(seed, epoch, index, view), recipe, height, width
        )
        return apply_view(image, parameters, recipe)

    return make_view
