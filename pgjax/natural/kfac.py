"""Kronecker-factored curvature for dense layers, as explicit functions on a state.

The Fisher information of one dense layer, y = Wᵀ ā with ā = (a, 1) where there is a bias, is approximated by

    F ≈ A ⊗ G,   A = E[ā āᵀ],   G = E[g gᵀ],   g = ∂ log π(a|s) / ∂y

with actions drawn from the policy itself, and different layers are taken to be independent. A critic counts
as a Gaussian of unit variance around its value. A state-independent log σ is a block of its own, which is
known exactly: 2 I. The functions are called in this order:

    state = init(params, dense_layers(apply, params, obs))
    state = update_factors(state, factors(apply, params, obs, key))     # every update
    state = refresh(state)                                              # now and then: the decompositions
    direction = precondition(state, gradient)

What is done with a gradient is done in this order: it is clipped to a global norm, if at all; preconditioned;
scaled by ν, the trust scale; added to the velocity, m ← μ m + ν d; and the step is −η (1 − μ) m. So the trust
region holds for each update, and the momentum averages steps that lie within it. That is the order of Wu et
al. 2017 and of their implementation, which clips gradients only while it has no decompositions yet.

`apply` is a static argument, as in `pgjax.natural.fisher`. It must not be jit-compiled itself: what a layer
sees is read off while it is traced.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from pgjax._jit import compiled
from pgjax._lapack import one_at_a_time_on_cpu
from pgjax._random import flat_draw
from pgjax.types import Array, ArrayTree, Numeric, Params, PRNGKey

Apply: TypeAlias = Callable[[Params, ArrayTree], Any]
"""`(params, obs)` -> a Distribution, values `[...]`, or a pair of both."""


class LayerFactors(NamedTuple):
    """The two factors of a layer's Fisher information.

    Attributes:
        activation: A, `[I + 1, I + 1]`, the last row and column for the bias; `[I, I]` without one.
        derivative: G, `[O, O]`.
    """

    activation: Array
    derivative: Array


class LayerEigen(NamedTuple):
    """The eigen-decompositions of a layer's factors, vectors in columns, no value below 0.

    Attributes:
        activation_values: of A.
        activation_vectors: of A.
        derivative_values: of G.
        derivative_vectors: of G.
    """

    activation_values: Array
    activation_vectors: Array
    derivative_values: Array
    derivative_vectors: Array


Factors: TypeAlias = dict[str, LayerFactors]
"""By the name of the layer: its path in the network, joined by slashes."""


class KFACState(NamedTuple):
    """What is known about the curvature.

    Attributes:
        factors: running sums of the factors.
        weight: scalar, the sum of the weights in them; divide by it for the running averages.
        eigen: the decompositions, as `refresh` last made them.
    """

    factors: Factors
    weight: Array
    eigen: dict[str, LayerEigen]


class OptimizerState(NamedTuple):
    """The state of `kfac_optimizer`.

    Attributes:
        kfac: the curvature.
        velocity: m, a pytree like the parameters.
        num_updates: int32 scalar.
        trust_scale: ν of the last update; 1 before the first.
    """

    kfac: KFACState
    velocity: Any
    num_updates: Array
    trust_scale: Array


class KFACOptimizer(optax.GradientTransformationExtraArgs):
    """What `kfac_optimizer` returns: an optax optimizer whose state is an `OptimizerState`."""

    init: Callable[[Params], OptimizerState]  # pyright: ignore[reportIncompatibleVariableOverride]
    update: Callable[..., tuple[Any, OptimizerState]]  # pyright: ignore[reportIncompatibleVariableOverride]


def dense_layers(apply: Apply, params: Params, obs: ArrayTree) -> tuple[str, ...]:
    """The names of the dense layers that a network calls.

    Args:
        apply: the network's apply.
        params: its parameters.
        obs: an observation, with or without batch axes.

    Returns:
        Names in the order of the calls, such as `"actor/torso/Dense_0"`.

    Raises:
        ValueError: if a layer is called twice.

    Example:
        >>> from pgjax import networks
        >>> actor = networks.CategoricalActor(2)
        >>> dense_layers(actor.apply, actor.init(jax.random.key(0), jnp.zeros(4)), jnp.zeros(4))
        ('torso/Dense_0', 'torso/Dense_1', 'Dense_0')
    """
    names: list[str] = []

    def look(params: Params, obs: ArrayTree) -> None:
        names.extend(_run(apply, params, obs, None)[1])

    jax.eval_shape(look, params, obs)
    return tuple(names)


def init(params: Params, layers: Sequence[str], *, log_std: str = "log_std") -> KFACState:
    """Nothing known yet: `precondition` divides by the damping alone until the first `refresh`.

    Args:
        params: of the network, `{"params": ...}`.
        layers: names of its dense layers; `dense_layers` finds them.
        log_std: the name, without its path, of a state-independent log σ.

    Returns:
        The state.

    Raises:
        ValueError: if a layer does not exist or is not dense, or if a parameter belongs neither to a layer
            nor to a log σ.

    References:
        Martens & Grosse 2015, Optimizing neural networks with Kronecker-factored approximate curvature.
    """
    flat = _flatten(params)
    blocks, rest = _split(flat, layers)
    strangers = [name for name in rest if name.rpartition("/")[2] != log_std]
    if strangers:
        raise ValueError(
            f"{strangers} belong to no dense layer among {[*layers]} and to no state-independent log-std. "
            "K-FAC here knows nothing else: name all dense layers, and train a network with convolutions or "
            "other parameters by another algorithm."
        )
    sums, eigen = {}, {}
    for name, (rows, columns) in {name: block.shape for name, block in blocks.items()}.items():
        dtype = blocks[name].dtype
        sums[name] = LayerFactors(jnp.zeros((rows, rows), dtype), jnp.zeros((columns, columns), dtype))
        eigen[name] = LayerEigen(
            jnp.zeros(rows, dtype),
            jnp.eye(rows, dtype=dtype),
            jnp.zeros(columns, dtype),
            jnp.eye(columns, dtype=dtype),
        )
    return KFACState(sums, jnp.zeros((), jnp.result_type(*flat.values())), eigen)


@compiled("apply", "exact")
def factors(apply: Apply, params: Params, obs: ArrayTree, key: PRNGKey, *, exact: bool = False) -> Factors:
    """The factors of every dense layer on one batch.

        A = mean ā āᵀ,   G = mean g gᵀ,   g = ∂ log π(a|s) / ∂y with a ~ π(·|s)

    For a network of policy and value G is the sum of the policy's and the critic's, as it is in the Fisher
    information of the two drawn independently.

    Args:
        apply: the network's apply; it returns a Distribution, values, or a pair of both.
        params: its parameters.
        obs: leaves `[B, ...]` or `[T, N, ...]`.
        key: consumed, to draw actions from the policy and values around the critic's.
        exact: take the expectation over actions and values instead of drawing them, for one back-propagation
            per number that parametrises the distribution.

    Returns:
        The factors by the names of the layers.

    Raises:
        ValueError: if a layer is called twice, or at several places of one observation.

    References:
        Martens & Grosse 2015, section 2; Wu et al. 2017, Scalable trust-region method for deep reinforcement
        learning using Kronecker-factored approximation, section 3.1.

    Example:
        >>> from pgjax import networks
        >>> critic = networks.Critic(networks.features_as_they_are)
        >>> obs = jnp.array([[1.0], [3.0]])
        >>> params = critic.init(jax.random.key(0), obs)
        >>> factors(critic.apply, params, obs, jax.random.key(1), exact=True)["Dense_0"].activation
        Array([[5., 2.],
               [2., 1.]], dtype=float32)
    """
    shapes = jax.eval_shape(lambda params, obs: _run(apply, params, obs, None)[2], params, obs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def run(perturbations: dict[str, Array]) -> tuple[list[list[Array]], Any]:
        out, inputs, _ = _run(apply, params, obs, perturbations)
        heads = [*out] if type(out) is tuple else [out]
        return [_floating(head) for head in heads], (heads, inputs)

    at, pull_back, (heads, inputs) = jax.vjp(run, zeros, has_aux=True)
    batch = jax.eval_shape(_batched_like, heads[0]).shape
    for name, output in zeros.items():
        if output.shape[:-1] != batch:
            raise ValueError(
                f"Layer {name!r} returns {list(output.shape)} for observations with the batch axes "
                f"{list(batch)}: it is used at several places of one observation, which K-FAC for dense "
                "layers does not cover."
            )
    derivatives: dict[str, Array] = {
        name: jnp.zeros((x.shape[-1],) * 2, x.dtype) for name, x in zeros.items()
    }
    for i, (head, head_key) in enumerate(zip(heads, jax.random.split(key, len(heads)), strict=True)):

        def pull(cotangent: list[Array], i: int = i) -> dict[str, Array]:
            others = [jax.tree.map(jnp.zeros_like, x) for x in at]
            return pull_back([*others[:i], cotangent, *others[i + 1 :]])[0]

        outer = _expected_outer(head, pull, batch) if exact else _sampled_outer(head, pull, head_key)
        derivatives = {name: derivatives[name] + outer[name] for name in zeros}
    return {name: LayerFactors(_mean_outer(inputs[name]), derivatives[name]) for name in zeros}


@compiled()
def update_factors(state: KFACState, factors: Factors, *, decay: Numeric = 0.99) -> KFACState:
    """Take new factors into the running averages.

        Ā ← ρ Ā + (1 − ρ) A,   and the same for G

    The averages start empty and are divided by the sum of their weights, so that they are averages from the
    first update on. Factors that are not finite are left out.

    Args:
        state: before.
        factors: of one batch.
        decay: ρ.

    Returns:
        The state after, its decompositions untouched.

    Raises:
        ValueError: if the factors are not those of the state's layers.
    """
    if set(factors) != set(state.factors):
        raise ValueError(
            f"The factors are those of the layers {sorted(factors)}, but the state knows "
            f"{sorted(state.factors)}. Name all dense layers, and do not jit-compile `apply` itself."
        )
    finite = _all_finite(factors)
    new = jax.tree.map(lambda old, x: decay * old + (1.0 - decay) * x, state.factors, factors)
    new, weight = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (new, decay * state.weight + (1.0 - decay)),
        (state.factors, state.weight),
    )
    return KFACState(new, weight.astype(state.weight.dtype), state.eigen)


@compiled()
def refresh(state: KFACState) -> KFACState:
    """Decompose the running averages anew.

    Under `vmap` the decompositions run one after the other on CPU, because batched ones side by side hang
    jaxlib 0.10 on few cores.

    Args:
        state: before.

    Returns:
        The state after.
    """
    scale = 1.0 / jnp.where(state.weight > 0, state.weight, 1.0)
    leaves, structure = jax.tree.flatten(state.factors)
    found = jax.tree.unflatten(structure, _decompose(*(scale * leaf for leaf in leaves)))
    eigen = {name: LayerEigen(*layer.activation, *layer.derivative) for name, layer in found.items()}
    return state._replace(eigen=eigen)


@compiled("split_damping")
def precondition(
    state: KFACState, gradient: Params, *, damping: Numeric = 0.01, split_damping: bool = False
) -> Any:
    """A gradient times the inverse of the damped curvature, by the decompositions of the last `refresh`.

        (A ⊗ G + λ I)⁻¹ g,   or split   ((A + π √λ I) ⊗ (G + √λ/π I))⁻¹ g

    with π from `pi_correction`, and g / (2 + λ) for a state-independent log σ.

    Args:
        state: the curvature.
        gradient: a pytree like the parameters.
        damping: λ, above 0.
        split_damping: between the factors with the correction π, instead of added to the products of their
            eigenvalues, which is the damping of the approximation itself.

    Returns:
        A pytree like the gradient.

    References:
        Martens & Grosse 2015, section 6.3; Grosse & Martens 2016, appendix B (the eigenvalue products).
    """
    flat = _flatten(gradient)
    blocks, rest = _split(flat, list(state.eigen))
    directions = {name: x / (2.0 + damping) for name, x in rest.items()}
    for name, block in blocks.items():
        a, a_vectors, g, g_vectors = state.eigen[name]
        if split_damping:
            pi, root = pi_correction(a, g), jnp.sqrt(damping)
            curvature = (a + pi * root)[:, None] * (g + root / pi)[None, :]
        else:
            curvature = a[:, None] * g[None, :] + damping
        rotated = _product(a_vectors.T, block, g_vectors)
        block = _product(a_vectors, rotated / curvature, g_vectors.T)
        if f"{name}/bias" in flat:
            directions[f"{name}/bias"] = block[-1]
            block = block[:-1]
        directions[f"{name}/kernel"] = block
    ordered = {name: directions[name].astype(x.dtype) for name, x in flat.items()}
    return {"params": traverse_util.unflatten_dict(ordered, sep="/")}


def pi_correction(activation_values: Array, derivative_values: Array) -> Array:
    """How the damping is split between two factors, so that neither is damped more in proportion.

        π = √((tr A / dim A) / (tr G / dim G))

    Args:
        activation_values: eigenvalues of A.
        derivative_values: eigenvalues of G.

    Returns:
        π, within [1e-6, 1e6]; 1 where either trace is 0.

    References:
        Martens & Grosse 2015, section 6.3.

    Example:
        >>> pi_correction(jnp.array([4.0, 4.0]), jnp.array([1.0]))
        Array(2., dtype=float32)
    """
    a, g = activation_values.mean(), derivative_values.mean()
    both = (a > 0) & (g > 0)
    ratio = jnp.sqrt(jnp.where(both, a, 1.0)) / jnp.sqrt(jnp.where(both, g, 1.0))
    return jnp.clip(ratio, 1e-6, 1e6)


@compiled()
def trust_scale(
    gradient: Params, direction: Params, *, learning_rate: Numeric, max_kl: Numeric = 0.001
) -> Array:
    """How much of a preconditioned gradient the trust region allows.

        ν = min(1, √(κ / (η² gᵀ d))),   d = F⁻¹ g

    η² gᵀ d is twice the KL divergence that the step η d would make, to second order and by the damped
    curvature. In squares that overflow nothing is lost: they are not taken.

    Args:
        gradient: g.
        direction: d, a pytree like the gradient.
        learning_rate: η.
        max_kl: κ.

    Returns:
        ν; 0 where gradient or direction are not finite, NaN where κ is NaN or negative.

    References:
        Wu et al. 2017, section 3.2; Ba et al. 2017, Distributed second-order optimization using
        Kronecker-factored approximations, section 5.

    Example:
        >>> trust_scale(jnp.array([2.0]), jnp.array([2.0]), learning_rate=1.0, max_kl=0.01)
        Array(0.05, dtype=float32)
    """
    finite = _all_finite((gradient, direction))
    (g, g_unit), (d, d_unit) = _in_units(gradient), _in_units(direction)
    product = jnp.maximum(jnp.asarray(optax.tree.vdot(g, d)), 0.0)
    length = learning_rate * jnp.sqrt(product) * jnp.sqrt(g_unit) * jnp.sqrt(d_unit)
    radius = jnp.sqrt(max_kl)
    within = length <= radius
    scale = jnp.where(within, 1.0, radius / jnp.where(within, 1.0, length))
    return jnp.where(finite, scale, 0.0)


@compiled("split_damping")
def trusted_direction(
    state: KFACState,
    gradient: Params,
    *,
    learning_rate: Numeric,
    max_kl: Numeric = 0.001,
    damping: Numeric = 0.01,
    split_damping: bool = False,
    max_grad_norm: Numeric | None = None,
) -> tuple[Any, Array]:
    """A gradient clipped, preconditioned and scaled into the trust region, in this order.

    Args:
        state: the curvature.
        gradient: g.
        learning_rate: η.
        max_kl: κ.
        damping: λ.
        split_damping: see `precondition`.
        max_grad_norm: clip g to this global norm before all else; None: not at all.

    Returns:
        ν d, zero everywhere if anything is not finite, and ν.
    """
    if max_grad_norm is not None:
        in_units, unit = _in_units(gradient)
        norm = optax.tree.norm(in_units)
        factor = jnp.minimum(unit, max_grad_norm / jnp.where(norm > 0, norm, 1.0))
        gradient = jax.tree.map(lambda g: factor * g, in_units)
    direction = precondition(state, gradient, damping=damping, split_damping=split_damping)
    scale = trust_scale(gradient, direction, learning_rate=learning_rate, max_kl=max_kl)
    return jax.tree.map(lambda d: jnp.where(scale > 0, scale * d, 0.0), direction), scale


@compiled()
def momentum_step(
    velocity: Params, direction: Params, *, learning_rate: Numeric, momentum: Numeric = 0.9
) -> tuple[Any, Any]:
    """The step that follows from a direction and those before it.

        m ← μ m + d,   step = −η (1 − μ) m

    With a constant direction the steps tend to −η d.

    Args:
        velocity: m, a pytree like the direction.
        direction: d, within the trust region.
        learning_rate: η.
        momentum: μ.

    Returns:
        The new velocity, and the step to add to the parameters.

    Example:
        >>> momentum_step(jnp.array(1.0), jnp.array(1.0), learning_rate=1.0, momentum=0.5)
        (Array(1.5, dtype=float32), Array(-0.75, dtype=float32))
    """
    velocity = jax.tree.map(lambda m, d: (momentum * m + d).astype(m.dtype), velocity, direction)
    rate = learning_rate * (1.0 - momentum)
    return velocity, jax.tree.map(lambda m: (-rate * m).astype(m.dtype), velocity)


def rate_at(learning_rate: optax.ScalarOrSchedule, num_updates: Array) -> Array:
    """The learning rate of one update.

    Args:
        learning_rate: a number, or an optax schedule.
        num_updates: how many updates went before.

    Returns:
        A scalar.
    """
    return jnp.asarray(learning_rate(num_updates) if callable(learning_rate) else learning_rate, float)


def kfac_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    layers: Sequence[str] | None = None,
    *,
    max_kl: Numeric = 0.001,
    momentum: Numeric = 0.9,
    decay: Numeric = 0.99,
    damping: Numeric = 0.01,
    split_damping: bool = False,
    max_grad_norm: Numeric | None = None,
) -> KFACOptimizer:
    """The functions of this module as an optax optimizer.

    `update` takes two more arguments: `factors`, of the batch, and `refresh_now=True`, static: whether the
    factors are decomposed anew. They are decomposed before they are used. For one decomposition every k
    updates, begin a scan of k updates with `state._replace(kfac=refresh(state.kfac))`.

    Args:
        learning_rate: η, or a schedule of it by the number of updates.
        layers: see `init`; None: every layer that has a matrix as its kernel.
        max_kl: κ.
        momentum: μ.
        decay: ρ.
        damping: λ, above 0.
        split_damping: see `precondition`.
        max_grad_norm: see `trusted_direction`.

    Returns:
        The optimizer.

    Raises:
        ValueError: if `damping` is not above 0.

    Example:
        >>> from pgjax import networks
        >>> actor = networks.CategoricalActor(2)
        >>> obs, key = jnp.ones((3, 4)), jax.random.key(0)
        >>> params = actor.init(key, obs)
        >>> optimizer = kfac_optimizer(0.25)
        >>> found = factors(actor.apply, params, obs, key)
        >>> step, state = optimizer.update(params, optimizer.init(params), factors=found)
        >>> state.num_updates
        Array(1, dtype=int32)
    """
    if isinstance(damping, int | float) and not damping > 0:
        raise ValueError(
            f"damping must be above 0, got {damping}: what K-FAC divides by may be 0 without it."
        )

    def init_fn(params: Params) -> OptimizerState:
        named = _layers_with_matrices(params) if layers is None else layers
        one = jnp.ones((), jnp.result_type(*jax.tree.leaves(params)))
        velocity = jax.tree.map(jnp.zeros_like, params)
        return OptimizerState(init(params, named), velocity, jnp.zeros((), jnp.int32), one)

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        factors: Factors | None = None,
        refresh_now: bool = True,
        **extra: Any,
    ) -> tuple[Any, OptimizerState]:
        del params, extra
        if factors is None:
            raise ValueError("K-FAC needs the curvature: update(gradient, state, factors=factors(...)).")
        rate = rate_at(learning_rate, state.num_updates)
        curvature = update_factors(state.kfac, factors, decay=decay)
        curvature = refresh(curvature) if refresh_now else curvature
        direction, scale = trusted_direction(
            curvature,
            updates,
            learning_rate=rate,
            max_kl=max_kl,
            damping=damping,
            split_damping=split_damping,
            max_grad_norm=max_grad_norm,
        )
        velocity, step = momentum_step(state.velocity, direction, learning_rate=rate, momentum=momentum)
        scale = scale.astype(state.trust_scale.dtype)
        return step, OptimizerState(curvature, velocity, state.num_updates + 1, scale)

    return KFACOptimizer(init_fn, update_fn)


def _run(
    apply: Apply, params: Params, obs: ArrayTree, perturbations: dict[str, Array] | None
) -> tuple[Any, dict[str, Array], dict[str, Array]]:
    """What `apply` returns, with perturbations on the outputs of its dense layers; their ā, their outputs."""
    inputs: dict[str, Array] = {}
    outputs: dict[str, Array] = {}

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        out = call(*args, **kwargs)
        if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
            return out
        name = "/".join(context.module.path)
        if name in inputs:
            raise ValueError(
                f"Layer {name!r} is called twice in one forward pass. Its Fisher information is then no "
                "Kronecker product of two factors: give each use a layer of its own."
            )
        x = jnp.asarray(args[0] if args else kwargs["inputs"], out.dtype)
        if context.module.use_bias:
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)
        inputs[name], outputs[name] = x, out
        return out if perturbations is None else out + perturbations[name]

    with nn.intercept_methods(intercept):
        return apply(params, obs), inputs, outputs


def _sampled_outer(head: Any, pull: Callable[[list[Array]], dict[str, Array]], key: PRNGKey) -> Any:
    """Mean g gᵀ of every layer, for one draw from a head."""
    if _is_value(head):
        cotangent = [flat_draw(jax.random.normal, key, head.shape, head.dtype)]
    else:
        drawn = _unsquashed(head).sample(key)
        cotangent = jax.grad(lambda leaves: _unsquashed(_rebuild(head, leaves)).log_prob(drawn).sum())(
            _floating(head)
        )
    return jax.tree.map(_mean_outer, pull(cotangent))


def _unsquashed(head: Any) -> Any:
    """What a squashed distribution squashes; its score is the same, and inverting would lose the tails."""
    return getattr(head, "base", head)


def _expected_outer(
    head: Any, pull: Callable[[list[Array]], dict[str, Array]], batch: tuple[int, ...]
) -> Any:
    """E[g gᵀ] of every layer, as Jᵀ H J with H the Hessian of KL(π ‖ ·) in the distribution's parameters."""
    leaves = _floating(head)
    # What has no batch axes does not depend on the observation, and so on no layer.
    local = [leaf.shape[: len(batch)] == batch for leaf in leaves]
    sizes = [leaf[(0,) * len(batch)].size if own else 0 for leaf, own in zip(leaves, local, strict=True)]
    total = sum(sizes)

    def along(direction: Array) -> list[Array]:
        """One direction `[total]` in every sample's parameters."""
        parts = jnp.split(direction, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])
        return [
            jnp.broadcast_to(part.reshape(leaf.shape[len(batch) :]), leaf.shape).astype(leaf.dtype)
            if own
            else jnp.zeros_like(leaf)
            for part, leaf, own in zip(parts, leaves, local, strict=True)
        ]

    def row(direction: Array) -> Array:
        if _is_value(head):
            return jnp.ones((*batch, 1), head.dtype)
        slope = jax.grad(lambda leaves: head.kl(_rebuild(head, leaves)).sum())
        _, change = jax.jvp(slope, (leaves,), (along(direction),))
        own = [x.reshape(*batch, -1) for x, mine in zip(change, local, strict=True) if mine]
        return jnp.concatenate(own, -1)

    basis = jnp.eye(total, dtype=leaves[0].dtype)
    hessian = jax.vmap(row)(basis).reshape(total, -1, total)  # [i, b, j]
    pulled = jax.vmap(lambda direction: pull(along(direction)))(basis)

    def expected(jacobian: Array) -> Array:
        jacobian = jacobian.reshape(total, -1, jacobian.shape[-1])  # [i, b, o]
        bent = jnp.einsum("ibj,jbo->ibo", hessian, jacobian, precision="highest")
        return jnp.einsum("ibo,ibp->op", jacobian, bent, precision="highest") / jacobian.shape[1]

    return jax.tree.map(expected, pulled)


def _is_value(head: Any) -> bool:
    return not hasattr(head, "log_prob")


def _batched_like(head: Any) -> Array:
    """Something with the batch axes of a head, and no more."""
    return head if _is_value(head) else head.entropy()


def _floating(head: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(head) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def _rebuild(head: Any, leaves: list[Array]) -> Any:
    """The head with other numbers in place of its floating leaves."""
    new = iter(leaves)
    is_floating = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: next(new) if is_floating(x) else x, head)


def _mean_outer(x: Array) -> Array:
    """Mean of x xᵀ over the batch axes; flattening them would gather the batch of several devices."""
    batch = tuple(range(x.ndim - 1))
    # of a layer that computes in bfloat16 too: rounded to it a sum of squares has negative eigenvalues
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.tensordot(x, x, (batch, batch), precision="highest") / math.prod(x.shape[:-1])


def _product(a: Array, b: Array, c: Array) -> Array:
    return jnp.matmul(jnp.matmul(a, b, precision="highest"), c, precision="highest")


def _in_units(tree: Any) -> tuple[Any, Array]:
    """A tree divided by its largest entry, so that squares neither overflow nor vanish; that entry, or 1."""
    largest = jax.tree.reduce(jnp.maximum, jax.tree.map(lambda x: jnp.abs(x).max(), tree))
    unit = jnp.where(largest > 0, largest, 1.0)
    return jax.tree.map(lambda x: x / unit, tree), unit


def _all_finite(tree: Any) -> Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def _flatten(params: Params) -> dict[str, Array]:
    """Parameters by their path, joined by slashes."""
    if set(params) != {"params"}:
        raise ValueError(
            f'K-FAC takes parameters as flax has them, {{"params": ...}}, and no other collection; got '
            f"{sorted(params)}."
        )
    flat: Any = traverse_util.flatten_dict(params["params"], sep="/")
    return flat


def _layers_with_matrices(params: Params) -> list[str]:
    kernels = {name for name, x in _flatten(params).items() if x.ndim == 2}
    return [name.removesuffix("/kernel") for name in sorted(kernels) if name.endswith("/kernel")]


def _split(flat: dict[str, Array], layers: Sequence[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    """A matrix `[I + 1, O]` for every layer, the bias in its last row, and what belongs to none."""
    blocks = {}
    rest = dict(flat)
    for name in layers:
        kernel, bias = rest.pop(f"{name}/kernel", None), rest.pop(f"{name}/bias", None)
        if kernel is None or kernel.ndim != 2:
            raise ValueError(f"There is no dense layer {name!r} among the parameters {sorted(flat)}.")
        blocks[name] = kernel if bias is None else jnp.concatenate([kernel, bias[None]])
    return blocks, rest


@one_at_a_time_on_cpu
def _decompose(*matrices: Array) -> tuple[tuple[Array, Array], ...]:
    found = [jnp.linalg.eigh(matrix) for matrix in matrices]
    return tuple((jnp.maximum(values, 0.0), vectors) for values, vectors in found)
