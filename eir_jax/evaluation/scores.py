"""The accuracies of an evaluation's record, and the one that judges a run."""

from collections.abc import Iterable
from typing import Any

PARTS = ("knn", "linear", "retrieval")  # of an evaluation: accuracies, in [0, 1]


def accuracies(record: dict[str, Any]) -> dict[str, float]:
    """Return the accuracies of an evaluation: {"knn.200": .876, ...}.

    Those that are None, as means over nothing, are left out.
    """
    return {
        f"{part}.{key}": value
        for part in PARTS
        for key, value in record.get(part, {}).items()
        if key not in ("learning_rate", "weight_decay") and value is not None
    }


def main_number(numbers: Iterable[str]) -> str | None:
    """Return what judges a run: kNN with the largest k, else R@K with the least."""
    names = list(numbers)
    knn = [name for name in names if name.startswith("knn.")]
    if knn:
        return max(knn, key=lambda name: int(name[4:]))
    return next((name for name in names if name.startswith("retrieval.R@")), None)
