"""The only training loop: a loop over iterations, mapped over seeds."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

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

    Iteration i of a run uses the key `fold_in(run_key, i)`, wherever the run was cut into calls.

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

    def iteration(key: PRNGKey, progress: Progress, i: Array) -> tuple[Progress, Metrics]:
        state, metrics = algorithm.step(key, progress.state)
        finite = _all_finite((state.learned, metrics))
        healthy = (progress.diverged_at < 0) & finite
        learned = jax.tree.map(
            lambda new, old: jnp.where(healthy, new, old), state.learned, progress.state.learned
        )
        diverged_at = jnp.where((progress.diverged_at < 0) & ~finite, i, progress.diverged_at)
        return Progress(state._replace(learned=learned), diverged_at), metrics

    batched, fold = _is_batch(run_key), jax.random.fold_in
    if batched:
        iteration = jax.vmap(iteration, in_axes=(0, 0, None))
        fold = jax.vmap(fold, in_axes=(0, None))
    # all at once: in the loop it would cost as much as ten steps of an environment
    keys = jax.vmap(lambda i: fold(run_key, i))(start + jnp.arange(size))

    shapes = jax.eval_shape(iteration, run_key, progress, jnp.asarray(start))[1]
    axis = 1 if batched else 0
    buffer = jax.tree.map(lambda m: jnp.zeros((*m.shape[:axis], size, *m.shape[axis:]), m.dtype), shapes)

    def body(offset: Array, loop: tuple[Progress, Metrics]) -> tuple[Progress, Metrics]:
        progress, metrics = iteration(keys[offset], loop[0], start + offset)
        buffer = jax.tree.map(
            lambda rows, row: lax.dynamic_update_index_in_dim(rows, row, offset, axis), loop[1], metrics
        )
        return progress, buffer

    return lax.fori_loop(0, length, body, (progress, buffer))


def train(
    key: PRNGKey,
    algorithm: Algorithm[State],
    num_iterations: int,
    *,
    state: State | None = None,
    start: int = 0,
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

    Returns:
        The final state and the metrics, each `[num_iterations]`; with S keys both have S in front.

    Raises:
        ValueError: if `num_iterations < 1`, or if `start` is given without a state.

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
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}.")
    if state is None and start:
        raise ValueError(f"start={start} needs the state that {start} iterations led to.")

    @jax.jit
    def run(key: PRNGKey, state: State | None) -> tuple[State, Metrics]:
        init_key, run_key = split_run_key(key)
        if state is None:
            progress = init_progress(init_key, algorithm)
        else:
            progress = Progress(state, jnp.full(key.shape[:1] if _is_batch(key) else (), -1, jnp.int32))
        progress, metrics = advance(run_key, algorithm, progress, start, num_iterations, num_iterations)
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


def _all_finite(tree: Any) -> Array:
    """Whether no number is a NaN or an infinity: one reduction for all leaves, not one for each."""
    leaves = [x.ravel() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.isfinite(jnp.concatenate(leaves)).all()
