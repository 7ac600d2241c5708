"""Advantages: how much better an action was than what the policy does on average."""

import jax.numpy as jnp

from pgjax._jit import compiled
from pgjax.estimators.recurrence import fused_recurrence, time_major
from pgjax.types import Array, Numeric


@compiled()
def td_error(reward: Array, value: Array, next_value: Array, terminated: Array, *, gamma: Numeric) -> Array:
    """The one-step advantage.

        δ_t = r_t + γ (1 − terminated_t) V(next_obs_t) − V(obs_t)

    With the true V it is an unbiased estimate of the advantage, with any other it is not.

    Args:
        reward: `[T, ...]`.
        value: `[T, ...]`, V(obs_t).
        next_value: `[T, ...]`, V(next_obs_t); ignored where terminated, even if it is NaN.
        terminated: `[T, ...]` bool.
        gamma: discount factor.

    Returns:
        `[T, ...]`.

    References:
        Sutton & Barto 2018, eq. 6.5.

    Example:
        >>> import jax.numpy as jnp
        >>> td_error(jnp.ones(2), jnp.ones(2), jnp.full(2, 4.0), jnp.array([False, True]), gamma=0.5)
        Array([2., 0.], dtype=float32)
    """
    reward, value, next_value, terminated = time_major(reward, value, next_value, terminated)
    return _td_error(reward, value, next_value, terminated, gamma)


def _td_error(reward: Array, value: Array, next_value: Array, terminated: Array, gamma: Numeric) -> Array:
    return reward + gamma * jnp.where(terminated, 0.0, next_value) - value


@compiled()
def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: Numeric,
    lambda_: Numeric,
) -> Array:
    """Generalised advantage estimation.

        A_t = δ_t + γ λ (1 − terminated_t)(1 − truncated_t) A_{t+1}

    With the true value function it is unbiased for every λ on whole episodes; with a wrong one for λ = 1
    alone. `gae + value` is the λ-return, the usual target of the critic.

    Args:
        reward: `[T, ...]`.
        value: `[T, ...]`, V(obs_t).
        next_value: `[T, ...]`, V(next_obs_t), not V(obs_{t+1}): they differ where an episode ended.
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor.
        lambda_: trace decay; 0 gives the TD error, 1 the bootstrapped reward-to-go minus V.

    Returns:
        `[T, ...]`.

    References:
        Schulman et al. 2016, High-dimensional continuous control using GAE, eq. 16.

    Example:
        >>> import jax.numpy as jnp
        >>> no = jnp.zeros(3, bool)
        >>> gae(jnp.ones(3), jnp.zeros(3), jnp.zeros(3), no, no, gamma=1.0, lambda_=0.5)
        Array([1.75, 1.5 , 1.  ], dtype=float32)
    """

    def coefficients(
        reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array
    ) -> tuple[Array, Array]:
        delta = _td_error(reward, value, next_value, terminated, gamma)
        return delta, jnp.where(terminated | truncated, 0.0, gamma * lambda_)

    return fused_recurrence(coefficients, (reward, value, next_value, terminated, truncated), 0.0)


@compiled()
def standardize(x: Array, valid: Array | None = None) -> Array:
    """Shift to mean 0 and scale to standard deviation 1, over all valid entries.

    As a weight of the score it is biased: the mean and the deviation depend on the very actions that they
    weigh.

    Args:
        x: `[...]`.
        valid: bool, broadcast against `x`; None if all entries count.

    Returns:
        `[...]`; 0 where not valid, and everywhere if `x` does not vary by more than rounding: if its
        deviation is at most 32 rounding errors of its root mean square. NaN everywhere if a valid entry is.

    References:
        Huang et al. 2022, The 37 implementation details of PPO, detail 7.

    Example:
        >>> import jax.numpy as jnp
        >>> standardize(jnp.array([1.0, 3.0]))
        Array([-1.,  1.], dtype=float32)
    """
    if valid is None:
        valid = jnp.ones((), bool)
    else:
        x, valid = time_major(x, valid)
    valid = jnp.broadcast_to(valid, x.shape)
    x = jnp.where(valid, x, 0.0)
    count = jnp.maximum(valid.sum(), 1)
    centred = jnp.where(valid, x - x.sum() / count, 0.0)
    variance = jnp.square(centred).sum() / count
    rounding = jnp.square(32.0 * jnp.finfo(x.dtype).eps) * jnp.square(x).sum() / count
    constant = variance <= rounding  # equal values differ by rounding alone; the root has no slope at 0
    return jnp.where(constant, 0.0, centred / (jnp.sqrt(jnp.where(constant, 1.0, variance)) + 1e-8))
