"""What Q-learning and SARSA share: act ε-greedily, and learn from every step at once, without replay."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from pgjax._ahead import scan_ahead
from pgjax._checks import at_least_one
from pgjax.exploration import check_finite_actions, epsilon_greedy, linear_epsilon
from pgjax.networks import allowed, split_mask
from pgjax.rollouts import EnvCarry, reduce_updates, reset_envs, rollout
from pgjax.types import (
    Algorithm,
    Array,
    ArrayTree,
    DescribedEnvironment,
    Metrics,
    Network,
    Numeric,
    PRNGKey,
    Transition,
)


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
        action: `[N]`, what SARSA has decided to do there.
        env_steps: int32 scalar, so far.
    """

    learned: Learned
    env_carry: EnvCarry
    action: Array
    env_steps: Array


Error: TypeAlias = Callable[[Array, Array, Transition, Array], Array]
"""`(Q(s, ·) [N, A], Q(s', ·) [N, A], transition, a' [N]) -> loss [N]`; a' is the next action on policy."""


def make(
    env: DescribedEnvironment,
    env_params: Any,
    q_network: Network,
    optimizer: optax.GradientTransformation,
    error: Error,
    *,
    on_policy: bool,
    num_envs: int,
    num_updates: int,
    epsilon_start: Numeric,
    epsilon_end: Numeric,
    exploration_steps: Numeric,
) -> Algorithm[State]:
    """An algorithm that takes one gradient step at each step of its environments.

    Args:
        env: the environment, with a finite number of actions.
        env_params: its parameters.
        q_network: `obs -> Q [..., A]`.
        optimizer: of the network.
        error: the loss of one step.
        on_policy: decide on the next action before learning, let the loss see it, and take it; otherwise
            decide after learning.
        num_envs: N; a gradient step takes the mean over them.
        num_updates: steps of every environment, and gradient steps, in an iteration.
        epsilon_start: ε at the start.
        epsilon_end: ε at the end.
        exploration_steps: environment steps until the end.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, or if the actions are continuous.
    """
    check_finite_actions(env.action_space(env_params))
    at_least_one(num_envs=num_envs, num_updates=num_updates)

    def explore(key: PRNGKey, params: Any, obs: ArrayTree, env_steps: Array) -> Array:
        epsilon = linear_epsilon(env_steps, start=epsilon_start, end=epsilon_end, num_steps=exploration_steps)
        policy = epsilon_greedy(q_network.apply(params, obs), split_mask(obs)[1], epsilon=epsilon)
        return policy.sample(key)

    def init(key: PRNGKey) -> State:
        env_key, params_key, action_key = jax.random.split(key, 3)
        env_carry = reset_envs(env_key, env, env_params, num_envs)
        params = q_network.init(params_key, env_carry.obs)
        env_steps = jnp.zeros((), jnp.int32)
        action = explore(action_key, params, env_carry.obs, env_steps)
        return State(Learned(params, optimizer.init(params)), env_carry, action, env_steps)

    def update(state: State, key: PRNGKey) -> tuple[State, Metrics]:
        env_key, action_key, start_key = jax.random.split(key, 3)
        (params, opt_state), env_steps = state.learned, state.env_steps + num_envs
        action = state.action
        if not on_policy:
            action = explore(action_key, params, state.env_carry.obs, state.env_steps)

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            del key, obs
            return action, jnp.zeros(num_envs)

        env_carry, traj, stats = rollout(env_key, state.env_carry, policy, env, env_params, 1)
        transition = jax.tree.map(lambda x: x[0], traj)
        next_action = following = action
        if on_policy:
            next_action = explore(action_key, params, transition.next_obs, env_steps)
            first_action = explore(start_key, params, env_carry.obs, env_steps)
            following = jnp.where(transition.terminated | transition.truncated, first_action, next_action)

        def loss(params: Any) -> tuple[Array, Metrics]:
            value, next_value = (q_network.apply(params, o) for o in (transition.obs, transition.next_obs))
            mean = error(value, next_value, transition, next_action).mean()
            return mean, {"value_loss": mean, "action_value": allowed(value, transition.obs).max(-1).mean()}

        gradient, metrics = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        learned = Learned(optax.apply_updates(params, updates), opt_state)
        metrics |= stats.metrics() | {"grad_norm": optax.tree.norm(gradient)}
        return State(learned, env_carry, following, env_steps), metrics

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        state, metrics = scan_ahead(update, state, jax.random.split(key, num_updates))
        env_steps = jnp.asarray(num_envs * num_updates, jnp.int32)
        return state, reduce_updates(metrics) | {"env_steps": env_steps}

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        value, mask = q_network.apply(state.learned.params, obs), split_mask(obs)[1]
        return epsilon_greedy(value, mask, epsilon=0.0).mode()

    return Algorithm(init, step, act)
