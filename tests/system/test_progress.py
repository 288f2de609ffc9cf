"""What is printed where there is no terminal: few lines, their time, what is left."""

import re
import threading

import pytest

from eir_jax.system import progress
from eir_jax.system.words import counted

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys):
    found = capsys.readouterr().out.splitlines()
    assert all(re.match(STAMP, line) for line in found)
    return [re.sub(STAMP, "", line) for line in found]


def test_time_left_does_not_count_what_was_compiled(clock, capsys):
    bar = progress.ProgressLine("training", 6600)
    clock[0] += 300  # compilation, and the first step
    bar.update(1, note="loss 14")
    assert lines(capsys) == ["training 1/6,600  loss 14"]  # nothing to count by yet
    for step in range(2, 102):
        clock[0] += 1
        bar.update(step)
    assert lines(capsys) == ["training 61/6,600  1:48:59 left"]


def test_lines_are_few_and_a_loss_is_printed_once(clock, capsys):
    for every, expected in ((60, 61), (600, 7), (5, 721)):
        bar = progress.ProgressLine("training", 7200, every=every)
        for step in range(3601):
            bar.update(step, note="loss 1" if step % 1800 == 0 else None)
            clock[0] += 1
        found = lines(capsys)
        assert abs(len(found) - expected) <= 1
        assert sum("loss 1" in line for line in found) <= 3
        bar.say("epoch 1: done")
        assert lines(capsys) == ["epoch 1: done"]


def test_work_that_goes_on_from_a_checkpoint(clock, capsys):
    bar = progress.ProgressLine("training", 1000, start=900)
    bar.update(901)
    clock[0] += 20
    bar.update(911)
    assert lines(capsys) == ["training 911/1,000  2:58 left"]


def test_what_is_done_between_steps_takes_no_part_in_the_time_left(clock, capsys):
    bar = progress.ProgressLine("training", 1000)
    bar.show("features 5/9")  # at once: not due
    clock[0] += 70
    bar.show("features 8/9")
    bar.update(1)
    assert lines(capsys) == ["training: features 8/9"]
    clock[0] += 100
    bar.update(101)
    assert lines(capsys) == ["training 101/1,000  14:59 left"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 classes"), (1, "1 class"), (2, "2 classes"), (1234, "1,234 classes")],
)
def test_plural(number, words):
    assert counted(number, "class", "classes") == words
    assert counted(1, "epoch") == "1 epoch" and counted(0, "pair") == "0 pairs"


def test_quiet_is_one_threads(clock, capsys):
    """Begun first and ended last, by a thread that overlaps: the others still speak."""
    begun, ended = threading.Event(), threading.Event()

    def work():
        with progress.quiet():
            bar = progress.ProgressLine("theirs", 9)
            begun.set()
            ended.wait(10)
            clock[0] += 100
            bar.update(3)
            bar.show("more")
            bar.say("done")
            bar.close()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    with progress.quiet():
        progress.ProgressLine("quiet", 9).say("unheard")
        with progress.quiet(False):
            progress.ProgressLine("ours", 9).say("within")
    ended.set()
    thread.join()
    progress.ProgressLine("ours", 9).say("after")
    assert lines(capsys) == ["within", "after"]
