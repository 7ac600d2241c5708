"""Twin delayed DDPG: two critics, of which the lower counts, targets with noise, and a slower actor."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pgjax import experience
from pgjax._ahead import scan_ahead
from pgjax._checks import at_least_one
from pgjax.deterministic import Learned, Learner, explorer
from pgjax.experience import Batch, State
from pgjax.exploration import add_noise, check_box_actions, gaussian_noise
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
    num_steps: int = 2,
    num_updates: int = 500,
    num_gradient_steps: int = 2,
    batch_size: int = 256,
    capacity: int = 1_000_000,
    warmup_steps: int = 1000,
    gamma: Numeric = 0.99,
    tau: Numeric = 0.005,
    noise_std: Numeric = 0.1,
    noise_correlation: Numeric = 0.0,
    num_critics: int = 2,
    policy_delay: int = 2,
    target_noise_std: Numeric = 0.2,
    target_noise_clip: Numeric = 0.5,
) -> Algorithm[State]:
    """TD3; one iteration is `num_envs * num_steps * num_updates` environment steps.

    Of the gradient steps of the critics every `policy_delay`-th is followed by one of the actor, and by a
    move of all targets. The actor follows the first critic alone.

    Args:
        env: the environment, its actions in a box.
        env_params: its parameters.
        actor: `obs -> action`, within the box: `networks.DeterministicActor`.
        critic: `(obs, action) -> Q [...]`: `networks.ActionCritic`.
        actor_optimizer: of the actor.
        critic_optimizer: of the critics.
        num_envs: N.
        num_steps: steps of every environment between two calls to learn.
        num_updates: how often in an iteration it acts and then learns.
        num_gradient_steps: gradient steps of the critics each time, a multiple of `policy_delay`.
        batch_size: transitions of a gradient step.
        capacity: of the replay buffer, in transitions.
        warmup_steps: random environment steps before all else.
        gamma: discount factor.
        tau: part of the way that the targets go when they move.
        noise_std: of exploration, in units of half the action range.
        noise_correlation: of that noise with the step before; 0: independent, near 1: it pushes one way for
            long.
        num_critics: K; the target is the least of them.
        policy_delay: gradient steps of the critics for each of the actor.
        target_noise_std: of the noise on the target's action, in units of half the action range.
        target_noise_clip: where that noise is cut off, in the same units.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, if the warm-up leaves the buffer empty, if
            `policy_delay` does not divide `num_gradient_steps`, or the actions are not a box with bounds.

    References:
        Fujimoto et al. 2018, Addressing function approximation error in actor-critic methods, algorithm 1.
    """
    if policy_delay < 1 or num_gradient_steps % policy_delay:
        raise ValueError(
            f"policy_delay={policy_delay} must divide num_gradient_steps={num_gradient_steps}: the actor "
            "moves after every policy_delay-th step of the critics."
        )
    at_least_one(num_critics=num_critics)
    learner = Learner(actor, Ensemble(critic, num_critics), actor_optimizer, critic_optimizer)
    space = env.action_space(env_params)
    check_box_actions(space)

    def critic_step(learned: Learned, inputs: tuple[PRNGKey, Batch]) -> tuple[Learned, Metrics]:
        key, batch = inputs
        next_action = actor.apply(learned.target_actor_params, batch.transition.next_obs)
        noise = gaussian_noise(key, next_action.shape, std=target_noise_std, noise_clip=target_noise_clip)
        return learner.fit_critics(learned, batch, add_noise(next_action, noise, space.low, space.high))

    def delayed_step(learned: Learned, inputs: tuple[PRNGKey, Batch]) -> tuple[Learned, Metrics]:
        learned, metrics = scan_ahead(critic_step, learned, inputs)
        last = jax.tree.map(lambda x: x[-1], inputs[1].transition.obs)
        learned, actor_metrics = learner.improve_actor(learned, last)
        return learner.move_targets(learned, tau), jax.tree.map(jnp.mean, metrics) | actor_metrics

    def learn(key: PRNGKey, learned: Learned, batch: Batch) -> tuple[Learned, Metrics]:
        num_moves = num_gradient_steps // policy_delay
        keys = jax.random.split(key, num_moves * policy_delay).reshape(num_moves, policy_delay)
        batch = jax.tree.map(lambda x: x.reshape(num_moves, policy_delay, *x.shape[1:]), batch)
        learned, metrics = scan_ahead(delayed_step, learned, (keys, batch))
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
