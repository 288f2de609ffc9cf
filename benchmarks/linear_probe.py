"""One sweep of 12 settings against 12 runs of the same code, one setting each.

    python benchmarks/linear_probe.py [--train=10000] [--epochs=50] [--json]

Every run is `linear_probe.fit` as the probe calls it, plus the held-out accuracy, in
one process, compiled and warmed before. The two take turns; medians are printed.
`ratio` is of whole runs; `epoch_ratio` leaves out what a run does before its second
epoch (statistics, standardising). The default size takes less than a minute on 2
cores; CIFAR-10 is --train=50000.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from eir_jax.data.held_out import split_held_out
from eir_jax.evaluation.classifiers import ProbeSettings, accuracy, fit
from eir_jax.system import sharding


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=10_000, help="images")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=ProbeSettings.num_epochs)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs must be 2 or more: the first is not timed")

    rng = np.random.default_rng(0)
    label = (np.arange(args.train) % args.classes).astype(np.int32)
    centres = rng.normal(size=(args.classes, args.dim)) * 0.2
    feature = (centres[label] + rng.normal(size=(args.train, args.dim))).astype("f")
    settings = ProbeSettings(num_epochs=args.epochs, batch_size=args.batch_size)
    grid = list(itertools.product(settings.learning_rates, settings.weight_decays))
    fitted, held_out = split_held_out(label, settings.held_out, settings.seed)
    mesh = sharding.make_mesh(jax.local_devices()[:1])

    epochs: dict[int, list[float]] = {1: [], len(grid): []}  # seconds of one

    def train(grid):
        ends = []
        done = fit(
            feature,
            label,
            fitted,
            grid,
            settings=settings,
            mesh=mesh,
            progress=lambda epoch: ends.append(time.perf_counter()),
        )
        epochs[len(grid)].append((ends[-1] - ends[0]) / (args.epochs - 1))
        return accuracy(done, feature[held_out], label[held_out])[0]

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    first = seconds(lambda: train(grid)), seconds(lambda: train(grid[:1]))
    difference = np.abs(train(grid) - [train([s])[0] for s in grid]).max()
    sweeps, singles = [], []
    for times in epochs.values():
        times.clear()
    for _ in range(args.repeats):
        sweeps.append(seconds(lambda: train(grid)))
        singles.append(seconds(lambda: [train([s]) for s in grid]))
    sweep, single = statistics.median(sweeps), statistics.median(singles)
    epoch = {n: statistics.median(times) for n, times in epochs.items()}
    # Two products of [batch, dim] x [dim, classes] a step and setting, 2 flops each.
    steps = len(fitted) // settings.batch_size
    gflop = 4 * steps * settings.batch_size * args.dim * args.classes / 1e9
    result = {
        "device": jax.devices()[0].device_kind,
        "size": f"{args.train} x {args.dim}, {args.classes} classes",
        "epochs": args.epochs,
        "settings": len(grid),
        "sweep_ms": round(1e3 * sweep, 1),
        "singles_ms": round(1e3 * single, 1),
        "ratio": round(single / sweep, 2),
        "epoch_sweep_ms": round(1e3 * epoch[len(grid)], 2),
        "epoch_single_ms": round(1e3 * epoch[1], 2),
        "epoch_ratio": round(len(grid) * epoch[1] / epoch[len(grid)], 2),
        "epoch_sweep_gflop_per_s": round(len(grid) * gflop / epoch[len(grid)], 1),
        "epoch_single_gflop_per_s": round(gflop / epoch[1], 1),
        "matmul_gflop_per_s": round(_matmul_rate(), 1),
        "compile_sweep_ms": round(1e3 * (first[0] - sweep), 1),
        "compile_single_ms": round(1e3 * (first[1] - single / len(grid)), 1),
        "held_out_accuracy_difference": float(difference),
    }
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:30} {value}")


def _matmul_rate(n: int = 2048) -> float:
    """Return what the device reaches in one large float32 product, in Gflop/s."""
    x = jax.device_put(np.ones((n, n), np.float32))
    product = jax.jit(lambda x: jax.numpy.dot(x, x, precision="highest"))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times) / 1e9


if __name__ == "__main__":
    main()
