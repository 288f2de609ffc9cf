"""A profiler's trace of the steps asked for, and of no others."""

import gzip
import json

import pytest
from test_rounds import train

from configs import digits
from eir_jax.experiments.runs import INCIDENTAL
from eir_jax.run.validate import validate, validate_sizes
from eir_jax.system.config import flatten
from eir_jax.system.errors import UserError
from eir_jax.training.profiling import StepProfile

pytestmark = pytest.mark.usefixtures("one_device")


def traced_steps(workdir):
    """Return the steps of each trace, read as Perfetto reads it, in their order."""
    found = []
    for path in sorted(workdir.glob("profile/plugins/profile/*/*.trace.json.gz")):
        assert next(path.parent.glob("*.xplane.pb")).stat().st_size > 10_000
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert any("whole_step" in event.get("name", "") for event in events)
        steps = [
            int(event["args"]["step_num"])
            for event in events
            if event.get("name") == "train"
        ]
        found.append(sorted(steps))
    return found


def test_a_run_leaves_a_trace_of_its_steps(tmp_path, capsys):
    workdir = tmp_path / "w"
    train(workdir, profile_steps="2:3")
    assert traced_steps(workdir) == [[2, 3]]
    said = capsys.readouterr().out
    assert "profile of steps 2 to 3: `pip install xprof` and `xprof --logdir=" in said
    assert f"--logdir={workdir / 'profile'}`" in said and "perfetto" in said


def test_steps_that_are_past_are_said(tmp_path):
    said = []
    StepProfile(range(2, 5), tmp_path, 3, said.append).close()
    StepProfile(range(0), tmp_path, 3, said.append).close()
    assert not said
    StepProfile(range(2, 5), tmp_path, 4, said.append).close()
    assert said == ["no profile: profile_steps=2:4 lie before step 5"]


def test_a_run_that_begins_and_ends_within_them_leaves_what_it_took(tmp_path):
    said = []
    profile = StepProfile(range(3, 9), tmp_path, 4, said.append)

    def step(state, batch):
        return state + batch, {}

    state, _ = profile.take(step, 1, 2, 5)
    state, _ = profile.take(step, state, 2, 6)
    assert state == 5 and not said
    profile.close()
    profile.close()
    assert len(said) == 1 and said[0].startswith("profile of steps 5 to 6: ")


@pytest.mark.parametrize("steps", ["5", "0:3", "4:3", "a:b", "1:2:3", "-1:2", "²:3"])
def test_what_is_no_range_is_refused(steps):
    config = digits.get_config()
    config.profile_steps = steps
    with pytest.raises(UserError, match=r"is no range of steps; .* like 101:110"):
        validate(config)


def test_steps_beyond_the_last_are_refused():
    config = digits.get_config()
    config.num_epochs, config.batch_size = 2, 100
    config.profile_steps = "20:28"
    validate(config)
    validate_sizes(config, 1437, 1)
    config.profile_steps = "20:29"
    with pytest.raises(
        UserError, match="beyond the last step; give steps from 1 to 28"
    ):
        validate_sizes(config, 1437, 1)


def test_it_tells_no_runs_apart():
    keys = flatten(digits.get_config())
    assert "profile_steps" in {key for key in keys if key.startswith(INCIDENTAL)}
