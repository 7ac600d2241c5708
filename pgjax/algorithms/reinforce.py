"""REINFORCE: the likelihood-ratio gradient on whole episodes, with the weight of one's choice."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from pgjax._checks import at_least_one
from pgjax._mapped import largest
from pgjax.descent import default_num_chunks, sum_over_chunks
from pgjax.estimators.baselines import subtract_baseline
from pgjax.estimators.returns import reward_to_go, time_discount
from pgjax.losses.policy import score_function_loss
from pgjax.losses.value import squared_error_loss
from pgjax.metrics import approximate_kl, explained_variance
from pgjax.minibatch import by_time, to_batch
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
"""`(traj, valid [T, N], value) -> Ψ [T, N]`; `value(obs)` is the learned critic, zeros without one.

Of observations `[T, N, ...]` it may be zero, as `traj` may, in pieces of time after the last episode's end.
"""


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


class Batch(NamedTuple):
    """What is learned from in an iteration, leaves `[..., *shape]`."""

    traj: Transition
    psi: Array
    to_go: Array
    valid: Array


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
    num_chunks: int | None = None,
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
        num_chunks: `max_steps` is played and learned from in as many pieces of time, one after the other, and
            none is after the last episode has ended; divides it. 1 plays and learns from all of it, None is
            1, on CPUs as many as keep a piece within about 512 samples. Episodes, and gradients to rounding,
            are the same. With the environments spread over devices every piece is summed over them: 1 is best
            there.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a critic comes without an optimizer or the reverse, if a number of something is below
            1, or if the chunks do not divide `max_steps`.

    References:
        Williams 1992, Simple statistical gradient-following algorithms, section 5;
        Sutton & Barto 2018, section 13.4 (with a learned baseline).
    """
    if (critic is None) != (critic_optimizer is None):
        raise ValueError("critic and critic_optimizer belong together: give both or neither.")
    at_least_one(num_episodes=num_episodes, max_steps=max_steps, num_critic_steps=num_critic_steps)

    if num_chunks is None:
        num_chunks = default_num_chunks(num_episodes, max_steps)
    if num_chunks < 1 or max_steps % num_chunks:
        raise ValueError(f"num_chunks={num_chunks} must divide max_steps={max_steps}.")
    chunk_steps = max_steps // num_chunks

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

    def in_time(tree: ArrayTree) -> Any:
        """Leaves `[T, N, ...]` as `[num_chunks, chunk_steps, N, ...]`."""
        return jax.tree.map(lambda x: x.reshape(num_chunks, chunk_steps, *x.shape[1:]), tree)

    def values(params: Any, network: Network, obs: ArrayTree, count: Array) -> Array:
        """Of the first chunks, and zeros; `[T, N]`."""

        def evaluate(chunk: ArrayTree) -> Array:
            return by_time(network.apply(params, to_batch(chunk)), chunk_steps)

        def write(i: Array, value: Array) -> Array:
            chunk = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), chunks)
            return jax.lax.dynamic_update_slice_in_dim(value, evaluate(chunk), i * chunk_steps, 0)

        chunks = in_time(obs)
        first = jax.tree.map(lambda x: x[0], chunks)
        if num_chunks == 1:
            return evaluate(first)
        nothing = jnp.zeros((max_steps, num_episodes), jax.eval_shape(evaluate, first).dtype)
        return jax.lax.fori_loop(0, count, write, nothing)

    def actor_loss(params: Any, chunk: Batch) -> tuple[Array, tuple[Array, Array]]:
        """The sum over a chunk, and its terms."""
        batch = to_batch(chunk)
        policy = actor.apply(params, batch.traj.obs)
        policy_loss = score_function_loss(policy.log_prob(batch.traj.action), batch.psi)
        entropy = policy.entropy()
        loss = jnp.sum(policy_loss - entropy_coef * entropy, where=batch.valid) / num_episodes
        return loss, (jnp.sum(policy_loss, where=batch.valid), jnp.sum(entropy, where=batch.valid))

    def fit_critic(learned: Learned, batch: Batch, count: Array, num_valid: Array) -> tuple[Learned, Metrics]:
        network, optimizer = critic, critic_optimizer
        if network is None or optimizer is None:
            return learned, {}

        def loss(params: Any, chunk: Batch) -> Array:
            batch = to_batch(chunk)
            error = squared_error_loss(network.apply(params, batch.traj.obs), batch.to_go)
            return jnp.sum(error, where=batch.valid) / num_valid

        def gradient_step(loop: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
            params, opt_state = loop
            value_loss, gradient = sum_over_chunks(
                lambda chunk: jax.value_and_grad(loss)(params, chunk), batch, count
            )
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value_loss

        loop = learned.critic_params, learned.critic_opt_state
        (params, opt_state), losses = jax.lax.scan(gradient_step, loop, length=num_critic_steps)
        return learned._replace(critic_params=params, critic_opt_state=opt_state), {"value_loss": losses[0]}

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        learned = state.learned

        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return actor.apply(learned.actor_params, obs).sample_and_log_prob(key)

        def value(obs: ArrayTree) -> Array:
            leaf, played = jax.tree.leaves(obs)[0], jax.tree.leaves(traj.obs)[0]
            shape = leaf.shape[: leaf.ndim - (played.ndim - 2)]
            if critic is None:
                return jnp.zeros(shape)
            if shape != valid.shape:  # a weight may ask for other observations
                return critic.apply(learned.critic_params, obs)
            return values(learned.critic_params, critic, obs, count)

        traj, valid = rollout_episodes(
            key, policy, env, env_params, num_episodes, max_steps, chunk_steps=chunk_steps
        )
        stats = episode_stats(traj, valid)
        num_valid = valid.sum(dtype=jnp.int32)
        count = largest(-(-valid.any(1).sum(dtype=jnp.int32) // chunk_steps))
        to_go = reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=gamma)
        expected = value(traj.obs)
        if weight is None:
            psi = subtract_baseline(to_go, expected, valid)
        else:  # of the padding a weight may make anything
            psi = jnp.where(valid, weight(traj, valid, value), 0.0)
        if discount_time:
            psi = psi * time_discount(traj.terminated, traj.truncated, gamma=gamma)
        batch = in_time(Batch(traj, psi, to_go, valid))
        gradient, (policy_loss, entropy) = sum_over_chunks(
            lambda chunk: jax.grad(actor_loss, has_aux=True)(learned.actor_params, chunk), batch, count
        )
        updates, opt_state = actor_optimizer.update(gradient, learned.actor_opt_state, learned.actor_params)
        actor_params = optax.apply_updates(learned.actor_params, updates)

        def divergence(chunk: Batch) -> Array:
            batch = to_batch(chunk)
            log_prob = actor.apply(actor_params, batch.traj.obs).log_prob(batch.traj.action)
            return jnp.sum(approximate_kl(log_prob, batch.traj.log_prob), where=batch.valid)

        metrics = {
            "policy_loss": policy_loss / num_valid,
            "entropy": entropy / num_valid,
            "approx_kl": sum_over_chunks(divergence, batch, count) / num_valid,
            "grad_norm": optax.tree.norm(gradient),
            "env_steps": num_valid,
        }
        if critic is not None:
            metrics["explained_variance"] = explained_variance(expected, to_go, valid)
        learned, critic_metrics = fit_critic(learned, batch, count, num_valid)
        learned = learned._replace(actor_params=actor_params, actor_opt_state=opt_state)
        return State(learned), metrics | critic_metrics | stats.metrics()

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return actor.apply(state.learned.actor_params, obs).mode()

    return Algorithm(init, step, act)
