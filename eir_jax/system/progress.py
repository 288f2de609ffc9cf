"""Progress of long work: a live bar on a terminal; elsewhere few lines, with the time.

The time left is counted from the first step on: that one may have been compiled.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

FIRST_LINE = 10  # seconds after the start, where lines come no more often than that


_quiet = ContextVar("quiet", default=False)


@contextmanager
def quiet(is_quiet: bool = True) -> Iterator[None]:
    """Let what begins within say nothing: in this thread alone, as others work on."""
    before = _quiet.set(is_quiet)
    try:
        yield
    finally:
        _quiet.reset(before)


class ProgressLine:
    """A live bar on a terminal; elsewhere a line now and then, in a log with its time.

    Args:
      title: of the work.
      total: steps in all.
      start: steps that were done before.
      every: seconds between two lines; the first one comes after ten.
    """

    def __init__(self, title: str, total: int, start: int = 0, every: float = 60):
        self._title, self._total, self._note = title, total, ""
        self._says = not _quiet.get()
        self._live = self._says and sys.stdout.isatty()
        self._every = every
        self._next = time.monotonic() + min(FIRST_LINE, every)
        self._first: tuple[float, int] | None = None  # when, and how many were done
        if self._live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=Console(),
            )
            self._task = self._bar.add_task(
                title, total=total, completed=start, note=""
            )
            self._bar.start()

    def update(
        self, done: int, total: int | None = None, note: str | None = None
    ) -> None:
        """Show that `done` of the total are done, with a note such as the loss."""
        self._total = self._total if total is None else total
        self._note = self._note if note is None else note
        if self._live:
            self._bar.update(
                self._task, completed=done, total=self._total, note=self._note
            )
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if now < self._next or not self._says:
            return
        self._next = now + self._every
        began, before = self._first
        words = [f"{self._title} {done:,}/{self._total:,}", self._note]
        if done > before:
            left = (self._total - done) * (now - began) / (done - before)
            words.append(f"{_duration(left)} left")
        self._note = ""  # what is printed is not news again
        self.say("  ".join(filter(None, words)))

    def show(self, note: str) -> None:
        """Show what is done between two steps; it takes no part in the time left."""
        if self._live:
            self._bar.update(self._task, note=note)
        elif self._says and (now := time.monotonic()) >= self._next:
            self._next = now + self._every
            self.say(f"{self._title}: {note}")

    def say(self, message: str) -> None:
        """Print a line that stays; where that is no terminal, with the time."""
        if self._live:
            self._bar.console.print(message, highlight=False)
        elif self._says:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}", flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._live:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
