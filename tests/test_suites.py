"""Environments of other suites: what ends them, and what their last actions led to."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import envs, suites
from pgjax.tabular.mdp import Box, Discrete

KEY = jax.random.key(0)


def play(env, env_params, num_steps, num_envs=2, action=None):
    """Two rollouts of one compiled program, put together; its second call compiles nothing."""
    space = env.action_space(env_params)
    action = jnp.zeros(space.shape, space.dtype) if action is None else action

    def policy(key, obs):
        return jnp.broadcast_to(action, (num_envs, *action.shape)), jnp.zeros(num_envs)

    @jax.jit
    def run(key, carry):
        return pgjax.rollout(key, carry, policy, env, env_params, num_steps)[:2]

    with jax.numpy_rank_promotion("allow"):
        carry = jax.jit(lambda key: pgjax.reset_envs(key, env, env_params, num_envs))(KEY)
        carry, first = run(jax.random.key(1), carry)
        carry, second = run(jax.random.key(2), carry)
    assert run._cache_size() == 1
    return jax.tree.map(lambda *x: np.concatenate(x), first, second)


# the older step of gymnax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LineParams:
    max_steps_in_episode: Any = 5
    goal: int = 100


class LineState(NamedTuple):
    position: jax.Array
    time: jax.Array
    over: jax.Array


class Line:
    """Walks up from a random place below 0; the time limit is one of the ends, as it was in gymnax.

    As in MinAtar the state remembers that it was over, so that a terminal state is not to be told by it.
    """

    def action_space(self, params):
        return Discrete(2)

    def observation_space(self, params):
        return Box((2,), jnp.float32)

    def is_terminal(self, state, params):
        return (state.position >= params.goal) | (state.time >= params.max_steps_in_episode) | state.over

    def observe(self, state, params):
        left = params.max_steps_in_episode - state.time  # it knows its limit
        return jnp.stack([state.position, left]).astype(jnp.float32)

    def reset_env(self, key, params):
        state = LineState(-jax.random.randint(key, (), 100, 1000), jnp.int32(0), jnp.array(False))
        return self.observe(state, params), state

    def step_env(self, key, state, action, params):
        state = state._replace(position=state.position + 1, time=state.time + 1)
        done = self.is_terminal(state, params)
        state = state._replace(over=done)
        return self.observe(state, params), state, 1, done, {"time": state.time}


def test_the_time_limit_truncates_and_nothing_else_does():
    env, env_params = envs.from_five_values(Line(), LineParams())
    traj = play(env, env_params, 6)
    every_fifth = np.arange(1, 13) % 5 == 0
    np.testing.assert_array_equal(traj.truncated, np.stack([every_fifth] * 2, 1))
    assert not traj.terminated.any()
    # what was observed next continues the episode, also where it ended; the next one starts elsewhere
    np.testing.assert_array_equal(traj.next_obs, traj.obs + np.array([1.0, -1.0], np.float32))
    starts = traj.obs[1:][every_fifth[:-1]]
    assert (starts[..., 1] == 5).all()
    assert len(np.unique(starts[..., 0])) == 4
    assert (traj.obs[1:][~every_fifth[:-1]] == traj.next_obs[:-1][~every_fifth[:-1]]).all()
    assert traj.reward.dtype == np.float32


class Descent(Line):
    """The same from 0 downwards in steps to the goal: it terminates after `goal` steps."""

    def reset_env(self, key, params):
        state = LineState(jnp.int32(0), jnp.int32(0), jnp.array(False))
        return self.observe(state, params), state


@pytest.mark.parametrize(("goal", "terminates"), [(4, True), (5, True), (6, False)])
def test_an_end_that_comes_without_the_limit_as_well_terminates(goal, terminates):
    env, env_params = envs.from_five_values(Descent(), LineParams(goal=goal))
    _, state = env.reset(KEY, env_params)
    for time in range(1, min(goal, 5) + 1):
        obs, state, _, terminated, truncated, info = env.step(KEY, state, 0, env_params)
        assert (terminated | truncated) == (time == min(goal, 5))
    assert (terminated, truncated) == (terminates, not terminates)
    assert info["final_observation"][0] == min(goal, 5)
    assert obs[0] == 0
    assert state.time == 0


def test_the_limit_may_be_traced_and_whether_the_task_ended_may_be_said():
    def flags(limit, **options):
        env, env_params = envs.from_five_values(Descent(), LineParams(limit, goal=3), **options)
        state = env.reset(KEY, env_params)[1]
        flags = []
        for _ in range(3):
            _, state, _, *ends, _ = env.step(KEY, state, 0, env_params)
            flags.append(jnp.stack(ends))
        return jnp.stack(flags)

    def reached(state, params):
        return state.position >= params.goal

    limits = jnp.array([2, 3, 9])
    found = jax.vmap(flags)(limits)
    np.testing.assert_array_equal(found[0], [[False, False], [False, True], [False, False]])
    np.testing.assert_array_equal(found[1:], [[[False, False], [False, False], [True, False]]] * 2)
    np.testing.assert_array_equal(jax.vmap(lambda limit: flags(limit, is_terminated=reached))(limits), found)


def test_without_a_limit_every_end_terminates():
    env, env_params = envs.from_five_values(Line(), LineParams(), limit=None)
    traj = play(env, env_params, 5)
    np.testing.assert_array_equal(np.flatnonzero(traj.terminated[:, 0]), [4, 9])
    assert not traj.truncated.any()


class NoStepEnv:
    """Has nothing but a step that resets."""

    def reset(self, key, params):
        return jnp.zeros(2), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.zeros(2), state, 0.0, False, {}


class Wrapper:
    """Passes on what it does not have: `step_env` would go around it."""

    def __init__(self, env):
        self.env = env

    def step(self, key, state, action, params):
        return self.env.step(key, state, action, params)

    def __getattr__(self, name):
        return getattr(self.env, name)


@pytest.mark.parametrize("env", [NoStepEnv(), Wrapper(Line())], ids=["plain", "wrapper"])
def test_what_can_only_be_stepped_with_a_reset_is_refused_with_the_reason(env):
    with pytest.raises(ValueError, match=r"no step_env of its own.*what an episode's last action led to"):
        envs.from_five_values(env, LineParams())


def test_a_limit_that_the_parameters_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"no field 'max_steps'.*Did you mean max_steps_in_episode"):
        envs.from_five_values(Line(), LineParams(), limit="max_steps")
    with pytest.raises(ValueError, match=r"limit=None.*no fields at all"):
        envs.from_five_values(Line(), None)


def test_parameters_may_be_a_named_tuple():
    params = NamedTuple("Params", [("limit", int), ("goal", int)])(5, 3)
    assert suites.without_limit(params, "limit").limit > 10**9
    assert suites.without_limit(params, "limit").goal == 3


def test_todays_gymnax_is_refused_by_the_adapter_of_the_older_one():
    env, env_params = envs.make("CartPole-v1")

    class SixValues(type(env)):
        def step_env(self, *inputs):
            obs, state, reward, done, info = super().step_env(*inputs)
            return obs, state, reward, done, done, info

    adapted, _ = envs.from_five_values(SixValues(), env_params)
    state = adapted.reset(KEY, env_params)[1]
    with pytest.raises(ValueError, match="gives 6 values"):
        adapted.step(KEY, state, 0, env_params)


def test_craftax_by_name():
    pytest.importorskip("craftax")
    env, env_params = envs.make("craftax:Craftax-Classic-Symbolic-v1", max_timesteps=50)
    assert envs.max_steps(env_params) == 50
    with jax.numpy_rank_promotion("allow"):
        obs, state = jax.eval_shape(env.reset, KEY, env_params)
        following, after, _, terminated, truncated, info = jax.eval_shape(
            env.step, KEY, state, jnp.int32(0), env_params
        )
    assert obs.shape == following.shape == info["final_observation"].shape
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert terminated.dtype == truncated.dtype == jnp.bool_
    with pytest.raises(ValueError, match="Did you mean max_timesteps"):
        envs.make("craftax:Craftax-Classic-Symbolic-v1", max_timestep=50)


# brax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    pipeline_state: Any
    obs: Any
    reward: Any
    done: Any
    info: dict[str, Any]


class Slide:
    """As brax's environments are: moves by the action, and is done at 3."""

    action_size = 1

    def __init__(self, **info):
        self.info = info

    def reset(self, rng):
        start = jax.random.uniform(rng)
        return State(start, jnp.stack([start]), jnp.float32(0), jnp.float32(0), dict(self.info))

    def step(self, state, action):
        position = state.pipeline_state + action[0]
        done = jnp.where(position >= 3, 1.0, 0.0)  # weakly typed, as in brax
        return dataclasses.replace(state, pipeline_state=position, obs=position[None], reward=1.0, done=done)


@pytest.mark.parametrize(("limit", "length", "terminates"), [(9, 3, True), (3, 3, True), (2, 2, False)])
def test_done_terminates_and_the_limit_truncates(limit, length, terminates):
    env, env_params = envs.from_brax(Slide(), max_steps_in_episode=limit)
    traj = play(env, env_params, 4, action=jnp.ones(1) * 7.0)  # clipped to 1
    ends = np.arange(1, 9) % length == 0
    np.testing.assert_array_equal(traj.terminated[:, 0], ends & terminates)
    np.testing.assert_array_equal(traj.truncated[:, 0], ends & (not terminates))
    np.testing.assert_allclose(traj.next_obs, traj.obs + 1, rtol=1e-6)
    assert (traj.obs[1:][ends[:-1]] < 1).all()
    assert len(np.unique(traj.obs[1:][ends[:-1]])) == 2 * ends[:-1].sum()  # every start is another


class Episode(Slide):
    """With brax's own time limit, which sets `done` and says so."""

    def reset(self, rng):
        return dataclasses.replace(super().reset(rng), info={"steps": 0.0, "truncation": 0.0})

    def step(self, state, action):
        after = super().step(state, action)
        state.info["steps"] += 1  # brax's wrappers write into what they are given
        over = state.info["steps"] >= 2
        state.info["truncation"] = jnp.where(over, 1 - after.done, 0.0)
        return dataclasses.replace(after, done=jnp.where(over, 1.0, after.done), info=state.info)


@pytest.mark.parametrize(("step", "terminates"), [(1.0, False), (1.5, True)])
def test_the_truncation_in_braxs_info_is_heard(step, terminates):
    env, env_params = suites.BraxEnv(Episode()), suites.EpisodeLimit()
    start = env.reset(KEY, env_params)[1]
    for _ in range(2):  # the same from the same state, though brax writes into it
        state = start
        for over in (False, True):
            _, state, _, terminated, truncated, _ = env.step(KEY, state, jnp.array([step]), env_params)
            assert (terminated, truncated) == (over and terminates, over and not terminates)


def test_what_resets_itself_or_is_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"resets itself.*auto_reset=False"):
        envs.from_brax(Slide(first_obs=jnp.zeros(1)))
    batch = Slide()
    batch.reset = lambda rng: jax.vmap(Slide().reset)(jax.random.split(rng, 3))
    with pytest.raises(ValueError, match="batch of environments"):
        envs.from_brax(batch)


def test_brax_by_name_is_what_brax_does_without_its_reset():
    brax = pytest.importorskip("brax.envs")
    env, env_params = envs.make("brax:inverted_pendulum", backend="spring", max_steps_in_episode=6)
    assert (env.action_space(env_params).shape, env.observation_space(env_params).shape) == ((1,), (4,))
    traj = play(env, env_params, 10, action=jnp.ones(1))

    # brax's own counting of the episode, stepped by hand
    own = brax.create("inverted_pendulum", episode_length=6, auto_reset=False, backend="spring")
    with jax.numpy_rank_promotion("allow"):
        state = jax.jit(jax.vmap(own.reset))(jax.random.split(KEY, 2))
        step = jax.jit(jax.vmap(own.step))
        for t in range(6):
            np.testing.assert_allclose(traj.obs[t], state.obs, rtol=1e-4, atol=1e-5)
            state = step(state, jnp.ones((2, 1)))
            np.testing.assert_allclose(traj.next_obs[t], state.obs, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(traj.terminated[t] | traj.truncated[t], state.done)
            np.testing.assert_array_equal(traj.truncated[t], state.info["truncation"])
            np.testing.assert_allclose(traj.reward[t], state.reward)
    assert traj.truncated[5].all()
    assert (np.abs(traj.obs[6]) < 0.011).all()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("brax:inverted_pendulm", {}, "Did you mean inverted_pendulum"),
        ("brax:reacher", {"bakend": "spring"}, "Did you mean backend"),
    ],
)
def test_what_brax_does_not_know_is_refused_with_advice(name, params, message):
    pytest.importorskip("brax")
    with pytest.raises(ValueError, match=message):
        envs.make(name, **params)


@pytest.mark.parametrize("name", ["brax:reacher", "craftax:Craftax-Symbolic-v1"])
def test_a_suite_that_is_not_installed_is_named_with_its_extra(name, monkeypatch):
    package = name.partition(":")[0]

    def absent(module):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(ValueError, match=rf'{package} is not installed: pip install "pgjax\[{package}\]"'):
        envs.make(name)


def test_a_suite_that_lacks_something_else_says_that(monkeypatch):
    def broken(module):
        raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="mujoco"):
        envs.make("brax:reacher")
