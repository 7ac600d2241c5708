"""Losses whose gradient moves a policy. Weights, advantages and old log-probabilities are constants."""

import jax.numpy as jnp
from jax.lax import stop_gradient

from pgjax._jit import compiled
from pgjax.types import Array, Numeric


@compiled()
def score_function_loss(log_prob: Array, weight: Array) -> Array:
    """The loss whose gradient is minus the score times the weight.

        L = −log π(a | s) Ψ

    Args:
        log_prob: `[...]`, differentiated.
        weight: `[...]`, Ψ: a return, an advantage.

    Returns:
        `[...]`. Summed over time and averaged over trajectories, its gradient is minus
        `pgjax.policy_gradient`.

    References:
        Williams 1992, theorem 1; Sutton et al. 2000, theorem 1.

    Example:
        >>> import jax.numpy as jnp
        >>> score_function_loss(jnp.array([-0.5]), jnp.array([2.0]))
        Array([1.], dtype=float32)
    """
    return -log_prob * stop_gradient(weight)


@compiled()
def surrogate_loss(log_prob: Array, old_log_prob: Array, advantage: Array) -> Array:
    """The importance-weighted surrogate.

        L = −ρ A,   ρ = π(a | s) / π_old(a | s)

    At π = π_old its gradient is that of `score_function_loss`.

    Args:
        log_prob: `[...]`, differentiated.
        old_log_prob: `[...]`, of the policy that acted.
        advantage: `[...]`.

    Returns:
        `[...]`.

    References:
        Schulman et al. 2015, Trust region policy optimization, eq. 14.

    Example:
        >>> import jax.numpy as jnp
        >>> surrogate_loss(jnp.array([0.0]), jnp.array([0.0]), jnp.array([3.0]))
        Array([-3.], dtype=float32)
    """
    return -jnp.exp(log_prob - stop_gradient(old_log_prob)) * stop_gradient(advantage)


@compiled()
def clipped_surrogate_loss(
    log_prob: Array, old_log_prob: Array, advantage: Array, *, clip_eps: Numeric
) -> Array:
    """PPO's pessimistic surrogate.

        L = −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A),   ρ = π(a | s) / π_old(a | s)

    Args:
        log_prob: `[...]`, differentiated.
        old_log_prob: `[...]`, of the policy that acted.
        advantage: `[...]`.
        clip_eps: ε; infinity switches the clipping off.

    Returns:
        `[...]`.

    References:
        Schulman et al. 2017, Proximal policy optimization algorithms, eq. 7.

    Example:
        >>> import jax.numpy as jnp
        >>> clipped_surrogate_loss(jnp.log(jnp.array([1.5])), jnp.zeros(1), jnp.ones(1), clip_eps=0.2)
        Array([-1.2], dtype=float32)
    """
    ratio = jnp.exp(log_prob - stop_gradient(old_log_prob))
    advantage = stop_gradient(advantage)
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


@compiled()
def all_action_loss(probs: Array, action_value: Array) -> Array:
    """The policy gradient with the expectation over actions taken exactly.

        L = −Σ_a π(a | s) Q(s, a)

    Args:
        probs: `[..., A]`, π(· | s), differentiated.
        action_value: `[..., A]`, Q(s, ·) or the advantage.

    Returns:
        `[...]`.

    References:
        Sutton et al. 2000, theorem 1; Allen et al. 2017, Mean actor critic.

    Example:
        >>> import jax.numpy as jnp
        >>> all_action_loss(jnp.array([0.25, 0.75]), jnp.array([4.0, 0.0]))
        Array(-1., dtype=float32)
    """
    return -(probs * stop_gradient(action_value)).sum(-1)
