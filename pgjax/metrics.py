"""Scalars that tell how learning goes, reduced on the device."""

import jax.numpy as jnp

from pgjax._jit import compiled
from pgjax.types import Array, Numeric


@compiled()
def explained_variance(value: Array, target: Array, valid: Array | None = None) -> Array:
    """The share of the target's variance that the critic explains.

        1 − Var(target − V) / Var(target)

    Args:
        value: `[...]`.
        target: `[...]`.
        valid: bool `[...]`, or None.

    Returns:
        A scalar, at most 1; 0 where the target does not vary.

    Example:
        >>> import jax.numpy as jnp
        >>> explained_variance(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))
        Array(0.75, dtype=float32)
    """
    variance = jnp.var(target, where=valid)
    residual = jnp.var(target - value, where=valid)
    rounding = jnp.square(32.0 * jnp.finfo(variance.dtype).eps) * jnp.square(target).mean(where=valid)
    varies = variance > rounding
    return jnp.where(varies, 1.0 - residual / jnp.where(varies, variance, 1.0), 0.0)


@compiled()
def approximate_kl(log_prob: Array, old_log_prob: Array) -> Array:
    """KL(π_old ‖ π) estimated from actions of π_old, per sample and never negative.

        (ρ − 1) − log ρ,   ρ = π(a | s) / π_old(a | s)

    Args:
        log_prob: `[...]`, of the new policy.
        old_log_prob: `[...]`, of the policy that acted.

    Returns:
        `[...]`; its mean is an unbiased estimate.

    References:
        Schulman 2020, Approximating KL divergence, the estimator k3.

    Example:
        >>> import jax.numpy as jnp
        >>> approximate_kl(jnp.array([-1.0]), jnp.array([-1.0]))
        Array([0.], dtype=float32)
    """
    log_ratio = log_prob - old_log_prob
    return jnp.expm1(log_ratio) - log_ratio


@compiled()
def clip_fraction(log_prob: Array, old_log_prob: Array, *, clip_eps: Numeric) -> Array:
    """Whether the importance ratio lies outside [1 − ε, 1 + ε].

    Args:
        log_prob: `[...]`.
        old_log_prob: `[...]`.
        clip_eps: ε.

    Returns:
        `[...]`, 0 or 1.

    Example:
        >>> import jax.numpy as jnp
        >>> clip_fraction(jnp.array([0.0, 1.0]), jnp.zeros(2), clip_eps=0.2)
        Array([0., 1.], dtype=float32)
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    return (jnp.abs(ratio - 1.0) > clip_eps).astype(ratio.dtype)


@compiled()
def effective_sample_size(log_ratio: Array) -> Array:
    """How many on-policy samples the importance-weighted ones are worth.

        (Σ ρ)² / Σ ρ²

    Args:
        log_ratio: `[...]`, log ρ = log π − log π_old.

    Returns:
        A scalar between 1 and the number of samples.

    References:
        Kong 1992, A note on importance sampling using standardized weights.

    Example:
        >>> import jax.numpy as jnp
        >>> effective_sample_size(jnp.zeros(4))
        Array(4., dtype=float32)
    """
    ratio = jnp.exp(log_ratio - log_ratio.max())
    return ratio.sum() ** 2 / (ratio**2).sum()
