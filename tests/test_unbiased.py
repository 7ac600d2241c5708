"""Every estimator's mean, against the exact gradient or against the bias that theory gives it.

Nearly all means are exact: the sum over every trajectory of a tiny problem, or over every batch of two or
three, each with its probability. The last test samples instead, and says its confidence.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from scipy import stats

import pgjax
from pgjax import tabular
from pgjax.distributions import Categorical

STEPS = 3
GAMMAS = {"episode": (1.0, 0.97, 0.9, 0.8, 0.6, 0.4), "window": (0.97, 0.95, 0.9, 0.8, 0.6, 0.4)}
KINDS = pytest.mark.parametrize("kind", GAMMAS)


def smooth_mlp(params, obs):
    return Categorical(jnp.tanh(obs @ params["in"]) @ params["out"])


def linear(params, obs):
    return Categorical(obs @ params)


def draw(rng, gamma, *, num_states=3, num_actions=2, horizon=None, num_terminal=1):
    live = num_states - num_terminal
    return tabular.TabularMDP(
        rng.dirichlet(np.ones(num_states), (num_states, num_actions)),
        rng.normal(size=(num_states, num_actions)),
        np.pad(rng.dirichlet(np.ones(live)), (0, num_terminal)),
        gamma,
        horizon=horizon,
        terminal=np.arange(num_states) >= live,
    )


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def assert_close(actual, desired, tol=1e-10):
    """In norm, relative."""
    assert np.linalg.norm(actual - desired) <= tol * np.linalg.norm(desired)


def far_apart(actual, desired, tol=1e-6):
    return np.linalg.norm(actual - desired) > tol * np.linalg.norm(desired)


# What an estimator puts in front of the score, and what that is worth on average after (t, s, a). A critic is
# a table [T + 1, S]; its last row stands behind the last step of the window, 0 where that step terminates.


def back_up(mdp, follows):
    """r(s, a) + γ Σ_s' P(s'|s, a) follows(s'), nothing following where terminal: `[S] -> [S, A]`."""
    return mdp.reward + mdp.gamma * mdp.transition @ np.where(mdp.terminal, 0.0, follows)


def mean_lambda_return(mdp, policy, critic, lambda_):
    """G(t, s, a) = r + γ E[(1 − λ) V(t + 1, s') + λ Σ_a' π(a'|s') G(t + 1, s', a')], `[T, S, A]`."""
    out = [back_up(mdp, critic[STEPS])]
    for t in reversed(range(STEPS - 1)):
        onward = (policy[t + 1] * out[0]).sum(-1)
        out.insert(0, back_up(mdp, (1 - lambda_) * critic[t + 1] + lambda_ * onward))
    return np.stack(out)


def mean_n_step_return(mdp, policy, critic, n):
    """r + γ E[critic], n times; the critic already at the end of the window, `[T, S, A]`."""
    out = [back_up(mdp, critic[t + 1]) for t in range(STEPS)]
    for _ in range(n - 1):
        onward = [(policy[t] * out[t]).sum(-1) for t in range(1, STEPS)]
        out = [back_up(mdp, follows) for follows in (*onward, critic[STEPS])]
    return np.stack(out)


def mean_reward_to_go(mdp, policy, critic=None):
    """Nothing follows the end of the window, whatever the critic says."""
    return mean_lambda_return(mdp, policy, np.zeros((STEPS + 1, mdp.num_states)), 1.0)


class Estimator(NamedTuple):
    weight: object  # (traj, gamma, value, next_value) -> [T, N]
    target: object  # (mdp, policy, critic) -> [T, S, A], its mean up to a function of t and s
    free: bool = False  # of the critic's error, on whole episodes
    bootstraps: bool = True


def to_go(traj, gamma, value, next_value):
    return pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=gamma)


def n_step(n):
    def weight(traj, gamma, value, next_value):
        flags = traj.terminated, traj.truncated
        return pgjax.n_step_return(traj.reward, next_value, *flags, gamma=gamma, n=n)

    return Estimator(weight, functools.partial(mean_n_step_return, n=n), n >= STEPS)


def traced(function, lambda_):
    def weight(traj, gamma, value, next_value):
        values = (next_value,) if function is pgjax.lambda_return else (value, next_value)
        flags = traj.terminated, traj.truncated
        return function(traj.reward, *values, *flags, gamma=gamma, lambda_=lambda_)

    return Estimator(weight, functools.partial(mean_lambda_return, lambda_=lambda_), lambda_ == 1.0)


def one_step(traj, gamma, value, next_value):
    return pgjax.td_error(traj.reward, value, next_value, traj.terminated, gamma=gamma)


PRICE = np.array([0.5, -1.0])  # of an action: a baseline that knows it

ESTIMATORS = {
    "reward_to_go": Estimator(to_go, mean_reward_to_go, True, False),
    "reward_to_go minus a number": Estimator(lambda *x: to_go(*x) - 7.0, mean_reward_to_go, True, False),
    "reward_to_go minus a function of time and state": Estimator(
        lambda *x: pgjax.subtract_baseline(to_go(*x), x[2]), mean_reward_to_go, True, False
    ),
    **{f"n_step_return of {n}": n_step(n) for n in (1, 2, STEPS, STEPS + 4)},
    **{f"lambda_return at {x}": traced(pgjax.lambda_return, x) for x in (0.0, 0.6, 1.0)},
    **{f"gae at {x}": traced(pgjax.gae, x) for x in (0.0, 0.6, 1.0)},
    "td_error": Estimator(one_step, functools.partial(mean_lambda_return, lambda_=0.0)),
}
WRONG_BASELINE = Estimator(
    lambda *x: to_go(*x) - jnp.asarray(PRICE)[x[0].action], lambda *x: mean_reward_to_go(*x) - PRICE
)
TABLE = {**ESTIMATORS, "reward_to_go minus a function of the action": WRONG_BASELINE}
CRITICS = ("true", "wrong")


class Case(NamedTuple):
    """One problem, and the mean of every estimator on it by the sum over all its trajectories.

    `kept` says whether γ^t stands in front of each term.
    """

    mdp: tabular.TabularMDP
    policy: np.ndarray  # [T, S, A]
    slope: np.ndarray  # its derivative, [T, S, A, P]
    critic: dict  # by name: [T + 1, S]
    visits: dict  # by kept: [T, S]
    mean: dict  # by estimator, critic and kept: [P]
    theorem: dict  # by kept: the policy gradient theorem for the steps that are watched
    gradient: np.ndarray  # of the objective of the task
    cut: dict  # by kept: of the sum of the rewards that are watched; discounted if kept

    def limit(self, target, kept):
        """Σ_t Σ_s d(t, s) Σ_a ∇π(a|s) target(t, s, a)."""
        return np.einsum("ts,tsa,tsap->p", self.visits[kept], target, self.slope)


@functools.partial(jax.jit, static_argnums=0)
def expectations(kind, mdp, params, tau, error):
    episode = kind == "episode"
    flat, unravel = ravel_pytree(params)
    watched = mdp if episode else dataclasses.replace(mdp, horizon=STEPS)
    policy = tabular.policy_matrix(mdp, smooth_mlp, params)
    slope = jax.jacrev(lambda flat: tabular.policy_matrix(mdp, smooth_mlp, unravel(flat)))(flat)
    true = tabular.state_value(mdp, policy)
    every = (policy, slope, true)
    if not episode:  # the same at all times
        lengths = (STEPS, STEPS, STEPS + 1)
        every = [jnp.broadcast_to(x[None], (n, *x.shape)) for x, n in zip(every, lengths, strict=True)]
    critic = {"true": every[2], "wrong": every[2] + error}

    probability = jnp.exp(tabular.trajectory_log_prob(mdp, policy, tau))
    traj, valid = tabular.to_transitions(mdp, policy, tau)
    discount = pgjax.time_discount(traj.terminated, traj.truncated, gamma=mdp.gamma)
    weights = {
        ("total_return", "none", True): pgjax.total_return(discount * traj.reward, valid),
        ("total_return", "none", False): pgjax.total_return(traj.reward, valid),
    }
    time = jnp.arange(STEPS)[:, None]
    for (key, table), (name, estimator) in itertools.product(critic.items(), TABLE.items()):
        value = table[time, tau.state[:-1]]
        after = jnp.where(traj.terminated, 1e3, table[time + 1, tau.state[1:]])  # 1e3: of no account there
        weight = estimator.weight(traj, mdp.gamma, value, after)
        weights[name, key, True], weights[name, key, False] = discount * weight, weight

    def mean(weight):
        weight = weight * (valid.shape[1] * probability)[None]  # policy_gradient divides by their number
        return ravel_pytree(pgjax.policy_gradient(smooth_mlp, params, traj, weight, valid))[0]

    means = jax.vmap(mean)(jnp.stack(list(weights.values())))

    def whatever_the_time(params, obs):
        return smooth_mlp(params, obs if episode else obs[..., : mdp.num_states])

    def theorem_of(mdp, apply=smooth_mlp, state_weight=None):
        return ravel_pytree(tabular.policy_gradient(mdp, apply, params, state_weight=state_weight))[0]

    visits, theorem, cut = {}, {}, {}
    for kept in (True, False):
        visits[kept] = tabular.visitation(watched, policy, normalized=False, discounted=kept)
        theorem[kept] = theorem_of(mdp, state_weight=visits[kept] if episode else visits[kept].sum(0))
        task = watched if kept else dataclasses.replace(watched, gamma=1.0)
        cut[kept] = theorem_of(task, whatever_the_time)
    found = dict(zip(weights, means, strict=True))
    return probability, Case(mdp, *every[:2], critic, visits, found, theorem, theorem_of(mdp), cut)


@functools.cache
def cases(kind):
    """Problems with a terminal state: of three steps, or endless and watched for three."""
    with jax.enable_x64(True):
        rng, found = np.random.default_rng(5), []
        for gamma in GAMMAS[kind]:
            mdp = draw(rng, gamma, horizon=STEPS if kind == "episode" else None)
            params = {"in": rng.normal(size=(mdp.observations.shape[-1], 4)), "out": rng.normal(size=(4, 2))}
            error = rng.normal(size=(STEPS + 1, 3))
            if kind == "episode":
                error[STEPS] = 0.0  # it is over
            tau = tabular.enumerate_trajectories(mdp, STEPS)
            probability, case = numpy(expectations(kind, mdp, params, tau, error))
            np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-12)
            found.append(case)
        return found


# One trajectory at a time.


@pytest.mark.parametrize("name", TABLE)
@KINDS
def test_the_mean_is_what_theory_says(kind, name):
    """Σ_t d(t, s) Σ_a ∇π(a|s) E[Ψ | t, s, a], with γ^t or without, bias and all."""
    for case, critic, kept in itertools.product(cases(kind), CRITICS, (True, False)):
        target = TABLE[name].target(case.mdp, case.policy, case.critic[critic])
        assert_close(case.mean[name, critic, kept], case.limit(target, kept))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_on_whole_episodes_only_the_critics_error_makes_a_bias(name):
    """Unbiased with the true V, or where V is not used: λ = 1, n at least the length, Monte Carlo.

    With γ^t it is the gradient of the objective, without it the theorem's sum under undiscounted visits
    (Nota & Thomas 2020).
    """
    for case, critic, kept in itertools.product(cases("episode"), CRITICS, (True, False)):
        assert_close(case.theorem[True], case.gradient)
        if critic == "true" or ESTIMATORS[name].free:
            assert_close(case.mean[name, critic, kept], case.theorem[kept])
        else:
            assert far_apart(case.mean[name, critic, kept], case.theorem[kept])


def test_the_total_return_is_unbiased_for_the_rewards_that_it_sums():
    """Discounted, for J; undiscounted, for J at γ = 1. In a window: for the rewards within it."""
    for kind, kept in itertools.product(GAMMAS, (True, False)):
        for case in cases(kind):
            assert_close(case.mean["total_return", "none", kept], case.cut[kept])
            if kind == "episode" and kept:
                assert_close(case.cut[kept], case.gradient)


def test_dropping_gamma_to_the_t_changes_the_mean_unless_gamma_is_1():
    undiscounted, *rest = cases("episode")
    assert_close(undiscounted.theorem[False], undiscounted.theorem[True])
    for case in (*rest, *cases("window")):
        assert far_apart(case.theorem[False], case.theorem[True], 0.01)


def test_a_baseline_that_knows_the_action_is_biased_by_its_own_gradient():
    """By −Σ d Σ_a ∇π(a|s) b(s, a)."""
    for case in cases("episode"):
        mean = case.mean["reward_to_go minus a function of the action", "true", True]
        assert_close(mean - case.gradient, case.limit(np.broadcast_to(-PRICE, case.policy.shape), True))


@pytest.mark.parametrize("name", [name for name, estimator in ESTIMATORS.items() if estimator.bootstraps])
def test_a_truncated_window_with_the_true_value_at_its_end_is_unbiased_for_its_own_steps(name):
    """The mean is the theorem's sum over the steps watched, with the Q of the endless task.

    With a wrong value behind it there is a bias at every λ.
    """
    for case, kept in itertools.product(cases("window"), (True, False)):
        assert_close(case.mean[name, "true", kept], case.theorem[kept])
        assert far_apart(case.mean[name, "wrong", kept], case.theorem[kept])


@pytest.mark.parametrize("name", [name for name, estimator in ESTIMATORS.items() if not estimator.bootstraps])
def test_without_a_bootstrap_a_truncated_window_follows_the_rewards_within_it(name):
    """The gradient of the return of the first T steps: biased for its own steps, and for the task."""
    for case in cases("window"):
        mean = case.mean[name, "true", True]
        assert_close(mean, case.cut[True])
        assert far_apart(mean, case.theorem[True], 0.01)
        # what is missing: γ^(T − t) times the value where the window ends
        tail = np.zeros((STEPS + 1, case.mdp.num_states))
        tail[STEPS] = case.critic["true"][STEPS]
        lost = mean_lambda_return(case.mdp, case.policy, tail, 1.0) - mean_reward_to_go(case.mdp, case.policy)
        assert_close(case.theorem[True] - mean, case.limit(lost, True), 1e-9)


def test_windows_that_follow_each_other_add_up_to_the_whole(x64):
    """Two steps, truncated, and one that starts at t = 2: together the three steps in one, whatever λ."""
    mdp = cases("window")[0].mdp
    tau = numpy(tabular.enumerate_trajectories(mdp, STEPS))
    rng = np.random.default_rng(6)
    params = rng.normal(size=(3, 2))
    policy = np.asarray(tabular.policy_matrix(mdp, linear, params))
    probability = np.exp(tabular.trajectory_log_prob(mdp, policy, tau))
    traj, valid = numpy(tabular.to_transitions(mdp, policy, tau))
    value = np.asarray(tabular.state_value(mdp, policy))

    def mean(start, stop, lambda_):
        part, seen = jax.tree.map(lambda x: x[start:stop], (traj, valid))
        flags = part.terminated, part.truncated
        now, after = value[tau.state[start:stop]], value[tau.state[start + 1 : stop + 1]]
        advantage = pgjax.gae(part.reward, now, after, *flags, gamma=mdp.gamma, lambda_=lambda_)
        discount = pgjax.time_discount(*flags, gamma=mdp.gamma, start=start)
        weight = discount * advantage * (probability * len(probability))[None]
        return np.asarray(pgjax.policy_gradient(linear, params, part, weight, seen))

    whole = mean(0, STEPS, 0.6)
    for lambda_ in (0.0, 0.6, 1.0):
        assert_close(mean(0, 2, lambda_) + mean(2, STEPS, lambda_), whole)


# Baselines that are fitted on the batch: every batch of N trajectories.


class Batches(NamedTuple):
    """Every batch of N trajectories of a two-step problem, with its probability; B batches, weights Ψ = G."""

    mdp: tabular.TabularMDP
    params: np.ndarray
    to_go: np.ndarray  # [B, T, N]
    valid: np.ndarray  # [B, T, N]
    score: np.ndarray  # [B, T, N, P], γ^t in it
    state: np.ndarray  # [B, T, N]
    probability: np.ndarray  # [B]
    undiscounted: np.ndarray  # P(s_t = s), [T, S]
    discounted: np.ndarray  # γ^t P(s_t = s), [T, S]

    def mean(self, weight):
        """The expected gradient: (1/N) Σ_i Σ_t γ^t s Ψ, averaged over all batches."""
        weight = np.where(self.valid, weight, 0.0)
        return np.einsum("b,btn,btnp->p", self.probability, weight, self.score) / weight.shape[2]

    def exact(self, share=1.0):
        weight = self.discounted * share
        return np.asarray(tabular.policy_gradient(self.mdp, linear, self.params, state_weight=weight)).ravel()


@functools.cache
def batches(num, num_terminal):
    with jax.enable_x64(True):
        rng = np.random.default_rng(7)
        mdp = draw(rng, 0.8, num_states=2 + num_terminal, horizon=2, num_terminal=num_terminal)
        params = rng.normal(size=(mdp.observations.shape[-1], 2))
        tau = numpy(tabular.enumerate_trajectories(mdp))
        policy = np.asarray(tabular.policy_matrix(mdp, linear, params))
        probability = np.exp(tabular.trajectory_log_prob(mdp, policy, tau))
        traj, valid = numpy(tabular.to_transitions(mdp, policy, tau))
        flags = traj.terminated, traj.truncated
        to_go = np.asarray(pgjax.reward_to_go(traj.reward, *flags, gamma=mdp.gamma))
        discount = np.asarray(pgjax.time_discount(*flags, gamma=mdp.gamma))
        score = np.asarray(pgjax.score(linear, params, traj.obs, traj.action)).reshape(*valid.shape, -1)
        score = score * (discount * valid)[..., None]
        chosen = np.array(list(itertools.product(range(len(probability)), repeat=num)))
        columns = [np.moveaxis(x[:, chosen], 0, 1) for x in (to_go, valid, score, tau.state[:-1])]
        visits = [
            np.asarray(tabular.visitation(mdp, policy, normalized=False, discounted=d)) for d in (False, True)
        ]
        return Batches(mdp, params, *columns, probability[chosen].prod(1), *visits)


def alone(p, num):
    """What is left of the score times the weight when the mean of its cell is subtracted: E[1 − 1/n].

    n is 1 and how many of the other N − 1 trajectories are in the cell too, each with probability p.
    """
    return 1.0 - (1.0 - (1.0 - p) ** num) / (num * p)


SIZES = pytest.mark.parametrize(("num", "num_terminal"), [(2, 0), (2, 1), (3, 1)])


@SIZES
def test_leave_one_out_is_unbiased(num, num_terminal, x64):
    batch = batches(num, num_terminal)
    assert_close(batch.mean(batch.to_go), batch.exact())
    baseline = jax.jit(jax.vmap(pgjax.leave_one_out_baseline))(batch.to_go, batch.valid)
    assert_close(batch.mean(batch.to_go - np.asarray(baseline)), batch.exact())


@SIZES
def test_the_mean_per_time_scales_the_gradient_by_one_minus_one_over_the_number_alive(num, num_terminal, x64):
    """1 − 1/N where all are alive; else step t is scaled by E[1 − 1/n], n the number alive."""
    batch = batches(num, num_terminal)
    baseline = jax.jit(jax.vmap(pgjax.time_baseline))(batch.to_go, batch.valid)
    mean = batch.mean(batch.to_go - np.asarray(baseline))
    assert_close(mean, batch.exact(alone(batch.undiscounted.sum(1, keepdims=True), num)))
    if not num_terminal:
        assert_close(mean, (1 - 1 / num) * batch.exact())


@pytest.mark.parametrize("num_terminal", [0, 1])
def test_the_linear_baseline_with_a_feature_for_every_time_and_state_scales_each_by_what_it_shares(
    num_terminal, x64
):
    """Least squares is then the mean of each cell: (t, s) is scaled by E[1 − 1/n], n in the cell."""
    batch = batches(2, num_terminal)
    features = np.eye(4)[batch.state % 2 + 2 * np.arange(2)[:, None]]  # the terminal state is nowhere valid
    program = jax.jit(lambda *x: lax.map(lambda one: pgjax.linear_baseline(*one), x))
    baseline = np.asarray(program(features, batch.to_go, batch.valid))
    share = np.ones_like(batch.undiscounted)
    share[:, :2] = alone(batch.undiscounted[:, :2], 2)
    mean = batch.mean(batch.to_go - baseline)
    assert_close(mean, batch.exact(share), 1e-9)
    assert far_apart(mean, batch.exact(), 0.1)


def test_the_mean_over_all_steps_is_biased_by_its_own_part(x64):
    """By −E[Σ_t γ^t s_t · Σ_t' G_t'] / (N T) for episodes of T steps; the constant feature gives the same."""
    batch = batches(2, 0)
    baseline = np.asarray(jax.jit(jax.vmap(pgjax.constant_baseline))(batch.to_go, batch.valid))
    own = batch.to_go.sum(1, keepdims=True) / (2 * 2)
    mean = batch.mean(batch.to_go - baseline)
    assert_close(mean, batch.exact() - batch.mean(np.broadcast_to(own, batch.to_go.shape)))
    assert far_apart(mean, batch.exact(), 0.1)
    few = slice(None, None, 37)
    ones = np.ones((*batch.to_go[few].shape, 1))
    program = jax.jit(lambda *x: lax.map(lambda one: pgjax.linear_baseline(*one), x))
    np.testing.assert_allclose(program(ones, batch.to_go[few]), baseline[few], rtol=1e-10)


@pytest.mark.parametrize("num_terminal", [0, 1])
@pytest.mark.parametrize("per", ["trajectory", "time", "parameter"])
def test_the_optimal_baseline_of_another_trajectory_is_unbiased_and_its_own_is_not(per, num_terminal, x64):
    batch = batches(2, num_terminal)

    def fit(column):
        """The baseline of one trajectory of the two, `[B, T, 1, 1]` or `[B, 1, 1, P]`."""
        one = slice(column, column + 1)
        score, to_go, valid = batch.score[:, :, one], batch.to_go[:, :, one], batch.valid[:, :, one]
        found = jax.jit(jax.vmap(functools.partial(pgjax.optimal_baseline, per=per)))(score, to_go, valid)
        return np.asarray(found)[:, None, None] if per == "parameter" else np.asarray(found)[..., None]

    first, second = fit(0), fit(1)

    def mean(*baselines):
        """Of the first and of the second trajectory."""
        weight = np.stack([np.broadcast_to(b[:, :, 0], batch.score[:, :, 0].shape) for b in baselines], 2)
        weight = np.where(batch.valid[..., None], batch.to_go[..., None] - weight, 0.0)
        return np.einsum("b,btnp,btnp->p", batch.probability, weight, batch.score) / 2

    assert_close(mean(second, first), batch.exact())
    assert far_apart(mean(first, second), batch.exact(), 0.1)


# A bandit: the law of the bias in N.

NUMS = (1, 2, 4, 8, 16, 32)
REWARD, CHANCE = np.array([1.0, 0.3, -0.5]), np.array([0.5, 0.3, 0.2])


@functools.cache
def bandit():
    """The mean gradient of every weight, `[N, P]`: all ways to draw N arms, padded to the largest N."""
    scores = np.eye(3) - CHANCE
    counts, which, probability = [], [], []
    for index, num in enumerate(NUMS):
        for first, second in itertools.product(range(num + 1), repeat=2):
            if first + second <= num:
                count = (first, second, num - first - second)
                counts.append(count)
                which.append(index)
                probability.append(stats.multinomial.pmf(count, num, CHANCE))
    arm = np.array([np.pad(np.repeat(range(3), c), (0, NUMS[-1] - sum(c))) for c in counts])
    valid = np.arange(NUMS[-1]) < np.sum(counts, 1, keepdims=True)

    def gradients(arm, valid):
        reward, valid, score = (jnp.asarray(x)[None] for x in (jnp.asarray(REWARD)[arm], valid, scores[arm]))
        weights = {
            "leave one out": pgjax.leave_one_out_baseline(reward, valid),
            "constant": pgjax.constant_baseline(reward, valid),
            "time": pgjax.time_baseline(reward, valid),
            **{
                f"optimal per {per}": pgjax.optimal_baseline(score, reward, valid, per=per)
                for per in ("trajectory", "time", "parameter")
            },
        }
        weights = {
            name: reward - w if w.ndim == 2 else reward[..., None] - w[None, None]
            for name, w in weights.items()
        }
        weights["standardize"] = pgjax.standardize(reward, valid)
        weights["nothing"] = reward
        return {
            name: (jnp.where(valid[..., None], w.reshape(1, NUMS[-1], -1), 0.0) * score).sum((0, 1))
            / valid.sum()
            for name, w in weights.items()
        }

    with jax.enable_x64(True):
        scores = jnp.asarray(scores)
        found = numpy(jax.jit(jax.vmap(gradients))(arm, valid))
        exact = tabular.policy_gradient(tabular.bandit_mdp(REWARD), preferences, np.log(CHANCE))
    shares = np.array(probability) * (np.array(which) == np.arange(len(NUMS))[:, None])
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-12)
    return {name: shares @ g for name, g in found.items()}, np.asarray(exact)


def preferences(params, obs):
    return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], *params.shape)))


@pytest.mark.parametrize("name", ["nothing", "leave one out"])
def test_on_a_bandit_a_baseline_from_other_draws_is_unbiased_at_every_n(name):
    means, exact = bandit()
    for mean in means[name]:
        assert_close(mean, exact)


@pytest.mark.parametrize("name", ["constant", "time"])
def test_on_a_bandit_the_mean_scales_the_gradient_by_one_minus_one_over_n(name):
    means, exact = bandit()
    for num, mean in zip(NUMS, means[name], strict=True):
        np.testing.assert_allclose(mean, (1 - 1 / num) * exact, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("per", ["trajectory", "time", "parameter"])
def test_on_a_bandit_the_optimal_baseline_is_biased_by_order_one_over_n(per):
    """With one draw nothing is left; then N times the bias settles."""
    means, exact = bandit()
    bias = np.linalg.norm(means[f"optimal per {per}"] - exact, axis=1)
    np.testing.assert_allclose(bias[0], np.linalg.norm(exact), rtol=1e-10)
    assert (np.diff(bias) < 0).all()
    scaled = np.array(NUMS) * bias
    assert abs(scaled[-1] / scaled[-2] - 1) < 0.1
    assert scaled[-1] > 0.05 * np.linalg.norm(exact)


def test_on_a_bandit_standardize_follows_the_gradient_over_the_deviation_with_a_bias_of_order_one_over_n():
    """E → ∇J / σ(r). For N = 2 the weight is the sign of the difference, whatever its size."""
    means, exact = bandit()
    means = means["standardize"]
    deviation = np.sqrt(CHANCE @ REWARD**2 - (CHANCE @ REWARD) ** 2)
    np.testing.assert_array_equal(means[0], 0.0)
    sign = np.sign(REWARD[:, None] - REWARD[None])
    scores = np.eye(3) - CHANCE
    assert_close(means[1], np.einsum("i,j,ij,ip->p", CHANCE, CHANCE, sign, scores), 1e-7)  # 1e-8 in σ
    error = np.linalg.norm(means - exact / deviation, axis=1)
    assert (np.diff(error) < 0).all()
    assert abs(NUMS[-1] * error[-1] / (NUMS[-2] * error[-2]) - 1) < 0.1


# Sampled.

CONFIDENCE = 1 - 1e-4  # of each of the comparisons below, with a fixed seed


def test_sampled_episodes_have_these_means_too(x64):
    """Through the environment, a time limit and `rollout_episodes`; Hotelling's T² at confidence 1 − 1e-4.

    Batches of 4 whole episodes that end, or are truncated by a limit of three steps.
    """
    rng, num, size = np.random.default_rng(8), 8192, 4
    mdp = draw(rng, 0.9, num_states=4, num_actions=3)
    params = rng.normal(size=(4, 3))
    policy = np.asarray(tabular.policy_matrix(mdp, linear, params))
    true = np.asarray(tabular.state_value(mdp, policy))
    wrong = true + rng.normal(size=4)

    def act(key, obs):
        return linear(params, obs).sample_and_log_prob(key)

    @jax.jit
    def estimates(key):
        env = pgjax.envs.TimeLimit(mdp, STEPS)
        traj, valid = pgjax.rollout_episodes(key, act, env, None, num * size, STEPS + 2)
        flags = traj.terminated, traj.truncated
        discount = pgjax.time_discount(*flags, gamma=mdp.gamma)

        def advantage(table, lambda_):
            now, after = traj.obs @ table, traj.next_obs @ table
            return pgjax.gae(traj.reward, now, after, *flags, gamma=mdp.gamma, lambda_=lambda_)

        def in_batches(baseline, weight):
            shape = (len(weight), num, size)
            found = jax.vmap(baseline, in_axes=1, out_axes=1)(weight.reshape(shape), valid.reshape(shape))
            return weight - found.reshape(weight.shape)

        to_go = pgjax.reward_to_go(traj.reward, *flags, gamma=mdp.gamma)
        weights = {
            "reward_to_go": to_go,
            "gae, true": advantage(true, 0.6),
            "gae, wrong": advantage(wrong, 0.6),
            "leave one out": in_batches(pgjax.leave_one_out_baseline, to_go),
            "time": in_batches(pgjax.time_baseline, to_go),
        }

        def gradients(weight):
            each = pgjax.trajectory_gradients(linear, params, traj, discount * weight, valid)
            return each.reshape(num, size, -1).mean(1)

        return {name: gradients(weight) for name, weight in weights.items()}, traj.truncated.any(0).mean()

    found, cut = numpy(estimates(jax.random.key(9)))
    assert 0.1 < cut < 0.9
    watched = dataclasses.replace(mdp, horizon=STEPS)
    alive = np.asarray(tabular.visitation(watched, policy, normalized=False, discounted=False))
    visits = np.asarray(tabular.visitation(watched, policy, normalized=False))
    slope = np.asarray(jax.jacrev(lambda p: tabular.policy_matrix(mdp, linear, p))(params)).reshape(4, 3, -1)
    along = np.broadcast_to(policy, (STEPS, *policy.shape))
    numeric = numpy(mdp)
    short = mean_reward_to_go(numeric, along)
    share = alone(alive.sum(1, keepdims=True), size)

    def limit(target, share=1.0):
        return np.einsum("ts,tsa,sap->p", visits * share, target, slope)

    def critic(table):
        return mean_lambda_return(numeric, along, np.broadcast_to(table, (STEPS + 1, 4)), 0.6)

    limits = {
        "reward_to_go": limit(short),
        "gae, true": limit(critic(true)),
        "gae, wrong": limit(critic(wrong)),
        "leave one out": limit(short),
        "time": limit(short, share),
    }
    for name, gradients in found.items():
        assert agree(gradients, limits[name]), name
    assert not agree(found["gae, wrong"], limits["gae, true"])
    assert not agree(found["reward_to_go"], limits["gae, true"])
    assert not agree(found["time"], limits["reward_to_go"])


def agree(gradients, limit):
    """Hotelling's T², within the range of the covariance: one direction a state has no variance."""
    values, basis = np.linalg.eigh(np.cov(gradients.T) / len(gradients))
    kept = values > 1e-9 * values.max()
    off = (gradients.mean(0) - limit) @ basis
    assert np.abs(off[~kept]).max(initial=0.0) < 1e-9
    return (off[kept] ** 2 / values[kept]).sum() < stats.chi2.ppf(CONFIDENCE, kept.sum())
