"""One-step actor-critic: both networks learn from every single step of the environments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax._checks import at_least_one
from pgjax.estimators.advantages import td_error
from pgjax.estimators.returns import time_discount
from pgjax.losses.policy import all_action_loss, score_function_loss
from pgjax.losses.value import expected_sarsa_loss, squared_error_loss
from pgjax.rollouts import EnvCarry, reduce_updates, reset_envs, rollout
from pgjax.types import (
    Algorithm,
    Array,
    ArrayTree,
    Environment,
    Metrics,
    Network,
    Numeric,
    PRNGKey,
    Transition,
)


class Learned(NamedTuple):
    """What learns.

    Attributes:
        actor_params: of the actor.
        actor_opt_state: of its optimizer.
        critic_params: of the critic.
        critic_opt_state: of its optimizer.
    """

    actor_params: Any
    actor_opt_state: Any
    critic_params: Any
    critic_opt_state: Any


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
    actor: Network,
    critic: Network,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 8,
    num_updates: int = 32,
    gamma: Numeric = 0.99,
    all_action: bool = False,
    discount_time: bool = False,
    entropy_coef: Numeric = 0.0,
) -> Algorithm[State]:
    """Actor-critic; one iteration is `num_updates` times one step of every environment and one update.

    Args:
        env: the environment.
        env_params: its parameters.
        actor: `obs -> Distribution`.
        critic: `obs -> V [...]`, or with `all_action` `obs -> Q [..., A]`.
        actor_optimizer: of the actor.
        critic_optimizer: of the critic.
        num_envs: N.
        num_updates: updates in an iteration.
        gamma: discount factor.
        all_action: learn Q by expected SARSA and take the gradient's expectation over actions exactly;
            the actor must be categorical. Otherwise the weight is the TD error of V.
        discount_time: multiply the actor's weight by γ^t, as the pseudo-code does and practice does not.
        entropy_coef: weight of an entropy bonus.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1.

    References:
        Sutton & Barto 2018, section 13.5 (one-step actor-critic);
        Sutton et al. 2000, theorem 1 (with `all_action`).
    """
    at_least_one(num_envs=num_envs, num_updates=num_updates)

    def init(key: PRNGKey) -> State:
        env_key, actor_key, critic_key = jax.random.split(key, 3)
        env_carry = reset_envs(env_key, env, env_params, num_envs)
        actor_params = actor.init(actor_key, env_carry.obs)
        critic_params = critic.init(critic_key, env_carry.obs)
        return State(
            Learned(
                actor_params,
                actor_optimizer.init(actor_params),
                critic_params,
                critic_optimizer.init(critic_params),
            ),
            env_carry,
        )

    def actor_loss(params: Any, critic_params: Any, traj: Transition, discount: Array) -> Any:
        policy = actor.apply(params, traj.obs)
        if all_action:
            action_value = critic.apply(critic_params, traj.obs)
            state_value = (policy.probs * action_value).sum(-1, keepdims=True)
            policy_loss = (discount * all_action_loss(policy.probs, action_value - state_value)).mean()
            reported = (discount * all_action_loss(policy.probs, action_value)).mean()  # the other is 0
        else:
            value, next_value = (critic.apply(critic_params, obs) for obs in (traj.obs, traj.next_obs))
            delta = td_error(traj.reward, value, next_value, traj.terminated, gamma=gamma)
            policy_loss = reported = score_function_loss(
                policy.log_prob(traj.action), discount * delta
            ).mean()
        entropy = policy.entropy().mean()
        return policy_loss - entropy_coef * entropy, {"policy_loss": reported, "entropy": entropy}

    def critic_loss(params: Any, actor_params: Any, traj: Transition) -> Array:
        value, next_value = critic.apply(params, traj.obs), critic.apply(params, traj.next_obs)
        if all_action:
            next_probs = actor.apply(actor_params, traj.next_obs).probs
            return expected_sarsa_loss(
                value, traj.action, traj.reward, next_value, next_probs, traj.terminated, gamma=gamma
            ).mean()
        delta = td_error(traj.reward, value, next_value, traj.terminated, gamma=gamma)
        return squared_error_loss(value, value + delta).mean()

    def update(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        learned = state.learned

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return actor.apply(learned.actor_params, obs).sample_and_log_prob(key)

        env_carry, traj, stats = rollout(key, state.env_carry, policy, env, env_params, 1)
        discount = jnp.ones_like(traj.reward)
        if discount_time:
            start = state.env_carry.episode_length
            discount = time_discount(traj.terminated, traj.truncated, gamma=gamma, start=start)
        actor_gradient, metrics = jax.grad(actor_loss, has_aux=True)(
            learned.actor_params, learned.critic_params, traj, discount
        )
        value_loss, critic_gradient = jax.value_and_grad(critic_loss)(
            learned.critic_params, learned.actor_params, traj
        )
        actor_updates, actor_opt_state = actor_optimizer.update(
            actor_gradient, learned.actor_opt_state, learned.actor_params
        )
        critic_updates, critic_opt_state = critic_optimizer.update(
            critic_gradient, learned.critic_opt_state, learned.critic_params
        )
        learned = Learned(
            optax.apply_updates(learned.actor_params, actor_updates),
            actor_opt_state,
            optax.apply_updates(learned.critic_params, critic_updates),
            critic_opt_state,
        )
        metrics |= {"value_loss": value_loss, "grad_norm": optax.tree.norm(actor_gradient)}
        return State(learned, env_carry), metrics | stats.metrics()

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        keys = jax.random.split(key, num_updates)
        state, metrics = jax.lax.scan(lambda state, key: update(key, state), state, keys)
        env_steps = jnp.asarray(num_envs * num_updates, jnp.int32)
        return state, reduce_updates(metrics) | {"env_steps": env_steps}

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return actor.apply(state.learned.actor_params, obs).mode()

    return Algorithm(init, step, act)
