"""The optimiser, and its schedule of learning rates (section 4.1)."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

OPTIMIZERS = ("sgd", "lars")
SCHEDULES = ("milestones", "cosine")


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate at a step of training.

    By 'milestones' it is rate * factors[k] from milestones[k] on: epochs of a round,
    counted from 0, and factors of the *initial* rate. By 'cosine' it falls from the
    rate to 0 at the round's end. Before either it may grow from 0, over
    `warmup_epochs`. Each round of `num_epochs` starts at that anew.
    """
    c = config.optimizer
    warmup = c.warmup_epochs * steps_per_epoch
    round_steps = config.num_epochs * steps_per_epoch
    if c.schedule == "cosine":
        falling = optax.cosine_decay_schedule(
            c.learning_rate, max(round_steps - warmup, 1)
        )
        one_round = lambda step: falling(jnp.maximum(step - warmup, 0))  # noqa: E731
    else:
        rates = [c.learning_rate, *(c.learning_rate * factor for factor in c.factors)]
        one_round = optax.join_schedules(
            [optax.constant_schedule(rate) for rate in rates],
            [milestone * steps_per_epoch for milestone in c.milestones],
        )
    if not warmup:
        return lambda step: one_round(step % round_steps)
    growing = optax.linear_schedule(0.0, c.learning_rate, warmup)

    def warmed(step):
        step = step % round_steps
        return jnp.where(step < warmup, growing(step), one_round(step))

    return warmed


def schedule_note(config: ConfigDict, planned: int) -> str:
    """Say that milestones lie beyond the last epoch, so that the rate does not fall.

    Args:
      config: the settings.
      planned: the epochs that the milestones were chosen for, of the config file alone.

    Returns:
      A line, with the milestones at the same shares of the run; '' where all are
      reached, or the schedule has none.
    """
    milestones, epochs = config.optimizer.milestones, config.num_epochs
    beyond = [m for m in milestones if m >= epochs]
    if config.optimizer.schedule != "milestones" or not epochs or not beyond:
        return ""
    falls = "never falls" if len(beyond) == len(milestones) else "falls less often"
    words = (
        f"note: the learning rate {falls}: optimizer.milestones={milestones}, "
        f"num_epochs={epochs}"
    )
    shares = [m * epochs // planned for m in milestones] if planned else []
    if max(milestones) < planned and shares == sorted({*shares} - {0}):
        words += (
            "; the same shares of the run are --config.optimizer.milestones="
            f"{','.join(map(str, shares))}"
        )
    return words


def make_optimizer(
    config: ConfigDict, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Return PyTorch's SGD: decay added to every gradient, then momentum.

    momentum <- m * momentum + (gradient + decay * param);
    param <- param - rate * momentum, or with `nesterov`
    param <- param - rate * (gradient + decay * param + m * momentum).

    'lars' (You et al., 2017) scales each kernel's step by the ratio of its norm to its
    gradient's first; biases and what batch norm learns have neither that nor decay, as
    in SimCLR.

    The classifier of 'deepcluster', which begins anew each epoch, has no momentum, and
    the initial rate throughout: with a lower one it would not learn within its epoch.
    """
    c = config.optimizer
    rest = _optimizer(c, make_schedule(config, steps_per_epoch), c.momentum)
    if config.objective != "deepcluster":
        return rest
    anew = _optimizer(c, optax.constant_schedule(c.learning_rate), 0.0)

    def which(params):
        return {
            name: jax.tree.map(lambda _, n=name: n == "classifier", part)
            for name, part in params.items()
        }

    return optax.partition({True: anew, False: rest}, which)


def _optimizer(
    c: ConfigDict, schedule: optax.Schedule, momentum: float
) -> optax.GradientTransformation:
    if c.name == "lars":
        return optax.lars(
            schedule,
            weight_decay=c.weight_decay,
            weight_decay_mask=_kernels,
            trust_ratio_mask=_kernels,
            momentum=momentum,
            nesterov=c.nesterov,
        )
    return optax.chain(
        optax.add_decayed_weights(c.weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=c.nesterov),
    )


def _kernels(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)
