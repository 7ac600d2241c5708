"""What the algorithms that learn from replay share: act, store, sample, learn, by turns.

An iteration is a scan of updates; an update is some steps of all environments, which go into the buffer, and
some batches out of it. The buffer is filled in `init` by random actions, so that nothing in the loop depends
on whether it is full enough. In memory it is there once: it is written in place, then sampled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from pgjax._ahead import scan_ahead
from pgjax._checks import at_least_one
from pgjax.distributions import Categorical
from pgjax.networks import split_mask
from pgjax.replay import ReplayState, add_to_replay, init_replay, n_step_transitions, sample_replay
from pgjax.rollouts import EnvCarry, EpisodeStats, reduce_updates, reset_envs, rollout
from pgjax.types import (
    Algorithm,
    Array,
    ArrayTree,
    DescribedEnvironment,
    Metrics,
    Numeric,
    Policy,
    PRNGKey,
    Transition,
)


class Batch(NamedTuple):
    """What is learned from.

    Attributes:
        transition: leaves `[G, B, ...]`, of G gradient steps; `log_prob` is 0, for nothing here corrects for
            the policy that acted.
        discount: `[G, B]`, of the value of `next_obs`, termination not in it.
    """

    transition: Transition
    discount: Array


class State(NamedTuple):
    """A run between two iterations.

    Attributes:
        learned: what learns.
        env_carry: where the environments stand.
        replay: the buffer.
        recent: the last n − 1 steps, leaves `[n - 1, N, ...]`, whose n-step transitions are not complete;
            None where n is 1.
        noise: of exploration, `[N, ...]`; 0 where an episode begins.
        env_steps: int32 scalar, all steps so far, the random ones at the start included.
        uncounted_steps: int32 scalar, those that no iteration has counted yet.
    """

    learned: Any
    env_carry: EnvCarry
    replay: ReplayState
    recent: Transition | None
    noise: Array
    env_steps: Array
    uncounted_steps: Array


InitLearned: TypeAlias = Callable[[PRNGKey, ArrayTree, Array], Any]
"""`(key, obs [N, ...], action [N, ...]) -> learned`."""

Explore: TypeAlias = Callable[[PRNGKey, Any, ArrayTree, Array, Array], tuple[Array, Array]]
"""`(key, learned, obs [N, ...], noise [N, ...], env_steps) -> (action [N, ...], noise)`."""

Learn: TypeAlias = Callable[[PRNGKey, Any, Batch], tuple[Any, Metrics]]
"""`(key, learned, batch) -> (learned, metrics)`."""


def make(
    env: DescribedEnvironment,
    env_params: Any,
    init_learned: InitLearned,
    explore: Explore,
    learn: Learn,
    act: Callable[[PRNGKey, Any, ArrayTree], Array],
    *,
    num_envs: int,
    num_steps: int,
    num_updates: int,
    num_gradient_steps: int,
    batch_size: int,
    capacity: int,
    warmup_steps: int,
    gamma: Numeric,
    n_step: int = 1,
    noise_shape: tuple[int, ...] = (),
) -> Algorithm[State]:
    """An algorithm that learns from replay.

    Args:
        env: the environment; besides `reset` and `step` it has `action_space(env_params)`.
        env_params: its parameters.
        init_learned: what learns, at the start.
        explore: how to act while learning.
        learn: what to do with the batches of one update.
        act: how to act in evaluation, `(key, learned, obs) -> action`.
        num_envs: N.
        num_steps: T, steps of every environment between two calls of `learn`.
        num_updates: calls of `learn` in an iteration.
        num_gradient_steps: G, batches that each of them gets.
        batch_size: B.
        capacity: of the buffer, in transitions.
        warmup_steps: environment steps with random actions before all else, rounded up to whole steps of
            all environments.
        gamma: discount factor.
        n_step: how many rewards a transition sums up.
        noise_shape: of one environment's noise.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, or if the warm-up leaves the buffer empty.

    References:
        Mnih et al. 2015, Human-level control through deep reinforcement learning, algorithm 1.
    """
    at_least_one(num_envs=num_envs, num_steps=num_steps, num_updates=num_updates, n_step=n_step)
    at_least_one(num_gradient_steps=num_gradient_steps, batch_size=batch_size, capacity=capacity)
    warmup = -(-warmup_steps // num_envs)
    if warmup < n_step:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least {n_step * num_envs}: num_envs={num_envs} times "
            f"n_step={n_step}, so that there is something to learn from."
        )

    at_random = _uniform_policy(env.action_space(env_params))

    def store(
        replay: ReplayState, recent: Transition | None, traj: Transition
    ) -> tuple[ReplayState, Transition | None]:
        """Put what is complete now into the buffer; what is not waits."""
        if n_step == 1:
            return add_to_replay(replay, traj), None
        window = traj
        if recent is not None:
            window = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), recent, traj)
        complete = n_step_transitions(window, gamma=gamma, n=n_step)
        num = window.reward.shape[0] - (n_step - 1)
        return add_to_replay(replay, _rows(complete, slice(num))), _rows(window, slice(num, None))

    def sample(key: PRNGKey, replay: ReplayState) -> Batch:
        found = sample_replay(key, replay, num_gradient_steps * batch_size)
        found = jax.tree.map(lambda x: x.reshape(num_gradient_steps, batch_size, *x.shape[1:]), found)
        return Batch(*found) if n_step > 1 else Batch(found, _full(found.reward, gamma))

    def init(key: PRNGKey) -> State:
        env_key, learned_key, random_key = jax.random.split(key, 3)
        env_carry = reset_envs(env_key, env, env_params, num_envs)
        start = env_carry.obs
        env_carry, traj, _ = rollout(random_key, env_carry, at_random, env, env_params, warmup)
        first = jax.tree.map(lambda x: x[0, 0], traj)
        example = (first, first.reward) if n_step > 1 else first  # with the discount of its bootstrap
        replay, recent = store(init_replay(example, capacity), None, traj)
        learned = init_learned(learned_key, start, traj.action[0])
        count = jnp.full((), warmup * num_envs, jnp.int32)
        return State(learned, env_carry, replay, recent, jnp.zeros((num_envs, *noise_shape)), count, count)

    def act_once(state: State, key: PRNGKey) -> tuple[State, tuple[Transition, EpisodeStats]]:
        explore_key, env_key = jax.random.split(key)
        action, noise = explore(explore_key, state.learned, state.env_carry.obs, state.noise, state.env_steps)

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            del key, obs
            return action, jnp.zeros(num_envs)

        env_carry, traj, stats = rollout(env_key, state.env_carry, policy, env, env_params, 1)
        transition = jax.tree.map(lambda x: x[0], traj)
        ended = (transition.terminated | transition.truncated).reshape(-1, *[1] * (noise.ndim - 1))
        noise = jnp.where(ended, 0.0, noise)
        state = state._replace(env_carry=env_carry, noise=noise, env_steps=state.env_steps + num_envs)
        return state, (transition, stats)

    def update(state: State, key: PRNGKey) -> tuple[State, Metrics]:
        act_key, sample_key, learn_key = jax.random.split(key, 3)
        state, (traj, stats) = scan_ahead(act_once, state, jax.random.split(act_key, num_steps))
        replay, recent = store(state.replay, state.recent, traj)
        learned, metrics = learn(learn_key, state.learned, sample(sample_key, replay))
        counts = jax.tree.map(lambda x: x.sum(0), stats)
        return state._replace(learned=learned, replay=replay, recent=recent), metrics | counts.metrics()

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        new, metrics = scan_ahead(update, state, jax.random.split(key, num_updates))
        env_steps = num_envs * num_steps * num_updates + state.uncounted_steps
        new = new._replace(uncounted_steps=jnp.zeros((), jnp.int32))
        return new, reduce_updates(metrics) | {"env_steps": env_steps}

    def act_with(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        return act(key, state.learned, obs)

    return Algorithm(init, step, act_with)


def follow(target: Any, params: Any, tau: Numeric) -> Any:
    """Target parameters a part of the way to those they follow.

        θ' ← (1 − τ) θ' + τ θ

    Args:
        target: θ'.
        params: θ, a pytree like it.
        tau: τ; 1 copies.

    Returns:
        The new target.

    References:
        Lillicrap et al. 2016, Continuous control with deep RL, algorithm 1.
    """
    return jax.tree.map(lambda old, new: ((1.0 - tau) * old + tau * new).astype(old.dtype), target, params)


def _uniform_policy(space: Any) -> Policy:
    """Every action that is allowed, each as likely as any other."""

    def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
        num = jax.tree.leaves(obs)[0].shape[0]
        if hasattr(space, "n"):
            return Categorical(jnp.zeros((num, space.n)), split_mask(obs)[1]).sample(key), jnp.zeros(num)
        shape = num, *space.shape
        low, high = (jnp.broadcast_to(jnp.asarray(b, float), shape) for b in (space.low, space.high))
        return jax.random.uniform(key, shape, minval=low, maxval=high), jnp.zeros(num)

    return policy


def _full(like: Array, value: Numeric) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, like.dtype), like.shape)


def _rows(tree: Any, rows: slice) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)
