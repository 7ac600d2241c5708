"""What DDPG and TD3 share: a deterministic actor, critics Q(s, a), and targets that follow both."""

from typing import Any, NamedTuple

import jax
import optax

from pgjax.experience import Batch, Explore, follow
from pgjax.exploration import add_noise, correlated_noise
from pgjax.losses.policy import deterministic_policy_loss
from pgjax.losses.value import clipped_double_q_loss
from pgjax.networks import Ensemble
from pgjax.types import Array, ArrayTree, Metrics, Network, Numeric, PRNGKey


class Learned(NamedTuple):
    """What learns.

    Attributes:
        actor_params: of the actor.
        critic_params: of the critics, leaves `[K, ...]`.
        target_actor_params: follow the actor's.
        target_critic_params: follow the critics'.
        actor_opt_state: of the actor's optimizer.
        critic_opt_state: of the critics'.
    """

    actor_params: Any
    critic_params: Any
    target_actor_params: Any
    target_critic_params: Any
    actor_opt_state: Any
    critic_opt_state: Any


class Learner(NamedTuple):
    """The parts, and the steps that are made of them.

    Attributes:
        actor: `obs -> action`.
        critics: `(obs, action) -> Q [K, ...]`.
        actor_optimizer: of the actor.
        critic_optimizer: of all critics.
    """

    actor: Network
    critics: Ensemble
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation

    def init(self, key: PRNGKey, obs: ArrayTree, action: Array) -> Learned:
        """What learns, at the start; targets are what they follow."""
        actor_key, critic_key = jax.random.split(key)
        actor_params = self.actor.init(actor_key, obs)
        critic_params = self.critics.init(critic_key, (obs, action))
        return Learned(
            actor_params,
            critic_params,
            actor_params,
            critic_params,
            self.actor_optimizer.init(actor_params),
            self.critic_optimizer.init(critic_params),
        )

    def act(self, key: PRNGKey, learned: Learned, obs: ArrayTree) -> Array:
        """The actor's action, without noise."""
        del key
        return self.actor.apply(learned.actor_params, obs)

    def fit_critics(self, learned: Learned, batch: Batch, next_action: Array) -> tuple[Learned, Metrics]:
        """One gradient step of the critics, towards what the targets say of `next_action`."""
        transition, discount = batch
        next_pair = transition.next_obs, next_action
        next_value = self.critics.apply(learned.target_critic_params, next_pair)

        def loss(params: Any) -> Any:
            value = self.critics.apply(params, (transition.obs, transition.action))
            error = clipped_double_q_loss(
                value, transition.reward, next_value, transition.terminated, gamma=discount
            )
            # a sum over the critics: each learns as if it were alone
            return error.mean(-1).sum(), {"value_loss": error.mean(), "action_value": value.mean()}

        gradient, metrics = jax.grad(loss, has_aux=True)(learned.critic_params)
        updates, opt_state = self.critic_optimizer.update(
            gradient, learned.critic_opt_state, learned.critic_params
        )
        params = optax.apply_updates(learned.critic_params, updates)
        return learned._replace(critic_params=params, critic_opt_state=opt_state), metrics

    def improve_actor(self, learned: Learned, obs: ArrayTree) -> tuple[Learned, Metrics]:
        """One gradient step of the actor, up the first critic."""
        first = jax.tree.map(lambda x: x[0], learned.critic_params)

        def loss(params: Any) -> Array:
            action = self.actor.apply(params, obs)
            return deterministic_policy_loss(self.critics.network.apply(first, (obs, action))).mean()

        policy_loss, gradient = jax.value_and_grad(loss)(learned.actor_params)
        updates, opt_state = self.actor_optimizer.update(
            gradient, learned.actor_opt_state, learned.actor_params
        )
        params = optax.apply_updates(learned.actor_params, updates)
        metrics = {"policy_loss": policy_loss, "grad_norm": optax.tree.norm(gradient)}
        return learned._replace(actor_params=params, actor_opt_state=opt_state), metrics

    def move_targets(self, learned: Learned, tau: Numeric) -> Learned:
        """Both targets a part τ of the way."""
        return learned._replace(
            target_actor_params=follow(learned.target_actor_params, learned.actor_params, tau),
            target_critic_params=follow(learned.target_critic_params, learned.critic_params, tau),
        )


def explorer(
    actor: Network, low: Any, high: Any, *, noise_std: Numeric, noise_correlation: Numeric
) -> Explore:
    """The actor with noise.

    Args:
        actor: `obs -> action`.
        low: lower bounds of the action.
        high: upper bounds.
        noise_std: in units of half the action range.
        noise_correlation: of the noise with that of the step before.

    Returns:
        For `experience.make`.
    """

    def explore(key: PRNGKey, learned: Learned, obs: ArrayTree, noise: Array, env_steps: Array) -> Any:
        del env_steps
        noise = correlated_noise(key, noise, correlation=noise_correlation)
        return add_noise(actor.apply(learned.actor_params, obs), noise_std * noise, low, high), noise

    return explore
