"""What a system is: a value made of pure functions, as optax's transformations are."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jax import Array
from jaxtyping import Float

from eir_jax.data.views import Slot
from eir_jax.models.batch_norm import Passes
from eir_jax.models.encoder import EncoderOutput

Memory = dict[str, Any]
"""What a system remembers beside the parameters: a bank, a queue; {}: nothing."""
Outputs = dict[str, EncoderOutput]
"""What the encoder says of a batch's images, by the slot's name."""
Batch = dict[str, Array]
Scalars = dict[str, Float[Array, ""]]


class Objective(NamedTuple):
    """A system: what it looks at, what it remembers, and its loss."""

    slots: tuple[Slot, ...]
    """In the order in which they are encoded; the first one is every system's."""
    init: Callable[[Array, Any], Memory]
    """(key, parameters of the encoder) -> the memory before the first step."""
    specs: Memory
    """A PartitionSpec for each part of it: P('data') what has a row an instance."""
    weights: Callable[[Array | int], dict[str, Any]]
    """step -> {name of a term: its factor in the loss}."""
    terms: Callable[[Outputs, Memory, Batch], Scalars]
    """The terms of the loss, and what is watched beside them; differentiated. A batch
    also holds `step`, the number of those taken before."""
    update: Callable[[Memory, Outputs, Batch, Any, Array], tuple[Memory, Scalars]]
    """(memory, outputs, batch, new parameters, finite) -> the memory after the step,
    and what is watched of it. Where loss or gradient is not `finite`, nothing is
    written. No gradient."""
    refresh: Callable[..., Memory] | None = None
    """(memory, period) -> the memory for the steps of a period, counted from 0. With
    `looks_at_all` (memory, period, features), those of all training images by the
    encoder in evaluation mode: [rows, dim], zero from N on, split by rows."""
    every: Literal["epoch", "round"] = "epoch"
    """The period of `refresh`."""
    looks_at_all: bool = False
    renew: Callable[[Any, Array], Any] | None = None
    """(parameters, period) -> those that the period begins with; after `refresh`."""
    uniform_over: str = ""
    """The numbers, an instance each, in the memory, over which a period's batches are
    drawn uniformly, with repetition; '': each instance once."""


def passes_of(slots: tuple[Slot, ...]) -> Passes:
    """Return the places of the slots that batch norm normalises together.

    They are places among those of the trained encoder.
    """
    places: dict[int, list[int]] = {}
    for place, slot in enumerate(s for s in slots if s.encoder == "online"):
        places.setdefault(slot.statistics, []).append(place)
    return tuple(map(tuple, places.values()))


def share_statistics(
    names: list[str], sharing: Literal["views", "all", "none"]
) -> tuple[Slot, ...]:
    """Return slots whose batch-norm statistics `batch_norm.sharing` decides.

    'views': the mixed images have their own; 'all': all share; 'none': each its own.
    """
    numbers = {"views": lambda i, name: int(name == "mixed"), "all": lambda *_: 0}
    number = numbers.get(sharing, lambda i, _: i)
    return tuple(Slot(name, number(i, name)) for i, name in enumerate(names))
