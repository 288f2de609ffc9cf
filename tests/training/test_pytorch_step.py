"""A second oracle: one step of PyTorch's, from the same parameters, bank and batch."""

import pytest

torch = pytest.importorskip(
    "torch", reason="the step is compared with PyTorch's, which is not installed"
)

from benchmarks import our_step, pytorch_check, pytorch_views  # noqa: E402
from eir_jax.data.views import NUM_UNIFORMS  # noqa: E402
from eir_jax.system.errors import UserError  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads wait for each other where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one():
    return our_step.take_our_step(our_step.tiny_config())


@pytest.mark.parametrize("together", [False, True], ids=["two passes", "one pass"])
def test_one_step_equals_pytorch(one, together):
    """From the same draws, in float32.

    An activation within rounding of 0 passes its gradient on one side alone: of a
    million there may be a few, each of some 1e-3 in a small tensor.
    """
    apart = pytorch_check.compare(one, together=together)
    assert apart["views"] < 0.01  # of 255 levels
    # The intra term, .01 here, is a difference of numbers a hundred times as large.
    assert apart["losses"] < 2e-5
    assert apart["gradient"] < 5e-3
    assert apart["parameters"] < 5e-3
    assert apart["running averages"] < 1e-5
    assert apart["bank"] < 1e-5


def test_one_step_equals_pytorch_in_float64():
    """From the same views, where no rounding excuses a difference."""
    one = our_step.take_our_step(our_step.tiny_config(), "float64")
    apart = pytorch_check.compare(one)
    assert apart.keys() == {
        "losses",
        "gradient",
        "parameters",
        "running averages",
        "bank",
    }
    assert max(apart.values()) < 1e-11, apart


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"views.hue": 0.39}, "views"),
        ({"temperature": 0.11}, "losses"),
        ({"lambda_intra": 13.0}, "gradient"),
        ({"optimizer.learning_rate": 0.035}, "parameters"),
        ({"bank_momentum": 0.45}, "bank"),
    ],
)
def test_comparison_sees_a_difference(one, change, seen):
    config = one.ours.parts.config.copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    apart = pytorch_check.compare(one, config)
    assert apart[seen] > (0.5 if seen == "views" else 1e-2)


def test_crops_that_never_fit_are_centred():
    """As torchvision falls back; whole-number boxes within the image."""
    recipe = our_step.tiny_config().views.to_dict()
    recipe["crop_area"] = (1.0, 1.0)
    recipe["crop_aspect"] = (2.0, 2.0)
    uniforms = torch.rand(8, NUM_UNIFORMS, generator=torch.Generator().manual_seed(0))
    box, *_ = pytorch_views.draw_views(uniforms, recipe, 30, 30)
    assert box.tolist() == [[7.5 // 1, 0.0, 15.0, 30.0]] * 8


def test_settings_that_pytorch_does_not_know_are_refused():
    config = our_step.tiny_config()
    config.inter.negatives = "bank"
    config.lambda_intra = 0.0
    with pytest.raises(UserError, match=r"inter\.negatives, lambda_intra.*--no_torch"):
        pytorch_check.refuse(config)
