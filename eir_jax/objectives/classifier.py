"""Systems that train a classifier: with the labels of a data set."""

from eir_jax.data.views import Slot
from eir_jax.objectives import losses
from eir_jax.objectives.objective import Batch, Memory, Objective, Outputs, Scalars


def make_supervised_objective() -> Objective:
    """Return 'supervised': cross-entropy of a classifier on the head's output, view 1.

    The paper does not say where its classifier sits. On the head's output, before the
    L2 norm, it trains the embedding that is evaluated.
    """

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        logits = outputs["view1"].logits
        assert logits is not None  # model.num_classes, as `problems` asks for
        found = {"loss_class": losses.cross_entropy_loss(logits, batch["label"])}
        right = logits.argmax(axis=1) == batch["label"]
        return found | {"accuracy": right.mean()}

    return Objective(
        slots=(Slot("view1"),),
        init=lambda key, params: {},
        specs={},
        weights=lambda step: {"loss_class": 1.0},
        terms=terms,
        update=lambda memory, outputs, batch, params, finite: (memory, {}),
    )
