"""Losses whose gradient moves a critic. Targets are constants."""

import jax.numpy as jnp
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
def expected_sarsa_loss(
    action_value: Array,
    action: Array,
    reward: Array,
    next_action_value: Array,
    next_probs: Array,
    terminated: Array,
    *,
    gamma: Numeric,
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
        gamma: discount factor.

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
    taken = jnp.take_along_axis(action_value, action[..., None], -1)[..., 0]
    next_value = (next_probs * next_action_value).sum(-1)
    return squared_error_loss(taken, reward + gamma * jnp.where(terminated, 0.0, next_value))
