"""Training batches: which instances, their views, and the mixed images.

`data.pipeline=tf.data` makes the pixels here, on the host. With `device` a batch holds
only what the step needs to make them itself (see augment_device.py), and TensorFlow is
not imported.
"""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from ml_collections import ConfigDict
from PIL import Image

from eir_jax.data.augment import crop_planes, recolour
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.interpolation import mix
from eir_jax.data.order import (
    draw_interpolation,
    draw_uniforms,
    epoch_order,
    showings,
    steps_per_epoch,
    uniform_order,
)
from eir_jax.data.views import (
    NUM_COEFFICIENTS,
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
from eir_jax.system.errors import UserError

Images = np.ndarray | EncodedImages
Batch = dict[str, np.ndarray]
# Pixels, height or width. Up to it whole batches are cropped by matrix products; beyond
# it image by image, by Pillow, whose filter skips the zeros.
LARGEST_BATCHED = 96


def make_train_batches(
    images: Images,
    config: ConfigDict,
    slots: Sequence[Slot],
    start_step: int,
    num_steps: int,
    rows: slice = slice(None),
    labels: Int32[np.ndarray, " n"] | None = None,
    groups: Int32[np.ndarray, " n"] | None = None,
) -> Generator[Batch]:
    """Yield the batches of the steps from `start_step` to before `num_steps`.

    Close it (`contextlib.closing`) unless it is read to its end: its threads call
    Python, and a program that ends while they run may hang.

    A batch is a pure function of (settings, images, step). With data.pipeline=tf.data
    it holds the images of the slots, float32 [batch, size, size, 3], normalised;
    `index` int32 [batch]; and with mixed images `partner` int32 [batch], `ratio`
    float32 [batch]. With `device` it holds `epoch` int32 [batch] and `box` int32
    [batch, 4] instead of the images. Given `labels`, it has each instance's `label`.

    Args:
      images: uint8 [n, height, width, 3].
      config: all settings.
      slots: the images of an instance that the objective looks at.
      start_step: of the first batch, from 0 on.
      num_steps: the step after the last batch.
      rows: the part of each batch to make, as one of several processes.
      labels: of the images, for an objective that asks for them.
      groups: of the images, for one whose epochs draw uniformly over them; else each
        image comes once.

    Raises:
      UserError: TensorFlow is needed and not installed.
    """
    draw = _make_draw(len(images), config, mixes(slots), groups)
    how = (draw, start_step, num_steps, rows)
    if config.data.pipeline == "device":
        batches = _index_batches(*how)
    else:
        batches = _pixel_batches(images, config, slots, *how)
    return batches if labels is None else _add_labels(batches, labels)


def _add_labels(batches: Generator[Batch], labels: np.ndarray) -> Generator[Batch]:
    with closing(batches):
        for batch in batches:
            yield batch | {"label": labels[batch["index"]].astype(np.int32)}


def _make_draw(
    num_examples: int, config: ConfigDict, mixed: bool, groups: np.ndarray | None
) -> Callable[[int], Batch]:
    """Return draw(step): the whole batch but for its images."""
    size = config.batch_size
    per_epoch = steps_per_epoch(num_examples, size)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> Batch:
        if groups is None:
            index = epoch_order(config.seed, epoch, num_examples)
        else:
            index = uniform_order(config.seed, epoch, groups, per_epoch * size)
        return {"index": index, "epoch": showings(index, epoch)}

    def draw(step: int) -> Batch:
        epoch, within = divmod(step, per_epoch)
        part = slice(within * size, (within + 1) * size)
        batch = {name: value[part] for name, value in order(epoch).items()}
        if mixed:
            drawn = draw_interpolation(
                config.seed, step, size, config.data.image_size, **config.interpolation
            )
            batch |= drawn._asdict()
        return batch

    return draw


def _index_batches(draw, start_step, num_steps, rows) -> Generator[Batch]:
    for step in range(start_step, num_steps):
        yield {name: value[rows] for name, value in draw(step).items()}


def _pixel_batches(
    images: Images, config: ConfigDict, slots, draw, start_step, num_steps, rows
) -> Generator[Batch]:
    tf = _import_tensorflow()
    recipe, views, mixed = make_recipe(config), drawn_views(slots), mixes(slots)
    local = len(range(config.batch_size)[rows])
    # A partner may be of another process's part: its view 2 is made here once more.
    remote = mixed and local < config.batch_size

    def plan(step: np.ndarray):
        """Return index, coefficients of the views, partner, ratio, box."""
        batch = draw(int(step))
        epoch, index = batch["epoch"], batch["index"]
        shown = [(index[rows], epoch[rows], name) for name in views]
        if remote:
            theirs = batch["partner"][rows]
            shown.append((index[theirs], epoch[theirs], "view2"))
        numbers = [
            _coefficients(images, recipe, config.seed, when, which, name)
            for which, when, name in shown
        ]
        mixing = [batch[name][rows] for name in ("partner", "ratio", "box") if mixed]
        return [
            np.stack([which for which, _, _ in shown], axis=1),
            np.stack(numbers, axis=1),
            *map(np.ascontiguousarray, mixing),
        ]

    def planned(step):
        types = [tf.int32, tf.float32]
        types += [tf.int32, tf.float32, tf.int32] if mixed else []
        found = tf.numpy_function(plan, [step], types, stateful=False)
        shown = len(views) + bool(remote)
        shapes = [[local, shown], [local, shown, NUM_COEFFICIENTS]]
        shapes += [[local], [local], [local, 4]]
        return tuple(map(tf.ensure_shape, found, shapes))

    def finished(plan, pixels):
        index, _, *mixing = plan
        batch = {name: pixels[:, n] for n, name in enumerate(views)}
        batch["index"] = index[:, 0]
        if mixed:
            partner, ratio, box = mixing
            other = pixels[:, -1] if remote else tf.gather(batch["view2"], partner)
            kind = config.interpolation.kind
            batch["mixed"] = mix(kind, batch["view1"], other, ratio, box, tf)
            batch |= {"partner": partner, "ratio": ratio}
        return batch

    steps = tf.data.Dataset.range(start_step, num_steps)
    plans = steps.map(planned, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = _add_pixels(tf, images, recipe, plans, local, len(views))
    dataset = dataset.map(finished, num_parallel_calls=tf.data.AUTOTUNE)
    with _user_errors(tf):
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def make_view_batches(
    images: Images, config: ConfigDict, epoch: int, batch_size: int
) -> Generator[np.ndarray]:
    """Yield one fresh view of each image, in order, in batches (the last one short).

    The views are view 1 of that epoch of training, float32 [<= batch_size, size, size,
    3], normalised. They come from TensorFlow, or from JAX with data.pipeline=device.

    Raises:
      UserError: TensorFlow is needed and not installed.
    """
    starts = range(0, len(images), batch_size)
    recipe = make_recipe(config)
    chunks = [
        np.arange(s, min(s + batch_size, len(images)), dtype=np.int32) for s in starts
    ]
    if config.data.pipeline == "device":
        import jax

        from eir_jax.data.augment_device import apply_views

        @jax.jit
        def make_views(chosen, index):
            epochs = jax.numpy.full_like(index, epoch)
            return apply_views(chosen, recipe, config.seed, epochs, index, 0)

        for index in chunks:
            yield np.asarray(make_views(images[index], index))
        return
    tf = _import_tensorflow()

    def plan(start):
        index = chunks[int(start) // batch_size]
        numbers = _coefficients(images, recipe, config.seed, epoch, index, "view1")
        return index[:, None], numbers[:, None]

    def planned(start):
        types = [tf.int32, tf.float32]
        index, numbers = tf.numpy_function(plan, [start], types, stateful=False)
        shape = [None, 1, NUM_COEFFICIENTS]
        return tf.ensure_shape(index, [None, 1]), tf.ensure_shape(numbers, shape)

    plans = tf.data.Dataset.range(0, len(images), batch_size).map(planned)
    dataset = _add_pixels(tf, images, recipe, plans, batch_size, 1)
    with _user_errors(tf):
        for _, batch in dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
            yield batch[:, 0]


def _import_tensorflow():
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"data.pipeline=tf.data needs TensorFlow ({error}); pip install "
            '"eir_jax[tfds]" (in a clone ".[tfds]"), or use data.pipeline=device'
        ) from None
    tf.config.set_visible_devices([], "GPU")  # they are JAX's
    return tf


@contextmanager
def _user_errors(tf) -> Iterator[None]:
    """Hand on what TensorFlow wraps: a picture that can no longer be read."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"UserError: (.*)", error.message)
        if not found:
            raise
        raise UserError(found[1]) from None


def _coefficients(
    images: Images,
    recipe: Recipe,
    seed: int,
    epoch: int | Int32[np.ndarray, " n"],
    index: Int32[np.ndarray, " n"],
    view: str,
) -> Float32[np.ndarray, "n coefficients"]:
    """Draw one view of each of some images, from their sizes alone."""
    recipe = recipe_of(view, recipe)
    uniforms = draw_uniforms(seed, epoch, index, VIEW_NUMBERS[view], NUM_UNIFORMS)
    if isinstance(images, EncodedImages):
        height, width = images.sizes[index].T
    else:
        height, width = images.shape[1:3]
    return coefficients(view_parameters(uniforms, recipe, height, width, np), np)


def _add_pixels(
    tf, images: Images, recipe: Recipe, plans: Any, batch_size: int, own: int
):
    """Turn a dataset of plans into one of (plan, normalised views).

    Args:
      tf: TensorFlow.
      images: all of them.
      recipe: of the views.
      plans: int32 [batch, views], float32 [batch, views, NUM_COEFFICIENTS], and more.
      batch_size: of a whole batch; the last one may be shorter.
      own: views of the instance itself; one more is its partner's.

    Returns:
      A dataset of plans, each with float32 [batch, views, size, size, 3].
    """
    size, shape = recipe.image_size, images.shape[1:]

    @tf.function(jit_compile=True)  # a third faster for large views
    def finish(squares, numbers):  # uint8 [n, size, size, 3], cut already
        planes = tf.transpose(tf.cast(squares, tf.float32) * (1 / 255), (0, 3, 1, 2))
        return recolour(planes, numbers, recipe, tf)

    def cut_and_finish(whole, numbers):
        planes = tf.transpose(tf.cast(whole, tf.float32), (0, 3, 1, 2))
        return recolour(crop_planes(planes, numbers, size, tf), numbers, recipe, tf)

    def make_batch(*plan):
        index, numbers, *_ = plan
        shown = numbers.shape[1]
        wanted = tf.reshape(index, [-1])
        whole = tf.numpy_function(
            lambda index: images[index], [wanted], tf.uint8, stateful=False
        )
        whole = tf.ensure_shape(whole, [None, *shape])
        numbers = tf.reshape(numbers, [-1, NUM_COEFFICIENTS])
        views = cut_and_finish(whole, numbers)
        return plan, tf.reshape(views, [-1, shown, size, size, 3])

    if isinstance(images, np.ndarray) and max(shape[:2]) <= LARGEST_BATCHED:
        return plans.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)

    cut = _make_cut(tf, images, size, own)

    def make_one(index, numbers):
        return finish(cut(index, numbers), numbers)

    instances = plans.flat_map(
        lambda *plan: tf.data.Dataset.from_tensor_slices(plan[:2])
    )
    views = instances.map(make_one, num_parallel_calls=tf.data.AUTOTUNE)
    return tf.data.Dataset.zip(plans, views.batch(batch_size))


def _make_cut(tf, images: Images, size: int, own: int):
    """Return cut(index [v], coefficients [v, k]) -> uint8 [v, size, size, 3].

    The first `own` views are of one instance, one more of its partner. Those of one
    picture are cut from one decoded window, the smallest that holds them: of a JPEG
    nothing else is decoded.
    """

    def read(index):
        assert isinstance(images, EncodedImages)
        plain = images.plain[index]
        return images.read(index) if plain else b"", plain

    def look(index, window):
        whole = (
            images[index] if isinstance(images, np.ndarray) else images.picture(index)
        )
        top, left, height, width = window
        return np.ascontiguousarray(whole[top : top + height, left : left + width])

    def decode(index, window):
        def otherwise():
            return tf.numpy_function(look, [index, window], tf.uint8, stateful=False)

        if isinstance(images, np.ndarray):
            return otherwise()
        contents, plain = tf.numpy_function(
            read, [index], [tf.string, tf.bool], stateful=False
        )
        return tf.cond(
            plain,
            lambda: tf.io.decode_and_crop_jpeg(
                contents, window, channels=3, dct_method="INTEGER_ACCURATE"
            ),
            otherwise,
        )

    def squares(window, boxes, flips):
        """Pillow's filter is twice as fast as TensorFlow's, and lets others run."""
        views = []
        for (top, left, height, width), flip in zip(boxes, flips, strict=True):
            part = Image.fromarray(window[top : top + height, left : left + width])
            view = part.resize((size, size), Image.Resampling.BILINEAR)
            views.append(np.asarray(view)[:, :: -1 if flip else 1])
        return np.stack(views)

    def cut_picture(index, numbers):
        boxes = tf.cast(numbers[:, :4], tf.int32)
        corner = tf.reduce_min(boxes[:, :2], axis=0)
        end = tf.reduce_max(boxes[:, :2] + boxes[:, 2:], axis=0)
        window = decode(index, tf.concat([corner, end - corner], axis=0))
        inside = tf.concat([boxes[:, :2] - corner, boxes[:, 2:]], axis=1)
        views = tf.numpy_function(
            squares, [window, inside, numbers[:, 4]], tf.uint8, stateful=False
        )
        return tf.ensure_shape(views, [numbers.shape[0], size, size, 3])

    def cut(index, numbers):
        parts = [cut_picture(index[0], numbers[:own])]
        if index.shape[0] > own:
            parts.append(cut_picture(index[own], numbers[own:]))
        return tf.concat(parts, axis=0)

    return cut
