"""Ctrl-C, SIGTERM and SIGHUP: one line, a status that says so, and no half file."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from eir_jax.system import files, processes

NAMES = {
    signal.SIGINT: "SIGINT (Ctrl-C)",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP (the terminal is gone)",
}
SHOW_CURSOR = b"\r\x1b[?25h\x1b[K"  # a progress bar hides it

_finished: list[int] = []  # the status of work that is done
_leaving = threading.Lock()
_status: dict[int, int] = {number: 128 + number for number in NAMES}


def heed() -> None:
    """End this process at such a signal, from now on, whatever it is doing.

    Not by an exception, as KeyboardInterrupt: raised within a callback of C++ it is
    swallowed, and while C++ works, a compilation say, for minutes, Python would hear of
    the signal at its end alone. So a thread waits for it. Whoever sets a handler of its
    own meanwhile, as the training loop, has the signal instead.

    An ignored SIGHUP (nohup) stays ignored. To be called in the main thread, once.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in NAMES:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _heard)
    wait = threading.Thread(target=_wait, args=(reader,), name="signals", daemon=True)
    wait.start()


@contextmanager
def ending_with(status: Mapping[int, int]) -> Iterator[None]:
    """Let signals {number: status} end the process with other statuses meanwhile."""
    before = dict(_status)
    _status.update(status)
    try:
        yield
    finally:
        _status.update(before)


@contextmanager
def stop_requests(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Collect such signals, for a loop to end after its step; a second one ends it now.

    That one is handled as before: it ends a command, and raises KeyboardInterrupt in a
    program that has called us. Among several processes SIGTERM is JAX's, which has all
    end after the same step. A thread other than the main one cannot have signals.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    if processes.count() > 1:
        numbers = [number for number in numbers if number != signal.SIGTERM]
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}

    def note(number, frame):
        requests.append(number)
        # Not by _heard, which the waiting thread, should it come to this signal after
        # us, would take for its own.
        again = before[number]
        signal.signal(number, leave if again is _heard else again)
        processes.request_stop()

    for number in before:
        signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finished(status: int) -> None:
    """Let no signal change the status of a process that is about to exit."""
    _finished.append(status)


def leave(number: int, _frame: object = None) -> None:
    """End by a signal: say so in a line, remove what is half written, exit."""
    if not _leaving.acquire(blocking=False):
        return  # the other thread is at it
    if _finished:
        os._exit(_finished[0])
    line, status = f"stopped by {NAMES[signal.Signals(number)]}", _status[number]
    files.remove_parts()
    for stream in (1, 2):
        if os.isatty(stream):
            os.write(stream, SHOW_CURSOR)
    processes.fail(line, status)
    # Not by print: the main thread may hold the stream, which no one would free.
    os.write(2, f"{line}\n".encode())
    os._exit(status)


def _heard(number: int, _frame: object) -> None:
    """Do what the waiting thread does, should C code have taken its pipe away."""
    leave(number)


def _wait(reader: int) -> None:
    while heard := os.read(reader, 1):
        if signal.getsignal(heard[0]) is _heard:
            leave(heard[0])
