import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pgjax
from pgjax import envs, tabular

KEY = jax.random.key(0)


def play(env, env_params, num_actions, num_envs, num_steps, seed=0):
    """Steps of the environment itself under uniformly random actions, `[T, N, ...]`."""

    def policy(key, obs):
        return jax.random.randint(key, (num_envs,), 0, num_actions), jnp.zeros(num_envs)

    @jax.jit
    def run(key):
        carry = pgjax.reset_envs(key, env, env_params, num_envs)
        return pgjax.rollout(key, carry, policy, env, env_params, num_steps)[1]

    with jax.numpy_rank_promotion("allow"):  # gymnax's own business
        return jax.tree.map(np.asarray, run(jax.random.key(seed)))


def numbers(mdp, obs, candidates):
    """The states among `candidates` that show given observations; each must be one of them, and only one."""
    features = np.asarray(mdp.features)[candidates].reshape(len(candidates), -1)
    flat = obs.reshape(-1, features.shape[1])
    same = (flat[:, None] == features[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return candidates[same.argmax(1)].reshape(obs.shape[: obs.ndim - np.asarray(mdp.features)[0].ndim])


DETERMINISTIC = {
    "Catch-bsuite": ({}, 220),
    "DeepSea-bsuite": ({"size": 5}, 20),
    "FrozenLake-misc": ({"is_slippery": False}, 16),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_step_of_the_environment_is_that_of_the_table(name):
    options, num_states = DETERMINISTIC[name]
    env, env_params = envs.make(name, **options)
    mdp = tabular.from_gymnax(env, env_params, gamma=0.9)
    assert mdp.num_states == num_states
    traj = play(env, env_params, mdp.num_actions, 30, 40)
    live, ends = np.flatnonzero(~mdp.terminal), np.flatnonzero(mdp.terminal)
    state = numbers(mdp, traj.obs, live)
    row = np.asarray(mdp.transition)[state, traj.action]
    following = row.argmax(-1)
    np.testing.assert_array_equal(row.max(-1), 1.0)
    np.testing.assert_allclose(np.asarray(mdp.reward)[state, traj.action], traj.reward, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(mdp.features)[following], traj.next_obs)
    np.testing.assert_array_equal(np.isin(following, ends), traj.terminated)
    assert traj.terminated.any()
    assert len(np.unique(state)) > 0.5 * len(live)
    assert mdp.gamma == np.float32(0.9)


def test_the_start_of_catch_is_uniform_over_the_columns():
    env, env_params = envs.make("Catch-bsuite")
    mdp = tabular.from_gymnax(env, env_params, gamma=0.9)
    np.testing.assert_allclose(mdp.initial[:5], 0.2, rtol=1e-6)
    with jax.numpy_rank_promotion("allow"):
        obs, _ = jax.vmap(env.reset, (0, None))(jax.random.split(KEY, 4000), env_params)
    started = numbers(mdp, np.asarray(obs), np.arange(5))
    agree(np.bincount(started, minlength=5), np.asarray(mdp.initial[:5]))
    # a player who sees the ball catches it, whatever the column: nine steps to the reward of 1
    np.testing.assert_allclose(tabular.optimal_value(mdp) @ mdp.initial, 0.9**8, rtol=1e-5)


def agree(counts, probabilities):
    """Hoeffding's bound with a union over all cells; all of them hold with a confidence of 1 − 1e−6."""
    n = np.maximum(counts.sum(-1, keepdims=True), 1)
    bound = np.sqrt(np.log(2 * counts.size / 1e-6) / (2 * n))
    assert (np.abs(counts / n - probabilities) < bound)[counts.sum(-1) > 0].all()
    assert (counts[probabilities == 0] == 0).all()


def test_slipping_on_the_frozen_lake_has_the_frequencies_of_the_environment():
    env, env_params = envs.make("FrozenLake-misc", success_rate=0.5)
    mdp = tabular.from_gymnax(env, env_params, gamma=0.9)
    traj = play(env, env_params, 4, 200, 200)
    state, following = numbers(mdp, traj.obs, np.arange(16)), numbers(mdp, traj.next_obs, np.arange(16))
    counts, paid = np.zeros((16, 4, 16)), np.zeros((16, 4))
    np.add.at(counts, (state, traj.action, following), 1)
    np.add.at(paid, (state, traj.action), traj.reward)
    live = ~np.asarray(mdp.terminal)
    agree(counts[live], np.asarray(mdp.transition)[live])
    # the only reward is 1 for the goal: its mean is the probability of getting there
    goal = numbers(mdp, np.array([15]), np.arange(16))[0]
    np.testing.assert_allclose(mdp.reward[live], mdp.transition[live][..., goal], atol=1e-6)
    np.testing.assert_array_equal(paid, counts[..., goal])
    np.testing.assert_array_equal(np.isin(following, np.flatnonzero(mdp.terminal)), traj.terminated)


def test_the_optimum_of_the_frozen_lake_is_the_known_one():
    """4 × 4, slippery: the best policy reaches the goal within 100 steps in about 74 % of all episodes."""
    mdp = tabular.from_gymnax(
        *envs.make("FrozenLake-misc"), gamma=1 - 1e-9 if jax.config.x64_enabled else 0.999
    )

    long = dataclasses.replace(mdp, gamma=1.0, horizon=100, features=None)
    np.testing.assert_allclose(tabular.optimal_value(long)[0] @ long.initial, 0.74, atol=0.02)


def test_the_stochastic_deep_sea_has_the_frequencies_of_the_environment():
    env, env_params = envs.make("DeepSea-bsuite", size=4, deterministic=False)
    mdp = tabular.from_gymnax(env, env_params, gamma=0.9)
    traj = play(env, env_params, 2, 500, 160)
    live = np.flatnonzero(~mdp.terminal)
    state, following = numbers(mdp, traj.obs, live), np.full(traj.action.shape, -1)
    following[~traj.terminated] = numbers(mdp, traj.next_obs[~traj.terminated], live)
    counts = np.zeros((mdp.num_states, 2, mdp.num_states + 1))
    np.add.at(counts, (state, traj.action, following), 1)
    counts[..., -1] = counts[..., following.max() + 1 :].sum(-1)  # the bottom shows nothing: all its cells
    probabilities = np.asarray(mdp.transition).copy()
    bottom = probabilities[..., np.asarray(mdp.terminal)].sum(-1, keepdims=True)
    agree(
        np.concatenate([counts[..., live], counts[..., -1:]], -1)[live],
        np.concatenate([probabilities[..., live], bottom], -1)[live],
    )
    # rewards carry noise of variance 1 at most: within 5 standard errors everywhere
    number, total = np.zeros((mdp.num_states, 2)), np.zeros((mdp.num_states, 2))
    np.add.at(number, (state, traj.action), 1)
    np.add.at(total, (state, traj.action), traj.reward)
    error = np.abs(total / np.maximum(number, 1) - np.asarray(mdp.reward)) * np.sqrt(number)
    assert error[live].max() < 5.0


def test_under_float64_the_table_is_float64(x64):
    mdp = tabular.from_gymnax(*envs.make("FrozenLake-misc"), gamma=0.9)
    assert mdp.transition.dtype == jnp.float64
    np.testing.assert_allclose(mdp.transition[0, 0].max(), 2 / 3, rtol=1e-15)


# Environments of our own: what is proved and what is refused.


class Walk:
    """A row of four cells with an end at the right, in the manner of gymnax."""

    name = "Walk"

    def __init__(self, rule=None, start=None, show=None):
        self.rule, self.start, self.show = rule, start, show

    def reset_env(self, key, params):
        state = {"place": jnp.zeros((), jnp.int32), "time": 0, "hint": jnp.zeros(2)}
        if self.start is not None:
            state["place"] = jnp.asarray(self.start(key), jnp.int32)
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        move = jnp.where(action == 1, 1, -1)
        reward = jnp.zeros(())
        if self.rule is not None:
            move, reward = self.rule(key, state, move)
        place = jnp.clip(state["place"] + move, 0, 3)
        hint = state["hint"].at[0].add(1.0)
        after = {"place": place, "time": state["time"] + 1, "hint": hint}
        return self.observe(key, after, action, params), after, reward + (place == 3), place == 3, {}

    def observe(self, key, state, action, params):
        if self.show is not None:
            return self.show(key, state)
        return jax.nn.one_hot(state["place"], 4)

    def action_space(self, params):
        return tabular.mdp.Discrete(2)


def read(env, **options):
    return tabular.from_gymnax(env, None, gamma=0.9, **options)


def test_counters_that_nothing_depends_on_are_dropped():
    mdp = read(Walk())
    assert mdp.num_states == 4
    np.testing.assert_array_equal(mdp.transition[:, 1].argmax(-1), [1, 2, 3, 3])
    np.testing.assert_array_equal(mdp.reward, [[0, 0], [0, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(mdp.terminal, [False, False, False, True])


def test_a_state_that_shows_different_things_is_several_states():
    def show_action_too(key, state):
        return jnp.stack([state["place"].astype(float), state["hint"][0]])

    with pytest.raises(ValueError, match="more than max_states=50"):  # the counter is shown: there is no end
        read(Walk(show=show_action_too), max_states=50)


def test_a_chance_that_no_sample_would_show_is_refused():
    def rare(key, state, move):
        return jnp.where(jax.random.uniform(key) < 1e-30, -move, move), 0.0

    with pytest.raises(ValueError, match="The next state of Walk may depend on chance"):
        read(Walk(rare))


def test_a_random_reward_is_refused():
    with pytest.raises(ValueError, match="The reward of Walk may depend on chance"):
        read(Walk(lambda key, state, move: (move, jax.random.normal(key))))


def test_a_hidden_random_state_is_refused():
    """The observation does not show the place, but the next step depends on it."""

    def rule(key, state, move):
        return jax.random.randint(key, (), -1, 2), 0.0

    with pytest.raises(ValueError, match=r"The (next state|termination) of Walk"):
        read(Walk(rule, show=lambda key, state: jnp.zeros(1)))


PROVABLE = {
    "a branch that is not taken": lambda key, state: jnp.where(
        state["place"] > 9, jax.random.normal(key), 1.0
    ),
    "select": lambda key, state: lax.select(state["place"] < 9, 2.0, jax.random.normal(key)),
    "or": lambda key, state: jnp.where((jax.random.uniform(key) < 0.5) | (state["place"] < 9), 1.0, 2.0),
    "and": lambda key, state: jnp.where((jax.random.uniform(key) < 0.5) & (state["place"] > 9), 1.0, 2.0),
    "times zero": lambda key, state: 1.0 + jax.random.normal(key) * (state["place"] > 9),
    "not used": lambda key, state: jax.random.normal(key, (3,))[:0].sum() + 1.0,
    "one of an array": lambda key, state: jnp.stack([jax.random.normal(key), 3.0])[1],
    "nested": lambda key, state: jax.jit(lambda k: jax.nn.relu(1.0) + 0 * jax.random.normal(k))(key),
}


@pytest.mark.parametrize("kind", PROVABLE)
def test_chance_that_makes_no_difference_is_no_obstacle(kind):
    mdp = read(Walk(lambda key, state, move: (move, PROVABLE[kind](key, state))))
    np.testing.assert_array_equal(mdp.transition, read(Walk()).transition)
    assert len(np.unique(mdp.reward[:2])) == 1


UNPROVABLE = {
    "loop": lambda key, state: lax.fori_loop(0, 2, lambda i, x: x + jax.random.normal(key), 0.0),
    "branch": lambda key, state: lax.cond(jax.random.uniform(key) < 0.5, lambda: 1.0, lambda: 2.0),
    "gather": lambda key, state: jnp.arange(3.0)[jax.random.randint(key, (), 0, 3)],
    "reduction": lambda key, state: jax.random.normal(key, (3,)).max(),
}


@pytest.mark.parametrize("kind", UNPROVABLE)
def test_chance_is_found_behind_every_kind_of_operation(kind):
    with pytest.raises(ValueError, match="The reward of Walk"):
        read(Walk(lambda key, state, move: (move, UNPROVABLE[kind](key, state))))


def test_a_random_start_is_refused_or_given():
    env = Walk(start=lambda key: jax.random.randint(key, (), 0, 3))
    with pytest.raises(ValueError, match=r"start of Walk.*give initial=\(states, probabilities\)"):
        read(env)
    states = {"place": np.array([2, 0, 2]), "time": np.zeros(3), "hint": np.zeros((3, 2))}
    mdp = read(env, initial=(states, [0.25, 0.5, 0.25]))
    np.testing.assert_allclose(mdp.initial, [0.5, 0.5, 0.0, 0.0])  # the two that are alike are one
    np.testing.assert_array_equal(mdp.features[:2], np.eye(4)[[2, 0]])


def test_a_class_derived_from_a_known_one_is_not_taken_for_it():
    from gymnax.environments.bsuite.catch import Catch

    class Other(Catch):
        pass

    with pytest.raises(ValueError, match="start of Catch-bsuite may depend on chance"):
        tabular.from_gymnax(Other(), Catch().default_params, gamma=0.9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CartPole-v1", {}, "start of CartPole-v1 may depend on chance"),
        ("Pendulum-v1", {}, "no finite set of actions"),
        ("DeepSea-bsuite", {"sample_action_map": True}, "start of DeepSea-bsuite may depend on chance"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        tabular.from_gymnax(*envs.make(name, **options), gamma=0.9)


def test_observations_that_are_no_arrays_and_states_that_hold_keys_are_refused():
    with pytest.raises(ValueError, match="no single arrays"):
        read(Walk(show=lambda key, state: {"a": jnp.zeros(1), "b": jnp.zeros(1)}))

    class Keyed(Walk):
        def reset_env(self, key, params):
            obs, state = super().reset_env(key, params)
            return obs, {**state, "key": key}

    with pytest.raises(ValueError, match="keeps a random key"):
        read(Keyed())
