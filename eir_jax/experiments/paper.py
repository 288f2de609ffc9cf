"""The paper's numbers, per cent: the rows that this code can run, and its targets.

Rows of other systems (ISIF, aISIF, AND, DC, MoCo, CMC, PSLR, supervised) are left out.
"""

from typing import Any, NamedTuple

INSTANCE_ALONE: dict[str, Any] = {"lambda_intra": 0.0, "lambda_inter": 0.0}
RANDOM: dict[str, Any] = {"num_epochs": 0}
IR = INSTANCE_ALONE | {"objective": "ir"}
INTRA = {"lambda_inter": 0.0}
INTER = {"lambda_intra": 0.0}
EIR: dict[str, Any] = {}


class Row(NamedTuple):
    """A row: whose settings are those of a config file, but for some."""

    label: str
    config: str
    """File of configs/, without .py."""
    settings: dict[str, Any]
    values: tuple[float, ...]
    """Per cent, a number for each of the table's `numbers`."""


class Table(NamedTuple):
    """A table of the paper, or a part of it."""

    title: str
    numbers: tuple[str, ...]
    """As in the record of an evaluation: part.key."""
    rows: tuple[Row, ...]


KNN = ("knn.5", "knn.20", "knn.200")
LINEAR_KNN = ("linear.top-1", "knn.200")
RECALL = ("retrieval.R@1", "retrieval.R@2", "retrieval.R@4", "retrieval.R@8")


def _retrieval(title: str, config: str, *values: tuple[float, ...]) -> Table:
    labels = {"Random": RANDOM, "IR": IR, "IRaug": INSTANCE_ALONE, "EIR": EIR}
    rows = (
        Row(label, config, settings, value)
        for (label, settings), value in zip(labels.items(), values, strict=True)
    )
    return Table(f"Table 5: retrieval, {title}", RECALL, tuple(rows))


TABLES = (
    Table(
        "Table 1: components, CIFAR-10",
        ("knn.200",),
        (
            Row("IRaug", "cifar10", INSTANCE_ALONE, (83.4,)),
            Row("IRaug + intra", "cifar10", INTRA, (86.3,)),
            Row("IRaug + inter", "cifar10", INTER, (85.5,)),
            Row("EIR (both)", "cifar10", EIR, (87.6,)),
        ),
    ),
    Table(
        "Table 2: CIFAR-10",
        KNN,
        (
            Row("Random", "cifar10", RANDOM, (32.4, 34.8, 33.4)),
            Row("IR", "cifar10", IR, (79.6, 80.5, 80.8)),
            Row("IRaug", "cifar10", INSTANCE_ALONE, (81.5, 83.4, 83.4)),
            Row("EIR", "cifar10", EIR, (86.6, 87.5, 87.6)),
            Row("EIR, 2 rounds", "cifar10", {"num_rounds": 2}, (87.7, 88.3, 88.6)),
            Row("EIR, 5 rounds", "cifar10", {"num_rounds": 5}, (88.2, 89.2, 89.1)),
        ),
    ),
    Table(
        "Section 4.2: CIFAR-100",
        ("knn.200",),
        (
            Row("IRaug + intra", "cifar100", INTRA, (58.7,)),
            Row("EIR", "cifar100", EIR, (61.4,)),
        ),
    ),
    Table(
        "Table 3: STL-10",
        LINEAR_KNN,
        (
            Row("Random", "stl10_5k", RANDOM, (28.7, 22.4)),
            Row("IR, 5K", "stl10_5k", IR, (62.3, 66.8)),
            Row("IRaug, 5K", "stl10_5k", INSTANCE_ALONE, (69.6, 70.0)),
            Row("EIR, 5K", "stl10_5k", EIR, (76.4, 78.2)),
            Row("IRaug, 105K", "stl10_105k", INSTANCE_ALONE, (74.4, 81.0)),
            Row("EIR, 105K", "stl10_105k", EIR, (79.3, 84.7)),
        ),
    ),
    Table(
        "Table 4: ImageNet-100",
        LINEAR_KNN,
        (
            Row("Random", "imagenet100", RANDOM, (6.0, 11.0)),
            Row("IR", "imagenet100", IR, (60.2, 59.1)),
            Row("IRaug", "imagenet100", INSTANCE_ALONE, (61.5, 61.5)),
            Row("EIR", "imagenet100", EIR, (66.4, 66.5)),
        ),
    ),
    _retrieval(
        "CIFAR-10",
        "cifar10",
        (25.0, 40.1, 58.2, 75.8),
        (70.8, 82.5, 90.0, 95.4),
        (73.3, 83.9, 91.4, 96.1),
        (79.9, 88.5, 93.6, 97.1),
    ),
    _retrieval(
        "CIFAR-100",
        "cifar100",
        (8.2, 13.1, 19.8, 29.4),
        (36.0, 46.3, 56.9, 68.0),
        (39.7, 50.1, 60.5, 71.5),
        (45.6, 56.5, 66.9, 76.5),
    ),
    _retrieval(
        "CUB-200-2011",
        "cub200",
        (3.4, 6.1, 10.4, 18.1),
        (8.0, 12.7, 20.1, 30.3),
        (11.1, 17.1, 26.4, 37.2),
        (14.6, 22.1, 32.6, 44.1),
    ),
    _retrieval(
        "Cars-196",
        "cars196",
        (4.5, 7.1, 11.1, 17.5),
        (19.9, 27.6, 37.4, 49.4),
        (23.1, 31.1, 41.7, 53.9),
        (28.5, 38.1, 49.5, 62.1),
    ),
)
