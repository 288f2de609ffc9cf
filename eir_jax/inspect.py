"""Look at a data set as training sees it: `python -m eir_jax.inspect`."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from eir_jax.system import cli, compilation_cache, files
from eir_jax.system.words import counted

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from eir_jax.data.dataset import Dataset, Split
    from eir_jax.data.pipeline import Images

NUM_SHOWN = 8
CELL = 1.7  # inches
DPI = 110
DESCRIPTION = """\
Load the data set of a config file, print what it holds (counts, sizes, classes, hashes)
and write DIR/views.png: some training images with the view that is evaluated, their two
training views and their mix. Settings can be given as --config.KEY=VALUE.
"""


def main(argv: list[str]) -> None:
    """Parse the command line, print what the data set holds and draw its views."""
    parser = cli.Parser(prog="eir_jax.inspect", description=DESCRIPTION)
    parser.add_argument(
        "--config", required=True, type=cli.path, help="a file such as configs/*.py"
    )
    parser.add_argument(
        "--out",
        default=Path(),
        type=cli.path,
        help="folder for views.png (default: here)",
    )
    args, overrides = parser.parse_known_args(argv)
    from eir_jax.data import sources
    from eir_jax.run.validate import check_data_there, validate
    from eir_jax.system.config import load_config

    config = load_config(args.config, overrides)
    validate(config)
    check_data_there(config.data)
    files.check_folder(args.out)
    files.check_writable(args.out / "views.png")
    compilation_cache.keep_compiled()
    dataset = sources.load(config.data)
    for line in describe(dataset, config):
        print(line)
    draw_views(dataset, config, args.out / "views.png")
    print(f"views    {args.out / 'views.png'}")


def describe(dataset: "Dataset", config: "ConfigDict") -> Iterator[str]:
    """Yield the lines that tell what a data set holds."""
    import numpy as np

    from eir_jax.evaluation.allowed import remarks

    where = f", from {config.data.path}" if config.data.path else ""
    yield f"source   {dataset.source}, {dataset.name}{where}"
    for name in ("train", "test"):
        split: Split | None = getattr(dataset, name)
        yield f"{name:8} " + (_images(split, config) if split else "none")
        if split:
            yield f"         {_classes(split, dataset.class_names)}"
    labels = [s.labels for s in (dataset.train, dataset.test) if s]
    if len(labels) == 2 and all(x is not None and (x >= 0).any() for x in labels):
        train, test = (np.unique(x[x >= 0]) for x in labels if x is not None)
        unseen = int((~np.isin(test, train)).sum())
        if unseen == len(test):
            yield "classes  no test class occurs in train: retrieval, no kNN"
        elif unseen:
            yield f"classes  {unseen:,} of the {len(test):,} test classes not in train"
    yield f"hashes   training images {dataset.train_hash[:12]}"
    yield f"         all images and labels {dataset.content_hash[:12]}"
    for note in (*dataset.notes, *remarks(dataset, config)):
        yield f"note     {note}"


def _images(split: "Split", config: "ConfigDict") -> str:
    """Return number, size and storage of the images, in words."""
    from eir_jax.data.encoded import EncodedImages

    count, height, width = split.images.shape[:3]
    size = config.data.image_size
    words = f"{counted(count, 'image')} of {height}x{width}"
    if size != height:
        words += f", cut to {size}x{size}"
    if not isinstance(split.images, EncodedImages):
        return f"{words}; pixels, {_bytes(split.images.nbytes)}"
    low, high = split.images.sizes.min(axis=0), split.images.sizes.max(axis=0)
    sides = f"{low[0]} to {high[0]} high, {low[1]} to {high[1]} wide"
    if (low == high).all():
        sides = f"all {low[0]}x{low[1]}"
    place = "in memory" if split.images.in_memory else "on disk"
    size_in_all = _bytes(int(split.images.file_sizes.sum()))
    return f"{words}; encoded {place}, {size_in_all}, {sides}"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"


def _classes(split: "Split", names: tuple[str, ...] | None) -> str:
    """Return number of the classes, smallest and largest, and what is unlabelled."""
    import numpy as np

    if split.labels is None:
        return "no labels"
    unlabelled = int((split.labels < 0).sum())
    classes, counts = np.unique(split.labels[split.labels >= 0], return_counts=True)
    if not len(classes):
        return f"{unlabelled:,} unlabelled"
    least, most = counts.argmin(), counts.argmax()
    words = f"{len(classes):,} {'class' if len(classes) == 1 else 'classes'}"
    if counts[least] == counts[most]:
        words += f", {counts[0]:,} of each"
    else:
        words += (
            f", from {counts[least]:,} ({_class_name(classes[least], names)}) to "
            f"{counts[most]:,} ({_class_name(classes[most], names)}) images"
        )
    return words + (f"; {unlabelled:,} unlabelled" if unlabelled else "")


def _class_name(label: int, names: tuple[str, ...] | None) -> str:
    if label < 0:
        return "unlabelled"
    name = str(label) if names is None else names[label]
    return f"class {name}" if name.isdecimal() else name


def draw_views(dataset: "Dataset", config: "ConfigDict", path: Path) -> None:
    """Draw the first images that a run would train on, with all that is made of them.

    A row is one image: the view that is evaluated, both training views, the mix. The
    rows are a batch of their own, so that partners are among them.

    Raises:
      UserError: the pipeline's library is absent, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    from eir_jax.figures.png import write_png

    images = dataset.train.images
    config = config.copy_and_resolve_references()
    config.batch_size = min(NUM_SHOWN, len(images))
    batch = _first_batch(images, config)
    columns = {"as evaluated": _evaluated(images[batch["index"]], config)}
    titles = {"view1": "view 1", "view2": "view 2", "mixed": config.interpolation.kind}
    columns |= {title: batch[key] for key, title in titles.items() if key in batch}
    rows = len(batch["index"])
    figure = Figure(
        (CELL * len(columns) + 1.5, 1.12 * CELL * rows + 0.3), DPI, layout="constrained"
    )
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, views) in enumerate(columns.items()):
        for row, axes in enumerate(grid[:, column]):
            axes.imshow(_seen(views[row], config), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(title, fontsize=11, weight="bold")
    files = [f for f in dataset.files if f.split == "train" and not f.broken]
    names = [file.path.rsplit("/", 1)[-1] for file in files]
    if len(names) != len(images):  # another source than a folder
        names = []
    for row, index in enumerate(batch["index"]):
        lines = [_shortened(names[index]) if names else f"image {index}"]
        if dataset.train.labels is not None:
            label = int(dataset.train.labels[index])
            lines.append(_shortened(_class_name(label, dataset.class_names)))
        grid[row, 0].set_ylabel(
            "\n".join(lines), rotation=0, ha="right", va="center", parse_math=False
        )
        if "mixed" in batch:
            partner = batch["index"][batch["partner"][row]]
            other = _shortened(names[partner]) if names else partner
            words = f"{batch['ratio'][row]:.0%} its own, the rest {other}"
            grid[row, -1].set_xlabel(words, fontsize=9, parse_math=False)
    write_png(figure, path)


def _first_batch(images: "Images", config: "ConfigDict") -> "dict[str, np.ndarray]":
    """Return the batch of step 0 with its pixels, by the pipeline of the settings."""
    import jax
    import numpy as np

    from eir_jax.data.augment_device import make_batch_views, put_images
    from eir_jax.data.pipeline import make_train_batches
    from eir_jax.objectives.systems import make_objective
    from eir_jax.system import sharding

    slots = make_objective(config, len(images)).slots
    with closing(make_train_batches(images, config, slots, 0, 1)) as batches:
        batch = next(batches)
    if config.data.pipeline == "device":
        mesh = sharding.make_mesh(jax.devices()[:1])
        resident = {"images": put_images(images, config, mesh)}
        batch = jax.jit(make_batch_views(config, slots, mesh))(batch | resident)
    return {key: np.asarray(value) for key, value in batch.items()}


def _evaluated(images: "np.ndarray", config: "ConfigDict") -> "np.ndarray":
    """Return the single view of each image that is evaluated, normalised."""
    import jax.numpy as jnp
    import numpy as np

    from eir_jax.evaluation.embed import evaluation_view

    return np.asarray(evaluation_view(jnp.asarray(images), config))


def _seen(view: "np.ndarray", config: "ConfigDict") -> "np.ndarray":
    """Undo the normalisation, for eyes: [height, width, 3] in [0, 1]."""
    import numpy as np

    mean, std = np.asarray(config.data.mean), np.asarray(config.data.std)
    return np.clip(view * std + mean, 0, 1)


def _shortened(name: str) -> str:
    name = name.encode(errors="replace").decode()
    return name if len(name) <= 18 else f"{name[:9]}…{name[-8:]}"


if __name__ == "__main__":
    cli.run(main)
