import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgjax

T = 7
fraction = st.sampled_from([0.0, 0.3, 0.9, 1.0])


@st.composite
def windows(draw):
    """`(reward, value, next_value, terminated, truncated)`, each `[1]` or `[7]`, with any ends."""
    length = draw(st.sampled_from([1, T]))
    ends = np.array(draw(st.lists(st.sampled_from(range(4)), min_size=length, max_size=length)))
    numbers = np.random.default_rng(draw(st.integers(0, 10_000))).normal(size=(3, length))
    return *numbers, ends % 2 == 1, ends >= 2


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=1e-11)


@given(windows(), fraction)
def test_td_error_equals_its_definition(x64, window, gamma):
    reward, value, next_value, terminated, _ = window
    expected = oracles.td_error(reward, value, next_value, terminated, gamma=gamma)
    close(pgjax.td_error(reward, value, next_value, terminated, gamma=gamma), expected)


@given(windows(), fraction, fraction)
def test_gae_is_the_discounted_sum_of_td_errors_to_the_end(x64, window, gamma, lambda_):
    close(
        pgjax.gae(*window, gamma=gamma, lambda_=lambda_), oracles.gae(*window, gamma=gamma, lambda_=lambda_)
    )


@given(windows(), fraction)
def test_gae_at_lambda_0_is_the_td_error(x64, window, gamma):
    close(pgjax.gae(*window, gamma=gamma, lambda_=0.0), pgjax.td_error(*window[:4], gamma=gamma))


@given(windows(), fraction)
def test_gae_at_lambda_1_is_the_bootstrapped_reward_to_go_minus_the_value(x64, window, gamma):
    reward, value, next_value, terminated, truncated = window
    last = truncated.copy()
    last[-1] = True
    bootstrapped = reward + gamma * np.where(last & ~terminated, next_value, 0.0)
    expected = oracles.reward_to_go(bootstrapped, terminated, last, gamma=gamma) - value
    # TD errors telescope only if V(next_obs_t) is V(obs_{t+1}) inside an episode
    inside = ~(terminated | last)
    next_value = np.where(inside, np.append(value[1:], 0.0), next_value)
    close(pgjax.gae(reward, value, next_value, terminated, truncated, gamma=gamma, lambda_=1.0), expected)


@given(windows(), fraction, fraction)
def test_gae_plus_value_is_the_lambda_return(x64, window, gamma, lambda_):
    reward, value, next_value, terminated, truncated = window
    inside = ~(terminated | truncated)
    inside[-1] = False
    next_value = np.where(inside, np.append(value[1:], 0.0), next_value)
    arrays = terminated, truncated
    advantage = pgjax.gae(reward, value, next_value, *arrays, gamma=gamma, lambda_=lambda_)
    close(advantage + value, pgjax.lambda_return(reward, next_value, *arrays, gamma=gamma, lambda_=lambda_))


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [  # δ = 1 + .5 · V(next) − 2 with V(next) = 10, and the following δ = 1 + .5 · 20 − 3 = 8
        (False, False, 4 + 0.5 * 0.25 * 8),
        (True, False, -1),
        (False, True, 4),
        (True, True, -1),
    ],
)
def test_the_four_combinations_of_flags_by_hand(terminated, truncated, expected):
    flags = jnp.array([terminated, False]), jnp.array([truncated, False])
    advantage = pgjax.gae(
        jnp.ones(2), jnp.array([2.0, 3.0]), jnp.array([10.0, 20.0]), *flags, gamma=0.5, lambda_=0.25
    )
    assert advantage[0] == expected


def test_a_truncated_step_bootstraps_from_what_it_led_to_and_not_from_the_next_row():
    no, cut = jnp.zeros(2, bool), jnp.array([True, False])
    value, next_value = jnp.array([0.0, 100.0]), jnp.array([7.0, 0.0])  # row 1 is another episode
    advantage = pgjax.gae(jnp.zeros(2), value, next_value, no, cut, gamma=1.0, lambda_=0.95)
    assert advantage[0] == 7.0


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_gae_is_differentiable_in_reward_value_and_next_value(argument, x64, rng):
    arrays = rng.normal(size=(3, T))
    flags = np.arange(T) == 3, np.arange(T) == 1

    def estimate(x):
        return pgjax.gae(*arrays[:argument], x, *arrays[argument + 1 :], *flags, gamma=0.9, lambda_=0.8)

    direction = rng.normal(size=T)
    _, forward = jax.jvp(estimate, (arrays[argument],), (direction,))
    numeric = oracles.finite_difference(lambda s: estimate(arrays[argument] + s * direction), 0.0)
    np.testing.assert_allclose(forward, numeric, atol=1e-7)


@pytest.mark.parametrize("mask", ["none", "full rank", "lower rank"])
def test_standardize_gives_mean_0_and_deviation_1_over_the_valid_entries(mask, x64, rng):
    x = rng.normal(3.0, 5.0, size=(6, 4))
    valid = {
        "none": np.ones((6, 4), bool),
        "full rank": rng.uniform(size=(6, 4)) < 0.7,
        "lower rank": np.arange(6) < 4,
    }[mask]
    y = np.asarray(pgjax.standardize(x) if mask == "none" else pgjax.standardize(x, valid))
    valid = np.broadcast_to(valid.reshape(6, -1), x.shape)
    np.testing.assert_allclose(y[valid], (x[valid] - x[valid].mean()) / x[valid].std(), rtol=1e-7)
    assert (y[~valid] == 0).all()


@pytest.mark.parametrize("valid", [None, jnp.ones(3, bool), jnp.zeros(3, bool), jnp.arange(3) == 0])
def test_standardize_of_nothing_or_of_what_does_not_vary_is_zero_with_a_finite_gradient(valid):
    x = jnp.full(3, 2.0)
    np.testing.assert_array_equal(pgjax.standardize(x, valid), 0.0)
    assert np.isfinite(jax.grad(lambda x: pgjax.standardize(x, valid)[0])(x)).all()


def test_standardize_passes_nan_on_where_valid():
    assert jnp.isnan(pgjax.standardize(jnp.array([1.0, 3.0, jnp.nan]))).all()


def test_standardize_ignores_nan_where_not_valid():
    y = pgjax.standardize(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    np.testing.assert_allclose(y, [-1.0, 1.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(("value", "num"), [(2.0, 4), (0.1, 7), (-123.456, 1000)])
def test_values_that_do_not_vary_are_standardized_to_zero(value, num):
    np.testing.assert_array_equal(pgjax.standardize(jnp.full(num, value)), 0.0)
