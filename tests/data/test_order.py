"""Order and mixing: pure functions with the right distributions."""

import numpy as np
import pytest
from scipy import stats

from eir_jax.data.order import draw_interpolation, epoch_order, steps_per_epoch


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    orders = {
        (seed, epoch): epoch_order(seed, epoch, 1000)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    for key, order in orders.items():
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
        np.testing.assert_array_equal(order, epoch_order(*key, 1000))
    assert len({order.tobytes() for order in orders.values()}) == 4


def test_every_place_is_equally_likely():
    """Chi-squared over where instance 0 lands in 2,000 epochs (10 cells)."""
    place = [int(np.argmin(epoch_order(3, epoch, 50))) // 5 for epoch in range(2000)]
    assert stats.chisquare(np.bincount(place, minlength=10)).pvalue > 0.001


def test_the_last_short_batch_is_dropped():
    assert steps_per_epoch(50_000, 128) == 390  # 78,000 steps in 200 epochs
    assert steps_per_epoch(128, 128) == 1


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_draw_is_a_function_of_seed_and_step(kind):
    first = draw_interpolation(0, 5, 16, 32, kind=kind)
    again = draw_interpolation(0, 5, 16, 32, kind=kind)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.sort(first.partner), np.arange(16))
    assert len(set(first.ratio)) == 1  # one ratio a batch
    others = [draw_interpolation(0, 6, 16, 32), draw_interpolation(1, 5, 16, 32)]
    assert all(other.ratio[0] != first.ratio[0] for other in others)


def test_per_sample_ratios_differ():
    drawn = draw_interpolation(0, 0, 64, 32, per_sample=True)
    assert len(set(drawn.ratio)) > 40
    assert len({tuple(box) for box in drawn.box}) > 40


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_ratio_is_beta(alpha):
    ratios = [
        draw_interpolation(0, step, 1, 32, kind="mixup", alpha=alpha).ratio[0]
        for step in range(3000)
    ]
    assert stats.kstest(ratios, stats.beta(alpha, alpha).cdf).pvalue > 0.001


def test_cutmix_ratio_is_what_the_clipped_box_leaves():
    drawn = draw_interpolation(2, 0, 2000, 32, per_sample=True)
    top, left, bottom, right = drawn.box.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= 32).all() and (right <= 32).all()
    area = (bottom - top) * (right - left)
    np.testing.assert_allclose(drawn.ratio, 1 - area / 1024, rtol=1e-6)
    # alpha = 1: r is uniform, its box has E[area] = 1/2 before clipping and less after.
    assert 0.5 < drawn.ratio.mean() < 0.75
    assert (
        stats.kstest((top + bottom)[area > 0] / 64, stats.uniform.cdf).statistic < 0.2
    )  # centres spread over the image
