"""SGD with momentum, and its schedule of learning rates (section 4.1)."""

import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate at a step: rate * factors[k] from milestones[k] on.

    Milestones are epochs of a round, counted from 0; factors are of the *initial* rate.
    Each round of `num_epochs` starts at that rate anew.
    """
    c = config.optimizer
    rates = [c.learning_rate, *(c.learning_rate * factor for factor in c.factors)]
    one_round = optax.join_schedules(
        [optax.constant_schedule(rate) for rate in rates],
        [milestone * steps_per_epoch for milestone in c.milestones],
    )
    round_steps = config.num_epochs * steps_per_epoch
    return lambda step: one_round(step % round_steps)


def make_optimizer(
    config: ConfigDict, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Return PyTorch's SGD: decay added to every gradient, then plain momentum.

    momentum <- m * momentum + (gradient + decay * param);
    param <- param - rate * momentum.
    """
    c = config.optimizer
    return optax.chain(
        optax.add_decayed_weights(c.weight_decay),
        optax.sgd(make_schedule(config, steps_per_epoch), momentum=c.momentum),
    )
