"""REINFORCE: the likelihood-ratio gradient on whole episodes, with the weight of one's choice."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from pgjax.estimators.baselines import subtract_baseline
from pgjax.estimators.returns import reward_to_go, time_discount
from pgjax.losses.policy import score_function_loss
from pgjax.losses.value import squared_error_loss
from pgjax.metrics import approximate_kl, explained_variance
from pgjax.minibatch import to_batch
from pgjax.rollouts import episode_stats, rollout_episodes
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

Weight: TypeAlias = Callable[[Transition, Array, Callable[[ArrayTree], Array]], Array]
"""`(traj, valid [T, N], value) -> Ψ [T, N]`; `value(obs)` is the learned critic, zeros without one."""


class Learned(NamedTuple):
    """What learns.

    Attributes:
        actor_params: of the actor.
        actor_opt_state: of its optimizer.
        critic_params: of the critic; None without one.
        critic_opt_state: of its optimizer; None without one.
    """

    actor_params: Any
    actor_opt_state: Any
    critic_params: Any
    critic_opt_state: Any


class State(NamedTuple):
    """A run between two iterations; episodes start anew in each.

    Attributes:
        learned: what learns.
    """

    learned: Learned


def make(
    env: Environment,
    env_params: Any,
    actor: Network,
    actor_optimizer: optax.GradientTransformation,
    critic: Network | None = None,
    critic_optimizer: optax.GradientTransformation | None = None,
    *,
    weight: Weight | None = None,
    num_episodes: int = 8,
    max_steps: int = 500,
    gamma: Numeric = 0.99,
    discount_time: bool = False,
    entropy_coef: Numeric = 0.0,
    num_critic_steps: int = 80,
) -> Algorithm[State]:
    """REINFORCE; one iteration is `num_episodes` whole episodes and one step of the actor.

    Args:
        env: the environment.
        env_params: its parameters.
        actor: `obs -> Distribution`.
        actor_optimizer: of the actor; it is handed the gradient per trajectory, summed over time.
        critic: `obs -> value [...]`, fitted to the reward-to-go; None for none.
        critic_optimizer: of the critic.
        weight: Ψ; by default the reward-to-go, minus the critic's value if there is a critic (which adds
            no bias: it was fitted on earlier episodes).
        num_episodes: N.
        max_steps: where an episode is cut, truncated.
        gamma: discount factor of the default weight and of the critic's target.
        discount_time: multiply the weight by γ^t, which makes the estimate a gradient of the discounted
            objective.
        entropy_coef: weight of an entropy bonus.
        num_critic_steps: full-batch gradient steps of the critic in each iteration.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a critic comes without an optimizer or the reverse, or if `num_critic_steps < 1`.

    References:
        Williams 1992, Simple statistical gradient-following algorithms, section 5;
        Sutton & Barto 2018, section 13.4 (with a learned baseline).
    """
    if (critic is None) != (critic_optimizer is None):
        raise ValueError("critic and critic_optimizer belong together: give both or neither.")
    if num_critic_steps < 1:
        raise ValueError(f"num_critic_steps must be at least 1, got {num_critic_steps}.")

    def reset_obs(key: PRNGKey) -> ArrayTree:
        return env.reset(key, env_params)[0]

    def init(key: PRNGKey) -> State:
        env_key, actor_key, critic_key = jax.random.split(key, 3)
        obs = reset_obs(env_key)
        actor_params = actor.init(actor_key, obs)
        critic_params = critic_opt_state = None
        if critic is not None and critic_optimizer is not None:
            critic_params = critic.init(critic_key, obs)
            critic_opt_state = critic_optimizer.init(critic_params)
        return State(
            Learned(actor_params, actor_optimizer.init(actor_params), critic_params, critic_opt_state)
        )

    def actor_loss(params: Any, traj: Transition, psi: Array, valid: Array) -> tuple[Array, Metrics]:
        policy = actor.apply(params, traj.obs)
        policy_loss = score_function_loss(policy.log_prob(traj.action), psi)
        entropy = policy.entropy()
        loss = jnp.sum(policy_loss - entropy_coef * entropy, where=valid) / num_episodes
        return loss, {
            "policy_loss": jnp.mean(policy_loss, where=valid),
            "entropy": jnp.mean(entropy, where=valid),
        }

    def fit_critic(
        learned: Learned, traj: Transition, target: Array, valid: Array
    ) -> tuple[Learned, Metrics]:
        network, optimizer = critic, critic_optimizer
        if network is None or optimizer is None:
            return learned, {}

        def loss(params: Any) -> Array:
            return jnp.mean(squared_error_loss(network.apply(params, traj.obs), target), where=valid)

        def gradient_step(loop: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
            params, opt_state = loop
            value_loss, gradient = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value_loss

        loop = learned.critic_params, learned.critic_opt_state
        (params, opt_state), losses = jax.lax.scan(gradient_step, loop, length=num_critic_steps)
        explained = explained_variance(network.apply(learned.critic_params, traj.obs), target, valid)
        learned = learned._replace(critic_params=params, critic_opt_state=opt_state)
        return learned, {"value_loss": losses[0], "explained_variance": explained}

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        learned = state.learned

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return actor.apply(learned.actor_params, obs).sample_and_log_prob(key)

        def value(obs: ArrayTree) -> Array:
            return jnp.zeros(valid.shape) if critic is None else critic.apply(learned.critic_params, obs)

        traj, valid = rollout_episodes(key, policy, env, env_params, num_episodes, max_steps)
        stats = episode_stats(traj, valid)
        to_go = reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=gamma)
        psi = (
            subtract_baseline(to_go, value(traj.obs), valid) if weight is None else weight(traj, valid, value)
        )
        if discount_time:
            psi = psi * time_discount(traj.terminated, traj.truncated, gamma=gamma)
        traj, psi, to_go, valid = to_batch((traj, psi, to_go, valid))
        gradient, metrics = jax.grad(actor_loss, has_aux=True)(learned.actor_params, traj, psi, valid)
        updates, opt_state = actor_optimizer.update(gradient, learned.actor_opt_state, learned.actor_params)
        actor_params = optax.apply_updates(learned.actor_params, updates)
        log_prob = actor.apply(actor_params, traj.obs).log_prob(traj.action)
        kl = jnp.mean(approximate_kl(log_prob, traj.log_prob), where=valid)
        learned, critic_metrics = fit_critic(learned, traj, to_go, valid)
        learned = learned._replace(actor_params=actor_params, actor_opt_state=opt_state)
        metrics |= critic_metrics | stats.metrics()
        metrics |= {
            "env_steps": valid.sum(dtype=jnp.int32),
            "grad_norm": optax.tree.norm(gradient),
            "approx_kl": kl,
        }
        return State(learned), metrics

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return actor.apply(state.learned.actor_params, obs).mode()

    return Algorithm(init, step, act)
