"""Compare a training step in each precision with float64 on the host.

    python benchmarks/precision.py
    python benchmarks/precision.py --model resnet18 --width 64 --image_size 32 --json

All start from the same parameters, bank and views. Printed are, for each precision, the
relative errors of the three losses, and of the gradient (all parameters as one vector)
the length of the difference, as a share of its length, and the cosine with float64's.
"""

import argparse
import json

from eir_jax.run.validate import CHOICES
from eir_jax.system import cli

PRECISIONS = (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))


def main(argv: list[str]) -> None:
    """Run the benchmark that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--model", default="resnet10", choices=CHOICES["model.name"])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    results = measure(args)
    if args.json:
        print(json.dumps(vars(args) | results, indent=2))
        return
    print(f"on {results['device']}")
    for name, errors in results["errors"].items():
        print(name)
        for what, error in errors.items():
            print(f"  {what:28} {error:.2e}")


def measure(args: argparse.Namespace) -> dict:
    """Return the device's name and the errors of each precision."""
    import jax
    import numpy as np

    from benchmarks import our_step

    config = our_step.tiny_config()
    config.data.image_size, config.batch_size = args.image_size, args.batch
    config.model.update(name=args.model, width=args.width, embedding_dim=128)
    exact = our_step.take_our_step(config, "float64")
    wanted = _flat(our_step.gradient_of(exact))
    device = jax.devices()[0]
    errors: dict = {}
    for dtype, precision in PRECISIONS:
        config.model.update(dtype=dtype, precision=precision)
        found = our_step.take_our_step(config, "float32", device, exact)
        losses = {
            f"{name}, relative": abs(float(found.metrics[name] / value) - 1)
            for name, value in exact.metrics.items()
            if name.startswith("loss_")
        }
        gradient = _flat(our_step.gradient_of(found))
        length = np.linalg.norm(gradient) * np.linalg.norm(wanted)
        errors[f"{dtype}, {precision}"] = losses | {
            "gradient, relative": float(
                np.linalg.norm(gradient - wanted) / np.linalg.norm(wanted)
            ),
            "gradient, 1 - cosine": float(1 - gradient @ wanted / length),
        }
    return {"device": device.device_kind, "errors": errors}


def _flat(tree):
    import jax
    import numpy as np

    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


if __name__ == "__main__":
    cli.run(main)
