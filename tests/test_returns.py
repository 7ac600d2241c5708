import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgjax

T = 7
NO, TERMINATED, TRUNCATED, BOTH = range(4)
ends_of = {length: st.lists(st.sampled_from(range(4)), min_size=length, max_size=length) for length in (1, T)}
fraction = st.sampled_from([0.0, 0.3, 0.9, 1.0])
seed = st.integers(0, 10_000)
windows = st.sampled_from([1, T]).flatmap(ends_of.get)


def flags(ends):
    """`(terminated, truncated)` of a list of 0: neither, 1: terminated, 2: truncated, 3: both."""
    ends = np.asarray(ends)
    return ends % 2 == 1, ends >= 2


def numbers(ends, seed, count):
    """Random arrays `[T]`."""
    return np.random.default_rng(seed).normal(size=(count, len(ends)))


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=1e-11)


@given(windows, seed, fraction)
def test_reward_to_go_equals_its_definition(x64, ends, seed, gamma):
    terminated, truncated = flags(ends)
    (reward,) = numbers(ends, seed, 1)
    expected = oracles.reward_to_go(reward, terminated, truncated, gamma=gamma)
    close(pgjax.reward_to_go(reward, terminated, truncated, gamma=gamma), expected)


@given(windows, seed, fraction, st.sampled_from([1, 2, 3, 4, 6, 7, 8]))
def test_n_step_return_equals_its_definition(x64, ends, seed, gamma, n):
    terminated, truncated = flags(ends)
    reward, next_value = numbers(ends, seed, 2)
    expected = oracles.n_step_return(reward, next_value, terminated, truncated, gamma=gamma, n=n)
    close(pgjax.n_step_return(reward, next_value, terminated, truncated, gamma=gamma, n=n), expected)


@given(windows, seed, fraction, fraction)
def test_lambda_return_is_the_mixture_of_n_step_returns(x64, ends, seed, gamma, lambda_):
    terminated, truncated = flags(ends)
    reward, next_value = numbers(ends, seed, 2)
    options = {"gamma": gamma, "lambda_": lambda_}
    expected = oracles.lambda_return(reward, next_value, terminated, truncated, **options)
    close(pgjax.lambda_return(reward, next_value, terminated, truncated, **options), expected)


@given(windows, seed, fraction)
def test_n_step_return_reduces_to_the_lambda_return_at_both_ends(x64, ends, seed, gamma):
    terminated, truncated = flags(ends)
    reward, next_value = numbers(ends, seed, 2)
    arrays = reward, next_value, terminated, truncated
    one, zero = (pgjax.lambda_return(*arrays, gamma=gamma, lambda_=x) for x in (1.0, 0.0))
    for n in (7, 8):
        close(pgjax.n_step_return(*arrays, gamma=gamma, n=n), one)
    close(pgjax.n_step_return(*arrays, gamma=gamma, n=1), zero)


@given(windows, st.sampled_from([0, 5]))
def test_episode_time_counts_from_the_last_end(ends, start):
    terminated, truncated = flags(ends)
    time = pgjax.episode_time(terminated, truncated, start=start)
    np.testing.assert_array_equal(time, oracles.episode_time(terminated, truncated, start=start))
    assert time.dtype == jnp.int32


@given(windows, fraction, st.sampled_from([0, 3]))
def test_time_discount_is_gamma_to_the_episode_time(x64, ends, gamma, start):
    terminated, truncated = flags(ends)
    expected = gamma ** oracles.episode_time(terminated, truncated, start=start).astype(float)
    close(pgjax.time_discount(terminated, truncated, gamma=gamma, start=start), expected)


@given(windows, seed, fraction, st.sampled_from([0.0, 2.5]))
def test_return_so_far_counts_the_last_reward_before_it_starts_anew(x64, ends, seed, gamma, start):
    terminated, truncated = flags(ends)
    (reward,) = numbers(ends, seed, 1)
    expected = oracles.return_so_far(reward, terminated, truncated, gamma=gamma, start=start)
    close(pgjax.return_so_far(reward, terminated, truncated, gamma=gamma, start=start), expected)


@given(ends_of[T], seed, fraction)
def test_return_so_far_of_two_windows_equals_one(x64, ends, seed, gamma):
    terminated, truncated = flags(ends)
    (reward,) = numbers(ends, seed, 1)
    whole = pgjax.return_so_far(reward, terminated, truncated, gamma=gamma)
    carried = 0.0 if ends[2] else whole[2]
    rest = pgjax.return_so_far(reward[3:], terminated[3:], truncated[3:], gamma=gamma, start=carried)
    close(rest, whole[3:])


@pytest.mark.parametrize(
    ("end", "reward_to_go", "n_step", "lambda_"),
    [  # one step of reward 1, γ = .5, V(next) = 10, followed by a step worth 1 + .5 · 20 = 11
        (NO, 1 + 0.5 * 1, 1 + 0.5 * 11, 1 + 0.5 * (0.75 * 10 + 0.25 * 11)),
        (TERMINATED, 1, 1, 1),
        (TRUNCATED, 1, 1 + 0.5 * 10, 1 + 0.5 * 10),
        (BOTH, 1, 1, 1),
    ],
    ids=["neither", "terminated", "truncated", "both"],
)
def test_the_four_combinations_of_flags_by_hand(end, reward_to_go, n_step, lambda_):
    terminated, truncated = flags([end, NO])
    reward, next_value = jnp.ones(2), jnp.array([10.0, 20.0])
    arrays = reward, next_value, terminated, truncated
    assert pgjax.reward_to_go(reward, terminated, truncated, gamma=0.5)[0] == reward_to_go
    assert pgjax.n_step_return(*arrays, gamma=0.5, n=2)[0] == n_step
    assert pgjax.lambda_return(*arrays, gamma=0.5, lambda_=0.25)[0] == lambda_


@pytest.mark.parametrize("last", [NO, TRUNCATED])
def test_the_end_of_the_window_is_one_more_truncation(last, rng):
    reward, next_value = rng.normal(size=(2, T)).astype(np.float32)
    terminated, truncated = flags([NO] * (T - 1) + [TRUNCATED])
    arrays = reward, next_value, terminated
    options = {"gamma": 0.9, "lambda_": 0.7}
    cut = pgjax.lambda_return(*arrays, truncated, **options)
    truncated[-1] = last == TRUNCATED
    np.testing.assert_array_equal(pgjax.lambda_return(*arrays, truncated, **options), cut)


def test_total_return_is_the_sum_over_the_valid_steps_of_a_trajectory(rng):
    reward = rng.normal(size=(4, 3)).astype(np.float32)
    valid = np.arange(4)[:, None] < [4, 2, 1]
    expected = np.where(valid, np.where(valid, reward, 0.0).sum(0), 0.0)
    np.testing.assert_allclose(
        pgjax.total_return(np.where(valid, reward, np.nan), valid), expected, rtol=1e-6
    )
    full = np.broadcast_to(reward.sum(0), reward.shape)
    np.testing.assert_allclose(pgjax.total_return(reward), full, rtol=1e-6)


def test_total_return_with_objectives_behind_the_mask(rng):
    reward = rng.normal(size=(4, 3, 2)).astype(np.float32)
    valid = np.arange(4)[:, None] < [4, 2, 1]
    total = pgjax.total_return(reward, valid)
    for k in range(2):
        np.testing.assert_allclose(total[..., k], pgjax.total_return(reward[..., k], valid), rtol=1e-6)


ESTIMATORS = {
    "reward_to_go": lambda r, v, *f, gamma, lambda_: pgjax.reward_to_go(r, *f, gamma=gamma),
    "n_step_return": lambda r, v, *f, gamma, lambda_: pgjax.n_step_return(r, v, *f, gamma=gamma, n=3),
    "lambda_return": lambda r, v, *f, gamma, lambda_: pgjax.lambda_return(
        r, v, *f, gamma=gamma, lambda_=lambda_
    ),
    "td_error": lambda r, v, *f, gamma, lambda_: pgjax.td_error(r, 0.5 * v, v, f[0], gamma=gamma),
    "gae": lambda r, v, *f, gamma, lambda_: pgjax.gae(r, 0.5 * v, v, *f, gamma=gamma, lambda_=lambda_),
    "return_so_far": lambda r, v, *f, gamma, lambda_: pgjax.return_so_far(r, *f, gamma=gamma),
    "time_discount": lambda r, v, *f, gamma, lambda_: pgjax.time_discount(*f, gamma=gamma),
}
BOOTSTRAPPING = ["n_step_return", "lambda_return", "td_error", "gae"]
ENDS = [NO, TRUNCATED, TERMINATED, TERMINATED, NO, BOTH, NO]  # an episode of length 1 among them


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "time_discount"])
def test_flags_of_lower_rank_gain_the_rewards_trailing_axes(name, x64, rng):
    ends = rng.integers(0, 4, size=(T, 3))
    reward, next_value = rng.normal(size=(2, T, 3, 2))
    together = ESTIMATORS[name](reward, next_value, *flags(ends), gamma=0.9, lambda_=0.8)
    assert together.shape == (T, 3, 2)
    for n in range(3):
        for k in range(2):
            one = ESTIMATORS[name](
                reward[:, n, k], next_value[:, n, k], *flags(ends[:, n]), gamma=0.9, lambda_=0.8
            )
            close(together[:, n, k], one)


@pytest.mark.parametrize(
    "function", [pgjax.episode_time, lambda *f, start: pgjax.time_discount(*f, gamma=0.5, start=start)]
)
def test_every_column_has_a_clock_of_its_own(function, rng):
    terminated, truncated = flags(rng.integers(0, 4, size=(T, 3)))
    start = np.array([0, 4, 2])
    together = function(terminated, truncated, start=start)
    for n in range(3):
        one = function(terminated[:, n], truncated[:, n], start=start[n])
        np.testing.assert_allclose(together[:, n], one)


@pytest.mark.parametrize("name", BOOTSTRAPPING)
@pytest.mark.parametrize(
    "ends", [ENDS, [TERMINATED], [BOTH]], ids=["episodes", "one step", "one step, both flags"]
)
def test_nan_behind_a_termination_leaks_neither_into_the_value_nor_into_a_gradient(name, ends, rng):
    terminated, truncated = flags(ends)
    reward, clean = rng.normal(size=(2, len(ends))).astype(np.float32)

    def estimate(reward, gamma, lambda_, next_value):
        hidden = jnp.where(terminated, jnp.nan, next_value)
        # V(obs_t) is healthy everywhere; only what follows a termination is not
        if name in ("td_error", "gae"):
            rest = (terminated,) if name == "td_error" else (terminated, truncated)
            options = {"gamma": gamma} if name == "td_error" else {"gamma": gamma, "lambda_": lambda_}
            return getattr(pgjax, name)(reward, 0.5 * next_value, hidden, *rest, **options)
        return ESTIMATORS[name](reward, hidden, terminated, truncated, gamma=gamma, lambda_=lambda_)

    arguments = reward, 0.9, 0.8, clean
    value = estimate(*arguments)
    np.testing.assert_array_equal(
        value, ESTIMATORS[name](reward, clean, terminated, truncated, gamma=0.9, lambda_=0.8)
    )
    gradients = jax.jacrev(estimate, (0, 1, 2, 3))(*arguments)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.0, 0.0), (0.0, 0.8), (0.9, 0.0), (0.9, 0.8), (1.0, 1.0)])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_derivatives_in_gamma_lambda_and_reward_equal_finite_differences(name, gamma, lambda_, x64, rng):
    reward, next_value, direction = rng.normal(size=(3, T))

    def estimate(gamma, lambda_, along):
        return ESTIMATORS[name](
            reward + along * direction, next_value, *flags(ENDS), gamma=gamma, lambda_=lambda_
        )

    point = [gamma, lambda_, 0.0]
    forward = jax.jacfwd(estimate, (0, 1, 2))(*point)
    backward = jax.jacrev(estimate, (0, 1, 2))(*point)
    for i in range(3):
        numeric = oracles.finite_difference(lambda x, i=i: estimate(*point[:i], x, *point[i + 1 :]), point[i])
        np.testing.assert_allclose(forward[i], numeric, atol=1e-7)
        np.testing.assert_allclose(backward[i], forward[i], atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_vmap_over_gamma_equals_a_loop(name, x64, rng):
    reward, next_value = rng.normal(size=(2, T))
    gammas = jnp.array([0.0, 0.5, 1.0])

    def estimate(gamma):
        return ESTIMATORS[name](reward, next_value, *flags(ENDS), gamma=gamma, lambda_=0.8)

    for row, gamma in zip(jax.vmap(estimate)(gammas), gammas, strict=True):
        close(row, estimate(gamma))


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "time_discount"])
def test_integer_rewards_give_what_their_float_twins_give(name):
    reward, next_value = np.arange(T), np.linspace(-1.0, 1.0, T, dtype=np.float32)
    options = {"gamma": 0.9, "lambda_": 0.8}
    expected = ESTIMATORS[name](reward.astype(np.float32), next_value, *flags(ENDS), **options)
    np.testing.assert_allclose(
        ESTIMATORS[name](reward, next_value, *flags(ENDS), **options), expected, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("limit_is", "expected"),
    [("truncated", 10.0), ("terminated", 4.2828)],
)
def test_endless_reward_under_a_time_limit_is_worth_ten_unless_the_limit_is_called_an_end(limit_is, expected):
    """One state, reward 1 for ever, γ = .9, limit 10, λ = .95: the fixed point of V ← mean of its targets."""
    last = np.arange(10) == 9
    flag = {"terminated": np.zeros(10, bool), "truncated": np.zeros(10, bool), limit_is: last}
    value = jnp.zeros(())
    for _ in range(200):
        target = pgjax.lambda_return(jnp.ones(10), jnp.full(10, value), **flag, gamma=0.9, lambda_=0.95)
        value = target.mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("limit_is", ["truncated", "terminated"])
def test_a_value_that_sees_the_time_is_ten_everywhere_only_under_truncation(limit_is):
    last = np.arange(10) == 9
    flag = {"terminated": np.zeros(10, bool), "truncated": np.zeros(10, bool), limit_is: last}
    value = jnp.zeros(11)  # V by time step; the state after the last step is the task going on
    for _ in range(300):
        target = pgjax.lambda_return(jnp.ones(10), value[1:], **flag, gamma=0.9, lambda_=0.95)
        value = jnp.append(target, target[-1])
    expected = np.full(10, 10.0) if limit_is == "truncated" else 10 * (1 - 0.9 ** np.arange(10, 0, -1))
    np.testing.assert_allclose(value[:10], expected, rtol=1e-4)


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_fewer_than_one_step_is_an_error(n):
    no = jnp.zeros(2, bool)
    with pytest.raises(ValueError, match="n must be"):
        pgjax.n_step_return(jnp.ones(2), jnp.ones(2), no, no, gamma=0.9, n=n)


def test_unequal_time_axes_are_an_error():
    no = jnp.zeros(3, bool)
    with pytest.raises(AssertionError):
        pgjax.lambda_return(jnp.ones(3), jnp.ones(2), no, no, gamma=0.9, lambda_=0.5)


@pytest.mark.parametrize("doubles", [False, True])
@pytest.mark.parametrize("num_steps", [3, 2000])
def test_float32_stays_float32(num_steps, doubles):
    """However long the sequence, and where Python's numbers could be double."""
    with jax.enable_x64(doubles):
        one, no = jnp.ones(num_steps, jnp.float32), jnp.zeros(num_steps, bool)
        for name, estimate in ESTIMATORS.items():
            if name == "time_discount":  # which has flags alone to take a type from
                continue
            assert estimate(one, one, no, no, gamma=0.9, lambda_=0.5).dtype == jnp.float32, name
