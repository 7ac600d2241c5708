"""Scalars that tell how learning goes, reduced on the device."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from pgjax._jit import compiled
from pgjax.types import Array, ArrayTree, Numeric


class NoiseScale(NamedTuple):
    """How much of a gradient is noise.

    Attributes:
        squared_norm: scalar, an unbiased estimate of |G|², the squared norm of the true gradient. Being
            unbiased, it may come out negative.
        trace: scalar, an unbiased estimate of tr Σ, the variance of the gradient of one sample. Never
            negative.
        scale: scalar, tr Σ / |G|² in samples; infinite where `squared_norm` is not above 0.
    """

    squared_norm: Array
    trace: Array
    scale: Array


@compiled()
def explained_variance(value: Array, target: Array, valid: Array | None = None) -> Array:
    """The share of the target's variance that the critic explains.

        1 − Var(target − V) / Var(target)

    Args:
        value: `[...]`.
        target: `[...]`.
        valid: bool `[...]`, or None.

    Returns:
        A scalar, at most 1; 0 where the target does not vary by more than 32 rounding errors of its root mean
        square.

    Example:
        >>> import jax.numpy as jnp
        >>> explained_variance(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))
        Array(0.75, dtype=float32)
    """
    variance = jnp.var(target, where=valid)
    residual = jnp.var(target - value, where=valid)
    rounding = jnp.square(32.0 * jnp.finfo(variance.dtype).eps) * jnp.square(target).mean(where=valid)
    constant = variance <= rounding
    return jnp.where(constant, 0.0, 1.0 - residual / jnp.where(constant, 1.0, variance))


@compiled("nonnegative")
def approximate_kl(log_prob: Array, old_log_prob: Array, *, nonnegative: bool = True) -> Array:
    """KL(π_old ‖ π) estimated from actions of π_old, per sample.

        k3 = (ρ − 1) − log ρ,   k1 = −log ρ,   ρ = π(a | s) / π_old(a | s)

    Both are unbiased. k3 is never negative and of lower variance where the policies are close; k1 has the
    lower variance where ρ is heavy-tailed.

    Args:
        log_prob: `[...]`, of the new policy.
        old_log_prob: `[...]`, of the policy that acted.
        nonnegative: True for k3, False for k1.

    Returns:
        `[...]`; its mean is an unbiased estimate.

    References:
        Schulman 2020, Approximating KL divergence, the estimators k1 and k3.

    Example:
        >>> import jax.numpy as jnp
        >>> approximate_kl(jnp.array([-1.0]), jnp.array([-1.0]))
        Array([0.], dtype=float32)
        >>> approximate_kl(jnp.array([-1.0]), jnp.array([-1.5]), nonnegative=False)
        Array([-0.5], dtype=float32)
    """
    log_ratio = log_prob - old_log_prob
    return jnp.expm1(log_ratio) - log_ratio if nonnegative else -log_ratio


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


@compiled()
def gradient_cosine(a: ArrayTree, b: ArrayTree) -> Array:
    """The cosine of the angle between two gradients: successive ones, or an estimate and the truth.

        (a · b) / (‖a‖ ‖b‖)

    Args:
        a: a pytree of arrays.
        b: a pytree of the same structure and shapes.

    Returns:
        A scalar in [−1, 1]; 0 where either is zero everywhere, because zero has no direction.

    Raises:
        AssertionError: if structures or shapes differ.

    References:
        Ilyas et al. 2018, Are deep policy gradient algorithms truly policy gradient algorithms?

    Example:
        >>> import jax.numpy as jnp
        >>> gradient_cosine({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 0.0])})
        Array(0.6, dtype=float32)
    """
    chex.assert_trees_all_equal_shapes(a, b)
    a, b = _direction(a), _direction(b)
    squares = _inner(a, a) * _inner(b, b)
    nonzero = squares > 0
    cosine = _inner(a, b) / jnp.sqrt(jnp.where(nonzero, squares, 1.0))
    return jnp.where(nonzero, jnp.clip(cosine, -1.0, 1.0), 0.0)


@compiled()
def gradient_noise_scale(gradients: ArrayTree, *, batch_size: Numeric) -> NoiseScale:
    """The batch size above which more samples stop paying, from the gradients of K minibatches.

        |G|² ≈ (K b |ḡ|² − b mean|g|²) / (K b − b),   tr Σ ≈ (mean|g|² − |ḡ|²) / (1/b − 1/(K b))

    and the simple noise scale is their ratio, in samples: with b far below it a step is mostly noise, far
    above it the samples are spent in vain. Both parts are unbiased and their ratio is not: average the parts
    over iterations first, then divide.

    Args:
        gradients: the gradients of K ≥ 2 minibatches of independent samples, at the same parameters; leaves
            `[K, ...]`.
        batch_size: b, samples in one minibatch.

    Returns:
        The two parts and their ratio. Where noise makes the estimate of |G|² zero or negative, the ratio is
        infinite: no signal was seen.

    Raises:
        ValueError: if K < 2.

    References:
        McCandlish et al. 2018, An empirical model of large-batch training, eq. 2.9 and appendix A.1.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_norm, trace, scale = gradient_noise_scale(jnp.array([[3.0], [1.0]]), batch_size=9)
        >>> print(squared_norm, trace, scale)
        3.0 18.0 6.0
    """
    num = jax.tree.leaves(gradients)[0].shape[0]
    chex.assert_tree_shape_prefix(gradients, (num,))
    if num < 2:
        raise ValueError("gradient_noise_scale needs the gradients of at least 2 minibatches, got 1.")
    mean = jax.tree.map(lambda g: g.mean(0), gradients)
    centred = jax.tree.map(lambda g, m: g - m[None], gradients, mean)
    spread = _inner(centred, centred) / (num - 1)  # tr Σ / b; centred, so that nothing cancels
    squared_norm = _inner(mean, mean) - spread / num
    trace = batch_size * spread
    positive = squared_norm > 0
    scale = jnp.where(positive, trace / jnp.where(positive, squared_norm, 1.0), jnp.inf)
    return NoiseScale(squared_norm, trace, scale)


@compiled()
def surrogate_improvement(
    log_prob: Array, old_log_prob: Array, advantage: Array, valid: Array | None = None
) -> Array:
    """What the surrogate objective promises for a new policy, from actions of the old one.

        L = mean (ρ − 1) A,   ρ = π(a | s) / π_old(a | s)

    Args:
        log_prob: `[...]`, of the new policy.
        old_log_prob: `[...]`, of the policy that acted.
        advantage: `[...]`, under the old policy.
        valid: bool `[...]`, or None if all samples count.

    Returns:
        A scalar, per sample in units of the advantage; times the expected discounted steps of an episode,
        1/(1 − γ) without an end, it is in units of the return.

    References:
        Kakade & Langford 2002, Approximately optimal approximate reinforcement learning, lemma 6.1 with the
        old policy's states; Schulman et al. 2015, Trust region policy optimization, eq. 3.

    Example:
        >>> import jax.numpy as jnp
        >>> old, new = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
        >>> surrogate_improvement(new, old, jnp.array([1.0, -1.0])).round(4)
        Array(0.5, dtype=float32)
    """
    chex.assert_equal_shape([log_prob, old_log_prob, advantage])
    if valid is None:
        return (jnp.expm1(log_prob - old_log_prob) * advantage).mean()
    chex.assert_equal_shape([log_prob, valid])
    log_ratio = jnp.where(valid, log_prob - old_log_prob, 0.0)
    gain = jnp.expm1(log_ratio) * jnp.where(valid, advantage, 0.0)
    return gain.sum() / jnp.maximum(valid.sum(), 1)


@compiled()
def improvement_ratio(improvement: Numeric, surrogate: Numeric) -> Array:
    """How much of what the surrogate promised came true.

        (J(π) − J(π_old)) / L

    Near 1 the step was within reach of the surrogate; far below it was too long.

    Args:
        improvement: `[...]`, of the true objective, in the units of `surrogate`.
        surrogate: `[...]`, as `surrogate_improvement` gives it, in the units of the return.

    Returns:
        `[...]`; 0 where the surrogate promised nothing.

    References:
        Conn, Gould & Toint 2000, Trust-region methods, algorithm 6.1.1, step 3: the ratio that sets the
        radius.

    Example:
        >>> improvement_ratio(0.5, 2.0)
        Array(0.25, dtype=float32)
    """
    surrogate = jnp.asarray(surrogate, jnp.result_type(surrogate, improvement, float))
    promised = jnp.abs(surrogate) >= jnp.finfo(surrogate.dtype).tiny
    return jnp.where(promised, improvement / jnp.where(promised, surrogate, 1.0), 0.0)


def _inner(x: ArrayTree, y: ArrayTree) -> Array:
    """The inner product over all entries of all leaves."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)
    return jax.tree.reduce(jnp.add, products)


def _direction(tree: ArrayTree) -> ArrayTree:
    """The same direction with the largest entry 1, so that squares neither overflow nor vanish."""
    largest = jax.tree.reduce(jnp.maximum, jax.tree.map(lambda x: jnp.abs(x).max(), tree))
    return jax.tree.map(lambda x: x / jnp.where(largest > 0, largest, 1.0), tree)
