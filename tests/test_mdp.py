import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pgjax
from pgjax import networks, tabular
from pgjax.algorithms import a2c
from pgjax.envs import is_discrete
from pgjax.tabular import TabularMDP
from pgjax.tabular.mdp import EnvState

KEY = jax.random.key(0)


def valid(**changes):
    """The arguments of a problem with three states, the last one terminal, and two actions."""
    arguments = {
        "transition": np.full((3, 2, 3), 1 / 3),
        "reward": np.arange(6.0).reshape(3, 2),
        "initial": np.array([0.25, 0.75, 0.0]),
        "gamma": 0.9,
        "horizon": None,
        "terminal": [False, False, True],
    }
    return arguments | changes


def changed(name, place, value):
    array = np.array(valid()[name])
    array[place] = value
    return {name: array}


# What is checked, and what is said.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed("transition", (1, 0), [0.5, 0.2, 0.2]), r"transition\[1, 0\] sums to 0.9; every row must"),
        (changed("transition", (0, 1), [1.5, -0.5, 0]), r"transition\[0, 1, 1\] is -0.5; a probability"),
        (
            changed("transition", (0, 1, 2), np.nan),
            r"transition\[0, 1, 2\] is nan; every entry must be finite",
        ),
        (changed("reward", (1, 1), np.inf), r"reward\[1, 1\] is inf"),
        (changed("initial", 0, 0.5), r"initial sums to 1.25"),
        (changed("initial", (slice(None),), [1.5, -0.5, 0]), r"initial\[1\] is -0.5"),
        (
            changed("initial", (slice(None),), [0.5, 0.25, 0.25]),
            r"initial\[2\] is 0.25, but state 2 is terminal",
        ),
        (
            {"transition": np.full((3, 2, 2), 0.5)},
            r"transition must have the shape \[S, A, S\], got \[3, 2, 2\]",
        ),
        ({"transition": np.zeros((0, 2, 0))}, r"got \[0, 2, 0\]"),
        (
            {"reward": np.zeros((2, 3))},
            r"reward must have the shape \[3, 2\] beside a transition \[3, 2, 3\]",
        ),
        ({"initial": np.ones(1)}, r"initial must have the shape \[3\]"),
        ({"gamma": np.full(2, 0.9)}, r"gamma must have the shape \[\]"),
        ({"terminal": [False, True]}, r"terminal must have the shape \[3\]"),
        ({"terminal": [True] * 3}, r"every state is terminal"),
        ({"features": np.zeros((2, 5))}, r"features need one row for each of the 3 states"),
        ({"features": np.full((3, 5), np.nan)}, r"features\[0, 0\] is nan"),
        ({"gamma": 1.0}, r"gamma = 1 needs a horizon.*give horizon=H"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"gamma": -0.1}, r"gamma must lie in \[0, 1\]"),
        ({"gamma": np.nan}, r"gamma must lie in \[0, 1\]"),
        ({"horizon": 0}, r"horizon must be at least 1"),
    ],
)
def test_what_is_no_problem_is_refused_with_the_place(changes, message):
    with pytest.raises(ValueError, match=message):
        TabularMDP(**valid(**changes))


def test_a_horizon_is_an_integer():
    with pytest.raises(TypeError):
        TabularMDP(**valid(horizon=2.5))
    assert TabularMDP(**valid(horizon=np.int64(2), gamma=1.0)).horizon == 2


def test_rows_that_were_normalised_in_float32_pass(rng, x64):
    rows = rng.dirichlet(np.ones(200), (200, 3)).astype(np.float32)
    rows = rows / rows.sum(-1, keepdims=True)
    mdp = TabularMDP(rows, np.zeros((200, 3)), rows[0, 0], 0.9)
    assert mdp.transition.dtype == mdp.reward.dtype == mdp.gamma.dtype == jnp.float64


def test_the_rows_of_terminal_states_may_hold_anything():
    rows, rewards = changed("transition", 2, np.nan), changed("reward", 2, np.inf)
    TabularMDP(**valid(**rows, **rewards))


def test_shapes_are_checked_and_values_pass_where_they_are_traced():
    def wrong_values(x):
        return TabularMDP(**valid(transition=x * jnp.ones((3, 2, 3)), gamma=1.0 + x)).gamma

    assert jax.jit(wrong_values)(1.0) == 2.0
    with pytest.raises(ValueError, match="shape"):
        jax.jit(lambda x: TabularMDP(**valid(reward=x * jnp.ones((3, 3)))).gamma)(1.0)


# A problem is a pytree.


def test_a_problem_goes_through_every_transformation():
    mdp = TabularMDP(**valid(features=np.arange(6).reshape(3, 2)))
    leaves, structure = jax.tree.flatten(mdp)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, TabularMDP)
    assert again.horizon is None
    np.testing.assert_array_equal(again.features, mdp.features)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(mdp)[0]]
    assert paths == [".transition", ".reward", ".initial", ".gamma", ".terminal", ".features"]
    shapes = jax.eval_shape(lambda m: m, mdp)
    assert shapes.reward.shape == (3, 2)
    assert jax.tree.map(lambda x: None, mdp).reward is None
    gradient = jax.grad(lambda m: m.reward.sum() * m.gamma, allow_int=True)(mdp)
    np.testing.assert_allclose(gradient.gamma, 15.0)


def test_the_horizon_is_static():
    lengths = [jax.jit(lambda m: m.observations)(TabularMDP(**valid(horizon=h))).shape[0] for h in (2, 3)]
    assert lengths == [2, 3]


def test_a_problem_is_frozen_and_can_be_changed_in_a_copy():
    mdp = TabularMDP(**valid())
    with pytest.raises(dataclasses.FrozenInstanceError):
        mdp.gamma = 0.5
    assert dataclasses.replace(mdp, horizon=7).horizon == 7
    with pytest.raises(ValueError, match="sums to"):
        dataclasses.replace(mdp, initial=np.zeros(3))
    assert mdp != dataclasses.replace(mdp)  # by identity, so that it can be a static argument
    assert hash(mdp) == hash(mdp)


def test_problems_are_constructed_under_vmap_and_jit():
    def problem(key, gamma):
        return tabular.random_mdp(key, 4, 3, gamma, num_terminal=1)

    many = jax.jit(jax.vmap(problem))(jax.random.split(KEY, 5), jnp.linspace(0.1, 0.9, 5))
    assert many.transition.shape == (5, 4, 3, 4)
    assert (many.num_states, many.num_actions) == (4, 3)
    first = problem(jax.random.split(KEY, 5)[0], 0.1)
    np.testing.assert_allclose(many.transition[0], first.transition, rtol=1e-6)
    assert "4 states, 3 actions" in repr(many)
    shaped = jax.vmap(lambda slip: tabular.grid_mdp(["S.G"], 0.9, slip=slip))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(shaped.transition[:, 0, 1], [[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])


def test_without_features_states_are_one_hot_and_with_a_horizon_the_time_follows():
    np.testing.assert_array_equal(TabularMDP(**valid()).observations, np.eye(3))
    features = np.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_array_equal(TabularMDP(**valid(features=features)).observations, features)
    timed = TabularMDP(**valid(features=features, horizon=2))
    assert timed.observations.shape == (2, 3, 6)
    np.testing.assert_array_equal(timed.observations[1, 2], [8.0, 9.0, 10.0, 11.0, 0.0, 1.0])
    np.testing.assert_array_equal(timed.observe(2, 2), [8.0, 9.0, 10.0, 11.0, 0.0, 0.0])


# The constructors.


def test_a_random_problem_has_what_was_asked_for(x64):
    mdp = tabular.random_mdp(KEY, 6, 3, 0.8, horizon=5, num_terminal=2, concentration=0.1)
    np.testing.assert_allclose(mdp.transition.sum(-1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(mdp.terminal, [False] * 4 + [True] * 2)
    np.testing.assert_array_equal(mdp.initial[4:], 0.0)
    assert mdp.horizon == 5
    assert (mdp.reward >= 0).all()
    assert (mdp.reward <= 1).all()
    smooth = tabular.random_mdp(KEY, 6, 3, 0.8, concentration=100.0)
    assert mdp.transition.max(-1).mean() > 0.6 > 0.3 > smooth.transition.max(-1).mean()
    with pytest.raises(ValueError, match="at least one of the 6 states"):
        tabular.random_mdp(KEY, 6, 3, 0.8, num_terminal=6)


def test_the_chain_moves_left_and_right_and_pays_at_its_ends():
    mdp = tabular.chain_mdp(4, 0.9, slip=0.1, left_reward=2.0, right_reward=10.0, start=1, horizon=3)
    np.testing.assert_allclose(mdp.transition[0], [[0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(mdp.transition[2], [[0, 0.9, 0, 0.1], [0, 0.1, 0, 0.9]], rtol=1e-6)
    np.testing.assert_allclose(mdp.reward, [[1.8, 0.2], [0, 0], [0, 0], [1.0, 9.0]], rtol=1e-6)
    np.testing.assert_array_equal(mdp.initial, [0, 1, 0, 0])
    assert mdp.horizon == 3
    away = tabular.chain_mdp(5, 0.9)
    np.testing.assert_allclose(tabular.optimal_value(away)[0], 0.9**4 * 10, rtol=1e-5)


def test_the_grid_has_walls_goals_pits_and_cliffs():
    mdp = tabular.grid_mdp(
        ["S#G", ".CX", "..S"],
        0.9,
        step_reward=-0.1,
        goal_reward=5.0,
        pit_reward=-5.0,
        cliff_reward=-2.0,
    )
    #  states: 0 S, 1 G, 2 ., 3 X, 4 ., 5 ., 6 S
    assert mdp.num_states == 7
    np.testing.assert_array_equal(np.flatnonzero(mdp.terminal), [1, 3])
    np.testing.assert_allclose(mdp.initial, [0.5, 0, 0, 0, 0, 0, 0.5])
    up, right, down, left = range(4)
    expected = {
        (0, up): (0, -0.1),
        (0, right): (0, -0.1),
        (0, down): (2, -0.1),
        (2, left): (2, -0.1),
        (2, up): (0, -0.1),
        (6, up): (3, -5.0),
        (6, down): (6, -0.1),
        (4, right): (5, -0.1),
    }
    for (state, action), (following, reward) in expected.items():
        assert mdp.transition[state, action, following] == 1.0
        np.testing.assert_allclose(mdp.reward[state, action], reward, rtol=1e-6)
    for fall in ((2, right), (5, up)):
        np.testing.assert_allclose(mdp.transition[fall], mdp.initial)
        np.testing.assert_allclose(mdp.reward[fall], -2.0)


def test_the_slip_of_the_grid_goes_to_both_sides():
    mdp = tabular.grid_mdp(["...", ".S.", "..G"], 0.9, slip=0.2)
    np.testing.assert_allclose(mdp.transition[4, 0], [0, 0.8, 0, 0.1, 0, 0.1, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(mdp.reward[5], [0.0, 0.1, 0.8, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (["S.", "."], "one length"),
        ([], "one length"),
        (["S?"], "Unknown cell '\\?'.*Known are S"),
        ([".G"], "write S"),
    ],
)
def test_a_layout_that_cannot_be_read_is_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        tabular.grid_mdp(layout, 0.9)


def test_the_cliff_walk_is_that_of_the_book(x64):
    mdp = tabular.cliff_mdp(1.0, horizon=50)
    assert mdp.num_states == 38
    assert tabular.optimal_value(mdp)[0] @ mdp.initial == -13.0  # up, eleven times right, down
    start, goal = 36, 37
    np.testing.assert_array_equal(np.flatnonzero(mdp.initial), [start])
    np.testing.assert_array_equal(np.flatnonzero(mdp.terminal), [goal])
    assert (mdp.reward[start, 1], mdp.transition[start, 1, start]) == (-100.0, 1.0)
    assert (mdp.reward[25, 2], mdp.transition[25, 2, start]) == (-100.0, 1.0)
    assert (mdp.reward[35, 2], mdp.transition[35, 2, goal]) == (-1.0, 1.0)


def test_the_bandit_is_over_after_one_step(x64):
    mdp = tabular.bandit_mdp([0.2, 0.5, 1.0])
    np.testing.assert_allclose(tabular.state_value(mdp, np.array([[0.5, 0.25, 0.25]])), [[0.475], [0.0]])
    assert mdp.observations.shape == (1, 1, 2)
    with pytest.raises(ValueError, match=r"shape \[A\], got \[1, 2\]"):
        tabular.bandit_mdp([[1.0, 2.0]])


def test_kakades_problem_pays_for_staying():
    mdp = tabular.kakade_mdp(0.5, initial=(0.2, 0.8))
    stay = jnp.eye(2)[jnp.array([0, 0])]
    np.testing.assert_allclose(tabular.state_value(mdp, stay), [2.0, 4.0])
    np.testing.assert_allclose(tabular.state_value(mdp, 1 - stay), [0.0, 0.0])
    np.testing.assert_allclose(mdp.initial, [0.2, 0.8])


# The same problem as an environment.


def uniform(mdp, num_envs):
    def policy(key, obs):
        action = jax.random.randint(key, (num_envs,), 0, mdp.num_actions)
        return action, jnp.full(num_envs, -np.log(mdp.num_actions))

    return policy


def frequencies_agree(counts, probabilities):
    """Hoeffding's bound with a union over all cells; all of them hold with a confidence of 1 − 1e−6."""
    n = counts.sum(-1, keepdims=True)
    bound = np.sqrt(np.log(2 * counts.size / 1e-6) / (2 * n))
    assert (np.abs(counts / n - probabilities) < bound).all()
    assert (counts[np.asarray(probabilities) == 0] == 0).all()


@functools.cache
def one_step_counts(mdp, samples=4000):
    """How often each next state followed each state and action, `[S, A, S]`, and how often one started."""

    @jax.jit
    def count(key):
        step_key, reset_key = jax.random.split(key)

        def following(key, state, action):
            final = mdp.step(key, EnvState(state, jnp.zeros((), jnp.int32)), action)[-1]["final_observation"]
            return final.argmax(-1)

        many = jax.vmap(following, (0, None, None))
        every = jax.vmap(jax.vmap(many, (None, None, 0)), (None, 0, None))
        states, actions = (jnp.arange(n, dtype=jnp.int32) for n in (mdp.num_states, mdp.num_actions))
        landed = every(jax.random.split(step_key, samples), states, actions)
        started = jax.vmap(mdp.reset)(jax.random.split(reset_key, samples))[1].state
        return jax.nn.one_hot(landed, mdp.num_states).sum(2), jax.nn.one_hot(started, mdp.num_states).sum(0)

    return jax.tree.map(np.asarray, count(jax.random.key(3)))


def test_what_the_environment_does_has_the_probabilities_of_the_problem():
    sparse = tabular.random_mdp(KEY, 5, 3, 0.9, concentration=0.3)
    transition = jnp.where(sparse.transition < 0.05, 0.0, sparse.transition)
    transition = transition / transition.sum(-1, keepdims=True)
    initial = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    mdp = TabularMDP(transition, sparse.reward, initial, 0.9)
    counts, starts = one_step_counts(mdp)
    assert (np.asarray(transition) == 0).any()
    frequencies_agree(counts, np.asarray(transition))
    frequencies_agree(starts, initial)


def test_a_state_of_probability_zero_is_never_drawn():
    """Whatever the place of the zeros, and for the largest and the smallest random number."""
    from pgjax.tabular.mdp import _draw

    for probs in ([0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0.5, 0, 0.5, 0], [0.1] * 10 + [0] * 3):
        probs = jnp.array(probs, float)
        drawn = jax.vmap(lambda key, p=probs: _draw(key, p))(jax.random.split(KEY, 200))
        assert drawn.dtype == jnp.int32
        assert (probs[drawn] > 0).all()


def test_an_episode_ends_at_a_terminal_state_and_starts_anew_in_the_same_step():
    mdp = tabular.grid_mdp(["SG"], 0.9)
    obs, state = mdp.reset(KEY)
    np.testing.assert_array_equal(obs, [1, 0])
    obs, state, reward, terminated, truncated, info = mdp.step(KEY, state, 1, None)
    np.testing.assert_array_equal(obs, [1, 0])
    np.testing.assert_array_equal(info["final_observation"], [0, 1])
    assert (float(reward), bool(terminated), bool(truncated)) == (1.0, True, False)
    assert (int(state.state), int(state.time)) == (0, 0)
    obs, state, reward, terminated, truncated, info = mdp.step(KEY, state, 3, None)
    assert (float(reward), bool(terminated), int(state.time)) == (0.0, False, 1)


def test_the_horizon_terminates_and_the_clock_is_in_sight():
    mdp = dataclasses.replace(tabular.kakade_mdp(), horizon=3)
    traj, valid = jax.jit(
        lambda key: pgjax.rollout_episodes(key, uniform(mdp, 4), mdp, None, num_episodes=4, max_steps=5)
    )(KEY)
    np.testing.assert_array_equal(valid, np.arange(5)[:, None] < np.full(4, 3))
    np.testing.assert_array_equal(traj.terminated[:3], [[False] * 4, [False] * 4, [True] * 4])
    assert not traj.truncated.any()
    np.testing.assert_array_equal(traj.obs[:3, 0, 2:], np.eye(3))
    np.testing.assert_array_equal(traj.next_obs[2, :, 2:], 0.0)
    np.testing.assert_array_equal(traj.obs[3, 0, 2:], [1, 0, 0])


@pytest.mark.parametrize("kind", ["horizon", "terminal"])
def test_the_mean_return_of_whole_episodes_is_the_objective(kind):
    """Within 5 standard errors: a confidence above 1 − 1e−6 for the fixed seed."""
    if kind == "horizon":
        mdp, steps = tabular.random_mdp(KEY, 5, 3, 0.9, horizon=6), 6
    else:
        mdp, steps = tabular.grid_mdp(["S.G", ".#X", "..."], 0.9, slip=0.2, step_reward=-0.05), 400
    num = 4000

    @jax.jit
    def returns(key):
        traj, _ = pgjax.rollout_episodes(key, uniform(mdp, num), mdp, None, num, steps)
        return pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=mdp.gamma)[0]

    found = np.asarray(returns(jax.random.key(5)))
    value = tabular.state_value(mdp, np.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions))
    exact = float(mdp.initial @ (value if mdp.horizon is None else value[0]))
    assert abs(found.mean() - exact) < 5 * found.std() / np.sqrt(num)


def test_spaces_say_what_there_is():
    mdp = TabularMDP(**valid(features=np.zeros((3, 4, 2))))
    assert is_discrete(mdp.action_space())
    assert mdp.action_space(None).n == 2
    space = mdp.observation_space(None)
    assert not is_discrete(space)
    assert (space.shape, space.dtype) == ((4, 2), jnp.float32)
    numbered = TabularMDP(**valid(features=np.array([4, 0, 2])))
    assert numbered.observation_space().n == 5
    assert dataclasses.replace(mdp, horizon=5).observation_space().shape == (13,)


def test_environments_map_over_problems():
    mdps = jax.vmap(lambda key: tabular.random_mdp(key, 4, 2, 0.9, num_terminal=1))(jax.random.split(KEY, 3))

    def rewards(mdp, key):
        return pgjax.rollout_episodes(key, uniform(mdp, 2), mdp, None, 2, 5)[0].reward

    assert jax.jit(jax.vmap(rewards))(mdps, jax.random.split(KEY, 3)).shape == (3, 5, 2)


@pytest.mark.parametrize("horizon", [None, 5])
def test_an_algorithm_of_the_library_learns_in_a_problem(horizon):
    """A2C on a chain whose better end is on the right: J rises above that of always going left."""
    mdp = tabular.chain_mdp(3, 0.9, slip=0.1, left_reward=0.2, horizon=horizon)
    torso = networks.MLP((16,))
    actor = networks.CategoricalActor(2, torso)
    network = networks.ActorCritic(actor, networks.Critic(networks.MLP((16,))))
    algorithm = a2c.make(mdp, None, network, optax.adam(0.02), num_envs=16, gamma=0.9)

    @jax.jit
    def learn(key):
        state, metrics = pgjax.train(key, algorithm, 150)
        return state.learned.params, metrics["env_steps"].sum()

    params, steps = learn(jax.random.key(1))
    assert steps == 150 * 16 * 5

    def value(policy):
        value = tabular.state_value(mdp, policy)
        return float(mdp.initial @ (value if horizon is None else value[0]))

    learned = tabular.policy_matrix(mdp, lambda p, obs: network.apply(p, obs)[0], params)
    best = float(mdp.initial @ jnp.atleast_2d(tabular.optimal_value(mdp))[0])
    left = value(np.eye(2)[np.zeros(3, int)])
    assert value(np.full((3, 2), 0.5)) < best
    assert left < value(learned) <= best + 1e-5
    assert value(learned) > 0.9 * best
