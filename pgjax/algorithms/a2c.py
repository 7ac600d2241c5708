"""Advantage actor-critic: short windows from many environments, one gradient step each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax._checks import at_least_one
from pgjax.metrics import approximate_kl
from pgjax.minibatch import to_batch
from pgjax.rollouts import EnvCarry, reset_envs, rollout
from pgjax.types import Algorithm, Array, ArrayTree, Environment, Metrics, Network, Numeric, PRNGKey
from pgjax.windows import window_gradient


class Learned(NamedTuple):
    """What learns.

    Attributes:
        params: of the network.
        opt_state: of the optimizer.
    """

    params: Any
    opt_state: Any


class State(NamedTuple):
    """A run between two iterations.

    Attributes:
        learned: what learns.
        env_carry: where the environments stand.
    """

    learned: Learned
    env_carry: EnvCarry


def make(
    env: Environment,
    env_params: Any,
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 8,
    num_steps: int = 5,
    gamma: Numeric = 0.99,
    lambda_: Numeric = 1.0,
    value_coef: Numeric = 0.5,
    entropy_coef: Numeric = 0.0,
    normalize_advantage: bool = False,
) -> Algorithm[State]:
    """A2C; one iteration is `num_envs * num_steps` environment steps and one gradient step.

    Args:
        env: the environment.
        env_params: its parameters.
        network: `obs -> (Distribution, value [...])`, such as `networks.ActorCritic`.
        optimizer: of all parameters; put the clipping by global norm into it.
        num_envs: N.
        num_steps: T, the length of the window.
        gamma: discount factor.
        lambda_: trace decay of the advantage; 1 is the n-step advantage of the paper.
        value_coef: weight of the critic's loss.
        entropy_coef: weight of the entropy bonus.
        normalize_advantage: standardise the advantages of the batch.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1.

    References:
        Mnih et al. 2016, Asynchronous methods for deep RL, algorithm S3, taken synchronously.
    """
    at_least_one(num_envs=num_envs, num_steps=num_steps)

    def init(key: PRNGKey) -> State:
        env_key, params_key = jax.random.split(key)
        env_carry = reset_envs(env_key, env, env_params, num_envs)
        params = network.init(params_key, env_carry.obs)
        return State(Learned(params, optimizer.init(params)), env_carry)

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        params, opt_state = state.learned

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return network.apply(params, obs)[0].sample_and_log_prob(key)

        env_carry, traj, stats = rollout(key, state.env_carry, policy, env, env_params, num_steps)
        gradient, metrics = window_gradient(
            network,
            params,
            traj,
            gamma=gamma,
            lambda_=lambda_,
            value_coef=value_coef,
            entropy_coef=entropy_coef,
            normalize_advantage=normalize_advantage,
        )
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        new_params = optax.apply_updates(params, updates)
        batch = to_batch(traj)
        log_prob = network.apply(new_params, batch.obs)[0].log_prob(batch.action)
        metrics |= stats.metrics() | {
            "env_steps": jnp.asarray(num_envs * num_steps, jnp.int32),
            "approx_kl": approximate_kl(log_prob, batch.log_prob).mean(),
        }
        return State(Learned(new_params, opt_state), env_carry), metrics

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return network.apply(state.learned.params, obs)[0].mode()

    return Algorithm(init, step, act)
