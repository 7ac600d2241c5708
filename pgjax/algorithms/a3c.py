"""Asynchronous advantage actor-critic, made reproducible: who finishes when is a value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from pgjax._ahead import scan_ahead
from pgjax._checks import at_least_one
from pgjax.estimators.off_policy import importance_ratio
from pgjax.rollouts import EnvCarry, reduce_updates, reset_envs, rollout
from pgjax.types import Algorithm, Array, ArrayTree, Environment, Metrics, Network, Numeric, PRNGKey
from pgjax.windows import window_gradient


class Learned(NamedTuple):
    """What learns.

    Attributes:
        params: of the network, shared.
        opt_state: of the optimizer, shared.
        snapshots: each worker's copy of the parameters, leaves `[W, ...]`.
    """

    params: Any
    opt_state: Any
    snapshots: Any


class State(NamedTuple):
    """A run between two iterations.

    Attributes:
        learned: what learns.
        env_carry: where the environments stand, leaves `[W, N, ...]`.
        copied_at: int32 `[W]`, how many updates there had been when each worker copied.
        num_updates: int32 scalar, how many there have been.
    """

    learned: Learned
    env_carry: EnvCarry
    copied_at: Array
    num_updates: Array


def make(
    env: Environment,
    env_params: Any,
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    num_workers: int = 16,
    num_envs: int = 1,
    num_steps: int = 5,
    num_updates: int = 64,
    gamma: Numeric = 0.99,
    lambda_: Numeric = 1.0,
    value_coef: Numeric = 0.5,
    entropy_coef: Numeric = 0.01,
    delay: Numeric | None = None,
    random_order: bool = False,
    corrected: bool = False,
) -> Algorithm[State]:
    """A3C; one iteration is `num_updates` times one worker's window and one update of what is shared.

    A worker copies the shared parameters, acts on its copy for `num_steps` steps, takes the gradient at the
    copy, applies it to the shared parameters, and copies again. In between the others have done the same.
    With one worker, or a delay of 0, that is A2C.

    Args:
        env: the environment.
        env_params: its parameters.
        network: `obs -> (Distribution, value [...])`, such as `networks.ActorCritic`.
        optimizer: of the shared parameters; its statistics are shared too.
        num_workers: W.
        num_envs: N, environments of each worker.
        num_steps: t_max, steps of a worker between two copies.
        num_updates: updates in an iteration.
        gamma: discount factor.
        lambda_: trace decay of the advantage; 1 is the n-step advantage of the paper.
        value_coef: weight of the critic's loss.
        entropy_coef: weight of the entropy bonus.
        delay: how many updates of others lie between a worker's copy and its own update, below W; may be
            traced, and is then cut off there. Only delay + 1 workers then take part. None: all do.
        random_order: the workers finish in random order, each as likely as any other to be next; the delay
            is then the mean of a geometric distribution. Otherwise they take turns.
        corrected: take the gradient at the shared parameters instead of the copy, and correct by V-trace for
            the copy having acted.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, or if a known `delay` is not below `num_workers`.

    References:
        Mnih et al. 2016, Asynchronous methods for deep RL, algorithm S3; Espeholt et al. 2018, IMPALA
        (`corrected`).
    """
    at_least_one(num_workers=num_workers, num_envs=num_envs, num_steps=num_steps, num_updates=num_updates)
    num_active = num_workers
    if delay is not None:
        if not isinstance(delay, Tracer) and (not 0 <= delay < num_workers or delay != int(delay)):
            raise ValueError(
                f"delay must be a whole number from 0 to {num_workers - 1}, below num_workers, got {delay}."
            )
        num_active = jnp.clip(jnp.asarray(delay, jnp.int32), 0, num_workers - 1) + 1

    def init(key: PRNGKey) -> State:
        env_key, params_key = jax.random.split(key)
        env_carry = reset_envs(env_key, env, env_params, num_workers * num_envs)
        params = network.init(params_key, env_carry.obs)
        snapshots = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_workers, *x.shape)), params)
        env_carry = jax.tree.map(lambda x: x.reshape(num_workers, num_envs, *x.shape[1:]), env_carry)
        nothing = jnp.zeros(num_workers, jnp.int32)
        return State(
            Learned(params, optimizer.init(params), snapshots), env_carry, nothing, jnp.zeros((), jnp.int32)
        )

    def update(loop: tuple[State, Any], inputs: tuple[PRNGKey, Array, Array]) -> tuple[Any, Metrics]:
        (state, snapshot), (key, worker, following) = loop, inputs
        params, opt_state, snapshots = state.learned
        env_carry = jax.tree.map(lambda x: x[worker], state.env_carry)

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return network.apply(snapshot, obs)[0].sample_and_log_prob(key)

        env_carry, traj, stats = rollout(key, env_carry, policy, env, env_params, num_steps)
        log_prob = network.apply(params, traj.obs)[0].log_prob(traj.action)
        gradient, metrics = window_gradient(
            network,
            params if corrected else snapshot,
            traj,
            gamma=gamma,
            lambda_=lambda_,
            value_coef=value_coef,
            entropy_coef=entropy_coef,
            corrected=corrected,
        )
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params, count = optax.apply_updates(params, updates), state.num_updates + 1
        metrics |= stats.metrics() | {
            "delay": (state.num_updates - state.copied_at[worker]).astype(float),
            "importance_ratio": importance_ratio(log_prob, traj.log_prob).mean(),
        }
        snapshots, env_carries, copied_at = jax.tree.map(
            lambda all, one: all.at[worker].set(one),
            (snapshots, state.env_carry, state.copied_at),
            (params, env_carry, count),
        )
        # read after it was written, so that the compiler needs no second copy of all workers'
        snapshot = jax.tree.map(lambda x: x[following], snapshots)
        return (
            State(Learned(params, opt_state, snapshots), env_carries, copied_at, count),
            snapshot,
        ), metrics

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        order_key, update_key = jax.random.split(key)
        if random_order:
            workers = jax.random.randint(order_key, (num_updates,), 0, num_active)
        else:
            workers = (state.num_updates + jnp.arange(num_updates)) % num_active
        inputs = jax.random.split(update_key, num_updates), workers, jnp.roll(workers, -1)
        first = jax.tree.map(lambda x: x[workers[0]], state.learned.snapshots)
        (state, _), metrics = scan_ahead(update, (state, first), inputs)
        env_steps = jnp.asarray(num_envs * num_steps * num_updates, jnp.int32)
        return state, reduce_updates(metrics) | {"env_steps": env_steps}

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return network.apply(state.learned.params, obs)[0].mode()

    return Algorithm(init, step, act)
