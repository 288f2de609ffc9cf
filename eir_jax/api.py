"""What `import eir_jax` offers: train, load and use an encoder from Python.

Paths may be strings. Nothing is printed where all goes well, but with `progress=True`
what the command of the same name prints. Bad input raises UserError
(eir_jax.system.errors), one line that says the way out.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8
from ml_collections import ConfigDict
from sklearn.base import BaseEstimator, TransformerMixin

from eir_jax.collection.embed import (
    embed_arrays,
    embed_file,
    embed_pictures,
    existing_pictures,
)
from eir_jax.collection.embeddings import Embeddings
from eir_jax.evaluation.export import export
from eir_jax.evaluation.knn import knn_accuracy, unit_rows
from eir_jax.evaluation.nearest import nearest
from eir_jax.evaluation.restore import restore
from eir_jax.system import cli, compilation_cache
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError
from eir_jax.system.files import local_path
from eir_jax.system.progress import quiet

AnyPath = str | PathLike[str]
Images = UInt8[np.ndarray, "n size size 3"]


class TrainedEncoder:
    """An encoder from a checkpoint or a file of weights; `load` makes it.

    Attributes:
      config: all settings it was trained with.
      step: steps it was trained for.
      image_size: pixels, of the sides of the arrays that `embed` takes.
    """

    def __init__(self, source: AnyPath, step: int | str = "last"):
        cli.quiet_orbax()
        compilation_cache.keep_compiled()
        self._source = _path(source)
        self._run = restore(self._source, str(step))
        self.config: ConfigDict = self._run.config
        self.step = int(self._run.state.step)
        self.image_size: int = self.config.data.resize or self.config.data.image_size

    def __repr__(self) -> str:
        return f"TrainedEncoder({str(self._source)!r}, step={self.step})"

    def embed(
        self,
        images: Images | AnyPath | Sequence[AnyPath],
        *,
        progress: bool = False,
    ) -> Embeddings:
        """Embed arrays, pictures or a folder.

        Args:
          images: uint8 RGB [n, image_size, image_size, 3]; or a folder, searched to the
            bottom; or one or several picture files of any size; or an .npz that holds
            `images`.
          progress: print how far it is.

        Returns:
          An object with the arrays `embedding` float32 [n, 128], of unit length,
          `feature` float32 [n, 512], before the head, and `path` (pictures: relative to
          the folder, if one was given) or `index`; pictures that are broken are named
          on stderr and left out of all.

        Raises:
          UserError: there are no images, or they are not of the type and size.
        """
        with quiet(not progress):
            if isinstance(images, (str, PathLike)):
                path = _path(images)
                if path.is_dir():
                    paths = existing_pictures(path)
                    return embed_pictures(self._run, self._source, path, paths)
                if path.suffix == ".npz":
                    return embed_file(self._run, self._source, path)
                images = [path]
            if not isinstance(images, np.ndarray):
                if not len(images):
                    raise UserError("there is no picture to embed: the list is empty")
                names = [str(_path(path)) for path in images]
                return embed_pictures(self._run, self._source, Path.cwd(), names)
            size = self.image_size
            if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
                raise UserError(
                    f"the images are {images.dtype} {list(images.shape)}; they must be "
                    f"uint8 [n, {size}, {size}, 3], as this encoder was trained "
                    "(picture files may be of any size)"
                )
            if not len(images):
                raise UserError("there is no image to embed: the array is empty")
            return embed_arrays(self._run, self._source, images)

    def export(self, file: AnyPath) -> None:
        """Write the weights: .safetensors, .onnx or .stablehlo (docs/weights.md).

        Raises:
          UserError: another suffix, a package that is not installed, or the file cannot
            be written.
        """
        export(self._run, self._source, _path(file))


class Transformer(TransformerMixin, BaseEstimator):
    """A trained encoder as a step of a scikit-learn pipeline.

    Args:
      source: workdir or file of weights, as for `load`.
      output: 'embedding' or 'feature'.
    """

    def __init__(self, source: AnyPath, output: str = "embedding"):
        self.source = source
        self.output = output

    def fit(self, images: Any, labels: Any = None) -> "Transformer":
        """Load the encoder; it was trained before, and nothing is learned here."""
        if self.output not in ("embedding", "feature"):
            raise UserError(f"output={self.output!r} is no embedding or feature")
        self.encoder_ = load(self.source)
        return self

    def transform(
        self, images: Images | AnyPath | Sequence[AnyPath]
    ) -> Float32[np.ndarray, "n dim"]:
        """Return a row for each image, as `TrainedEncoder.embed` takes them.

        Raises:
          UserError: also where a picture is broken, as rows would no longer fit.
        """
        if not hasattr(self, "encoder_"):
            self.fit(images)
        found = self.encoder_.embed(images)
        if skipped := found.meta.get("skipped"):
            raise UserError(f"{skipped} of the pictures are broken; leave them out")
        rows: np.ndarray = getattr(found, self.output)
        return rows


def load(source: AnyPath, step: int | str = "last") -> TrainedEncoder:
    """Return the encoder of a run or of a file of weights.

    Args:
      source: the workdir of a run, or a .safetensors or .pth (docs/weights.md).
      step: of a workdir: which checkpoint; a number, 'last' or 'best'.

    Raises:
      UserError: there is none there, or it is damaged.
    """
    return TrainedEncoder(source, step)


def train(
    config: str | PathLike[str] | ConfigDict,
    workdir: AnyPath,
    settings: Mapping[str, Any] | None = None,
    *,
    progress: bool = False,
) -> TrainedEncoder:
    """Train in `workdir`, or go on with what was begun there; return the encoder.

    Args:
      config: a name ('digits'), a config file, or what one returns.
      workdir: the folder of the run.
      settings: what to set otherwise: {"num_epochs": 2, "model.width": 8}.
      progress: print what `python -m eir_jax.main` prints.

    Raises:
      UserError: for bad settings or data, and when a loss is not finite.
      KeyboardInterrupt: after the step at hand, saved, when interrupted; a second time,
        at once.
      SystemExit: likewise by SIGTERM, with the status 75, "to be started again".
    """
    from eir_jax.training.loop import train_and_evaluate

    cli.quiet_orbax()
    compilation_cache.keep_compiled()
    workdir = _path(workdir)
    config = load_config(config, _words(settings))
    with _silent(not progress):
        status = train_and_evaluate(config, workdir)
    if status == 130:
        raise KeyboardInterrupt
    if status:  # SIGTERM: whoever calls is to end as well
        raise SystemExit(status)
    return load(workdir)


def evaluate(
    source: AnyPath | Sequence[AnyPath],
    *,
    config: AnyPath | None = None,
    out: AnyPath | None = None,
    step: int | str = "last",
    tasks: Sequence[str] = (),
    data_path: AnyPath | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a run, weights or embeddings; return what is in `eval/step_N.json`.

    Args:
      source: the folder of a run; or a .safetensors or .pth; or embeddings of any
        program, .npz files of train and test or one that is judged within itself
        (docs/evaluation.md).
      config: another data set to judge a run or weights on: that of a config, a name or
        a file.
      out: folder to write to; the run's (for another data set its transfer/CONFIG)
        where it is left out, which it can be for a run alone.
      step: of a run: a number, 'last' or 'best'.
      tasks: of knn, linear, retrieval, health, figures; none: all that the data allows.
      data_path: where the data lies now, if not where training read it.
      settings: of the evaluation: {"knn.k": (1, 10)}.
      progress: print what the command prints.

    Returns:
      `protocol`, and parts for each task; accuracies are fractions in [0, 1].

    Raises:
      UserError: no checkpoint, weights or embeddings; other data than the checkpoint's;
        or arguments that do not go together.
    """
    from eir_jax.experiments.evaluate import check_tasks, print_remarks, print_task
    from eir_jax.experiments.evaluate import evaluate as evaluate_run

    cli.quiet_orbax()
    compilation_cache.keep_compiled()
    check_tasks(tuple(tasks))
    words = _words(settings)
    one = isinstance(source, (str, PathLike))
    files = [_path(x) for x in ([source] if one else source)]  # type: ignore
    place = None if out is None else _path(out)
    with _silent(not progress):
        judged = _elsewhere(files, config, str(step), words)
        if judged is not None:
            if data_path is not None:
                raise UserError(
                    "data_path goes with a run on its own data; elsewhere give "
                    'settings={"data.path": ...}'
                )
            if place is None and config is not None and files[0].is_dir():
                place = files[0] / "transfer" / Path(config).stem
            if place is None:
                raise UserError(
                    "weights and embeddings need out=, a folder to write to"
                )
        record = evaluate_run(
            files[0] if judged is None else place or files[0],
            str(step),
            tuple(tasks),
            None if data_path is None else str(data_path),
            overrides=words,
            tell=print_task if progress else None,
            out=place,
            judged=judged,
        )
        if progress:
            print_remarks(record)
    return record


def _elsewhere(
    files: list[Path], config: AnyPath | None, step: str, words: list[str]
) -> Any:
    """Return what is judged but for a run on its own data, which is None."""
    from eir_jax.experiments import elsewhere

    of_a_file = len(files) != 1 or files[0].is_file()
    if of_a_file and step != "last":
        raise UserError("step goes with a run, not with weights or embeddings")
    if len(files) != 1 or files[0].suffix == ".npz":
        if config is not None:
            raise UserError("config goes with a run or weights, not with embeddings")
        return elsewhere.of_embeddings(files, words)
    if files[0].is_file():
        return elsewhere.by_weights(files[0], config, words)
    if config is not None:
        return elsewhere.on_other_data(files[0], step, config, words)
    return None


knn = knn_accuracy


def neighbours(
    gallery: Float[np.ndarray, "row dim"],
    query: Float[np.ndarray, "query dim"] | None = None,
    k: int = 8,
) -> tuple[Float32[np.ndarray, "query k"], Int32[np.ndarray, "query k"]]:
    """Find each query's k most similar rows of the gallery, the nearest first.

    Args:
      gallery: embeddings or features, of any length.
      query: likewise; None: each row of the gallery, which then does not find itself.
      k: neighbours a query.

    Returns:
      Cosines, and rows of the gallery.

    Raises:
      UserError: k is out of range, or rows are zero, not finite or of other dimensions.
    """
    rows = unit_rows(gallery, "the gallery")
    if query is None:
        return nearest(rows, rows, k, exclude=np.arange(len(rows), dtype=np.int32))
    return nearest(unit_rows(query, "the query"), rows, k)


def _path(path: AnyPath) -> Path:
    return local_path(fspath(path))


def _words(settings: Mapping[str, Any] | None) -> list[str]:
    return [f"--config.{key}={value}" for key, value in (settings or {}).items()]


def _silent(silent: bool) -> contextlib.AbstractContextManager[Any]:
    if silent:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.nullcontext()
