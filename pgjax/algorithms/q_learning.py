"""Q-learning: values of the best policy, learned while another one acts."""

from typing import Any

import optax

from pgjax import online
from pgjax.losses.value import q_learning_loss
from pgjax.networks import allowed
from pgjax.online import State
from pgjax.types import Algorithm, Array, DescribedEnvironment, Network, Numeric, Transition


def make(
    env: DescribedEnvironment,
    env_params: Any,
    q_network: Network,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 1,
    num_updates: int = 1000,
    gamma: Numeric = 0.99,
    epsilon_start: Numeric = 0.1,
    epsilon_end: Numeric = 0.1,
    exploration_steps: Numeric = 1,
) -> Algorithm[State]:
    """Q-learning; one iteration is `num_updates` times one step of every environment and one gradient step.

    With `networks.LinearQ` on one-hot features and plain SGD it is the algorithm for tables, its step size
    that of the optimizer over N. The semi-gradient is taken: targets are constants.

    Args:
        env: the environment, with a finite number of actions.
        env_params: its parameters.
        q_network: `obs -> Q [..., A]`.
        optimizer: of the network.
        num_envs: N; a gradient step takes the mean over them.
        num_updates: updates in an iteration.
        gamma: discount factor.
        epsilon_start: ε at the start.
        epsilon_end: ε at the end.
        exploration_steps: environment steps until the end.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, or if the actions are continuous.

    References:
        Watkins & Dayan 1992, Q-learning; Sutton & Barto 2018, section 6.5.
    """

    def error(value: Array, next_value: Array, transition: Transition, next_action: Array) -> Array:
        del next_action
        next_value = allowed(next_value, transition.next_obs)
        return q_learning_loss(
            value, transition.action, transition.reward, next_value, transition.terminated, gamma=gamma
        )

    return online.make(
        env,
        env_params,
        q_network,
        optimizer,
        error,
        on_policy=False,
        num_envs=num_envs,
        num_updates=num_updates,
        epsilon_start=epsilon_start,
        epsilon_end=epsilon_end,
        exploration_steps=exploration_steps,
    )
