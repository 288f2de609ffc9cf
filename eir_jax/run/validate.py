"""Every inconsistency of the settings, all at once, in words."""

import math
import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from eir_jax.data.sources import SOURCES
from eir_jax.models.convolution import KERNEL_INIT
from eir_jax.models.encoder import HEADS
from eir_jax.models.resnet import BLOCKS
from eir_jax.objectives import systems
from eir_jax.run.optimizer import OPTIMIZERS, SCHEDULES
from eir_jax.system.config import flatten
from eir_jax.system.errors import UserError

CHOICES = {
    "objective": systems.SYSTEMS,
    "inter.negatives": ("batch", "bank"),
    "interpolation.kind": ("cutmix", "mixup"),
    "model.name": tuple(BLOCKS),
    "model.head": HEADS,
    "model.towers": ("one", "lab"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "model.stem": ("small", "imagenet"),
    "model.init": tuple(KERNEL_INIT),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.precision": ("default", "high", "highest"),
    "batch_norm.sharing": ("views", "all", "none"),
    "linear.solver": ("sgd", "lbfgs"),
    "bank.form": ("auto", "dense", "streamed"),
    "bank.dtype": ("float32", "bfloat16"),
    "data.source": tuple(SOURCES),
    "data.fit": ("crop", "squash"),
    "data.keep": ("pixels", "encoded"),
    "data.broken": ("skip", "error"),
    "data.pipeline": ("tf.data", "device"),
    "data.placement": ("replicated", "sharded"),
}
RULES = {  # words: (test, the keys it holds for, separated by blanks)
    "a whole number from 0 to 2147483647": (
        lambda x: 0 <= x < 2**31,
        "seed num_epochs eval_every_epochs data.resize skip_not_finite "
        "intra.ramp_steps model.num_classes optimizer.warmup_epochs",
    ),
    "at least 1": (
        lambda x: x >= 1,
        "num_rounds batch_size model.width model.embedding_dim batch_norm.groups "
        "data.image_size evaluation_batch_size log_every_steps "
        "checkpoint_every_epochs keep_checkpoints linear.num_epochs "
        "linear.batch_size queue.size nce.negatives clusters.count clusters.iterations",
    ),
    "finite and above 0": (
        lambda x: 0 < x < math.inf,
        "temperature intra.temperature interpolation.alpha optimizer.learning_rate "
        "knn.temperature",
    ),
    "finite and at least 0": (
        lambda x: 0 <= x < math.inf,
        "lambda_intra lambda_inter intra.target_temperature optimizer.weight_decay "
        "isif_augmented.extrapolation",
    ),
    "in [0, 1)": (
        lambda x: 0 <= x < 1,
        "bank_momentum optimizer.momentum queue.key_momentum",
    ),
    "in (0, 1]": (lambda x: 0 < x <= 1, "neighbours.share"),
    "in [0, 1]": (
        lambda x: 0 <= x <= 1,
        "views.jitter views.brightness views.contrast views.saturation views.grey "
        "views.flip isif_augmented.interpolation",
    ),
    "in [0, 0.5] turns": (lambda x: 0 <= x <= 0.5, "views.hue"),
}


def check_complete(config: ConfigDict, source: str) -> None:
    """Check that no setting is missing, as in a file that an older version wrote.

    Raises:
      UserError: naming `source` and what it lacks.
    """
    known = [*CHOICES, *(key for _, keys in RULES.values() for key in keys.split())]
    if missing := sorted({*known} - flatten(config).keys()):
        raise UserError(
            f"{source} lacks the settings {', '.join(missing)}, so another version of "
            "this program wrote it; add them as in configs/base.py, or train anew"
        )


def validate(config: ConfigDict) -> None:
    """Check the settings by themselves, before any data is read.

    Raises:
      UserError: naming every problem, each with the way out.
    """
    problems = [*_choices(config), *_ranges(config), *_tuples(config)]
    needed = {"arrays": "the .npz file", "folder": "the folder of pictures"}
    if config.data.source in needed and not config.data.path:
        problems.append(
            f"data.path is empty; give {needed[config.data.source]} of "
            f"data.source={config.data.source}"
        )
    problems += systems.problems(config)
    problems += _images(config.data)
    problems += _profile(config)
    if config.batch_size % config.batch_norm.groups:
        problems.append(
            f"batch_size={config.batch_size} does not divide into "
            f"batch_norm.groups={config.batch_norm.groups}; use "
            f"{_nearest_multiples(config.batch_size, config.batch_norm.groups)}"
        )
    _raise(problems)


def validate_sizes(
    config: ConfigDict,
    num_examples: int,
    num_devices: int,
    num_voters: int | None = None,
) -> None:
    """Check the settings against the data and the devices.

    `num_voters` are the labelled training images, which vote in kNN; 0 where there is
    no kNN, and all where it is left out.

    Raises:
      UserError: naming every problem, each with the way out.
    """
    problems = []
    batch = config.batch_size
    if batch > num_examples:
        problems.append(
            f"batch_size={batch} exceeds the {num_examples} training images; use at "
            f"most {num_examples}"
        )
    if batch % num_devices:
        problems.append(
            f"batch_size={batch} does not divide over {num_devices} devices; use "
            f"{_nearest_multiples(batch, num_devices)}"
        )
    problems += systems.size_problems(config, num_examples)
    steps = config.num_rounds * config.num_epochs * (num_examples // batch)
    profiled = profiled_steps(config)
    if batch <= num_examples and profiled and profiled[-1] > steps:
        problems.append(
            f"profile_steps={config.profile_steps} goes beyond the last step; give "
            f"steps from 1 to {steps}"
        )
    voters = num_examples if num_voters is None else num_voters
    if config.eval_every_epochs and 0 < voters < max(config.knn.k):
        fitting = ",".join(str(k) for k in config.knn.k if k <= voters)
        problems.append(
            f"knn.k={config.knn.k} asks for more neighbours than the {voters} "
            f"{'labelled ' * (voters < num_examples)}training images; use "
            f"--config.knn.k={fitting or voters}"
        )
    _raise(problems)


def profiled_steps(config: ConfigDict) -> range:
    """Return the steps, counted from 1, that `profile_steps` asks for; maybe none.

    Raises:
      ValueError: they are not written as two numbers a:b.
    """
    text = config.profile_steps
    if not text:
        return range(0)
    first, last = text.split(":")
    return range(int(first), int(last) + 1)


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError("; ".join(problems))


def _nearest_multiples(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    above = below + divisor
    return f"{below} or {above}" if below else f"{above}"


def _choices(config: ConfigDict) -> Iterator[str]:
    flat = flatten(config)
    for key, allowed in CHOICES.items():
        if flat[key] not in allowed:
            yield f"{key}={flat[key]!r} is none of {', '.join(allowed)}"


def _ranges(config: ConfigDict) -> Iterator[str]:
    flat = flatten(config)
    for words, (holds, keys) in RULES.items():
        for key in keys.split():
            if not holds(flat[key]):  # NaN never holds
                yield f"{key}={flat[key]} must be {words}"


def _profile(config: ConfigDict) -> Iterator[str]:
    text = config.profile_steps
    if not text:
        return
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        yield (
            f"profile_steps={text!r} is no range of steps; give the first and the "
            "last one, from 1 on, like 101:110"
        )


def _images(data: ConfigDict) -> Iterator[str]:
    if 0 < data.resize < data.image_size:
        yield (
            f"data.resize={data.resize} is less than data.image_size="
            f"{data.image_size}, which is cut from it; use 0 or at least that"
        )
    if data.keep == "encoded":
        if data.pipeline == "device":
            yield (
                "data.pipeline=device needs the pixels on the device; use "
                "data.keep=pixels, or data.pipeline=tf.data"
            )
        if data.fit == "squash":
            yield (
                "data.fit=squash cannot be done on data.keep=encoded; use "
                "data.keep=pixels, or data.fit=crop"
            )


def _tuples(config: ConfigDict) -> Iterator[str]:
    c = config.optimizer
    if c.warmup_epochs >= max(config.num_epochs, 1):
        yield (
            f"optimizer.warmup_epochs={c.warmup_epochs} leaves none of num_epochs="
            f"{config.num_epochs}; give less"
        )
    if len(c.milestones) != len(c.factors):
        yield (
            f"optimizer.milestones has {len(c.milestones)} epochs and "
            f"optimizer.factors {len(c.factors)} numbers; give one factor a milestone"
        )
    if list(c.milestones) != sorted(set(c.milestones)) or min(c.milestones) < 0:
        yield f"optimizer.milestones={c.milestones} is not increasing from 0 on"
    for key in ("mean", "std"):
        value = config.data[key]
        if len(value) != 3 or (key == "std" and min(value) <= 0):
            yield f"data.{key}={value} is not three numbers" + (
                " above 0" if key == "std" else ""
            )
    low, high = (*config.views.crop_area, 0, 0)[:2]
    if len(config.views.crop_area) != 2 or not 0 < low <= high <= 1:
        yield f"views.crop_area={config.views.crop_area} is not 0 < low <= high <= 1"
    low, high = (*config.views.crop_aspect, 0, 0)[:2]
    if len(config.views.crop_aspect) != 2 or not 0 < low <= high:
        yield f"views.crop_aspect={config.views.crop_aspect} is not 0 < low <= high"
    for group in ("knn", "retrieval"):
        k = config[group].k
        if not k or min(k) < 1 or list(k) != sorted(set(k)):
            yield f"{group}.k={k} is not an increasing list of numbers from 1 on"
