"""Losses whose gradient moves a policy. Weights, advantages and old log-probabilities are constants."""

import chex
import jax
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
    log_ratio = log_prob - stop_gradient(old_log_prob)
    advantage = stop_gradient(advantage)
    # the minimum, sign by sign: one comparison, where the gradients of `minimum` and `clip` take several
    bound = jnp.where(advantage < 0, 1.0 - clip_eps, 1.0 + clip_eps)
    return -advantage * _held_ratio(log_ratio, bound, advantage < 0)


@jax.custom_jvp
def _held_ratio(log_ratio: Array, bound: Array, from_below: Array) -> Array:
    """The ratio, held at a bound where it is beyond it."""
    return jnp.where(*_beyond(log_ratio, bound, from_below))


def _beyond(log_ratio: Array, bound: Array, from_below: Array) -> tuple[Array, Array, Array]:
    ratio = jnp.exp(log_ratio)
    beyond = jnp.where(from_below, ratio < bound, ratio > bound) | jnp.isnan(bound)
    return beyond, bound, ratio


@_held_ratio.defjvp
def _held_ratio_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """Beyond the bound the slope is 0 before it meets the ratio, which may have overflowed: 0 · ∞ is NaN."""
    beyond, bound, ratio = _beyond(*primals)
    slope = jnp.where(beyond, 0.0, ratio) * tangents[0] + jnp.where(beyond, tangents[1], 0.0)
    return jnp.where(beyond, bound, ratio), slope


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


@compiled()
def deterministic_policy_loss(action_value: Array) -> Array:
    """The value of what a deterministic policy does; its gradient goes through the action.

        L = −Q(s, μ(s))

    The caller differentiates in the parameters of μ alone: through Q, not in Q.

    Args:
        action_value: `[...]`, Q(s, μ(s)), differentiated.

    Returns:
        `[...]`.

    References:
        Silver et al. 2014, Deterministic policy gradient algorithms, theorem 1; Lillicrap et al. 2016, eq. 6.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> q = lambda action: -((action - 3.0) ** 2)
        >>> jax.grad(lambda mu: deterministic_policy_loss(q(mu)))(1.0)
        Array(-4., dtype=float32, weak_type=True)
    """
    return -action_value


@compiled()
def soft_policy_loss(log_prob: Array, action_value: Array, *, alpha: Numeric) -> Array:
    """Value and entropy of a stochastic policy, the action being a function of the noise.

        L = α log π(a | s) − min_k Q_k(s, a),   a = f(noise; s)

    The gradient goes through the action into both terms. With α = 0 and one critic it is
    `deterministic_policy_loss`.

    Args:
        log_prob: `[...]`, log π(a | s) from `sample_and_log_prob`, differentiated.
        action_value: `[K, ...]`, Q_k(s, a), differentiated through the action.
        alpha: α, the temperature, a constant here.

    Returns:
        `[...]`.

    References:
        Haarnoja et al. 2018, Soft actor-critic algorithms and applications, eq. 9.

    Example:
        >>> import jax.numpy as jnp
        >>> soft_policy_loss(jnp.array([-1.0]), jnp.array([[3.0], [2.0]]), alpha=0.5)
        Array([-2.5], dtype=float32)
    """
    chex.assert_shape(action_value, (None, *log_prob.shape))
    return stop_gradient(alpha) * log_prob - action_value.min(0)


@compiled()
def expected_soft_policy_loss(log_probs: Array, action_value: Array, *, alpha: Numeric) -> Array:
    """Value and entropy of a policy over a finite number of actions, taken exactly.

        L = Σ_a π(a | s) [α log π(a | s) − min_k Q_k(s, a)]

    It is least where π ∝ exp(Q / α). With α = 0 and one critic it is `all_action_loss`.

    Args:
        log_probs: `[..., A]`, log π(· | s) as `Categorical.log_probs` has it, differentiated.
        action_value: `[K, ..., A]`, Q_k(s, ·), constants.
        alpha: α, the temperature, a constant here.

    Returns:
        `[...]`.

    References:
        Christodoulou 2019, Soft actor-critic for discrete action settings, eq. 12.

    Example:
        >>> import jax.numpy as jnp
        >>> expected_soft_policy_loss(jnp.log(jnp.array([0.25, 0.75])), jnp.array([[4.0, 0.0]]), alpha=0.0)
        Array(-1., dtype=float32)
    """
    chex.assert_shape(action_value, (None, *log_probs.shape))
    probs, action_value = jnp.exp(log_probs), stop_gradient(action_value).min(0)
    return (probs * (stop_gradient(alpha) * jnp.where(probs > 0, log_probs, 0.0) - action_value)).sum(-1)


@compiled()
def temperature_loss(log_alpha: Array, log_prob: Array, *, target_entropy: Numeric) -> Array:
    """Raises the temperature while the policy has less entropy than wanted, lowers it while it has more.

        L = −log α (log π(a | s) + target)

    The paper's objective is −α (log π + target); here log α stands in for the α in front, as in
    Stable-Baselines3. Sign and zero of the gradient in log α are the same, but it does not shrink with α: a
    temperature that has become small rises as fast as it fell.

    Args:
        log_alpha: scalar, differentiated.
        log_prob: `[...]`, log π(a | s); minus the entropy where that is known exactly.
        target_entropy: in nats and in the units of the action: for actions in a box −D is meant for
            [−1, 1], so add Σ log((high − low) / 2).

    Returns:
        `[...]`.

    References:
        Haarnoja et al. 2018, Soft actor-critic algorithms and applications, eq. 18.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> log_prob = jnp.array([2.0])  # entropy of about −2, less than the −1 wanted: log α rises
        >>> jax.grad(lambda x: temperature_loss(x, log_prob, target_entropy=-1.0).sum())(0.0)
        Array(-1., dtype=float32, weak_type=True)
    """
    return -log_alpha * stop_gradient(log_prob + target_entropy)
