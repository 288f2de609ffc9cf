"""Which files of a folder a run was trained on: pictures.jsonl."""

import json
from collections.abc import Sequence
from pathlib import Path

from eir_jax.data.dataset import Dataset, PictureFile
from eir_jax.system.errors import UserError, one_line
from eir_jax.system.files import replacing, to_json

RECORD = "pictures.jsonl"


def record(dataset: Dataset, workdir: Path, resumes: bool) -> None:
    """Keep the list of a folder's files in the workdir, one line a file.

    Args:
      dataset: as loaded; of other sources there is nothing to keep.
      workdir: of the run.
      resumes: whether there is a checkpoint to go on from.

    Raises:
      UserError: the run would go on with other files than it began with.
    """
    if not dataset.files:
        return
    path = workdir / RECORD
    if resumes and path.exists():
        changes = _changes(_read_record(path), dataset.files)
        if changes:
            raise UserError(
                f"the pictures of {dataset.name} are not those that {workdir} began "
                f"with: {changes}; put them back, or give another --workdir"
            )
        return
    with replacing(path) as part:
        part.write_text("".join(to_json(file) + "\n" for file in dataset.files))


def trained_on(files: Sequence[PictureFile]) -> list[tuple[str, int]]:
    """Return path and bytes of the training pictures: a bank's rows, in their order."""
    return [(f.path, f.size) for f in files if f.split == "train" and not f.broken]


def recorded_pictures(workdir: Path) -> list[tuple[str, int]]:
    """Return `trained_on` of a run.

    Raises:
      UserError: it was not trained on a folder, or its record cannot be read.
    """
    path = workdir / RECORD
    if not path.exists():
        raise UserError(
            f"{workdir} has no {RECORD}: only a run on a folder of pictures can grow"
        )
    return trained_on(_read_record(path))


def _read_record(path: Path) -> list[PictureFile]:
    try:
        return [
            PictureFile(*json.loads(line)) for line in path.read_text().splitlines()
        ]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as a list of pictures ({error}); remove it to go "
            "on without a check of the files' names"
        ) from None


def _changes(before: Sequence[PictureFile], now: Sequence[PictureFile]) -> str:
    """Return in words what is new, gone or changed; empty where all is as before."""
    old = {(file.split, file.path): file for file in before}
    new = {(file.split, file.path): file for file in now}
    both = old.keys() & new.keys()
    kinds = {
        "new": new.keys() - old.keys(),
        "gone": old.keys() - new.keys(),
        "of another size": {key for key in both if old[key].size != new[key].size},
    }
    kinds["broken or mended"] = {
        key
        for key in both - kinds["of another size"]
        if bool(old[key].broken) != bool(new[key].broken)
    }
    parts = [
        f"{len(keys):,} {'file is' if len(keys) == 1 else 'files are'} {kind}, such as "
        + one_line(min(path for _, path in keys))
        for kind, keys in kinds.items()
        if keys
    ]
    return "; ".join(parts)
