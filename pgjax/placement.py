"""Which device holds what. Data is placed, code is not changed: the compiler inserts the communication."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pgjax.normalization import RewardScaling
from pgjax.rollouts import EnvCarry
from pgjax.types import ArrayTree

Axis: TypeAlias = Literal["seed", "data"]
"""What is spread over the devices: whole runs, or the environments of each."""


def shard(tree: ArrayTree, axis: Axis = "seed", *, devices: Sequence[Any] | None = None) -> Any:
    """Spread seeds, or the environments of one run, over devices.

    Seeds need no communication. Environments on different devices make every mean of an algorithm a sum
    over all of them: one all-reduce for each gradient step. Either way the numbers are those of one device
    to rounding (1e-5 relative in an iteration; chaos makes more of it in a long run).

    Args:
        tree: for "seed" keys `[S]`, or what `train` returned for them, leaves `[S, ...]`; for "data" an
            algorithm's state.
        axis: what to spread.
        devices: which; None for all of them.

    Returns:
        The same values, placed.

    Raises:
        ValueError: if the seeds or the environments do not divide among the devices, or if the state holds
            no environments to spread.

    Example:
        >>> import jax, pgjax
        >>> from pgjax import experiment
        >>> ppo = experiment.make("ppo", "CartPole-v1")
        >>> keys = shard(jax.random.split(jax.random.key(0), 4 * jax.device_count()))  # a run for each
        >>> state, metrics = pgjax.train(keys, ppo, 1)
        >>> state = shard(jax.jit(ppo.init)(jax.random.key(0)), "data")  # one run on all devices
        >>> state, metrics = jax.jit(ppo.step)(jax.random.key(1), state)
    """
    return jax.device_put(tree, shardings(tree, make_mesh(axis, devices)))


def make_mesh(axis: Axis, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices in a row, along one named axis.

    Args:
        axis: its name.
        devices: which; None for all.

    Returns:
        The mesh.

    Raises:
        ValueError: if there is no such axis.
    """
    if axis not in ("seed", "data"):
        raise ValueError(f'axis must be "seed" or "data", got {axis!r}.')
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def shardings(tree: ArrayTree, mesh: Mesh, *, batch_axes: int = 0) -> Any:
    """Where each leaf belongs.

    Args:
        tree: of arrays or `jax.ShapeDtypeStruct`, as for `shard`.
        mesh: from `make_mesh`.
        batch_axes: for "data", how many axes of seeds stand before those of the state.

    Returns:
        A tree of shardings, for `jax.device_put` or for `out_shardings`.

    Raises:
        ValueError: as `shard`.
    """
    if mesh.axis_names == ("seed",):
        for leaf in jax.tree.leaves(tree):
            if not leaf.ndim or leaf.shape[0] % mesh.size:
                seeds = leaf.shape[0] if leaf.ndim else 1
                raise ValueError(
                    f"{seeds} seeds do not divide among {mesh.size} devices: take a multiple of {mesh.size}, "
                    "or name fewer devices."
                )
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec("seed")), tree)

    spread = NamedSharding(mesh, PartitionSpec(*[None] * batch_axes, "data"))
    whole = NamedSharding(mesh, PartitionSpec())
    found: list[int] = []

    def of(part: Any) -> Any:
        if isinstance(part, EnvCarry):
            if part.episode_return.ndim != batch_axes + 1:
                raise ValueError(
                    "This algorithm's environments belong to workers that take turns; spread seeds instead."
                )
            found.append(part.episode_return.shape[batch_axes])
            return jax.tree.map(lambda _: spread, part)
        if isinstance(part, RewardScaling):
            moments = jax.tree.map(lambda _: whole, part.moments)
            return part._replace(moments=moments, return_so_far=spread)
        return whole

    result = jax.tree.map(of, tree, is_leaf=lambda part: isinstance(part, EnvCarry | RewardScaling))
    if not found:
        raise ValueError(
            "There are no environments here to spread over devices: give an algorithm's whole state. (That "
            "of REINFORCE has none: its episodes begin anew in every iteration; spread seeds instead.)"
        )
    for num_envs in found:
        if num_envs % mesh.size:
            raise ValueError(
                f"num_envs={num_envs} does not divide among {mesh.size} devices: take a multiple of "
                f"{mesh.size}, or name fewer devices."
            )
    return result
