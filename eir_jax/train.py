"""Training: one loop, read top to bottom."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from eir_jax import processes, sharding
from eir_jax.checkpoint import Checkpoints, Meta
from eir_jax.config import flatten, save_config
from eir_jax.data import folder, order, sources
from eir_jax.data.augment_device import make_batch_views, put_images
from eir_jax.data.pipeline import make_train_batches
from eir_jax.errors import UserError
from eir_jax.evaluation import health
from eir_jax.evaluation.embed import make_embed
from eir_jax.evaluation.knn import knn_accuracy
from eir_jax.evaluation.protocol import tag
from eir_jax.evaluation.tasks import knn_protocol, shared_protocol
from eir_jax.metrics import MetricsWriter, ProgressLine
from eir_jax.models.encoder import make_encoder
from eir_jax.optimizer import make_optimizer, make_schedule
from eir_jax.train_state import (
    TrainState,
    abstract_train_state,
    create_train_state,
)
from eir_jax.train_step import compile_train_step, make_train_step
from eir_jax.validate import validate, validate_sizes
from eir_jax.workdir import check_settings, own

EXIT_CODES: dict[int, int] = {signal.SIGTERM: 0, signal.SIGINT: 130}


def train_and_evaluate(config: ConfigDict, workdir: Path) -> int:
    """Train as `config` says, in `workdir`; go on from its newest whole checkpoint.

    Returns the exit status: 0 when finished or stopped by SIGTERM, 130 by SIGINT.

    Raises:
      UserError: for bad settings, data or checkpoints, and when a loss is not finite.
    """
    validate(config)
    settings = [f"{key}={value!r}" for key, value in flatten(config).items()]
    processes.check_equal("the settings", settings)
    with own(workdir):
        processes.check_shared(workdir)
        return _train_and_evaluate(config, workdir)


def _train_and_evaluate(config: ConfigDict, workdir: Path) -> int:
    check_settings(config, workdir)
    with processes.first_alone(config.data.source == "tfds"):  # one downloads
        dataset = sources.load(config.data)
    processes.check_equal("the training images", [dataset.train_hash])
    num_examples = len(dataset.train.images)
    mesh = sharding.make_mesh()
    validate_sizes(config, num_examples, mesh.size)
    steps_per_epoch = order.steps_per_epoch(num_examples, config.batch_size)
    num_steps = config.num_epochs * steps_per_epoch

    encoder = make_encoder(config)
    schedule = make_schedule(config, steps_per_epoch)
    tx = make_optimizer(config, steps_per_epoch)
    meta: Meta = {
        "num_examples": num_examples,
        "train_hash": dataset.train_hash,
        "config": config.to_dict(),
    }
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    if processes.is_main():
        folder.record(dataset, workdir, resumes=bool(checkpoints.steps))
    state = _restore_or_create(config, encoder, tx, meta, mesh, checkpoints)
    start_step = int(state.step)
    views_of, resident = None, {}
    if config.data.pipeline == "device":
        views_of = make_batch_views(config, mesh)
        resident["images"] = put_images(dataset.train.images, config, mesh)
    train_step = compile_train_step(
        make_train_step(config, encoder, tx, schedule, num_examples, mesh),
        state,
        mesh,
        views_of,
    )
    embed = make_embed(config, encoder, mesh)
    if processes.is_main():
        save_config(config, workdir / "config.json")

    print(_summary(config, dataset, state, mesh, num_steps))
    for note in dataset.notes:
        print(note)
    if start_step >= num_steps:
        print(f"{workdir} is already trained: {start_step} of {num_steps} steps")
        checkpoints.close()
        return 0
    if start_step:
        print(f"going on from the checkpoint of step {start_step}")
    writer = MetricsWriter(workdir, start_step)
    progress = ProgressLine("training", num_steps, start_step)
    pending: list[tuple[int, Any]] = []  # steps whose metrics are still on the device
    logged_at, logged_step = time.monotonic(), start_step

    def log_pending() -> None:
        """Fetch the pending metrics, check every one, write those due."""
        nonlocal logged_at, logged_step
        for step, metrics in jax.device_get(pending):
            _check_finite(metrics, step, steps_per_epoch, checkpoints)
            if step % config.log_every_steps == 0 or step == num_steps:
                now = time.monotonic()
                rate = (step - logged_step) * config.batch_size / (now - logged_at)
                logged_at, logged_step = now, step
                record = {name: float(value) for name, value in metrics.items()}
                writer.write(
                    step,
                    {"epoch": step / steps_per_epoch, **record}
                    | {"images_per_second": round(rate, 1)},
                )
                progress.update(step, note=_note(record, rate))
        pending.clear()

    stopped = None
    rows = sharding.process_rows(config.batch_size, mesh)
    batches = make_train_batches(
        dataset.train.images, config, start_step, num_steps, rows
    )
    with (
        closing(writer),
        closing(progress),
        closing(batches),
        _stop_requests() as requests,
    ):
        on_device = sharding.put_batches(batches, mesh)
        for step, batch in enumerate(on_device, start_step + 1):
            state, metrics = train_step(state, batch | resident)
            # The step before is done or nearly so: fetching it stalls nothing.
            if pending and pending[-1][0] % config.log_every_steps == 0:
                log_pending()
            pending.append((step, metrics))
            progress.update(step)
            stopped = processes.agreed_stop(requests, step)
            if step % steps_per_epoch and step != num_steps and stopped is None:
                continue

            epoch, within = divmod(step, steps_per_epoch)
            last = step == num_steps
            every = config.eval_every_epochs
            knn = None
            if every and not within and (last or epoch % every == 0):
                log_pending()
                evaluation = _evaluate(config, embed, state, dataset, mesh)
                knn = evaluation.get("knn")
                writer.write(step, {"epoch": epoch, **evaluation})
                progress.say(f"epoch {epoch}: {_words(evaluation)}")
            due = not within and epoch % config.checkpoint_every_epochs == 0
            if due or last or knn or stopped is not None:
                log_pending()
                checkpoints.save(state, meta, max_k(knn))
                logged_at, logged_step = time.monotonic(), step
            if stopped is not None:
                break
        log_pending()
        checkpoints.close()
    if stopped is not None and step < num_steps:
        print(f"stopped at step {step} of {num_steps}, saved; the same command goes on")
        return EXIT_CODES[stopped]
    return 0


def max_k(knn: dict[str, float] | None) -> float | None:
    """Return the accuracy that ranks checkpoints: the one of the largest k."""
    return None if not knn else knn[max(knn, key=int)]


def _restore_or_create(
    config, encoder, tx, meta: Meta, mesh, checkpoints: Checkpoints
) -> TrainState:
    num_examples = meta["num_examples"]

    def abstract(saved: Meta) -> TrainState:
        for key, words in (("num_examples", "number"), ("train_hash", "content")):
            if saved[key] != meta[key]:
                raise UserError(
                    f"the checkpoints in {checkpoints.directory} are of other training "
                    f"images: their {words} was {saved[key]}, here it is {meta[key]}; "
                    "give the data they were trained on, or another --workdir"
                )
        return abstract_train_state(config, encoder, tx, num_examples, mesh)

    found = checkpoints.restore_newest(abstract)
    if found is None:
        if checkpoints.steps:
            raise UserError(
                f"every checkpoint in {checkpoints.directory} is damaged; move the "
                "folder away to train from the beginning"
            )
        return create_train_state(config, encoder, tx, num_examples, mesh)
    checkpoints.set_aside(after=int(found[0].step))
    return found[0]


def _evaluate(config, embed, state, dataset, mesh) -> dict[str, Any]:
    """Return `knn` by k, where both splits have labels, and `health` of train."""
    train, test = dataset.train, dataset.test
    gallery = embed(state, train.images).embedding
    rows = jnp.asarray(gallery[: health.MAX_ROWS])
    std = float(health.embedding_std(rows))
    found: dict[str, Any] = {
        "health": {
            "rank_me": float(health.rank_me(rows)),
            "uniformity": float(health.uniformity(rows)),
            "embedding_std": std,
        }
    }
    if std < health.COLLAPSED_STD:
        found["warning"] = health.collapse_warning(std)
    if test is not None and train.labels is not None and test.labels is not None:
        accuracy = knn_accuracy(
            embed(state, test.images).embedding,
            test.labels,
            gallery,
            train.labels,
            k=config.knn.k,
            temperature=config.knn.temperature,
            mesh=mesh,
        )
        found["knn"] = {str(k): value for k, value in accuracy.items()}
        shared = shared_protocol(dataset, config)
        found["protocol"] = tag(knn_protocol(config), shared)["hash"]
    return found


def _check_finite(metrics, step: int, steps_per_epoch: int, checkpoints) -> None:
    for name in sorted(metrics, key=lambda name: not name.startswith("loss_")):
        if not math.isfinite(metrics[name]):
            checkpoints.wait()
            kept = checkpoints.steps
            last = (
                f"the checkpoint of step {kept[0]} is kept"
                if kept
                else ("there is no checkpoint yet")
            )
            raise UserError(
                f"{name} is {metrics[name]} at step {step} (epoch "
                f"{step / steps_per_epoch:.1f}); {last}; try a lower "
                "optimizer.learning_rate"
            )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT, for the loop to end after its step; twice kills.

    Among several processes SIGTERM is JAX's, which has all end after the same step.
    """
    requests: list[int] = []

    def note(number, frame):
        requests.append(number)
        signal.signal(number, signal.SIG_DFL)
        processes.request_stop()

    ours = EXIT_CODES if processes.count() == 1 else (signal.SIGINT,)
    before = {number: signal.signal(number, note) for number in ours}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(record: dict[str, float], rate: float) -> str:
    terms = "  ".join(
        f"{name.removeprefix('loss_')} {value:.3f}"
        for name, value in record.items()
        if name.startswith("loss")
    )
    return f"{terms}  {rate:,.0f} images/s"


def _words(evaluation: dict[str, Any]) -> str:
    parts = [f"RankMe {evaluation['health']['rank_me']:.1f}"]
    if "knn" in evaluation:
        knn = evaluation["knn"].items()
        parts = ["kNN " + ", ".join(f"{v:.1%} (k = {k})" for k, v in knn), *parts]
    if "warning" in evaluation:
        parts.append(f"WARNING: {evaluation['warning']}")
    return "; ".join(parts)


def _summary(config, dataset, state, mesh, num_steps: int) -> str:
    size = config.data.image_size
    test = "no test" if dataset.test is None else f"{len(dataset.test.images):,} test"
    params = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{mesh.size} {jax.devices()[0].platform} device{'s' * (mesh.size > 1)}"
    if processes.count() > 1:
        devices += f" of {processes.count()} processes"
    return (
        f"{dataset.name}: {len(dataset.train.images):,} training and {test} images of "
        f"{size}x{size}, {dataset.content_hash[:12]}\n"
        f"{config.model.name}, width {config.model.width}: {params:,} parameters on "
        f"{devices}; {config.num_epochs} epochs, "
        f"{num_steps:,} steps of {config.batch_size}"
    )
