"""The only training loop: a loop over iterations, mapped over seeds."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax._checks import at_least_one
from pgjax._draws import draw_together
from pgjax.types import Algorithm, Array, Metrics, Numeric, PRNGKey

State = TypeVar("State")


class Progress(NamedTuple):
    """One seed's run between two iterations.

    Attributes:
        state: the algorithm's.
        diverged_at: int32 scalar, the iteration in which a NaN or an infinity appeared; −1 while all is
            finite. From then on what was learned stays as it was before.
    """

    state: Any
    diverged_at: Array


SeedRun: TypeAlias = Callable[[Any, Progress], tuple[Progress, Metrics]]
"""What one seed does, given what is its own and how far it is."""


def init_progress(init_key: PRNGKey, algorithm: Algorithm[Any]) -> Progress:
    """The start of one run, or of several.

    Seeds are initialised one after the other: several orthogonal initialisations in one batch deadlock in
    jaxlib 0.10 on machines with few cores.

    Args:
        init_key: a key, or keys `[S]`.
        algorithm: what to train.

    Returns:
        The start; leaves `[S, ...]` for several seeds.
    """

    def init(key: PRNGKey) -> Progress:
        return Progress(draw_together(algorithm.init)(key), jnp.full((), -1, jnp.int32))

    return lax.map(init, init_key) if _is_batch(init_key) else init(init_key)


def advance(
    run_key: PRNGKey,
    algorithm: Algorithm[Any],
    progress: Progress,
    start: Numeric,
    length: Numeric,
    size: int,
) -> tuple[Progress, Metrics]:
    """Run some iterations; the one loop of the library.

    Iteration i of a run uses the key `fold_in(run_key, i)`, wherever the run was cut into calls. Of
    several seeds all run side by side; `map_seeds` has other ways.

    Args:
        run_key: a key, or keys `[S]`.
        algorithm: what to train.
        progress: from `init_progress` or the call before; leaves `[S, ...]` for several seeds.
        start: number of iterations done before.
        length: number of iterations now, at most `size`. Traced: another length compiles nothing.
        size: length of the metrics buffer.

    Returns:
        The progress after, and the metrics, leaves `[size]` or `[S, size]`, zeros behind `length`.
    """
    if _is_batch(run_key):

        def one(key: PRNGKey, progress: Progress) -> tuple[Progress, Metrics]:
            return advance(key, algorithm, progress, start, length, size)

        return map_seeds(one, run_key, progress)

    @partial(jax.jit, inline=True)  # traced once for its shapes and for the loop
    def iteration(key: PRNGKey, progress: Progress, i: Array) -> tuple[Progress, Metrics]:
        state, metrics = algorithm.step(key, progress.state)
        finite = _all_finite((state.learned, metrics))
        healthy = (progress.diverged_at < 0) & finite
        learned = jax.tree.map(
            lambda new, old: jnp.where(healthy, new, old), state.learned, progress.state.learned
        )
        diverged_at = jnp.where((progress.diverged_at < 0) & ~finite, i, progress.diverged_at)
        return Progress(state._replace(learned=learned), diverged_at), metrics

    # all at once: in the loop it would cost as much as ten steps of an environment
    keys = jax.vmap(lambda i: jax.random.fold_in(run_key, i))(start + jnp.arange(size))

    def body(offset: Array, loop: tuple[Progress, Metrics]) -> tuple[Progress, Metrics]:
        progress, metrics = iteration(keys[offset], loop[0], start + offset)
        return progress, _put(loop[1], metrics, offset)

    shapes = jax.eval_shape(iteration, run_key, progress, jnp.asarray(start))[1]
    return lax.fori_loop(0, length, body, (progress, _buffer(shapes, size)))


def map_seeds(
    run: SeedRun, rows: Any, progress: Progress, *, together: int | None = None, mesh: Mesh | None = None
) -> tuple[Progress, Metrics]:
    """Run several seeds: some side by side, in groups one after the other.

    What a CPU computes for all seeds at once leaves its caches: PPO with 64 environments on CartPole trains
    10 seeds 1.5 times as fast one after the other as side by side. Where a seed does little at a time, some
    of them side by side are faster. The numbers are the same to rounding.

    Args:
        run: `(row, progress) -> (progress, metrics)`, of one seed, as `advance` is.
        rows: what its first argument is for every seed; leaves `[S, ...]`.
        progress: of all seeds, leaves `[S, ...]`; updated in place, where the caller donates it.
        together: seeds of a group, a divisor of those of a device; None for all.
        mesh: devices along an axis "seed" that share the seeds evenly; each runs its own and waits for no
            other. None leaves placing to the compiler.

    Returns:
        The progress after, and the metrics, both `[S, ...]`.

    Raises:
        ValueError: if the devices do not divide the seeds, or the groups those of a device.
    """
    seeds = jax.tree.leaves(progress)[0].shape[0]
    if mesh is not None and seeds % mesh.size:
        raise ValueError(f"{seeds} seeds do not divide among {mesh.size} devices: take a multiple of them.")

    def share(rows: Any, progress: Progress) -> tuple[Progress, Metrics]:
        num = jax.tree.leaves(progress)[0].shape[0]
        size = num if together is None else together
        if size < 1 or num % size:
            raise ValueError(
                f"{num} seeds of a device do not divide into groups of {size}: take a divisor of {num}."
            )
        if size == num > 1:
            return jax.vmap(run)(rows, progress)
        # a group of one has no axis: a batch of one would be slower
        group = jax.jit(run if size == 1 else jax.vmap(run), inline=True)  # traced once, as in `advance`

        def fold(tree: Any) -> Any:
            return tree if size == 1 else jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)

        def body(i: Array, loop: tuple[Progress, Metrics]) -> tuple[Progress, Metrics]:
            after, metrics = group(_row(folded, i), _row(loop[0], i))
            return _put(loop[0], after, i), _put(loop[1], metrics, i)

        folded, start = fold(rows), fold(progress)
        shapes = jax.eval_shape(lambda: group(_row(folded, 0), _row(start, 0)))[1]
        empty = _buffer(shapes, num // size)
        after = lax.fori_loop(0, num // size, body, (start, empty))
        return after if size == 1 else jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), after)

    if mesh is None:
        return share(rows, progress)
    by_seed = PartitionSpec("seed")
    # nothing crosses devices, and so there is nothing to check
    return jax.shard_map(share, mesh=mesh, in_specs=by_seed, out_specs=by_seed, check_vma=False)(
        rows, progress
    )


def train(
    key: PRNGKey,
    algorithm: Algorithm[State],
    num_iterations: int,
    *,
    state: State | None = None,
    start: int = 0,
    together: int | None = None,
) -> tuple[State, Metrics]:
    """Train, from scratch or onwards from a state.

    Under `jax.jit` the whole run is one program; outside of it, it compiles at every call, because an
    algorithm is a closure and not a constant. A seed that meets a NaN or an infinity keeps what it had
    learned before to the end of the call, and its metrics show where. For many seeds hand over an array of
    keys rather than mapping `train` over keys: their initialisation then stays one after the other.

    Args:
        key: one key, or an array of S keys for S independent seeds. Always the key of the whole run: with
            `start` a healthy run goes on as if it had never stopped.
        algorithm: from an algorithm's `make`.
        num_iterations: iterations to run now.
        state: what an earlier call returned; None begins anew.
        start: iterations that `state` has behind it.
        together: seeds of a device that run side by side, a divisor of their number; the groups run one after
            the other. None for all. A CPU may be faster with few, see `map_seeds`. Keys that `pgjax.shard`
            has placed keep their devices, unless the call is traced, where nobody knows of them.

    Returns:
        The final state and the metrics, each `[num_iterations]`; with S keys both have S in front.

    Raises:
        ValueError: if `num_iterations < 1`, if `start` is given without a state, or if `together` does not
            divide the seeds of a device.

    Example:
        >>> import jax, optax, pgjax
        >>> from pgjax import networks
        >>> from pgjax.algorithms import a2c
        >>> env, env_params = pgjax.envs.make("CartPole-v1")
        >>> network = networks.ActorCritic(networks.CategoricalActor(2), networks.Critic())
        >>> algorithm = a2c.make(env, env_params, network, optax.rmsprop(7e-4), num_envs=4, num_steps=5)
        >>> state, metrics = train(jax.random.key(0), algorithm, 3)
        >>> metrics["env_steps"]
        Array([20, 20, 20], dtype=int32)
    """
    at_least_one(num_iterations=num_iterations)
    if state is None and start:
        raise ValueError(f"start={start} needs the state that {start} iterations led to.")
    if together is not None and not _is_batch(key):
        raise ValueError(f"together={together} is for several seeds: give an array of keys.")
    mesh = _seed_mesh(key)

    @jax.jit
    def run(key: PRNGKey, state: State | None) -> tuple[State, Metrics]:
        init_key, run_key = split_run_key(key)
        if state is None:
            progress = init_progress(init_key, algorithm)
        else:
            progress = Progress(state, jnp.full(key.shape[:1] if _is_batch(key) else (), -1, jnp.int32))

        def one(key: PRNGKey, progress: Progress) -> tuple[Progress, Metrics]:
            return advance(key, algorithm, progress, start, num_iterations, num_iterations)

        if _is_batch(key):
            progress, metrics = map_seeds(one, run_key, progress, together=together, mesh=mesh)
        else:
            progress, metrics = one(run_key, progress)
        return progress.state, metrics

    return run(key, state)


def split_run_key(key: PRNGKey) -> tuple[PRNGKey, PRNGKey]:
    """The two branches of a run's key: one for the start, one for its iterations.

    Args:
        key: a key, or keys `[S]`.

    Returns:
        `(init_key, run_key)`, shaped as `key`.
    """
    if _is_batch(key):
        pairs = jax.vmap(jax.random.split)(key)
        return pairs[:, 0], pairs[:, 1]
    init_key, run_key = jax.random.split(key)
    return init_key, run_key


def _is_batch(key: PRNGKey) -> bool:
    return key.ndim > (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def _seed_mesh(key: PRNGKey) -> Mesh | None:
    """The devices that keys were placed on by `pgjax.shard`."""
    placed = None if isinstance(key, Tracer) else getattr(key, "sharding", None)
    if isinstance(placed, NamedSharding) and placed.spec == PartitionSpec("seed"):
        return placed.mesh if isinstance(placed.mesh, Mesh) else None
    return None


def _buffer(shapes: Any, size: int) -> Any:
    """Room for so many rows."""
    return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)


def _row(rows: Any, i: Numeric) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows)


def _put(rows: Any, row: Any, i: Array) -> Any:
    return jax.tree.map(lambda xs, x: lax.dynamic_update_index_in_dim(xs, x, i, 0), rows, row)


def _all_finite(tree: Any) -> Array:
    """Whether no number is a NaN or an infinity: one reduction for all leaves, not one for each."""
    leaves = [x.ravel() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.isfinite(jnp.concatenate(leaves)).all()
