"""Which systems there are: the one place that knows them by name."""

from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset, Split, is_grey, labelled
from eir_jax.objectives.bank import make_bank_objective
from eir_jax.objectives.batch import make_batch_objective
from eir_jax.objectives.classifier import make_supervised_objective
from eir_jax.objectives.clusters import make_cluster_objective
from eir_jax.objectives.cmc import make_cmc_objective
from eir_jax.objectives.deepcluster import make_deepcluster_objective
from eir_jax.objectives.neighbourhoods import make_neighbourhood_objective
from eir_jax.objectives.noise import make_noise_objective
from eir_jax.objectives.objective import Objective
from eir_jax.objectives.queue import make_queue_objective
from eir_jax.system.errors import UserError
from eir_jax.system.words import counted

EIR = ("iraug", "iraug_sum", "ir")  # with the terms that lambda asks for
HOSTS = ("isif", "simclr", "moco")  # these have them with `on_top`
# Of the warnings: what DeepCluster's classifier may learn in a step of an epoch, a rule
# of thumb, and how slow the keys of the authors' system of 2022 are to be.
CLUSTERS_A_STEP = 2
SLOW_KEYS = 0.999
QUEUES = ("moco", "eir_moco")
SYSTEMS = (
    *EIR,
    *HOSTS,
    "eir_moco",
    "isif_augmented",
    "ir_nce",
    "cmc",
    "and",
    "clusters",
    "deepcluster",
    "supervised",
)
"""What `config.objective` may be."""
GREY_AT = 100  # images looked at
OWN_KEYS = 0.04  # of the queries: more are warned of


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
        case "isif" | "simclr" | "isif_augmented":
            return make_batch_objective(config)
        case "moco" | "eir_moco":
            return make_queue_objective(config)
        case "ir_nce":
            return make_noise_objective(config, num_examples, mesh)
        case "cmc":
            return make_cmc_objective(config, num_examples, mesh)
        case "and":
            return make_neighbourhood_objective(config, num_examples, mesh)
        case "clusters":
            return make_cluster_objective(config, num_examples, mesh)
        case "deepcluster":
            return make_deepcluster_objective(config, num_examples, mesh)
        case "supervised":
            return make_supervised_objective()
        case name:
            raise ValueError(f"objective={name!r} is none of {', '.join(SYSTEMS)}")


def problems(config: ConfigDict) -> Iterator[str]:
    """Yield what is wrong with the settings of a system, each with the way out."""
    name = config.objective
    if config.on_top and name == "eir_moco":
        yield (
            "on_top=true: objective=eir_moco has both terms already, with the weights "
            "of its release; use on_top=false, or objective=moco"
        )
    elif config.on_top and name not in (*EIR, *HOSTS):
        yield (
            f"on_top=true: objective={name} takes no intra and inter terms; use "
            f"on_top=false, or one of {', '.join(HOSTS)}"
        )
    if (
        name in ("isif", "simclr")
        and config.on_top
        and config.lambda_inter
        and config.inter.negatives == "bank"
    ):
        yield (
            f"inter.negatives=bank: objective={name} has no bank; use "
            "inter.negatives=batch"
        )
    if name in QUEUES and config.bank.form == "fused":
        yield (
            f"bank.form=fused: objective={name} has a queue and no bank, and the "
            "kernel is a bank's; use bank.form=auto"
        )
    if name == "supervised" and config.model.num_classes < 2:
        yield (
            f"objective=supervised with model.num_classes={config.model.num_classes}; "
            "give the number of classes, like --config.model.num_classes=10"
        )
    if name not in ("supervised", "deepcluster") and config.model.num_classes:
        yield (
            f"model.num_classes={config.model.num_classes} is for "
            "objective=supervised and deepcluster alone; use 0 with "
            f"objective={name}"
        )
    if name != "clusters" and config.clusters.isif_epochs:
        yield (
            f"clusters.isif_epochs={config.clusters.isif_epochs} is for objective="
            f"clusters alone; use 0 with objective={name}"
        )
    count = config.clusters.count
    if name == "deepcluster" and config.model.num_classes != count:
        yield (
            f"objective=deepcluster with model.num_classes={config.model.num_classes} "
            f"and clusters.count={count}: its classifier tells the clusters apart; "
            f"give the same number, like --config.model.num_classes={count}"
        )
    if name in ("clusters", "deepcluster") and count < 2:
        yield (
            f"clusters.count={count} leaves objective={name} nothing to tell "
            "apart; use 2 or more"
        )
    if name == "and" and config.num_rounds < 2:
        yield (
            f"objective=and with num_rounds={config.num_rounds} would be IR, as "
            "neighbours are found when a further round begins; give "
            "--config.num_rounds=5"
        )
    if name == "isif_augmented" and config.batch_size < 3:
        yield (
            f"objective=isif_augmented with batch_size={config.batch_size} has no "
            "pair of other instances to make a negative of; use at least 3"
        )
    model, towers = config.model, "lab" if name == "cmc" else "one"
    if model.towers != towers:
        yield (
            f"model.towers={model.towers} does not go with objective={name}; use "
            f"model.towers={towers}"
        )
    if model.towers != "one" and model.weights:
        yield (
            f"model.weights={model.weights} is of one network, and model.towers="
            f"{model.towers} are two; use model.weights=''"
        )
    if name == "cmc" and (model.width % 2 or model.embedding_dim % 2):
        yield (
            f"model.width={model.width} and model.embedding_dim={model.embedding_dim} "
            "are halved for objective=cmc's two towers; give even numbers"
        )


def size_problems(config: ConfigDict, num_examples: int) -> Iterator[str]:
    """Yield what is wrong with them for so many training images."""
    if config.objective in QUEUES and config.queue.size > num_examples:
        yield (
            f"queue.size={config.queue.size} exceeds the "
            f"{counted(num_examples, 'training image')}; use queue.size="
            f"{_short_queue(config.batch_size, num_examples)}"
        )
    clustered = config.objective in ("clusters", "deepcluster")
    if clustered and config.clusters.count > num_examples:
        yield (
            f"clusters.count={config.clusters.count} exceeds the "
            f"{counted(num_examples, 'training image')}; use at most {num_examples}"
        )


def warnings(config: ConfigDict, num_examples: int) -> Iterator[str]:
    """Yield what may cost a system its numbers, for so many training images."""
    name, count = config.objective, config.clusters.count
    steps = num_examples // config.batch_size
    if name == "deepcluster" and count > CLUSTERS_A_STEP * steps > 0:
        yield (
            f"clusters.count={count}: the classifier begins anew each epoch, and "
            f"hardly learns so many in {counted(steps, 'step')}; use some "
            f"{CLUSTERS_A_STEP * steps} or fewer, for model.num_classes too, or "
            "smaller batches"
        )
    if name == "clusters" and config.num_rounds * config.num_epochs == 1:
        yield (
            "num_epochs=1: objective=clusters is IR in its first epoch, whose bank is "
            "at random yet; give 2 or more"
        )
    if name == "ir_nce" and config.nce.z_momentum == 1:
        yield (
            "nce.z_momentum=1 keeps the Z of the first batch, as released, when the "
            "bank is at random yet: in short runs it learns next to nothing so; 0.99 "
            "follows the bank"
        )
    if name == "eir_moco" and config.queue.key_momentum < SLOW_KEYS:
        yield (
            f"queue.key_momentum={config.queue.key_momentum}: where keys move so fast, "
            "objective=eir_moco may drive all embeddings from the queue and learn "
            f"nothing else; use {SLOW_KEYS}, as released"
        )
    if name not in QUEUES:
        return
    if config.batch_norm.groups == 1:
        yield (
            f"batch_norm.groups=1: that objective={name} shuffles the batch before it "
            "makes keys hides nothing from batch norm over all of it; use 2, or as "
            "many as the devices"
        )
    size, batch = config.queue.size, config.batch_size
    if size % batch:
        below = size // batch * batch
        words = f"{below} or {below + batch}" if below else f"{batch}"
        yield (
            f"queue.size={size} is no multiple of batch_size={batch}: the keys of some "
            f"batches are replaced a part at a time; {words} would be one"
        )
    share = own_keys(size, batch, num_examples)
    if share > OWN_KEYS:
        short = _short_queue(batch, num_examples)
        smaller = "" if short < size else ", and a smaller batch_size"
        yield (
            f"queue.size={size} is long for "
            f"{counted(num_examples, 'training image')}: {100 * share:.0f} % of them "
            f"find their own last key among the others'; use queue.size={short}"
            f"{smaller}"
        )


def own_keys(size: int, batch: int, num_examples: int) -> float:
    """Return the share of queries whose own last key is still in a queue of `size`.

    Their keys come so late in an epoch's order, and they so early in the next one's.
    """
    epoch = num_examples // batch * batch
    held = min(size, epoch)
    return held * (held + batch) / (2 * epoch * num_examples)


def _short_queue(batch: int, num_examples: int) -> int:
    """Return the longest queue of whole batches that holds few own keys, or one."""
    sizes = range(num_examples // batch * batch, batch, -batch)
    return next(
        (n for n in sizes if own_keys(n, batch, num_examples) <= OWN_KEYS), batch
    )


def training_split(
    config: ConfigDict, dataset: Dataset
) -> tuple[Split, np.ndarray | None]:
    """Return what is trained on, and its labels where the objective asks for them.

    Raises:
      UserError: it asks for labels, and there are none or more than it has classes; or
        for colours, and there are none.
    """
    if config.objective == "cmc" and is_grey(dataset.train.images[:GREY_AT]):
        raise UserError(
            f"the first train images of {dataset.name} are grey: objective="
            f"{config.objective} tells colours from lightness; use another, like iraug"
        )
    if config.objective != "supervised":
        return dataset.train, None
    labels, classes = dataset.train.labels, config.model.num_classes
    if labels is None or labels.max() < 0:
        raise UserError(
            f"the train images of {dataset.name} have no labels, which objective="
            f"{config.objective} needs; use another objective, like iraug"
        )
    if labels.max() >= classes:
        raise UserError(
            f"model.num_classes={classes} is less than the classes of "
            f"{dataset.name}; use {labels.max() + 1}"
        )
    split = labelled(dataset, "train")
    return split, split.labels
