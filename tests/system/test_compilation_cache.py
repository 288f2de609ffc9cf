"""What is compiled is kept for the next start; whatever its folder, a run goes on."""

import os
import subprocess
import sys
import time

from test_main import QUICK, ROOT, command, environment

from eir_jax.system.compilation_cache import prune

JAX_KEYS = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
PROGRAM = """
import resource, sys
import jax
from eir_jax.system import compilation_cache

hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
compilation_cache.keep_compiled()
if len(sys.argv) > 1:  # as on a full disk, a file is cut short
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

def first(x): return x * 2
def second(x): return x - 1

assert int(jax.jit(first)(3)) == 6 and int(jax.jit(second)(3)) == 2
print(len(hits))
"""


def of_user(folder, **variables):
    """Return the environment of a user whose cache folder is `folder`."""
    kept = {k: v for k, v in environment().items() if k not in JAX_KEYS}
    return kept | {"XDG_CACHE_HOME": str(folder)} | variables


def compile_two(environ, *words):
    """Return how many of two programs were found, and the lines on stderr."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout), result.stderr.splitlines()


def entries(folder, name=""):
    return sorted(folder.glob(f"eir_jax/jax/jit_{name}*"))


def test_a_second_start_finds_it(tmp_path):
    environ = of_user(tmp_path)
    assert compile_two(environ) == (0, [])
    assert len(entries(tmp_path)) == 2
    assert compile_two(environ) == (2, [])


def test_what_a_kill_cut_short_is_said_once_and_made_anew(tmp_path):
    environ = of_user(tmp_path)
    compile_two(environ)
    for entry in entries(tmp_path):
        os.truncate(entry, entry.stat().st_size // 2)
    hits, (line,) = compile_two(environ)
    assert hits == 0
    assert line.startswith("warning: ") and str(tmp_path) in line
    assert compile_two(environ) == (2, [])


def test_jax_own_variables_win(tmp_path):
    chosen = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert compile_two(of_user(tmp_path, **chosen)) == (0, [])
    assert len(list((tmp_path / "chosen").glob("jit_*"))) == 2
    assert compile_two(of_user(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0")) == (0, [])
    assert compile_two(of_user(tmp_path, JAX_COMPILATION_CACHE_DIR="")) == (0, [])
    assert not (tmp_path / "eir_jax").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    hits, (line,) = compile_two(of_user(tmp_path / "file"))
    assert hits == 0
    assert line.startswith("warning: ") and "cannot be kept" in line


def test_a_full_disk_is_one_line(tmp_path):
    environ = of_user(tmp_path)
    hits, (line,) = compile_two(environ, "full")
    assert hits == 0
    assert line.startswith("warning: ") and "File too large" in line
    assert compile_two(environ) == (0, [])


def test_the_commands_keep_what_they_compile(tmp_path):
    """An untrained encoder and its evaluation: the state's and the embedding's."""
    words = ["--config=configs/digits.py", f"--workdir={tmp_path / 'w'}", *QUICK]
    for module, args, name in (
        ("main", [*words, "--config.num_epochs=0"], "init"),
        ("evaluate", [words[1], "--tasks=health"], "embed_batch"),
    ):
        result = subprocess.run(
            command(module, *args),
            cwd=ROOT,
            env=of_user(tmp_path),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert not result.stderr
        assert entries(tmp_path, name)


def test_the_longest_unused_go_first(tmp_path):
    now = time.time()
    for age in range(6):
        path = tmp_path / f"{'sub' if age % 2 else '.'}" / f"{age}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (now - age, now - 100))
    prune(tmp_path, 600)
    assert len(list(tmp_path.rglob("*-cache"))) == 6
    prune(tmp_path, 599)
    assert sorted(p.name[0] for p in tmp_path.rglob("*-cache")) == ["0", "1"]
