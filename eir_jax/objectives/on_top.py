"""EIR's two terms, intra and inter, on top of a system that has relations."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from eir_jax.objectives import losses
from eir_jax.objectives.objective import Batch, Outputs
from eir_jax.objectives.relations import Candidates, Comparison


def lambdas_on_top(config: ConfigDict) -> tuple[float, float]:
    """Return lambda_1 and lambda_2 of a system without a bank: 0 without `on_top`."""
    if not config.on_top:
        return 0.0, 0.0
    return config.lambda_intra, config.lambda_inter


def make_comparison(config: ConfigDict) -> Comparison:
    """Return how the intra term compares the views' distributions, `config.intra`."""
    settings = config.intra.to_dict()
    del settings["ramp_steps"]
    return Comparison(**settings)


def make_weights(config: ConfigDict, lambda_intra: float, lambda_inter: float):
    """Return step -> the factors of Eq. 10's terms; each may grow over its ramp."""

    def grown(factor: float, ramp: int, step) -> Any:
        return factor * jnp.minimum(step / ramp, 1.0) if ramp else factor

    def weights(step) -> dict[str, Any]:
        factors: dict[str, Any] = {"loss_instance": 1.0}
        if lambda_intra:
            factors["loss_intra"] = grown(lambda_intra, config.intra.ramp_steps, step)
        if lambda_inter:
            factors["loss_inter"] = grown(lambda_inter, config.inter.ramp_steps, step)
        return factors

    return weights


def inter_term(
    config: ConfigDict,
    outputs: Outputs,
    batch: Batch,
    candidates: Candidates | None = None,
    other: Float[Array, "batch dim"] | None = None,
    **how: Any,
) -> Float[Array, ""]:
    """Return the inter term (Eq. 8-9) as `config.inter` has it.

    Args:
      config: all settings.
      outputs: of 'view1' and 'mixed'.
      batch: with `partner` and `ratio`.
      candidates: where `inter.negatives` is 'bank': a bank's rows or a queue's.
      other: the partners' embeddings in the target, by instance; None: view 1.
      how: `form` and `mesh`, as `log_probability` takes them.
    """
    view1, mixed = (outputs[name].embedding for name in ("view1", "mixed"))
    target = losses.mixed_target(view1, batch["partner"], batch["ratio"], other)
    if config.inter.stop_gradient:
        target = jax.lax.stop_gradient(target)
    literal, tau = config.inter.literal, config.temperature
    if config.inter.negatives == "batch":
        return losses.inter_loss(mixed, target, tau, literal=literal)
    assert candidates is not None
    return losses.inter_candidates_loss(
        mixed, target, candidates, tau, literal=literal, **how
    )
