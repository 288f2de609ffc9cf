"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10


class ProgressLine:
    """A live bar on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self, title: str, total: int, start: int = 0):
        self._title, self._total, self._note = title, total, ""
        self._live = sys.stdout.isatty()
        self._printed = time.monotonic()
        self._began, self._start = self._printed, start
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
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            rate = max(done - self._start, 1) / (now - self._began)
            left = _duration((self._total - done) / rate)
            print(
                f"{self._title} {done}/{self._total}  {self._note}  {left} left",
                flush=True,
            )

    def say(self, message: str) -> None:
        """Print a line that stays."""
        if self._live:
            self._bar.console.print(message, highlight=False)
        else:
            print(message, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._live:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
