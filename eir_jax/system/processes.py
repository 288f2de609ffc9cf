"""Several processes that train as one, each with its own devices, on one host or many.

They are joined by `jax.distributed`: where a cluster's own variables say how, or by the
flags `--coordinator`, `--num_processes` and `--process_id`; a process started without
either is alone, and nothing of this is in use. Among several, process 0 prints and
writes; what ends one ends all, with one message; and where one dies without a word, the
others end within a minute, each with a line that says so.
"""

import argparse
import atexit
import ctypes
import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eir_jax.system.errors import UserError

EXIT_LOST = 3
HEARTBEAT_TIMEOUT = 30  # seconds of silence after which a process counts as dead
GRACE = 10  # seconds that a failing process waits for the others to end with it
FOREVER = 2**31 - 1  # milliseconds, 24 days: of what a dead process ends, not the clock
LOST = (
    "another process was lost, and this one cannot go on without it; its own last "
    "words say why; start all of them again: they go on from the newest checkpoint"
)
# Of errors that a dead process causes in the others.
SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "Socket closed", "Connection")
_FAILURE = "eir_jax/failure"

_watcher: threading.Thread | None = None
_rounds = itertools.count()
_last_words: Any = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that join several processes."""
    group = parser.add_argument_group(
        "several processes",
        "detected under Slurm (srun), Open MPI 4, Kubernetes (an indexed Job) and on "
        "TPU pods; elsewhere all three are given; see launch/README.md",
    )
    group.add_argument("--coordinator", help="HOST:PORT of process 0, any free port")
    group.add_argument("--num_processes", type=int, help="how many there are")
    group.add_argument("--process_id", type=int, help="of this one, from 0 on")
    group.add_argument(
        "--start_timeout",
        type=int,
        default=300,
        help="seconds to wait for the others at the start (default 300)",
    )


def start(args: argparse.Namespace, stops_after_a_step: bool = False) -> None:
    """Join the other processes, if there are any; before JAX looks for its devices.

    Args:
      args: with the flags of `add_flags`.
      stops_after_a_step: SIGTERM to any process is a request that `agreed_stop` tells;
        else it ends the process at once.

    Raises:
      UserError: flags are missing or wrong, or the others cannot be reached.
    """
    options = _given(args)
    where = "" if options else detected(os.environ)
    if not options and not where:
        return
    if options.get("num_processes") == 1:
        return
    global _watcher
    import jax

    address = options.get("coordinator_address", f"found by way of {where}")
    if options.get("process_id"):
        _await_coordinator(address, args.start_timeout)
    jax.config.update("jax_enable_preemption_service", stops_after_a_step)
    _say_if_aborted(
        f"not all processes came together within {args.start_timeout} s (coordinator "
        f"{address}); start as many as --num_processes says, each with the same "
        "--coordinator and a --process_id of its own, or raise --start_timeout"
    )
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=args.start_timeout,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except Exception as error:  # of JAX, of sockets, of the cluster's own client
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the processes cannot be joined (coordinator {address}): {reason}; give "
            "--coordinator with a free port, --num_processes and --process_id"
        ) from None
    _say_if_aborted(LOST)
    _quiet_stdout()
    if count() > 1:
        _watcher = threading.Thread(target=_watch, name="failures", daemon=True)
        _watcher.start()


def detected(environ: Mapping[str, str]) -> str:
    """Return the name of the cluster that tells a process its place, '' where none."""
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "Slurm"
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "Kubernetes"
    workers = environ.get("TPU_WORKER_HOSTNAMES", "")
    if "," in workers or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return "the TPU's environment"
    if _on_cloud_tpu(environ):
        return "the TPU's metadata server"
    return ""


def is_main() -> bool:
    """Tell whether this process is the one that prints and writes."""
    return _state().process_id == 0


def count() -> int:
    """Return the number of processes."""
    return _state().num_processes


def exchange(text: str = "") -> list[str]:
    """Return what each process says, in their order; all must call it, in step."""
    client = _state().client
    if client is None:
        return [text]
    here = f"eir_jax/exchange/{next(_rounds)}"
    client.key_value_set(f"{here}/{_state().process_id}", text)
    return [
        client.blocking_key_value_get(f"{here}/{process}", FOREVER)
        for process in range(count())
    ]


def check_equal(what: str, lines: list[str]) -> None:
    """Refuse to go on where a process has other lines than process 0.

    Raises:
      UserError: naming the process and the lines that differ.
    """
    said = [text.splitlines() for text in exchange("\n".join(lines))]
    for process, theirs in enumerate(said):
        if theirs != said[0]:
            there = ", ".join(x for x in theirs if x not in said[0])
            here = ", ".join(x for x in said[0] if x not in theirs)
            raise UserError(
                f"{what} of process {process} differ from those of process 0: {there} "
                f"there, {here} here; give all processes the same"
            )


def check_shared(folder: Path) -> None:
    """Refuse a folder that is not the same one for all processes.

    Raises:
      UserError: a process does not see what process 0 puts there.
    """
    if count() == 1:
        return
    sign = folder / f".seen_by_all_{exchange(str(os.getpid()))[0]}"
    if is_main():
        sign.touch()
    exchange()
    deadline = time.monotonic() + GRACE  # network file systems show it late
    while not (seen := sign.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    missing = [p for p, words in enumerate(exchange(str(seen))) if words != "True"]
    if is_main():
        sign.unlink()
    if missing:
        raise UserError(
            f"process {missing[0]} does not see what process 0 writes to {folder}; "
            "give a --workdir on a file system that all processes share"
        )


@contextmanager
def first_alone(needed: bool = True) -> Iterator[None]:
    """Let process 0 go through before the others, where `needed`: they find it done."""
    if needed and not is_main():
        exchange()
    yield
    if needed and is_main():
        exchange()


def agreed_stop(requests: list[int], step: int) -> int | None:
    """Return the signal that ends training after this step, the same one everywhere.

    Args:
      requests: signals that this process was sent.
      step: called with each, from the same first one on in all processes.
    """
    if _state().client is None:
        return requests[0] if requests else None
    from jax.experimental import multihost_utils

    if not multihost_utils.reached_preemption_sync_point(step):
        return None
    return requests[0] if requests else signal.SIGTERM


def request_stop() -> None:
    """Ask all processes to stop; JAX takes SIGTERM for it, and tells the others."""
    if _state().client is not None:
        os.kill(os.getpid(), signal.SIGTERM)


def output(folder: Path) -> Path:
    """Return where to write what is for `folder`: elsewhere but in process 0."""
    if is_main():
        return folder
    scratch = Path(tempfile.mkdtemp(prefix="eir_jax_"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch


def finish() -> None:
    """Wait until all processes have done their work, and part."""
    if _watcher is None:
        return
    exchange()
    if is_main():
        _state().client.key_value_set(_FAILURE, "")
    _watcher.join()
    import jax

    jax.distributed.shutdown()


def fail(message: str, status: int) -> None:
    """End all processes with `message` and `status`; return where there is but one."""
    if _watcher is None:
        return
    process = _state().process_id
    with suppress(Exception):  # another was first, or process 0 is gone
        _state().client.key_value_set(_FAILURE, f"{status} {process} {message}")
    _watcher.join(2 * GRACE)
    _end(message, status)


def fail_by(error: BaseException) -> None:
    """End all processes by an exception that nothing foresaw, or that a loss caused."""
    lost = type(error).__name__ == "JaxRuntimeError" and any(
        sign in str(error) for sign in SIGNS_OF_LOSS
    )
    if _watcher is not None and lost:
        _end(LOST, EXIT_LOST)
    if isinstance(error, KeyboardInterrupt):
        fail("interrupted", 130)
    fail(f"{type(error).__name__}: {error}", 1)


def _state() -> Any:
    # Not public, and asking the public jax.process_index() would start the devices.
    from jax._src import distributed

    return distributed.global_state


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say, as `jax.distributed.initialize` takes it."""
    names = ("coordinator", "num_processes", "process_id")
    missing = [f"--{name}" for name in names if getattr(args, name) is None]
    if len(missing) == len(names):
        return {}
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing; --coordinator, --num_processes and "
            "--process_id go together"
        )
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={args.coordinator} is not HOST:PORT")
    if args.num_processes < 1:
        raise UserError(f"--num_processes={args.num_processes} must be at least 1")
    if not 0 <= args.process_id < args.num_processes:
        raise UserError(
            f"--process_id={args.process_id} must be from 0 to "
            f"{args.num_processes - 1}, of --num_processes={args.num_processes}"
        )
    return {
        "coordinator_address": args.coordinator,
        "num_processes": args.num_processes,
        "process_id": args.process_id,
        "cluster_detection_method": "deactivate",
    }


def _on_cloud_tpu(environ: Mapping[str, str]) -> bool:
    """Tell whether this is a Cloud TPU VM: its metadata server knows the pod."""
    if "TPU_SKIP_MDS_QUERY" in environ or "tpu" not in (
        environ.get("JAX_PLATFORMS") or "tpu"
    ):
        return False
    try:
        product = Path("/sys/class/dmi/id/product_name").read_text()
    except OSError:
        return False
    from importlib.util import find_spec

    tpus = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return "Google" in product and bool(tpus) and find_spec("libtpu") is not None


def _await_coordinator(address: str, timeout: float) -> None:
    """Wait until process 0 listens: JAX itself would abort, with a C++ stack trace."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            reason = error
        if time.monotonic() > deadline:
            raise UserError(
                f"the coordinator {address} cannot be reached within {timeout:.0f} s "
                f"({reason}); start process 0 there, let its port through the "
                "firewall, or raise --start_timeout"
            )
        time.sleep(0.2)


def _say_if_aborted(message: str) -> None:
    """Have a last line said, with EXIT_LOST, where JAX's runtime aborts the process.

    It does so in C++, beyond Python's exceptions and signal handlers.
    """
    global _last_words
    line = f"error: {message}\n".encode()

    def speak(number: int) -> None:
        os.write(2, line)
        os._exit(EXIT_LOST)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(speak)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
    _last_words = handler  # C holds no reference


def _quiet_stdout() -> None:
    """Leave stdout to process 0's Python: Gloo's greetings in C++ go nowhere."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = os.fdopen(ours if is_main() else 1, "w", buffering=1)


def _watch() -> None:
    """Wait for the first failure of any process, and end this one by it."""
    state = _state()
    try:
        failure = state.client.blocking_key_value_get(_FAILURE, FOREVER)
    except Exception:  # process 0 is gone: JAX ends this process
        return
    if not failure:
        return
    status, process, message = failure.split(" ", 2)
    if state.process_id == 0:
        _say(message)
    try:
        state.client.wait_at_barrier("eir_jax/ended", GRACE * 1000)
    except Exception:  # not all can be told, process 0 perhaps
        if state.process_id == int(process) != 0:
            _say(message)
    if state.process_id == 0:
        time.sleep(0.5)  # the others are at their last line: without it they abort
    _leave(int(status))


def _end(message: str, status: int) -> None:
    _say(message)
    _leave(status)


def _say(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)


def _leave(status: int) -> None:
    """Exit without what Python and JAX do at an exit: it waits for the others."""
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(status)
