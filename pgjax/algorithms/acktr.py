"""Actor-critic using Kronecker-factored trust regions: A2C whose steps are natural gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax._checks import at_least_one
from pgjax.estimators.advantages import gae, standardize
from pgjax.losses.policy import score_function_loss
from pgjax.losses.value import squared_error_loss
from pgjax.metrics import explained_variance, surrogate_improvement
from pgjax.minibatch import by_time, to_batch
from pgjax.natural.kfac import KFACOptimizer, OptimizerState, factors, refresh
from pgjax.rollouts import EnvCarry, EpisodeStats, reduce_updates, reset_envs, rollout
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
        actor_opt_state: of its optimizer, with the curvature.
        critic_params: of the critic.
        critic_opt_state: of its optimizer, with the curvature.
    """

    actor_params: Any
    actor_opt_state: OptimizerState
    critic_params: Any
    critic_opt_state: OptimizerState


class State(NamedTuple):
    """A run between two iterations.

    Attributes:
        learned: what learns.
        env_carry: where the environments stand.
        uncounted_steps: int32 scalar, steps of the rollout in `init` that no iteration has counted yet.
    """

    learned: Learned
    env_carry: EnvCarry
    uncounted_steps: Array


def make(
    env: Environment,
    env_params: Any,
    actor: Network,
    critic: Network,
    actor_optimizer: KFACOptimizer,
    critic_optimizer: KFACOptimizer,
    *,
    num_envs: int = 32,
    num_steps: int = 20,
    num_updates: int = 10,
    gamma: Numeric = 0.99,
    lambda_: Numeric = 1.0,
    entropy_coef: Numeric = 0.01,
    normalize_advantage: bool = False,
) -> Algorithm[State]:
    """ACKTR; one iteration decomposes the curvature once, then makes `num_updates` updates.

    Each update takes `num_envs * num_steps` environment steps, one step of the actor and one of the critic,
    and adds the factors of its batch to the running averages. Actor and critic have a trust region each. The
    factors of a first rollout, made in `init`, are what the first iteration decomposes.

    Args:
        env: the environment.
        env_params: its parameters.
        actor: `obs -> Distribution`, of dense layers; a state-independent log σ may come with them.
        critic: `obs -> V [...]`, of dense layers.
        actor_optimizer: from `natural.kfac.kfac_optimizer`; trust region, momentum and damping are its own.
        critic_optimizer: the same for the critic.
        num_envs: N.
        num_steps: T, the length of the window.
        num_updates: k, how many updates share a decomposition.
        gamma: discount factor.
        lambda_: trace decay of the advantage; 1 is the n-step advantage of the paper.
        entropy_coef: weight of the entropy bonus.
        normalize_advantage: standardise the advantages of the batch.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1 or an optimizer is not from `kfac_optimizer`; when it
            is initialised, if a network has parameters that K-FAC does not cover.

    References:
        Wu et al. 2017, Scalable trust-region method for deep reinforcement learning using Kronecker-factored
        approximation, section 3.
    """
    at_least_one(num_envs=num_envs, num_steps=num_steps, num_updates=num_updates)
    if not (isinstance(actor_optimizer, KFACOptimizer) and isinstance(critic_optimizer, KFACOptimizer)):
        raise ValueError(
            "ACKTR's optimizers carry the curvature: make them with pgjax.natural.kfac.kfac_optimizer."
        )

    def collect(key: PRNGKey, params: Any, carry: EnvCarry) -> tuple[EnvCarry, Transition, EpisodeStats]:
        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return actor.apply(params, obs).sample_and_log_prob(key)

        return rollout(key, carry, policy, env, env_params, num_steps)

    def init(key: PRNGKey) -> State:
        env_key, actor_key, critic_key, act_key, actor_factor_key, critic_factor_key = jax.random.split(
            key, 6
        )
        env_carry = reset_envs(env_key, env, env_params, num_envs)
        actor_params = actor.init(actor_key, env_carry.obs)
        critic_params = critic.init(critic_key, env_carry.obs)
        env_carry, traj, _ = collect(act_key, actor_params, env_carry)
        learned = Learned(
            actor_params,
            see(actor_factor_key, actor, actor_params, actor_optimizer, traj.obs),
            critic_params,
            see(critic_factor_key, critic, critic_params, critic_optimizer, traj.obs),
        )
        return State(learned, env_carry, jnp.full((), num_envs * num_steps, jnp.int32))

    def see(
        key: PRNGKey, network: Network, params: Any, optimizer: KFACOptimizer, obs: ArrayTree
    ) -> OptimizerState:
        """An optimizer that has seen one batch and moved nothing."""
        start = optimizer.init(params)
        zero = jax.tree.map(jnp.zeros_like, params)
        found = factors(network.apply, params, to_batch(obs), key)
        _, seen = optimizer.update(zero, start, factors=found, refresh_now=False)
        return start._replace(kfac=seen.kfac)

    def improve_actor(key: PRNGKey, learned: Learned, batch: Transition, advantage: Array) -> Any:
        params, opt_state = learned.actor_params, learned.actor_opt_state

        def loss(params: Any) -> Any:
            policy = actor.apply(params, batch.obs)
            policy_loss = score_function_loss(policy.log_prob(batch.action), advantage).mean()
            entropy = policy.entropy().mean()
            return policy_loss - entropy_coef * entropy, (policy, policy_loss, entropy)

        gradient, (old, policy_loss, entropy) = jax.grad(loss, has_aux=True)(params)
        found = factors(actor.apply, params, batch.obs, key)
        updates, opt_state = actor_optimizer.update(gradient, opt_state, factors=found, refresh_now=False)
        params = optax.apply_updates(params, updates)
        new = actor.apply(params, batch.obs)
        gain = surrogate_improvement(new.log_prob(batch.action), old.log_prob(batch.action), advantage)
        metrics = {
            "policy_loss": policy_loss,
            "entropy": entropy,
            "grad_norm": optax.tree.norm(gradient),
            "kl": old.kl(new).mean(),
            "predicted_improvement": -jnp.asarray(optax.tree.vdot(gradient, updates)),
            "improvement": gain + entropy_coef * (new.entropy().mean() - entropy),
            "step_norm": optax.tree.norm(updates),
            "trust_scale": opt_state.trust_scale,
        }
        return (params, opt_state), metrics

    def improve_critic(key: PRNGKey, learned: Learned, batch: Transition, target: Array) -> Any:
        params, opt_state = learned.critic_params, learned.critic_opt_state

        def loss(params: Any) -> Array:
            return squared_error_loss(critic.apply(params, batch.obs), target).mean()

        value_loss, gradient = jax.value_and_grad(loss)(params)
        found = factors(critic.apply, params, batch.obs, key)
        updates, opt_state = critic_optimizer.update(gradient, opt_state, factors=found, refresh_now=False)
        metrics = {"value_loss": value_loss, "critic_trust_scale": opt_state.trust_scale}
        return (optax.apply_updates(params, updates), opt_state), metrics

    def update(state: tuple[Learned, EnvCarry], key: PRNGKey) -> tuple[tuple[Learned, EnvCarry], Metrics]:
        learned, env_carry = state
        act_key, actor_key, critic_key = jax.random.split(key, 3)
        env_carry, traj, stats = collect(act_key, learned.actor_params, env_carry)
        batch = to_batch(traj)
        # of the very batch that the critic learns from: its gradient shares the forward pass
        values = [critic.apply(learned.critic_params, obs) for obs in (batch.obs, batch.next_obs)]
        value, next_value = by_time(values, num_steps)
        advantage = gae(
            traj.reward, value, next_value, traj.terminated, traj.truncated, gamma=gamma, lambda_=lambda_
        )
        target = advantage + value
        weight = standardize(advantage) if normalize_advantage else advantage
        new_actor, actor_metrics = improve_actor(actor_key, learned, batch, to_batch(weight))
        new_critic, critic_metrics = improve_critic(critic_key, learned, batch, to_batch(target))
        metrics = actor_metrics | critic_metrics | stats.metrics()
        metrics["explained_variance"] = explained_variance(value, target)
        return (Learned(*new_actor, *new_critic), env_carry), metrics

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        learned = state.learned._replace(
            actor_opt_state=_refreshed(state.learned.actor_opt_state),
            critic_opt_state=_refreshed(state.learned.critic_opt_state),
        )
        keys = jax.random.split(key, num_updates)
        (learned, env_carry), metrics = jax.lax.scan(update, (learned, state.env_carry), keys)
        env_steps = num_envs * num_steps * num_updates + state.uncounted_steps
        new_state = State(learned, env_carry, jnp.zeros((), jnp.int32))
        return new_state, reduce_updates(metrics) | {"env_steps": env_steps}

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return actor.apply(state.learned.actor_params, obs).mode()

    return Algorithm(init, step, act)


def _refreshed(state: OptimizerState) -> OptimizerState:
    return state._replace(kfac=refresh(state.kfac))
