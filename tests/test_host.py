"""Gymnasium's environments, stepped by the host: each step once, in order, and with gymnasium's own flags."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import pgjax
from pgjax import envs, experiment, training

KEY = jax.random.key(0)


class Clock(gymnasium.Env):
    """Shows the time within the episode behind a number that counts the episodes; notes what it is told.

    Args:
        log: of the times at which it is reset and stepped.
        ends: the step that terminates.
        limit: the step that truncates.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, log=None, ends=100, limit=100):
        self.log = [] if log is None else log
        self.ends, self.limit = ends, limit
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        self.episode, self.time = self.episode + 1, 0
        self.log.append(("reset", seed))
        return np.array([self.episode, 0.0]), {}

    def step(self, action):
        self.time += 1
        self.log.append(("step", int(action)))
        obs = np.array([self.episode, self.time])
        return obs, float(self.time), self.time == self.ends, self.time == self.limit, {}


def vector_of(make_one, mode=AutoresetMode.SAME_STEP):
    return lambda num: SyncVectorEnv([make_one] * num, autoreset_mode=mode)


def counting_policy(num_envs, num_actions=3):
    """The action is the time that is shown."""

    def policy(key, obs):
        return obs[:, 1].astype(jnp.int32) % num_actions, jnp.zeros(num_envs)

    return policy


def play(env, policy, num_envs, num_steps, num_rollouts=2):
    @jax.jit
    def run(key, carry):
        return pgjax.rollout(key, carry, policy, env, None, num_steps)

    carry = jax.jit(lambda key: pgjax.reset_envs(key, env, None, num_envs))(KEY)
    rollouts = []
    for i in range(num_rollouts):
        carry, traj, _ = run(jax.random.key(i), carry)
        rollouts.append(traj)
    assert run._cache_size() == 1
    return jax.tree.map(lambda *x: np.concatenate(x), *rollouts)


@pytest.mark.parametrize(
    ("ends", "limit", "terminates"), [(3, 100, True), (100, 3, False), (3, 3, True), (4, 3, False)]
)
def test_the_flags_are_gymnasiums_and_termination_wins(ends, limit, terminates):
    env, _ = envs.from_gymnasium(vector_of(lambda: Clock(ends=ends, limit=limit)))
    traj = play(env, counting_policy(2), 2, 4)
    over = np.stack([np.arange(1, 9) % 3 == 0] * 2, 1)
    np.testing.assert_array_equal(traj.terminated, over & terminates)
    np.testing.assert_array_equal(traj.truncated, over & (not terminates))
    # next_obs goes on with the episode, obs with the one after
    np.testing.assert_array_equal(traj.next_obs, traj.obs + np.array([0, 1], np.float32))
    np.testing.assert_array_equal(traj.obs[:, 0, 1], [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(traj.obs[1:, 0, 0] - traj.obs[:-1, 0, 0], over[:-1, 0])
    np.testing.assert_array_equal(traj.reward, traj.next_obs[..., 1])
    assert traj.obs.dtype == traj.reward.dtype == np.float32


def test_every_step_happens_once_in_order_whatever_of_it_is_used():
    log = []
    env, _ = envs.from_gymnasium(vector_of(lambda: Clock(log)))

    @jax.jit
    def run(key):
        carry = pgjax.reset_envs(key, env, None, 1)
        carry, _, _ = pgjax.rollout(key, carry, counting_policy(1), env, None, 3)
        # the same action at every step and nothing looked at: no part of this depends on any other
        policy = lambda key, obs: (jnp.zeros(1, jnp.int32), jnp.zeros(1))  # noqa: E731
        pgjax.rollout(key, carry, policy, env, None, 2)
        return 0

    program = str(jax.make_jaxpr(run)(KEY))
    assert program.count("ordered=True") == program.count("io_callback[") > 0
    run(KEY)
    jax.effects_barrier()
    assert [what for what, _ in log] == ["reset"] + ["step"] * 5
    assert [action for what, action in log if what == "step"] == [5, 6, 7, 5, 5]  # they start at 5


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_gymnasium_by_name_is_gymnasium_stepped_by_hand(name):
    num_envs, limit = 3, 9
    env, env_params = envs.make(f"gymnasium:{name}", max_steps_in_episode=limit)
    assert envs.max_steps(env_params) == limit
    discrete = envs.is_discrete(env.action_space(env_params))

    def choose(obs):
        return (obs[:, 0] > 0.02).astype(int) if discrete else 3.0 * obs[:, 1:2]  # beyond the box of ±2

    def policy(key, obs):
        return choose(obs), jnp.zeros(num_envs)

    traj = play(env, policy, num_envs, 30)
    seeds = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(jax.random.split(KEY, num_envs))
    for i in range(num_envs):
        own = gymnasium.make(name, max_episode_steps=limit)
        obs, _ = own.reset(seed=int(seeds[i]))
        for t in range(60):
            np.testing.assert_allclose(traj.obs[t, i], obs, rtol=1e-6)
            action = np.asarray(choose(traj.obs[t]))[i]
            obs, reward, terminated, truncated, _ = own.step(action if discrete else np.clip(action, -2, 2))
            np.testing.assert_allclose(traj.next_obs[t, i], obs, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(traj.reward[t, i], reward, rtol=1e-5)
            flags = traj.terminated[t, i], traj.truncated[t, i]
            assert flags == (terminated, truncated and not terminated)
            if terminated or truncated:
                obs, _ = own.reset()
    assert (traj.terminated.any(), traj.truncated.any()) == (discrete, True)


def test_what_is_finite_counts_from_zero():
    class Digits(Clock):
        observation_space = spaces.Discrete(4, start=-1)

        def reset(self, **options):
            super().reset(**options)
            return np.int64(-1), {}

        def step(self, action):
            _, *rest = super().step(action)
            return np.int64(self.time - 1), *rest

    env, _ = envs.from_gymnasium(vector_of(lambda: Digits(ends=3)))
    assert env.observation_space(None).n == 4
    traj = play(env, lambda key, obs: (obs % 3, jnp.zeros(1)), 1, 4, num_rollouts=1)
    np.testing.assert_array_equal(traj.obs[:, 0], [0, 1, 2, 0])
    np.testing.assert_array_equal(traj.next_obs[:, 0], [1, 2, 3, 1])
    assert traj.obs.dtype == np.int32


def test_one_environment_alone():
    env, _ = envs.from_gymnasium(vector_of(lambda: Clock(limit=2)))
    obs, state = env.reset(KEY, None)
    np.testing.assert_array_equal(obs, [1, 0])
    for time in (1, 2):
        obs, state, _, _, truncated, info = env.step(KEY, state, jnp.int32(0), None)
        np.testing.assert_array_equal(info["final_observation"], [1, time])
        assert truncated == (time == 2)
    np.testing.assert_array_equal(obs, [2, 0])


def test_the_seed_of_a_start_is_the_keys():
    log = []
    env, _ = envs.from_gymnasium(vector_of(lambda: Clock(log)))
    reset = jax.jit(lambda key: pgjax.reset_envs(key, env, None, 2).obs)
    for key in (KEY, jax.random.key(1), KEY):
        jax.block_until_ready(reset(key))
    seeds = [seed for _, seed in log]
    assert len(seeds) == 6
    assert seeds[:2] == seeds[4:]
    assert len(set(seeds)) == 4


def test_seeds_cannot_be_mapped_over():
    env, _ = envs.from_gymnasium(vector_of(Clock))
    assert env.host_side
    with pytest.raises(ValueError, match="one after the other"):
        jax.vmap(lambda key: pgjax.reset_envs(key, env, None, 2))(jax.random.split(KEY, 2))
    carry = pgjax.reset_envs(KEY, env, None, 2)
    with pytest.raises(ValueError, match="one after the other"):
        jax.vmap(lambda key: pgjax.rollout(key, carry, counting_policy(2), env, None, 1))(
            jax.random.split(KEY, 2)
        )


def test_a_past_state_is_refused():
    env, _ = envs.from_gymnasium(vector_of(Clock))
    other, _ = envs.from_gymnasium(vector_of(Clock))

    def step(env, state):
        return jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(KEY, 2), state, jnp.zeros(2, jnp.int32), None
        )[1]

    start = pgjax.reset_envs(KEY, env, None, 2).env_state
    after = step(env, start)
    with pytest.raises(jax.errors.JaxRuntimeError, match="past state"):
        step(env, start)
    with pytest.raises(jax.errors.JaxRuntimeError, match="past state"):
        step(env, after.at[1, 0].add(-1))  # one of the two is of a start before
    after = step(env, after)  # which has done no harm
    with pytest.raises(jax.errors.JaxRuntimeError, match="past state"):
        step(other, after)
    pgjax.reset_envs(KEY, env, None, 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="past state"):
        step(env, after)


def test_evaluation_with_another_number_does_not_disturb():
    env, _ = envs.from_gymnasium(vector_of(lambda: Clock(limit=4)))
    carry = pgjax.reset_envs(KEY, env, None, 2)
    carry, traj, _ = pgjax.rollout(KEY, carry, counting_policy(2), env, None, 3)
    act = lambda key, obs: jnp.zeros(3, jnp.int32)  # noqa: E731
    stats = pgjax.evaluate(KEY, act, env, None, 3, 10)
    assert (stats.mean_return, stats.length_sum) == (10, 12)
    _, after, _ = pgjax.rollout(KEY, carry, counting_policy(2), env, None, 1)
    np.testing.assert_array_equal(after.obs[0], traj.next_obs[-1])


@pytest.fixture
def log():
    """Of the environments that are made as "gymnasium:Clock-v0"."""
    log = []
    gymnasium.register("Clock-v0", lambda: Clock(log, ends=5), disable_env_checker=True)
    yield log
    del gymnasium.registry["Clock-v0"]


@pytest.mark.parametrize(
    ("algorithm", "options", "steps"),
    [
        # a worker steps some of the environments at a time
        ("a3c", {"num_workers": 2, "num_envs": 2, "num_steps": 3, "num_updates": 5}, 2 * 30),
        # resets one alone, and then all at every iteration
        ("reinforce", {"num_episodes": 2, "max_steps": 6, "num_critic_steps": 1}, 2 * 12),
        # acts at random first, then in scans within scans
        (
            "dqn",
            {"num_envs": 2, "num_updates": 3, "num_steps": 2, "warmup_steps": 4, "batch_size": 4},
            4 + 2 * 12,
        ),
    ],
)
def test_algorithms_run_as_they_are(log, algorithm, options, steps):
    small = {"network": {"hidden": (4,)}, "steps": 100}
    preset = experiment.presets.preset(algorithm, "gymnasium:Clock-v0", **small, **options)
    _, metrics = training.train(KEY, experiment.presets.build(preset), 2)
    jax.block_until_ready(metrics)
    assert sum(what == "step" for what, _ in log) == steps
    expected = steps if algorithm != "reinforce" else 2 * 10  # every episode ends after 5
    assert metrics["env_steps"].sum() == expected


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("gymnasium:CartPol-v1", {}, "Did you mean CartPole-v1"),
        ("gymnasium:CartPole-v1", {"gravty": 1.0}, "unexpected keyword argument 'gravty'"),
        ("gymnasium:Blackjack-v1", {}, "observations of this environment are a Tuple"),
        ("gymnasium:nowhere:Thing-v0", {}, "No module named 'nowhere'"),
        ("gymnasum:CartPole-v1", {}, "Unknown suite 'gymnasum'.*Did you mean gymnasium"),
    ],
)
def test_what_cannot_be_made_is_refused_with_advice(name, params, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **params)


@pytest.mark.parametrize(
    ("make_vector", "message"),
    [
        (vector_of(Clock, AutoresetMode.NEXT_STEP), "AutoresetMode.SAME_STEP"),
        (lambda num: vector_of(Clock)(2), "gave 2 environments instead of 1"),
    ],
)
def test_vector_environments_that_will_not_do_are_refused(make_vector, message):
    with pytest.raises(ValueError, match=message):
        envs.from_gymnasium(make_vector)


def test_some_of_a_vector_environment_without_parts_cannot_be_stepped():
    class Whole(gymnasium.vector.VectorWrapper):
        @property
        def envs(self):
            raise AttributeError

    env, _ = envs.from_gymnasium(lambda num: Whole(vector_of(Clock)(num)))
    state = pgjax.reset_envs(KEY, env, None, 4).env_state[1:3]
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"Whole steps all.*not 2 of 4.*SyncVectorEnv"):
        jax.vmap(env.step, (0, 0, 0, None))(jax.random.split(KEY, 2), state, jnp.zeros(2, jnp.int32), None)


def test_a_time_limit_does_not_go_around_them():
    with pytest.raises(ValueError, match="max_steps_in_episode instead"):
        envs.TimeLimit(envs.make("gymnasium:CartPole-v1")[0], 5)
