"""Time a training step of each system of a grid, on the device at hand.

    python benchmarks/systems.py                          # --grid=systems, the pilot's
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 \
        python benchmarks/systems.py --grid=on_top        # on one core

Printed is the least and the median of `--steps` steps in ms, of random images; what a
system does once an epoch or round (clusters, neighbours) is not among them. A row that
trains nothing, or from labels, is left out.
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
        if not config.num_epochs or config.objective == "supervised":
            continue
        found[name] = measure(config, args.rows, args.steps)
        if not args.json:
            print(f"{name:20} {found[name][0]:8.1f} {found[name][1]:8.1f}", flush=True)
    if args.json:
        print(json.dumps(vars(args) | {"least and median ms": found}, indent=2))


def measure(config, rows: int, steps: int) -> tuple[float, float]:
    """Return the least and the median of a step's ms, the first two left out."""
    import jax

    from benchmarks.our_step import make_ours, random_images
    from eir_jax.system import sharding
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
    return round(min(times[2:]), 1), round(statistics.median(times[2:]), 1)


if __name__ == "__main__":
    cli.run(main)
