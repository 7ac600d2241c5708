"""The matrix product of the dense layers, with a weight gradient that is fast on CPUs."""

from typing import Any

import jax
from jax import lax

from pgjax.types import Array


def dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any
) -> Array:
    """As `lax.dot_general` in a dense layer; flax's `Dense` takes it in that one's place.

    The gradient of the kernel is xᵀ g, a sum over the batch. On CPUs XLA multiplies two to three times as
    fast if xᵀ lies in memory as such, and never puts it there by itself: it takes any transpose into the
    product. Here a barrier keeps it out. On other devices, and for a single observation, nothing is
    different.

    Args:
        x: `[..., K]`.
        kernel: `[K, M]`.
        dimension_numbers: of the last axis of `x` with the first of `kernel`.
        precision: as there.
        **options: as there.

    Returns:
        `[..., M]`.
    """
    if x.ndim < 2 or jax.default_backend() != "cpu":
        return lax.dot_general(x, kernel, dimension_numbers, precision=precision, **options)

    @jax.custom_jvp
    def product(x: Array, kernel: Array) -> Array:
        return lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), precision=precision, **options)

    @product.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
        stored = lax.optimization_barrier(x.T)
        return product(x, kernel), product(x_tangent, kernel) + product(stored.T, kernel_tangent)

    rows = x.reshape(-1, x.shape[-1])
    return product(rows, kernel).reshape(*x.shape[:-1], kernel.shape[1])
