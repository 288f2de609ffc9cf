"""Training: one loop, read top to bottom."""

import dataclasses
import math
import os
import shlex
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.data import order, sources
from eir_jax.data.augment_device import put_images
from eir_jax.data.dataset import Dataset
from eir_jax.data.picture_record import record
from eir_jax.data.pipeline import Images, make_train_batches
from eir_jax.evaluation.allowed import remarks
from eir_jax.evaluation.embed import Embed, make_embed
from eir_jax.evaluation.health import pixels_warning
from eir_jax.objectives.objective import Objective
from eir_jax.objectives.systems import training_split, warnings
from eir_jax.run.checkpoint import Checkpoints, Meta
from eir_jax.run.metrics import MetricsWriter
from eir_jax.run.record import RunRecord
from eir_jax.run.state import TrainState
from eir_jax.run.validate import (
    check_data_there,
    profiled_steps,
    suggestions,
    validate,
    validate_sizes,
)
from eir_jax.run.workdir import check_settings, own
from eir_jax.system import interruption, processes, sharding
from eir_jax.system.config import flatten, save_config
from eir_jax.system.errors import UserError, enough_memory
from eir_jax.system.progress import ProgressLine
from eir_jax.system.startup import Startup
from eir_jax.system.words import counted
from eir_jax.training.parts import Parts, make_parts
from eir_jax.training.periods import (
    Refresh,
    batches_by_period,
    groups_of,
    make_refresh,
)
from eir_jax.training.profiling import StepProfile
from eir_jax.training.start import begin
from eir_jax.training.step import TrainStep, skip_step
from eir_jax.training.watch import best_by, evaluate, words_of

# Of a run that is not finished: a scheduler, whose SIGTERM is, is to start it again.
EXIT_CODES: dict[int, int] = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGINT: 130}


def train_and_evaluate(
    config: ConfigDict, workdir: Path, startup: Startup | None = None
) -> int:
    """Train as `config` says, in `workdir`; go on from its newest whole checkpoint.

    `startup`, which has been counting, is told of the first step. Returns the exit
    status: 0 when finished; stopped before, 75 (EX_TEMPFAIL: to be started again) by
    SIGTERM, 130 by SIGINT.

    Raises:
      UserError: for bad settings, data or checkpoints, and when a loss is not finite.
    """
    validate(config)
    check_data_there(config.data)
    settings = [f"{key}={value!r}" for key, value in flatten(config).items()]
    processes.check_equal("the settings", settings)
    with (
        own(workdir),
        enough_memory(_memory_advice(config)),
        interruption.ending_with(EXIT_CODES),
    ):
        processes.check_shared(workdir)
        return _train_and_evaluate(config, workdir, startup)


def _train_and_evaluate(
    config: ConfigDict, workdir: Path, startup: Startup | None
) -> int:
    check_settings(config, workdir)
    with processes.first_alone(config.data.source == "tfds"):  # one downloads
        dataset = sources.load(config.data)
    processes.check_equal("the training images", [dataset.train_hash])
    train, labels = training_split(config, dataset)
    num_examples = len(train.images)
    mesh = sharding.make_mesh()
    validate_sizes(config, num_examples, mesh.size)
    steps_per_epoch = order.steps_per_epoch(num_examples, config.batch_size)

    parts = make_parts(config, num_examples, mesh)
    meta: Meta = {
        "num_examples": num_examples,
        "train_hash": dataset.train_hash,
        "config": config.to_dict(),
        "skipped": [],  # steps whose batch was left out
    }
    round_steps = config.num_epochs * steps_per_epoch
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        config.keep_checkpoints,
        keep_every=round_steps if config.num_rounds > 1 else 0,
    )
    if processes.is_main():
        record(dataset, workdir, resumes=bool(checkpoints.steps))
    resident = {}
    if config.data.pipeline == "device":
        resident["images"] = put_images(train.images, config, mesh)
    embed = make_embed(config, mesh)
    run = Run(
        config=config,
        workdir=workdir,
        dataset=dataset,
        mesh=mesh,
        steps_per_epoch=steps_per_epoch,
        round_steps=round_steps,
        num_steps=config.num_rounds * round_steps,
        train_step=parts.compiled_step(),
        refresh=make_refresh(parts, train.images, embed),
        refresh_steps=(
            round_steps if parts.objective.every == "round" else steps_per_epoch
        ),
        images=train.images,
        labels=labels,
        objective=parts.objective,
        resident=resident,
        embed=embed,
        checkpoints=checkpoints,
        meta=meta,
    )
    while True:
        state = _restore_or_create(parts, meta, checkpoints, dataset)
        if (taken := int(state.step)) > run.num_steps:
            raise UserError(
                f"{workdir} is trained to step {taken}, beyond the "
                f"{run.num_steps} of num_epochs={config.num_epochs}, "
                f"num_rounds={config.num_rounds}; give those it was trained with, or "
                "another --workdir"
            )
        if processes.is_main():
            save_config(config, workdir / "config.json")
        try:
            return _train_from(state, run, startup)
        except NotFiniteError as found:
            checkpoints.wait()
            skipped = meta["skipped"]
            if len(skipped) >= config.skip_not_finite:
                raise UserError(_advice(found, checkpoints.steps, skipped)) from None
            skipped.append(found.step)
            startup = None
            print(f"warning: {found}; going back, to leave out that batch", flush=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: ConfigDict
    workdir: Path
    dataset: Dataset
    mesh: Mesh
    steps_per_epoch: int
    round_steps: int
    num_steps: int
    train_step: TrainStep
    refresh: Refresh | None
    refresh_steps: int
    """From one refresh to the next."""
    images: Images
    """Those trained on, and their labels where the objective asks for them."""
    labels: np.ndarray | None
    objective: Objective
    resident: dict[str, jax.Array]
    """What every batch needs and stays on the devices: the images, or nothing."""
    embed: Embed
    checkpoints: Checkpoints
    meta: Meta


class NotFiniteError(Exception):
    """A metric of a step is not finite."""

    def __init__(self, name: str, value: float, step: int, epoch: float):
        super().__init__(f"{name} is {value} at step {step} (epoch {epoch:.1f})")
        self.step = step


def _train_from(state: TrainState, run: Run, startup: Startup | None) -> int:
    """Take the steps that are left; return the exit status.

    Raises:
      NotFiniteError: at the first step with a metric that is not finite.
    """
    config, workdir, checkpoints = run.config, run.workdir, run.checkpoints
    num_steps, steps_per_epoch = run.num_steps, run.steps_per_epoch
    start_step = int(state.step)
    print(_summary(run, state))
    for note in (*run.dataset.notes, *remarks(run.dataset, config)):
        print(note)
    for warning in warnings(config, len(run.images)):
        print(f"warning: {warning}")
    for words in suggestions(config, len(run.images)):
        print(words)
    began = startup.began if startup else time.monotonic()
    run_record = RunRecord(workdir, start_step, began)
    if num_steps == 0 and not checkpoints.steps:
        checkpoints.save(state, run.meta, None)
        run_record.write(0)
        print("num_epochs=0: the untrained encoder is saved")
    elif start_step >= num_steps:
        print(f"{workdir} is already trained: {start_step} of {num_steps} steps")
    if start_step >= num_steps:
        checkpoints.close()
        return 0
    if start_step:
        print(f"going on from the checkpoint of step {start_step}")
    skipped = run.meta["skipped"]
    writer = MetricsWriter(workdir, start_step)
    progress = ProgressLine(
        "training", num_steps, start_step, config.progress_every_seconds
    )
    profile = StepProfile(profiled_steps(config), workdir, start_step, progress.say)
    pending: list[tuple[int, Any]] = []  # steps whose metrics are still on the device
    logged_at, logged_step = time.monotonic(), start_step

    def log_pending() -> None:
        """Fetch the pending metrics, check every one, write those due."""
        nonlocal logged_at, logged_step
        for step, metrics in jax.device_get(pending):
            _check_finite(metrics, step, step / steps_per_epoch)
            if step % config.log_every_steps == 0 or step == num_steps:
                now = time.monotonic()
                rate = (step - logged_step) * config.batch_size / (now - logged_at)
                logged_at, logged_step = now, step
                record = {name: float(value) for name, value in metrics.items()}
                if skipped:
                    record["skipped_batches"] = sum(s <= step for s in skipped)
                writer.write(
                    step,
                    {"epoch": step / steps_per_epoch, **record}
                    | {"images_per_second": round(rate, 1)},
                )
                progress.update(step, note=_note(record, rate))
        pending.clear()

    stopped, evaluation = None, None

    def make_batches(first: int, end: int):
        how = (run.images, config, run.objective.slots, first, end)
        rows = sharding.process_rows(config.batch_size, run.mesh)
        groups = groups_of(run.objective, state, len(run.images))
        return make_train_batches(*how, rows, run.labels, groups)

    period_steps = run.refresh_steps if run.objective.uniform_over else num_steps
    batches = batches_by_period(
        make_batches, start_step, num_steps, period_steps, run.mesh
    )
    with (
        closing(writer),
        closing(progress),
        closing(batches),
        closing(profile),
        interruption.stop_requests(EXIT_CODES) as requests,
    ):
        for step in range(start_step + 1, num_steps + 1):
            period, within = divmod(step - 1, run.refresh_steps)
            if run.refresh and not within:
                state = run.refresh(state, period, progress.show)
            batch = next(batches)
            if step in skipped:
                state = skip_step(state)
            else:
                # The step before is done or nearly so: fetching it stalls nothing.
                state, metrics = profile.take(
                    run.train_step, state, batch | run.resident, step
                )
                if pending and pending[-1][0] % config.log_every_steps == 0:
                    log_pending()
                pending.append((step, metrics))
            if startup and step == start_step + 1:
                jax.block_until_ready(state.step)
                progress.say(startup.words())
            progress.update(_finished(pending, step))
            stopped = processes.agreed_stop(requests, step)
            if step % steps_per_epoch and step != num_steps and stopped is None:
                continue

            epoch, within = divmod(step, steps_per_epoch)
            last = step == num_steps
            every = config.eval_every_epochs
            score, protocol = None, ""
            if every and not within and (last or epoch % every == 0):
                log_pending()
                evaluation = evaluate(config, run.dataset, run.mesh, run.embed, state)
                score, protocol = best_by(evaluation), evaluation.get("protocol", "")
                writer.write(step, {"epoch": epoch, **evaluation})
                progress.say(f"epoch {epoch}: {words_of(evaluation)}")
            ends_round = step % run.round_steps == 0  # as the last step does
            due = not within and epoch % config.checkpoint_every_epochs == 0
            if due or ends_round or score is not None or stopped is not None:
                log_pending()
                checkpoints.save(state, run.meta, score, protocol)
                run_record.write(step)
                logged_at, logged_step = time.monotonic(), step
            if stopped is not None:
                break
        log_pending()
        checkpoints.close()
    if stopped is not None and step < num_steps:
        print(f"stopped at step {step} of {num_steps}, saved; the same command goes on")
        return EXIT_CODES[stopped]
    if words := pixels_warning(evaluation["health"] if evaluation else {}):
        print(f"warning: {words}")
    at = shlex.quote(str(workdir))
    print(f"trained: `python -m eir_jax.evaluate --workdir={at}` judges it,")
    print(f"`python -m eir_jax.embed --workdir={at} --images=DIR --out=E.npz` embeds")
    return 0


def _restore_or_create(
    parts: Parts, meta: Meta, checkpoints: Checkpoints, dataset: Dataset
) -> TrainState:
    def abstract(saved: Meta) -> TrainState:
        for key, words, same in (
            ("num_examples", "number", saved["num_examples"] == meta["num_examples"]),
            ("train_hash", "content", dataset.trains_as(saved["train_hash"])),
        ):
            if not same:
                raise UserError(
                    f"the checkpoints in {checkpoints.directory} are of other training "
                    f"images: their {words} was {saved[key]}, here it is {meta[key]}; "
                    "give the data they were trained on, or another --workdir"
                )
        return parts.abstract_state()

    found = checkpoints.restore_newest(abstract)
    if found is None:
        if checkpoints.steps:
            raise UserError(
                f"every checkpoint in {checkpoints.directory} is damaged; move the "
                "folder away to train from the beginning"
            )
        return begin(parts, dataset)
    state, saved = found
    checkpoints.set_aside(after=int(state.step))
    meta["skipped"] = sorted({*meta["skipped"], *saved.get("skipped", ())})
    return state


def _check_finite(metrics: dict[str, Any], step: int, epoch: float) -> None:
    for name in sorted(metrics, key=lambda name: not name.startswith("loss_")):
        if not math.isfinite(metrics[name]):
            raise NotFiniteError(name, metrics[name], step, epoch)


def _memory_advice(config: ConfigDict) -> str:
    """Say what can be lowered where training needs more memory than there is."""
    words = f"lower batch_size={config.batch_size}, model.width={config.model.width}"
    if config.bank.form != "streamed":
        words += ", or set bank.form=streamed"
    if config.data.pipeline == "device":
        words += ", or data.placement=sharded where there are several devices"
        words += ", or data.pipeline=tf.data"
    return f"{words}; what was saved is kept"


def _advice(found: NotFiniteError, kept: list[int], skipped: list[int]) -> str:
    """Say where a loss was not finite, what is left, and what can be done."""
    words = [str(found)]
    if skipped:
        words.append(f"the batches of steps {skipped} were left out before")
    words.append(
        f"the checkpoint of step {kept[0]} is kept"
        if kept
        else "there is no checkpoint yet"
    )
    words.append(
        "try a lower optimizer.learning_rate, or leave such batches out with "
        f"--config.skip_not_finite={len(skipped) + 10}"
    )
    return "; ".join(words)


def _finished(pending: Sequence[tuple[int, Any]], step: int) -> int:
    """Return the last step that the devices are done with: dispatch runs ahead."""
    for at, metrics in reversed(pending):
        if all(array.is_ready() for array in jax.tree.leaves(metrics)):
            return at
    return pending[0][0] - 1 if pending else step


def _note(record: dict[str, float], rate: float) -> str:
    terms = "  ".join(
        f"{name.removeprefix('loss_')} {value:.3f}"
        for name, value in record.items()
        if name.startswith("loss")
    )
    return f"{terms}  {rate:,.0f} images/s"


def _summary(run: Run, state: TrainState) -> str:
    config, dataset, mesh = run.config, run.dataset, run.mesh
    size = config.data.image_size
    train = counted(len(dataset.train.images), "training image")
    test = counted(len(dataset.test.images) if dataset.test else 0, "test image")
    params = sum(x.size for x in jax.tree.leaves(state.params))
    devices = counted(mesh.size, f"{jax.devices()[0].platform} device")
    if processes.count() > 1:
        devices += f" of {processes.count()} processes"
    terms = " + ".join(name.removeprefix("loss_") for name in run.objective.weights(0))
    rounds = f"{config.num_rounds} rounds of " if config.num_rounds > 1 else ""
    return (
        f"{dataset.name}: {train}, {test}, {size}x{size}, {dataset.content_hash[:12]}\n"
        f"{config.model.name}, width {config.model.width}: {params:,} parameters on "
        f"{devices}; {rounds}{counted(config.num_epochs, 'epoch')}, "
        f"{counted(run.num_steps, 'step')} of {config.batch_size}\n"
        f"{config.objective}: {terms}"
    )
