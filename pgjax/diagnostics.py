"""What an estimator of a gradient is worth: its bias, its variance, and how they change with the batch.

`audit` judges any function from a batch of trajectories to a gradient, the reader's own included, against
the exact gradient of a tabular problem or, where there is none, against the mean of a very large sample.
`variance_decomposition` says, without sampling, which source of randomness the variance comes from.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from pgjax._jit import compiled
from pgjax.gradients import score
from pgjax.metrics import gradient_cosine
from pgjax.tabular import exact as exactly
from pgjax.tabular.mdp import TabularMDP
from pgjax.types import Array, ArrayTree, Params, PRNGKey

Estimator: TypeAlias = Callable[[Any, Any], Any]
"""`(traj, valid) -> gradient`, a pytree; anything that JAX can trace."""

Sample: TypeAlias = Callable[[PRNGKey, int], tuple[Any, Any]]
"""`(key, n) -> (traj, valid)`: n independent trajectories, leaves `[T, n, ...]`."""


class Audit(NamedTuple):
    """What `audit` found; B stands for the batch sizes, g for the gradient of one batch, ∇ for the reference.

    A pytree called "like the gradient" has the gradient's structure, with B in front of every leaf.

    Attributes:
        batch_size: int `[B]`, trajectories in a batch.
        bias: E g − ∇, like the gradient.
        bias_interval: (low, high), both like the gradient: a confidence interval for every parameter alone,
            by Student's t. Of P parameters (1 − confidence) P miss on average.
        bias_norm: `[B]`, ‖E g − ∇‖, from the unbiased estimate of its square, ‖ḡ − ∇‖² − tr Cov(ḡ − ∇):
            noise does not inflate it. 0 where that estimate is negative.
        bias_norm_interval: `[B, 2]`, a confidence interval for the norm, ‖ḡ − ∇‖ plus or minus a quantile
            of ‖noise‖. Its lower end is 0 with probability `confidence` if the estimator is unbiased. Exact
            for one parameter; with many parameters it is too wide where the bias is clear or M is small.
        variance: of every parameter of g, like the gradient.
        total_variance: `[B]`, their sum, tr Cov g.
        mean_squared_error: `[B]`, E‖g − ∇‖²: the squared bias plus the total variance.
        cosine: `[B]`, the mean over batches of the cosine of the angle between g and ∇; a batch whose
            gradient is zero counts as 0.
        signal_to_noise: `[B]`, ‖E g‖² / tr Cov g, the numerator free of noise as in `bias_norm`. Infinite
            without noise, 0 for an estimator that is always zero.
        exact: ∇, a pytree.
        exact_known: False if ∇ is the mean of a large sample; its own noise is then in all intervals.
        exact_variance: the variance of ∇ itself, a pytree; 0 if it is known.
        reference_size: how many trajectories ∇ was averaged over; 0 if it is known.
        num_batches: M, independent batches of every size.
        confidence: of the intervals.
    """

    batch_size: Array
    bias: Any
    bias_interval: tuple[Any, Any]
    bias_norm: Array
    bias_norm_interval: Array
    variance: Any
    total_variance: Array
    mean_squared_error: Array
    cosine: Array
    signal_to_noise: Array
    exact: Any
    exact_known: bool
    exact_variance: Any
    reference_size: int
    num_batches: int
    confidence: float

    def table(self) -> str:
        """The figures as plain text, one line a batch size.

        Returns:
            Lines of equal columns, under one that names the reference.
        """
        return audit_table({"": self})


class VarianceParts(NamedTuple):
    """The variance of a policy gradient from one (s, a) draw, by its sources; each a trace of a covariance.

    Attributes:
        trajectory: scalar, from what happens after (s, a).
        action: scalar, from which action was drawn in s. The only part that a state baseline changes.
        state: scalar, from which state was drawn.
    """

    trajectory: Array
    action: Array
    state: Array

    @property
    def total(self) -> Array:
        """The whole variance, their sum."""
        return self.trajectory + self.action + self.state


@overload
def audit(
    key: PRNGKey,
    estimator: Mapping[str, Estimator],
    sample: Sample,
    *,
    exact: ArrayTree | None = None,
    batch_sizes: Sequence[int],
    num_batches: int,
    confidence: float = 0.95,
    max_trajectories: int = 4096,
    reference: str | None = None,
) -> dict[str, Audit]: ...


@overload
def audit(
    key: PRNGKey,
    estimator: Estimator,
    sample: Sample,
    *,
    exact: ArrayTree | None = None,
    batch_sizes: Sequence[int],
    num_batches: int,
    confidence: float = 0.95,
    max_trajectories: int = 4096,
    reference: str | None = None,
) -> Audit: ...


def audit(
    key: PRNGKey,
    estimator: Estimator | Mapping[str, Estimator],
    sample: Sample,
    *,
    exact: ArrayTree | None = None,
    batch_sizes: Sequence[int],
    num_batches: int,
    confidence: float = 0.95,
    max_trajectories: int = 4096,
    reference: str | None = None,
) -> Audit | dict[str, Audit]:
    """Measure bias, variance and signal-to-noise of gradient estimators, by batch size.

        bias = E g − ∇,   variance = tr Cov g,   E‖g − ∇‖² = ‖bias‖² + variance,   SNR = ‖E g‖² / variance

    M independent batches of every size are drawn, and g is computed on each. All estimators are judged on
    the same trajectories, in one compiled program a batch size, compiled anew at every call. Several batches
    run side by side, as many as `max_trajectories` allows, the rest after them.

    Memory: M × P floats an estimator, P the number of parameters, for one batch size at a time (twice that
    without `exact`); for one estimator at a time some copies of them and min(M, P)² floats; and the
    trajectories of one chunk with what the estimators make of them. B × P floats an estimator remain.

    Intervals rest on the normality of the mean over M batches; they are exact for normal gradients of one
    parameter. Take M of 100 or more, and many more for heavy tails (importance ratios far from 1).

    Where `exact` is not known, ∇ is the mean over M further batches of the largest size. It is the
    estimator's own mean then, so a bias that does not shrink with the batch cannot be seen; with several
    estimators one of them that is known to be unbiased can serve all the others as `reference`.

    Args:
        key: consumed.
        estimator: `(traj, valid) -> gradient`, any function that JAX can trace; or a mapping from names to
            such functions.
        sample: `(key, n) -> (traj, valid)`: n independent trajectories, as `rollout_episodes` gives them. The
            two are handed to the estimators as they are.
        exact: the true gradient, a pytree like the estimators'; None if it is not known.
        batch_sizes: trajectories in a batch, B numbers.
        num_batches: M, batches of every size, at least 2.
        confidence: of the intervals, in (0, 1).
        max_trajectories: at most so many trajectories at a time, no fewer than the largest batch. Where
            that leaves one batch at a time there is no `vmap`, which some linear algebra needs: with jax
            0.10 on CPU, several batched decompositions in one program may block each other.
        reference: without `exact`, the name of the estimator whose mean serves for all; None for each its
            own.

    Returns:
        An `Audit`, or a dictionary of them under the names of the mapping.

    Raises:
        ValueError: if an argument is out of its range, if an estimator's gradient has not the structure of
            the reference, or if one is not finite.

    References:
        Student 1908, The probable error of a mean. For the norm: Dempster 1958, A high dimensional two sample
        significance test; Imhof 1961, Computing the distribution of quadratic forms in normal variables
        (Pearson's approximation by three moments).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def sample(key, n):
        ...     return 2.0 + jax.random.normal(key, (1, n)), None
        >>> found = audit(
        ...     jax.random.key(0), lambda traj, valid: traj.mean(), sample,
        ...     exact=jnp.array(2.0), batch_sizes=(1, 100), num_batches=1000,
        ... )
        >>> found.bias_norm_interval[:, 0]  # no bias is seen
        Array([0., 0.], dtype=float32)
    """
    named = isinstance(estimator, Mapping)
    estimators = dict(estimator) if isinstance(estimator, Mapping) else {"estimator": estimator}
    sizes = _checked(
        estimators, sample, exact, batch_sizes, num_batches, confidence, max_trajectories, reference
    )
    shapes = _gradient_shapes(key, estimators, sample, sizes[0])
    unravel = {}
    for name, shape in shapes.items():
        like = shape if reference is None else shapes[reference]
        _check_structure(name, shape, like if exact is None else exact, reference if exact is None else None)
        unravel[name] = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape))[1]

    *size_keys, reference_key = jax.random.split(key, len(sizes) + 1)
    programs = {
        size: jax.jit(
            _program(estimators, sample, size, num_batches, max_trajectories // size),
            compiler_options=_compiler_options(reference_key),
        )
        for size in set(sizes)
    }

    def gradients(key: PRNGKey, size: int) -> dict[str, Array]:
        found = programs[size](key)
        for name, batches in found.items():
            _check_finite(name, batches, size)
        return found

    sampled, truth = dict.fromkeys(estimators), {}
    if exact is None:
        far = gradients(reference_key, max(sizes))
        sampled = {name: far[reference or name] for name in estimators}
        truth = {name: batches.mean(0) for name, batches in sampled.items()}
    else:
        for name, shape in shapes.items():
            cast = jax.tree.map(lambda x, s: jnp.asarray(x, s.dtype), exact, shape)
            truth[name] = ravel_pytree(cast)[0]
    rows = {name: [] for name in estimators}
    for size_key, size in zip(size_keys, sizes, strict=True):
        for name, batches in gradients(size_key, size).items():
            rows[name].append(_figures(batches, truth[name], sampled[name], confidence=confidence))

    audits = {}
    for name, found in rows.items():
        figures = jax.tree.map(lambda *x: jnp.stack(x), *found)
        one, many = unravel[name], jax.vmap(unravel[name])
        audits[name] = Audit(
            batch_size=jnp.asarray(sizes),
            bias=many(figures.bias),
            bias_interval=(many(figures.bias - figures.margin), many(figures.bias + figures.margin)),
            bias_norm=figures.bias_norm,
            bias_norm_interval=figures.bias_norm_interval,
            variance=many(figures.variance),
            total_variance=figures.variance.sum(-1),
            mean_squared_error=figures.mean_squared_error,
            cosine=figures.cosine,
            signal_to_noise=figures.signal_to_noise,
            exact=one(truth[name]),
            exact_known=exact is not None,
            exact_variance=one(figures.exact_variance[0]),
            reference_size=0 if exact is not None else num_batches * max(sizes),
            num_batches=num_batches,
            confidence=confidence,
        )
    return audits if named else audits["estimator"]


def audit_table(audits: Mapping[str, Audit]) -> str:
    """Several audits as one plain-text table, for a terminal or a README.

    Args:
        audits: by the name that stands in front of each line, as `audit` returns them for several
            estimators.

    Returns:
        Lines of equal columns, under one that names the reference. Variance is tr Cov g, MSE is
        E‖g − ∇‖², SNR is ‖E g‖² / tr Cov g.
    """
    captions = {name: _caption(found) for name, found in audits.items()}
    if len(set(captions.values())) == 1:
        head = [next(iter(captions.values()))]
    else:
        head = [f"{name}: {caption}" for name, caption in captions.items()]
    percents = {f"{100 * found.confidence:g} %" for found in audits.values()}
    interval = f"{percents.pop()} interval" if len(percents) == 1 else "interval"
    cells: list[tuple[str, ...]] = [
        ("estimator", "batch", "bias", interval, "variance", "MSE", "cosine", "SNR")
    ]
    for name, found in audits.items():
        for i, size in enumerate(found.batch_size):
            low, high = found.bias_norm_interval[i]
            figures = (found.total_variance, found.mean_squared_error, found.cosine, found.signal_to_noise)
            bias = _number(found.bias_norm[i]), f"[{_number(low)}, {_number(high)}]"
            cells.append((name, str(size), *bias, *(_number(figure[i]) for figure in figures)))
    if not any(row[0] for row in cells[1:]):
        cells = [row[1:] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    justified = [
        "  ".join(
            cell.ljust(width) if column == 0 and len(row) == 8 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([*head, *justified])


@compiled("apply")
def variance_decomposition(
    mdp: TabularMDP, apply: exactly.Apply, params: Params, *, baseline: Array | None = None
) -> VarianceParts:
    """Where the variance of a policy gradient comes from, exactly.

    One state s is drawn from the normalised discounted visitation d, one action a from π, one return R from
    what follows, and g = ∇ log π(a | s) (R − b(s)). By the law of total variance, as traces,

        trajectory = E_{s,a}[‖∇ log π‖² Var(R | s, a)]
        action     = E_s[Var_a(∇ log π(a | s) (Q(s, a) − b(s)))]
        state      = Var_s(E_a[∇ log π(a | s) Q(s, a)])

    A baseline b(s) enters the action part alone. Which b makes that part least is `optimal_state_baseline`;
    V is not in general it, and can even raise the total above that of no baseline.

    Args:
        mdp: S states, A actions.
        apply: the policy's apply, `(params, obs) -> Categorical`.
        params: θ.
        baseline: b, `[S]`, or `[H, S]` with a horizon; None for zero.

    Returns:
        The three parts, in squared units of the return. A mean over N independent draws has an N-th of
        each. E g is (1 − γ) times the gradient of the objective where nothing terminates.

    Raises:
        ValueError: if the baseline has another shape.

    References:
        Tucker et al. 2018, The mirage of action-dependent baselines in reinforcement learning, section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.tabular import bandit_mdp
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> variance_decomposition(bandit_mdp(jnp.array([1.0, 3.0])), apply, jnp.zeros(2)).action
        Array(2., dtype=float32)
    """
    parts = _exact_parts(mdp, apply, params)
    weight = parts.visitation[:, None] * parts.policy
    squares = jnp.square(parts.score).sum(-1)
    variance = exactly.return_variance(mdp, parts.matrix).reshape(weight.shape)
    advantage = parts.action_value
    if baseline is not None:
        baseline = jnp.broadcast_to(jnp.asarray(baseline), parts.matrix.shape[:-1])
        advantage = advantage - baseline.reshape(-1, 1)
    # the scores of a state have mean 0, so this mean over actions is the same with any baseline
    mean = jnp.einsum("sa,sap->sp", parts.policy * parts.action_value, parts.score)
    average = parts.visitation @ mean
    surplus = advantage[..., None] * parts.score - mean[:, None]
    return VarianceParts(
        trajectory=(weight * squares * variance).sum(),
        action=(weight * jnp.square(surplus).sum(-1)).sum(),
        state=parts.visitation @ jnp.square(mean - average[None]).sum(-1),
    )


@compiled("apply")
def optimal_state_baseline(mdp: TabularMDP, apply: exactly.Apply, params: Params) -> Array:
    """The baseline of least variance among all functions of the state, for one (s, a) draw.

        b*(s) = E_a[‖∇ log π(a | s)‖² Q(s, a)] / E_a[‖∇ log π(a | s)‖²]

    It is V(s) only where the norm of the score does not depend on the action.

    Args:
        mdp: S states, A actions.
        apply: the policy's apply, `(params, obs) -> Categorical`.
        params: θ.

    Returns:
        `[S]`, or `[H, S]` with a horizon; 0 where the score is zero for every action.

    References:
        Greensmith et al. 2004, Variance reduction techniques for gradient estimates in RL, state by state.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.tabular import bandit_mdp
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> optimal_state_baseline(bandit_mdp(jnp.array([1.0, 3.0])), apply, jnp.zeros(2))
        Array([[2.]], dtype=float32)
    """
    parts = _exact_parts(mdp, apply, params)
    weight = parts.policy * jnp.square(parts.score).sum(-1)
    total = weight.sum(-1)
    best = (weight * parts.action_value).sum(-1) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, best, 0.0).reshape(parts.matrix.shape[:-1])


class _ExactParts(NamedTuple):
    """A problem under a policy; the S' states of all times in one axis."""

    matrix: Array  # π as the exact formulas take it, [S, A] or [H, S, A]
    policy: Array  # [S', A]
    score: Array  # [S', A, P]
    visitation: Array  # [S'], sums to one
    action_value: Array  # [S', A]


def _exact_parts(mdp: TabularMDP, apply: exactly.Apply, params: Params) -> _ExactParts:
    matrix = exactly.policy_matrix(mdp, apply, params)
    policy = matrix.reshape(-1, mdp.num_actions)
    features = mdp.observations.shape[matrix.ndim - 1 :]
    obs = jnp.repeat(mdp.observations.reshape(-1, 1, *features), mdp.num_actions, axis=1)
    action = jnp.broadcast_to(jnp.arange(mdp.num_actions)[None], policy.shape)
    scores = score(apply, params, obs, action)
    flat = [leaf.reshape(*policy.shape, -1) for leaf in jax.tree.leaves(scores)]
    return _ExactParts(
        matrix=matrix,
        policy=policy,
        score=jnp.concatenate(flat, -1),
        visitation=exactly.visitation(mdp, matrix).reshape(-1),
        action_value=exactly.action_value(mdp, matrix).reshape(policy.shape),
    )


def _checked(
    estimators: dict[str, Estimator],
    sample: Sample,
    exact: ArrayTree | None,
    batch_sizes: Sequence[int],
    num_batches: int,
    confidence: float,
    max_trajectories: int,
    reference: str | None,
) -> list[int]:
    """The batch sizes, once everything that can be said before compiling has been said."""
    if not estimators:
        raise ValueError("audit needs at least one estimator, got an empty mapping.")
    for name, function in [*estimators.items(), ("sample", sample)]:
        if not callable(function):
            raise ValueError(f"{name} must be a function, got {type(function).__name__}.")
    try:
        sizes = [operator.index(size) for size in batch_sizes]
    except TypeError:
        raise ValueError(f"batch_sizes must be a sequence of integers, got {batch_sizes!r}.") from None
    if not sizes or min(sizes) < 1:
        raise ValueError(f"batch_sizes must be at least one number of at least 1, got {batch_sizes!r}.")
    if num_batches < 2:
        raise ValueError(f"num_batches must be at least 2 to show any variance, got {num_batches}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")
    if max_trajectories < max(sizes):
        raise ValueError(
            f"max_trajectories={max_trajectories} does not hold one batch of {max(sizes)}; raise it, or "
            "leave the largest batch out."
        )
    if reference is not None and exact is not None:
        raise ValueError("Give either exact or reference, not both: the exact gradient needs no other.")
    if reference is not None and reference not in estimators:
        raise ValueError(f"reference={reference!r} is none of the estimators: {', '.join(estimators)}.")
    return sizes


def _gradient_shapes(
    key: PRNGKey, estimators: dict[str, Estimator], sample: Sample, size: int
) -> dict[str, Any]:
    """What each estimator returns, without running it."""
    drawn = jax.eval_shape(lambda key: sample(key, size), key)
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise ValueError("sample(key, n) must return the pair (traj, valid); valid may be None.")
    shapes = {}
    for name, function in estimators.items():
        shapes[name] = jax.eval_shape(function, *drawn)
        leaves = jax.tree.leaves(shapes[name])
        if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            raise ValueError(f"{name} must return a pytree of floating arrays, got {shapes[name]}.")
    return shapes


def _check_structure(name: str, shape: Any, like: Any, reference: str | None) -> None:
    def described(tree: Any) -> Any:
        return jax.tree.map(lambda x: list(jnp.shape(x)), tree)

    same = jax.tree.structure(shape) == jax.tree.structure(like)
    if not same or [jnp.shape(x) for x in jax.tree.leaves(shape)] != [
        jnp.shape(x) for x in jax.tree.leaves(like)
    ]:
        other = "exact" if reference is None else f"the reference {reference}"
        raise ValueError(
            f"The gradient of {name} and {other} must have the same structure and shapes: "
            f"{described(shape)} against {described(like)}."
        )


def _check_finite(name: str, batches: Array, size: int) -> None:
    """Inside an outer jit or vmap nothing can be said, and what is not finite stays visible in the result."""
    if isinstance(batches, Tracer):
        return
    finite = jnp.isfinite(batches).all(-1)
    if not finite.all():
        raise ValueError(
            f"{name} gave NaN or infinite gradients in {int((~finite).sum())} of {len(finite)} batches of "
            f"size {size}."
        )


def _compiler_options(key: PRNGKey) -> dict[str, int] | None:
    """On CPU half of the time that compiling takes is spared, and what comes out is no slower.

    Inside an outer jit there is no choice, and where optimizations are switched off there is less to spare.
    """
    free = not isinstance(key, Tracer) and not jax.config.read("jax_disable_most_optimizations")
    return {"xla_backend_optimization_level": 1} if free and jax.default_backend() == "cpu" else None


def _program(
    estimators: dict[str, Estimator], sample: Sample, size: int, num_batches: int, chunk: int
) -> Callable[[PRNGKey], dict[str, Array]]:
    """`key -> {name: [M, P]}`: all estimators on all batches of one size, `chunk` batches at a time."""
    num_chunks = -(-num_batches // chunk)
    chunk = -(-num_batches // num_chunks)  # of equal size; at most num_chunks - 1 batches too many

    def batch(key: PRNGKey) -> dict[str, Array]:
        drawn = sample(key, size)
        return {name: ravel_pytree(function(*drawn))[0] for name, function in estimators.items()}

    def batches(keys: PRNGKey) -> dict[str, Array]:
        if chunk == 1:
            return jax.tree.map(lambda g: g[None], batch(keys[0]))
        return jax.vmap(batch)(keys)

    def program(key: PRNGKey) -> dict[str, Array]:
        found = lax.map(batches, jax.random.split(key, (num_chunks, chunk)))
        return {name: g.reshape(-1, g.shape[-1])[:num_batches] for name, g in found.items()}

    return program


class _Figures(NamedTuple):
    """The figures of one estimator at one batch size; parameters in one axis P."""

    bias: Array  # [P]
    margin: Array  # [P], half of the interval
    bias_norm: Array
    bias_norm_interval: Array  # [2]
    variance: Array  # [P]
    mean_squared_error: Array
    cosine: Array
    signal_to_noise: Array
    exact_variance: Array  # [P]


@compiled("confidence")
def _figures(gradients: Array, truth: Array, reference: Array | None, *, confidence: float) -> _Figures:
    """From gradients `[M, P]`, against `truth [P]`, which is exact or the mean of `reference [R, P]`."""
    num = gradients.shape[0]
    mean = gradients.mean(0)
    centred = gradients - mean[None]
    variance = jnp.square(centred).sum(0) / (num - 1)
    bias = mean - truth
    error = variance / num  # of the mean; together with the reference's: the variance of `bias`
    exact_variance = jnp.zeros_like(variance)
    spreads = [centred / jnp.sqrt((num - 1.0) * num)]  # whose Gram matrix estimates the covariance of a mean
    if reference is not None:
        others = reference.shape[0]
        spreads += [(reference - truth[None]) / jnp.sqrt((others - 1.0) * others)]
        exact_variance = jnp.square(spreads[1]).sum(0)
    uncertain = error + exact_variance
    # rounding alone moves a mean by so much, and a deterministic estimator has no other noise
    rounding = 8.0 * jnp.finfo(gradients.dtype).eps * jnp.sqrt(jnp.square(gradients).sum(-1).mean())
    squared_student, squared_radius = _quantiles(confidence, spreads)
    radius = jnp.sqrt(squared_radius) + rounding
    norm = jnp.sqrt(jnp.square(bias).sum())
    squared_bias = jnp.square(bias).sum() - uncertain.sum()
    squared_signal = jnp.maximum(jnp.square(mean).sum() - error.sum(), 0.0)
    noise = variance.sum()
    noisy = noise > 0
    silent = jnp.where(squared_signal > 0, jnp.inf, 0.0)
    squared_error = jnp.square(gradients - truth[None]).sum(-1).mean() - exact_variance.sum()
    return _Figures(
        bias=bias,
        margin=jnp.sqrt(squared_student * uncertain) + rounding,
        bias_norm=jnp.sqrt(jnp.maximum(squared_bias, 0.0)),
        bias_norm_interval=jnp.stack([jnp.maximum(norm - radius, 0.0), norm + radius]),
        variance=variance,
        mean_squared_error=jnp.maximum(squared_error, 0.0),
        cosine=jax.vmap(gradient_cosine, in_axes=(0, None))(gradients, truth).mean(),
        signal_to_noise=jnp.where(noisy, squared_signal / jnp.where(noisy, noise, 1.0), silent),
        exact_variance=exact_variance,
    )


def _quantiles(confidence: float, spreads: list[Array]) -> tuple[Array, Array]:
    """How far a normal x of mean 0 may lie, whose covariance W is estimated by Σ spreadᵀ spread.

    For one component the square of Student's t. ‖x‖² is a sum of χ²_1 weighted by the eigenvalues of W: a
    shifted and scaled χ²_h with h = (tr W²)³ / (tr W³)² has its first three moments, and that W is an
    estimate makes it F,

        q = tr W + √(h tr W²) (F_{h,d} − 1),   d = (M − 1) (tr W)² / tr W²

    which is Student's t² for one parameter and Dempster's test where all eigenvalues are equal. With few
    batches the estimate has too few directions, and h and d come out too small: the quantile is then too
    large rather than too small.

    Args:
        confidence: the probability of lying within.
        spreads: `[M, P]` each.

    Returns:
        The quantile of x_p² / W_pp, the same for all p, and of ‖x‖².
    """
    rows = jnp.concatenate(spreads)
    trace = jnp.square(rows).sum()
    noisy = trace > 0
    rows = rows / jnp.sqrt(jnp.where(noisy, trace, 1.0))  # so that third powers stay within float32
    gram = rows.T @ rows if rows.shape[1] < rows.shape[0] else rows @ rows.T
    second, third = jnp.square(gram).sum(), jnp.sum(gram @ gram * gram)
    second, third = jnp.where(noisy, second, 1.0), jnp.where(noisy, third, 1.0)
    freedom = second**3 / third**2
    fewest = min(len(spread) for spread in spreads) - 1.0
    of_one = _f_quantile(confidence, jnp.ones_like(freedom), fewest * jnp.ones_like(freedom))
    of_all = _f_quantile(confidence, freedom, fewest / second)
    return of_one, trace * (1.0 + jnp.sqrt(freedom * second) * (of_all - 1.0))


def _f_quantile(probability: float, numerator: Array, denominator: Array) -> Array:
    """The quantile of Fisher's F with (h, d) degrees of freedom, to about 1e-3, by summing the density.

    In x = log F it is unimodal, and known but for a constant: h/2 x − (h + d)/2 log(1 + h/d eˣ). Faster to
    compile than the incomplete beta function, and it loses nothing where d is large.
    """
    h, d = numerator, denominator
    log_above = math.log1p(-probability)
    width = jnp.sqrt(2.0 / h + 2.0 / d)
    low = -36.0 / h - 8.0 * width  # the density falls as e^(h x / 2) there, and as e^(-d x / 2) above
    high = jnp.minimum(2.0 * (10.0 - log_above) / d + 8.0 * width, 80.0)
    x = low + (high - low) * jnp.linspace(1.0, 0.0, 2049, dtype=width.dtype)  # from above
    density = jnp.exp(h / 2.0 * x - (h + d) / 2.0 * jnp.log1p(h / (h + d) * jnp.expm1(x)))
    above = jnp.cumsum(density) - density / 2.0
    return jnp.exp(jnp.interp(log_above + jnp.log(above[-1]), jnp.log(above), x))


def _caption(found: Audit) -> str:
    norm = _norm(found.exact)
    if found.exact_known:
        reference = f"reference: exact gradient, norm {_number(norm)}"
    else:
        noise = _number(jnp.sqrt(sum(jnp.sum(x) for x in jax.tree.leaves(found.exact_variance))))
        reference = (
            f"reference: large batch, {found.reference_size} trajectories, norm {_number(norm)} ± {noise}"
        )
    return f"{reference}; {found.num_batches} batches of each size"


def _norm(tree: ArrayTree) -> Array:
    return jnp.sqrt(sum((jnp.square(x).sum() for x in jax.tree.leaves(tree)), jnp.zeros(())))


def _number(x: Array) -> str:
    return f"{float(x):.3g}"
