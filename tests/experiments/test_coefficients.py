"""Curves over a setting: which runs may stand on them."""

import json
from pathlib import Path

import pytest
from test_main import ROOT
from test_sweep import DIGITS, fake_run
from test_tables import SESSION

from eir_jax import coefficients as command
from eir_jax.experiments import coefficients
from eir_jax.figures.curves import coefficient_means
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def fake(workdir, knn, *flags):
    fake_run(workdir, load_config(DIGITS, [f"--config.{f}" for f in flags]), knn)
    return str(workdir)


def draw(folder, runs, *more):
    out = folder / "c.png"
    words = ["--x=lambda_intra", f"--out={out}", *more, *runs]
    assert command.main(words) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_seeds_are_averaged_and_other_runs_refused(tmp_path):
    runs = [
        fake(tmp_path / f"{value}/seed{seed}", 0.8, f"lambda_intra={value}", f"{key}")
        for value in (0, 15)
        for seed, key in enumerate(("seed=0", "seed=1"))
    ]
    draw(tmp_path, runs)
    other = fake(tmp_path / "other", 0.3, "lambda_intra=15", "intra.ramp_steps=9")
    with pytest.raises(UserError, match=r"differ in intra.ramp_steps too \(0, 9\)"):
        draw(tmp_path, [*runs, other])
    draw(tmp_path, [*runs, other], "--group=intra.ramp_steps")
    draw(tmp_path, runs, f"--baseline={other}")
    with pytest.raises(UserError, match=r"seed0 .*seed0 have settings and seed in com"):
        draw(tmp_path, [*runs, runs[0]])


def test_runs_on_other_images_are_refused(tmp_path):
    runs = [fake(tmp_path / f"{v}", 0.8, f"lambda_intra={v}") for v in (0, 3, 15)]
    for run, content in zip(runs, "aab", strict=True):
        file = Path(run) / "eval/step_550.json"
        record = json.loads(file.read_text())
        record["protocol"]["data"]["content_hash"] = content
        file.write_text(json.dumps(record))
    draw(tmp_path, runs[:2])
    with pytest.raises(UserError, match=r"differ in data.content too \(a, b\); leave"):
        draw(tmp_path, runs)
    with pytest.raises(UserError, match=r"on different images \(content a, b\)"):
        draw(tmp_path, runs[:2], f"--baseline={runs[2]}")


def test_what_auto_meant_is_no_group_to_choose(tmp_path):
    runs = [fake(tmp_path / f"{v}", 0.8, f"lambda_intra={v}") for v in (0, 3)]
    for run, device in zip(runs, ("cpu", "NVIDIA X"), strict=True):
        session = SESSION | {"device": device}
        (Path(run) / "run.json").write_text(json.dumps({"sessions": [session]}))
    with pytest.raises(UserError, match=r"\(auto \(float32\), auto .*leave one out$"):
        draw(tmp_path, runs)


def test_points_are_of_the_last_step_alone(tmp_path):
    run = fake(tmp_path / "a", 0.8)
    file = tmp_path / "a/eval/step_550.json"
    # What was evaluated on the way is left aside.
    (tmp_path / "a/eval/step_110.json").write_text(file.read_text())
    (tmp_path / "a/eval/step_best.json").write_text(file.read_text())
    found = coefficients.row_of(
        coefficients.finished(tmp_path / "a"), ["lambda_intra"], "knn.200"
    )
    assert found == {"lambda_intra": 500.0, "knn.200": 0.8}
    assert coefficient_means([found], x="lambda_intra", y="knn.200")[""][1] == [0.8]
    file.unlink()
    with pytest.raises(UserError, match="a is not finished, or not evaluated there"):
        draw(tmp_path, [run])


def test_what_is_not_there_is_refused(tmp_path):
    run = fake(tmp_path / "a", 0.8)
    with pytest.raises(UserError, match=r"holds no knn.7; it holds .*knn.200"):
        draw(tmp_path, [run], "--y=knn.7")
    with pytest.raises(UserError, match="has no setting lambda_x"):
        coefficients.row_of(coefficients.finished(tmp_path / "a"), ["lambda_x"], "")
    with pytest.raises(UserError, match="is no workdir"):
        draw(tmp_path, [run, str(tmp_path / "absent")])
    (tmp_path / "a/eval/step_550.json").write_text('{"step"')
    with pytest.raises(UserError, match="is no evaluation"):
        draw(tmp_path, [run])
