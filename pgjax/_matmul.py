"""The products of dense and convolutional layers, in the forms that are fast on CPUs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from pgjax.types import Array

NARROW = 8  # a layer of fewer outputs is narrow: few actions, a value


def dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any
) -> Array:
    """As `lax.dot_general` in a dense layer; flax's `Dense` takes it in that one's place.

    The gradient of the kernel is xᵀ g, a sum over the batch. On CPUs XLA multiplies two to three times as
    fast if xᵀ lies in memory as such, and never puts it there by itself: it takes any transpose into the
    product. Here a barrier keeps it out. Under differentiation a layer of fewer than `NARROW` outputs, as
    values and a few actions have, is a product for each of them, of x and a vector: that takes a quarter of
    the time for two outputs. On other devices, and for a single observation, nothing is different.

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
        return lax.dot_general(x, kernel, dimension_numbers, precision=precision, **options)

    def along(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
        outputs = kernel.shape[1]

        def by_output(x: Array, kernel: Array) -> Array:
            columns = jnp.split(kernel, outputs, 1) if outputs < NARROW else [kernel]
            return jnp.concatenate([product(x, column) for column in columns], -1)

        def from_kernel() -> Array:
            # batch axes stay as they are: flattened they would be gathered where one is spread over devices
            if outputs < NARROW:
                return by_output(x, kernel_tangent)
            stored = lax.optimization_barrier(jnp.moveaxis(x, -1, 0))
            return product(jnp.moveaxis(stored, 0, -1), kernel_tangent)

        value = by_output(x, kernel)
        return value, _sum(tangents, (lambda: by_output(x_tangent, kernel), from_kernel), value)

    product.defjvp(along, symbolic_zeros=True)
    return product(x, kernel)


def convolve(
    x: Array, kernel: Array, strides: Any, padding: Any, *, precision: Any = None, **options: Any
) -> Array:
    """As `lax.conv_general_dilated` in a plain layer of images; flax's `Conv` takes it in that one's place.

    On CPUs the patches that the kernel sees are laid out and multiplied with it, which is faster than XLA's
    convolution and its gradients. Under differentiation they lie in memory one pixel of all patches after the
    other, so that both the product and the gradient of the kernel, a sum over all patches, read them in
    order. On other devices, and with padding, strides, dilation or groups, nothing is different.

    Args:
        x: images `[B, H, W, C]`.
        kernel: `[h, w, C, F]`.
        strides: as there.
        padding: as there.
        precision: as there.
        **options: as there.

    Returns:
        `[B, H', W', F]`.
    """
    dilated = any(step != 1 for name in ("lhs_dilation", "rhs_dilation") for step in options.get(name) or ())
    grouped = any(options.get(name, 1) != 1 for name in ("feature_group_count", "batch_group_count"))
    plain = padding == "VALID" and all(step == 1 for step in strides) and not dilated and not grouped
    if jax.default_backend() != "cpu" or not plain or options.get("preferred_element_type") is not None:
        return lax.conv_general_dilated(x, kernel, strides, padding, precision=precision, **options)
    (high, wide), features = kernel.shape[:2], kernel.shape[3]
    height, width = x.shape[1] - high + 1, x.shape[2] - wide + 1
    corners = [(i, j) for i in range(high) for j in range(wide)]

    @jax.custom_jvp
    def product(x: Array, kernel: Array) -> Array:
        patches = jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in corners], -1)
        weights = kernel.reshape(-1, features)
        return lax.dot_general(patches, weights, (((3,), (0,)), ((), ())), precision=precision)

    def along(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
        channels = jnp.moveaxis(x, -1, 0)
        pixels = jnp.concatenate([channels[:, :, i : i + height, j : j + width] for i, j in corners])
        pixels = pixels.reshape(pixels.shape[0], -1)  # [h w C, B H' W']

        def multiply(kernel: Array) -> Array:
            weights = kernel.reshape(-1, features)
            rows = lax.dot_general(weights, pixels, (((0,), (0,)), ((), ())), precision=precision)
            return jnp.moveaxis(rows.reshape(features, -1, height, width), 0, -1)

        terms = (lambda: product(x_tangent, kernel), lambda: multiply(kernel_tangent))
        value = multiply(kernel)
        return value, _sum(tangents, terms, value)

    product.defjvp(along, symbolic_zeros=True)
    return product(x, kernel)


def _sum(tangents: tuple[Any, Any], terms: tuple[Callable[[], Array], ...], value: Array) -> Array:
    """Of the terms whose tangent is not zero for certain, as that of observations is in a Fisher product."""
    varying = [term() for at, term in zip(tangents, terms, strict=True) if not isinstance(at, SymbolicZero)]
    return sum(varying[1:], start=varying[0]) if varying else jnp.zeros_like(value)
