"""What NPG and TRPO share: an actor improved by one step an iteration, and a critic fitted beside it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax._checks import at_least_one
from pgjax.estimators.advantages import gae, standardize
from pgjax.losses.policy import score_function_loss
from pgjax.losses.value import squared_error_loss
from pgjax.metrics import explained_variance, surrogate_improvement
from pgjax.minibatch import minibatch_descent, to_batch, to_shards
from pgjax.natural.fisher import CGInfo, natural_gradient
from pgjax.rollouts import EnvCarry, reset_envs, rollout
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
from pgjax.values import rollout_values


class Learned(NamedTuple):
    """What learns.

    Attributes:
        actor_params: of the actor.
        critic_params: of the critic.
        critic_opt_state: of the critic's optimizer.
    """

    actor_params: Any
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


class NaturalStep(NamedTuple):
    """The natural gradient of the surrogate at the policy that acted, and what it came from.

    Attributes:
        surrogate: `params -> (mean improvement, mean KL(old ‖ new))`, both 0 at the old parameters. The bonus
            for entropy is a part of the improvement.
        gradient: of the mean improvement.
        direction: the natural gradient.
        cg: how well it was solved for.
        metrics: `policy_loss`, `entropy` and `grad_norm` at the policy that acted.
    """

    surrogate: Callable[[Any], tuple[Array, Array]]
    gradient: Any
    direction: Any
    cg: CGInfo
    metrics: Metrics


def natural_step(
    actor: Network,
    params: Any,
    traj: Transition,
    advantage: Array,
    *,
    damping: Numeric,
    cg_iters: int,
    fisher_stride: int,
    num_chunks: int,
    entropy_coef: Numeric,
) -> NaturalStep:
    """The natural gradient of the surrogate on one rollout; means over steps on both sides.

    Args:
        actor: `obs -> Distribution`.
        params: of the actor, as it acted.
        traj: leaves `[T, N, ...]`.
        advantage: `[T, N]`.
        damping: λ.
        cg_iters: iterations of conjugate gradients.
        fisher_stride: take every `fisher_stride`-th time step for the curvature.
        num_chunks: of the Fisher's batch.
        entropy_coef: weight of the entropy bonus.

    Returns:
        The step, before any scaling.
    """
    seen = jax.tree.map(lambda x: x[::fisher_stride], traj.obs)
    if num_chunks == 1:  # otherwise they are of time, so that all environments have a part in each
        seen = to_batch(seen)
    traj, advantage = to_batch((traj, advantage))
    old = jax.lax.stop_gradient(actor.apply(params, traj.obs))
    old_log_prob, entropy = old.log_prob(traj.action), old.entropy().mean()

    def surrogate(params: Any) -> tuple[Array, Array]:
        new = actor.apply(params, traj.obs)
        improvement = surrogate_improvement(new.log_prob(traj.action), old_log_prob, advantage)
        improvement += entropy_coef * (new.entropy().mean() - entropy)
        return improvement, old.kl(new).mean()

    gradient = jax.grad(lambda params: surrogate(params)[0])(params)
    direction, cg = natural_gradient(
        actor.apply, params, seen, gradient, damping=damping, cg_iters=cg_iters, num_chunks=num_chunks
    )
    metrics = {
        "policy_loss": score_function_loss(old_log_prob, advantage).mean(),
        "entropy": entropy,
        "grad_norm": optax.tree.norm(gradient),
    }
    return NaturalStep(surrogate, gradient, direction, cg, metrics)


def make(
    env: Environment,
    env_params: Any,
    actor: Network,
    critic: Network,
    critic_optimizer: optax.GradientTransformation,
    improve: Callable[[Any, Transition, Array], tuple[Any, Metrics]],
    *,
    num_envs: int,
    num_steps: int,
    gamma: Numeric,
    lambda_: Numeric,
    fisher_stride: int,
    num_chunks: int,
    normalize_advantage: bool,
    critic_epochs: int,
    critic_minibatches: int,
    num_shards: int | None,
) -> Algorithm[State]:
    """An algorithm of one policy step an iteration; the critic's step never touches the actor.

    Args:
        env: the environment.
        env_params: its parameters.
        actor: `obs -> Distribution`.
        critic: `obs -> V [...]`.
        critic_optimizer: of the critic.
        improve: `(actor_params, traj, advantage) -> (actor_params, metrics)`.
        num_envs: N.
        num_steps: T.
        gamma: discount factor.
        lambda_: trace decay of the advantage.
        fisher_stride: checked here, used by `improve`.
        num_chunks: checked here, used by `improve`.
        normalize_advantage: standardise the advantages of a rollout.
        critic_epochs: passes of the critic over a rollout.
        critic_minibatches: gradient steps of the critic in each pass.
        num_shards: of the critic's shuffles; None: `gcd(num_envs, 8)`.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, or if the sizes do not divide.
    """
    at_least_one(
        num_envs=num_envs, num_steps=num_steps, critic_epochs=critic_epochs, fisher_stride=fisher_stride
    )
    shards = math.gcd(num_envs, 8) if num_shards is None else num_shards
    if shards < 1 or num_envs % shards:
        raise ValueError(f"num_shards={shards} must divide num_envs={num_envs}.")
    if critic_minibatches < 1 or (num_envs * num_steps // shards) % critic_minibatches:
        raise ValueError(
            f"critic_minibatches={critic_minibatches} must divide the {num_envs * num_steps // shards} "
            f"samples of a shard (num_envs={num_envs} × num_steps={num_steps} over num_shards={shards})."
        )
    if num_chunks < 1 or len(range(0, num_steps, fisher_stride)) % num_chunks:
        raise ValueError(
            f"num_chunks={num_chunks} must divide the {len(range(0, num_steps, fisher_stride))} time steps "
            "that the Fisher information is taken over."
        )

    def init(key: PRNGKey) -> State:
        env_key, actor_key, critic_key = jax.random.split(key, 3)
        env_carry = reset_envs(env_key, env, env_params, num_envs)
        critic_params = critic.init(critic_key, env_carry.obs)
        learned = Learned(
            actor.init(actor_key, env_carry.obs), critic_params, critic_optimizer.init(critic_params)
        )
        return State(learned, env_carry)

    def critic_loss(params: Any, batch: tuple[ArrayTree, Array]) -> Array:
        obs, target = batch
        return squared_error_loss(critic.apply(params, obs), target).mean()

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        act_key, fit_key = jax.random.split(key)
        learned = state.learned

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return actor.apply(learned.actor_params, obs).sample_and_log_prob(key)

        env_carry, traj, stats = rollout(act_key, state.env_carry, policy, env, env_params, num_steps)
        value, next_value = rollout_values(lambda obs: critic.apply(learned.critic_params, obs), traj)
        advantage = gae(
            traj.reward, value, next_value, traj.terminated, traj.truncated, gamma=gamma, lambda_=lambda_
        )
        target = advantage + value
        if normalize_advantage:
            advantage = standardize(advantage)
        actor_params, metrics = improve(learned.actor_params, traj, advantage)
        critic_params, critic_opt_state, value_loss = minibatch_descent(
            fit_key,
            critic_loss,
            critic_optimizer,
            learned.critic_params,
            learned.critic_opt_state,
            to_shards((traj.obs, target), shards),
            num_minibatches=critic_minibatches,
            num_epochs=critic_epochs,
        )
        metrics |= stats.metrics() | {
            "env_steps": jnp.asarray(num_envs * num_steps, jnp.int32),
            "value_loss": value_loss,
            "explained_variance": explained_variance(value, target),
        }
        return State(Learned(actor_params, critic_params, critic_opt_state), env_carry), metrics

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return actor.apply(state.learned.actor_params, obs).mode()

    return Algorithm(init, step, act)
