"""Baselines: what is subtracted from a return to lower the variance of the gradient.

A baseline keeps the gradient unbiased if it does not depend on the action whose score it multiplies. One
that is fitted on the very trajectories it is subtracted from does depend on it, a little: each docstring
says by how much. `valid` marks the steps that belong to an episode; the others count for nothing.
"""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from pgjax._axes import beside
from pgjax._jit import compiled
from pgjax.estimators.recurrence import time_major
from pgjax.types import Array, ArrayTree


@compiled()
def constant_baseline(reward_to_go: Array, valid: Array | None = None) -> Array:
    """The mean over all valid steps.

        b = Σ_{i,t} G_{i,t} / Σ_{i,t} 1

    Fitted on its own trajectories: biased, by O(1/N).

    Args:
        reward_to_go: `[T, N]`, or any weight of the score.
        valid: `[T, N]` bool, or None.

    Returns:
        `[T, N]`.

    References:
        Williams 1992, the reinforcement comparison baseline.

    Example:
        >>> import jax.numpy as jnp
        >>> constant_baseline(jnp.array([[1.0, 3.0]]))
        Array([[2., 2.]], dtype=float32)
    """
    weight, mask = _masked(reward_to_go, valid)
    mean = weight.sum() / jnp.maximum(mask.sum(), 1.0)
    return jnp.broadcast_to(mean, weight.shape)


@compiled()
def time_baseline(reward_to_go: Array, valid: Array | None = None) -> Array:
    """The mean over trajectories, for every time step.

        b_t = Σ_i G_{i,t} / Σ_i 1

    Fitted on its own trajectories: where all N trajectories are alive it scales the gradient by 1 − 1/N.

    Args:
        reward_to_go: `[T, N]`.
        valid: `[T, N]` bool, or None.

    Returns:
        `[T, N]`.

    References:
        Peters & Schaal 2008, Reinforcement learning of motor skills with policy gradients, section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> time_baseline(jnp.array([[1.0, 3.0], [0.0, 1.0]]))
        Array([[2. , 2. ],
               [0.5, 0.5]], dtype=float32)
    """
    weight, mask = _masked(reward_to_go, valid)
    mean = weight.sum(1, keepdims=True) / jnp.maximum(mask.sum(1, keepdims=True), 1.0)
    return jnp.broadcast_to(mean, weight.shape)


@compiled()
def leave_one_out_baseline(reward_to_go: Array, valid: Array | None = None) -> Array:
    """The mean over the *other* trajectories, for every time step.

        b_{i,t} = Σ_{j≠i} G_{j,t} / Σ_{j≠i} 1

    Unbiased: it does not know the trajectory that it is subtracted from. Where no other trajectory is
    alive it is 0.

    Args:
        reward_to_go: `[T, N]`.
        valid: `[T, N]` bool, or None.

    Returns:
        `[T, N]`.

    References:
        Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free.

    Example:
        >>> import jax.numpy as jnp
        >>> leave_one_out_baseline(jnp.array([[1.0, 3.0, 5.0]]))
        Array([[4., 3., 2.]], dtype=float32)
    """
    weight, mask = _masked(reward_to_go, valid)
    others = mask.sum(1, keepdims=True) - mask
    return jnp.where(others > 0, (weight.sum(1, keepdims=True) - weight) / jnp.maximum(others, 1.0), 0.0)


@compiled("per")
def optimal_baseline(
    scores: ArrayTree,
    reward_to_go: Array,
    valid: Array | None = None,
    *,
    per: Literal["trajectory", "time", "parameter"],
) -> Any:
    """The baseline of least variance (the trace of the gradient's covariance).

    With s_t the score of step t and S = Σ_t s_t,

        per trajectory   b   = E[S · Σ_t s_t G_t] / E‖S‖²
        per time         b_t = E[s_t · Σ_t' s_t' G_t'] / E‖s_t‖²
        per parameter    b_p = E[S_p Σ_t s_{t,p} G_t] / E[S_p²]

    The first is one number for all steps; with the total return as weight it is Greensmith's E[‖S‖² R] /
    E‖S‖². The second keeps the cross terms between time steps. Expectations are means over the given
    trajectories: fitted on its own data, biased by O(1/N); fit it on other trajectories to avoid that.

    Args:
        scores: ∇ log π(a_t | s_t) of every step, leaves `[T, N, ...]`, as `pgjax.score` returns them.
        reward_to_go: `[T, N]`, the weight that the baseline is subtracted from.
        valid: `[T, N]` bool, or None.
        per: what the baseline may depend on.

    Returns:
        `[T, N]` for "trajectory" and "time". For "parameter" a pytree like the parameters, to be used as
        `policy_gradient(…, G) − b · policy_gradient(…, 1)` leaf by leaf.

    Raises:
        ValueError: if `per` is something else.

    References:
        Greensmith et al. 2004, Variance reduction techniques for gradient estimates in RL;
        Peters & Schaal 2008, Reinforcement learning of motor skills with policy gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> scores = jnp.array([[[1.0], [-2.0]]])  # one step, two trajectories, one parameter
        >>> optimal_baseline(scores, jnp.array([[1.0, 2.0]]), per="trajectory")
        Array([[1.8, 1.8]], dtype=float32)
    """
    if per not in ("trajectory", "time", "parameter"):
        raise ValueError(f"per must be 'trajectory', 'time' or 'parameter', got {per!r}.")
    weight, mask = _masked(reward_to_go, valid)
    chex.assert_tree_shape_prefix(scores, weight.shape)
    scores = jax.tree.map(lambda s: jnp.where(beside(mask, s) > 0, s, 0.0), scores)
    summed = jax.tree.map(lambda s: s.sum(0, keepdims=True), scores)
    gradient = jax.tree.map(lambda s: (s * beside(weight, s)).sum(0, keepdims=True), scores)
    if per == "parameter":
        return jax.tree.map(lambda s, g: _ratio((s * g).mean((0, 1)), (s * s).mean((0, 1))), summed, gradient)
    steps = summed if per == "trajectory" else scores
    cross = _inner(steps, gradient).mean(1, keepdims=True)
    square = _inner(steps, steps).mean(1, keepdims=True)
    return jnp.broadcast_to(_ratio(cross, square), weight.shape)


@compiled()
def linear_baseline(features: Array, reward_to_go: Array, valid: Array | None = None) -> Array:
    """The least-squares fit that is linear in features of observation and time.

        b_{i,t} = w · φ_{i,t},   w = argmin_w Σ_{i,t} (G_{i,t} − w · φ_{i,t})²

    Collinear features are no error: of all solutions the shortest is taken. Fitted on its own
    trajectories: biased, by about the number of features over the number of steps.

    Args:
        features: `[T, N, K]`; `time_features` makes the usual ones.
        reward_to_go: `[T, N]`.
        valid: `[T, N]` bool, or None.

    Returns:
        `[T, N]`.

    References:
        Duan et al. 2016, Benchmarking deep RL for continuous control, supplement.

    Example:
        >>> import jax.numpy as jnp
        >>> features = jnp.array([[[1.0]], [[2.0]]])
        >>> linear_baseline(features, jnp.array([[2.0], [4.0]])).round(4)
        Array([[2.],
               [4.]], dtype=float32)
    """
    weight, mask = _masked(reward_to_go, valid)
    chex.assert_equal_shape_prefix([features, weight], 2)
    num_features = features.shape[-1]
    features = jnp.where(mask[..., None] > 0, features, 0.0)
    scale = jnp.sqrt((features**2).mean((0, 1)))
    features = features / jnp.where(scale > 0, scale, 1.0)[None, None]
    # by default what counts as collinear grows with the number of steps, and takes real directions with it
    rcond = 8.0 * num_features * float(jnp.finfo(features.dtype).eps)
    solution = jnp.linalg.lstsq(features.reshape(-1, num_features), weight.reshape(-1), rcond)[0]
    return features @ solution


@compiled()
def time_features(obs: Array) -> Array:
    """Features of observation and time for `linear_baseline`.

        φ = (o, o², t, t², t³, 1),   t in units of 100 steps

    Args:
        obs: `[T, N, ...]`, whole episodes: row t is time t.

    Returns:
        `[T, N, 2 D + 4]`, D the size of one observation.

    References:
        Duan et al. 2016, Benchmarking deep RL for continuous control, supplement.

    Example:
        >>> import jax.numpy as jnp
        >>> time_features(jnp.ones((5, 2, 3))).shape
        (5, 2, 10)
    """
    flat = obs.reshape(*obs.shape[:2], -1).astype(jnp.result_type(obs, float))
    time = jnp.arange(obs.shape[0], dtype=flat.dtype) / 100.0
    powers = jnp.stack([time, time**2, time**3, jnp.ones_like(time)], -1)
    powers = jnp.broadcast_to(powers[:, None], (*obs.shape[:2], 4))
    return jnp.concatenate([flat, flat**2, powers], -1)


@compiled()
def subtract_baseline(reward_to_go: Array, baseline: Array, valid: Array | None = None) -> Array:
    """The weight that is left after the baseline.

    Args:
        reward_to_go: `[T, N, ...]`.
        baseline: `[T, N, ...]`, broadcast against `reward_to_go`, or a number.
        valid: `[T, N]` bool, or None.

    Returns:
        `[T, N, ...]`; 0 where not valid.

    Example:
        >>> import jax.numpy as jnp
        >>> subtract_baseline(jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 1.0]]))
        Array([[2., 0.]], dtype=float32)
    """
    if jnp.ndim(baseline):
        reward_to_go, baseline = time_major(reward_to_go, baseline)
    weight = reward_to_go - baseline
    if valid is None:
        return weight
    weight, valid = time_major(weight, valid)
    return jnp.where(valid, weight, 0.0)


def _masked(weight: Array, valid: Array | None) -> tuple[Array, Array]:
    """The weight with zeros where it does not count, and the mask as numbers."""
    weight = jnp.asarray(weight, jnp.result_type(weight, float))
    chex.assert_rank(weight, 2)
    if valid is None:
        return weight, jnp.ones_like(weight)
    chex.assert_equal_shape([weight, valid])
    return jnp.where(valid, weight, 0.0), valid.astype(weight.dtype)


def _inner(x: ArrayTree, y: ArrayTree) -> Array:
    """The inner product over the parameters, for every step and trajectory."""
    products = jax.tree.map(lambda a, b: (a * b).sum(tuple(range(2, a.ndim))), x, y)
    return jax.tree.reduce(jnp.add, products)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)
