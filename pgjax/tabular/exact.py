"""Values, visitations, objectives and gradients of a `TabularMDP`, solved for instead of estimated.

Values take `(mdp, policy)`, where `policy` is the matrix π `[S, A]`; with a horizon H it may depend on the
time, `[H, S, A]`. `objective`, `policy_gradient`, `fisher` and `natural_gradient` take
`(mdp, apply, params)`, where `apply(params, obs)` maps `mdp.observations` to a `Categorical`. `apply` is a
static argument: a bound method compiles once, a fresh lambda at every call compiles anew.

Everything is compiled, differentiable in all its arguments, and can be mapped over problems. Where a
probability is 0 its logarithm stops at that of the smallest normal number, which keeps gradients finite.
"""

from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from pgjax._checks import at_least_one
from pgjax._jit import compiled
from pgjax._lapack import one_at_a_time_on_cpu
from pgjax.distributions import Categorical
from pgjax.tabular.mdp import TabularMDP
from pgjax.types import Array, ArrayTree, Numeric, Params, Transition


class Apply(Protocol):
    """A network's `apply` for a finite number of actions."""

    def __call__(self, params: Params, obs: ArrayTree, /) -> Categorical:
        """The policy's distribution at `obs [..., *shape]`."""
        ...


@compiled("apply")
def policy_matrix(mdp: TabularMDP, apply: Apply, params: Params) -> Array:
    """The policy as a matrix: a row of action probabilities for every state.

        π[s, a] = π_θ(a | s)

    Args:
        mdp: the problem.
        apply: the actor's apply.
        params: θ.

    Returns:
        `[S, A]`; with a horizon `[H, S, A]`.

    Raises:
        ValueError: if `apply` gives probabilities of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.tabular import kakade_mdp
        >>> def apply(params, obs):
        ...     return Categorical(obs @ params)
        >>> policy_matrix(kakade_mdp(), apply, jnp.zeros((2, 2)))
        Array([[0.5, 0.5],
               [0.5, 0.5]], dtype=float32)
    """
    obs = mdp.observations
    probs = apply(params, obs).probs
    expected = (*obs.shape[: 1 if mdp.horizon is None else 2], mdp.num_actions)
    if probs.shape != expected:
        raise ValueError(
            f"apply gives probabilities of shape {[*probs.shape]} for the problem's observations "
            f"{[*obs.shape]}; {[*expected]} are needed, one row for each state"
            f"{'' if mdp.horizon is None else ' at each time'}."
        )
    return probs


@compiled()
def state_value(mdp: TabularMDP, policy: Array, *, temperature: Numeric = 0.0) -> Array:
    """The expected return from every state.

        V(s) = Σ_a π(a|s) [r(s, a) − τ log π(a|s) + γ Σ_s' P(s'|s, a) V(s')]

    A linear system is solved; with a horizon, values are taken back from the end.

    Args:
        mdp: the problem.
        policy: `[S, A]`; with a horizon also `[H, S, A]`.
        temperature: τ, the price of an entropy bonus at every step; 0: none.

    Returns:
        `[S]`; with a horizon `[H + 1, S]`, by the steps that were taken, 0 at the end. 0 where terminal.

    References:
        Sutton & Barto 2018, eq. 4.4; Cen et al. 2022, eq. 4 (entropy).

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> state_value(kakade_mdp(gamma=0.5), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
        Array([2., 4.], dtype=float32)
    """
    transition, reward = _dynamics(mdp)
    policy = _policy(mdp, policy)
    bonus = _live(mdp, temperature * _entropy(policy))
    if mdp.horizon is None:
        expected = _sum("sa,sa->s", policy, reward) + bonus
        flow = _sum("sa,sat->st", policy, transition)
        return _solve(jnp.eye(mdp.num_states, dtype=flow.dtype) - mdp.gamma * flow, expected)

    def back_up(after: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        now, bonus = step
        value = _sum("sa,sa->s", now, reward + mdp.gamma * _sum("sat,t->sa", transition, after)) + bonus
        return value, value

    end = jnp.zeros_like(reward[:, 0])
    # not a linear recurrence in one number, but one matrix a step: the one of estimators/ does not serve
    backwards = lax.scan(back_up, end, (jnp.flip(policy, 0), jnp.flip(bonus, 0)))[1]
    return jnp.concatenate([jnp.flip(backwards, 0), end[None]])


@compiled()
def action_value(mdp: TabularMDP, policy: Array, *, temperature: Numeric = 0.0) -> Array:
    """The expected return of every action in every state, and of the policy from then on.

        Q(s, a) = r(s, a) + γ Σ_s' P(s'|s, a) V(s')

    Args:
        mdp: the problem.
        policy: `[S, A]`; with a horizon also `[H, S, A]`.
        temperature: τ of the entropy bonus that is in V; the bonus of (s, a) itself is not in Q.

    Returns:
        `[S, A]`; with a horizon `[H, S, A]`. 0 where terminal.

    References:
        Sutton & Barto 2018, eq. 4.6; Cen et al. 2022, eq. 5a (entropy).

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> action_value(kakade_mdp(gamma=0.5), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
        Array([[2., 2.],
               [4., 1.]], dtype=float32)
    """
    return _look_ahead(mdp, state_value(mdp, policy, temperature=temperature))


@compiled()
def advantage(mdp: TabularMDP, policy: Array, *, temperature: Numeric = 0.0) -> Array:
    """How much better than the policy an action is.

        A(s, a) = Q(s, a) − τ log π(a|s) − V(s)

    It averages to 0 under π in every state, with and without a temperature.

    Args:
        mdp: the problem.
        policy: `[S, A]`; with a horizon also `[H, S, A]`.
        temperature: τ of the entropy bonus.

    Returns:
        `[S, A]`; with a horizon `[H, S, A]`. 0 where terminal.

    References:
        Sutton et al. 2000, theorem 1; Cen et al. 2022, eq. 12 (entropy).

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> advantage(kakade_mdp(gamma=0.5), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
        Array([[ 0.,  0.],
               [ 0., -3.]], dtype=float32)
    """
    value = state_value(mdp, policy, temperature=temperature)
    bonus = -temperature * _log(_policy(mdp, policy))
    now = value if mdp.horizon is None else value[:-1]
    return _live(mdp, _look_ahead(mdp, value) + bonus - now[..., None], actions=True)


def visitation(mdp: TabularMDP, policy: Array, *, normalized: bool = True, discounted: bool = True) -> Array:
    """How often the policy is in every state that is not terminal.

        d(s) = Σ_t γ^t P(s_t = s),   d = initial + γ P_πᵀ d

    Args:
        mdp: the problem.
        policy: `[S, A]`; with a horizon also `[H, S, A]`.
        normalized: divide by the sum, which is 1/(1−γ) where nothing terminates, so that it becomes 1.
        discounted: False counts visits instead, γ = 1: what estimators without γ^t weight states by.

    Returns:
        `[S]`; with a horizon `[H, S]`, γ^t P(s_t = s) for every time t.

    Raises:
        ValueError: for `discounted=False` without a horizon where some episodes never end: the number of
            visits is then infinite, and `stationary_distribution` says what share of them each state gets.
            Under `jit` or `vmap` the answer is NaN instead.

    References:
        Sutton et al. 2000, theorem 1; Nota & Thomas 2020, section 4 (undiscounted).

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> visitation(kakade_mdp(gamma=0.5), jnp.array([[0.0, 1.0], [1.0, 0.0]]))
        Array([0.5, 0.5], dtype=float32)
    """
    if mdp.horizon is None and not discounted:
        ends = _episodes_end(mdp, policy)
        if not isinstance(ends, Tracer) and not np.all(ends):
            raise ValueError(
                "Under this policy some episodes never end, so that the undiscounted number of visits does "
                "not exist. Use stationary_distribution(mdp, policy) for a continuing problem, or "
                "discounted=True."
            )
    return _visitation(mdp, policy, normalized, discounted)


@compiled("normalized", "discounted")
def _visitation(mdp: TabularMDP, policy: Array, normalized: bool, discounted: bool) -> Array:
    transition, _ = _dynamics(mdp)
    policy = _policy(mdp, policy)
    gamma = mdp.gamma if discounted else jnp.ones_like(mdp.gamma)
    if mdp.horizon is None:
        flow = _sum("sa,sat->st", policy, transition)
        if not discounted:
            reached = _reachable(flow, mdp.initial > 0)
            # unreached states might never end, and then the system would be singular
            flow = jnp.where(reached[:, None], flow, 0.0)
        visits = _solve((jnp.eye(mdp.num_states, dtype=flow.dtype) - gamma * flow).T, mdp.initial)
        if not discounted:
            visits = jnp.where(_episodes_end(mdp, policy), visits, jnp.nan)
    else:

        def move(now: Array, policy: Array) -> tuple[Array, Array]:
            return gamma * _sum("s,sa,sat->t", now, policy, transition), now

        visits = lax.scan(move, mdp.initial, policy)[1]
    return visits / visits.sum() if normalized else visits


@compiled()
def _episodes_end(mdp: TabularMDP, policy: Array) -> Array:
    """Whether every state that the policy reaches can reach a terminal one; then episodes end surely."""
    policy = _policy(mdp, policy)
    flow = _sum("sa,sat->st", policy, jnp.where(mdp.terminal[:, None, None], 0.0, mdp.transition))
    reached = _reachable(flow, mdp.initial > 0)
    ending = _reachable(flow.T, mdp.terminal)
    return (ending | ~reached).all()


def stationary_distribution(mdp: TabularMDP, policy: Array) -> Array:
    """The share of time that the policy spends in every state of a continuing problem.

        μ = P_πᵀ μ,   Σ_s μ(s) = 1

    It is what estimators without γ^t weight states by in the long run, where episodes never end.

    Args:
        mdp: the problem; without terminal states, without a horizon.
        policy: `[S, A]`.

    Returns:
        `[S]`; 0 in transient states.

    Raises:
        ValueError: if the problem ends (count visits with `visitation(..., discounted=False)`), or if the
            policy reaches several classes of states that it cannot leave again, so that the shares depend
            on chance. Under `jit` or `vmap` the answer is NaN instead.

    References:
        Sutton et al. 2000, section 1 (the average-reward formulation).

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> stationary_distribution(kakade_mdp(), jnp.array([[0.5, 0.5], [1.0, 0.0]]))
        Array([0., 1.], dtype=float32)
    """
    ends = mdp.terminal.any()
    if mdp.horizon is not None or not (isinstance(ends, Tracer) or not ends):
        raise ValueError(
            "A problem that ends has no stationary distribution. Count visits with "
            "visitation(mdp, policy, discounted=False)."
        )
    distribution, unique = _stationary_distribution(mdp, policy)
    if not isinstance(unique, Tracer) and not unique:
        raise ValueError(
            "The policy reaches several classes of states that it cannot leave again, so that its "
            "stationary distribution is not unique. Let it explore, or start it in one of the classes."
        )
    return distribution


@compiled()
def _stationary_distribution(mdp: TabularMDP, policy: Array) -> tuple[Array, Array]:
    """The distribution, and whether there is just one."""
    flow = _sum("sa,sat->st", _policy(mdp, policy), mdp.transition)
    start = _reachable(flow, mdp.initial > 0)
    leads = jax.vmap(lambda state: _reachable(flow, state))(jnp.eye(mdp.num_states, dtype=bool))
    # one class: there is a state that all others lead to
    unique = (start & (leads | ~start[:, None]).all(0)).any() & ~mdp.terminal.any()
    weight = start.astype(flow.dtype)
    flow = jnp.where(start[:, None], flow, 0.0)
    # the sum of 1 is added to every equation, which makes the system regular
    system = jnp.eye(mdp.num_states, dtype=flow.dtype) - flow.T + weight[:, None] * weight[None]
    return jnp.where(unique, _solve(system, weight), jnp.nan), unique


@compiled("apply")
def objective(mdp: TabularMDP, apply: Apply, params: Params, *, temperature: Numeric = 0.0) -> Array:
    """The expected return.

        J(θ) = Σ_s initial(s) V(s)

    Args:
        mdp: the problem.
        apply: the actor's apply.
        params: θ.
        temperature: τ of the entropy bonus.

    Returns:
        A scalar; its derivative, taken through the linear solve, is `policy_gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.tabular import bandit_mdp
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> objective(bandit_mdp([1.0, 3.0]), apply, jnp.zeros(2))
        Array(2., dtype=float32)
    """
    value = state_value(mdp, policy_matrix(mdp, apply, params), temperature=temperature)
    return _sum("s,s->", mdp.initial, value if mdp.horizon is None else value[0])


@compiled("apply")
def policy_gradient(
    mdp: TabularMDP,
    apply: Apply,
    params: Params,
    *,
    state_weight: Array | None = None,
    temperature: Numeric = 0.0,
) -> Any:
    """The policy gradient theorem, as it stands.

        ∇J = Σ_s d(s) Σ_a ∇π(a|s) [Q(s, a) − τ log π(a|s)]

    with d = Σ_t γ^t P(s_t = s), not normalised: over the normalised one the same sum would want a factor of
    1/(1−γ) in front. V(s) is subtracted from the bracket, which changes nothing but rounding.

    Args:
        mdp: the problem.
        apply: the actor's apply.
        params: θ.
        state_weight: `[S]`, or `[H, S]` with a horizon, d in place of the discounted visitation. With
            `visitation(mdp, policy, normalized=False, discounted=False)` the sum is what the estimators that
            drop γ^t converge to (without a horizon they need episodes that end); it is in general the
            gradient of nothing.
        temperature: τ of the entropy bonus.

    Returns:
        A pytree like `params`, the direction of ascent.

    References:
        Sutton et al. 2000, theorem 1; Nota & Thomas 2020, Is the policy gradient a gradient?

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.tabular import bandit_mdp
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> policy_gradient(bandit_mdp([1.0, 3.0]), apply, jnp.zeros(2))
        Array([-0.5,  0.5], dtype=float32)
    """
    policy = policy_matrix(mdp, apply, params)
    if state_weight is None:
        state_weight = _visitation(mdp, policy, False, True)
    chex.assert_shape(state_weight, policy.shape[:-1])
    weight = _live(mdp, state_weight)[..., None] * advantage(mdp, policy, temperature=temperature)

    def weighted(params: Params) -> Array:
        return (policy_matrix(mdp, apply, params) * weight).sum()

    return jax.grad(weighted)(params)


@compiled("apply")
def fisher(mdp: TabularMDP, apply: Apply, params: Params) -> Array:
    """The Fisher information of the policy, averaged over the states that it visits.

        F = Σ_s d(s) Σ_a π(a|s) ∇log π(a|s) ∇log π(a|s)ᵀ,   d normalised and discounted

    Args:
        mdp: the problem.
        apply: the actor's apply, called on one observation at a time.
        params: θ, P numbers.

    Returns:
        `[P, P]`, in the order of `ravel_pytree(params)`.

    References:
        Kakade 2002, A natural policy gradient, section 2; Agarwal et al. 2021, eq. 13.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.tabular import bandit_mdp
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> fisher(bandit_mdp([1.0, 3.0]), apply, jnp.zeros(2))
        Array([[ 0.25, -0.25],
               [-0.25,  0.25]], dtype=float32)
    """
    weight, scores = _weighted_scores(mdp, apply, params)
    return _sum("n,np,nq->pq", weight, scores, scores)


@compiled("apply")
def natural_gradient(mdp: TabularMDP, apply: Apply, params: Params, *, damping: Numeric = 0.0) -> Any:
    """The direction of steepest ascent where distance is measured by the KL divergence.

        w = (F + λ I)⁺ ∇J

    Without damping it is the shortest solution: F is decomposed by the singular values of its square root
    √(d π) ∇log π, and those below max(S A, P) · eps of the largest count as 0.

    Args:
        mdp: the problem.
        apply: the actor's apply, called on one observation at a time.
        params: θ, P numbers.
        damping: λ, in units of F.

    Returns:
        A pytree like `params`. Its derivative is right as long as the rank of F does not change.

    References:
        Kakade 2002, A natural policy gradient, theorem 1; Golub & Pereyra 1973 (the derivative).

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.tabular import bandit_mdp
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> natural_gradient(bandit_mdp([1.0, 3.0]), apply, jnp.zeros(2)).round(3)
        Array([-1.,  1.], dtype=float32)
    """
    gradient, unravel = ravel_pytree(policy_gradient(mdp, apply, params))
    weight, scores = _weighted_scores(mdp, apply, params)
    return unravel(_solve_fisher(weight, scores, gradient, jnp.asarray(damping, gradient.dtype)))


def _weighted_scores(mdp: TabularMDP, apply: Apply, params: Params) -> tuple[Array, Array]:
    """`d(s) π(a|s)`, `[N]`, and the scores `[N, P]` of all N state-action pairs."""
    flat, unravel = ravel_pytree(params)

    def log_probs(flat: Array, obs: Array) -> Array:
        return apply(unravel(flat), obs).log_probs

    scores = jax.jacrev(log_probs)
    for _ in range(1 if mdp.horizon is None else 2):
        scores = jax.vmap(scores, in_axes=(None, 0))
    policy = policy_matrix(mdp, apply, params)
    weight = _visitation(mdp, policy, True, True)[..., None] * policy
    return weight.reshape(-1), scores(flat, mdp.observations).reshape(-1, flat.size)


@jax.custom_jvp
def _solve_fisher(weight: Array, scores: Array, gradient: Array, damping: Array) -> Array:
    return _fisher_inverse(weight, scores, damping)[0](gradient)


@_solve_fisher.defjvp
def _solve_fisher_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    weight, scores, gradient, damping = primals
    weight_dot, scores_dot, gradient_dot, damping_dot = tangents
    inverse, outside = _fisher_inverse(weight, scores, damping)
    direction = inverse(gradient)

    def changed(vector: Array) -> Array:  # dF · vector
        def times(weight: Array, scores: Array, damping: Array) -> Array:
            return _sum("n,np,nq,q->p", weight, scores, scores, vector) + damping * vector

        return jax.jvp(times, (weight, scores, damping), (weight_dot, scores_dot, damping_dot))[1]

    # the derivative of a pseudo-inverse of constant rank; ∇J lies in the range of F, so one term is 0
    return direction, inverse(gradient_dot - changed(direction)) + outside(changed(inverse(direction)))


def _fisher_inverse(weight: Array, scores: Array, damping: Array) -> tuple[Any, Any]:
    """`v -> (F + λ I)⁺ v`, and `v -> v` without its part in the range of F + λ I."""
    values, basis = _singular_values(jnp.sqrt(weight)[:, None] * scores)
    cut = max(scores.shape) * jnp.finfo(values.dtype).eps * values.max()
    kept = (values > cut) & (values**2 > jnp.finfo(values.dtype).tiny)  # whose inverse is finite
    damped = damping > 0
    scale = jnp.where(kept, 1.0 / jnp.where(kept, values**2 + damping, 1.0), 0.0)

    def within(vector: Array, scale: Array) -> Array:
        return _sum("kp,k,kq,q->p", basis, scale, basis, vector)

    def rest(vector: Array) -> Array:
        return vector - within(vector, kept.astype(values.dtype))

    def inverse(vector: Array) -> Array:
        beyond = jnp.where(damped, rest(vector) / jnp.where(damped, damping, 1.0), 0.0)
        return within(vector, scale) + beyond

    return inverse, lambda vector: jnp.where(damped, 0.0, rest(vector))


@compiled()
def policy_iteration(mdp: TabularMDP, *, temperature: Numeric = 0.0) -> tuple[Array, Array, Array]:
    """The best policy, by evaluating one exactly and acting greedily on its values, again and again.

        π'(·|s) = argmax_a Q(s, a),   or with a temperature   π' ∝ exp(Q / τ)

    It is Newton's method on the Bellman equation: it ends after a few rounds, when no value rises by more
    than rounding (or after 1,000). With a horizon one pass from the end is enough.

    Args:
        mdp: the problem.
        temperature: τ of the entropy bonus.

    Returns:
        The policy `[S, A]` (`[H, S, A]`), the first action among equals, arbitrary where terminal; its value
        `[S]` (`[H + 1, S]`); the number of rounds, int32.

    References:
        Howard 1960, Dynamic programming and Markov processes; Haarnoja et al. 2018, theorem 1 (soft).

    Example:
        >>> from pgjax.tabular import kakade_mdp
        >>> policy_iteration(kakade_mdp(gamma=0.5))[0]
        Array([[1., 0.],
               [1., 0.]], dtype=float32)
    """
    constant = jax.tree.map(lax.stop_gradient, mdp)
    temperature = jnp.asarray(temperature, mdp.reward.dtype)
    fixed = lax.stop_gradient(temperature)
    search = _improve_until_best if mdp.horizon is None else _improve_backwards
    policy, rounds = search(constant, fixed)
    # By the envelope theorem the value's derivative is that of the best policy held fixed.
    return policy, state_value(mdp, policy, temperature=temperature), rounds


def _greedy(value: Array, temperature: Array) -> Array:
    """The best policy for action values `[..., A]`."""
    soft = jax.nn.softmax(value / jnp.where(temperature > 0, temperature, 1.0))
    hard = jax.nn.one_hot(jnp.argmax(value, -1), value.shape[-1], dtype=value.dtype)
    return jnp.where(temperature > 0, soft, hard)


def _improve_until_best(mdp: TabularMDP, temperature: Array) -> tuple[Array, Array]:
    rounding = 4.0 * jnp.finfo(mdp.reward.dtype).eps

    def going_on(loop: tuple[Array, Array, Array, Array]) -> Array:
        _, _, rises, rounds = loop
        return rises & (rounds < 1000)

    def improve(loop: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        _, value, _, rounds = loop
        policy = _greedy(_look_ahead(mdp, value), temperature)
        better = state_value(mdp, policy, temperature=temperature)
        rises = (better > value + rounding * jnp.abs(value).max()).any()
        return policy, better, rises, rounds + 1

    uniform = jnp.full_like(mdp.reward, 1.0 / mdp.num_actions)
    value = state_value(mdp, uniform, temperature=temperature)
    start = uniform, value, jnp.ones((), bool), jnp.zeros((), jnp.int32)
    policy, _, _, rounds = lax.while_loop(going_on, improve, start)
    return policy, rounds


def _improve_backwards(mdp: TabularMDP, temperature: Array) -> tuple[Array, Array]:
    def back_up(after: Array, _: None) -> tuple[Array, Array]:
        value = _look_ahead(mdp, jnp.stack([after, after]))[0]
        policy = _greedy(value, temperature)
        bonus = _live(mdp, temperature * _entropy(policy))
        return (policy * value).sum(-1) + bonus, policy

    policy = lax.scan(back_up, jnp.zeros_like(mdp.initial), None, length=mdp.horizon)[1]
    return jnp.flip(policy, 0), jnp.ones((), jnp.int32)


@compiled()
def optimal_value(mdp: TabularMDP, *, temperature: Numeric = 0.0) -> Array:
    """The value of the best policy.

        V*(s) = max_a Q*(s, a),   or with a temperature   V*(s) = τ log Σ_a exp(Q*(s, a) / τ)

    Args:
        mdp: the problem.
        temperature: τ of the entropy bonus.

    Returns:
        `[S]`; with a horizon `[H + 1, S]`. Differentiable in the problem, where the best policy is unique.

    References:
        Sutton & Barto 2018, eq. 4.1; Cen et al. 2022, eq. 8 (entropy).

    Example:
        >>> from pgjax.tabular import kakade_mdp
        >>> optimal_value(kakade_mdp(gamma=0.5))
        Array([2., 4.], dtype=float32)
    """
    return policy_iteration(mdp, temperature=temperature)[1]


@compiled()
def npg_step(mdp: TabularMDP, policy: Array, step_size: Numeric, *, temperature: Numeric = 0.0) -> Array:
    """One step of the exact natural policy gradient with a tabular softmax, written in the policy itself.

        π'(a|s) ∝ π(a|s) exp(η N A(s, a)),   N = Σ_t γ^t P(not ended at t)

    With a temperature A is the soft advantage, which makes it π' ∝ π^{1 − ητN} exp(η N Q). N, the sum of
    the visitation, is 1/(1−γ) where nothing terminates.

    Args:
        mdp: the problem.
        policy: `[S, A]`; with a horizon also `[H, S, A]`.
        step_size: η; with a temperature at most 1 / (τ N).
        temperature: τ of the entropy bonus.

    Returns:
        π' in the shape of the policy, the time included with a horizon. Probabilities of 0 remain.

    References:
        Agarwal et al. 2021, lemma 15; Cen et al. 2022, eq. 12.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import bandit_mdp
        >>> better = npg_step(bandit_mdp([0.0, 1.0]), jnp.full((1, 2), 0.5), jnp.log(3.0))
        >>> [f"{p:.3f}" for p in better[0, 0]]
        ['0.250', '0.750']
    """
    policy = _policy(mdp, policy)
    steps = _visitation(mdp, policy, False, True).sum()
    possible = policy > 0
    logits = _log(policy) + step_size * steps * advantage(mdp, policy, temperature=temperature)
    return jax.nn.softmax(logits, where=possible)


@compiled()
def return_variance(mdp: TabularMDP, policy: Array) -> Array:
    """The variance of the discounted return from every action in every state.

        σ²(s, a) = γ² [Var_s'(V(s')) + Σ_s' P(s'|s, a) v(s')],   v(s) = Var_a(Q(s, a)) + Σ_a π(a|s) σ²(s, a)

    This is the second-moment equation with its square of the mean taken off term by term: nothing cancels.

    Args:
        mdp: the problem.
        policy: `[S, A]`; with a horizon also `[H, S, A]`.

    Returns:
        `[S, A]`; with a horizon `[H, S, A]`. 0 where terminal.

    References:
        Sobel 1982, The variance of discounted Markov decision processes, theorem 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> return_variance(kakade_mdp(gamma=0.5), jnp.array([[1.0, 0.0], [0.5, 0.5]])).round(2)
        Array([[0.  , 0.29],
               [0.29, 0.  ]], dtype=float32)
    """
    transition, _ = _dynamics(mdp)
    policy = _policy(mdp, policy)
    value = state_value(mdp, policy)

    def before(policy: Array, value: Array, after: Array) -> tuple[Array, Array]:
        """The variances `[S, A]` and `[S]` one step before values `[S]` and variances `[S]`."""
        centred = value[None, None] - _sum("sat,t->sa", transition, value)[..., None]
        chance = _sum("sat,sat->sa", jnp.where(_alive(mdp, 3), mdp.transition, 0.0), centred**2)
        of_action = mdp.gamma**2 * (chance + _sum("sat,t->sa", transition, after))
        q = _look_ahead(mdp, value)
        choice = _sum("sa,sa->s", policy, (q - (policy * q).sum(-1, keepdims=True)) ** 2)
        return of_action, choice + (policy * of_action).sum(-1)

    none = jnp.zeros_like(mdp.initial)
    if mdp.horizon is None:
        flow = _sum("sa,sat->st", policy, transition)
        system = jnp.eye(mdp.num_states, dtype=flow.dtype) - mdp.gamma**2 * flow
        return before(policy, value, _solve(system, before(policy, value, none)[1]))[0]

    def back_up(after: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        of_action, of_state = before(*step, after)
        return of_state, of_action

    return jnp.flip(lax.scan(back_up, none, (jnp.flip(policy, 0), jnp.flip(value[1:], 0)))[1], 0)


class Trajectories(NamedTuple):
    """N trajectories in states and actions, padded after their end.

    Attributes:
        state: int32 `[T + 1, N]`, s_0 … s_T; the terminal state is repeated after an end.
        action: int32 `[T, N]`, 0 after an end.
        valid: bool `[T, N]`.
    """

    state: Array
    action: Array
    valid: Array


def enumerate_trajectories(
    mdp: TabularMDP, num_steps: int | None = None, *, max_trajectories: int = 1_000_000
) -> Trajectories:
    """Every trajectory that the dynamics allow: expectations over them are exact sums.

        Σ_τ p(τ) f(τ),   p(τ) = exp(trajectory_log_prob(mdp, policy, trajectories))

    Their number is about S (A S)^T. It runs on the host.

    Args:
        mdp: a problem with concrete values.
        num_steps: T, where to stop watching; None: the horizon, or until every episode has ended.
        max_trajectories: how many are too many.

    Returns:
        The trajectories, no two alike.

    Raises:
        ValueError: if there are too many, if some never end and `num_steps` is None, or if the problem is
            traced.

    Example:
        >>> from pgjax.tabular import kakade_mdp
        >>> enumerate_trajectories(kakade_mdp(), 2).state.T
        Array([[0, 0, 0],
               [0, 0, 1],
               [0, 1, 1],
               [0, 1, 0]], dtype=int32)
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(mdp)):
        raise ValueError("enumerate_trajectories needs a concrete problem: call it outside of jit and vmap.")
    if num_steps is not None:
        at_least_one(num_steps=num_steps)
    possible, terminal = np.asarray(mdp.transition) > 0, np.asarray(mdp.terminal)
    limits = [limit for limit in (num_steps, mdp.horizon) if limit is not None]
    state, action, valid = np.flatnonzero(np.asarray(mdp.initial) > 0)[None], [], []
    while len(action) < min(limits) if limits else not terminal[state[-1]].all():
        if not limits and len(action) > mdp.num_states:  # some state was visited twice
            raise ValueError("Some trajectories never end: say with num_steps where to stop watching.")
        now = state[-1]
        going_on = ~terminal[now]
        row, choice, following = np.nonzero(possible[now[going_on]])
        ended = np.flatnonzero(~going_on)  # each of them is kept once
        source = np.concatenate([np.flatnonzero(going_on)[row], ended])
        order = np.argsort(source, kind="stable")
        source = source[order]
        choice = np.concatenate([choice, np.zeros_like(ended)])[order]
        following = np.concatenate([following, now[ended]])[order]
        if len(source) > max_trajectories:
            raise ValueError(
                f"More than {max_trajectories:,} trajectories after {len(action) + 1} steps: take a smaller "
                "problem, fewer steps, or a larger max_trajectories."
            )
        state = np.concatenate([state[:, source], following[None]])
        action = [a[source] for a in action] + [choice]
        valid = [v[source] for v in valid] + [going_on[source]]
    return Trajectories(
        jnp.asarray(state, jnp.int32), jnp.asarray(np.stack(action), jnp.int32), jnp.asarray(np.stack(valid))
    )


@compiled()
def trajectory_log_prob(mdp: TabularMDP, policy: Array, trajectories: Trajectories) -> Array:
    """The log-probability of whole trajectories, the dynamics included.

        log p(τ) = log initial(s_0) + Σ_t [log π(a_t|s_t) + log P(s_{t+1}|s_t, a_t)]

    Only the middle term depends on θ: its gradient is that of `pgjax.trajectory_log_prob`.

    Args:
        mdp: the problem.
        policy: `[S, A]`; with a horizon also `[H, S, A]`.
        trajectories: of T steps.

    Returns:
        `[N]`.

    References:
        Williams 1992, section 5, in the notation of Sutton & Barto 2018, eq. 5.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> tau = enumerate_trajectories(kakade_mdp(), 2)
        >>> jnp.exp(trajectory_log_prob(kakade_mdp(), jnp.full((2, 2), 0.5), tau))
        Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    state, action, valid = trajectories
    moved = jnp.where(valid, mdp.transition[state[:-1], action, state[1:]], 1.0)
    steps = _action_log_prob(mdp, policy, trajectories) + _log(moved)
    return _log(mdp.initial[state[0]]) + steps.sum(0)


@compiled()
def to_transitions(mdp: TabularMDP, policy: Array, trajectories: Trajectories) -> tuple[Transition, Array]:
    """Trajectories as every estimator of the library takes them.

    After the end of an episode its reward is 0, its flags are False and `valid` is False, as in
    `rollout_episodes`; one that goes on at the end of the window ends truncated.

    Args:
        mdp: the problem.
        policy: `[S, A]`, the policy that acted; with a horizon also `[H, S, A]`.
        trajectories: of T steps.

    Returns:
        The transitions, leaves `[T, N, ...]`, and `valid`, bool `[T, N]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.tabular import kakade_mdp
        >>> tau = enumerate_trajectories(kakade_mdp(), 2)
        >>> to_transitions(kakade_mdp(), jnp.full((2, 2), 0.5), tau)[0].reward
        Array([[1., 1., 0., 0.],
               [1., 0., 2., 0.]], dtype=float32)
    """
    state, action, valid = trajectories
    time = _time(trajectories)
    terminated = mdp.terminal[state[1:]]
    if mdp.horizon is not None:
        terminated = terminated | (time + 1 == mdp.horizon)
    terminated = terminated & valid
    truncated = jnp.zeros_like(valid).at[-1].set(valid[-1] & ~terminated[-1])
    traj = Transition(
        obs=mdp.observe(state[:-1], time),
        action=action,
        log_prob=_action_log_prob(mdp, policy, trajectories),
        reward=jnp.where(valid, mdp.reward[state[:-1], action], 0.0),
        terminated=terminated,
        truncated=truncated,
        next_obs=mdp.observe(state[1:], time + 1),
    )
    return traj, valid


def _time(trajectories: Trajectories) -> Array:
    """T of every step, `[T, N]`."""
    steps = jnp.arange(len(trajectories.action), dtype=jnp.int32)
    return jnp.broadcast_to(steps[:, None], trajectories.action.shape)


def _action_log_prob(mdp: TabularMDP, policy: Array, trajectories: Trajectories) -> Array:
    """Log π(a_t|s_t), `[T, N]`, 0 where not valid."""
    policy = _policy(mdp, policy)
    index = trajectories.state[:-1], trajectories.action
    if mdp.horizon is not None:
        index = _time(trajectories), *index
    return jnp.where(trajectories.valid, _log(policy[index]), 0.0)


def _sum(spec: str, *arrays: Array) -> Array:
    """An einsum that accelerators take in full precision."""
    return jnp.einsum(spec, *arrays, precision="highest")


def _dynamics(mdp: TabularMDP) -> tuple[Array, Array]:
    """Transitions from live states to live states `[S, A, S]`, and rewards `[S, A]` of live states."""
    into_live = ~mdp.terminal[None, None]
    return (
        jnp.where(_alive(mdp, 3) & into_live, mdp.transition, 0.0),
        jnp.where(_alive(mdp, 2), mdp.reward, 0.0),
    )


def _alive(mdp: TabularMDP, rank: int) -> Array:
    """Whether a state is not terminal, with S as the first of `rank` axes."""
    return ~mdp.terminal.reshape(-1, *[1] * (rank - 1))


def _live(mdp: TabularMDP, x: Array, *, actions: bool = False) -> Array:
    """`x [..., S]`, or `[..., S, A]` with `actions`, and 0 where terminal."""
    alive = _alive(mdp, 2 if actions else 1)
    return jnp.where(alive.reshape(*[1] * (x.ndim - alive.ndim), *alive.shape), x, 0.0)


def _policy(mdp: TabularMDP, policy: Array) -> Array:
    """π in its full shape, with a horizon one matrix for each time."""
    policy = jnp.asarray(policy)
    shape = mdp.reward.shape if mdp.horizon is None else (mdp.horizon, *mdp.reward.shape)
    if mdp.horizon is not None and policy.ndim == 2:
        policy = jnp.broadcast_to(policy[None], (mdp.horizon, *policy.shape))
    chex.assert_shape(policy, shape)
    return policy


def _look_ahead(mdp: TabularMDP, value: Array) -> Array:
    """Q of V: `[S] -> [S, A]`; with a horizon `[H + 1, S] -> [H, S, A]`."""
    transition, reward = _dynamics(mdp)
    if value.ndim == 1:
        return reward + mdp.gamma * _sum("sat,t->sa", transition, value)
    return reward[None] + mdp.gamma * _sum("sat,ht->hsa", transition, value[1:])


def _log(probs: Array) -> Array:
    """Log p, no less than that of the smallest normal number: finite, and its gradient too."""
    return jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))


def _entropy(policy: Array) -> Array:
    """−Σ_a π log π in nats, with 0 log 0 = 0."""
    return -(policy * _log(policy)).sum(-1)


def _reachable(flow: Array, start: Array) -> Array:
    """Bool `[S]`: the states that a walk along the positive entries of `flow [S, S]` can reach."""
    leads = flow > 0

    def spread(loop: tuple[Array, Array]) -> tuple[Array, Array]:
        reached, _ = loop
        wider = reached | (reached[:, None] & leads).any(0)
        return wider, (wider != reached).any()

    return lax.while_loop(lambda loop: loop[1], spread, (start, jnp.ones((), bool)))[0]


def _solve(system: Array, target: Array) -> Array:
    """The x of system · x = target, `[S, S]` and `[S]`; differentiable in both."""

    def solve(matvec: Any, target: Array) -> Array:
        del matvec
        return _factorize_and_solve(constant, target)

    def transpose_solve(matvec: Any, target: Array) -> Array:
        del matvec
        return _factorize_and_solve(constant.T, target)

    constant = lax.stop_gradient(system)
    return lax.custom_linear_solve(lambda x: _sum("ij,j->i", system, x), target, solve, transpose_solve)


@one_at_a_time_on_cpu
def _factorize_and_solve(system: Array, target: Array) -> Array:
    return jnp.linalg.solve(system, target)


@one_at_a_time_on_cpu
def _singular_values(matrix: Array) -> tuple[Array, Array]:
    """Singular values `[K]` and right singular vectors `[K, P]` of `[N, P]`, K = min(N, P)."""
    _, values, basis = jnp.linalg.svd(matrix, full_matrices=False)
    return values, basis
