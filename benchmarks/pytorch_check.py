"""Compare one step of ours with one of PyTorch's, from the same state and batch.

What is compared: the pixels of views and mixed images, each loss, the gradient of every
parameter, parameters and running averages after one step, and the bank's rows.
"""

from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from torch import nn

from benchmarks import pytorch_step
from benchmarks.our_step import OurStep, gradient_of
from configs import base
from eir_jax.data.order import draw_uniforms
from eir_jax.data.views import NUM_UNIFORMS
from eir_jax.run.state import TrainState
from eir_jax.system.config import flatten
from eir_jax.system.errors import UserError

FLAX_NAMES = {"kernel": "weight", "scale": "weight"}
FLAX_NAMES |= {"mean": "running_mean", "var": "running_var"}
# PyTorch's side knows the paper's objective alone: these stay as configs/base.py.
FIXED = (
    *("instance.", "intra.", "inter.", "batch_norm.", "bank.dtype", "model.precision"),
    *("interpolation.kind", "interpolation.per_sample"),
)


def make_theirs(
    config: ConfigDict,
    images: np.ndarray,
    state: TrainState,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    together: bool = False,
) -> pytorch_step.Objective:
    """Build PyTorch's side with the parameters, statistics and bank of ours.

    Raises:
      UserError: a setting that it does not know.
    """
    refuse(config)
    bank = torch.tensor(np.array(state.memory["bank"][: len(images)]))
    objective = pytorch_step.Objective(
        config, torch.from_numpy(images), bank, dtype, together
    )
    objective.to(bank.dtype)
    tensors = to_pytorch(state.params) | to_pytorch(state.batch_stats)
    missing, unexpected = objective.encoder.load_state_dict(tensors, strict=False)
    counters = [name for name in missing if name.endswith("num_batches_tracked")]
    assert missing == counters and not unexpected, (missing, unexpected)
    nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
    return objective.to(device).train()


def refuse(config: ConfigDict) -> None:
    """Check that PyTorch's side knows the settings.

    Raises:
      UserError: naming those that it does not know.
    """
    want, have = flatten(base.get_config()), flatten(config)
    other = [k for k in have if k.startswith(FIXED) and have[k] != want.get(k)]
    other += [k for k in ("lambda_intra", "lambda_inter") if not have[k]]
    if other:
        raise UserError(
            "the PyTorch step knows the paper's objective alone, not other values of "
            f"{', '.join(sorted(other))}; leave them out, or time ours with --no_torch"
        )


def to_pytorch(tree: Any) -> dict[str, torch.Tensor]:
    """Return a tree of Flax's parameters or statistics under PyTorch's names."""
    tensors = {}
    for (*path, leaf), value in flatten_dict(jax.device_get(tree)).items():
        if leaf == "kernel":  # [h, w, in, out] or [in, out]
            value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
        name = ".".join((*path, FLAX_NAMES.get(leaf, leaf)))
        tensors[name] = torch.tensor(np.ascontiguousarray(value))
    return tensors


def same_batch(
    config: ConfigDict, batch: dict[str, np.ndarray], device: torch.device
) -> pytorch_step.Batch:
    """Return a batch of ours, as `make_train_batches` yields it, for PyTorch's side."""
    epoch, index = int(batch["epoch"][0]), batch["index"]
    drawn = [
        draw_uniforms(config.seed, epoch, index, view, NUM_UNIFORMS)
        for view in range(2)
    ]
    arrays = {name: np.array(batch[name]) for name in ("index", "partner", "ratio")}
    arrays |= {"box": np.array(batch["box"]), "uniforms": np.stack(drawn)}
    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    tensors |= {name: tensors[name].long() for name in ("index", "partner")}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def compare(
    one: OurStep, config: ConfigDict | None = None, together: bool = False
) -> dict[str, float]:
    """Take that step in PyTorch, on the host in its dtype; return the differences.

    `views` (of a float32 step alone): of 255 levels. `losses`: relative. `gradient`,
    `parameters`, `running averages`, `bank`: the largest over tensors of the
    difference's norm, as a share of the tensor's norm.

    Args:
      one: our step.
      config: of PyTorch's side, if other than ours.
      together: see `pytorch_step.Objective`.
    """
    config, host = config or one.ours.parts.config, torch.device("cpu")
    dtype = torch.from_numpy(one.before.memory["bank"]).dtype
    theirs = make_theirs(config, one.images, one.before, host, dtype, together)
    given = same_batch(config, one.batch, host)
    found = {}
    if dtype == torch.float32:
        found["views"] = _levels_apart(config, one.views, *theirs.views_of(given))
    else:  # ours, as the same box can be a pixel off in another dtype
        planes = {
            k: x.transpose(0, 3, 1, 2) for k, x in one.views.items() if x.ndim > 1
        }
        both = np.concatenate([planes["view1"], planes["view2"]])
        given["views"], given["mixed"] = map(torch.tensor, (both, planes["mixed"]))
        given["ratio"] = torch.tensor(one.views["ratio"])

    tx = pytorch_step.make_optimizer(config, theirs.encoder)
    terms = pytorch_step.make_step(theirs, tx, "eager")(given)
    found["losses"] = max(
        abs(float(terms[name].detach()) / float(one.metrics[name]) - 1)
        for name in terms
    )
    named = dict(theirs.encoder.named_parameters())
    found["gradient"] = _apart(
        to_pytorch(gradient_of(one)), {name: p.grad for name, p in named.items()}
    )
    tensors = theirs.encoder.state_dict()
    found["parameters"] = _apart(to_pytorch(one.after.params), tensors)
    found["running averages"] = _apart(to_pytorch(one.after.batch_stats), tensors)
    bank = torch.tensor(one.after.memory["bank"][: len(one.images)])
    found["bank"] = _apart({"bank": bank}, {"bank": theirs.memory_bank})
    return found


def _levels_apart(config: ConfigDict, views: dict, made, mixed) -> float:
    std = np.array(config.data.std, np.float32)
    view1, view2 = made.tensor_split(2)
    theirs = {"view1": view1, "view2": view2, "mixed": mixed}
    return max(
        float((np.abs(x.permute(0, 2, 3, 1).numpy() - views[name]) * std).max()) * 255
        for name, x in theirs.items()
    )


def _apart(ours: dict, theirs: dict) -> float:
    return max(
        float((ours[k] - theirs[k]).detach().norm() / ours[k].norm()) for k in ours
    )
