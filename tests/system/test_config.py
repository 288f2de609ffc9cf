"""Settings: overriding, refusing in words, and every config file."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import base
from eir_jax.models.encoder import make_encoder
from eir_jax.run.optimizer import make_schedule, schedule_note
from eir_jax.run.validate import suggestions, validate, validate_sizes
from eir_jax.run.workdir import check_settings
from eir_jax.system.config import (
    base_values,
    flatten,
    load_config,
    override,
    read_config,
    save_config,
)
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    str(p) for p in (ROOT / "configs").glob("*.py") if p.name != "__init__.py"
)
DIGITS = str(ROOT / "configs" / "digits.py")

# What the project promises to keep overridable, with a value of each.
CONTRACT = {
    "seed": 3,
    "num_epochs": 7,
    "batch_size": 64,
    "lambda_intra": 0.5,
    "lambda_inter": 1.5,
    "temperature": 0.2,
    "bank_momentum": 0.9,
    "interpolation.kind": "mixup",
    "interpolation.alpha": 0.4,
    "model.name": "resnet34",
    "model.width": 8,
    "data.source": "arrays",
    "data.name": "mine",
    "data.path": "some/file.npz",
    "data.pipeline": "tf.data",
    "log_every_steps": 5,
    "eval_every_epochs": 2,
    "checkpoint_every_epochs": 3,
}


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_is_valid_and_builds_its_encoder(path):
    config = load_config(path, ["--config.data.path=x"])
    validate(config)
    encoder = make_encoder(config)
    size = config.data.image_size
    output = jax.eval_shape(
        lambda: encoder.init_with_output(
            jax.random.key(0), jnp.zeros((1, size, size, 3))
        )[0]
    )
    assert output.embedding.shape == (1, config.model.embedding_dim)


def test_cifar10_is_the_papers_setting():
    config = flatten(load_config(str(ROOT / "configs" / "cifar10.py")))
    paper = {
        "model.name": "resnet18",
        "model.embedding_dim": 128,
        "num_epochs": 200,
        "optimizer.learning_rate": 0.03,
        "optimizer.milestones": (120, 160),
        "optimizer.factors": (0.1, 0.01),
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,
        "batch_size": 128,
        "temperature": 0.1,
        "lambda_intra": 15.0,
        "lambda_inter": 2.0,
        "interpolation.kind": "cutmix",
        "objective": "iraug",
        "knn.k": (5, 20, 200),
        "retrieval.k": (1, 2, 4, 8),
    }
    assert {key: config[key] for key in paper} == paper


@pytest.mark.parametrize("form", ["--config.{}={}", "--config.{} {}"])
def test_contract_of_overrides(form):
    words = [
        word
        for key, value in CONTRACT.items()
        for word in form.format(key, value).split(" ")
    ]
    config = flatten(load_config(DIGITS, words))
    assert {key: config[key] for key in CONTRACT} == CONTRACT


def test_tuples_and_flags_are_read():
    words = [
        "--config.knn.k=1,2",
        "--config.optimizer.factors=(0.5,0.25)",
        "--config.optimizer.milestones=[3,4]",
        "--config.intra.symmetric=true",
        "--config.inter.literal=False",
        "--config.views.crop_area=0.5,1",
    ]
    config = load_config(DIGITS, words)
    assert config.knn.k == (1, 2)
    assert config.optimizer.factors == (0.5, 0.25)
    assert config.optimizer.milestones == (3, 4)
    assert config.intra.symmetric is True and config.inter.literal is False
    assert config.views.crop_area == (0.5, 1.0)


def test_saved_settings_read_back_equal(tmp_path):
    config = load_config(DIGITS, ["--config.seed=4"])
    save_config(config, tmp_path / "config.json")
    assert flatten(read_config(tmp_path / "config.json")) == flatten(config)


def test_settings_that_came_after_a_run_have_the_values_of_base(tmp_path):
    config = load_config(DIGITS, ["--config.lambda_intra=3"])
    save_config(config, tmp_path / "config.json")
    older = json.loads((tmp_path / "config.json").read_text())
    del older["intra"]["ramp_steps"], older["num_rounds"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    read = read_config(tmp_path / "config.json")
    assert flatten(read) == flatten(config)
    read.intra.ramp_steps = 7  # and stay so for the next one
    assert read_config(tmp_path / "config.json").intra.ramp_steps == 0


@pytest.mark.parametrize(
    ("saved", "meant"),
    [({"temperature": 0.0}, 0.3), ({}, 0.3), ({"temperature": 0.2}, 0.2)],
)
def test_an_older_intra_temperature_means_what_it_meant(tmp_path, saved, meant):
    """0, or none, was c.temperature; and no run goes on under another."""
    config = load_config("configs/digits.py", ["--config.temperature=0.3"])
    old = config.to_dict() | {"intra": saved}
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "checkpoints" / "22").mkdir(parents=True)
    assert read_config(tmp_path / "config.json").intra.temperature == meant
    with pytest.raises(UserError, match=rf"intra.temperature: {meant} there, 1.0 here"):
        check_settings(config, tmp_path)
    config.intra.temperature = meant
    check_settings(config, tmp_path)
    check_settings(config, tmp_path)
    config.intra.ramp_steps = 5
    with pytest.raises(UserError, match="ramp_steps: 0 there, 5 here"):
        check_settings(config, tmp_path)


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (["optimizer.schedule=milestones"], True),
        (["optimizer.schedule=cosine"], False),  # whose rate follows the end
        (["optimizer.schedule=milestones", "num_rounds=2"], False),
    ],
)
def test_more_epochs_are_free_where_no_rate_changes(tmp_path, words, goes_on):
    words = [f"--config.{word}" for word in words]
    save_config(load_config(DIGITS, words), tmp_path / "config.json")
    longer = load_config(DIGITS, [*words, "--config.num_epochs=99"])
    check_settings(longer, tmp_path)  # there is no checkpoint that goes on
    (tmp_path / "checkpoints" / "22").mkdir(parents=True)
    if goes_on:
        check_settings(longer, tmp_path)
    else:
        with pytest.raises(UserError, match="num_epochs: 25 there, 99 here"):
            check_settings(longer, tmp_path)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.sed=1", "no setting config.sed; did you mean seed"),
        ("--config.width=8", "did you mean model.width"),
        ("--config.lambda_intr=1", "did you mean lambda_intra"),
        ("--config.model=3", "config.model is a group; set one of model.dtype"),
        ("--config.zzz=1", "no setting config.zzz; see configs/base.py"),
        ("--config.seed=abc", "config.seed=abc is no whole number"),
        ("--config.seed=1.5", "is no whole number"),
        ("--config.temperature=warm", "is no number"),
        ("--config.intra.symmetric=maybe", "is no true or false"),
        ("--config.knn.k=a,b", "is no list of whole numbers"),
        ("--config.knn.k=1.5", "is no list of whole numbers"),
        ("--config.seed", "--config.seed needs a value"),
        ("--wrkdir=x", "did you mean --workdir"),
        ("seed=1", "settings are given as --config.key=value"),
    ],
)
def test_bad_override_is_refused_in_words(word, message):
    with pytest.raises(UserError, match=message):
        load_config(DIGITS, [word])


def test_bad_files_are_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"did you mean configs/digits\.py"):
        load_config("configs/digit.py")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(): return 1 / 0")
    with pytest.raises(UserError, match=r"broken\.py fails: ZeroDivisionError"):
        load_config(str(broken))
    broken.write_text("def get_config(): return 3")
    with pytest.raises(UserError, match="returns no ml_collections"):
        load_config(str(broken))
    with pytest.raises(UserError, match="is no workdir"):
        read_config(tmp_path / "config.json")
    for wrong in ("{", "[1]", "3", '{"model": 3}', '{"lambda_intra": "much"}'):
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(UserError, match="cannot be read as settings"):
            read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("temperature=0", "temperature=0.0 must be finite and above 0"),
        ("temperature=nan", "temperature=nan must be"),
        ("lambda_intra=-1", "lambda_intra=-1.0 must be"),
        ("bank_momentum=1", r"bank_momentum=1.0 must be in \[0, 1\)"),
        ("views.hue=0.6", r"views.hue=0.6 must be in \[0, 0.5\]"),
        ("bank.form=sparse", "bank.form='sparse' is none of auto, dense, streamed"),
        ("bank.dtype=float16", "bank.dtype='float16' is none of float32, bfloat16"),
        ("model.name=vgg", "model.name='vgg' is none of resnet6, resnet10"),
        ("data.source=arrays", "data.path is empty"),
        ("batch_norm.groups=3", "use 63 or 66"),
        ("batch_norm.groups=0", "batch_norm.groups=0 must be at least 1"),
        ("knn.k=99999999999999999999", "knn.k=.* at most 2147483647"),
        ("grow_from=~nobody_of_that_name", "grow_from: ~nobody_of_that_name"),
        ("model.weights=s3://a/b", "model.weights: .* is no local path"),
        ("optimizer.milestones=5", "give one factor a milestone"),
        ("optimizer.milestones=9,5", "is not increasing"),
        ("data.std=0,1,1", "data.std=.* must be finite and above 0"),
        ("views.crop_area=0.9,0.2", "crop_area=.* is not low, high"),
        ("views.crop_area=0.5,2", "are no shares"),
        ("views.crop_aspect=0.5,inf", "is no list of numbers"),
        ("optimizer.factors=0.1,-1", "finite and at least 0"),
        ("linear.held_out=1", r"linear.held_out=1.0 must be in \(0, 1\)"),
        ("linear.learning_rates=0.1,0", "linear.learning_rates=.* above 0"),
        ("linear.weight_decays=-1", "linear.weight_decays=.* at least 0"),
        ("retrieval.k=0,1", "retrieval.k=.* at least 1"),
        ("data.train_classes=5,5", "is not .first, after the last"),
        ("data.path=gs://bucket/x", "data.path: gs://bucket/x is no local path"),
        ("data.class_list=https://a/b", "data.class_list: .* is no local path"),
        ("knn.k=20,5", "knn.k=.* is not increasing"),
    ],
)
def test_inconsistent_settings_are_refused_in_words(word, message):
    with pytest.raises(UserError, match=message):
        validate(load_config(DIGITS, [f"--config.{word}"]))


HOSTILE = ["0", "-1", "99999999999999999999", "nan", "-inf", "", "()", "x", "(nan,)"]


def test_every_setting_is_taken_or_refused_in_words():
    """Whatever it is set to: never another error, and the line names it."""
    before, taken = load_config(DIGITS), 0
    for key, like in base_values().items():
        for text in HOSTILE:
            config = before.copy_and_resolve_references()
            try:
                override(config, [f"--config.{key}={text}"])
                validate(config)
                taken += 1
                assert isinstance(like, str) or text not in ("nan", "-inf", "(nan,)")
            except UserError as error:
                assert key in str(error) and "\n" not in str(error)
                assert len(str(error)) < 300
    assert taken > 100


TUPLES = {k: v for k, v in base_values().items() if isinstance(v, tuple)}
FREE = {"optimizer.milestones", "optimizer.factors", "knn.k", "retrieval.k"}
FREE |= {"linear.learning_rates", "linear.weight_decays"}


@pytest.mark.parametrize("key", TUPLES)
def test_tuples_of_every_length_and_kind(key):
    """By the command line and by a config file: taken, or refused in words."""
    value = TUPLES[key]
    whole = isinstance(value[0], int)
    wrong = [5, None, "ab", (None,), ("a",) * len(value), (value,)]
    wrong += [(True,) * len(value), (math.nan,) * len(value)]
    wrong += [(1.5,) * len(value)] if whole else []
    for length in range(5):
        if key in FREE and (length or key.startswith("optimizer.")):
            continue
        if length != len(value):
            wrong.append((value * 5)[:length])
    for made in wrong:
        config = load_config(DIGITS)
        *groups, last = key.split(".")
        group = config[groups[0]]
        with group.ignore_type():
            group[last] = made
        with pytest.raises(UserError, match=key):
            validate(config)
        if isinstance(made, tuple):
            words = [f"--config.{key}={made}"]
            if made != (value,):
                words.append(f"--config.{key}={','.join(map(str, made))}")
            for word in words:
                with pytest.raises(UserError, match=key):
                    validate(load_config(DIGITS, [word]))


def test_lists_of_other_lengths_are_taken():
    for words, expected in (
        (["milestones=()", "factors=()"], ()),
        (["milestones=[]", "factors=[]"], ()),
        (["milestones=()", "factors=()", "milestones=3", "factors=.5"], (3,)),
        (["milestones=(3)", "factors=(.5,)"], (3,)),
        (["milestones=3,4,", "factors=1,.5"], (3, 4)),
        (["milestones=1,2,3", "factors=.5,.2,.1"], (1, 2, 3)),
    ):
        words = [f"--config.optimizer.{word}" for word in words]
        config = load_config(DIGITS, words)
        validate(config)
        assert config.optimizer.milestones == expected
        schedule = make_schedule(config, 1)
        assert schedule(0) == pytest.approx(0.03)
        last = (1, *config.optimizer.factors)[-1]
        assert schedule(24) == pytest.approx(0.03 * last)


def test_a_config_file_that_does_not_begin_with_base(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(): return ConfigDict({'seed': 1, 'knn': {'k': (5,)}})"
    )
    config = load_config(str(file))
    validate(config)
    assert config.seed == 1 and config.knn.k == (5,)
    assert config.lambda_inter == load_config("base").lambda_inter


@pytest.mark.parametrize("path", CONFIGS)
def test_the_rate_of_every_config_falls(path):
    config = load_config(path)
    assert schedule_note(config, config.num_epochs) == ""


def test_milestones_beyond_the_end_are_said():
    def note(*words, planned=None):
        config = load_config(str(ROOT / "configs" / "cifar10.py"), words)
        return schedule_note(config, 200 if planned is None else planned)

    assert note("--config.num_epochs=161") == note("--config.num_epochs=0") == ""
    whole = note("--config.num_epochs=30")
    assert "never falls" in whole and whole.endswith("optimizer.milestones=18,24")
    assert "falls less often" in note("--config.num_epochs=150")
    assert note("--config.num_epochs=150").endswith("=90,120")
    for epochs, planned in ((1, 200), (30, 30), (30, 0)):
        words = f"--config.num_epochs={epochs}"
        assert "never falls" in note(words, planned=planned)
        assert "same shares" not in note(words, planned=planned)
    constant = ["--config.optimizer.milestones=()", "--config.optimizer.factors=()"]
    assert note("--config.num_epochs=1", *constant) == ""
    cosine = "--config.optimizer.schedule=cosine"
    assert note("--config.num_epochs=30", cosine) == ""


@pytest.mark.parametrize("objective", ["iraug", "moco", "deepcluster"])
def test_any_word_for_any_setting_is_taken_or_refused_by_name(objective):
    for key in flatten(base.get_config()):
        for word in ("0", "-1", "7", "1e9", "nan", "", "(1,)"):
            words = [f"--config.objective={objective}", f"--config.{key}={word}"]
            try:
                config = load_config(DIGITS, words)
                validate(config)
                validate_sizes(config, 20, 8)
            except UserError as error:
                said = str(error)
                assert "\n" not in said, words
                named = key.rsplit(".")[-1] in said or "batch_size" in said
                assert named or objective != "iraug", (words, said)


def test_all_problems_are_said_at_once():
    config = load_config(DIGITS, ["--config.seed=-1", "--config.num_rounds=0"])
    with pytest.raises(UserError, match=r"seed=-1 .*; num_rounds=0"):
        validate(config)


def test_sizes_are_checked_against_data_and_devices():
    config = load_config(DIGITS, ["--config.batch_size=128"])
    validate_sizes(config, 1437, 8)
    with pytest.raises(UserError, match="exceeds the 100 training images"):
        validate_sizes(config, 100, 1)
    with pytest.raises(UserError, match="not divide over 7 devices; use 126 or 133"):
        validate_sizes(config, 1437, 7)


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "words"),
    [
        (60, 64, 60, "64 exceeds the 60 training images; use at most 60, better .*=16"),
        (1, 2, 1, "most 1, better .*=1"),
        (60, 32, 60, "steps, 60 .*batch_size=16 --config.num_epochs=167"),
        (300, 64, 30, "steps, 120 .*batch_size=32 --config.num_epochs=56"),
        (1000, 64, 60, ""),
        (1000, 64, 0, ""),
    ],
)
def test_batch_and_epochs_are_fitted_to_few_images(images, batch, epochs, words):
    config = base.get_config()
    config.update(batch_size=batch, num_epochs=epochs)
    if batch > images:
        with pytest.raises(UserError, match=words):
            validate_sizes(config, images, 1)
        return
    said = "".join(suggestions(config, images))
    assert re.search(words, said) if words else not said
    assert "1 epochs" not in said
