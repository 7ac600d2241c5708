"""Fisher information and the natural gradient.

`apply` is a static argument: a bound method (`actor.apply`) compiles once, a fresh lambda at every call
compiles anew. Observations have any number of batch axes in front; `weight` has these axes and is not
negative: a mask of valid steps, γ^t, a visitation. What it leaves out may be anything, NaN included.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from pgjax._axes import beside
from pgjax._checks import at_least_one
from pgjax._jit import compiled
from pgjax.gradients import Apply, score
from pgjax.types import Array, ArrayTree, Numeric, Params

MatVec = Callable[[Array], Array]


class CGInfo(NamedTuple):
    """How well a natural gradient was solved for.

    Attributes:
        relative_residual: ‖g − (F + λI) x‖ / ‖g‖; 0 for a zero gradient.
        curvature: xᵀ F x, without the damping.
        damped_curvature: xᵀ (F + λI) x.
        iterations: int32, how many moved x; fewer than asked for where the tolerance was met, or where the
            matrix was flat along the next direction, as a singular Fisher is.
        converged: bool, whether the relative residual met the tolerance.
    """

    relative_residual: Array
    curvature: Array
    damped_curvature: Array
    iterations: Array
    converged: Array


@compiled("apply")
def fisher_vector_product(
    apply: Apply,
    params: Params,
    obs: ArrayTree,
    vector: Params,
    *,
    damping: Numeric = 0.0,
    weight: Array | None = None,
) -> Any:
    """The Fisher information times a vector, without the matrix.

        F v = Σ_s w_s Jᵀ_s H_s J_s v / Σ_s w_s  (+ λ v)

    J is the Jacobian of the distribution's own parameters (logits, say) in θ, H the Hessian of
    KL(π ‖ ·) at π. In this Gauss-Newton form F is positive semi-definite, and no distribution needs a Fisher
    of its own.

    Args:
        apply: the actor's apply.
        params: θ.
        obs: leaves `[B, ...]` or `[T, N, ...]`.
        vector: v, a pytree like `params`.
        damping: λ.
        weight: `[B]` or `[T, N]`, not negative; None: all 1.

    Returns:
        A pytree like `params`.

    References:
        Schulman et al. 2015, Trust region policy optimization, appendix C; Martens 2020, New insights and
        perspectives on the natural gradient method, section 9.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> fisher_vector_product(apply, jnp.zeros(2), jnp.zeros((3, 1)), jnp.array([1.0, -1.0]))
        Array([ 0.5, -0.5], dtype=float32)
    """
    _, unravel = ravel_pytree(params)
    flat, _ = ravel_pytree(vector)
    return unravel(_fisher_product(apply, params, obs, weight)(flat) + damping * flat)


@compiled("apply")
def fisher_matrix(apply: Apply, params: Params, obs: ArrayTree, *, weight: Array | None = None) -> Array:
    """The Fisher information, dense; for small networks and for tests.

        F = E_s E_{a ~ π}[∇log π(a|s) ∇log π(a|s)ᵀ]

    The expectation over actions is exact: it is the Hessian of the KL divergence.

    Args:
        apply: the actor's apply.
        params: θ, P numbers in all.
        obs: leaves `[B, ...]` or `[T, N, ...]`.
        weight: `[B]` or `[T, N]`, not negative; None: all 1.

    Returns:
        `[P, P]`, in the order of `jax.flatten_util.ravel_pytree(params)`.

    References:
        Kakade 2002, A natural policy gradient, section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> fisher_matrix(apply, jnp.zeros(2), jnp.zeros((3, 1)))
        Array([[ 0.25, -0.25],
               [-0.25,  0.25]], dtype=float32)
    """
    flat, _ = ravel_pytree(params)
    matrix = jax.vmap(_fisher_product(apply, params, obs, weight))(jnp.eye(flat.size, dtype=flat.dtype))
    return 0.5 * (matrix + matrix.T)


@compiled("apply")
def empirical_fisher_matrix(
    apply: Apply, params: Params, obs: ArrayTree, action: Array, *, weight: Array | None = None
) -> Array:
    """The mean outer product of the scores of given actions.

        F̂ = Σ_i w_i ∇log π(a_i|s_i) ∇log π(a_i|s_i)ᵀ / Σ_i w_i

    With actions drawn from π itself it is an unbiased estimate of the Fisher information; with any others,
    an old policy's say, it is not.

    Args:
        apply: the actor's apply.
        params: θ, P numbers in all.
        obs: leaves `[B, ...]` or `[T, N, ...]`.
        action: `[B, ...]` or `[T, N, ...]`.
        weight: `[B]` or `[T, N]`, not negative; None: all 1.

    Returns:
        `[P, P]`, in the order of `jax.flatten_util.ravel_pytree(params)`.

    References:
        Kunstner et al. 2019, Limitations of the empirical Fisher approximation, eq. 3 and 4.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> empirical_fisher_matrix(apply, jnp.zeros(2), jnp.zeros((2, 1)), jnp.array([0, 1]))
        Array([[ 0.25, -0.25],
               [-0.25,  0.25]], dtype=float32)
    """
    flat, _ = ravel_pytree(params)
    scores = score(apply, params, obs, action)
    leaves = jax.tree.leaves(scores)
    num_batch_axes = leaves[0].ndim - jax.tree.leaves(params)[0].ndim
    batch = leaves[0].shape[:num_batch_axes]
    rows = jnp.concatenate([leaf.reshape(*batch, -1) for leaf in leaves], -1).reshape(-1, flat.size)
    weight = _weight(weight, batch, rows.dtype).reshape(-1, 1)
    rows = jnp.where(weight > 0, rows, 0.0)
    return jnp.matmul(rows.T, rows * weight, precision="highest") / _total(weight)


@compiled("apply", "cg_iters", "num_chunks")
def natural_gradient(
    apply: Apply,
    params: Params,
    obs: ArrayTree,
    gradient: Params,
    *,
    damping: Numeric = 0.1,
    cg_iters: int = 10,
    tol: Numeric = 0.0,
    weight: Array | None = None,
    num_chunks: int = 1,
) -> tuple[Any, CGInfo]:
    """The direction of steepest ascent in policies instead of parameters, by conjugate gradients.

        (F + λI) x = g

    The forward pass and its linearisation are computed once and used by all iterations. With several chunks
    they are computed anew for every chunk in every iteration instead, in a fraction of the memory; the
    result is the same to rounding.

    From a gradient without NaN nothing here becomes NaN: zero gives zero, and so does a gradient whose
    squared norm vanishes or overflows; where the matrix is flat along a direction, as a singular Fisher
    without damping is, the iteration ends with what it has. The info says so.

    Args:
        apply: the actor's apply.
        params: θ.
        obs: leaves `[B, ...]` or `[T, N, ...]`.
        gradient: g, a pytree like `params`, in the units of a mean over the same steps as F.
        damping: λ.
        cg_iters: how many iterations at most.
        tol: stop at this relative residual.
        weight: `[B]` or `[T, N]`, not negative; None: all 1.
        num_chunks: divides the first axis of `obs`.

    Returns:
        x, a pytree like `params`, and how well it was solved for.

    Raises:
        ValueError: if `cg_iters < 1`, or if the chunks do not divide the first axis.

    References:
        Kakade 2002, A natural policy gradient; Schulman et al. 2015, appendix C; Hestenes & Stiefel 1952.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> g = jnp.array([1.0, -1.0])
        >>> direction, info = natural_gradient(apply, jnp.zeros(2), jnp.zeros((3, 1)), g, damping=0.0)
        >>> direction, info.iterations
        (Array([ 2., -2.], dtype=float32), Array(1, dtype=int32))
    """
    at_least_one(cg_iters=cg_iters)
    if num_chunks == 1:
        product = _fisher_product(apply, params, obs, weight)
    else:
        product = _chunked_fisher_product(apply, params, obs, weight, num_chunks)
    _, unravel = ravel_pytree(params)
    flat, _ = ravel_pytree(gradient)
    direction, info = _conjugate_gradient(product, flat, damping, cg_iters, tol)
    return unravel(direction), info


def _conjugate_gradient(
    product: MatVec, target: Array, damping: Numeric, num_iters: int, tol: Numeric
) -> tuple[Array, CGInfo]:
    """The x of (F + λI) x = target, with x, the residual and F x carried along."""
    eps = jnp.finfo(target.dtype).eps
    target_sq = target @ target

    class Loop(NamedTuple):
        x: Array
        fisher_x: Array
        residual: Array
        residual_sq: Array
        direction: Array
        steepest: Array  # the largest curvature met so far
        iterations: Array
        stuck: Array

    def iterate(_: Array, loop: Loop) -> Loop:
        fisher_p = product(loop.direction)
        damped = fisher_p + damping * loop.direction
        curvature = loop.direction @ damped
        length_sq = loop.direction @ loop.direction
        rayleigh = curvature / jnp.where(length_sq > 0, length_sq, 1.0)
        # flatter than rounding can tell from 0: a step along it would be noise, of any size
        flat = ~(rayleigh > jnp.maximum(32.0 * eps * loop.steepest, jnp.finfo(target.dtype).tiny))
        unsolved = loop.residual_sq > jnp.maximum(tol**2 * target_sq, jnp.finfo(target.dtype).tiny)
        stuck = loop.stuck | (unsolved & flat)
        moves = unsolved & ~stuck
        step = jnp.where(moves, loop.residual_sq / jnp.where(moves, curvature, 1.0), 0.0)
        residual = loop.residual - step * damped
        residual_sq = residual @ residual
        beta = jnp.where(moves, residual_sq / jnp.where(moves, loop.residual_sq, 1.0), 0.0)
        new = Loop(
            loop.x + step * loop.direction,
            loop.fisher_x + step * fisher_p,
            residual,
            residual_sq,
            residual + beta * loop.direction,
            jnp.maximum(loop.steepest, rayleigh),
            loop.iterations + moves,
            stuck,
        )
        # along a direction that the matrix is all but blind to the residual explodes: such a step is none
        usable = jnp.isfinite(new.x @ new.x) & jnp.isfinite(new.x @ new.fisher_x)  # so are all their entries
        fine = usable & (residual_sq <= 1e4 * target_sq)
        kept = jax.tree.map(lambda n, o: jnp.where(moves & fine, n, o), new, loop)
        return kept._replace(stuck=stuck | (moves & ~fine))

    zeros = jnp.zeros_like(target)
    none = jnp.zeros((), target.dtype)
    start = Loop(
        zeros, zeros, target, target_sq, target, none, jnp.zeros((), jnp.int32), ~jnp.isfinite(target_sq)
    )
    loop = lax.fori_loop(0, num_iters, iterate, start)
    curvature = loop.x @ loop.fisher_x
    relative = jnp.sqrt(loop.residual_sq / jnp.where(target_sq > 0, target_sq, 1.0))
    relative = jnp.where(target_sq == jnp.inf, 1.0, relative)  # x is 0
    info = CGInfo(
        relative_residual=relative,
        curvature=curvature,
        damped_curvature=curvature + damping * (loop.x @ loop.x),
        iterations=loop.iterations,
        converged=(relative <= tol) & ~loop.stuck | (target_sq == 0),
    )
    return loop.x, info


def _fisher_product(apply: Apply, params: Params, obs: ArrayTree, weight: Array | None) -> MatVec:
    """F v as a function of v, on raveled parameters, linearised here and now."""
    product, total = _fisher_sum(apply, params, obs, weight)
    return lambda vector: product(vector) / total


def _chunked_fisher_product(
    apply: Apply, params: Params, obs: ArrayTree, weight: Array | None, num_chunks: int
) -> MatVec:
    """The same, one strided chunk of the first axis after the other, linearised anew in every product."""
    size = jax.tree.leaves(obs)[0].shape[0]
    if num_chunks < 1 or size % num_chunks:
        raise ValueError(f"num_chunks={num_chunks} must divide the first axis of obs, {size}.")
    # strided, so that every device keeps a part of every chunk where the axis is spread over devices
    chunked = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(size // num_chunks, num_chunks, *x.shape[1:]), 1, 0), (obs, weight)
    )

    def product(vector: Array) -> Array:
        def add(sums: tuple[Array, Array], chunk: tuple[Any, Any]) -> tuple[tuple[Array, Array], None]:
            part, total = _fisher_sum(apply, params, *chunk)
            return (sums[0] + part(vector), sums[1] + total), None

        zero = jnp.zeros_like(vector), jnp.zeros((), vector.dtype)
        (total_product, total), _ = lax.scan(add, zero, chunked)
        return total_product / total

    return product


def _fisher_sum(apply: Apply, params: Params, obs: ArrayTree, weight: Array | None) -> tuple[MatVec, Array]:
    """Σ_s w_s F_s v as a function of v, on raveled parameters, and Σ_s w_s."""
    if weight is not None:
        chex.assert_tree_shape_prefix(obs, weight.shape)
        # 0 · NaN is NaN: what the weight leaves out must not even be looked at
        obs = jax.tree.map(lambda x: jnp.where(beside(weight, x) > 0, x, jnp.zeros_like(x)), obs)
    flat, unravel = ravel_pytree(params)

    def outputs(flat: Array) -> tuple[list[Array], Any]:
        policy = apply(unravel(flat), obs)
        return [x for x in jax.tree.leaves(policy) if _is_floating(x)], policy

    at, jacobian, policy = jax.linearize(outputs, flat, has_aux=True)

    def kl_to(outputs: list[Array]) -> Array:
        floating = iter(outputs)
        return policy.kl(jax.tree.map(lambda x: next(floating) if _is_floating(x) else x, policy))

    weights = _weight(weight, jax.eval_shape(kl_to, at).shape, flat.dtype)
    _, hessian = jax.linearize(jax.grad(lambda outputs: (weights * kl_to(outputs)).sum()), at)
    transpose = jax.linear_transpose(jacobian, flat)
    return lambda vector: transpose(hessian(jacobian(vector)))[0], _total(weights)


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _weight(weight: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    if weight is None:
        return jnp.ones(shape, dtype)
    chex.assert_shape(weight, shape)
    return weight.astype(dtype)


def _total(weight: Array) -> Array:
    """The sum to divide by; where nothing is weighted, anything but 0."""
    return jnp.maximum(weight.sum(), jnp.finfo(weight.dtype).tiny)
