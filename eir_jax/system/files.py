"""Files that are written whole or not at all, and where they may lie."""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from eir_jax.system.errors import UserError, first_line

# gs://, file:/ and host:/, but not c:/
NOT_LOCAL = re.compile(r"[A-Za-z][\w+.@-]+:/")
ADDRESS = re.compile(r"file:(?://([^/]*))?(/.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/|$)")
# Suffixes that promise a kind of file, which a folder has not.
OF_FILES = (
    *(".csv", ".faiss", ".gz", ".html", ".jpeg", ".jpg", ".json", ".jsonl", ".md"),
    *(".npy", ".npz", ".onnx", ".parquet", ".pdf", ".png", ".pth", ".safetensors"),
    *(".stablehlo", ".svg", ".tsv", ".txt", ".zip"),
)

_parts: set[Path] = set()  # being written


def local_path(text: str) -> Path:
    """Return the path that a user gave, `~` and `~name` expanded.

    Raises:
      UserError: it is empty, an address such as gs://, of a home that is unknown, or
        begins with a variable that no shell has filled in.
    """
    if not text.strip():
        raise UserError("the path is empty; is a variable of the shell unset?")
    if (address := ADDRESS.match(text)) and address[1] in (None, "", "localhost"):
        raise UserError(f"{text} is no local path; give {unquote(address[2])}")
    beginning = text.partition("/")[0]
    if NOT_LOCAL.match(text) and ("://" in text or not os.path.exists(beginning)):
        raise UserError(
            f"{text} is no local path; mount it, or copy it to this machine and give "
            "the path there"
        )
    if (variable := VARIABLE.match(text)) and not os.path.exists(text):
        raise UserError(
            f"{text} begins with a variable that was not filled in; quotes such as '' "
            f"keep the shell from it: write what {variable[0].rstrip('/')} stands for"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from None


def in_words(path: Path | str) -> str:
    """Return a path that is not there, a relative one with the folder it is under."""
    if Path(path).is_absolute():
        return str(path)
    try:
        return f"{path} (in {Path.cwd()})"
    except FileNotFoundError:
        return f"{path} (in a folder that is gone)"


def check_suffix(path: Path, kinds: tuple[str, ...], what: str) -> None:
    """Refuse the name of an output that promises another kind of file.

    Args:
      path: of the output.
      kinds: suffixes that it may have, such as '.png'.
      what: is written, in words.

    Raises:
      UserError: naming the suffixes that fit; or it is a folder.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give the name of a file")
    if path.suffix.lower() not in kinds:
        raise UserError(
            f"{path} would hold {what}, which its name does not say; give a name that "
            f"ends in {' or '.join(kinds)}"
        )


def check_writable(path: Path) -> None:
    """Make the folder of a file to be written, and try to write there; before the work.

    Raises:
      UserError: it cannot be written, or `path` is a folder.
    """
    with _said(path):
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file")
        with replacing(path, moved=False) as part:
            part.touch()


def check_not_read(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace what it is made of.

    Raises:
      UserError: it is one of the inputs.
    """
    there = [x for x in inputs if os.path.exists(x)]  # False of a name too long, too
    if os.path.exists(path) and any(path.samefile(x) for x in there):
        raise UserError(f"{path} is what is read; give another name for the output")


def refuse_unreadable(error: OSError) -> NoReturn:
    """Say which folder `os.walk` cannot read, as its `onerror`.

    Raises:
      UserError: always.
    """
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")


def check_folder(folder: Path) -> None:
    """Make a folder, and try to write there; before the work.

    Raises:
      UserError: it cannot be written, or has a name such as files have.
    """
    with _said(folder):
        check_folder_name(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def check_folder_name(folder: Path) -> None:
    """Refuse for a folder that is not there yet a name such as files have.

    Raises:
      UserError: it has one.
    """
    if folder.suffix.lower() in OF_FILES and not folder.is_dir():
        raise UserError(
            f"{folder} is to be a folder and has the name of a file; give a folder"
        )


@contextmanager
def replacing(path: Path, moved: bool = True) -> Iterator[Path]:
    """Yield another path of the same folder; what is written there becomes `path`.

    With an error, or where the process is killed, `path` stays as it was. The folder is
    made where there is none.

    Args:
      path: the file.
      moved: False: what is written is removed instead.

    Raises:
      OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _parts.add(part)
    try:
        yield part
        if moved:
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        _parts.discard(part)


def remove_parts() -> None:
    """Remove what is half written: this process ends at once."""
    for part in tuple(_parts):
        with suppress(OSError):
            part.unlink()


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that every reader takes: what is not finite is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record whole or not at all.

    Raises:
      UserError: the folder cannot be written.
    """
    with _said(path), replacing(path) as part:
        part.write_text(to_json(record, indent=2) + "\n")


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {first_line(error)}") from None
