"""Time the streamed softmax over the bank against the dense one, and count bytes sent.

    python benchmarks/memory_bank.py                         # 51,200 to 1,280,000 rows
    python benchmarks/memory_bank.py --rows 10000000 --dtype bfloat16 --repeats 1
    python benchmarks/memory_bank.py --rows 512 2048 8192    # where 'auto' changes over
    python benchmarks/memory_bank.py --devices 1 2 4 8       # compiled, not run

Both sides compute value and gradient of IRaug + 15 intra for one batch, one after the
other in each repeat; printed are medians, and dense / streamed (more than 1: streamed
is faster or smaller). On a GPU the fused form is one more side. What the loss and its
gradient differ by is of the first side, which says whether the others are right there.
Temporaries are the compiled program's own account. Where the dense form would need more
than `--memory` GB it is left out, in words.

`--devices` compiles the training step of ResNet-18 for so many simulated devices, of 32
images each (weak scaling), and adds up the bytes of its collectives: of each device's
result, so that a ring sends about twice that for an all-reduce, and once for a gather.
"""

import argparse
import json
import math
import os
import re
import statistics
import time
from typing import Any

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s32": 4, "u32": 4}
ITEM_BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


def main():
    """Run the benchmark that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[51_200, 126_689, 1_280_000]
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=float, default=12.0, help="GB at most")
    parser.add_argument("--blocks", type=int, nargs="+", help="rows scored at once")
    parser.add_argument("--devices", type=int, nargs="+", help="communication instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.devices:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(max(args.devices))
        results = [measure_communication(n, args.dim) for n in args.devices]
    else:
        results = [measure(args, rows) for rows in args.rows]
        add_time_a_million(results)
    if args.json:
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        print(json.dumps(vars(args) | machine | {"results": results}, indent=2))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for result in results:
        for name, value in result.items():
            print(f"{name:32} {value:>16,}" if value is not None else name)
        print()


def measure(args, num_examples):
    """Time and temporaries of the forms at one size, and their ratios."""
    import jax
    import jax.numpy as jnp

    from eir_jax.models.encoder import l2_normalize
    from eir_jax.objectives.memory_bank import create_memory_bank, padded_rows

    rows = padded_rows(num_examples)
    bank = jax.jit(
        lambda: create_memory_bank(
            jax.random.key(0), num_examples, args.dim, rows, args.dtype
        )
    )()
    keys = jax.random.split(jax.random.key(1), 3)
    index = jax.random.randint(keys[0], (args.batch,), 0, num_examples)
    shape = (args.batch, args.dim)
    own = bank[index].astype(jnp.float32)
    view1 = l2_normalize(own + 0.05 * jax.random.normal(keys[1], shape))
    view2 = l2_normalize(own + 0.05 * jax.random.normal(keys[2], shape))
    arguments = (view1, view2, bank, index)

    result: dict = {"N": num_examples, "bank MB": round(bank.nbytes / 1e6, 1)}
    # Both views' similarities, and their shares, at least; and a float32 bank.
    dense_gb = 4 * rows * (6 * args.batch + args.dim) / 1e9
    forms = {"dense": None} if dense_gb + bank.nbytes / 1e9 <= args.memory else {}
    if not forms:
        result[f"dense left out: over {dense_gb:.0f} GB of temporaries"] = None
    forms |= {f"streamed, blocks of {n}": n for n in args.blocks or ()}
    if not args.blocks:
        forms["streamed"] = None
    if jax.default_backend() == "gpu":
        forms["fused"] = None
    sides = {
        name: compile_loss(name.split(",")[0], num_examples, block_rows, arguments)
        for name, block_rows in forms.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    values = {name: side(*arguments) for name, side in sides.items()}
    for _ in range(args.repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(side(*arguments))
            times[name].append(time.perf_counter() - start)
    for name, side in sides.items():
        result[f"{name}: ms"] = round(1000 * statistics.median(times[name]), 1)
        temporaries = side.memory_analysis().temp_size_in_bytes
        result[f"{name}: temporaries MB"] = round(temporaries / 1e6, 1)
    first, *others = sides
    for name in others:
        if first == "dense":
            for what in ("ms", "temporaries MB"):
                ratio = result[f"dense: {what}"] / result[f"{name}: {what}"]
                result[f"dense / {name}: {what}"] = round(ratio, 2)
        for what, apart in differences(values[name], values[first]).items():
            result[f"{name}: {what} differs by"] = float(f"{apart:.1e}")
    return result


def differences(found, wanted):
    """Of the loss, and of the gradient relative to its largest entry."""
    import numpy as np

    (loss, pull), (loss2, pull2) = found, wanted
    pulls = np.stack(pull), np.stack(pull2)
    return {
        "loss": abs(float(loss / loss2) - 1),
        "gradient": np.abs(pulls[0] - pulls[1]).max() / np.abs(pulls[1]).max(),
    }


def compile_loss(form, num_examples, block_rows, arguments):
    """Compile value and gradient of IRaug + 15 intra."""
    import jax

    from eir_jax.objectives import losses, streaming
    from eir_jax.objectives.relations import Comparison, bank_candidates, relate

    if block_rows is not None:
        streaming.BLOCK_ROWS = block_rows

    def loss(view1, view2, bank, index):
        candidates = bank_candidates(bank, index, num_examples)
        found = relate(view1, view2, candidates, 0.1, Comparison(), form=form)
        return losses.iraug_loss(found) + 15 * losses.intra_loss(found)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()


def add_time_a_million(results):
    """Add to each result the streamed time a million rows: constant on a line."""
    for result in results:
        if "streamed: ms" in result:
            per_million = 1e6 * result["streamed: ms"] / result["N"]
            result["streamed: ms a million rows"] = round(per_million)


def measure_communication(devices, dim):
    """Bytes of each kind of collective in the training step of one size of mesh."""
    import jax
    import jax.numpy as jnp

    from configs import base
    from eir_jax.system import sharding
    from eir_jax.training.parts import make_parts

    config = base.get_config()
    config.batch_size = 32 * devices
    config.model.embedding_dim = dim
    config.bank.form = "streamed"
    mesh = sharding.make_mesh(jax.devices()[:devices])
    parts = make_parts(config, 1_280_000, mesh)
    state = parts.abstract_state()
    size, batch = config.data.image_size, config.batch_size
    image = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    number = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arrays = {"view1": image, "view2": image, "mixed": image}
    arrays |= {"index": number, "partner": number}
    arrays |= {"ratio": jax.ShapeDtypeStruct((batch,), jnp.float32)}
    jitted: Any = parts.compiled_step()
    compiled = jitted.lower(state, arrays).compile()
    share = state.memory["bank"].sharding.shard_shape(state.memory["bank"].shape)
    counted = count_collectives(compiled.as_text())
    result: dict = {"devices": devices, "batch": batch}
    result["bank a device MB"] = round(4 * math.prod(share) / 1e6, 1)
    result |= {f"{kind} KB": round(n / 1e3, 1) for kind, n in counted.items()}
    result["parameters KB"] = round(
        sum(x.size * 4 for x in jax.tree.leaves(state.params)) / 1e3, 1
    )
    return result


def count_collectives(hlo):
    """Return kind -> bytes of the results of the collectives in a program's text.

    One in a loop's body is counted once. Of one split into a start and a done, the done
    is counted: the start's result holds the operands too.
    """
    kinds = "|".join(COLLECTIVES)
    instruction = re.compile(rf" = (.+?) ({kinds})(-start|-done)?\(")
    counted = dict.fromkeys(COLLECTIVES, 0)
    for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
        match = instruction.search(line)
        if match and match[3] != "-start":
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                items = math.prod(int(x) for x in dims.split(",") if x)
                counted[match[2]] += items * ITEM_BYTES[dtype]
    return {kind: n for kind, n in counted.items() if n}


if __name__ == "__main__":
    main()
