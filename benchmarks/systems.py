"""Time a training step of each system of a grid, on the device at hand.

    python benchmarks/systems.py                          # --grid=systems, the pilot's
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 \
        python benchmarks/systems.py --grid=on_top        # on one core

Printed is the least and the median of `--steps` steps in ms, of random images, and then
the least of three of what a system does once an epoch or round: clusters, neighbours,
with the features of all images where it looks at them. A row that trains nothing is
left out.
"""

import argparse
import json
import statistics
import time

from eir_jax.system import cli


def main(argv: list[str]) -> None:
    """Run the benchmark that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=cli.path, default="pilot", help="a name")
    parser.add_argument("--grid", default="systems", help="a name, or a file")
    parser.add_argument("--rows", type=int, default=10_000, help="N")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    from eir_jax.experiments.grid import load_grid
    from eir_jax.system.config import load_config

    found = {}
    for name, settings in load_grid(args.grid).settings.items():
        words = [f"--config.{key}={value}" for key, value in settings.items()]
        config = load_config(args.config, [*words, "--config.data.path=none"])
        if not config.num_epochs:
            continue
        found[name] = times = measure(config, args.rows, args.steps)
        if not args.json:
            print(f"{name:20}", *(f"{ms:8.1f}" for ms in times), flush=True)
    if args.json:
        print(json.dumps(vars(args) | {"ms, step and period": found}, indent=2))


def measure(config, rows: int, steps: int) -> list[float]:
    """Return the least and the median of a step's ms, the first two left out.

    And the least of what comes once an epoch or round, where something does.
    """
    import jax

    from benchmarks.our_step import make_ours, random_images
    from eir_jax.evaluation.embed import make_embed
    from eir_jax.system import sharding
    from eir_jax.training.periods import make_refresh
    from eir_jax.training.step import compile_train_step

    images = random_images(rows, config.data.image_size)
    ours = make_ours(config, images, jax.devices()[0])
    mesh, state = ours.parts.mesh, ours.state
    take = compile_train_step(ours.step, state, mesh, ours.views_of)
    batches = sharding.put_batches(ours.batches, mesh)
    times = []
    for _ in range(steps + 2):
        batch = next(batches) | ours.resident
        start = time.perf_counter()
        state, _ = take(state, batch)
        jax.block_until_ready(state)
        times.append(1000 * (time.perf_counter() - start))
    found = [min(times[2:]), statistics.median(times[2:])]
    refresh = make_refresh(ours.parts, images, make_embed(config, mesh))
    if refresh:
        times = []
        for period in (1, 1, 1, 1):  # not 0, in which a bank is at random yet
            start = time.perf_counter()
            state = refresh(state, period, lambda note: None)
            jax.block_until_ready(state)
            times.append(1000 * (time.perf_counter() - start))
        found.append(min(times[1:]))
    return [round(ms, 1) for ms in found]


if __name__ == "__main__":
    cli.run(main)
