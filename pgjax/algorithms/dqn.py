"""Deep Q-learning: off-policy values from replay, with a target network that follows behind."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax import experience
from pgjax.experience import Batch, State, follow
from pgjax.exploration import check_finite_actions, epsilon_greedy, linear_epsilon
from pgjax.losses.value import double_q_learning_loss, huber_loss, q_learning_loss
from pgjax.networks import allowed, split_mask
from pgjax.types import Algorithm, Array, ArrayTree, DescribedEnvironment, Metrics, Network, Numeric, PRNGKey


class Learned(NamedTuple):
    """What learns.

    Attributes:
        params: of the network.
        target_params: of the target network.
        opt_state: of the optimizer.
        num_updates: int32 scalar, gradient steps so far.
    """

    params: Any
    target_params: Any
    opt_state: Any
    num_updates: Array


def make(
    env: DescribedEnvironment,
    env_params: Any,
    q_network: Network,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 10,
    num_steps: int = 1,
    num_updates: int = 100,
    num_gradient_steps: int = 1,
    batch_size: int = 128,
    capacity: int = 10_000,
    warmup_steps: int = 10_000,
    gamma: Numeric = 0.99,
    epsilon_start: Numeric = 1.0,
    epsilon_end: Numeric = 0.05,
    exploration_steps: Numeric = 250_000,
    tau: Numeric = 1.0,
    target_period: Numeric = 50,
    double: bool = False,
    n_step: int = 1,
    huber: bool = False,
) -> Algorithm[State]:
    """DQN; one iteration is `num_envs * num_steps * num_updates` environment steps.

    ε falls linearly with the environment steps, those of the warm-up included. A dueling network is
    `networks.DuelingQNetwork`. Observations may carry an action mask.

    Args:
        env: the environment, with a finite number of actions.
        env_params: its parameters.
        q_network: `obs -> Q [..., A]`.
        optimizer: of the network.
        num_envs: N.
        num_steps: steps of every environment between two calls to learn.
        num_updates: how often in an iteration it acts and then learns.
        num_gradient_steps: gradient steps each time.
        batch_size: transitions of a gradient step.
        capacity: of the replay buffer, in transitions.
        warmup_steps: random environment steps before all else.
        gamma: discount factor.
        epsilon_start: ε at the start.
        epsilon_end: ε at the end.
        exploration_steps: environment steps until the end.
        tau: part of the way that the target network goes when it moves; 1 copies.
        target_period: gradient steps between two moves of the target network.
        double: let the online network choose the next action and the target network value it.
        n_step: rewards summed up before bootstrapping.
        huber: be linear in errors above 1.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, if the warm-up leaves the buffer empty, or if the
            actions are continuous.

    References:
        Mnih et al. 2015, Human-level control through deep reinforcement learning, algorithm 1;
        van Hasselt et al. 2016, Deep RL with double Q-learning (`double`).
    """
    check_finite_actions(env.action_space(env_params))
    error_loss = {"error_loss": huber_loss} if huber else {}

    def init_learned(key: PRNGKey, obs: ArrayTree, action: Array) -> Learned:
        del action
        params = q_network.init(key, obs)
        return Learned(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def explore(key: PRNGKey, learned: Learned, obs: ArrayTree, noise: Array, env_steps: Array) -> Any:
        epsilon = linear_epsilon(env_steps, start=epsilon_start, end=epsilon_end, num_steps=exploration_steps)
        policy = epsilon_greedy(q_network.apply(learned.params, obs), split_mask(obs)[1], epsilon=epsilon)
        return policy.sample(key), noise

    def loss(params: Any, target_params: Any, batch: Batch) -> tuple[Array, Metrics]:
        transition, discount = batch
        value = q_network.apply(params, transition.obs)
        next_value = allowed(q_network.apply(target_params, transition.next_obs), transition.next_obs)
        common = value, transition.action, transition.reward, next_value
        if double:
            chooser = allowed(q_network.apply(params, transition.next_obs), transition.next_obs)
            error = double_q_learning_loss(
                *common, chooser, transition.terminated, gamma=discount, **error_loss
            )
        else:
            error = q_learning_loss(*common, transition.terminated, gamma=discount, **error_loss)
        return error.mean(), {
            "value_loss": error.mean(),
            "action_value": allowed(value, transition.obs).max(-1).mean(),
        }

    def gradient_step(learned: Learned, batch: Batch) -> tuple[Learned, Metrics]:
        params, target_params, opt_state, num_updates = learned
        gradient, metrics = jax.grad(loss, has_aux=True)(params, target_params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params, num_updates = optax.apply_updates(params, updates), num_updates + 1
        moves = num_updates % target_period == 0
        target_params = follow(target_params, params, jnp.where(moves, tau, 0.0))
        metrics["grad_norm"] = optax.tree.norm(gradient)
        return Learned(params, target_params, opt_state, num_updates), metrics

    def learn(key: PRNGKey, learned: Learned, batch: Batch) -> tuple[Learned, Metrics]:
        del key
        learned, metrics = jax.lax.scan(gradient_step, learned, batch)
        return learned, jax.tree.map(jnp.mean, metrics)

    def act(key: PRNGKey, learned: Learned, obs: ArrayTree) -> Array:
        del key
        return jnp.argmax(allowed(q_network.apply(learned.params, obs), obs), -1).astype(jnp.int32)

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
        n_step=n_step,
    )
