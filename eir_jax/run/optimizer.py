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


def schedule_note(config: ConfigDict, planned: int) -> str:
    """Say that milestones lie beyond the last epoch, so that the rate does not fall.

    Args:
      config: the settings.
      planned: the epochs that the milestones were chosen for, of the config file alone.

    Returns:
      A line, with the milestones at the same shares of the run; '' where all are
      reached.
    """
    milestones, epochs = config.optimizer.milestones, config.num_epochs
    beyond = [m for m in milestones if m >= epochs]
    if not epochs or not beyond:
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
    """Return PyTorch's SGD: decay added to every gradient, then plain momentum.

    momentum <- m * momentum + (gradient + decay * param);
    param <- param - rate * momentum.
    """
    c = config.optimizer
    return optax.chain(
        optax.add_decayed_weights(c.weight_decay),
        optax.sgd(make_schedule(config, steps_per_epoch), momentum=c.momentum),
    )
