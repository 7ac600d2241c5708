"""What the literature proves about policy gradients, asserted of the exact functions on small problems."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import pgjax
from pgjax import tabular
from pgjax.distributions import Categorical

S, A = 4, 3


def linear(params, obs):
    return Categorical(obs @ params)


def smooth_mlp(params, obs):
    hidden = jnp.tanh(obs @ params["in"] + jnp.broadcast_to(params["bias"], (*obs.shape[:-1], 5)))
    return Categorical(hidden @ params["out"])


def preferences(params, obs):
    """θ `[A]`, whatever is observed: the softmax of a bandit."""
    return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], *params.shape)))


POLICIES = pytest.mark.parametrize("apply", [linear, smooth_mlp])


def draw_params(rng, apply, size, num_actions):
    if apply is linear:
        return rng.normal(size=(size, num_actions))
    shapes = {"in": (size, 5), "bias": (5,), "out": (5, num_actions)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def draw(num, apply, *, num_states=S, num_actions=A, gamma=None, horizon=None, num_terminal=0):
    """Problems, of different γ unless one is given, and policies for them: leaves `[num, ...]`."""
    rng, drawn, live = np.random.default_rng(3), [], num_states - num_terminal
    for _ in range(num):
        mdp = tabular.TabularMDP(
            rng.dirichlet(np.ones(num_states), (num_states, num_actions)),
            rng.uniform(size=(num_states, num_actions)),
            np.pad(rng.dirichlet(np.ones(live)), (0, num_terminal)),
            rng.uniform(0.5, 0.95) if gamma is None else gamma,
            horizon=horizon,
            terminal=np.arange(num_states) >= live,
        )
        drawn.append((mdp, draw_params(rng, apply, num_states + (horizon or 0), num_actions)))
    return jax.tree.map(lambda *x: np.stack(x), *drawn)


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def norm(x):
    return np.linalg.norm(x, axis=-1)


class Enumerated:
    """Every whole episode of a tiny problem, with its probability: arrays `[T, M, ...]` and `[M]`."""

    def __init__(self, mdp, apply, params):
        self.mdp, self.apply, self.params = mdp, apply, params
        self.policy = tabular.policy_matrix(mdp, apply, params)
        self.tau = numpy(tabular.enumerate_trajectories(mdp))
        self.probability = np.exp(tabular.trajectory_log_prob(mdp, self.policy, self.tau))
        self.traj, self.valid = numpy(tabular.to_transitions(mdp, self.policy, self.tau))
        self.flags = self.traj.terminated, self.traj.truncated
        self.discount = np.asarray(pgjax.time_discount(*self.flags, gamma=mdp.gamma))
        scores = numpy(pgjax.score(apply, params, self.traj.obs, self.traj.action))
        leaves = [leaf.reshape(*self.valid.shape, -1) for leaf in jax.tree.leaves(scores)]
        self.scores = np.concatenate(leaves, -1)

    def gradients(self, weight):
        """The gradient of every trajectory, `[M, P]`."""
        found = pgjax.trajectory_gradients(self.apply, self.params, self.traj, weight, self.valid)
        return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in numpy(jax.tree.leaves(found))], -1)

    def expected(self, weight):
        return self.probability @ self.gradients(weight)

    def along(self, table):
        """A function of time and state, `[H + 1, S]`, at the observations and at those that follow."""
        time = np.arange(len(self.tau.action))[:, None]
        return table[time, self.tau.state[:-1]], table[time + 1, self.tau.state[1:]]


# The policy gradient theorem.


@POLICIES
def test_the_policy_gradient_theorem(apply, x64):
    """∇V(μ) = Σ_s d(s) Σ_a ∇π(a|s) A(s, a) / (1 − γ), and finite differences agree to 2e-9."""

    @jax.jit
    def both_sides(problem):
        mdp, params = problem
        flat, unravel = ravel_pytree(params)
        d = tabular.visitation(mdp, tabular.policy_matrix(mdp, apply, params))
        theorem = tabular.policy_gradient(mdp, apply, params, state_weight=d)

        def value(flat):
            return tabular.objective(mdp, apply, unravel(flat))

        steps = 1e-5 * jnp.eye(flat.size)
        differences = lax.map(lambda step: value(flat + step) - value(flat - step), steps) / 2e-5
        return ravel_pytree(theorem)[0] / (1 - mdp.gamma), jax.grad(value)(flat), differences

    problems = draw(20, apply)
    for i in range(20):
        theorem, derivative, differences = numpy(both_sides(jax.tree.map(lambda x, i=i: x[i], problems)))
        assert norm(theorem - derivative) < 1e-12 * norm(derivative)
        assert np.abs(theorem - differences).max() < 2e-9
        assert norm(derivative) > 0.01


# Convergence.


@pytest.mark.parametrize("num_actions", [2, 5, 20])
def test_mei_et_al_2020_the_exact_gradient_of_a_softmax_bandit_converges_as_one_over_t(num_actions, x64):
    """Theorem 2, proposition 2 and lemma 3: rewards in [0, 1], η = 2/5, uniform start, t from 1.

    (π* − π_t)ᵀ r ≤ 5 K² / t;  π_t(a*) rises;  ‖∇J‖ ≥ π_t(a*) (π* − π_t)ᵀ r.
    """

    @jax.jit
    @jax.vmap
    def learn(reward):
        mdp, best = tabular.bandit_mdp(reward), jnp.argmax(reward)

        def step(theta, _):
            gradient = tabular.policy_gradient(mdp, preferences, theta)
            regret = reward[best] - tabular.objective(mdp, preferences, theta)
            chance = tabular.policy_matrix(mdp, preferences, theta)[0, 0, best]
            return theta + 0.4 * gradient, (regret, chance, jnp.linalg.norm(gradient))

        return lax.scan(step, jnp.zeros(num_actions), None, length=2000)[1]

    reward = np.random.default_rng(0).uniform(size=(20, num_actions))
    regret, chance, slope = numpy(learn(reward))
    t = np.arange(1, 2001)
    np.testing.assert_allclose(chance[:, 0], 1 / num_actions)
    assert (regret <= 5 * num_actions**2 / t).all()
    assert (np.diff(chance, axis=1) > 0).all()
    assert (slope >= chance * regret - 1e-15).all()
    assert (regret[:, -1] < regret[:, 0] / 2).all()


GAMMAS, STEP_SIZES = (0.5, 0.9, 0.99), (0.01, 0.1, 1.0, 10.0)


def test_agarwal_et_al_2021_the_natural_gradient_converges_whatever_the_problem_and_the_step(x64):
    """Theorem 16: rewards in [0, 1], uniform start, V* − V_T ≤ log|A| / (ηT) + 1 / ((1 − γ)² T).

    And lemma 17: V rises in every state.
    """

    @jax.jit
    def learn(mdp, step_size):
        def step(policy, _):
            value = tabular.state_value(mdp, policy)
            return tabular.npg_step(mdp, policy, step_size), value

        values = lax.scan(step, jnp.full((S, A), 1 / A), None, length=100)[1]
        return values, tabular.optimal_value(mdp)

    t = np.arange(1, 100)
    for gamma, step_size in itertools.product(GAMMAS, STEP_SIZES):
        problems, _ = draw(5, linear, gamma=gamma)
        for i in range(5):
            mdp = jax.tree.map(lambda x, i=i: x[i], problems)
            values, best = numpy(learn(mdp, step_size))
            gap, rounding = (best[None] - values[1:]) @ mdp.initial, 1e-13 / (1 - gamma)
            assert (gap <= np.log(A) / (step_size * t) + 1 / ((1 - gamma) ** 2 * t)).all()
            assert (gap >= -rounding).all()
            assert (np.diff(values, axis=0) >= -rounding).all()
            assert gap[-1] < (0.1 if step_size > 0.01 else gap[0])


def test_agarwal_et_al_2021_the_step_in_the_policy_is_the_pseudo_inverse_of_the_fisher(x64):
    """Lemma 15: θ + η F⁺∇V is π exp(η A / (1 − γ)), normalised, at every iteration."""

    @jax.jit
    def step(mdp, params, policy, step_size):
        params = params + step_size * tabular.natural_gradient(mdp, linear, params)
        policy = tabular.npg_step(mdp, policy, step_size)
        return params, policy, tabular.policy_matrix(mdp, linear, params)

    problems, _ = draw(4, linear)
    for i, step_size in enumerate((0.01, 0.01, 0.1, 0.1)):
        params, policy = np.zeros((S, A)), np.full((S, A), 1 / A)
        for _ in range(10):
            params, policy, in_theta = step(
                jax.tree.map(lambda x, i=i: x[i], problems), params, policy, step_size
            )
            np.testing.assert_allclose(in_theta, policy, rtol=1e-9)
        assert np.abs(policy - 1 / A).max() > 0.02


def test_cen_et_al_2022_the_natural_gradient_with_entropy_converges_linearly_at_rate_1_minus_eta_tau(x64):
    """Theorem 1, for 0 < η ≤ (1 − γ)/τ, here a tenth, a half and the whole of that.

    ‖Q* − Q_{t+1}‖ ≤ C γ (1 − ητ)^t and ‖log π* − log π_{t+1}‖ ≤ 2 C (1 − ητ)^t / τ in the maximum norm,
    C = ‖Q* − Q_0‖ + 2τ (1 − ητ/(1 − γ)) ‖log π* − log π_0‖.
    """

    @jax.jit
    def learn(mdp, params, temperature, step_size):
        def far(policy):
            q = tabular.action_value(mdp, policy, temperature=temperature)
            return jnp.abs(best_q - q).max(), jnp.abs(jnp.log(best) - jnp.log(policy)).max()

        def step(policy, _):
            return tabular.npg_step(mdp, policy, step_size, temperature=temperature), far(policy)

        best = tabular.policy_iteration(mdp, temperature=temperature)[0]
        best_q = tabular.action_value(mdp, best, temperature=temperature)
        start = tabular.policy_matrix(mdp, linear, params)
        return lax.scan(step, start, None, length=60)[1]

    problems = draw(12, linear)
    temperatures, shares = np.geomspace(0.01, 1.0, 12), np.tile([0.1, 0.5, 1.0], 4)
    for i, (tau, share) in enumerate(zip(temperatures, shares, strict=True)):
        mdp, params = jax.tree.map(lambda x, i=i: x[i], problems)
        progress = share * (1 - mdp.gamma)  # ητ
        of_q, of_log_policy = numpy(learn(mdp, params, tau, progress / tau))
        shrinks = (of_q[0] + 2 * tau * (1 - share) * of_log_policy[0]) * (1 - progress) ** np.arange(59)
        assert (of_q[1:] <= mdp.gamma * shrinks + 1e-12).all()
        assert (of_log_policy[1:] <= 2 / tau * (shrinks + 1e-12)).all()


# The compatible critic.


@POLICIES
def test_kakade_2002_peters_and_schaal_2008_the_natural_gradient_is_the_compatible_critic(apply, x64):
    """F⁺∇J = w / (1 − γ), w the weights of the critic wᵀ∇log π that fits A (or Q) best under d(s) π(a|s)."""
    obs = np.repeat(np.eye(S)[:, None], A, axis=1)
    action = np.broadcast_to(np.arange(A), (S, A))

    @jax.jit
    def parts(mdp, params):
        policy = tabular.policy_matrix(mdp, apply, params)
        scores = pgjax.score(apply, params, obs, action)
        flat = jnp.concatenate([leaf.reshape(S * A, -1) for leaf in jax.tree.leaves(scores)], -1)
        weight = tabular.visitation(mdp, policy)[:, None] * policy
        natural = tabular.natural_gradient(mdp, apply, params)
        targets = tabular.advantage(mdp, policy), tabular.action_value(mdp, policy)
        return ravel_pytree(natural)[0], flat, weight.ravel(), [x.ravel() for x in targets]

    problems = draw(10, apply)
    for i in range(10):
        mdp, params = jax.tree.map(lambda x, i=i: x[i], problems)
        natural, scores, weight, targets = numpy(parts(mdp, params))
        root = np.sqrt(weight)
        for target in targets:
            critic = np.linalg.lstsq(root[:, None] * scores, root * target)[0]
            expected = critic / (1 - mdp.gamma)
            np.testing.assert_allclose(natural, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())
        if apply is linear:  # one parameter for every state and action: A / (1 − γ) + c(s)
            offset = natural.reshape(S, A) - targets[0].reshape(S, A) / (1 - mdp.gamma)
            np.testing.assert_allclose(offset, np.repeat(offset[:, :1], A, 1), atol=1e-9)


# Variance.


@functools.cache
def every_episode():
    """Of one small problem, in float64."""
    mdp, params = first(draw(1, smooth_mlp, num_states=3, num_actions=2, horizon=3, num_terminal=1))
    return Enumerated(mdp, smooth_mlp, params)


def test_greensmith_et_al_2004_the_optimal_constant_baseline(x64):
    """b* = E[‖s‖² R] / E‖s‖², s the score of the trajectory; Var(b) − Var(b*) = E‖s‖² (b − b*)²."""
    every = every_episode()
    total = np.asarray(pgjax.total_return(every.discount * every.traj.reward, every.valid))
    p, longest = every.probability, np.argmax(every.valid.sum(0))
    squares = p * np.square(every.gradients(np.ones_like(total))).sum(-1)
    best = (squares * total[0]).sum() / squares.sum()

    # the mean over columns becomes an expectation once scores carry the root of their column's probability
    rooted = every.scores * np.sqrt(p)[:, None]
    found = np.asarray(pgjax.optimal_baseline(rooted, total, every.valid, per="trajectory"))
    np.testing.assert_allclose(found[:, longest], best, rtol=1e-12)

    def variance(baseline):
        g = every.gradients(pgjax.subtract_baseline(total, baseline, every.valid))
        return p @ np.square(g).sum(-1) - np.square(p @ g).sum()

    least = variance(found)
    for baseline in (0.0, best - 1.0, best + 0.1, 10.0):
        excess = squares.sum() * (baseline - best) ** 2
        np.testing.assert_allclose(variance(np.full(total.shape, baseline)) - least, excess, rtol=1e-9)


def test_schulman_et_al_2016_gae_with_the_true_value_is_unbiased_for_every_lambda(x64):
    """Proposition 1, by the sum over all episodes; with a wrong V only λ = 1 is unbiased."""
    every = every_episode()
    exact = np.asarray(ravel_pytree(tabular.policy_gradient(every.mdp, every.apply, every.params))[0])
    true = np.asarray(tabular.state_value(every.mdp, every.policy))
    wrong = true + np.random.default_rng(0).normal(size=true.shape)

    def error(table, lambda_):
        value, following = every.along(table)
        advantage = pgjax.gae(
            every.traj.reward, value, following, *every.flags, gamma=every.mdp.gamma, lambda_=lambda_
        )
        return norm(every.expected(every.discount * advantage) - exact) / norm(exact)

    for lambda_ in (0.0, 0.3, 0.95, 1.0):
        assert error(true, lambda_) < 1e-12
    assert error(wrong, 1.0) < 1e-12
    assert min(error(wrong, lambda_) for lambda_ in (0.0, 0.3, 0.95)) > 1e-3


def test_tucker_et_al_2018_the_parts_add_up_and_a_state_baseline_moves_one_of_them(x64):
    """For one (s, a) draw: total = trajectory + action + state, and b(s) is in the action part alone."""
    every = every_episode()
    mdp, apply, params = every.mdp, every.apply, every.params
    to_go = np.asarray(pgjax.reward_to_go(every.traj.reward, *every.flags, gamma=mdp.gamma))
    p = np.where(every.valid, every.discount * every.probability, 0.0)
    p = p / p.sum()
    value = np.asarray(tabular.state_value(mdp, every.policy))[:-1]
    best = np.asarray(pgjax.optimal_state_baseline(mdp, apply, params))
    baselines = [np.zeros((3, 3)), value, best, np.random.default_rng(0).normal(size=(3, 3))]
    parts = [numpy(pgjax.variance_decomposition(mdp, apply, params, baseline=b)) for b in baselines]
    for baseline, part in zip(baselines, parts, strict=True):
        g = every.scores * (to_go - every.along(np.pad(baseline, ((0, 1), (0, 0))))[0])[..., None]
        mean = np.einsum("tn,tnp->p", p, g)
        total = np.einsum("tn,tnp->", p, g**2) - mean @ mean
        np.testing.assert_allclose(part.total, total, rtol=1e-10)
        np.testing.assert_allclose(part.trajectory, parts[0].trajectory, rtol=1e-12)
        np.testing.assert_allclose(part.state, parts[0].state, rtol=1e-12)
    none, with_value, with_best, _ = (part.action for part in parts)
    assert with_best < 0.999 * min(with_value, none)


def test_tucker_et_al_2018_the_value_as_a_baseline_can_raise_the_variance(x64):
    """Two arms of π = (.9, .1) and Q = (1, 0): b* = .1, and V = .9 is farther from it than no baseline is."""
    mdp, theta = tabular.bandit_mdp([1.0, 0.0]), np.log([0.9, 0.1])
    np.testing.assert_allclose(pgjax.optimal_state_baseline(mdp, preferences, theta), [[0.1]], rtol=1e-12)
    value = float(tabular.state_value(mdp, np.array([[0.9, 0.1]]))[0, 0])
    np.testing.assert_allclose(value, 0.9)

    def total(baseline):
        parts = pgjax.variance_decomposition(mdp, preferences, theta, baseline=np.full((1, 1), baseline))
        return float(parts.total)

    square = 2 * 0.9 * 0.1  # E‖s‖²
    np.testing.assert_allclose(total(value) - total(0.1), square * 0.8**2, rtol=1e-10)
    np.testing.assert_allclose(total(0.0) - total(0.1), square * 0.1**2, rtol=1e-10)
    assert total(value) > total(0.0)


def test_ilyas_et_al_2018_independent_gradient_estimates_agree_the_more_the_larger_the_batch():
    """The mean cosine between pairs rises, by more than 4 standard errors at each quadrupling, towards 1."""
    problem = first(draw(1, linear, num_states=3, num_actions=2, num_terminal=1))
    mdp, params = jax.tree.map(jnp.asarray, problem)
    sizes, num = (4, 16, 64, 256, 1024), 2**16

    def act(key, obs):
        return linear(params, obs).sample_and_log_prob(key)

    @jax.jit
    def gradients(key):
        traj, valid = pgjax.rollout_episodes(key, act, mdp, None, num, 8)
        weight = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=mdp.gamma)
        return pgjax.trajectory_gradients(linear, params, traj, weight, valid)

    each, found = np.asarray(gradients(jax.random.key(0))), []
    for size in sizes:
        pairs = each.reshape(-1, 2, size, each[0].size).mean(2)
        pairs = np.pad(pairs, ((0, num // 2 - len(pairs)), (0, 0), (0, 0)))  # one shape, compiled once
        cosines = jax.vmap(pgjax.gradient_cosine)(pairs[:, 0], pairs[:, 1])
        found.append(np.asarray(cosines)[: num // 2 // size])
    mean = np.array([x.mean() for x in found])
    squared_error = np.array([x.var() / len(x) for x in found])
    assert (np.diff(mean) > 4 * np.sqrt(squared_error[1:] + squared_error[:-1])).all()
    assert mean[0] < 0.2
    assert mean[-1] > 0.9


# What is a gradient and what is not.


@pytest.mark.parametrize(("apply", "horizon"), [(linear, None), (smooth_mlp, 3)])
def test_nota_and_thomas_2020_without_gamma_to_the_t_the_field_is_no_gradient(apply, horizon, x64):
    """The Jacobian of a gradient is symmetric; that of what the practical estimators follow is not."""
    mdp, params = first(draw(1, apply, horizon=horizon, num_terminal=1, gamma=0.7))
    flat, unravel = ravel_pytree(params)

    def field(flat, discounted):
        params = unravel(flat)
        policy = tabular.policy_matrix(mdp, apply, params)
        visits = tabular.visitation(mdp, policy, normalized=False, discounted=discounted)
        return ravel_pytree(tabular.policy_gradient(mdp, apply, params, state_weight=visits))[0]

    kept, dropped = (np.asarray(jax.jit(jax.jacfwd(lambda x, d=d: field(x, d)))(flat)) for d in (True, False))
    assert np.abs(kept).max() > 0.01
    assert np.abs(kept - kept.T).max() < 1e-13
    assert np.abs(dropped - dropped.T).max() > 1e-3


# Examples of the literature.


def stay_or_move(params, obs):
    """One sigmoid a state: θ `[S]`, P(stay) = σ(θ_s)."""
    logits = obs @ params
    return Categorical(jnp.stack([logits, jnp.zeros_like(logits)], -1))


STAY = np.array([0.8, 0.1])  # P(stay) at the start
START = np.log(STAY / (1 - STAY))


def prefers_the_better_loop(theta):
    """Whether the first state rather moves and the second rather stays."""
    return (theta[0] < 0) & (theta[1] > 0)


def test_kakade_2002_the_plain_gradient_stays_on_the_plateau_for_307461_steps(x64):
    """γ = .9, start always in state 1, J not normalised, θ += ∇J, until both states prefer the better loop.

    (1 − γ) J, 1 in the first loop and 1.8 at best, is within 1 % of 1 from step 5,000 to step 300,000.
    """
    mdp = tabular.kakade_mdp(0.9)

    def step(loop):
        theta, steps, when = loop
        theta = theta + tabular.policy_gradient(mdp, stay_or_move, theta)
        return theta, steps + 1, jnp.where((when < 0) & prefers_the_better_loop(theta), steps + 1, when)

    @jax.jit
    def learn(theta):
        def block(loop, _):
            loop = lax.fori_loop(0, 5000, lambda _, loop: step(loop), loop)
            return loop, (1 - mdp.gamma) * tabular.objective(mdp, stay_or_move, loop[0])

        loop, reward = lax.scan(block, (theta, 0, -1), None, length=64)
        return loop[2], reward

    steps, reward = numpy(learn(START))
    assert abs(steps - 307_461) <= 2  # in case another rounding moves it
    assert (np.abs(reward[:60] - 1.0) < 0.01).all()
    assert reward[-1] > 1.5


@functools.partial(jax.jit, static_argnums=2)
def natural_steps(damping, rate, num_steps):
    mdp = tabular.kakade_mdp(0.9)

    def step(theta, _):
        theta = theta + rate * tabular.natural_gradient(mdp, stay_or_move, theta, damping=damping)
        return theta, (theta, tabular.objective(mdp, stay_or_move, theta))

    return lax.scan(step, jnp.asarray(START), None, length=num_steps)[1]


def natural_path(damping, rate, num_steps):
    """θ `[num_steps, 2]` and J `[num_steps]` after each step of length `rate` along (F + λ I)⁺ ∇J."""
    theta, value = numpy(natural_steps(damping, rate, 5000))
    return theta[:num_steps], value[:num_steps]


def test_kakade_2002_the_natural_gradient_leaves_the_plateau_at_once(x64):
    """Rate .1: 4 steps where J is not normalised, tens of steps where it is, which divides the rate by 10."""
    for rate, fewest, most in ((0.1, 4, 4), (0.01, 10, 50)):
        theta, value = natural_path(0.0, rate, 100)
        there = prefers_the_better_loop(theta.T)
        assert fewest <= np.argmax(there) + 1 <= most
        assert there[most - 1 :].all()
        assert (value[most - 1 :] > 16.0).all()


def test_kakade_2002_the_undamped_natural_gradient_is_finite_long_after_a_plain_solve_is_not(x64):
    """F vanishes with the probability of the worse actions: F⁻¹ ends in 0/0, the pseudo-inverse cuts instead.

    It loses its last entry when every probability underflows, near step 880: damping is for that.
    """
    mdp = tabular.kakade_mdp(0.9)

    def plain_step(theta, _):
        gradient = tabular.policy_gradient(mdp, stay_or_move, theta)
        matrix = tabular.fisher(mdp, stay_or_move, theta)  # diagonal: one parameter a state
        return theta + 0.1 * gradient / jnp.diag(matrix), None

    plain = jax.jit(lambda theta: lax.scan(plain_step, theta, None, length=800)[0])(START)
    assert np.isnan(plain).any()
    theta, value = natural_path(0.0, 0.1, 800)
    assert np.isfinite(theta).all()
    np.testing.assert_allclose(value[50:], 18.0, rtol=1e-12)


def test_kakade_2002_damped_it_is_finite_but_too_much_damping_is_the_plateau_again(x64):
    """Damping above the Fisher of the state that is hardly visited takes away the help that it needs."""
    for damping, leaves in ((1e-4, True), (1e-3, True), (0.1, False)):
        theta, value = natural_path(damping, 0.1, 5000)
        assert np.isfinite(theta).all()
        assert prefers_the_better_loop(theta[-1]) == leaves
        np.testing.assert_allclose(value[-1], 18.0 if leaves else 10.0, rtol=1e-3)


def test_the_boltzmann_example(x64):
    """One state, features 3 and 1, q = 1, Q = 1 and 100: π = (.8808, .1192), ∇J = −20.79.

    With the probabilities rounded to .88 and .12 it comes out as −20.91.
    """
    mdp, features = tabular.bandit_mdp([1.0, 100.0]), np.array([3.0, 1.0])

    def boltzmann(q, obs):
        return preferences(q * features, obs)

    def rounded(shift, obs):
        return preferences(np.log([0.88, 0.12]) + shift * features, obs)

    policy = np.asarray(tabular.policy_matrix(mdp, boltzmann, 1.0))[0, 0]
    np.testing.assert_array_equal(np.round(policy, 4), [0.8808, 0.1192])
    gradient = tabular.policy_gradient(mdp, boltzmann, 1.0)
    np.testing.assert_allclose(gradient, -20.79, atol=0.005)
    np.testing.assert_allclose(tabular.policy_gradient(mdp, rounded, 0.0), -20.91, atol=0.005)
    # the score of an action is its feature minus the mean feature
    scores = pgjax.score(boltzmann, 1.0, np.zeros((2, 2)), np.array([0, 1]))
    np.testing.assert_allclose(scores, features - policy @ features, rtol=1e-12)
