"""Every inconsistency of the settings, all at once, in words."""

import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from eir_jax.data.sources import SOURCES
from eir_jax.models.convolution import KERNEL_INIT
from eir_jax.models.encoder import HEADS
from eir_jax.models.resnet import BLOCKS
from eir_jax.objectives import systems
from eir_jax.run.optimizer import OPTIMIZERS, SCHEDULES
from eir_jax.system.config import base_values, flatten
from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words, local_path
from eir_jax.system.words import counted

CHOICES: dict[str, Collection[str]] = {
    "objective": systems.SYSTEMS,
    "inter.negatives": ("batch", "bank"),
    "interpolation.kind": ("cutmix", "mixup"),
    "model.name": BLOCKS,
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
    "bank.form": ("auto", "dense", "streamed", "fused"),
    "bank.dtype": ("float32", "bfloat16"),
    "data.source": SOURCES,
    "data.fit": ("crop", "squash"),
    "data.keep": ("pixels", "encoded"),
    "data.labels": ("auto", "folders", "none"),
    "data.broken": ("skip", "error"),
    "data.pipeline": ("tf.data", "device"),
    "data.placement": ("replicated", "sharded"),
}
# words: (test, the keys it holds for, separated by blanks); of a tuple for each element
RULES = {
    "a whole number from 0 to 2147483647": (
        lambda x: 0 <= x < 2**31,
        "seed num_epochs eval_every_epochs data.resize skip_not_finite "
        "intra.ramp_steps inter.ramp_steps data.held_out_seed linear.seed "
        "retrieval.nmi_limit "
        "optimizer.milestones data.train_classes data.test_classes data.expected "
        "model.num_classes optimizer.warmup_epochs clusters.components "
        "clusters.isif_epochs",
    ),
    "at least 1 and at most 2147483647": (
        lambda x: 1 <= x < 2**31,
        "num_rounds batch_size model.width model.embedding_dim batch_norm.groups "
        "data.image_size evaluation_batch_size log_every_steps "
        "checkpoint_every_epochs keep_checkpoints linear.num_epochs "
        "linear.batch_size knn.k retrieval.k queue.size nce.negatives clusters.count "
        "clusters.iterations",
    ),
    "finite and above 0": (
        lambda x: 0 < x < math.inf,
        "temperature intra.temperature interpolation.alpha optimizer.learning_rate "
        "knn.temperature progress_every_seconds data.std views.crop_area "
        "views.crop_aspect linear.learning_rates",
    ),
    "finite and at least 0": (
        lambda x: 0 <= x < math.inf,
        "lambda_intra lambda_inter intra.target_temperature optimizer.weight_decay "
        "optimizer.factors linear.weight_decays isif_augmented.extrapolation",
    ),
    "finite": (math.isfinite, "data.mean"),
    "in (0, 1)": (lambda x: 0 < x < 1, "linear.held_out"),
    "in [0, 1)": (
        lambda x: 0 <= x < 1,
        "bank_momentum optimizer.momentum data.held_out queue.key_momentum",
    ),
    "in (0, 1]": (lambda x: 0 < x <= 1, "neighbours.share"),
    "in [0, 1]": (
        lambda x: 0 <= x <= 1,
        "views.jitter views.brightness views.contrast views.saturation views.grey "
        "views.flip isif_augmented.interpolation nce.z_momentum",
    ),
    "in [0, 0.5] turns": (lambda x: 0 <= x <= 0.5, "views.hue"),
}
# Tuples of any length from a least one on; all others are as long as in base.py.
LEAST_LENGTH = {
    "optimizer.milestones": 0,
    "optimizer.factors": 0,
    "knn.k": 1,
    "retrieval.k": 1,
    "linear.learning_rates": 1,
    "linear.weight_decays": 1,
}
# Of 10,000 images 780 steps of 128 take EIR's kNN from 24 to 43 %, and of 1,437 digits
# 550 of 64 from 63 to 97 % (RESULTS.md).
FEW_STEPS = 500
MOST_STEPS = 2**31 - 1
INCREASING = ("optimizer.milestones", "knn.k", "retrieval.k")
PATHS = ("data.path", "data.class_list", "model.weights", "grow_from")
FROM_TO = ("views.crop_area", "views.crop_aspect")  # low <= high


def check_complete(config: ConfigDict, source: str) -> None:
    """Check that no setting is missing, as in a file that an older version wrote.

    Raises:
      UserError: naming `source` and what it lacks.
    """
    if missing := sorted(_known() - flatten(config).keys()):
        raise UserError(
            f"{source} lacks the settings {', '.join(missing)}, so another version of "
            "this program wrote it; add them as in configs/base.py, or train anew"
        )


def validate(config: ConfigDict, reads_data: bool = True) -> None:
    """Check the settings by themselves, before any data is read.

    Args:
      config: all settings.
      reads_data: False: none will be, so that `data.path` may be empty.

    Raises:
      UserError: naming every problem, each with the way out: those of single settings,
        else those of several together.
    """
    flat = flatten(config)
    if missing := sorted(_known() - flat.keys()):
        raise UserError(
            f"the config lacks the settings {', '.join(missing)}; begin with `c = "
            "base.get_config()`, as the files of configs/ do"
        )
    _raise([*_shapes(flat)])
    # Each by itself before those that go together: these divide by the others.
    _raise([*_choices(config), *_ranges(flat), *_tuples(config)])
    problems = []
    needed = {"arrays": "the .npz file", "folder": "the folder of pictures"}
    if reads_data and config.data.source in needed and not config.data.path:
        problems.append(
            f"data.path is empty; give {needed[config.data.source]} of "
            f"data.source={config.data.source}"
        )
    problems += systems.problems(config)
    problems += _images(config.data)
    for key in PATHS:
        try:
            if flat[key]:
                local_path(flat[key])
        except UserError as error:
            problems.append(f"{key}: {error}")
    if config.linear.augment and config.linear.solver != "sgd":
        problems.append("linear.augment=True needs linear.solver=sgd")
    problems += _profile(config)
    if config.grow_from and (config.data.source != "folder" or config.model.weights):
        problems.append(
            f"grow_from={config.grow_from} is for data.source=folder, and without "
            "model.weights; use grow_from=''"
        )
    groups = config.batch_norm.groups
    if groups > 0 and config.batch_size % groups:
        problems.append(
            f"batch_size={config.batch_size} does not divide into "
            f"batch_norm.groups={groups}; use "
            f"{_nearest_multiples(config.batch_size, groups)}"
        )
    _raise(problems)


def check_data_there(data: ConfigDict) -> None:
    """Check that the file or folder that the settings name is there.

    Raises:
      UserError: naming it, and the folder that a relative one is under.
    """
    if data.source not in ("arrays", "folder"):
        return
    path = local_path(data.path)
    if not path.exists():
        kind = "file" if data.source == "arrays" else "folder"
        raise UserError(
            f"there is no {kind} {in_words(path)}, which data.path names; give "
            "--config.data.path to train, --data_path to evaluate"
        )


def validate_sizes(config: ConfigDict, num_examples: int, num_devices: int) -> None:
    """Check the settings against the data and the devices.

    Raises:
      UserError: naming every problem, each with the way out.
    """
    problems = []
    batch = config.batch_size
    if batch > num_examples:
        problems.append(
            f"batch_size={batch} exceeds the {counted(num_examples, 'training image')};"
            f" use at most {num_examples}, better "
            f"--config.batch_size={_fitting_batch(num_examples)}"
        )
    if batch % num_devices:
        problems.append(
            f"batch_size={batch} does not divide over {num_devices} devices; use "
            f"{_nearest_multiples(batch, num_devices)}"
        )
    problems += systems.size_problems(config, num_examples)
    epochs, per_epoch = config.num_rounds * config.num_epochs, num_examples // batch
    steps = epochs * per_epoch
    reached = max(epochs, *config.optimizer.milestones, 0) * per_epoch
    if reached > MOST_STEPS:
        problems.append(
            f"num_rounds, num_epochs and optimizer.milestones reach step {reached:,} "
            f"of {num_examples:,} images in batches of {batch}, and int32 counts them "
            f"to {MOST_STEPS:,}; use a larger --config.batch_size or fewer epochs"
        )
    profiled = profiled_steps(config)
    if batch <= num_examples and profiled and profiled[-1] > steps:
        problems.append(
            f"profile_steps={config.profile_steps} goes beyond the last step; give "
            f"steps from 1 to {steps}"
        )
    _raise(problems)


def suggestions(config: ConfigDict, num_examples: int) -> Iterator[str]:
    """Yield what would suit so many images better; nothing of it need be done."""
    batch, epochs = config.batch_size, config.num_epochs * config.num_rounds
    steps = epochs * (num_examples // batch)
    if not 0 < steps < FEW_STEPS:
        return
    better = min(batch, _fitting_batch(num_examples))
    enough = -(-FEW_STEPS // (num_examples // better) // config.num_rounds)
    yield (
        f"few steps, {steps} ({counted(epochs, 'epoch')} of {num_examples:,} images "
        f"in batches of {batch}): from {FEW_STEPS} on an embedding begins to tell "
        "pictures apart, "
        f"e.g. --config.batch_size={better} --config.num_epochs={enough}"
    )


def _fitting_batch(num_examples: int) -> int:
    """Return a power of two: some eight batches an epoch, 16 images where there are."""
    most = max(num_examples // 8, min(num_examples, 16))
    return 2 ** (most.bit_length() - 1)


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


def _known() -> set[str]:
    keys = (key for _, keys in RULES.values() for key in keys.split())
    return {*CHOICES, *LEAST_LENGTH, *keys}


def _choices(config: ConfigDict) -> Iterator[str]:
    flat = flatten(config)
    for key, allowed in CHOICES.items():
        if flat[key] not in allowed:
            yield f"{key}={flat[key]!r} is none of {', '.join(allowed)}"


def _shapes(flat: dict[str, Any]) -> Iterator[str]:
    """Yield where a tuple is none, or has another length or elements of another kind.

    What each is to be follows from its value in configs/base.py.
    """
    for key, like in base_values().items():
        value = flat.get(key)
        if not isinstance(like, tuple):
            continue
        kind = type(like[0])
        least = LEAST_LENGTH.get(key, len(like))
        most = math.inf if key in LEAST_LENGTH else least
        words = f"{least}" if most == least else f"{least} or more"
        name = {int: "whole numbers", float: "numbers"}[kind]
        if not (
            isinstance(value, tuple)
            and least <= len(value) <= most
            and all(type(element) in (int, kind) for element in value)
        ):
            yield f"{key}={value!r} must be {words} {name}, such as {like}"


def _ranges(flat: dict[str, Any]) -> Iterator[str]:
    for words, (holds, keys) in RULES.items():
        for key in keys.split():
            value = flat[key]
            if not isinstance(value, tuple):
                if not holds(value):  # NaN never holds
                    yield f"{key}={value} must be {words}"
            elif not all(map(holds, value)):
                yield f"{key}={value} must be {words}, each of it"


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
            f"optimizer.milestones has {counted(len(c.milestones), 'epoch')} and "
            f"optimizer.factors {counted(len(c.factors), 'number')}; give one factor a "
            "milestone"
        )
    flat = flatten(config)
    for key in INCREASING:
        if list(flat[key]) != sorted(set(flat[key])):
            yield f"{key}={flat[key]} is not increasing"
    for key in FROM_TO:
        if flat[key][0] > flat[key][1]:
            yield f"{key}={flat[key]} is not low, high"
    if config.views.crop_area[1] > 1:
        yield f"views.crop_area={config.views.crop_area} are no shares of an image"
    for key in ("train_classes", "test_classes"):
        first, end = config.data[key]
        if (first, end) != (0, 0) and first >= end:
            yield (
                f"data.{key}={config.data[key]} is not (first, after the last); "
                "(0, 0) are all"
            )
