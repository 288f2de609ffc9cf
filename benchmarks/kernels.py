"""List the operations of a training step that take the most time, from a profile.

    python benchmarks/kernels.py                       # profiles ten steps itself
    python benchmarks/kernels.py --trace RUN/profile   # of --config.profile_steps=A:B
    python benchmarks/kernels.py --model resnet18 --width 64 --top 20 --json

On a GPU an operation is a kernel, and the kinds of them are summed up; on a CPU one of
XLA's, named as in the compiled program. Printed are milliseconds, summed over the steps
of the profile, the share of all that the device or the threads did, and how often it
ran. Threads overlap: on a CPU the sum may exceed the wall time.
"""

import argparse
import collections
import json
import tempfile
from pathlib import Path
from typing import Any

from eir_jax.run.validate import CHOICES
from eir_jax.system import cli
from eir_jax.system.errors import UserError

STEPS = 10
# Of a GPU's kernels, by the first words that are in the name.
KINDS = {
    "copy": ("Mem",),
    "convolution": ("fprop", "dgrad", "wgrad", "cudnn", "nhwc", "nchw", "bf16_s16816f"),
    "product": ("gemm",),
    "sum": ("reduce",),
    "transposition": ("transpose",),
    "other": ("",),
}


def main(argv: list[str]) -> None:
    """Run the benchmark that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="a folder with a profile")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=50_000, help="N")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--model", default="resnet10", choices=CHOICES["model.name"])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.trace:
        operations = read_trace(args.trace)
    else:
        with tempfile.TemporaryDirectory() as folder:
            trace_steps(args, folder)
            operations = read_trace(Path(folder))
    total = sum(ms for ms, _ in operations.values())
    found = [
        {"ms": round(ms, 3), "share": round(ms / total, 4), "runs": runs, "name": name}
        for name, (ms, runs) in list(operations.items())[: args.top]
    ]
    if args.json:
        flags = vars(args) | {"trace": args.trace and str(args.trace)}
        print(
            json.dumps(
                flags
                | {
                    "total ms": total,
                    "kinds": by_kind(operations),
                    "operations": found,
                },
                indent=2,
            )
        )
        return
    print(f"{total:,.1f} ms in {len(operations)} operations")
    for kind, (ms, runs) in by_kind(operations).items():
        print(f"{ms:10,.2f} ms {ms / total:6.1%} x{runs:<5} {kind}")
    print()
    for row in found:
        print(
            f"{row['ms']:10,.2f} ms {row['share']:6.1%} x{row['runs']:<5} {row['name']}"
        )


def by_kind(operations: dict[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """Return kind -> (milliseconds, runs); of a CPU's operations all are 'other'."""
    found: dict[str, tuple[float, int]] = {}
    for name, (ms, runs) in operations.items():
        kind = next(k for k, words in KINDS.items() if any(w in name for w in words))
        before = found.get(kind, (0.0, 0))
        found[kind] = (before[0] + ms, before[1] + runs)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def trace_steps(args: argparse.Namespace, folder: str) -> None:
    """Profile ten steps of the paper's setting at the sizes given."""
    import jax

    from benchmarks.our_step import make_ours, random_images
    from configs import base
    from eir_jax.system import sharding
    from eir_jax.training.step import compile_train_step

    config = base.get_config()
    config.data.update(image_size=args.image_size, pipeline="device")
    config.model.update(name=args.model, width=args.width)
    config.batch_size = args.batch
    images = random_images(args.rows, args.image_size)
    ours = make_ours(config, images, jax.devices()[0])
    step: Any = compile_train_step(
        ours.step, ours.state, ours.parts.mesh, ours.views_of
    )
    batches = sharding.put_batches(ours.batches, ours.parts.mesh)
    state = ours.state

    def take(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, next(batches) | ours.resident)
        jax.block_until_ready(state)

    take(3)
    with jax.profiler.trace(folder):
        take(STEPS)


def read_trace(folder: Path) -> dict[str, tuple[float, int]]:
    """Return operation -> (milliseconds, runs), the longest first.

    Raises:
      UserError: there is no profile in the folder.
    """
    import jax

    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise UserError(
            f"there is no profile (*.xplane.pb) in {folder}; make one with "
            "--config.profile_steps=A:B"
        )
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    spent: collections.Counter[str] = collections.Counter()
    runs: collections.Counter[str] = collections.Counter()
    for plane in devices or planes:
        for line in plane.lines:
            # Beside a GPU's streams and a TPU's 'XLA Ops' stand lines that sum them up.
            if devices and not line.name.startswith(("Stream", "XLA Ops")):
                continue
            for event in line.events:
                if devices or any(name == "hlo_op" for name, _ in event.stats):
                    spent[event.name] += event.duration_ns
                    runs[event.name] += 1
    return {name: (ns / 1e6, runs[name]) for name, ns in spent.most_common()}


if __name__ == "__main__":
    cli.run(main)
