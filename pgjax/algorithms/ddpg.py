"""Deep deterministic policy gradient: climb a learned Q(s, a) through the action."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pgjax import experience
from pgjax.deterministic import Learned, Learner, explorer
from pgjax.experience import Batch, State
from pgjax.exploration import check_box_actions
from pgjax.networks import Ensemble
from pgjax.types import Algorithm, DescribedEnvironment, Metrics, Network, Numeric, PRNGKey


def make(
    env: DescribedEnvironment,
    env_params: Any,
    actor: Network,
    critic: Network,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 1,
    num_steps: int = 1,
    num_updates: int = 1000,
    num_gradient_steps: int = 1,
    batch_size: int = 256,
    capacity: int = 1_000_000,
    warmup_steps: int = 1000,
    gamma: Numeric = 0.99,
    tau: Numeric = 0.005,
    noise_std: Numeric = 0.1,
    noise_correlation: Numeric = 0.0,
) -> Algorithm[State]:
    """DDPG; one iteration is `num_envs * num_steps * num_updates` environment steps.

    Args:
        env: the environment, its actions in a box.
        env_params: its parameters.
        actor: `obs -> action`, within the box: `networks.DeterministicActor`.
        critic: `(obs, action) -> Q [...]`: `networks.ActionCritic`.
        actor_optimizer: of the actor.
        critic_optimizer: of the critic.
        num_envs: N.
        num_steps: steps of every environment between two calls to learn.
        num_updates: how often in an iteration it acts and then learns.
        num_gradient_steps: gradient steps of critic and actor each time.
        batch_size: transitions of a gradient step.
        capacity: of the replay buffer, in transitions.
        warmup_steps: random environment steps before all else.
        gamma: discount factor.
        tau: part of the way that the targets go when they move.
        noise_std: of exploration, in units of half the action range.
        noise_correlation: of that noise with the step before; 0: independent, near 1: it pushes one way for
            long.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, if the warm-up leaves the buffer empty, or if the
            actions are not a box with bounds.

    References:
        Lillicrap et al. 2016, Continuous control with deep reinforcement learning, algorithm 1. Its noise is
        an Ornstein-Uhlenbeck process; here it is independent by default, as in Stable-Baselines3 and CleanRL,
        which also leave out the paper's batch normalisation and weight decay.
    """
    learner = Learner(actor, Ensemble(critic, 1), actor_optimizer, critic_optimizer)
    space = env.action_space(env_params)
    check_box_actions(space)

    def gradient_step(learned: Learned, batch: Batch) -> tuple[Learned, Metrics]:
        next_action = actor.apply(learned.target_actor_params, batch.transition.next_obs)
        learned, critic_metrics = learner.fit_critics(learned, batch, next_action)
        learned, actor_metrics = learner.improve_actor(learned, batch.transition.obs)
        return learner.move_targets(learned, tau), critic_metrics | actor_metrics

    def learn(key: PRNGKey, learned: Learned, batch: Batch) -> tuple[Learned, Metrics]:
        del key
        learned, metrics = jax.lax.scan(gradient_step, learned, batch)
        return learned, jax.tree.map(jnp.mean, metrics)

    return experience.make(
        env,
        env_params,
        learner.init,
        explorer(actor, space.low, space.high, noise_std=noise_std, noise_correlation=noise_correlation),
        learn,
        learner.act,
        num_envs=num_envs,
        num_steps=num_steps,
        num_updates=num_updates,
        num_gradient_steps=num_gradient_steps,
        batch_size=batch_size,
        capacity=capacity,
        warmup_steps=warmup_steps,
        gamma=gamma,
        noise_shape=space.shape,
    )
