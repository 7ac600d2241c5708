"""Act in batched environments: endless streams, whole episodes, evaluation.

An environment is any object with gymnax's `reset` and `step`; it resets itself where an episode ends, and
`next_obs` is `info["final_observation"]`, what the action really led to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pgjax._ahead import scan_ahead
from pgjax._checks import at_least_one
from pgjax._mapped import largest
from pgjax.estimators.returns import episode_time, return_so_far
from pgjax.types import Array, ArrayTree, Environment, Metrics, Policy, PRNGKey, Transition


class EnvCarry(NamedTuple):
    """Where N environments stand between two rollouts.

    Attributes:
        env_state: the environments' own state, leaves `[N, ...]`.
        obs: what the policy sees next, leaves `[N, ...]`.
        episode_return: `[N]`, undiscounted, of the running episodes.
        episode_length: int32 `[N]`.
    """

    env_state: Any
    obs: Any
    episode_return: Array
    episode_length: Array


class EpisodeStats(NamedTuple):
    """Sums over the episodes that ended, reduced on the device.

    Attributes:
        episodes: int32 scalar, how many ended.
        return_sum: float scalar, their undiscounted returns.
        length_sum: int32 scalar, their steps.
    """

    episodes: Array
    return_sum: Array
    length_sum: Array

    @property
    def mean_return(self) -> Array:
        """Mean return; NaN if no episode ended."""
        return self.return_sum / jnp.where(self.episodes > 0, self.episodes, jnp.nan)

    @property
    def mean_length(self) -> Array:
        """Mean length in steps; NaN if no episode ended."""
        return self.length_sum / jnp.where(self.episodes > 0, self.episodes, jnp.nan)

    def metrics(self) -> Metrics:
        """The sums under the names that every algorithm reports them by."""
        return {
            "episodes": self.episodes,
            "episode_return_sum": self.return_sum,
            "episode_length_sum": self.length_sum,
        }


def reduce_updates(metrics: Metrics) -> Metrics:
    """The metrics of several updates as those of one iteration.

    Args:
        metrics: leaves `[K]`, stacked by a scan over K updates.

    Returns:
        Scalars: sums of what `EpisodeStats.metrics` counts, means of all else.

    Example:
        >>> reduce_updates({"episodes": jnp.array([1, 2]), "entropy": jnp.array([1.0, 2.0])})
        {'episodes': Array(3, dtype=int32), 'entropy': Array(1.5, dtype=float32)}
    """
    sums = ("episodes", "episode_return_sum", "episode_length_sum")
    return {name: x.sum() if name in sums else x.mean() for name, x in metrics.items()}


def reset_envs(key: PRNGKey, env: Environment, env_params: Any, num_envs: int) -> EnvCarry:
    """Start N environments.

    Args:
        key: consumed.
        env: the environment.
        env_params: its parameters, common to all.
        num_envs: N.

    Returns:
        The carry that `rollout` takes.

    Raises:
        ValueError: if `num_envs < 1`.
    """
    at_least_one(num_envs=num_envs)
    obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, num_envs), env_params)
    obs, env_state = _like((obs, env_state), (obs, env_state))
    return EnvCarry(env_state, obs, jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32))


def rollout(
    key: PRNGKey, carry: EnvCarry, policy: Policy, env: Environment, env_params: Any, num_steps: int
) -> tuple[EnvCarry, Transition, EpisodeStats]:
    """Act for a fixed number of steps; episodes run on across calls.

    Args:
        key: consumed.
        carry: from `reset_envs` or the rollout before.
        policy: `(key, obs [N, ...]) -> (action [N, ...], log_prob [N])`.
        env: the environment.
        env_params: its parameters.
        num_steps: T.

    Returns:
        The carry for the next call; the transitions, leaves `[T, N, ...]`; the episodes that ended.
        The window cuts episodes at its end: bootstrap there, as the estimators do.

    Raises:
        ValueError: if `num_steps < 1`.
    """
    at_least_one(num_steps=num_steps)
    (env_state, obs), traj = _interact(key, (carry.env_state, carry.obs), policy, env, env_params, num_steps)
    done = traj.terminated | traj.truncated
    returns = return_so_far(traj.reward, traj.terminated, traj.truncated, start=carry.episode_return)
    lengths = episode_time(traj.terminated, traj.truncated, start=carry.episode_length) + 1
    stats = EpisodeStats(
        episodes=done.sum(dtype=jnp.int32),
        return_sum=jnp.where(done, returns, 0.0).sum(),
        length_sum=jnp.where(done, lengths, 0).sum(dtype=jnp.int32),
    )
    carry = EnvCarry(
        env_state, obs, jnp.where(done[-1], 0.0, returns[-1]), jnp.where(done[-1], 0, lengths[-1])
    )
    return carry, traj, stats


def rollout_episodes(
    key: PRNGKey,
    policy: Policy,
    env: Environment,
    env_params: Any,
    num_episodes: int,
    max_steps: int,
    *,
    chunk_steps: int | None = None,
) -> tuple[Transition, Array]:
    """One whole episode a column, from its start: what an unbiased Monte Carlo estimate needs.

    After the end of an episode its reward is 0, its flags are False and `valid` is False (observations and
    actions there are whatever the environment went on with, or zero where nothing was played). An episode
    that meets `max_steps` ends truncated.

    Args:
        key: consumed.
        policy: `(key, obs [N, ...]) -> (action [N, ...], log_prob [N])`.
        env: the environment.
        env_params: its parameters.
        num_episodes: N.
        max_steps: T.
        chunk_steps: so many steps are played at a time, until every episode has ended; divides T. Episodes
            are those that are played without it, but reverse differentiation cannot go through them. None: T
            steps are played.

    Returns:
        The transitions, leaves `[T, N, ...]`, and `valid`, bool `[T, N]`.

    Raises:
        ValueError: if `num_episodes < 1` or `max_steps < 1`, or if `chunk_steps` does not divide `max_steps`.
    """
    at_least_one(num_episodes=num_episodes, max_steps=max_steps)
    if chunk_steps is not None and (chunk_steps < 1 or max_steps % chunk_steps):
        raise ValueError(f"chunk_steps={chunk_steps} must divide max_steps={max_steps}.")
    reset_key, act_key = jax.random.split(key)
    start = reset_envs(reset_key, env, env_params, num_episodes)
    keys, carry = _step_keys(act_key, num_episodes, max_steps), (start.env_state, start.obs)
    if chunk_steps in (None, max_steps):
        _, traj = _play(keys, carry, policy, env, env_params)
    else:
        traj = _play_until_ended(keys, carry, policy, env, env_params, chunk_steps)
    done = traj.terminated | traj.truncated
    ended_before = jnp.cumsum(done, axis=0) - done > 0
    valid = ~ended_before
    traj = traj._replace(
        log_prob=jnp.where(valid, traj.log_prob, 0.0),
        reward=jnp.where(valid, traj.reward, 0.0),
        terminated=traj.terminated & valid,
        truncated=(traj.truncated & valid).at[-1].set(valid[-1] & (traj.truncated[-1] | ~done[-1])),
    )
    return traj, valid


def episode_stats(traj: Transition, valid: Array) -> EpisodeStats:
    """The sums over whole episodes.

    Args:
        traj: from `rollout_episodes`, leaves `[T, N, ...]`.
        valid: bool `[T, N]`.

    Returns:
        The sums; every column is one episode.
    """
    return EpisodeStats(
        episodes=jnp.asarray(valid.shape[1], jnp.int32),
        return_sum=traj.reward.sum(where=valid),
        length_sum=valid.sum(dtype=jnp.int32),
    )


def evaluate(
    key: PRNGKey,
    act: Callable[[PRNGKey, ArrayTree], Array],
    env: Environment,
    env_params: Any,
    num_episodes: int,
    max_steps: int,
) -> EpisodeStats:
    """Play whole episodes with a fixed rule of acting; stops when the last of them has ended.

    Args:
        key: consumed; never one that training uses.
        act: `(key, obs [N, ...]) -> action [N, ...]`, say an algorithm's `act` with its state bound.
        env: the environment.
        env_params: its parameters.
        num_episodes: N.
        max_steps: an episode is cut here and counts with what it has.

    Returns:
        The sums over the N episodes.

    Raises:
        ValueError: if `num_episodes < 1` or `max_steps < 1`.
    """
    at_least_one(num_episodes=num_episodes, max_steps=max_steps)
    reset_key, act_key = jax.random.split(key)
    start = reset_envs(reset_key, env, env_params, num_episodes)

    def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
        return act(key, obs), jnp.zeros(num_episodes)

    def going_on(loop: tuple[Array, Any, Array, EpisodeStats]) -> Array:
        step, _, alive, _ = loop
        return (step < max_steps) & alive.any()

    def play(loop: tuple[Array, Any, Array, EpisodeStats]) -> tuple[Array, Any, Array, EpisodeStats]:
        step, carry, alive, stats = loop
        carry, traj = _interact(jax.random.fold_in(act_key, step), carry, policy, env, env_params, 1)
        stats = EpisodeStats(
            stats.episodes,
            stats.return_sum + traj.reward[0].sum(where=alive),
            stats.length_sum + alive.sum(dtype=jnp.int32),
        )
        return step + 1, carry, alive & ~(traj.terminated | traj.truncated)[0], stats

    stats = EpisodeStats(jnp.asarray(num_episodes, jnp.int32), jnp.zeros(()), jnp.zeros((), jnp.int32))
    loop = (jnp.zeros((), jnp.int32), (start.env_state, start.obs), jnp.ones(num_episodes, bool), stats)
    return lax.while_loop(going_on, play, loop)[-1]


def _interact(
    key: PRNGKey, carry: Any, policy: Policy, env: Environment, env_params: Any, num_steps: int
) -> tuple[Any, Transition]:
    """`(env_state, obs)` through `num_steps` steps."""
    num_envs = jax.tree.leaves(carry[1])[0].shape[0]
    return _play(_step_keys(key, num_envs, num_steps), carry, policy, env, env_params)


def _step_keys(key: PRNGKey, num_envs: int, num_steps: int) -> tuple[PRNGKey, PRNGKey]:
    """Of the policy `[T]` and of the environments `[T, N]`."""
    # all keys from one split: each one compiles a generator of its own
    policy_keys, env_keys = jnp.split(jax.random.split(key, num_steps * (1 + num_envs)), [num_steps])
    return policy_keys, env_keys.reshape(num_steps, num_envs)


def _play_until_ended(
    keys: tuple[PRNGKey, PRNGKey],
    carry: Any,
    policy: Policy,
    env: Environment,
    env_params: Any,
    chunk_steps: int,
) -> Transition:
    """As `_play`, a chunk of steps at a time; nothing is played, and zero, after the last episode's end."""
    num_steps, num_envs = keys[1].shape

    def play(carry: Any, start: Array | int) -> tuple[Any, Transition]:
        chunk_keys = jax.tree.map(lambda k: lax.dynamic_slice_in_dim(k, start, chunk_steps), keys)
        return _play(chunk_keys, carry, policy, env, env_params)

    def going_on(loop: tuple[Array, Any, Array, Transition]) -> Array:
        start, _, alive, _ = loop
        return (start < num_steps) & largest(alive)

    def play_chunk(loop: tuple[Array, Any, Array, Transition]) -> tuple[Array, Any, Array, Transition]:
        start, carry, alive, traj = loop
        carry, chunk = play(carry, start)
        traj = jax.tree.map(lambda whole, x: lax.dynamic_update_slice_in_dim(whole, x, start, 0), traj, chunk)
        alive = alive & ~(chunk.terminated | chunk.truncated).any(0)
        return start + chunk_steps, carry, alive, traj

    shapes = jax.eval_shape(play, carry, 0)[1]
    nothing = jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape[1:]), x.dtype), shapes)
    loop = jnp.zeros((), jnp.int32), carry, jnp.ones(num_envs, bool), nothing
    return lax.while_loop(going_on, play_chunk, loop)[-1]


def _play(
    keys: tuple[PRNGKey, PRNGKey], carry: Any, policy: Policy, env: Environment, env_params: Any
) -> tuple[Any, Transition]:
    """The one place where a policy meets its environments: `(env_state, obs)` through a step for each key."""
    step_envs = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    def step(carry: Any, keys: tuple[PRNGKey, PRNGKey]) -> tuple[Any, Transition]:
        env_state, obs = carry
        action, log_prob = policy(keys[0], obs)
        following, env_state, reward, terminated, truncated, info = step_envs(
            keys[1], env_state, action, env_params
        )
        transition = Transition(
            obs=obs,
            action=action,
            log_prob=log_prob,
            reward=reward.astype(jnp.result_type(float)),
            terminated=terminated.astype(bool),
            truncated=truncated.astype(bool),
            next_obs=_like(info["final_observation"], obs),
        )
        return _like((env_state, following), carry), transition

    return scan_ahead(step, carry, keys)


def _like(tree: Any, example: Any) -> Any:
    """The same values in the example's dtypes, never weakly typed: a second call compiles nothing new."""
    return jax.tree.map(lambda x, e: lax.convert_element_type(x, jnp.result_type(e)), tree, example)
