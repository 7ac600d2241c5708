import dataclasses
import functools
import inspect
import itertools
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import pgjax
from pgjax import tabular
from pgjax.distributions import Categorical

S, A = 4, 3
NUM_PROBLEMS = 100


def linear(params, obs):
    return Categorical(obs @ params)


def tabular_softmax(params, obs):
    """θ [S, A], or [H, S, A]: one number for every action in every state, at every time."""
    if params.ndim == 2:
        return linear(params, obs)
    state, time = obs[..., : params.shape[1]], obs[..., params.shape[1] :]
    return Categorical(jnp.einsum("...s,...h,hsa->...a", state, time, params))


def smooth_mlp(params, obs):
    hidden = jnp.tanh(obs @ params["in"] + jnp.broadcast_to(params["bias"], (*obs.shape[:-1], 5)))
    return Categorical(hidden @ params["out"])


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def init_params(apply, key, num_states, num_actions, horizon):
    if apply is tabular_softmax:
        shape = (num_states, num_actions) if horizon is None else (horizon, num_states, num_actions)
        return jax.random.normal(key, shape)
    sizes = {"in": (num_states + (horizon or 0), 5), "bias": (5,), "out": (5, num_actions)}
    keys = jax.random.split(key, 3)
    return {name: jax.random.normal(k, sizes[name]) for k, name in zip(keys, sizes, strict=True)}


def random_problems(num, horizon=None, num_states=S, num_actions=A, num_terminal=None):
    """Problems that differ in γ too; the second half has a terminal state unless a number is given."""

    def problem(key, terminal):
        mdp_key, gamma_key = jax.random.split(key)
        gamma = jax.random.uniform(gamma_key, minval=0.5, maxval=0.98)
        options = {"horizon": horizon, "num_terminal": terminal}
        return tabular.random_mdp(mdp_key, num_states, num_actions, gamma, **options)

    def problems(key):
        keys = jax.random.split(key, num)
        if num_terminal is not None:
            return jax.vmap(lambda key: problem(key, num_terminal))(keys)
        halves = [
            jax.vmap(lambda k, t=t: problem(k, t))(keys[t * num // 2 : (t + 1) * num // 2]) for t in (0, 1)
        ]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *halves)

    return jax.jit(problems)(jax.random.key(7))


def random_problem(*args, **options):
    return one(random_problems(1, *args, **{"num_terminal": 1} | options))


def random_params(apply, num, horizon=None, num_states=S, num_actions=A):
    def params(key):
        return init_params(apply, key, num_states, num_actions, horizon)

    return jax.jit(jax.vmap(params))(jax.random.split(jax.random.key(8), num))


def one(tree, i=0):
    return jax.tree.map(lambda x: np.asarray(x)[i], tree)


def random_policy(rng, *shape):
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def numpy(tree):
    """So that what a test computes needs no compiler."""
    return jax.tree.map(np.asarray, tree)


def enumerated(mdp, policy, num_steps=None):
    """All trajectories with their probabilities, as transitions, in NumPy."""
    tau = tabular.enumerate_trajectories(mdp, num_steps)
    log_prob = tabular.trajectory_log_prob(mdp, policy, tau)
    return numpy((tau, np.exp(log_prob), *tabular.to_transitions(mdp, policy, tau)))


def relative_error(actual, desired):
    """Of every problem, in norm."""
    actual, desired = (
        np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(tree)], 1)
        for tree in (actual, desired)
    )
    return np.linalg.norm(actual - desired, axis=1) / np.linalg.norm(desired, axis=1)


HORIZONS = pytest.mark.parametrize("horizon", [None, 4])
POLICIES = pytest.mark.parametrize("apply", [tabular_softmax, smooth_mlp])


# The three ways to the gradient, on 100 problems each.


@HORIZONS
@POLICIES
def test_the_theorem_the_derivative_of_the_solve_and_central_differences_agree(horizon, apply, x64):
    problems, params = random_problems(NUM_PROBLEMS, horizon), random_params(apply, NUM_PROBLEMS, horizon)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def three_ways(mdp, params, temperature):
        flat, unravel = ravel_pytree(params)

        def objective(flat):
            return tabular.objective(mdp, apply, unravel(flat), temperature=temperature)

        steps = 1e-5 * jnp.eye(flat.size)
        differences = jax.vmap(lambda h: (objective(flat + h) - objective(flat - h)) / 2e-5)(steps)
        theorem = tabular.policy_gradient(mdp, apply, params, temperature=temperature)
        return ravel_pytree(theorem)[0], jax.grad(objective)(flat), differences

    for temperature in (0.0, 0.3):
        theorem, derivative, differences = three_ways(problems, params, temperature)
        assert theorem.dtype == jnp.float64
        assert relative_error(theorem, derivative).max() < 1e-8
        assert relative_error(theorem, differences).max() < 1e-7


@pytest.mark.parametrize(
    ("horizon", "apply"),
    [*((h, smooth_mlp) for h in (1, 2, 3, 4)), (2, tabular_softmax), (4, tabular_softmax)],
)
def test_the_theorem_is_the_expectation_of_reinforce_over_all_trajectories(horizon, apply, x64):
    size = {"num_states": 3, "num_actions": 2}
    problems = random_problems(NUM_PROBLEMS, horizon, **size, num_terminal=1)
    params = random_params(apply, NUM_PROBLEMS, horizon, **size)
    tau = tabular.enumerate_trajectories(one(problems))  # every row is positive: the same for all problems

    def four_ways(problem):
        mdp, params = problem
        traj, valid = tabular.to_transitions(mdp, tabular.policy_matrix(mdp, apply, params), tau)
        discount = pgjax.time_discount(traj.terminated, traj.truncated, gamma=mdp.gamma)
        discount = jnp.where(valid, discount, 0.0)
        total = pgjax.total_return(discount * traj.reward, valid)
        to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=mdp.gamma)

        def probability(params):
            return jnp.exp(tabular.trajectory_log_prob(mdp, tabular.policy_matrix(mdp, apply, params), tau))

        def expected(weight):
            weight = weight * (valid.shape[1] * probability(params))[None]  # policy_gradient takes the mean
            return pgjax.policy_gradient(apply, params, traj, weight, valid)

        def objective(params):
            return (probability(params) * total[0]).sum()

        return (
            tabular.policy_gradient(mdp, apply, params),
            (jax.grad(objective)(params), expected(total), expected(discount * to_go)),
            (tabular.objective(mdp, apply, params), objective(params)),
        )

    out = jax.jit(lambda *problem: jax.lax.map(four_ways, problem, batch_size=10))(problems, params)
    theorem, others, (exact, enumerated) = out
    for other in others:
        assert relative_error(other, theorem).max() < 1e-8
    np.testing.assert_allclose(enumerated, exact, rtol=1e-12)


# Values, against NumPy loops that follow the definitions.


def unrolled(mdp, policy, steps=3000):
    """V, d and μ of a problem without horizon by adding up the steps."""
    live = ~np.asarray(mdp.terminal)
    flow = np.einsum("sa,sat->st", policy, mdp.transition) * live[:, None] * live[None]
    reward = np.einsum("sa,sa->s", policy, mdp.reward) * live
    gamma = float(mdp.gamma)
    value, visits, undiscounted = np.zeros(len(live)), np.zeros(len(live)), np.zeros(len(live))
    state = np.asarray(mdp.initial)
    for t in range(steps):
        value = reward + gamma * flow @ value
        visits, undiscounted = visits + gamma**t * state, undiscounted + state
        state = flow.T @ state
    return value, visits, undiscounted


@pytest.mark.parametrize("num_terminal", [0, 2])
def test_values_and_visitations_add_up_step_by_step(num_terminal, rng, x64):
    mdp = random_problem(num_states=6, num_terminal=num_terminal)
    policy = random_policy(rng, 6, A)
    value, visits, undiscounted = unrolled(mdp, policy)
    np.testing.assert_allclose(tabular.state_value(mdp, policy), value, rtol=1e-12)
    live = ~np.asarray(mdp.terminal)
    q = (mdp.reward + mdp.gamma * np.asarray(mdp.transition) @ value) * live[:, None]
    np.testing.assert_allclose(tabular.action_value(mdp, policy), q, rtol=1e-12)
    np.testing.assert_allclose(tabular.advantage(mdp, policy), q - value[:, None], atol=1e-12)
    np.testing.assert_allclose(tabular.visitation(mdp, policy, normalized=False), visits, rtol=1e-12)
    np.testing.assert_allclose(tabular.visitation(mdp, policy), visits / visits.sum(), rtol=1e-12)
    if num_terminal:
        counted = tabular.visitation(mdp, policy, normalized=False, discounted=False)
        np.testing.assert_allclose(counted, undiscounted, rtol=1e-12)
        shares = tabular.visitation(mdp, policy, discounted=False)
        np.testing.assert_allclose(shares, undiscounted / undiscounted.sum(), rtol=1e-12)
    else:
        np.testing.assert_allclose(visits.sum(), 1 / (1 - mdp.gamma), rtol=1e-12)


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_with_a_horizon_everything_is_an_expectation_over_trajectories(varies, temperature, rng, x64):
    mdp = random_problem(3, num_states=3, num_actions=2, num_terminal=1)
    policy = random_policy(rng, *((3,) if varies else ()), 3, 2)
    tau, probability, traj, valid = enumerated(mdp, policy)
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-12)
    reward = traj.reward - temperature * traj.log_prob
    discount = np.asarray(mdp.gamma) ** np.arange(3)
    value = tabular.state_value(mdp, policy, temperature=temperature)
    q = tabular.action_value(mdp, policy, temperature=temperature)
    adv = tabular.advantage(mdp, policy, temperature=temperature)
    visits = np.asarray(tabular.visitation(mdp, policy, normalized=False))
    counts = np.asarray(tabular.visitation(mdp, policy, normalized=False, discounted=False))
    value, q, adv = numpy((value, q, adv))
    assert (value.shape, q.shape, adv.shape) == ((4, 3), (3, 3, 2), (3, 3, 2))
    np.testing.assert_array_equal(value[3], 0.0)
    np.testing.assert_array_equal(value[:, 2], 0.0)
    np.testing.assert_array_equal(q[:, 2], 0.0)
    np.testing.assert_array_equal(adv[:, 2], 0.0)
    log_policy = np.broadcast_to(np.log(policy), q.shape)
    for t, s in itertools.product(range(3), range(2)):
        here = probability * (tau.state[t] == s) * valid[t]
        np.testing.assert_allclose(counts[t, s], here.sum(), rtol=1e-10)
        np.testing.assert_allclose(visits[t, s], discount[t] * here.sum(), rtol=1e-10)
        to_go = (discount[: 3 - t, None] * reward[t:]).sum(0)
        np.testing.assert_allclose(value[t, s], (here * to_go).sum() / here.sum(), rtol=1e-10)
        for a in range(2):
            chosen = here * (tau.action[t] == a)
            after = to_go + temperature * traj.log_prob[t]  # Q has no bonus of its own action
            expected = (chosen * after).sum() / chosen.sum()
            np.testing.assert_allclose(q[t, s, a], expected, rtol=1e-10)
            soft = expected - temperature * log_policy[t, s, a] - value[t, s]
            np.testing.assert_allclose(adv[t, s, a], soft, rtol=1e-9)
    np.testing.assert_allclose(tabular.visitation(mdp, policy), visits / visits.sum(), rtol=1e-12)


@HORIZONS
def test_the_advantage_averages_to_zero_with_and_without_a_temperature(horizon, rng, x64):
    mdp = random_problem(horizon)
    policy = random_policy(rng, S, A)
    for temperature in (0.0, 0.5):
        soft = np.asarray(tabular.advantage(mdp, policy, temperature=temperature))
        mean = (np.asarray(policy) * soft).sum(-1)
        np.testing.assert_allclose(mean, 0.0, atol=1e-13)


def test_what_lies_in_the_rows_of_terminal_states_does_not_matter(rng, x64):
    mdp = random_problem(num_terminal=1)
    wild = tabular.TabularMDP(
        np.asarray(mdp.transition).copy(),
        np.where(np.arange(S)[:, None] == S - 1, np.nan, mdp.reward),
        mdp.initial,
        mdp.gamma,
        terminal=mdp.terminal,
    )
    policy = random_policy(rng, S, A)
    for function in (tabular.state_value, tabular.action_value, tabular.visitation, tabular.return_variance):
        np.testing.assert_array_equal(function(wild, policy), function(mdp, policy))
    gradients = jax.grad(lambda p: tabular.state_value(wild, p).sum())(policy)
    assert np.isfinite(gradients).all()
    assert np.isfinite(tabular.optimal_value(wild)).all()


# Visits without discount.


def two_ways():
    """From state 0, action 0 ends in state 2, action 1 leads to state 1, which never ends by itself."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 2] = transition[0, 1, 1] = transition[1, :, 1] = transition[2, :, 2] = 1.0
    return tabular.TabularMDP(transition, np.ones((3, 2)), [1.0, 0, 0], 0.9, terminal=[False, False, True])


ENDS, DOES_NOT = np.eye(2)[[0, 0, 0]], np.full((3, 2), 0.5)


def test_the_undiscounted_visitation_exists_where_what_is_reached_ends():
    visits = tabular.visitation(two_ways(), ENDS, normalized=False, discounted=False)
    np.testing.assert_allclose(visits, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"never end.*stationary_distribution"):
        tabular.visitation(two_ways(), DOES_NOT, discounted=False)
    with pytest.raises(ValueError, match="stationary_distribution"):
        tabular.visitation(tabular.kakade_mdp(), np.full((2, 2), 0.5), discounted=False)


def test_the_undiscounted_visitation_is_nan_under_vmap_where_it_does_not_exist():
    visits = jax.vmap(lambda p: tabular.visitation(two_ways(), p, normalized=False, discounted=False))(
        jnp.stack([ENDS, DOES_NOT])
    )
    np.testing.assert_allclose(visits, [[1.0, 0.0, 0.0], [np.nan] * 3])


def test_the_estimator_without_the_time_discount_converges_to_the_undiscounted_state_weight(x64):
    mdp = random_problem(3, num_states=3, num_actions=2, num_terminal=1)
    params = init_params(smooth_mlp, jax.random.key(0), 3, 2, 3)
    policy = tabular.policy_matrix(mdp, smooth_mlp, params)
    tau = tabular.enumerate_trajectories(mdp)
    traj, valid = tabular.to_transitions(mdp, policy, tau)
    probability = jnp.exp(tabular.trajectory_log_prob(mdp, policy, tau))
    to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=mdp.gamma)
    weight = to_go * (valid.shape[1] * probability)[None]
    practical = pgjax.policy_gradient(smooth_mlp, params, traj, weight, valid)
    counts = tabular.visitation(mdp, policy, normalized=False, discounted=False)
    limit = tabular.policy_gradient(mdp, smooth_mlp, params, state_weight=counts)
    true = tabular.policy_gradient(mdp, smooth_mlp, params)
    stack = functools.partial(jax.tree.map, lambda x: x[None])
    assert relative_error(stack(practical), stack(limit)) < 1e-10
    assert relative_error(stack(true), stack(limit)) > 0.02


def test_the_stationary_distribution_is_what_the_walk_settles_to(rng, x64):
    problems = random_problems(5, num_terminal=0)
    for i in range(5):
        mdp, policy = one(problems, i), random_policy(rng, S, A)
        flow = np.einsum("sa,sat->st", policy, mdp.transition)
        expected = np.linalg.matrix_power(flow, 1000)[0]
        np.testing.assert_allclose(tabular.stationary_distribution(mdp, policy), expected, rtol=1e-10)


def test_the_stationary_distribution_of_a_cycle_and_of_a_way_that_leads_into_one():
    turn = np.eye(2)[[1, 1]]
    np.testing.assert_allclose(tabular.stationary_distribution(tabular.kakade_mdp(), turn), [0.5, 0.5])
    into_second = np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(tabular.stationary_distribution(tabular.kakade_mdp(), into_second), [0, 1])


def test_a_stationary_distribution_that_does_not_exist_is_refused():
    stay = np.eye(2)[[0, 0]]
    both = tabular.kakade_mdp(initial=(0.5, 0.5))
    np.testing.assert_allclose(tabular.stationary_distribution(tabular.kakade_mdp(), stay), [1.0, 0.0])
    with pytest.raises(ValueError, match="several classes"):
        tabular.stationary_distribution(both, stay)
    assert np.isnan(jax.jit(tabular.stationary_distribution)(both, stay)).all()
    for mdp in (two_ways(), tabular.bandit_mdp([1.0, 2.0])):
        with pytest.raises(ValueError, match="discounted=False"):
            tabular.stationary_distribution(mdp, np.full((mdp.num_states, 2), 0.5))
    assert np.isnan(jax.jit(tabular.stationary_distribution)(two_ways(), ENDS)).all()


# Geometry.


@HORIZONS
def test_the_fisher_of_a_tabular_softmax_has_a_block_for_every_state(horizon, x64):
    mdp = random_problem(horizon)
    params = init_params(tabular_softmax, jax.random.key(1), S, A, horizon)
    policy = np.asarray(tabular.policy_matrix(mdp, tabular_softmax, params)).reshape(-1, A)
    visits = np.asarray(tabular.visitation(mdp, jax.nn.softmax(params))).ravel()
    expected = np.zeros((len(visits), A, len(visits), A))
    for s, (d, pi) in enumerate(zip(visits, policy, strict=True)):
        expected[s, :, s] = d * (np.diag(pi) - np.outer(pi, pi))
    expected = expected.reshape(policy.size, policy.size)
    np.testing.assert_allclose(tabular.fisher(mdp, tabular_softmax, params), expected, atol=1e-14)


@HORIZONS
def test_the_fisher_is_the_mean_outer_product_of_the_scores(horizon, x64):
    mdp = random_problem(horizon)
    params = init_params(smooth_mlp, jax.random.key(1), S, A, horizon)
    obs = np.asarray(mdp.observations)
    obs = obs.reshape(-1, obs.shape[-1])
    policy = np.asarray(tabular.policy_matrix(mdp, smooth_mlp, params))
    weight = (np.asarray(tabular.visitation(mdp, policy))[..., None] * policy).reshape(-1, A)
    expected = 0.0
    for a in range(A):
        score = pgjax.score(smooth_mlp, params, obs, np.full(len(obs), a))
        rows = np.concatenate([np.reshape(x, (len(obs), -1)) for x in jax.tree.leaves(score)], 1)
        expected = expected + np.einsum("s,sp,sq->pq", weight[:, a], rows, rows)
    np.testing.assert_allclose(tabular.fisher(mdp, smooth_mlp, params), expected, atol=1e-13)


@HORIZONS
@POLICIES
def test_the_natural_gradient_solves_the_fisher(horizon, apply, x64):
    mdp = random_problem(horizon)
    params = init_params(apply, jax.random.key(1), S, A, horizon)
    matrix = np.asarray(tabular.fisher(mdp, apply, params))
    gradient = np.asarray(ravel_pytree(tabular.policy_gradient(mdp, apply, params))[0])
    for damping in (0.0, 1e-3, 0.5):
        found, _ = ravel_pytree(tabular.natural_gradient(mdp, apply, params, damping=damping))
        if damping:
            expected = np.linalg.solve(matrix + damping * np.eye(len(matrix)), gradient)
        else:
            expected = np.linalg.pinv(matrix, rcond=1e-11, hermitian=True) @ gradient
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@HORIZONS
def test_the_exact_step_is_a_natural_gradient_step_of_the_tabular_softmax(horizon, x64):
    mdp = random_problem(horizon)
    params = init_params(tabular_softmax, jax.random.key(1), S, A, horizon)
    direction = tabular.natural_gradient(mdp, tabular_softmax, params)
    stepped = tabular.npg_step(mdp, jax.nn.softmax(params), 0.1)
    np.testing.assert_allclose(stepped, jax.nn.softmax(params + 0.1 * direction), rtol=1e-10)


@POLICIES
def test_the_natural_gradient_can_be_differentiated(apply, x64):
    mdp = random_problem()
    flat, unravel = ravel_pytree(init_params(apply, jax.random.key(1), S, A, None))
    way = jax.random.normal(jax.random.key(2), flat.shape)

    def along(step, damping):
        natural = tabular.natural_gradient(mdp, apply, unravel(flat + step * way), damping=damping)
        return ravel_pytree(natural)[0]

    along, derivatives = jax.jit(along), jax.jit(jax.jacrev(along, (0, 1)))
    h = 1e-5
    for damping in (0.0, 0.1):
        of_step, of_damping = derivatives(0.0, damping)
        numeric = (along(h, damping) - along(-h, damping)) / (2 * h)
        np.testing.assert_allclose(of_step, numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())
    numeric = (along(0.0, damping + h) - along(0.0, damping - h)) / (2 * h)
    np.testing.assert_allclose(of_damping, numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())


def test_the_natural_gradient_keeps_directions_whose_fisher_is_lost_to_rounding(x64):
    """π = 1e-10: the Fisher's eigenvalue 1e-10 · d, seen through its square root."""
    mdp = tabular.kakade_mdp()
    params = jnp.array([[23.0, 0.0], [0.0, 23.0]])
    natural = tabular.natural_gradient(mdp, linear, params)
    policy = jax.nn.softmax(params)
    steps = tabular.visitation(mdp, policy, normalized=False).sum()
    expected = steps * tabular.advantage(mdp, policy)
    gap = (natural - expected)[:, 0] - (natural - expected)[:, 1]
    np.testing.assert_allclose(gap / np.abs(expected).max(), 0.0, atol=1e-4)


# The best policy.


def test_policy_iteration_finds_the_best_of_all_deterministic_policies(x64):
    problems = random_problems(20, num_states=3, num_actions=2)
    policy, value, rounds = jax.jit(jax.vmap(tabular.policy_iteration))(problems)
    candidates = np.eye(2)[np.array(list(itertools.product(range(2), repeat=3)))]
    values = jax.jit(
        jax.vmap(lambda mdp: jax.vmap(lambda pi: tabular.state_value(mdp, pi))(jnp.asarray(candidates)))
    )(problems)
    np.testing.assert_allclose(value, values.max(1), rtol=1e-12)
    np.testing.assert_array_equal(np.sort(policy), np.broadcast_to([0.0, 1.0], policy.shape))
    np.testing.assert_allclose(jax.vmap(tabular.state_value)(problems, policy), value, rtol=1e-12)
    assert rounds.dtype == jnp.int32
    assert rounds.max() <= 5
    np.testing.assert_array_equal(jax.vmap(tabular.optimal_value)(problems), value)


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_with_a_horizon_the_best_value_is_taken_back_from_the_end(temperature, x64):
    mdp = random_problem(4, num_terminal=1)
    policy, value, _ = tabular.policy_iteration(mdp, temperature=temperature)
    live = ~np.asarray(mdp.terminal)
    expected = [np.zeros(S)]
    for _ in range(4):
        q = np.asarray(mdp.reward) + float(mdp.gamma) * (np.asarray(mdp.transition) * live) @ expected[0]
        best = q.max(-1) if not temperature else temperature * np.log(np.exp(q / temperature).sum(-1))
        expected.insert(0, best * live)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert policy.shape == (4, S, A)
    np.testing.assert_allclose(tabular.state_value(mdp, policy, temperature=temperature), value)
    np.testing.assert_array_equal(tabular.optimal_value(mdp, temperature=temperature), value)


def test_the_soft_optimum_is_the_fixed_point_of_the_soft_backup(x64):
    problems = random_problems(10)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def solve(mdp, temperature):
        policy, value, rounds = tabular.policy_iteration(mdp, temperature=temperature)
        return policy, value, rounds, tabular.action_value(mdp, policy, temperature=temperature)

    live = ~np.asarray(problems.terminal)
    hard = np.asarray(solve(problems, 0.0)[1])
    for temperature in (1e-3, 0.05, 2.0):
        policy, value, rounds, q = numpy(solve(problems, temperature))
        backup = q.max(-1) + temperature * np.log(
            np.exp((q - q.max(-1, keepdims=True)) / temperature).sum(-1)
        )
        np.testing.assert_allclose(np.where(live, backup, 0.0), value, rtol=1e-10, atol=1e-12)
        best = np.exp((q - backup[..., None]) / temperature)
        np.testing.assert_allclose(policy, best, rtol=1e-6, atol=1e-9)
        assert rounds.max() < 20
        assert (value >= hard - 1e-12)[live].all()
        spread = temperature * np.log(A) / (1 - np.asarray(problems.gamma))[:, None]
        assert (value <= hard + spread + 1e-12).all()


@HORIZONS
def test_the_optimal_value_can_be_differentiated_in_the_problem(horizon, x64):
    mdp = random_problem(horizon)
    ways = jax.random.normal(jax.random.key(3), (2, *mdp.transition.shape))
    ways = ways[0] - ways[0].mean(-1, keepdims=True), ways[1, ..., 0]

    def along(step, temperature):
        changed = tabular.TabularMDP(
            mdp.transition + 0.1 * step * ways[0],
            mdp.reward + step * ways[1],
            mdp.initial,
            mdp.gamma + 0.1 * step,
            mdp.horizon,
            mdp.terminal,
        )
        return tabular.optimal_value(changed, temperature=temperature)

    along, derivative = jax.jit(along), jax.jit(jax.jacrev(along))
    for temperature in (0.0, 0.1):
        numeric = (along(1e-6, temperature) - along(-1e-6, temperature)) / 2e-6
        assert np.abs(numeric).max() > 0.1
        np.testing.assert_allclose(derivative(0.0, temperature), numeric, rtol=1e-6, atol=1e-8)


def test_policy_iteration_ends_where_all_actions_are_equal():
    mdp = tabular.TabularMDP(np.full((3, 4, 3), 1 / 3), np.full((3, 4), 0.1), np.full(3, 1 / 3), 0.999)
    _, value, rounds = tabular.policy_iteration(mdp)
    np.testing.assert_allclose(value, 100.0, rtol=1e-3)
    assert rounds < 10


def test_exact_npg_rises_and_keeps_its_zeros(rng, x64):
    mdp = random_problem(num_terminal=0)
    policy = jnp.asarray(np.where(np.arange(A) == 0, 0.0, random_policy(rng, S, A)))
    policy = policy / policy.sum(-1, keepdims=True)
    value = tabular.state_value(mdp, policy)
    for _ in range(5):
        policy = tabular.npg_step(mdp, policy, 0.5)
        better = tabular.state_value(mdp, policy)
        assert (better >= value - 1e-12).all()
        value = better
    np.testing.assert_array_equal(policy[:, 0], 0.0)
    np.testing.assert_allclose(policy.sum(-1), 1.0)


def test_exact_npg_with_a_temperature_is_the_power_form(rng, x64):
    mdp = random_problem(num_terminal=0)
    policy, tau, step = random_policy(rng, S, A), 0.2, 0.1
    q = tabular.action_value(mdp, policy, temperature=tau)
    scale = 1 / (1 - mdp.gamma)
    expected = policy ** (1 - step * tau * scale) * np.exp(step * scale * q)
    expected = expected / expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(tabular.npg_step(mdp, policy, step, temperature=tau), expected, rtol=1e-10)
    at_once = tabular.npg_step(mdp, policy, (1 - mdp.gamma) / tau, temperature=tau)  # soft policy iteration
    np.testing.assert_allclose(at_once, jax.nn.softmax(q / tau), rtol=1e-10)


# The variance of the return.


def test_the_variance_of_the_return_is_that_of_all_trajectories(rng, x64):
    mdp = random_problem(4, num_states=3, num_actions=2, num_terminal=1)
    policy = random_policy(rng, 4, 3, 2)
    tau, probability, traj, valid = enumerated(mdp, policy)
    to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=mdp.gamma)
    variance = tabular.return_variance(mdp, policy)
    np.testing.assert_allclose(variance[-1], 0.0, atol=1e-15)
    np.testing.assert_array_equal(variance[:, 2], 0.0)
    for t, s, a in itertools.product(range(4), range(2), range(2)):
        weight = probability * valid[t] * (tau.state[t] == s) * (tau.action[t] == a)
        mean = (weight * to_go[t]).sum() / weight.sum()
        expected = (weight * (to_go[t] - mean) ** 2).sum() / weight.sum()
        np.testing.assert_allclose(variance[t, s, a], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("num_terminal", [0, 1])
def test_the_variance_of_the_return_solves_the_second_moment_equation(num_terminal, rng, x64):
    mdp = random_problem(num_terminal=num_terminal)
    policy = random_policy(rng, S, A)
    live = ~np.asarray(mdp.terminal)
    transition = np.asarray(mdp.transition) * live
    value, q = tabular.state_value(mdp, policy), np.asarray(tabular.action_value(mdp, policy))
    reward, gamma, second = np.asarray(mdp.reward), float(mdp.gamma), np.zeros((S, A))
    for _ in range(3000):
        of_state = (policy * second).sum(-1)
        second = reward**2 + 2 * gamma * reward * (transition @ value) + gamma**2 * transition @ of_state
        second = second * live[:, None]
    np.testing.assert_allclose(tabular.return_variance(mdp, policy), second - q**2, rtol=1e-8, atol=1e-10)


# Trajectories.


def problem_of_every_kind(kind):
    if kind == "continuing":
        return tabular.kakade_mdp(initial=(0.3, 0.7)), 4
    if kind == "ending":
        return tabular.grid_mdp(["S.G", ".#X"], 0.9, slip=0.2), 3
    if kind == "window of a horizon":
        return random_problem(5, num_states=3, num_actions=2), 2
    return random_problem(3, num_states=3, num_actions=2, num_terminal=1), None


KINDS = pytest.mark.parametrize("kind", ["continuing", "ending", "window of a horizon", "horizon"])


@KINDS
def test_the_probabilities_of_all_trajectories_sum_to_one_and_the_dynamics_drop_out(kind, rng, x64):
    mdp, num_steps = problem_of_every_kind(kind)
    params = init_params(linear, jax.random.key(0), mdp.num_states, mdp.num_actions, mdp.horizon)
    params = params["in"][:, : mdp.num_actions]
    tau = tabular.enumerate_trajectories(mdp, num_steps)
    assert len({tuple(x) for x in np.concatenate([tau.state, tau.action, tau.valid]).T}) == tau.state.shape[1]

    def with_dynamics(params):
        return tabular.trajectory_log_prob(mdp, tabular.policy_matrix(mdp, linear, params), tau)

    traj, valid = tabular.to_transitions(mdp, tabular.policy_matrix(mdp, linear, params), tau)

    def without(params):
        return pgjax.trajectory_log_prob(linear, params, traj, valid)

    np.testing.assert_allclose(np.exp(with_dynamics(params)).sum(), 1.0, rtol=1e-12)
    assert np.abs(with_dynamics(params) - without(params)).max() > 0.1
    full, reduced = jax.jit(lambda p: (jax.jacfwd(with_dynamics)(p), jax.jacfwd(without)(p)))(params)
    assert np.abs(full).max() > 0.1
    np.testing.assert_allclose(full, reduced, atol=1e-12)


@KINDS
def test_transitions_of_trajectories_have_the_flags_of_whole_episodes(kind):
    mdp, num_steps = problem_of_every_kind(kind)
    policy = np.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions)
    tau, _, traj, valid = enumerated(mdp, policy, num_steps)
    length = np.asarray(valid).sum(0)
    ended, cut = np.asarray(traj.terminated), np.asarray(traj.truncated)
    assert ((ended | cut).sum(0) == 1).all()
    assert ((ended | cut)[length - 1, np.arange(len(length))]).all()
    last = np.asarray(tau.state)[length, np.arange(len(length))]
    in_time = length == (mdp.horizon or -1)
    np.testing.assert_array_equal(ended.any(0), np.asarray(mdp.terminal)[last] | in_time)
    assert cut.any() == (kind != "horizon")
    for leaf in (traj.reward, traj.log_prob, traj.terminated, traj.truncated):
        assert (np.asarray(leaf)[~np.asarray(valid)] == 0).all()
    if mdp.horizon is None:
        np.testing.assert_array_equal(traj.obs, np.asarray(mdp.observations)[np.asarray(tau.state[:-1])])
        np.testing.assert_array_equal(traj.next_obs, np.asarray(mdp.observations)[np.asarray(tau.state[1:])])
    else:
        clock = np.asarray(traj.next_obs)[..., mdp.num_states :]
        assert (clock.sum(-1)[: mdp.horizon - 1] == 1).all()
        assert (clock[mdp.horizon - 1 :] == 0).all()


def test_trajectories_of_a_problem_that_surely_ends_need_no_number_of_steps():
    transition = np.zeros((3, 2, 3))
    transition[0, :, 1] = transition[0, 1, 2] = transition[1, :, 2] = transition[2, :, 2] = 1.0
    transition[0, 1] /= 2
    mdp = tabular.TabularMDP(transition, np.ones((3, 2)), [1, 0, 0], 0.9, terminal=[False, False, True])
    tau = tabular.enumerate_trajectories(mdp)
    assert tau.state.shape == (3, 5)
    np.testing.assert_array_equal(tau.state[-1], 2)
    np.testing.assert_array_equal(tau.valid.sum(0), [2, 2, 2, 2, 1])


def test_trajectories_that_cannot_be_enumerated_are_refused():
    with pytest.raises(ValueError, match="never end"):
        tabular.enumerate_trajectories(tabular.kakade_mdp())
    with pytest.raises(ValueError, match="More than 100 trajectories"):
        tabular.enumerate_trajectories(tabular.kakade_mdp(), 10, max_trajectories=100)
    with pytest.raises(ValueError, match="at least 1"):
        tabular.enumerate_trajectories(tabular.kakade_mdp(), 0)
    with pytest.raises(ValueError, match="concrete"):
        jax.jit(lambda mdp: tabular.enumerate_trajectories(mdp, 2))(tabular.kakade_mdp())


# What holds for all functions.


def every_result(mdp, policy, params, step=0.1):
    """Every function of the module, in a problem whose episodes end."""
    warm = {"temperature": step}
    weight = jnp.ones(policy.shape[:-1] if mdp.horizon is None else (mdp.horizon, mdp.num_states))
    continuing = tabular.TabularMDP(mdp.transition, mdp.reward, mdp.initial, 0.9)
    window = jnp.broadcast_to(jnp.arange(3)[:, None] % 2, (3, 2)), jnp.zeros((2, 2), int)
    tau = tabular.Trajectories(*window, jnp.ones((2, 2), bool))
    return {
        "policy_matrix": tabular.policy_matrix(mdp, linear, params),
        "state_value": tabular.state_value(mdp, policy, **warm),
        "action_value": tabular.action_value(mdp, policy, **warm),
        "advantage": tabular.advantage(mdp, policy, **warm),
        "visitation": (tabular.visitation(mdp, policy), tabular.visitation(mdp, policy, discounted=False)),
        "stationary_distribution": tabular.stationary_distribution(continuing, policy),
        "objective": tabular.objective(mdp, linear, params, **warm),
        "policy_gradient": (
            tabular.policy_gradient(mdp, linear, params, **warm),
            tabular.policy_gradient(mdp, linear, params, state_weight=weight),
        ),
        "fisher": tabular.fisher(mdp, linear, params),
        "natural_gradient": (
            tabular.natural_gradient(mdp, linear, params),
            tabular.natural_gradient(mdp, linear, params, damping=step),
        ),
        "policy_iteration": tabular.policy_iteration(mdp, **warm)[:2],  # rounding decides on the last round
        "optimal_value": tabular.optimal_value(mdp),
        "npg_step": tabular.npg_step(mdp, policy, step, **warm),
        "return_variance": tabular.return_variance(mdp, policy),
        "trajectory_log_prob": tabular.trajectory_log_prob(mdp, policy, tau),
        "to_transitions": tabular.to_transitions(mdp, policy, tau)[0],
    }


def inputs(horizon, sharp=False):
    mdp = tabular.random_mdp(jax.random.key(0), 3, 2, 0.9, horizon=horizon, num_terminal=1)
    policy = jnp.eye(2)[jnp.array([0, 1, 0])] if sharp else jnp.array([[0.2, 0.8], [0.5, 0.5], [0.7, 0.3]])
    params = jax.random.normal(jax.random.key(1), (mdp.observations.shape[-1], 2))
    return mdp, policy, params * (1e4 if sharp else 1.0)


of_one = jax.jit(every_result)
of_many = jax.jit(jax.vmap(every_result, (0, None, None)))

SHORT = pytest.mark.parametrize("horizon", [None, 2])


def test_every_function_is_in_the_table():
    functions = {n for n in tabular.__all__ if getattr(tabular, n).__module__ == "pgjax.tabular.exact"}
    table = jax.eval_shape(every_result, *inputs(None))
    assert set(table) == functions - {"Trajectories", "enumerate_trajectories"}


@SHORT
def test_float32_agrees_with_float64(horizon):
    def cast(x, dtype):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    arguments = inputs(horizon)
    single = of_one(*arguments)
    with jax.enable_x64(True):
        double = of_one(*jax.tree.map(lambda x: cast(x, jnp.float64), arguments))
    for name, result in single.items():
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(double[name]), strict=True)
        for x, y in pairs:
            if jnp.issubdtype(x.dtype, jnp.floating):
                assert (x.dtype, y.dtype) == (jnp.float32, jnp.float64), name
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5, err_msg=name)


@SHORT
def test_they_map_over_problems(horizon):
    mdp, *rest = inputs(horizon)
    rich = dataclasses.replace(mdp, reward=2 * mdp.reward, gamma=0.5)
    together = of_many(jax.tree.map(lambda *x: jnp.stack(x), mdp, rich), *rest)
    for i, each in enumerate((mdp, rich)):
        for name, result in of_one(each, *rest).items():
            for x, y in zip(jax.tree.leaves(together[name]), jax.tree.leaves(result), strict=True):
                np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5, err_msg=name)


@SHORT
def test_they_lower_for_cpu_cuda_and_tpu(horizon):
    leaves, structure = jax.tree.flatten(inputs(horizon))

    def function(*leaves):
        return jax.tree.leaves(every_result(*jax.tree.unflatten(structure, leaves)))

    for transform in (lambda f: f, jax.vmap):
        arguments = leaves if transform is not jax.vmap else [jnp.stack([x, x]) for x in leaves]
        exported = jax.export.export(jax.jit(transform(function)), platforms=("cpu", "cuda", "tpu"))
        assert exported(*arguments).platforms == ("cpu", "cuda", "tpu")


@SHORT
def test_gradients_are_finite_where_the_policy_is_deterministic(horizon):
    """One-hot matrices, and logits so large that probabilities underflow."""
    mdp, policy, params = inputs(horizon, sharp=True)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2, 3))
    def gradients(reward, gamma, policy, params):
        changed = tabular.TabularMDP(mdp.transition, reward, mdp.initial, gamma, mdp.horizon, mdp.terminal)
        results = every_result(changed, policy, params)
        return sum(x.sum() for x in jax.tree.leaves(results) if jnp.issubdtype(x.dtype, jnp.floating))

    for gradient in gradients(mdp.reward, mdp.gamma, policy, params):
        assert np.isfinite(gradient).all()


def test_repeated_calls_compile_once():
    functions = [getattr(tabular, n) for n in tabular.__all__]
    compiled = [f for f in functions if hasattr(f, "_cache_size")]
    assert len(compiled) >= 14
    mdp, policy, params = inputs(None)
    every_result(mdp, policy, params)
    sizes = [f._cache_size() for f in compiled]
    halved = tabular.TabularMDP(mdp.transition, mdp.reward / 2, mdp.initial, 0.5, terminal=mdp.terminal)
    every_result(halved, policy[::-1], params / 2, 0.2)
    assert [f._cache_size() for f in compiled] == sizes


def test_a_policy_of_the_wrong_shape_is_refused():
    mdp, _, params = inputs(None)
    with pytest.raises(ValueError, match=r"\[3, 4\].*\[3, 2\] are needed, one row for each state\."):
        tabular.objective(mdp, linear, jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="at each time"):
        tabular.objective(inputs(2)[0], linear, jnp.zeros((5, 4)))
    with pytest.raises(AssertionError):
        tabular.state_value(mdp, jnp.ones((2, 3, 2)))
    with pytest.raises(AssertionError):
        tabular.policy_gradient(mdp, linear, params, state_weight=jnp.ones((2, 3)))


@pytest.mark.parametrize("name", tabular.__all__)
def test_every_public_name_is_documented(name):
    item = getattr(tabular, name)
    doc = inspect.getdoc(item)
    assert doc
    assert doc.splitlines()[0].endswith(".")
    if not isinstance(item, type):
        assert "\nReturns:\n" in doc
        assert "\nExample:\n    >>> " in doc
        for parameter in inspect.signature(item).parameters:
            assert f"\n    {parameter}: " in doc, f"{parameter} is not explained"


def test_many_solves_side_by_side_do_not_deadlock():
    """Batched LAPACK calls of one program wait for each other for ever with jaxlib 0.10 on few cores."""
    code = """
import jax
from pgjax import tabular
from pgjax.distributions import Categorical
mdps = jax.vmap(lambda key: tabular.random_mdp(key, 64, 2, 0.9))(jax.random.split(jax.random.key(0), 8))
apply = lambda params, obs: Categorical(obs @ params)
def gradients(mdp):
    params = mdp.reward
    return tabular.policy_gradient(mdp, apply, params), jax.grad(tabular.objective, 2)(mdp, apply, params)
gradients = jax.jit(jax.vmap(gradients))
for _ in range(20):
    jax.block_until_ready(gradients(mdps))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
