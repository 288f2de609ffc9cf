"""The ledger: which runs count for which row, its arithmetic, and what it replaces."""

import json

import numpy as np
import pytest
from test_main import ROOT, assert_refused, run

from eir_jax import results as command
from eir_jax.evaluation.scores import main_number
from eir_jax.experiments import paper
from eir_jax.experiments.runs import percent, read_finished, summarise
from eir_jax.run.validate import validate
from eir_jax.system.config import load_config, save_config
from eir_jax.system.errors import UserError

KNN = {"5": 0.86, "20": 0.87, "200": 0.88}
SESSION = {
    "started": "2026-11-01T00:00:00+00:00",
    "command": "python -m eir_jax.main --config=configs/cifar10.py",
    "commit": "abc1234",
    "jax": "0.10.2",
    "device": "NVIDIA X",
    "num_devices": 2,
    "num_processes": 1,
    "machine": "8 CPU cores (x86_64)",
    "from_step": 0,
    "to_step": 78_000,
    "seconds": 3000.0,
}


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def fake(workdir, *flags, config="cifar10", knn=KNN, train=50_000, **more):
    """Write what a finished run leaves that the ledger reads."""
    (workdir / "eval").mkdir(parents=True)
    c = load_config(f"configs/{config}.py", [f"--config.{flag}" for flag in flags])
    save_config(c, workdir / "config.json")
    step = c.num_rounds * c.num_epochs * (train // c.batch_size)
    test = {"cifar10": 10_000, "cub200": 5_924, "digits": 360, "stl10_5k": 8_000}
    test = test[config]
    record = {
        "step": step,
        "protocol": {
            "data": {
                "train_images": train,
                "test_images": test,
                "content_hash": "0" * 64,
            },
            "transform": "none",
        },
    }
    if knn:
        record["knn"] = knn
        temperature = more.pop("temperature", 0.1)
        record["protocol"]["knn"] = {"temperature": temperature, "hash": str(workdir)}
    record |= more
    (workdir / "eval" / f"step_{step}.json").write_text(json.dumps(record))
    lines = [
        {"step": 1, "epoch": epoch, "knn": {"200": value}}
        for epoch, value in (
            (0.5 * c.num_epochs, 0.89),
            (0.95 * c.num_epochs, 0.91),
            (c.num_epochs, 0.88),
        )
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return workdir


def ledger(folder, out=None):
    """Return the ledger's rows: {table: {row: cells}}."""
    out = out or folder / "R.md"
    assert command.main([str(folder), f"--out={out}"]) == 0
    tables, rows = {}, {}
    for line in out.read_text().splitlines():
        if line.startswith("### "):
            rows = tables[line[4:]] = {}
        elif line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.setdefault(cells[0], cells[1:])
    return tables


def test_arithmetic():
    found = summarise([0.8, 0.84, 0.85])
    assert found.mean == pytest.approx(0.83)
    assert found.deviation == pytest.approx(np.std([0.8, 0.84, 0.85], ddof=1))
    assert percent(found) == "83.00 ± 2.65" and percent(summarise([0.5])) == "50.00"
    assert main_number(["knn.5", "knn.200", "knn.20"]) == "knn.200"
    assert main_number(["retrieval.MAP@R", "retrieval.R@1"]) == "retrieval.R@1"
    assert main_number([]) is None


def test_rows_of_the_paper_are_of_valid_settings_and_whole():
    for table in paper.TABLES:
        for row in table.rows:
            assert len(row.values) == len(table.numbers)
            if row.settings is None:
                continue
            flags = [f"--config.{k}={v}" for k, v in row.settings.items()]
            validate(load_config(f"configs/{row.config}.py", flags))
    # The configs' own targets are the same numbers.
    for table in paper.TABLES:
        for row in table.rows:
            if row.label.startswith("EIR") and row.settings == {}:
                c = load_config(f"configs/{row.config}.py").paper.to_dict()
                for number, value in zip(table.numbers, row.values, strict=True):
                    part, key = number.split(".")
                    if key in c.get(part, {}):
                        assert 100 * c[part][key] == pytest.approx(value)


def test_nothing_run_is_said(tmp_path):
    fake(tmp_path / "other", "temperature=0.2", config="digits", train=1437)
    tables = ledger(tmp_path)
    assert tables["Table 1: components, CIFAR-10"]["EIR (both)"][:2] == [
        "87.6",
        "not run",
    ]
    assert len(tables) == len(paper.TABLES) + 2  # the other run, and what it ran on
    for table in paper.TABLES:
        for row in table.rows:
            cells = tables[table.title][row.label]
            words = "quoted" if row.settings is None else "not run"
            assert cells[1:] == [words, "", "0", ""]


def test_runs_stand_beside_the_papers_rows(tmp_path):
    """Whatever the seed, the source of the data and what is recorded."""
    fake(tmp_path / "a/seed0", retrieval={"R@1": 0.8, "R@2": 0.89, "MAP@R": 0.5})
    other = KNN | {"200": 0.86}
    flags = ("seed=3", "data.source=arrays", "data.path=x", "log_every_steps=7")
    fake(tmp_path / "b", *flags, "data.pipeline=tf.data", knn=other)
    fake(tmp_path / "two", "num_rounds=2")
    fake(tmp_path / "random", "num_epochs=0")
    tables = ledger(tmp_path)
    both = tables["Table 1: components, CIFAR-10"]["EIR (both)"]
    assert both == ["87.6", "87.00 ± 1.41", "-0.60", "2", "91.00 ± 0.00 (epoch 190)"]
    two = tables["Table 2: CIFAR-10"]["EIR, 2 rounds"]
    assert two[1:4] == ["86.00 / 87.00 / 88.00", "-1.70 / -1.30 / -0.60", "1"]
    assert tables["Table 2: CIFAR-10"]["Random"][3] == "1"
    assert tables["Table 2: CIFAR-10"]["IRaug"][1] == "not run"
    recall = tables["Table 5: retrieval, CIFAR-10"]["EIR"]
    assert recall[1:3] == [
        "80.00 / 89.00 / not run / not run",
        "+0.10 / +0.50 /  /",
    ]
    assert not any("Other runs" in title for title in tables)


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        (["temperature=0.2"], {}),
        (["num_epochs=30"], {}),
        (["inter.stop_gradient=true"], {}),
        (["views.flip=0"], {}),
        ([], {"train": 10_000}),
        ([], {"temperature": 0.2}),  # of kNN, given to evaluate
    ],
)
def test_other_runs_stand_apart(tmp_path, flags, more):
    fake(tmp_path / "x", *flags, **more)
    tables = ledger(tmp_path)
    assert tables["Table 2: CIFAR-10"]["EIR"][1] == "not run"
    (heading,) = (title for title in tables if "Other runs" in title)
    assert "x" in tables[heading]


def test_other_runs_are_told_apart_by_their_settings(tmp_path):
    for seed in (0, 1):
        for name, value in (("EIR", 15), ("inter", 0)):
            flags = (f"seed={seed}", f"lambda_intra={value}")
            fake(tmp_path / name / f"seed{seed}", *flags, config="digits", train=1437)
    tables = ledger(tmp_path)
    rows = tables["Other runs: digits, 16 px, 1,437 training and 360 test images"]
    usual = "Where a row does not say otherwise: lambda_intra=15.0.\n"
    assert usual in (tmp_path / "R.md").read_text()
    assert rows["EIR"][:2] == ["", "2"]
    assert rows["inter"][:3] == ["lambda_intra=0.0", "2", "86.00 ± 0.00"]
    assert rows["EIR"][-1] == "kNN k = 200: 91.00 ± 0.00 (epoch 23.75)"


def test_unseen_classes_have_retrieval_alone(tmp_path):
    recall = {"R@1": 0.146, "R@2": 0.2, "R@4": 0.3, "R@8": 0.4}
    fake(tmp_path / "x", config="cub200", knn=None, train=5_864, retrieval=recall)
    line = {"step": 1, "epoch": 50, "retrieval": {"R@1": 0.15}}
    (tmp_path / "x/metrics.jsonl").write_text(json.dumps(line))
    row = ledger(tmp_path)["Table 5: retrieval, CUB-200-2011"]["EIR"]
    assert row[1] == "14.60 / 20.00 / 30.00 / 40.00"
    assert row[2].startswith("+0.00 / ") and row[4] == "15.00 (epoch 50)"


def test_what_each_ran_on(tmp_path):
    fake(tmp_path / "a")
    fake(tmp_path / "b", "seed=1", skipped=[5, 27])
    again = SESSION | {"seconds": 725.0, "commit": "", "from_step": 50_000}
    (tmp_path / "a/run.json").write_text(json.dumps({"sessions": [SESSION, again]}))
    rows = ledger(tmp_path)["What each ran on"]
    assert rows["a"] == [
        "0",
        "78,000",
        "abc1234, not a checkout",
        "2 x NVIDIA X, jax 0.10.2",
        "1:02:05 (2 starts)",
        "`python -m eir_jax.main --config=configs/cifar10.py`",
    ]
    assert rows["b"] == [
        "1",
        "78,000 (2 left out as not finite)",
        *["not recorded"] * 4,
    ]


def test_workdirs_that_are_given_themselves_keep_their_names(tmp_path):
    folders = [str(fake(tmp_path / f"{t}", f"temperature={t}")) for t in (0.2, 0.3)]
    command.main([*folders, f"--out={tmp_path / 'R.md'}"])
    text = (tmp_path / "R.md").read_text()
    assert all(f"| {folder} | 0 | 78,000 |" in text for folder in folders)


def test_a_seed_counts_once(tmp_path, capsys):
    fake(tmp_path / "a")
    fake(tmp_path / "b", knn=KNN | {"200": 0.1})
    row = ledger(tmp_path)["Table 1: components, CIFAR-10"]["EIR (both)"]
    assert row[1] == "88.00" and row[3] == "1"
    assert "the first counts" in capsys.readouterr().err


def test_unfinished_runs_are_named(tmp_path, capsys):
    fake(tmp_path / "other", "temperature=0.2")
    fake(tmp_path / "a")
    (tmp_path / "a/eval/step_78000.json").rename(tmp_path / "a/eval/step_39000.json")
    save_config(
        load_config("configs/cifar10.py"), _made(tmp_path / "b") / "config.json"
    )
    assert ledger(tmp_path)["Table 2: CIFAR-10"]["EIR"][1] == "not run"
    output = capsys.readouterr().out
    assert f"left out: {tmp_path / 'a'}" in output
    assert f"left out: {tmp_path / 'b'}" in output


def _made(folder):
    folder.mkdir()
    return folder


def test_different_rules_are_never_averaged(tmp_path):
    for seed, probe in ((0, "sgd"), (1, "lbfgs")):
        workdir = tmp_path / f"{seed}"
        fake(workdir, f"seed={seed}", linear={"top-1": 0.9})
        (file,) = (workdir / "eval").iterdir()
        record = json.loads(file.read_text())
        record["protocol"]["linear"] = {"solver": probe, "hash": probe}
        file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="have different protocols of linear"):
        ledger(tmp_path)


def test_only_the_marked_block_is_replaced(tmp_path):
    fake(tmp_path / "a")
    out = tmp_path / "R.md"
    before = "# Mine\n\nwords | here\n<!-- results:begin -->\n"
    after = "<!-- results:end -->\nmore words\n"
    out.write_text(before + "old\n" + after)
    ledger(tmp_path, out)
    text = out.read_text()
    assert text.startswith(before) and text.endswith(after) and "old" not in text
    ledger(tmp_path, out)
    assert out.read_text() == text  # again: the same
    for bad in (
        "no marks",
        before,
        after + before,
        before + before + after,
    ):
        out.write_text(bad)
        with pytest.raises(UserError, match="must hold the line"):
            ledger(tmp_path, out)
        assert out.read_text() == bad


def test_bad_input_is_refused_in_one_line(tmp_path):
    assert_refused(run("results", tmp_path / "absent"), "there is no folder")
    fake(tmp_path / "a")
    (tmp_path / "a/eval/step_78000.json").write_text('{"step"')
    with pytest.raises(UserError, match=r"step_78000\.json is no evaluation"):
        read_finished(tmp_path / "a")


def test_the_ledger_of_this_project_is_what_its_records_say(tmp_path):
    out = tmp_path / "R.md"
    out.write_text((ROOT / "RESULTS.md").read_text())
    assert "Table 4: ImageNet-100" in ledger(ROOT / "ledger", out)
    assert out.read_text() == (ROOT / "RESULTS.md").read_text()


def test_first_rounds_count_as_runs_of_their_own(tmp_path, capsys):
    """With their own best epoch, and the commands that led to them."""
    workdir = tmp_path / "a"
    fake(workdir)
    more = load_config("configs/cifar10.py", ["--config.num_rounds=3"])
    save_config(more, workdir / "config.json")
    first = workdir / "eval/step_78000.json"
    second = json.loads(first.read_text()) | {"step": 156_000}
    (workdir / "eval/step_156000.json").write_text(json.dumps(second))
    line = {"step": 1, "epoch": 390, "knn": {"200": 0.95}}
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    again = {"command": "python again", "from_step": 78_000, "to_step": 156_000}
    (workdir / "run.json").write_text(
        json.dumps({"sessions": [SESSION, SESSION | again]})
    )
    tables = ledger(tmp_path)
    rows = tables["Table 2: CIFAR-10"]
    assert rows["EIR"][3:] == ["1", "91.00 (epoch 190)"]
    assert rows["EIR, 2 rounds"][3:] == ["1", "95.00 (epoch 390)"]
    assert rows["EIR, 5 rounds"][1] == "not run"
    ran_on = [
        line.split(" | ")
        for line in (tmp_path / "R.md").read_text().splitlines()
        if line.startswith("| a |")
    ]
    assert [row[2] for row in ran_on] == ["78,000", "156,000"]
    assert ran_on[0][5:] == [
        "0:50:00",
        "`python -m eir_jax.main --config=configs/cifar10.py` |",
    ]
    assert ran_on[1][5] == "1:40:00 (2 starts)"
    assert ran_on[1][6].endswith("cifar10.py`; then `python again` |")
    said = "a but for its rounds up to 1 and 2 is not finished, or not evaluated there"
    assert said in capsys.readouterr().out
    assert read_finished(workdir) is None  # not all three


def test_a_start_that_went_further_says_so(tmp_path):
    fake(tmp_path / "a")
    session = SESSION | {"to_step": 156_000}
    (tmp_path / "a/run.json").write_text(json.dumps({"sessions": [session]}))
    assert ledger(tmp_path)["What each ran on"]["a"][4] == "0:50:00 (to step 156,000)"


def test_runs_are_found_in_several_folders_in_each_other_and_behind_links(tmp_path):
    fake(tmp_path / "one/outer")
    fake(tmp_path / "one/outer/EIR/seed1", "seed=1")
    fake(tmp_path / "one/outer/checkpoints/seed7", "seed=7")  # no run: a run's own
    fake(tmp_path / "two/seed2", "seed=2")
    fake(tmp_path / "three/seed3", "seed=3")
    (tmp_path / "two/link").symlink_to(tmp_path / "three")
    (tmp_path / "two/self").symlink_to(tmp_path / "two")
    out = tmp_path / "R.md"
    folders = [str(tmp_path / name) for name in ("one", "two", "three")]
    assert command.main([*folders, f"--out={out}"]) == 0
    text = out.read_text()
    for name in ("outer", "outer/EIR/seed1", "seed2", "link/seed3"):
        assert f"\n| {name} | " in text
    assert "seed7" not in text


def test_no_run_leaves_what_stands(tmp_path):
    out = tmp_path / "R.md"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"no finished .* stays as it was"):
        command.main([str(tmp_path), f"--out={out}"])
    assert out.read_text() == "mine"


def test_a_linear_probe_counts_where_it_is_judged_as_the_row_is(tmp_path):
    linear = load_config("configs/stl10_5k.py").linear.to_dict()
    protocol = linear | {"features": "feature; 512-d", "trained_on": "train"}
    for seed, change in enumerate(
        [
            {},
            {"solver": "lbfgs"},
            {"features": "last map, averaged over windows of 2x2"},
        ]
    ):
        workdir = tmp_path / f"{seed}"
        fake(workdir, f"seed={seed}", config="stl10_5k", train=5_000)
        (file,) = (workdir / "eval").iterdir()
        record = json.loads(file.read_text()) | {"linear": {"top-1": 0.764}}
        record["protocol"]["linear"] = protocol | change
        # One folder each: by other rules they are no group.
        file.write_text(json.dumps(record))
        row = ledger(workdir)["Table 3: STL-10"]["EIR, 5K"]
        if change:
            assert row[1:4] == ["not run / 88.00", "/ +9.80", "0 / 1"]
        else:
            assert row[1:4] == ["76.40 / 88.00", "+0.00 / +9.80", "1"]


def test_numbers_of_fewer_seeds_say_how_many(tmp_path):
    fake(tmp_path / "a", "temperature=0.2", retrieval={"R@1": 0.8})
    fake(tmp_path / "b", "temperature=0.2", "seed=1")
    rows = ledger(tmp_path)
    (title,) = (t for t in rows if "Other runs" in t)
    assert rows[title]["a"][1:6] == [
        *("2", "86.00 ± 0.00", "87.00 ± 0.00", "88.00 ± 0.00", "80.00 (n = 1)")
    ]


def change_content(workdir, content):
    (file,) = (workdir / "eval").iterdir()
    record = json.loads(file.read_text())
    record["protocol"]["data"]["content_hash"] = content * 64
    file.write_text(json.dumps(record))


def test_copies_of_the_images_are_rows_of_their_own(tmp_path, capsys):
    """As those of TFDS and of a file are, which hold CIFAR-10 in another order."""
    for seed in range(3):
        fake(tmp_path / f"file/seed{seed}", f"seed={seed}")
    for seed in range(2):
        fake(tmp_path / f"a_tfds/seed{seed}", f"seed={seed}")
        change_content(tmp_path / f"a_tfds/seed{seed}", "1")
    rows = ledger(tmp_path)
    assert rows["Table 2: CIFAR-10"]["EIR"][3] == "3"
    (title,) = (t for t in rows if "Other runs" in t)
    assert rows[title]["a_tfds"][1] == "2"
    assert "in common" not in capsys.readouterr().err


def test_what_auto_meant_tells_runs_apart(tmp_path):
    for number, device in enumerate(["cpu", "NVIDIA X", "NVIDIA X"]):
        workdir = tmp_path / f"{device}/seed{number}"
        fake(workdir, f"seed={number}", "temperature=0.2")
        session = SESSION | {"device": device}
        (workdir / "run.json").write_text(json.dumps({"sessions": [session]}))
    rows = ledger(tmp_path)
    (title,) = (t for t in rows if "Other runs" in t)
    assert rows[title]["cpu"][:2] == ["model.dtype=auto (float32)", "1"]
    assert rows[title]["NVIDIA X"][:2] == ["", "2"]
    # An untrained encoder knows no type, and an earlier round only its own.
    for number, device in enumerate(["cpu", "NVIDIA X"]):
        workdir = tmp_path / f"untrained/{number}"
        fake(workdir, f"seed={number}", "num_epochs=0")
        session = SESSION | {"device": device, "to_step": 0}
        (workdir / "run.json").write_text(json.dumps({"sessions": [session]}))
    assert ledger(tmp_path)["Table 2: CIFAR-10"]["Random"][3] == "2"
    workdir = fake(tmp_path / "later/seed3", "seed=3", "temperature=0.2")
    later = SESSION | {"from_step": 78_000, "device": "cpu"}
    (workdir / "run.json").write_text(json.dumps({"sessions": [SESSION, later]}))
    assert ledger(tmp_path)[title]["NVIDIA X"][:2] == ["", "3"]
    # Whichever it was, the paper's row asks for 'auto'.
    fake(tmp_path / "gpu/seed7", "seed=7")
    (tmp_path / "gpu/seed7/run.json").write_text(json.dumps({"sessions": [SESSION]}))
    assert ledger(tmp_path)["Table 2: CIFAR-10"]["EIR"][3] == "1"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("eval", {"knn": [1]}, "is no evaluation"),
        ("eval", {"knn": {"5": "much"}}, "is no evaluation"),
        ("eval", {"knn": {"5": float("nan")}}, "a number of knn is not finite"),
        ("eval", {"protocol": {"data": {"train_images": 50_000}}}, "is no evaluation"),
        ("eval", {"protocol": 3}, "is no evaluation"),
        ("config.json", {"num_epochs": None}, "num_epochs has no value"),
        ("run.json", {"sessions": [{"command": "x"}]}, "cannot be read .KeyError"),
        ("run.json", {"sessions": 3}, "cannot be read .TypeError"),
        ("run.json", {"sessions": [SESSION | {"seconds": "x"}]}, "cannot be read .T"),
        ("run.json", {"sessions": [SESSION | {"commit": 3}]}, "commit is no text"),
        ("eval", {"step": "x"}, "is no evaluation .TypeError"),
        ("eval", {"skipped": 3}, "is no evaluation .TypeError"),
        ("config.json", {"batch_size": 0}, ""),
        ("config.json", {"unknown": 1}, ""),
        ("metrics.jsonl", {"knn": {"200": "x"}}, ""),
    ],
)
def test_damaged_files_are_named(tmp_path, file, change, message):
    fake(tmp_path / "a", "temperature=0.2")
    fake(tmp_path / "b", "temperature=0.3")
    (tmp_path / "a/run.json").write_text(json.dumps({"sessions": [SESSION]}))
    path = tmp_path / "a" / file
    if file == "eval":
        (path,) = path.iterdir()
    if file == "metrics.jsonl":
        lines = b'{"epoch": 1, "knn": {"200": "x"}}\n{"epoch": 2, "knn": {"200": NaN}}'
        path.write_bytes(lines + b"\n\xff\xfe\n")
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if message:
        with pytest.raises(UserError, match=message) as error:
            ledger(tmp_path)
        assert str(path) in str(error.value)
    else:
        assert "nan" not in str(ledger(tmp_path))
