"""Ctrl-C, SIGTERM and SIGHUP, in every command, whatever it is doing."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from test_main import QUICK, ROOT, command, environment

from eir_jax.system import interruption

# As in a terminal; where the tests run in the background, signals may be ignored.
HEED = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
WHILE = {  # what the main thread is at, and Python's own exception would not end
    "sleeping": "time.sleep(60)",
    "in a callback of C": (
        "def compare(a, b):\n"
        "    time.sleep(60)\n"
        "    return 0\n"
        "kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)\n"
        "rows = (ctypes.c_int * 9)()\n"
        "while True: ctypes.CDLL(None).qsort(rows, 9, 4, kind(compare))"
    ),
    "in C alone": "ctypes.CDLL(None).usleep(60_000_000)",
    "deaf to exceptions": (
        "while True:\n    try: time.sleep(60)\n    except BaseException: pass"
    ),
}


def start(words):
    return subprocess.Popen(
        [sys.executable, "-c", HEED, *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_stopped(process, number, status):
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == status, said
    (line,) = said.splitlines()
    assert line.startswith(f"stopped by {number.name}")


@pytest.mark.parametrize("doing", WHILE)
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_no_moment_is_deaf_and_no_half_file_is_left(tmp_path, doing, number, status):
    program = (
        "import ctypes, pathlib, time\n"
        "from eir_jax.system import cli, files\n"
        "def main(argv):\n"
        f"    with files.replacing(pathlib.Path({str(tmp_path)!r}) / 'a') as part:\n"
        "        part.write_text('half')\n"
        "        print('up', flush=True)\n"
        + "".join(f"        {line}\n" for line in WHILE[doing].splitlines())
        + "cli.run(main)\n"
    )
    process = start([sys.executable, "-c", program])
    assert process.stdout.readline() == "up\n"
    assert_stopped(process, number, status)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 0.4, 1.5])
def test_a_command_that_starts(tmp_path, delay, number):
    """While Python, JAX or the data are read; of none of it anything is left."""
    words = ["--config=configs/digits.py", f"--out={tmp_path}"]
    process = start(
        [sys.executable, "-X", "importtime", *command("inspect", *words)[1:]]
    )
    for line in process.stderr:  # from here on signals are heeded
        if line.endswith(" eir_jax\n"):
            break
    time.sleep(delay)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    said = [line for line in said.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1 and said[0].startswith(f"stopped by {number.name}")
    assert process.returncode == 128 + number
    assert not list(tmp_path.iterdir())


def test_a_long_search(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30_000, 64)).astype(np.float32)
    np.savez(tmp_path / "E.npz", embedding=rows)
    words = [f"--embeddings={tmp_path / 'E.npz'}", "--duplicates=-1"]
    process = start(command("search", *words))
    time.sleep(2)
    assert_stopped(process, signal.SIGINT, 130)


def test_a_run_that_has_not_begun_its_first_step_is_unfinished(tmp_path):
    """As one that a scheduler is to start again; Ctrl-C ends it as everywhere."""
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        workdir = tmp_path / number.name
        words = ["--config=configs/digits.py", f"--workdir={workdir}", *QUICK]
        process = start(command("main", *words, "--config.num_epochs=1000"))
        while not (workdir / ".lock").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        assert_stopped(process, number, status)


def test_a_program_that_calls_us_is_interrupted_and_not_ended():
    """The first Ctrl-C is asked for, the second one raises, as in any notebook."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruption.stop_requests([signal.SIGINT, signal.SIGTERM]) as requests:
            signal.raise_signal(signal.SIGINT)
            assert requests == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_that_is_not_the_main_one_has_no_signals():
    found = []

    def work():
        with interruption.stop_requests([signal.SIGINT]) as requests:
            found.append(list(requests))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]
