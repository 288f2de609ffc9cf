"""Records of a run: JSON lines, TensorBoard events, the terminal."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from eir_jax.system import processes
from eir_jax.system.files import replacing, to_json


class MetricsWriter:
    """Write each record to `metrics.jsonl` and as TensorBoard scalars.

    Of several processes the first one writes.

    Args:
      workdir: an existing folder.
      step: the step that training goes on from; lines of later steps, left by a run
        that was killed, are dropped, so that no step stands there twice.
    """

    def __init__(self, workdir: Path, step: int):
        self._writes = processes.is_main()
        if not self._writes:
            return
        path = workdir / "metrics.jsonl"
        goes_on = path.exists()
        if goes_on:
            keep = [line for line in path.read_text().splitlines() if _kept(line, step)]
            with replacing(path) as part:
                part.write_text("".join(line + "\n" for line in keep))
        self._file = path.open("a", buffering=1)
        self._events = _create_events(workdir / "tensorboard")
        if goes_on:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(step=step + 1, session_log=start))

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Append {"step": step, **record}; nested records become 'a/b' scalars."""
        if not self._writes:
            return
        self._file.write(to_json({"step": step, **record}) + "\n")
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in _scalars(record)
        ]
        self._add(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Flush everything."""
        if not self._writes:
            return
        self._file.close()
        self._events.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write(event.SerializeToString())
        self._events.flush()


def _create_events(folder: Path) -> RecordWriter:
    """Begin a file of events; TensorBoard's own writer would import TensorFlow."""
    folder.mkdir(exist_ok=True)
    now, number = time.time(), len(list(folder.iterdir()))
    place = f"{socket.gethostname()}.{os.getpid()}.{number}"
    events = RecordWriter(
        (folder / f"events.out.tfevents.{now:.0f}.{place}").open("xb")
    )
    first = Event(wall_time=now, file_version="brain.Event:2")
    events.write(first.SerializeToString())
    return events


def _kept(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # cut short by a kill
        return False


def _scalars(record: dict[str, Any], prefix: str = ""):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            yield prefix + key, value
