r"""Time our training step against PyTorch's, of the same mathematics.

    python benchmarks/train_step.py                              # the device at hand
    python benchmarks/train_step.py --rows 5000 50000 --breakdown
    python benchmarks/train_step.py --no_torch --config.bank.form=dense
    python benchmarks/train_step.py --model resnet18 --width 64 --dtype bfloat16 \
        --batch 128 512 --torch_mode reduce-overhead --out step.json    # on a GPU

First both sides take one tiny step in float32 and one in float64 on the host, from the
same parameters, bank and batch: what differs is printed (tests/test_pytorch_step.py
sets the bounds). --no_check leaves that minute out.
Then, for each size, both start from the same state, compile, take one step on the same
batch (the two losses are printed), warm up, and take turns in blocks of steps. Printed
are medians of the blocks' ms a step, and PyTorch's / ours (more than 1: ours is
faster). Both make their views from uint8 images on the device, draw what is random
themselves, and wait for nothing within a block. Ours also computes its metrics
(gradient norm, entropies, ranks); PyTorch's computes the losses alone.

PyTorch's side is benchmarks/pytorch_step.py: channels-last, `torch.compile`, autocast
for bfloat16, SGD by lists of tensors (fused on a GPU), TF32 for float32 products on a
GPU. On a CPU the sides share the cores by turns; with anything else running the times
mean nothing, as two OpenMP threads on a busy core wait for each other.

FLOP are those of convolutions, head and bank: forward three times, the bank twice (no
gradient enters it). Their share is of one large matrix product in JAX, in that dtype.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from eir_jax.system import cli
from eir_jax.system.errors import UserError

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
DEFAULTS = {"cpu": ("resnet10", 16, "float32"), "gpu": ("resnet18", 64, "bfloat16")}
# Settings that both sides take from this script's own flags.
OWN_KEYS = ("model.name", "model.width", "model.dtype", "batch_size", "data.")
Side = Callable[[int], dict]  # take so many steps, wait; return the last one's metrics


def main(argv: list[str]) -> None:
    """Run the benchmark that the flags describe."""
    args, overrides = parse(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch's share
    import jax

    device = jax.devices()[0]
    model, width, dtype = DEFAULTS["cpu" if device.platform == "cpu" else "gpu"]
    args.model, args.width = args.model or model, args.width or width
    args.dtype = args.dtype or dtype
    if not args.no_torch:
        prepare_torch(device.platform)
    flags = vars(args) | {"out": args.out and str(args.out), "config": overrides}
    report: dict[str, Any] = {"flags": flags, "machine": describe(device, args)}
    show = (lambda title, values: None) if args.json else print_values
    show("machine", report["machine"])
    if not args.no_torch and not args.no_check:
        from benchmarks import our_step, pytorch_check

        report["check"] = {}
        for dtype in ("float32", "float64"):
            one = our_step.take_our_step(our_step.tiny_config(), dtype)
            apart = pytorch_check.compare(one, together=args.torch_together)
            report["check"][dtype] = apart
            show(f"one tiny {dtype} step, ours and PyTorch's apart", apart)
    report["results"] = []
    for batch_size in args.batch:
        for rows in args.rows:
            config = make_config(args, overrides, batch_size)
            result = measure(args, config, rows, device, report["machine"])
            report["results"].append(result)
            show(f"N = {rows:,}, batch {batch_size}", result)
    report["machine"]["load after"] = round(os.getloadavg()[0], 1)
    text = json.dumps(report, indent=2)
    if args.json:
        print(text)
    if args.out:
        args.out.write_text(text + "\n")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags and the words `--config.KEY=VALUE`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000], help="N")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--model", help="default: resnet10, on a GPU resnet18")
    parser.add_argument("--width", type=int, help="default: 16, on a GPU 64")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="that the encoder computes in; default: float32, on a GPU bfloat16",
    )
    parser.add_argument("--steps", type=int, default=0, help="a block; 0: by --seconds")
    parser.add_argument("--seconds", type=float, default=5, help="a block of ours")
    parser.add_argument("--repeats", type=int, default=3, help="blocks of each side")
    parser.add_argument("--no_torch", action="store_true", help="time ours alone")
    parser.add_argument("--torch_mode", choices=(*MODES, "eager"), default="default")
    parser.add_argument(
        "--torch_together",
        action="store_true",
        help="PyTorch encodes views and mixed images in one pass, not in two",
    )
    parser.add_argument("--no_check", action="store_true", help="time alone")
    parser.add_argument("--breakdown", action="store_true", help="parts of our step")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="write the JSON object to this file")
    args, overrides = parser.parse_known_args(argv)
    if args.repeats < 1 or min(args.rows) < max(args.batch):
        parser.error("--repeats must be at least 1, and --rows at least --batch")
    if args.steps < 0 or args.seconds <= 0:
        parser.error("--steps must be at least 0, and --seconds more")
    if args.out and not args.out.absolute().parent.is_dir():
        parser.error(f"there is no folder {args.out.parent} for --out")
    for word in overrides:
        if word.startswith(tuple(f"--config.{key}" for key in OWN_KEYS)):
            parser.error(f"{word}: that is set by a flag of this script")
    return args, overrides


def prepare_torch(platform_name: str) -> None:
    """Set PyTorch's switches for its fastest, and for compiling without a cache.

    Raises:
      UserError: it is not there, or does not know the device.
    """
    way_out = "add --no_torch to time ours alone"
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"PyTorch is not installed; install torch, or {way_out}")
    import torch

    known = "gpu" if torch.cuda.is_available() else "cpu"
    if platform_name not in ("cpu", known):
        raise UserError(
            f"JAX runs on {platform_name}, where this PyTorch ({torch.__version__}) "
            f"cannot; install its build for CUDA, or {way_out}"
        )
    torch.compiler.config.force_disable_caches = True
    torch._dynamo.config.automatic_dynamic_local_pgo = False  # a cache too
    if platform_name == "gpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def describe(device: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the times depend on: device, versions, load, ceiling of products."""
    import jax

    from benchmarks.our_step import measure_ceiling

    size = 2048 if device.platform == "cpu" else 8192
    found: dict[str, Any] = {
        "device": device.device_kind,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    if not args.no_torch:
        import torch

        found |= {"torch": torch.__version__, "torch threads": torch.get_num_threads()}
    ceiling = measure_ceiling(args.dtype, size) / 1e12
    return found | {f"TFLOP/s of a {args.dtype} product": round(ceiling, 3)}


def make_config(args: argparse.Namespace, overrides: list[str], batch_size: int):
    """Return the settings that the flags describe.

    Raises:
      UserError: a setting that does not exist or does not fit the others.
    """
    from configs import base
    from eir_jax.run.validate import validate
    from eir_jax.system.config import override

    config = base.get_config()
    config.data.update(
        image_size=args.image_size, pipeline="device", source="arrays", path="none"
    )
    config.model.update(name=args.model, width=args.width, dtype=args.dtype)
    config.batch_size = batch_size
    override(config, overrides)
    validate(config)
    return config


def measure(args, config, num_examples: int, device, machine: dict) -> dict[str, Any]:
    """Time both sides at one size by turns; return what is printed."""
    from benchmarks.our_step import count_flop, make_ours, random_images, time_parts

    images = random_images(num_examples, config.data.image_size)
    ours = make_ours(config, images, device)
    first = next(ours.batches)
    sides: dict[str, Side] = {}
    memory: dict[str, Callable[[], Any]] = {}
    if not args.no_torch:  # first: our first step gives the state away
        sides["PyTorch"], memory["PyTorch"] = make_their_side(
            args, config, images, ours.state, device, first
        )
    sides["ours"], memory["ours"] = make_our_side(ours, device, first)
    sides = dict(reversed(sides.items()))
    result: dict[str, Any] = {}
    firsts, once = {}, {}
    for name, take in sides.items():
        start = time.perf_counter()
        result[f"{name}: loss of the first step"] = take(1)["loss"]
        firsts[name] = time.perf_counter() - start
        take(2)
        start = time.perf_counter()
        take(2)
        once[name] = (time.perf_counter() - start) / 2
    steps = args.steps or max(1, round(args.seconds / once["ours"]))
    blocks: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats):
        for name, take in sides.items():
            start = time.perf_counter()
            last = take(steps)
            blocks[name].append(1000 * (time.perf_counter() - start) / steps)
            result[f"{name}: loss of the last step"] = last["loss"]
    flop = count_flop(config, num_examples)
    result["GFLOP a step: encoder"] = round(flop["encoder"] / 1e9, 2)
    result["GFLOP a step: bank"] = round(flop["bank"] / 1e9, 2)
    ceiling = machine[f"TFLOP/s of a {args.dtype} product"]
    for name, times in blocks.items():
        median = statistics.median(times)
        share = sum(flop.values()) / median / 1e9 / ceiling
        result[f"{name}: ms a step"] = round(median, 3)
        result[f"{name}: ms, lowest and highest"] = [
            round(min(times), 3), round(max(times), 3)
        ]  # fmt: skip
        result[f"{name}: instances/s"] = round(1000 * config.batch_size / median)
        result[f"{name}: share of the product's FLOP/s"] = round(share, 3)
        result[f"{name}: compile s"] = round(firsts[name] - median / 1000, 1)
        result[f"{name}: peak MB"] = memory[name]()
    result["steps a block"] = steps
    if "PyTorch" in sides:
        ratio = statistics.median(blocks["PyTorch"]) / statistics.median(blocks["ours"])
        result["PyTorch / ours"] = round(ratio, 2)
    result["load"] = round(os.getloadavg()[0], 1)
    if args.breakdown:
        whole = result["ours: ms a step"]
        parts = time_parts(ours, steps, args.repeats)
        for name, value in parts.items():
            result[f"part {name}: ms"] = round(value, 3)
            result[f"part {name}: share of our step"] = round(value / whole, 3)
    return result


def make_our_side(ours, device, first) -> tuple[Side, Callable[[], Any]]:
    """Return take(steps), whose first step is of the batch `first`, and peak MB."""
    import jax

    from eir_jax.system import sharding
    from eir_jax.training.step import compile_train_step

    jitted: Any = compile_train_step(
        ours.step, ours.state, ours.parts.mesh, ours.views_of
    )
    batches = sharding.put_batches(chain([first], ours.batches), ours.parts.mesh)
    state = ours.state
    compiled: Any = None

    def take(steps: int) -> dict[str, float]:
        nonlocal state, compiled
        for _ in range(steps):
            batch = next(batches) | ours.resident
            if compiled is None:
                compiled = jitted.lower(state, batch).compile()
            state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return {name: float(value) for name, value in metrics.items()}

    def peak() -> Any:
        stats = device.memory_stats() or {}
        if "peak_bytes_in_use" in stats:  # of the process: of all sizes until now
            return round(stats["peak_bytes_in_use"] / 1e6, 1)
        need = compiled.memory_analysis()
        return round((need.argument_size_in_bytes + need.temp_size_in_bytes) / 1e6, 1)

    return take, peak


def make_their_side(
    args, config, images, state, device, first
) -> tuple[Side, Callable[[], Any]]:
    """Return PyTorch's take(steps), from the same state and batch, and peak MB."""
    import torch

    from benchmarks import pytorch_check, pytorch_step

    on_gpu = device.platform == "gpu"
    where = torch.device("cuda" if on_gpu else "cpu")
    torch.compiler.reset()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    dtype = getattr(torch, args.dtype)
    objective = pytorch_check.make_theirs(
        config, images, state, where, dtype, args.torch_together
    )
    tx = pytorch_step.make_optimizer(config, objective.encoder)
    step = pytorch_step.make_step(objective, tx, args.torch_mode)
    drawn = pytorch_step.draw_batches(config, len(images), where)
    batches = chain([pytorch_check.same_batch(config, first, where)], drawn)

    def take(steps: int) -> dict[str, float]:
        for _ in range(steps):
            terms = step(next(batches))
        if on_gpu:
            torch.cuda.synchronize()
        return {name: float(value.detach()) for name, value in terms.items()}

    def peak() -> Any:
        if not on_gpu:
            return "not measured"
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)

    return take, peak


def print_values(title: str, values: dict[str, Any]) -> None:
    """Print one block of names and values."""
    print(title)
    for name, value in values.items():
        if isinstance(value, float):
            value = f"{value:,.3f}" if abs(value) >= 1e-3 else f"{value:.1e}"
        print(f"  {name:44} {value if isinstance(value, str) else f'{value!s}':>14}")
    print(flush=True)


if __name__ == "__main__":
    cli.run(main)
