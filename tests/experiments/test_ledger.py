"""Ledgers: files of runs that say what the folders said, and replace them."""

import json
import random

import pytest
from test_main import ROOT, assert_refused, run
from test_tables import SESSION, fake, ledger

from eir_jax import coefficients
from eir_jax import results as command
from eir_jax.experiments.ledger import (
    difference,
    merge,
    read_ledger,
    read_run,
    without_folders,
)
from eir_jax.experiments.runs import rounds_of
from eir_jax.system.config import flatten
from eir_jax.system.errors import UserError


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def convert(folder, file):
    assert command.main([str(folder), f"--ledger={file}"]) == 0


def tables(place, out):
    assert command.main([str(place), f"--out={out}"]) == 0
    return out.read_text()


def change_config(workdir, **changes):
    path = workdir / "config.json"
    path.write_text(json.dumps(merge(json.loads(path.read_text()), changes)))


def study(folder):
    """Write runs of many kinds: seeds, rounds, starts, parts, other images."""
    for seed in range(2):
        workdir = fake(folder / f"EIR/seed{seed}", f"seed={seed}", skipped=[5])
        again = SESSION | {"from_step": 50_000, "device": "cpu", "commit": ""}
        sessions = {"sessions": [SESSION, again]}
        (workdir / "run.json").write_text(json.dumps(sessions))
        fake(folder / f"t/seed{seed}", f"seed={seed}", "temperature=0.2", train=500)
    fake(folder / "unseen", config="cub200", knn=None, train=5_864, retrieval={})
    fake(folder / "digits/seed3", "seed=3", config="digits", train=1437)
    probe = {"top-1": 0.8, "learning_rate": 0.1}
    workdir = fake(folder / "rounds", "lambda_intra=0", linear=probe)
    change_config(workdir, num_rounds=3)
    first = json.loads((workdir / "eval/step_78000.json").read_text())
    first["protocol"]["linear"] = {"solver": "sgd", "hash": "x"}
    (workdir / "eval/step_156000.json").write_text(
        json.dumps(first | {"step": 156_000, "knn": {"200": 1 / 3}})
    )
    return folder


def test_a_ledger_says_what_the_folders_said(tmp_path):
    """To the letter, in any mix with folders, and again when written again."""
    old, new = study(tmp_path / "old/study"), tmp_path / "new/study.jsonl"
    convert(old, new)
    expected = tables(tmp_path / "old", tmp_path / "A.md")
    assert "| study/rounds | 0 | 156,000 |" in expected
    assert tables(tmp_path / "new", tmp_path / "B.md") == expected
    assert tables(new, tmp_path / "C.md") == expected  # the file itself
    for record in read_ledger(new):
        folder = read_run(old / record.name)
        assert flatten(record.config) == flatten(folder.config)
        assert record.evaluations == folder.evaluations
        assert [r.best for r in rounds_of(record)] == [
            r.best for r in rounds_of(folder)
        ]
    text = new.read_text()
    convert(old, new)
    assert new.read_text() == text
    # Half of them folders.
    (tmp_path / "mix").mkdir()
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if '"run": "t/' not in line]
    (tmp_path / "mix/study.jsonl").write_text("".join(kept))
    (tmp_path / "mix/study").mkdir()
    (tmp_path / "mix/study/t").symlink_to(old / "t")
    mixed = tables(tmp_path / "mix", tmp_path / "D.md")
    assert sorted(mixed.splitlines()) == sorted(expected.splitlines())


def test_a_line_holds_what_differs_from_the_config_file(tmp_path):
    workdir = fake(tmp_path / "s/a/seed1", "seed=1", "intra.ramp_steps=9")
    (workdir / "run.json").write_text(json.dumps({"sessions": [SESSION]}))
    with (workdir / "metrics.jsonl").open("a") as file:
        health = {"uniformity": -1.23456789, "rank_me": 3.0}
        line = {"step": 9, "epoch": 200, "health": health, "knn": {"200": 1 / 7}}
        file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"step": 9, "epoch": 200, "loss": 1.23456789}) + "\n")
        file.write('{"step": 10, "loss"')
    convert(tmp_path / "s", tmp_path / "l.jsonl")
    head, line = map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())
    assert head["config"] == "configs/cifar10.py"
    assert head["settings"]["lambda_intra"] == 15.0
    assert line["settings"] == {"seed": 1, "intra": {"ramp_steps": 9}}
    assert line["evaluations"][0]["protocol"] == {}
    assert line["watched"][-1] == {
        **{"step": 9, "epoch": 200, "knn": {"200": 1 / 7}},
        "health": {"uniformity": -1.2346},
    }
    assert line["losses"] == {"step": 9, "epoch": 200, "loss": 1.2346}
    assert line["sessions"] == [SESSION]


def test_a_setting_of_later_is_read_as_in_an_older_config(tmp_path):
    """And what meant another thing then means that still."""
    fake(tmp_path / "s/a")
    convert(tmp_path / "s", tmp_path / "l.jsonl")
    head, line = map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())
    del head["settings"]["bank"]["dtype"]
    head["settings"]["gone"] = 1  # a setting that later versions do not have
    head["settings"]["intra"]["temperature"] = 0.0
    head["settings"]["temperature"] = 0.2
    (tmp_path / "l.jsonl").write_text(f"{json.dumps(head)}\n{json.dumps(line)}\n")
    (record,) = read_ledger(tmp_path / "l.jsonl")
    assert record.config.bank.dtype == "float32"
    assert record.config.intra.temperature == 0.2
    fake(tmp_path / "more/b", "seed=1")
    convert(tmp_path / "more", tmp_path / "l.jsonl")
    old, new = read_ledger(tmp_path / "l.jsonl")
    assert flatten(old.config) == flatten(record.config)
    assert flatten(new.config) == flatten(read_run(tmp_path / "more/b").config)


def test_the_same_run_is_replaced_and_another_of_its_name_refused(tmp_path, capsys):
    file = tmp_path / "l.jsonl"
    for name in ("b", "a"):
        fake(
            tmp_path / f"one/{name}/seed0", f"temperature={'0.1' * (name == 'a') or 1}"
        )
    convert(tmp_path / "one", file)
    assert [record.name for record in read_ledger(file)] == ["a/seed0", "b/seed0"]
    capsys.readouterr()
    fake(tmp_path / "two/again/seed0", knn={"200": 0.5})
    convert(tmp_path / "two", file)
    assert f"replaced in {file}: a/seed0 by again/seed0" in capsys.readouterr().out
    records = {record.name: record for record in read_ledger(file)}
    assert list(records) == ["again/seed0", "b/seed0"]
    assert records["again/seed0"].evaluations[0]["knn"] == {"200": 0.5}
    # Of more rounds it is the same run.
    workdir = tmp_path / "two/again/seed0"
    change_config(workdir, num_rounds=2)
    found = json.loads((workdir / "eval/step_78000.json").read_text())
    (workdir / "eval/step_156000.json").write_text(json.dumps(found | {"step": 156000}))
    convert(tmp_path / "two", file)
    assert [len(record.evaluations) for record in read_ledger(file)] == [2, 1]
    before = file.read_bytes()
    fake(tmp_path / "three/b/seed0", "temperature=0.5")
    with pytest.raises(
        UserError,
        match=r"another run b/seed0 \(temperature: 1.0 there, 0.5 here\); rename the f",
    ):
        convert(tmp_path / "three", file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/runs/pilot/EIR/seed0", "runs/pilot/EIR/seed0"),
        ("../runs/pilot", "runs/pilot"),
        ("~/data/c10k_16.npz", "c10k_16.npz"),
        ("/data/cifar10.npz", "cifar10.npz"),
        ("runs/c10k_16.npz", "runs/c10k_16.npz"),
        ("configs/pilot.py", "configs/pilot.py"),
        ("", ""),
    ],
)
def test_paths_lose_the_folders_of_a_machine(tmp_path, path, expected):
    assert without_folders(path) == expected
    workdir = fake(tmp_path / "s/a", f"data.path={path}")
    command = f"python -m eir_jax.main --config=c.py --config.data.path='{path}' 'a b'"
    sessions = {"sessions": [SESSION | {"command": command}]}
    (workdir / "run.json").write_text(json.dumps(sessions))
    convert(tmp_path / "s", tmp_path / "l.jsonl")
    (record,) = read_ledger(tmp_path / "l.jsonl")
    assert record.config.data.path == expected
    told = f"python -m eir_jax.main --config=c.py --config.data.path={expected} 'a b'"
    assert record.sessions[0]["command"] == told


def test_what_a_run_left_out_does_not_tell_it_apart(tmp_path):
    """As the intra term's temperature of IRaug, and all of training's of Random."""
    fake(tmp_path / "one", "lambda_intra=0", "lambda_inter=0", "intra.temperature=0.1")
    flags = ("lambda_intra=0", "lambda_inter=0", "interpolation.kind=mixup", "seed=1")
    fake(tmp_path / "two", *flags)
    fake(tmp_path / "random", "num_epochs=0", "lambda_inter=9", "batch_size=3")
    fake(tmp_path / "model", "num_epochs=0", "model.init=he")
    rows = ledger(tmp_path)
    assert rows["Table 1: components, CIFAR-10"]["IRaug"][3] == "2"
    assert rows["Table 2: CIFAR-10"]["Random"][3] == "1"
    (title,) = (t for t in rows if "Other runs" in t)
    assert rows[title]["model"][1] == "1"


def test_a_patch_makes_what_it_was_taken_of():
    """RFC 7386, of random objects; and its own examples that apply."""
    random.seed(0)

    def some(depth):
        if depth == 0 or random.random() < 0.4:
            return random.choice([0, 0.0, 1, True, "", "a", [1], [1.0], {}])
        return {key: some(depth - 1) for key in random.sample("abcd", 3)}

    for _ in range(500):
        base, value = ({"x": some(3), "y": some(3)} for _ in range(2))
        del (base if random.random() < 0.5 else value)["y"]
        patch = json.loads(json.dumps(difference(base, value)))
        assert repr(_sorted(merge(base, patch))) == repr(_sorted(value))
    assert difference(base, base) == {}
    assert merge({"a": [{"b": "c"}]}, {"a": [1]}) == {"a": [1]}
    assert merge({"a": "foo"}, {"b": {"c": None}}) == {"a": "foo", "b": {}}
    assert merge({}, {"a": {"bb": {"ccc": None}}}) == {"a": {"bb": {}}}
    assert merge({"e": None}, {"a": 1}) == {"e": None, "a": 1}


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value


def _without(*keys):
    def change(line):
        inner = line
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, _without("protocol"), "first line of a ledger .KeyError: 'protocol'"),
        (1, lambda line: line.update(settings=3), "first line of a ledger .Attribute"),
        (2, _without("run"), "record of a run .KeyError: 'run'"),
        (2, _without("evaluations", 0), "record of a run .ValueError: it has no"),
        (
            2,
            lambda line: line["evaluations"][0].update(step=7),
            "it has no name, or no",
        ),
        (2, _without("sessions", 0, "commit"), "record of a run .KeyError: 'commit'"),
        (2, lambda x: x["evaluations"][0]["knn"].update(a="b"), "TypeError"),
        (2, lambda x: x["evaluations"][0]["knn"].update(a=1e999), "is not finite"),
        (2, lambda x: x["evaluations"][0]["knn"].update(a=0.5), "invalid literal"),
        (2, lambda line: line["settings"].update(num_epochs="x"), "TypeError"),
        (2, lambda line: line["settings"].update(intra=4), "Error"),
        (2, lambda line: line.update(watched=[3]), "AttributeError"),
        (2, lambda line: line.update(run="b"), "a line before is of b too"),
        (3, None, "JSONDecodeError"),
    ],
)
def test_damaged_lines_are_named(tmp_path, number, change, message):
    for seed, name in enumerate("ab"):
        workdir = fake(tmp_path / f"s/{name}", f"seed={seed}")
        (workdir / "run.json").write_text(json.dumps({"sessions": [SESSION]}))
    file = tmp_path / "l.jsonl"
    convert(tmp_path / "s", file)
    lines = file.read_text().splitlines()
    if change is None:
        lines[number - 1] = lines[number - 1][:-9]
    else:
        line = json.loads(lines[number - 1])
        change(line)
        lines[number - 1] = json.dumps(line)
    file.write_text("\n".join(lines) + "\n")
    said = 3 if "before" in message else number
    with pytest.raises(UserError, match=rf"l.jsonl, line {said}, is no .*{message}"):
        ledger(tmp_path)


def test_bad_command_lines_are_refused_in_one_line(tmp_path):
    fake(tmp_path / "s/a")
    (tmp_path / "other.jsonl").write_text('{"step": 1}\n\xff')
    refused = run("results", tmp_path / "s", f"--ledger={tmp_path / 'other.jsonl'}")
    assert_refused(refused, "other.jsonl, line 1, is no first line of a ledger")
    for words, message in (
        ([tmp_path / "s", f"--ledger={tmp_path / 'l.json'}"], "is no name for a led"),
        ([tmp_path / "absent"], "there is no folder or ledger"),
        ([tmp_path / "absent.jsonl"], "there is no folder or ledger"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(list(map(str, words)))


def test_curves_are_drawn_of_a_ledger(tmp_path):
    for value in (0, 15):
        fake(tmp_path / f"s/l{value}/seed0", f"lambda_intra={value}")
    file = tmp_path / "s.jsonl"
    convert(tmp_path / "s", file)
    out = f"--out={tmp_path / 'c.png'}"
    runs = [str(file / "l0/seed0"), str(tmp_path / "s/l15/seed0")]
    assert coefficients.main(["--x=lambda_intra", out, *runs]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"s.jsonl holds no run l7/seed0"):
        coefficients.main(["--x=lambda_intra", out, str(file / "l7/seed0")])
