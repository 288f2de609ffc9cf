"""A checkpoint's weights for other programs: safetensors, ONNX, StableHLO."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from eir_jax import __version__
from eir_jax.data.pictures import preparation
from eir_jax.evaluation.embed import describe_view, evaluation_view
from eir_jax.evaluation.restore import Run
from eir_jax.models.encoder import make_encoder
from eir_jax.models.resnet import BOTTLENECKS
from eir_jax.models.weights import sha256, to_torchvision, write_bytes, write_weights
from eir_jax.run.record import commit, read_sessions
from eir_jax.system.errors import UserError, first_line
from eir_jax.system.files import check_writable

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(run: Run, workdir: Path, file: Path) -> None:
    """Write the encoder of a restored checkpoint, in the form that the suffix names.

    Args:
      run: the checkpoint.
      workdir: where it comes from; its records go into the metadata.
      file: .safetensors, .onnx or .stablehlo.

    Raises:
      UserError: another suffix, a package that is not installed, a network that the
        form does not hold, or the file cannot be written.
    """
    check_target(file)
    model = run.config.model
    if model.towers != "one":
        raise UserError(
            f"the network of two towers (model.towers={model.towers}) has no file of "
            "its own; use it from its workdir"
        )
    suffix = file.suffix.lower()
    if suffix == ".onnx" and (
        model.head != "linear" or model.name in BOTTLENECKS or model.num_classes
    ):
        raise UserError(
            f"{file}: an .onnx is written of basic blocks and a linear head alone; of "
            f"model.name={model.name}, model.head={model.head}, model.num_classes="
            f"{model.num_classes} give a .safetensors or .stablehlo"
        )
    tensors = to_torchvision(run.state.params, run.state.batch_stats)
    note = about(run, workdir) | {"sha256": sha256(tensors)}
    FORMS[suffix](run, tensors, note, file)


def about(run: Run, workdir: Path) -> dict[str, Any]:
    """Return what is noted beside exported weights, for JSON.

    The settings; what goes in and how pictures become that; which checkpoint, of which
    commits; and, where it was evaluated, its numbers with their protocols.
    """
    data = run.config.data
    side = data.resize or data.image_size
    step = int(run.state.step)
    sessions = read_sessions(workdir)
    return {
        "program": f"eir_jax {__version__}",
        "commit": commit(),
        "trained_by_commit": sessions[-1]["commit"] if sessions else "",
        "config": run.config.to_dict(),
        "input": f"uint8 RGB [n, {side}, {side}, 3]",
        "preparation": preparation(side, data.fit),
        "view": describe_view(data),
        "step": step,
        "num_examples": run.meta["num_examples"],
        "train_hash": run.meta["train_hash"],
        "checksums": run.meta["checksums"],
        "evaluation": _evaluation(workdir / "eval" / f"step_{step}.json"),
    }


def _evaluation(file: Path) -> dict[str, Any]:
    """Return what an evaluation found; nothing, and that said, of one cut short."""
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        print(
            f"warning: {file} cannot be read ({first_line(error)}); the weights note "
            "no numbers: evaluate the run again for them"
        )
        return {}


def check_target(file: Path) -> None:
    """Refuse a file of a form that there is not, or that cannot be written.

    Raises:
      UserError: naming the forms, or what cannot be written.
    """
    suffix = file.suffix.lower()
    if suffix not in FORMS:
        raise UserError(f"{file} is of no form of {', '.join(FORMS)}; give one (--to)")
    check_writable(file)
    if suffix == ".stablehlo":
        check_writable(_notes_beside(file))


def _notes_beside(file: Path) -> Path:
    return file.with_suffix(f"{file.suffix}.json")


def _safetensors(run: Run, tensors, note, file: Path) -> None:
    write_weights(file, tensors, note)


def _onnx(run: Run, tensors, note, file: Path) -> None:
    from eir_jax.models.onnx_graph import onnx_model

    data = run.config.data
    content = onnx_model(
        tensors,
        side=data.resize or data.image_size,
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        about={"eir_jax": json.dumps(note)},
    )
    write_bytes(file, content)


def _stablehlo(run: Run, tensors, note, file: Path) -> None:
    """Write what `jax.export.deserialize` reads, and the note beside it."""
    from jax import export as jax_export

    data = run.config.data
    side = data.resize or data.image_size
    encoder = make_encoder(run.config, exact=True)
    variables = jax.device_get(
        {"params": run.state.params, "batch_stats": run.state.batch_stats}
    )

    def embed(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        output: Any = encoder.apply(variables, evaluation_view(images, run.config))
        return output.embedding, output.feature

    shape = (*jax_export.symbolic_shape("n"), side, side, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = jax_export.export(jax.jit(embed), platforms=PLATFORMS)(images)
    try:
        content = exported.serialize()
    except ImportError as error:
        raise UserError(f"{error}: pip install flatbuffers") from None
    write_bytes(file, bytes(content))
    write_bytes(_notes_beside(file), (json.dumps(note, indent=2) + "\n").encode())


FORMS: dict[str, Callable[..., None]] = {
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".stablehlo": _stablehlo,
}
