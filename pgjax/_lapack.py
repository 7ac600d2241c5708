"""Decompositions that can be mapped over on any device."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pgjax.types import Array


def one_at_a_time_on_cpu(function: Any) -> Any:
    """Map over problems without batched LAPACK calls: several of them in one program deadlock on few cores.

    Seen with jaxlib 0.10 on two cores and matrices of 64 × 64. Accelerators take the whole batch.

    Args:
        function: of arrays.

    Returns:
        The same function, that `vmap` runs one problem after the other on CPU.
    """
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def batched(axis_size: int, in_batched: list[bool], *arrays: Array) -> Any:
        arrays = tuple(
            x if is_batched else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            for x, is_batched in zip(arrays, in_batched, strict=True)
        )
        out = lax.platform_dependent(
            *arrays,
            cpu=lambda *arrays: lax.map(lambda one: single(*one), arrays),
            default=jax.vmap(function),
        )
        return out, jax.tree.map(lambda _: True, out)

    return single
