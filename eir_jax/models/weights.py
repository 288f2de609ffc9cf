"""Weights in and out, under torchvision's names and in its layouts.

A ResNet's arrays are called there `conv1.weight` [out, in, height, width],
`bn1.running_mean`, `layer2.0.downsample.0.weight` and so on; our head is `fc`. The
program's own files are safetensors, and note in their metadata (`about`) all that is
needed to use them: settings, preparation of the images, numbers, a SHA-256.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eir_jax.models.resnet import BLOCKS, BOTTLENECKS
from eir_jax.system.errors import UserError, first_line
from eir_jax.system.files import replacing

Tensors = dict[str, np.ndarray]
PyTree = Any

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "model_state_dict")  # PyTorch programs' checkpoints
BACKBONE = re.compile(r"(conv1|bn1|layer\d)\.")
COUNTERS = "num_batches_tracked"  # PyTorch's, which nothing here depends on
LAYERS = {
    "conv": "conv1",
    "norm": "bn1",
    "conv1": "conv1",
    "norm1": "bn1",
    "conv2": "conv2",
    "norm2": "bn2",
    "conv3": "conv3",
    "norm3": "bn3",
    "conv_shortcut": "downsample.0",
    "norm_shortcut": "downsample.1",
    "head": "fc",
    "head_hidden": "fc_hidden",  # of a head of two layers, and of a classifier: ours
    "head_norm": "fc_norm",
    "classifier": "classifier",
}
ARRAYS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
MOST_NAMED = 3


class Weights(NamedTuple):
    """What a file of weights holds."""

    tensors: Tensors
    """By torchvision's names, whatever the file's had before them."""
    about: dict[str, Any]
    """What `write_weights` noted; of other programs' files nothing."""


def to_torchvision(params: PyTree, batch_stats: PyTree) -> Tensors:
    """Return an encoder's arrays by torchvision's names, in its layouts."""
    leaves = jax.tree.leaves_with_path((params, batch_stats))
    return {_name(path): _turned(np.asarray(leaf)) for path, leaf in leaves}


def from_torchvision(
    tensors: Mapping[str, np.ndarray],
    params: PyTree,
    batch_stats: PyTree,
    with_head: bool,
) -> tuple[PyTree, PyTree]:
    """Return an encoder's arrays with the values of `tensors`, as NumPy's.

    Args:
      tensors: as `to_torchvision` gives them.
      params: of the encoder; of each leaf the shape and, of what is not taken, the
        value.
      batch_stats: likewise.
      with_head: take the head too; else it stays as it is.

    Raises:
      UserError: arrays are missing, of another shape, or of layers that the encoder
        has not; naming them and the settings that would fit.
    """
    leaves, structure = jax.tree.flatten_with_path((params, batch_stats))
    found, problems, used = [], [], set()
    for path, leaf in leaves:
        name = _name(path)
        if not with_head and not BACKBONE.match(name):
            found.append(leaf)
            continue
        used.add(name)
        if name not in tensors:
            problems.append(f"{name} is not there")
            continue
        value = _turned_back(np.asarray(tensors[name], np.float32))
        if value.shape != leaf.shape:
            there, here = list(tensors[name].shape), list(_turned_shape(leaf.shape))
            problems.append(f"{name} is {there} there, {here} here")
            continue
        found.append(value)
    others = sorted(n for n in tensors if BACKBONE.match(n) and n not in used)
    problems += [f"{name} has no place here" for name in others]
    if problems:
        more = len(problems) - MOST_NAMED
        words = "; ".join(problems[:MOST_NAMED]) + f"; {more} more" * (more > 0)
        way_out = "" if with_head else f"; {_way_out(tensors)}"
        raise UserError(f"the weights do not fit the encoder: {words}{way_out}")
    params, batch_stats = jax.tree.unflatten(structure, found)
    return params, batch_stats


def network_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the settings `model.*` (name, width, stem) of a backbone.

    Raises:
      UserError: it is no ResNet that there is here.
    """
    bottleneck = "layer1.0.conv3.weight" in tensors
    stages: list[int] = []
    while f"layer{len(stages) + 1}.0.conv1.weight" in tensors:
        stage, count = f"layer{len(stages) + 1}", 0
        while f"{stage}.{count}.conv1.weight" in tensors:
            count += 1
        stages.append(count)
    alike = {n: b for n, b in BLOCKS.items() if (n in BOTTLENECKS) == bottleneck}
    name = next((n for n, blocks in alike.items() if blocks == tuple(stages)), None)
    if name is None:
        kind = "bottlenecks" if bottleneck else "basic blocks"
        raise UserError(
            f"these are weights of a network with {stages} {kind} a stage; there are "
            + ", ".join(f"{name} with {list(b)}" for name, b in alike.items())
        )
    shape = tensors["conv1.weight"].shape
    if len(shape) != 4:
        raise UserError(f"conv1.weight is {list(shape)}, not [out, in, height, width]")
    width, _, size, _ = shape
    stem = {3: "small", 7: "imagenet"}.get(size)
    if stem is None:
        raise UserError(
            f"the first convolution is {size}x{size}; it is 3x3 or 7x7 here"
        )
    return {"name": name, "width": width, "stem": stem}


def read_weights(file: Path) -> Weights:
    """Read a .safetensors, or by PyTorch, where it is installed, a .pth.

    Never by a plain unpickle, which would run what the file says.

    Raises:
      UserError: it is missing, damaged, of another kind, or holds no ResNet.
    """
    if not file.is_file():
        raise UserError(f"there is no file of weights {file}")
    about: dict[str, Any] = {}
    if file.suffix.lower() == ".safetensors":
        found, about = _read_safetensors(file)
    elif file.suffix.lower() in TORCH_SUFFIXES:
        found = _read_torch(file)
    else:
        raise UserError(
            f"{file} is no file of weights that can be read: give a .safetensors, a "
            f"{TORCH_SUFFIXES[0]} of PyTorch, or the workdir of a run"
        )
    tensors = _without_prefix(found)
    if not tensors:
        some = ", ".join(list(found)[:MOST_NAMED]) or "nothing"
        raise UserError(
            f"{file} holds no ResNet by torchvision's names, as conv1.weight and "
            f"layer1.0.conv1.weight are (it holds {some})"
        )
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"{name} of {file} is not finite")
    if about and about.get("sha256") != sha256(tensors):
        raise UserError(f"{file} is damaged: its content is not of its SHA-256")
    return Weights(tensors, about)


def write_weights(file: Path, tensors: Tensors, about: dict[str, Any]) -> None:
    """Write a .safetensors, whole or not at all, that says what it is.

    Raises:
      UserError: it cannot be written.
    """
    from safetensors.numpy import save

    metadata = {"format": "pt", "eir_jax": json.dumps(about)}
    contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    write_bytes(file, save(contiguous, metadata))


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with replacing(file) as part:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error}") from None


def sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Return a hash of names, shapes and values, in whatever order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _read_safetensors(file: Path) -> tuple[Tensors, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        about = json.loads(metadata.get("eir_jax", "{}"))
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read as safetensors: {first_line(error)}"
        ) from None
    if not isinstance(about, dict):
        raise UserError(
            f"{file} is damaged: it notes a {type(about).__name__} as its settings"
        )
    # bfloat16 and the like have no buffers, and are computed with as float32.
    exact = (np.float32, np.int64)
    return {
        name: x if x.dtype in exact else x.astype(np.float32)
        for name, x in tensors.items()
    }, about


def _read_torch(file: Path) -> Tensors:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file} is read by PyTorch, which is not installed; install torch, or "
            "save it as .safetensors where it is"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the file was pickled
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of many types, and its words are advice to run the file
        raise UserError(
            f"{file} cannot be read as weights alone: it is damaged, or holds a whole "
            "model or other objects; where it was made, save what holds arrays alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise UserError(f"{file} holds a {type(found).__name__}, no state dict")
    return {
        str(name): value.detach().float().numpy()
        for name, value in found.items()
        if isinstance(value, torch.Tensor)
    }


def _without_prefix(tensors: Tensors) -> Tensors:
    """Return what lies beside the first ResNet's `conv1.weight`, by its name alone."""
    for name in tensors:
        prefix = name.removesuffix("conv1.weight")
        if prefix != name and f"{prefix}layer1.0.conv1.weight" in tensors:
            return {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix) and not key.endswith(COUNTERS)
            }
    return {}


def _name(path: tuple) -> str:
    """Return torchvision's name of a leaf of (params, batch_stats)."""
    *place, layer, array = (key.key for key in path[1:])
    name = f"{LAYERS[layer]}.{ARRAYS[array]}"
    block = re.fullmatch(r"stage(\d+)_block(\d+)", place[-1] if place else "")
    if block:
        return f"layer{block[1]}.{int(block[2]) - 1}.{name}"
    return name


def _turned(array: np.ndarray) -> np.ndarray:
    """[height, width, in, out] -> [out, in, height, width]; [in, out] -> [out, in]."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T


def _turned_back(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _turned_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _turned(np.empty(shape, np.bool_)).shape


def _way_out(tensors: Mapping[str, np.ndarray]) -> str:
    try:
        network = network_of(tensors)
    except UserError as error:
        return str(error)
    return "they fit " + " ".join(f"--config.model.{k}={v}" for k, v in network.items())
