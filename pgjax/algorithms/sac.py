"""Soft actor-critic: the return with the policy's entropy in it, for boxes and for finite sets of actions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax import experience
from pgjax._ahead import scan_ahead
from pgjax._checks import at_least_one
from pgjax.experience import Batch, State, follow
from pgjax.exploration import check_box_actions, correlated_noise
from pgjax.losses.policy import expected_soft_policy_loss, soft_policy_loss, temperature_loss
from pgjax.losses.value import expected_soft_q_loss, soft_q_loss
from pgjax.networks import Ensemble
from pgjax.types import Algorithm, Array, ArrayTree, DescribedEnvironment, Metrics, Network, Numeric, PRNGKey


class Learned(NamedTuple):
    """What learns.

    Attributes:
        actor_params: of the actor.
        critic_params: of the critics, leaves `[K, ...]`.
        target_critic_params: follow the critics'.
        log_alpha: scalar, of the temperature.
        actor_opt_state: of the actor's optimizer.
        critic_opt_state: of the critics'.
        temperature_opt_state: of the temperature's.
    """

    actor_params: Any
    critic_params: Any
    target_critic_params: Any
    log_alpha: Array
    actor_opt_state: Any
    critic_opt_state: Any
    temperature_opt_state: Any


def make(
    env: DescribedEnvironment,
    env_params: Any,
    actor: Network,
    critic: Network,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    temperature_optimizer: optax.GradientTransformation,
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
    num_critics: int = 2,
    alpha: Numeric = 1.0,
    learn_alpha: bool = True,
    target_entropy: Numeric | None = None,
    noise_correlation: Numeric = 0.0,
) -> Algorithm[State]:
    """SAC; one iteration is `num_envs * num_steps * num_updates` environment steps.

    With a finite number of actions the expectations over them are taken exactly.

    Args:
        env: the environment.
        env_params: its parameters.
        actor: `obs -> TanhGaussian`, or `obs -> Categorical` for a finite number of actions.
        critic: `(obs, action) -> Q [...]` such as `networks.ActionCritic`; for a finite number of actions
            `obs -> Q [..., A]`.
        actor_optimizer: of the actor.
        critic_optimizer: of the critics.
        temperature_optimizer: of log α.
        num_envs: N.
        num_steps: steps of every environment between two calls to learn.
        num_updates: how often in an iteration it acts and then learns.
        num_gradient_steps: gradient steps of everything each time.
        batch_size: transitions of a gradient step.
        capacity: of the replay buffer, in transitions.
        warmup_steps: random environment steps before all else.
        gamma: discount factor.
        tau: part of the way that the target critics go at every gradient step.
        num_critics: K; the target is the least of them.
        alpha: α, the temperature at the start.
        learn_alpha: whether α is learned; otherwise it stays.
        target_entropy: in nats, of the action in its own units. None: −D + Σ log((high − low) / 2), which
            is −D for actions scaled to [−1, 1]; for a finite number of actions half of the most there can
            be, ½ log A. (The 0.98 log A of the discrete paper is nearly the uniform policy: it acts well
            only by its mode, and collects what random actions collect.) Set it lower where masks leave fewer.
        noise_correlation: ρ of the noise that the policy draws actions with, with that of the step before.
            The first noise of an episode has √(1 − ρ²) of the policy's deviation; after some 1 / (1 − ρ)
            steps every single action is drawn from the policy, but the way they take together is straighter.
            Not for a finite number of actions.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, if the warm-up leaves the buffer empty, if a box of
            actions has no bounds, if `alpha` is 0 and to be learned, or if noise is to be correlated where
            actions are finitely many.

    References:
        Haarnoja et al. 2018, Soft actor-critic algorithms and applications, algorithm 1;
        Christodoulou 2019, Soft actor-critic for discrete action settings.
    """
    at_least_one(num_critics=num_critics)
    space = env.action_space(env_params)
    discrete = hasattr(space, "n")
    if not discrete:
        check_box_actions(space)
    elif isinstance(noise_correlation, int | float) and noise_correlation:
        raise ValueError("A finite number of actions is drawn without noise: leave noise_correlation at 0.")
    if learn_alpha and isinstance(alpha, int | float) and alpha <= 0:
        raise ValueError(f"alpha must be above 0 to be learned, got {alpha}: set learn_alpha off for 0.")
    critics = Ensemble(critic, num_critics)
    wanted_entropy = _default_entropy(space) if target_entropy is None else target_entropy

    def init_learned(key: PRNGKey, obs: ArrayTree, action: Array) -> Learned:
        actor_key, critic_key = jax.random.split(key)
        actor_params = actor.init(actor_key, obs)
        critic_params = critics.init(critic_key, obs if discrete else (obs, action))
        temperature = jnp.asarray(alpha, float)
        log_alpha = jnp.log(jnp.maximum(temperature, jnp.finfo(temperature.dtype).tiny))  # 0 stays finite
        return Learned(
            actor_params,
            critic_params,
            critic_params,
            log_alpha,
            actor_optimizer.init(actor_params),
            critic_optimizer.init(critic_params),
            temperature_optimizer.init(log_alpha),
        )

    def explore(key: PRNGKey, learned: Learned, obs: ArrayTree, noise: Array, env_steps: Array) -> Any:
        del env_steps
        policy = actor.apply(learned.actor_params, obs)
        if discrete:
            return policy.sample(key), noise
        noise = correlated_noise(key, noise, correlation=noise_correlation)
        return policy._replace(mean=policy.mean + jnp.exp(policy.base.clipped_log_std) * noise).mode(), noise

    def critic_loss(params: Any, key: PRNGKey, learned: Learned, batch: Batch) -> tuple[Array, Metrics]:
        (obs, action, _, reward, terminated, _, next_obs), discount = batch
        policy = actor.apply(learned.actor_params, next_obs)
        alpha = jnp.exp(learned.log_alpha)
        if discrete:
            value, next_value = (
                critics.apply(p, o) for p, o in ((params, obs), (learned.target_critic_params, next_obs))
            )
            error = expected_soft_q_loss(
                value, action, reward, next_value, policy.log_probs, terminated, gamma=discount, alpha=alpha
            )
        else:
            next_action, log_prob = policy.sample_and_log_prob(key)
            value = critics.apply(params, (obs, action))
            next_value = critics.apply(learned.target_critic_params, (next_obs, next_action))
            error = soft_q_loss(value, reward, next_value, log_prob, terminated, gamma=discount, alpha=alpha)
        # a sum over the critics: each learns as if it were alone
        return error.mean(-1).sum(), {"value_loss": error.mean(), "action_value": value.mean()}

    def actor_loss(params: Any, key: PRNGKey, learned: Learned, obs: ArrayTree) -> tuple[Array, Array]:
        policy, alpha = actor.apply(params, obs), jnp.exp(learned.log_alpha)
        if discrete:
            value = critics.apply(learned.critic_params, obs)
            return expected_soft_policy_loss(policy.log_probs, value, alpha=alpha).mean(), -policy.entropy()
        action, log_prob = policy.sample_and_log_prob(key)
        value = critics.apply(learned.critic_params, (obs, action))
        return soft_policy_loss(log_prob, value, alpha=alpha).mean(), log_prob

    def gradient_step(learned: Learned, inputs: tuple[PRNGKey, Batch]) -> tuple[Learned, Metrics]:
        key, batch = inputs
        critic_key, actor_key = jax.random.split(key)
        gradient, metrics = jax.grad(critic_loss, has_aux=True)(
            learned.critic_params, critic_key, learned, batch
        )
        updates, opt_state = critic_optimizer.update(
            gradient, learned.critic_opt_state, learned.critic_params
        )
        params = optax.apply_updates(learned.critic_params, updates)
        learned = learned._replace(critic_params=params, critic_opt_state=opt_state)

        (policy_loss, log_prob), gradient = jax.value_and_grad(actor_loss, has_aux=True)(
            learned.actor_params, actor_key, learned, batch.transition.obs
        )
        updates, opt_state = actor_optimizer.update(gradient, learned.actor_opt_state, learned.actor_params)
        params = optax.apply_updates(learned.actor_params, updates)
        metrics |= {
            "policy_loss": policy_loss,
            "entropy": -log_prob.mean(),
            "grad_norm": optax.tree.norm(gradient),
            "alpha": jnp.exp(learned.log_alpha),
        }
        learned = learned._replace(actor_params=params, actor_opt_state=opt_state)
        learned = fit_temperature(learned, log_prob) if learn_alpha else learned
        target = follow(learned.target_critic_params, learned.critic_params, tau)
        return learned._replace(target_critic_params=target), metrics

    def fit_temperature(learned: Learned, log_prob: Array) -> Learned:
        gradient = jax.grad(
            lambda log_alpha: temperature_loss(log_alpha, log_prob, target_entropy=wanted_entropy).mean()
        )(learned.log_alpha)
        updates, opt_state = temperature_optimizer.update(
            gradient, learned.temperature_opt_state, learned.log_alpha
        )
        log_alpha = jnp.asarray(optax.apply_updates(learned.log_alpha, updates))
        return learned._replace(log_alpha=log_alpha, temperature_opt_state=opt_state)

    def learn(key: PRNGKey, learned: Learned, batch: Batch) -> tuple[Learned, Metrics]:
        keys = jax.random.split(key, num_gradient_steps)
        learned, metrics = scan_ahead(gradient_step, learned, (keys, batch))
        return learned, jax.tree.map(jnp.mean, metrics)

    def act(key: PRNGKey, learned: Learned, obs: ArrayTree) -> Array:
        del key
        return actor.apply(learned.actor_params, obs).mode()

    return experience.make(
        env,
        env_params,
        init_learned,
        explore,
        learn,
        act,
        num_envs=num_envs,
        num_steps=num_steps,
        num_updates=num_updates,
        num_gradient_steps=num_gradient_steps,
        batch_size=batch_size,
        capacity=capacity,
        warmup_steps=warmup_steps,
        gamma=gamma,
        noise_shape=() if discrete else space.shape,
    )


def _default_entropy(space: Any) -> Array:
    if hasattr(space, "n"):
        return 0.5 * jnp.log(float(space.n))
    low, high = (jnp.broadcast_to(jnp.asarray(b, float), space.shape) for b in (space.low, space.high))
    return jnp.sum(jnp.log(0.5 * (high - low)) - 1.0)
