"""How far to go along a natural gradient: the step that a KL bound allows, and a search back from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pgjax._checks import at_least_one
from pgjax._jit import compiled
from pgjax.types import Array, Numeric, Params


class LineSearchInfo(NamedTuple):
    """What a line search found.

    Attributes:
        chosen: int32, which candidate was taken, 0 for the full step; −1 for none.
        accepted: bool.
        scale: of the full step; 0 if none was taken.
        improvement: of the surrogate, by the step taken; 0 if none was.
        kl: KL(old ‖ new) of the step taken; 0 if none was.
    """

    chosen: Array
    accepted: Array
    scale: Array
    improvement: Array
    kl: Array


@compiled()
def kl_step_size(curvature: Array, *, max_kl: Numeric) -> Array:
    """The step along a direction x after which the policy has moved by δ, to second order.

        α = √(2 δ / xᵀ F x)

    With `CGInfo.curvature` that is what the bound says. TRPO's authors, OpenAI's baselines, Spinning Up and
    SB3-contrib all measure x with the damped matrix instead, `CGInfo.damped_curvature`, and so move a little
    less.

    Args:
        curvature: xᵀ F x, with the damping in it or without.
        max_kl: δ in nats.

    Returns:
        α; 0 where the curvature is not positive or so small that no finite step is meant by it.

    References:
        Schulman et al. 2015, Trust region policy optimization, appendix C.

    Example:
        >>> import jax.numpy as jnp
        >>> kl_step_size(jnp.array(2.0), max_kl=0.01)
        Array(0.1, dtype=float32)
    """
    curvature = jnp.asarray(curvature, jnp.result_type(float, curvature))
    positive = curvature > jnp.finfo(curvature.dtype).tiny
    step = jnp.sqrt(2.0 * max_kl / jnp.where(positive, curvature, 1.0))
    return jnp.where(positive & jnp.isfinite(curvature), step, 0.0)


@compiled("evaluate", "num_backtracks")
def backtracking_line_search(
    params: Params,
    full_step: Params,
    evaluate: Callable[[Params], tuple[Array, Array]],
    *,
    max_kl: Numeric,
    backtrack: Numeric = 0.8,
    num_backtracks: int = 10,
) -> tuple[Any, LineSearchInfo]:
    """The longest of a row of shrinking steps that keeps the KL bound and improves the surrogate.

        θ' = θ + β^j s,   the smallest j with KL(π ‖ π') ≤ δ, L(θ') > L(θ), and all of it finite

    The search ends with the first candidate that will do, mostly the first of all. Where none will do, the
    parameters are returned as they were, to the bit.

    Args:
        params: θ.
        full_step: s, a pytree like `params`.
        evaluate: `params -> (L(θ') − L(θ), KL(π_θ ‖ π_θ'))`, two scalars. A fresh function at every call
            compiles anew outside of a jit.
        max_kl: δ in nats.
        backtrack: β in (0, 1).
        num_backtracks: how many candidates, the full step among them.

    Returns:
        The new parameters, and what was found.

    Raises:
        ValueError: if `num_backtracks < 1`.

    References:
        Schulman et al. 2015, appendix C.

    Example:
        >>> import jax.numpy as jnp
        >>> def evaluate(x):
        ...     return -(x - 1.0) ** 2 + 1.0, 0.5 * x**2
        >>> start, step = jnp.array(0.0), jnp.array(2.0)
        >>> new, info = backtracking_line_search(start, step, evaluate, max_kl=0.6, backtrack=0.5)
        >>> new, info.chosen
        (Array(1., dtype=float32), Array(1, dtype=int32))
    """
    at_least_one(num_backtracks=num_backtracks)
    scales = jnp.asarray(backtrack, float) ** jnp.arange(num_backtracks)

    def candidate(scale: Array) -> Any:
        return jax.tree.map(lambda p, s: p + (scale * s).astype(p.dtype), params, full_step)

    def judge(scale: Array) -> tuple[Array, Array, Array]:
        new = candidate(scale)
        improvement, kl = evaluate(new)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new)]).all()
        feasible = (kl <= max_kl) & (improvement > 0) & jnp.isfinite(improvement) & jnp.isfinite(kl) & finite
        return feasible, improvement, kl

    def going_on(search: tuple[Array, tuple[Array, Array, Array]]) -> Array:
        tried, (feasible, *_) = search
        return ~feasible & (tried < num_backtracks)

    def try_next(search: tuple[Array, Any]) -> tuple[Array, tuple[Array, Array, Array]]:
        tried, _ = search
        return tried + 1, judge(scales[tried])

    unjudged = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(judge, scales[0]))
    tried, (accepted, improvement, kl) = lax.while_loop(
        going_on, try_next, (jnp.zeros((), jnp.int32), unjudged)
    )
    scale = jnp.where(accepted, scales[tried - 1], 0.0)
    new = jax.tree.map(lambda n, o: jnp.where(accepted, n, o), candidate(scale), params)
    info = LineSearchInfo(
        chosen=jnp.where(accepted, tried - 1, -1).astype(jnp.int32),
        accepted=accepted,
        scale=scale,
        improvement=jnp.where(accepted, improvement, 0.0),
        kl=jnp.where(accepted, kl, 0.0),
    )
    return new, info
