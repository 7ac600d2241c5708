"""Losses whose gradient moves a critic. Targets are constants.

Those of one step take `gamma` as a number, or as one discount per sample: for n-step transitions that is the
discount of `pgjax.n_step_transitions`. Termination selects with `where`, so a NaN behind it goes nowhere.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from pgjax._jit import compiled
from pgjax.types import Array, Numeric


@compiled()
def squared_error_loss(value: Array, target: Array) -> Array:
    """Half the squared error.

        L = ½ (V − target)²

    Args:
        value: `[...]`, differentiated.
        target: `[...]`.

    Returns:
        `[...]`.

    References:
        Sutton & Barto 2018, eq. 9.1.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_error_loss(jnp.array([1.0]), jnp.array([3.0]))
        Array([2.], dtype=float32)
    """
    return 0.5 * jnp.square(value - stop_gradient(target))


@compiled()
def clipped_value_loss(value: Array, old_value: Array, target: Array, *, clip_eps: Numeric) -> Array:
    """The larger of the squared errors of the value and of the value clipped around its old self.

        L = ½ max((V − target)², (clip(V, V_old − ε, V_old + ε) − target)²)

    Args:
        value: `[...]`, differentiated.
        old_value: `[...]`, before the update.
        target: `[...]`.
        clip_eps: ε, in units of the value; infinity gives `squared_error_loss`.

    Returns:
        `[...]`.

    References:
        Huang et al. 2022, The 37 implementation details of PPO, detail 9.

    Example:
        >>> import jax.numpy as jnp
        >>> clipped_value_loss(jnp.array([2.0]), jnp.array([0.0]), jnp.array([2.0]), clip_eps=0.5)
        Array([1.125], dtype=float32)
    """
    old_value, target = stop_gradient(old_value), stop_gradient(target)
    clipped = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))


@compiled()
def huber_loss(value: Array, target: Array, *, delta: Numeric = 1.0) -> Array:
    """Half the squared error near the target, linear far from it.

        L = ½ e² if |e| ≤ δ, else δ (|e| − ½ δ),   e = V − target

    Its slope in the value is the error clipped to ±δ.

    Args:
        value: `[...]`, differentiated.
        target: `[...]`.
        delta: δ, in units of the value, finite.

    Returns:
        `[...]`.

    References:
        Huber 1964, Robust estimation of a location parameter; Mnih et al. 2015, methods (error clipping).

    Example:
        >>> import jax.numpy as jnp
        >>> huber_loss(jnp.array([0.0, 0.0]), jnp.array([0.5, 3.0]))
        Array([0.125, 2.5  ], dtype=float32)
    """
    return optax.losses.huber_loss(value, stop_gradient(target), delta=delta)


@compiled("error_loss")
def sarsa_loss(
    action_value: Array,
    action: Array,
    reward: Array,
    next_action_value: Array,
    next_action: Array,
    terminated: Array,
    *,
    gamma: Numeric,
    error_loss: Callable[[Array, Array], Array] = squared_error_loss,
) -> Array:
    """Half the squared one-step error of Q^π, the next action being the one that is taken.

        L = ½ (Q(s, a) − r − γ (1 − terminated) Q(s', a'))²

    Args:
        action_value: `[..., A]`, Q(s, ·), differentiated.
        action: `[...]` int.
        reward: `[...]`.
        next_action_value: `[..., A]`, Q(s', ·).
        next_action: `[...]` int, a', drawn by the policy.
        terminated: `[...]` bool.
        gamma: discount factor, or `[...]`.
        error_loss: of value and target, `huber_loss` say.

    Returns:
        `[...]`.

    References:
        Rummery & Niranjan 1994, On-line Q-learning using connectionist systems; Sutton & Barto 2018, eq. 6.7.

    Example:
        >>> import jax.numpy as jnp
        >>> q, zero, one = jnp.array([1.0, 3.0]), jnp.array(0), jnp.array(1)
        >>> sarsa_loss(q, zero, jnp.array(1.0), q, one, jnp.array(False), gamma=0.5)
        Array(1.125, dtype=float32)
    """
    chex.assert_equal_shape([action, reward, next_action, terminated])
    target = _one_step_target(reward, _taken(next_action_value, next_action), terminated, gamma)
    return error_loss(_taken(action_value, action), target)


@compiled("error_loss")
def expected_sarsa_loss(
    action_value: Array,
    action: Array,
    reward: Array,
    next_action_value: Array,
    next_probs: Array,
    terminated: Array,
    *,
    gamma: Numeric,
    error_loss: Callable[[Array, Array], Array] = squared_error_loss,
) -> Array:
    """Half the squared one-step error of Q^π, the next action averaged over the policy.

        L = ½ (Q(s, a) − r − γ (1 − terminated) Σ_a' π(a' | s') Q(s', a'))²

    Args:
        action_value: `[..., A]`, Q(s, ·), differentiated.
        action: `[...]` int.
        reward: `[...]`.
        next_action_value: `[..., A]`, Q(s', ·).
        next_probs: `[..., A]`, π(· | s').
        terminated: `[...]` bool.
        gamma: discount factor, or `[...]`.
        error_loss: of value and target, `huber_loss` say.

    Returns:
        `[...]`.

    References:
        van Seijen et al. 2009, A theoretical and empirical analysis of expected SARSA.

    Example:
        >>> import jax.numpy as jnp
        >>> q, pi = jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5])
        >>> expected_sarsa_loss(q, jnp.array(0), jnp.array(1.0), q, pi, jnp.array(False), gamma=0.5)
        Array(0.5, dtype=float32)
    """
    chex.assert_equal_shape([action, reward, terminated])
    next_value = (next_probs * next_action_value).sum(-1)
    return error_loss(_taken(action_value, action), _one_step_target(reward, next_value, terminated, gamma))


@compiled("error_loss")
def q_learning_loss(
    action_value: Array,
    action: Array,
    reward: Array,
    next_action_value: Array,
    terminated: Array,
    *,
    gamma: Numeric,
    error_loss: Callable[[Array, Array], Array] = squared_error_loss,
) -> Array:
    """Half the squared one-step error of Q*, whatever policy acted.

        L = ½ (Q(s, a) − r − γ (1 − terminated) max_a' Q(s', a'))²

    The maximum of noisy values lies above the value of the best action; `double_q_learning_loss` does not
    look for it and measure it with the same noise.

    Args:
        action_value: `[..., A]`, Q(s, ·), differentiated.
        action: `[...]` int.
        reward: `[...]`.
        next_action_value: `[..., A]`, Q(s', ·) of the target network; −inf where an action is not allowed.
        terminated: `[...]` bool.
        gamma: discount factor, or `[...]`.
        error_loss: of value and target, `huber_loss` say.

    Returns:
        `[...]`.

    References:
        Watkins & Dayan 1992, Q-learning; Sutton & Barto 2018, eq. 6.8; Mnih et al. 2015 (target network).

    Example:
        >>> import jax.numpy as jnp
        >>> q = jnp.array([1.0, 3.0])
        >>> q_learning_loss(q, jnp.array(0), jnp.array(1.0), q, jnp.array(False), gamma=0.5)
        Array(1.125, dtype=float32)
    """
    chex.assert_equal_shape([action, reward, terminated])
    target = _one_step_target(reward, next_action_value.max(-1), terminated, gamma)
    return error_loss(_taken(action_value, action), target)


@compiled("error_loss")
def double_q_learning_loss(
    action_value: Array,
    action: Array,
    reward: Array,
    next_action_value: Array,
    next_selector_value: Array,
    terminated: Array,
    *,
    gamma: Numeric,
    error_loss: Callable[[Array, Array], Array] = squared_error_loss,
) -> Array:
    """Q-learning in which one estimate chooses the next action and another says what it is worth.

        L = ½ (Q(s, a) − r − γ (1 − terminated) Q(s', argmax_a' Q_selector(s', a')))²

    Args:
        action_value: `[..., A]`, Q(s, ·), differentiated.
        action: `[...]` int.
        reward: `[...]`.
        next_action_value: `[..., A]`, Q(s', ·) of the target network, which evaluates.
        next_selector_value: `[..., A]`, Q(s', ·) of the online network, which chooses; −inf where an action
            is not allowed.
        terminated: `[...]` bool.
        gamma: discount factor, or `[...]`.
        error_loss: of value and target, `huber_loss` say.

    Returns:
        `[...]`.

    References:
        van Hasselt et al. 2016, Deep RL with double Q-learning, eq. 4.

    Example:
        >>> import jax.numpy as jnp
        >>> q, other = jnp.array([1.0, 3.0]), jnp.array([4.0, 2.0])
        >>> double_q_learning_loss(q, jnp.array(0), jnp.array(1.0), other, q, jnp.array(False), gamma=0.5)
        Array(0.5, dtype=float32)
    """
    chex.assert_equal_shape([action, reward, terminated])
    next_value = _taken(next_action_value, jnp.argmax(next_selector_value, -1))
    return error_loss(_taken(action_value, action), _one_step_target(reward, next_value, terminated, gamma))


@compiled("error_loss")
def clipped_double_q_loss(
    action_value: Array,
    reward: Array,
    next_action_value: Array,
    terminated: Array,
    *,
    gamma: Numeric,
    error_loss: Callable[[Array, Array], Array] = squared_error_loss,
) -> Array:
    """Half the squared one-step error of K critics of continuous actions, towards the least of them.

        L_k = ½ (Q_k(s, a) − r − γ (1 − terminated) min_j Q_j(s', a'))²

    Two critics are TD3's twins, one is DDPG's.

    Args:
        action_value: `[K, ...]`, Q_k(s, a), differentiated.
        reward: `[...]`.
        next_action_value: `[K, ...]`, Q_k(s', a') of the target networks, a' from the target policy.
        terminated: `[...]` bool.
        gamma: discount factor, or `[...]`.
        error_loss: of value and target, `huber_loss` say.

    Returns:
        `[K, ...]`, one loss for each critic.

    References:
        Fujimoto et al. 2018, Addressing function approximation error, eq. 10; Lillicrap et al. 2016,
        Continuous control with deep RL, algorithm 1 (K = 1).

    Example:
        >>> import jax.numpy as jnp
        >>> q, following = jnp.array([[1.0], [2.0]]), jnp.array([[4.0], [6.0]])
        >>> clipped_double_q_loss(q, jnp.ones(1), following, jnp.array([False]), gamma=0.5)
        Array([[2. ],
               [0.5]], dtype=float32)
    """
    chex.assert_equal_shape([reward, terminated])
    chex.assert_shape([action_value, next_action_value], (None, *reward.shape))
    target = _one_step_target(reward, next_action_value.min(0), terminated, gamma)
    return error_loss(action_value, jnp.broadcast_to(target, action_value.shape))


@compiled("error_loss")
def soft_q_loss(
    action_value: Array,
    reward: Array,
    next_action_value: Array,
    next_log_prob: Array,
    terminated: Array,
    *,
    gamma: Numeric,
    alpha: Numeric,
    error_loss: Callable[[Array, Array], Array] = squared_error_loss,
) -> Array:
    """Half the squared one-step error of K soft critics: the entropy of what follows is worth α per nat.

        L_k = ½ (Q_k(s, a) − r − γ (1 − terminated) [min_j Q_j(s', a') − α log π(a' | s')])²

    With α = 0 it is `clipped_double_q_loss`, and with one critic its mean over a' the target of expected
    SARSA.

    Args:
        action_value: `[K, ...]`, Q_k(s, a), differentiated.
        reward: `[...]`.
        next_action_value: `[K, ...]`, Q_k(s', a') of the target networks.
        next_log_prob: `[...]`, log π(a' | s') of the policy that a' is drawn from, now.
        terminated: `[...]` bool.
        gamma: discount factor, or `[...]`.
        alpha: α, the temperature, in units of reward per nat.
        error_loss: of value and target, `huber_loss` say.

    Returns:
        `[K, ...]`, one loss for each critic.

    References:
        Haarnoja et al. 2018, Soft actor-critic algorithms and applications, eq. 3 and 5.

    Example:
        >>> import jax.numpy as jnp
        >>> q, following, log_prob = jnp.ones((2, 1)), jnp.full((2, 1), 4.0), jnp.full(1, -2.0)
        >>> no = jnp.array([False])
        >>> soft_q_loss(q, jnp.ones(1), following, log_prob, no, gamma=0.5, alpha=1.0)
        Array([[4.5],
               [4.5]], dtype=float32)
    """
    chex.assert_equal_shape([reward, next_log_prob, terminated])
    chex.assert_shape([action_value, next_action_value], (None, *reward.shape))
    next_value = next_action_value.min(0) - alpha * next_log_prob
    target = _one_step_target(reward, next_value, terminated, gamma)
    return error_loss(action_value, jnp.broadcast_to(target, action_value.shape))


@compiled("error_loss")
def expected_soft_q_loss(
    action_value: Array,
    action: Array,
    reward: Array,
    next_action_value: Array,
    next_log_probs: Array,
    terminated: Array,
    *,
    gamma: Numeric,
    alpha: Numeric,
    error_loss: Callable[[Array, Array], Array] = squared_error_loss,
) -> Array:
    """The soft error for a finite number of actions, the next one averaged over the policy.

        L_k = ½ (Q_k(s, a) − r − γ (1 − terminated) Σ_a' π(a' | s') [min_j Q_j(s', a') − α log π(a' | s')])²

    With α = 0 and one critic it is `expected_sarsa_loss`.

    Args:
        action_value: `[K, ..., A]`, Q_k(s, ·), differentiated.
        action: `[...]` int.
        reward: `[...]`.
        next_action_value: `[K, ..., A]`, Q_k(s', ·) of the target networks.
        next_log_probs: `[..., A]`, log π(· | s') now, as `Categorical.log_probs` has it.
        terminated: `[...]` bool.
        gamma: discount factor, or `[...]`.
        alpha: α, the temperature, in units of reward per nat.
        error_loss: of value and target, `huber_loss` say.

    Returns:
        `[K, ...]`, one loss for each critic.

    References:
        Christodoulou 2019, Soft actor-critic for discrete action settings, eq. 10.

    Example:
        >>> import jax.numpy as jnp
        >>> q, log_probs = jnp.array([[[1.0, 3.0]]]), jnp.log(jnp.array([[0.5, 0.5]]))
        >>> action, reward, no = jnp.array([0]), jnp.ones(1), jnp.array([False])
        >>> expected_soft_q_loss(q, action, reward, q, log_probs, no, gamma=0.5, alpha=0.0)
        Array([[0.5]], dtype=float32)
    """
    chex.assert_equal_shape([action, reward, terminated])
    chex.assert_shape([action_value, next_action_value], (None, *next_log_probs.shape))
    probs = jnp.exp(next_log_probs)
    soft = next_action_value.min(0) - alpha * jnp.where(probs > 0, next_log_probs, 0.0)
    target = _one_step_target(reward, (probs * soft).sum(-1), terminated, gamma)
    taken = _taken(action_value, jnp.broadcast_to(action, action_value.shape[:-1]))
    return error_loss(taken, jnp.broadcast_to(target, taken.shape))


def _one_step_target(reward: Array, next_value: Array, terminated: Array, gamma: Numeric) -> Array:
    """A constant, whatever loss of the error it is put into."""
    return stop_gradient(reward + gamma * jnp.where(terminated, 0.0, next_value))


def _taken(action_value: Array, action: Array) -> Array:
    """The value of the action among those of all, `[..., A]` to `[...]`."""
    taken = jax.nn.one_hot(action, action_value.shape[-1], dtype=bool)
    return jnp.where(taken, action_value, 0.0).sum(-1)  # no gather: its gradient would be a scatter
