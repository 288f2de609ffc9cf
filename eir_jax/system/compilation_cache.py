"""Compiled programs, kept from one start to the next: JAX's persistent cache."""

import glob
import os
import re
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from eir_jax.system import processes

MAX_BYTES = 2 * 10**9
HELP = """\
What is compiled is kept for the next start, in ~/.cache/eir_jax: elsewhere with
JAX_COMPILATION_CACHE_DIR=DIR in the environment, nowhere with
JAX_ENABLE_COMPILATION_CACHE=0.
"""
# What JAX says, a warning each time, of an entry that is cut short, or of a full disk.
_TROUBLE = re.compile(
    r"Error (?:reading|writing) persistent compilation cache entry for '(.*?)': (.*)",
    re.DOTALL,
)


def keep_compiled() -> None:
    """Keep what JAX compiles in the user's cache folder; before it compiles anything.

    JAX's own settings win: JAX_COMPILATION_CACHE_DIR names another folder, left as JAX
    leaves it, and JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. Several processes have
    none but by that: where one finds a program that the others compile, those may wait
    for its share of the work for ever. Trouble with the folder is one line on stderr.
    """
    import jax

    settings: Any = jax.config  # whose attributes are not declared
    chosen = settings.jax_compilation_cache_dir is not None
    if chosen or not settings.jax_enable_compilation_cache or processes.count() > 1:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        folder = Path(home) / "eir_jax" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        prune(folder, MAX_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home is known
        _warn(f"what is compiled cannot be kept for the next start: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _mend(folder)


def prune(folder: Path, max_bytes: int) -> None:
    """Remove the files that were used longest ago, down to half of `max_bytes`.

    JAX's own bound (jax_compilation_cache_max_size) takes a lock at each look-up and
    keeps nothing more once a process was killed while it wrote.
    """
    files = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process prunes as well
            found = path.stat()
            if path.is_file():
                used = max(found.st_atime, found.st_mtime)
                files.append((used, found.st_size, path))
    left = sum(size for _, size, _ in files)
    if left <= max_bytes:
        return
    for _, size, path in sorted(files):
        if left <= max_bytes // 2:
            return
        path.unlink(missing_ok=True)
        left -= size


def _mend(folder: Path) -> None:
    """Say JAX's trouble with the cache once, and remove the entries it is with.

    JAX writes in place and never again where a file is: what a kill or a full disk cut
    short would be warned of, and compiled anew, at every start.
    """
    show, said = warnings.showwarning, False

    def show_once(message, *args, **kwargs) -> None:
        nonlocal said
        trouble = _TROUBLE.match(str(message))
        if trouble is None:
            show(message, *args, **kwargs)
            return
        program, reason = trouble.groups()
        for entry in folder.glob(f"{glob.escape(program)}-*"):
            with suppress(OSError):
                entry.unlink()
        if not said:
            _warn(f"of what is compiled not all is kept in {folder}: {reason}")
        said = True

    warnings.showwarning = show_once


def _warn(message: str) -> None:
    print("warning: " + " ".join(message.split())[:300], file=sys.stderr, flush=True)
