"""The systems as values: which images they look at, and how these share statistics."""

import pytest

from configs import base
from eir_jax.objectives.objective import passes_of
from eir_jax.objectives.systems import make_objective


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, ((0, 1), (2,))),
        ({"batch_norm.sharing": "all"}, ((0, 1, 2),)),
        ({"batch_norm.sharing": "none"}, ((0,), (1,), (2,))),
        ({"lambda_inter": 0.0}, ((0, 1),)),
        ({"lambda_inter": 0.0, "batch_norm.sharing": "none"}, ((0,), (1,))),
        ({"objective": "ir", "lambda_inter": 0.0, "lambda_intra": 0.0}, ((0,),)),
    ],
)
def test_only_slots_in_use_are_encoded(changes, passes):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    assert passes_of(make_objective(config, 1).slots) == passes
