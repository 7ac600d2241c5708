import itertools

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
clip = st.sampled_from([0.5, 1.0, 3.0, np.inf])


@st.composite
def windows(draw):
    """`(ratio, reward, value, next_value, terminated, truncated)`, each `[1]` or `[7]`, with any ends."""
    length = draw(st.sampled_from([1, T]))
    ends = np.array(draw(st.lists(st.sampled_from(range(4)), min_size=length, max_size=length)))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    numbers = generator.normal(size=(3, length))
    return np.exp(generator.normal(size=length)), *numbers, ends % 2 == 1, ends >= 2


def consistent(value, next_value, terminated, truncated):
    """`next_value` where V(next_obs_t) is V(obs_{t+1}) inside an episode."""
    inside = ~(terminated | truncated)
    inside[-1] = False
    return np.where(inside, np.append(value[1:], 0.0), next_value)


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=1e-11)


# against loops


@given(windows(), fraction, fraction, clip, clip)
def test_vtrace_equals_its_definition(x64, window, gamma, lambda_, rho_clip, c_clip):
    options = {"gamma": gamma, "lambda_": lambda_, "rho_clip": rho_clip, "c_clip": c_clip}
    expected = oracles.vtrace(*window, **options)
    for actual, desired in zip(pgjax.vtrace(*window, **options), expected, strict=True):
        close(actual, desired)


@given(windows(), fraction, fraction)
def test_retrace_equals_its_definition(x64, window, gamma, lambda_):
    options = {"gamma": gamma, "lambda_": lambda_}
    close(pgjax.retrace(*window, **options), oracles.retrace(*window, **options))


def test_importance_ratio_is_the_ratio_of_the_probabilities(x64, rng):
    pi, mu = rng.uniform(0.1, 1.0, size=(2, 5, 3))
    close(pgjax.importance_ratio(np.log(pi), np.log(mu)), pi / mu)


# against rlax, where it is installed: it needs a nightly of TensorFlow Probability, so the suite does not


@pytest.mark.parametrize("lambda_", [0.7, 1.0])
def test_vtrace_equals_rlax(x64, rng, lambda_):
    rlax = pytest.importorskip("rlax")
    ratio, value = np.exp(rng.normal(size=T)), rng.normal(size=T + 1)
    reward, terminated = rng.normal(size=T), np.arange(T) == 3
    clips = {"clip_rho_threshold": 2.0, "clip_pg_rho_threshold": 2.0}
    discount = 0.9 * ~terminated
    theirs = rlax.vtrace_td_error_and_advantage(
        value[:-1], value[1:], reward, discount, ratio, lambda_, **clips
    )
    options = {"gamma": 0.9, "lambda_": lambda_, "rho_clip": 2.0}
    target, advantage = pgjax.vtrace(
        ratio, reward, value[:-1], value[1:], terminated, np.zeros(T, bool), **options
    )
    close(target, value[:-1] + theirs.errors)
    close(advantage, theirs.pg_advantage)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_retrace_equals_rlax(x64, rng, lambda_):
    rlax = pytest.importorskip("rlax")
    q, pi = rng.normal(size=(T + 1, 3)), rng.dirichlet(np.ones(3), size=T + 1)
    action, mu = rng.integers(0, 3, size=T + 1), rng.uniform(0.2, 1.0, size=T + 1)
    reward, terminated = rng.normal(size=T), np.arange(T) == 3
    taken = pi[np.arange(T + 1), action]
    inputs = q[:-1], q[1:], action[:-1], action[1:], reward, 0.9 * ~terminated, pi[1:], mu[1:]
    theirs = rlax.retrace(*inputs, lambda_, eps=0.0)
    value, next_value = q[np.arange(T), action[:-1]], (pi * q).sum(1)[1:]
    ours = pgjax.retrace(
        (taken / mu)[:-1],
        reward,
        value,
        next_value,
        terminated,
        np.zeros(T, bool),
        gamma=0.9,
        lambda_=lambda_,
    )
    close(ours, value + theirs)


# identities


@given(windows(), fraction, fraction)
def test_vtrace_on_policy_is_the_lambda_return_and_gae(x64, window, gamma, lambda_):
    _, reward, value, next_value, *flags = window
    next_value = consistent(value, next_value, *flags)
    options = {"gamma": gamma, "lambda_": lambda_}
    target, advantage = pgjax.vtrace(np.ones_like(reward), reward, value, next_value, *flags, **options)
    close(target, pgjax.lambda_return(reward, next_value, *flags, **options))
    close(advantage, pgjax.gae(reward, value, next_value, *flags, **options))


@given(windows(), fraction)
def test_retrace_on_policy_at_lambda_1_with_a_q_that_ignores_the_action_is_the_lambda_return(
    x64, window, gamma
):
    """Then every δ is a TD error of V, and the sum of them telescopes."""
    _, reward, value, next_value, *flags = window
    next_value = consistent(value, next_value, *flags)
    target = pgjax.retrace(np.ones_like(reward), reward, value, next_value, *flags, gamma=gamma)
    close(target, pgjax.lambda_return(reward, next_value, *flags, gamma=gamma, lambda_=1.0))


@given(windows(), fraction, fraction)
def test_on_policy_retrace_is_vtrace_of_the_action_values(x64, window, gamma, lambda_):
    _, *arrays = window
    options = {"gamma": gamma, "lambda_": lambda_}
    ratio = np.ones_like(arrays[0])
    close(pgjax.retrace(ratio, *arrays, **options), pgjax.vtrace(ratio, *arrays, **options)[0])


@given(windows(), fraction)
def test_retrace_at_lambda_0_is_the_target_of_expected_sarsa(x64, window, gamma):
    _, reward, _, next_state_value, terminated, _ = window
    target = reward + gamma * np.where(terminated, 0.0, next_state_value)
    close(pgjax.retrace(*window, gamma=gamma, lambda_=0.0), target)


@given(windows(), st.lists(st.booleans(), min_size=T, max_size=T), fraction, fraction)
def test_retrace_of_a_greedy_policy_is_q_lambda_cut_before_the_first_action_off_it(
    x64, window, greedy, gamma, lambda_
):
    """Watkins's Q(λ): (1 − λ) Σ λ^{n−1} G^(n), the sum ending where an action was not greedy."""
    _, reward, action_value, _, terminated, truncated = window
    greedy = np.array(greedy[: len(reward)])
    best = np.where(greedy, action_value, action_value + 1.0)  # max_a Q(obs_t, a)
    next_best = consistent(best, best[::-1].copy(), terminated, truncated)
    ratio = greedy / 0.4  # π is 1 or 0, and each action had probability 0.4
    ends = truncated.copy()
    ends[:-1] |= ~greedy[1:]  # the trace goes no further than the step before
    expected = oracles.lambda_return(reward, next_best, terminated, ends, gamma=gamma, lambda_=lambda_)
    arrays = ratio, reward, action_value, next_best, terminated, truncated
    close(pgjax.retrace(*arrays, gamma=gamma, lambda_=lambda_), expected)


# what they estimate, exactly


GAMMA = 0.9
PI, MU = oracles.POLICY, np.array([[0.6, 0.4], [0.1, 0.9]])


def action_values(policy):
    """Q^π of the endless problem in `oracles`, `[2, 2]`."""
    dynamics = np.einsum("sa,sat->st", policy, oracles.NEXT)
    value = np.linalg.solve(np.eye(2) - GAMMA * dynamics, (policy * oracles.REWARD).sum(1))
    return oracles.REWARD + GAMMA * oracles.NEXT @ value


def paths(steps):
    """Every path of a few steps under MU: states `[steps + 1, M]`, actions `[steps, M]`, probabilities."""
    states = np.array(list(itertools.product(range(2), repeat=2 * steps + 1))).T
    states, actions = states[: steps + 1], states[steps + 1 :]
    probability = MU[states[:-1], actions] * oracles.NEXT[states[:-1], actions, states[1:]]
    return states, actions, probability.prod(0)


@pytest.mark.parametrize("lambda_", [1.0, 0.7])
@pytest.mark.parametrize("rho_clip", [1.0, 2.0, np.inf])
def test_the_fixed_point_of_vtrace_is_the_value_that_the_paper_says(rho_clip, lambda_, x64):
    """Eq. 3: at V of π_ρ̄ ∝ min(ρ̄ μ, π) the mean of v is V, and that of the advantage is 0."""
    clipped = np.minimum(rho_clip * MU, PI)
    clipped /= clipped.sum(1, keepdims=True)
    value = (clipped * action_values(clipped)).sum(1)
    states, actions, probability = paths(3)
    no = np.zeros(actions.shape, bool)
    ratio = (PI / MU)[states[:-1], actions]
    target, advantage = pgjax.vtrace(
        ratio,
        oracles.REWARD[states[:-1], actions],
        value[states[:-1]],
        value[states[1:]],
        no,
        no,
        gamma=GAMMA,
        lambda_=lambda_,
        rho_clip=rho_clip,
        c_clip=min(rho_clip, 1.5),
    )
    for state in range(2):
        weight = probability * (states[0] == state)
        close(weight @ np.asarray(target[0]), value[state])
        close(weight @ np.asarray(advantage[0]), 0.0)


@pytest.mark.parametrize("lambda_", [1.0, 0.7])
def test_the_mean_of_retrace_at_the_true_q_is_q_whoever_acted(lambda_, x64):
    q = action_values(PI)
    value = (PI * q).sum(1)
    states, actions, probability = paths(3)
    no = np.zeros(actions.shape, bool)
    taken = states[:-1], actions
    arrays = (PI / MU)[taken], oracles.REWARD[taken], q[taken], value[states[1:]], no, no
    target = np.asarray(pgjax.retrace(*arrays, gamma=GAMMA, lambda_=lambda_))
    for state, action in itertools.product(range(2), range(2)):
        weight = probability * (states[0] == state) * (actions[0] == action) / MU[state, action]
        close(weight @ target[0], q[state, action])


# truncation, NaN, derivatives, shapes


ESTIMATORS = {
    "vtrace target": lambda *x, **options: pgjax.vtrace(*x, **options)[0],
    "vtrace advantage": lambda *x, **options: pgjax.vtrace(*x, **options)[1],
    "retrace": pgjax.retrace,
}
NO, TERMINATED, TRUNCATED, BOTH = range(4)
ENDS = np.array([NO, TRUNCATED, TERMINATED, TERMINATED, NO, BOTH, NO])
FLAGS = ENDS % 2 == 1, ENDS >= 2
OPTIONS = {"gamma": 0.5, "lambda_": 0.5}


@pytest.mark.parametrize(
    ("end", "v", "advantage", "g"),
    [  # ratio .5, then 2: reward 1, V = 2, V(next) = 10; then δ = 1 + .5 · 20 − 3 = 8, its ρ and c clipped
        (NO, 2 + 0.5 * 4 + 0.5 * 0.25 * 8, 0.5 * (1 + 0.5 * (5 + 0.5 * 11) - 2), 2 + 4 + 0.5 * 0.5 * 8),
        (TERMINATED, 2 - 0.5, -0.5, 1),
        (TRUNCATED, 2 + 0.5 * 4, 0.5 * 4, 2 + 4),
        (BOTH, 2 - 0.5, -0.5, 1),
    ],
    ids=["neither", "terminated", "truncated", "both"],
)
def test_the_four_combinations_of_flags_by_hand(end, v, advantage, g):
    ends = np.array([end, NO])
    arrays = jnp.array([0.5, 2.0]), jnp.ones(2), jnp.array([2.0, 3.0]), jnp.array([10.0, 20.0])
    arrays += ends % 2 == 1, ends >= 2
    assert [x[0] for x in pgjax.vtrace(*arrays, **OPTIONS)] == [v, advantage]
    assert pgjax.retrace(*arrays, **OPTIONS)[0] == g


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_end_of_the_window_is_one_more_truncation(name, rng):
    numbers = np.abs(rng.normal(size=(4, T))).astype(np.float32)
    terminated, truncated = np.zeros((2, T), bool)
    open_end = ESTIMATORS[name](*numbers, terminated, truncated, **OPTIONS)
    truncated[-1] = True
    np.testing.assert_array_equal(ESTIMATORS[name](*numbers, terminated, truncated, **OPTIONS), open_end)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("last", [NO, TERMINATED, BOTH])
def test_nan_behind_a_termination_leaks_neither_into_the_value_nor_into_a_gradient(name, last, rng):
    terminated, truncated = FLAGS[0].copy(), FLAGS[1].copy()
    terminated[-1], truncated[-1] = last % 2 == 1, last >= 2
    numbers = tuple(np.abs(rng.normal(size=(4, T))).astype(np.float32))

    def estimate(ratio, reward, value, next_value, gamma, lambda_):
        hidden = jnp.where(terminated, jnp.nan, next_value)
        return ESTIMATORS[name](
            ratio, reward, value, hidden, terminated, truncated, gamma=gamma, lambda_=lambda_
        )

    clean = ESTIMATORS[name](*numbers, terminated, truncated, gamma=0.9, lambda_=0.8)
    np.testing.assert_array_equal(estimate(*numbers, 0.9, 0.8), clean)
    gradients = jax.jacrev(estimate, tuple(range(6)))(*numbers, 0.9, 0.8)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_derivatives_in_everything_equal_finite_differences(name, x64, rng):
    numbers, directions = np.exp(rng.normal(size=(4, T))), rng.normal(size=(4, T))

    def estimate(gamma, lambda_, along):
        return ESTIMATORS[name](*(numbers + along * directions), *FLAGS, gamma=gamma, lambda_=lambda_)

    point = [0.9, 0.8, 0.0]
    for i, derivative in enumerate(jax.jacfwd(estimate, (0, 1, 2))(*point)):
        numeric = oracles.finite_difference(lambda x, i=i: estimate(*point[:i], x, *point[i + 1 :]), point[i])
        np.testing.assert_allclose(derivative, numeric, atol=1e-7)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_flags_of_lower_rank_gain_the_trailing_axes_of_the_rewards(name, x64, rng):
    numbers, ends = np.exp(rng.normal(size=(4, T, 2, 2))), rng.integers(0, 4, size=(T, 2))
    flags = ends % 2 == 1, ends >= 2
    together = ESTIMATORS[name](numbers[0, :, :, 0], *numbers[1:], *flags, **OPTIONS)
    for n, k in itertools.product(range(2), range(2)):
        one = ESTIMATORS[name](
            numbers[0, :, n, 0], *numbers[1:, :, n, k], *(f[:, n] for f in flags), **OPTIONS
        )
        close(together[:, n, k], one)


def test_float32_stays_float32_and_gamma_can_be_mapped(rng):
    numbers = np.abs(rng.normal(size=(4, T))).astype(np.float32)
    for estimate in ESTIMATORS.values():
        rows = jax.vmap(lambda g, f=estimate: f(*numbers, *FLAGS, gamma=g))(jnp.array([0.0, 1.0]))
        assert rows.dtype == jnp.float32
        np.testing.assert_allclose(rows[1], estimate(*numbers, *FLAGS, gamma=1.0), rtol=1e-6)


def test_unequal_shapes_are_an_error():
    no = jnp.zeros(3, bool)
    with pytest.raises(AssertionError):
        pgjax.retrace(jnp.ones(2), *jnp.ones((3, 3)), no, no, gamma=0.9)
    with pytest.raises(AssertionError):
        pgjax.importance_ratio(jnp.zeros((3, 1)), jnp.zeros(3))
