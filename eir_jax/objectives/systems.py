"""Which systems there are: the one place that knows them by name."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.objectives.bank import make_bank_objective
from eir_jax.objectives.objective import Objective

SYSTEMS = ("iraug", "iraug_sum", "ir")
"""What `config.objective` may be."""


def make_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return the system that `config.objective` names.

    Args:
      config: all settings.
      num_examples: N, training images.
      mesh: devices along the axis 'data'; None: one device.

    Raises:
      ValueError: there is no such system; `validate` has refused it in words.
    """
    match config.objective:
        case "iraug" | "iraug_sum" | "ir":
            return make_bank_objective(config, num_examples, mesh)
        case name:
            raise ValueError(f"objective={name!r} is none of {', '.join(SYSTEMS)}")
