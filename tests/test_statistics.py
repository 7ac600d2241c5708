import warnings

import numpy as np
import pytest

from pgjax.experiment import statistics


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 10, 17])
def test_iqm_is_the_mean_without_the_outer_quarters(size):
    x = np.random.default_rng(size).normal(size=size)
    cut = size // 4
    expected = np.sort(x)[cut : size - cut].mean()
    assert statistics.iqm(x) == pytest.approx(expected)


def test_iqm_along_axis_zero():
    x = np.random.default_rng(0).normal(size=(8, 5))
    np.testing.assert_allclose(statistics.iqm(x), [statistics.iqm(column) for column in x.T])


def test_interval_against_a_plain_bootstrap():
    x = np.random.default_rng(0).normal(10.0, 3.0, size=20)
    low, high = statistics.interval(x)
    resamples = np.random.default_rng(1).choice(x, size=(20_000, 20))
    cut = np.sort(resamples, axis=1)[:, 5:15].mean(axis=1)
    # 2000 resamples: the ends are quantiles with a standard error near 0.05
    np.testing.assert_allclose((low, high), np.quantile(cut, (0.025, 0.975)), atol=0.25)
    assert statistics.interval(x) == (low, high)


def test_interval_of_columns_is_each_columns_own_shape():
    low, high = statistics.interval(np.random.default_rng(0).normal(size=(5, 7)))
    assert low.shape == high.shape == (7,)
    assert (low <= high).all()


def test_constant_and_single_values_are_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statistics.interval([2.0, 2.0, 2.0, 2.0]) == (2.0, 2.0)
        assert np.isnan(statistics.interval([2.0])).all()


def oracle_score(env_steps, episodes, returns, steps, least):
    total, last = 0, len(env_steps) - 1
    for i, count in enumerate(env_steps):
        total += count
        if total >= steps:
            last = i
            break
    number, value = 0, 0.0
    while last >= 0 and number < least:
        number, value = number + episodes[last], value + returns[last]
        last -= 1
    return (value / number if number else np.nan), number


def test_scores_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = (3, int(rng.integers(1, 30)))
        env_steps = rng.integers(1, 50, shape).astype(float)
        episodes = rng.integers(0, 4, shape).astype(float)
        returns = np.where(episodes > 0, rng.normal(size=shape), 0.0)
        steps, least = int(rng.integers(1, 1000)), int(rng.integers(1, 40))
        means, numbers = statistics.scores(env_steps, episodes, returns, steps, least)
        expected = [
            oracle_score(*rows, steps, least) for rows in zip(env_steps, episodes, returns, strict=True)
        ]
        np.testing.assert_allclose(means, [e[0] for e in expected])
        np.testing.assert_array_equal(numbers, [e[1] for e in expected])
