"""What the compilers for H100s and TPUs are to make of configs/cifar10.py: checked.

    make plan                      (an environment of its own, with the plug-ins)
    .venv-plan/bin/python -m benchmarks.plans [--tpu_step]

Compiles the training step for one and for four H100s, the fused softmax for one, and
for a TPU v5e what makes the views and what keeps the bank (with --tpu_step its whole
step too, some minutes). No device is needed. Prints what was counted; ends with status
1 where a plan is not as it should be, or where there is none. Of a platform whose
plug-in is not installed nothing is compiled, and that is said.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

from eir_jax.plan import ENVIRONMENT

# Of four H100s: (kind, type, under 64 kB) -> at most so many.
COLLECTIVES = {
    ("all-reduce", "bf16", False): 1,  # the kernels' gradients
    ("all-reduce", "f32", True): 42,  # batch norm's statistics, and the relations'
    ("all-reduce", "f32", False): 3,  # rows of the bank that are read
    ("all-gather", "f32", False): 3,  # embeddings, and their gradients
    ("all-gather", "s32", True): 1,  # which instances
    ("reduce-scatter", "f32", False): 2,
}
Job = tuple[str, tuple[str, ...], int, tuple[str, ...]]
FUSED = ("--config.bank.form=fused",)
# Topology, program, other settings -> at most so many bytes moved and launches.
# What keeps the bank of 25.7 MB in one kernel: .70 GB and 52 MB where the softmax is
# dense. The step: 9.38 GB and 503 launches before batch norm and ReLU had rules of
# their own on GPUs.
LIMITS: dict[tuple[str, str, tuple[str, ...]], tuple[float, float]] = {
    ("h100:1", "train", ()): (8.7e9, 400),
    ("h100:1", "memory", FUSED): (60e6, math.inf),
    ("v5e:1", "memory", FUSED): (30e6, math.inf),
}
JOBS: list[Job] = [
    ("h100:1", ("train",), 128, ()),
    ("h100:4", ("train",), 512, ()),
    ("h100:1", ("memory",), 128, FUSED),
    ("v5e:1", ("memory",), 128, FUSED),
    ("v5e:1", ("views", "memory"), 128, ()),
]
"""Topology, programs, batch of all devices, other settings."""


def main(argv: list[str]) -> int:
    """Compile, print and check; return how many plans are not as they should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tpu_step", action="store_true")
    args = parser.parse_args(argv)
    os.environ.update(ENVIRONMENT)
    from eir_jax.planning.study import plan
    from eir_jax.planning.table import show
    from eir_jax.planning.topologies import MissingPlugin
    from eir_jax.system.config import load_config
    from eir_jax.system.errors import UserError

    jobs = JOBS + ([("v5e:1", ("train",), 128, ())] if args.tpu_step else [])
    wrong = []
    for topology, what, batch, words in jobs:
        config = load_config("cifar10", [f"--config.batch_size={batch}", *words])
        try:
            found = plan(config, topology, what, say=lambda _: None)
        except MissingPlugin as error:
            print(f"== left out: {error}", flush=True)
            continue
        except UserError as error:
            wrong.append(f"{topology} {','.join(what)}: {error}")
            continue
        print("\n".join(show(found)), flush=True)
        for facts in found["programs"]:
            most = LIMITS.get((topology, facts["what"], words), (math.inf, math.inf))
            found_wrong = [*problems(facts)]
            moved, launches = facts["bytes_moved"], facts["launches"]
            if moved > most[0] or launches > most[1]:
                found_wrong.append(f"{moved / 1e6:,.1f} MB moved, {launches} launches")
            for problem in found_wrong:
                wrong.append(f"{topology} {facts['what']}: {problem}")
    for problem in wrong:
        print(f"== not as it should be: {problem}", file=sys.stderr)
    return int(bool(wrong))


def problems(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what a plan has that it should not have."""
    for name, number in facts["copies"].items():
        if number:
            yield f"{number} whole copies of the {name} a step"
    place = facts["in_place"]
    if place["updated"] != place["leaves"]:
        yield f"{place['updated']} of {place['leaves']} leaves are updated in place"
    kinds = facts["convolutions"]
    if facts["what"] == "train" and set(kinds) != {"bf16"}:
        yield f"convolutions are not all bfloat16: {kinds}"
    for one in facts["collectives"]:
        most = COLLECTIVES.get((one["kind"], one["dtype"], one["small"]), 0)
        if one["number"] > most:
            yield (
                f"{one['number']} {one['kind']} of {one['dtype']}, "
                f"{one['bytes'] / 1e6:.2f} MB, where there are to be {most}"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
