"""Read a finite problem off an environment: every state and action is stepped once.

That is right only where chance plays no part, and this is proved, not sampled: a step is interpreted with a
mark on everything that the random key can reach. Where a marked value ends up in an outcome, the environment
is refused, unless its probabilities are known here.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from pgjax.tabular.mdp import TabularMDP
from pgjax.types import Array, Numeric

_CHUNK = 256  # states that are stepped at once, so that one compiled program serves

Step = Callable[[Any, Any, Any], Any]
"""`(key, state, action) -> (obs, state, reward, terminated, info)`, never resetting."""


class Outcome(NamedTuple):
    """One of the things that may follow an action.

    Attributes:
        probability: of it, whatever the state and the action.
        step: what then happens.
    """

    probability: float
    step: Step


def from_gymnax(
    env: Any,
    env_params: Any,
    *,
    gamma: Numeric,
    initial: tuple[Any, Any] | None = None,
    max_states: int = 10_000,
) -> TabularMDP:
    """The same problem as a gymnax environment, with its probabilities written out.

    States are found breadth first from the start. What counts as a state is what the future depends on:
    a field such as `time` that no observation, reward or termination depends on is dropped, and with it the
    environment's time limit, which is no part of the task (`pgjax.envs.TimeLimit` puts one on top).
    Observations become `features`. Where an environment adds noise to its rewards, theirs is the mean.

    Steps and starts that depend on chance cannot be read off. Catch (its start), FrozenLake (slipping) and
    DeepSea (its stochastic form) are known here and given analytically; any other is refused.

    Args:
        env: an environment with gymnax's `reset_env` and `step_env`, and a finite number of actions.
        env_params: its parameters, with concrete values.
        gamma: discount factor.
        initial: `(states, probabilities)` where the start is random: the environment's own states, leaves
            `[M, ...]`, and `[M]`.
        max_states: how many are too many.

    Returns:
        The problem; states are numbered in the order in which they were found, starts first.

    Raises:
        ValueError: if a step, a start or an observation depends on chance and is not known here, if actions
            are not finite, if observations are not single arrays, if there are more than `max_states`
            states.

    Example:
        >>> from pgjax import envs
        >>> from_gymnax(*envs.make("DeepSea-bsuite", size=4), gamma=0.9)
        TabularMDP(14 states, 4 terminal, 2 actions, gamma=0.9)
    """
    name = getattr(env, "name", type(env).__name__)
    num_actions = getattr(env.action_space(env_params), "n", None)
    if num_actions is None:
        raise ValueError(f"{name} has no finite set of actions: it is not a tabular problem.")
    with jax.numpy_rank_promotion("allow"):  # the environment's own business
        example = jax.tree.map(jnp.asarray, env.reset_env(jax.random.key(0), env_params)[1])
        if any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(example)):
            raise ValueError(f"{name} keeps a random key in its state: it cannot be enumerated.")
        outcomes = [
            outcome._replace(step=_on_leaves(outcome.step, example, name))
            for outcome in _outcomes(env, env_params)
        ]
        kept = _what_matters(outcomes, jax.tree.leaves(example))
        table = _Table(kept, max_states, name)
        leaves, obs, probs = _starts(env, env_params, initial, example, kept, name)
        first = table.add(leaves, obs, np.zeros(len(probs), bool))
        edges = _explore(table, outcomes, int(num_actions))
    num_states = len(table.states)
    transition = np.zeros((num_states, num_actions, num_states), jnp.result_type(float))
    reward = np.zeros((num_states, num_actions))
    start = np.zeros(num_states)
    np.add.at(start, first, probs)
    for probability, state, action, following, paid in edges:
        np.add.at(transition, (state, action, following), probability)
        np.add.at(reward, (state, action), probability * paid)
    terminal = np.flatnonzero(table.terminal)
    transition[terminal, :, terminal] = 1.0
    return TabularMDP(
        transition, reward, start, gamma, terminal=np.array(table.terminal), features=np.stack(table.obs)
    )


class _Table:
    """The states found so far, told apart by what matters of them, what they show and whether they end."""

    def __init__(self, kept: Sequence[int], limit: int, name: str):
        self.kept, self.limit, self.name = kept, limit, name
        self.numbers: dict[bytes, int] = {}
        self.states: list[list[np.ndarray]] = []
        self.obs: list[np.ndarray] = []
        self.terminal: list[bool] = []

    def add(self, leaves: Sequence[Any], obs: Any, terminal: Any) -> np.ndarray:
        """The numbers of the states with `leaves [M, ...]`; new ones are taken in."""
        leaves = [np.asarray(leaf) for leaf in leaves]
        obs, terminal = np.asarray(obs), np.asarray(terminal)
        columns = [*(leaves[i] for i in self.kept), obs, terminal]
        # −0.0 + 0.0 = 0.0: what is equal must have equal bytes
        columns = [x + 0.0 if np.issubdtype(x.dtype, np.floating) else x for x in columns]
        found = []
        for row in range(len(obs)):
            identity = b"".join(x[row].tobytes() for x in columns)
            found.append(self.numbers.setdefault(identity, len(self.states)))
            if found[-1] == len(self.states):
                self.states.append([leaf[row] for leaf in leaves])
                self.obs.append(obs[row])
                self.terminal.append(bool(terminal[row]))
        if len(self.states) > self.limit:
            raise ValueError(
                f"{self.name} has more than max_states={self.limit:,} states. If its observations or rewards "
                "depend on something that only ever grows, there is no end of them."
            )
        return np.array(found)


def _explore(table: _Table, outcomes: Sequence[Outcome], num_actions: int) -> list[tuple[Any, ...]]:
    """Step every state once: `(probability, states, actions, next states, rewards)`."""
    steps = [jax.jit(jax.vmap(_with_chance(outcome.step, table.kept), (0, None))) for outcome in outcomes]
    edges, done = [], 0
    while done < len(table.states):
        numbers = np.arange(done, min(done + _CHUNK, len(table.states)))
        done += len(numbers)
        numbers = numbers[~np.array(table.terminal)[numbers]]
        if not len(numbers):
            continue
        rows = [table.states[number] for number in np.resize(numbers, _CHUNK)]
        leaves = [np.stack(column) for column in zip(*rows, strict=True)]
        for outcome, step in zip(outcomes, steps, strict=True):
            for action in range(num_actions):
                out = jax.tree.map(lambda x, n=len(numbers): np.asarray(x)[:n], step(leaves, action))
                (obs, following, reward, terminated), chance = out
                for what, marked in chance.items():
                    if marked.any():
                        raise ValueError(_refusal(table.name, what))
                landing = table.add(following, obs, terminated)
                edges.append((outcome.probability, numbers, action, landing, reward))
    return edges


def _refusal(name: str, what: str) -> str:
    return (
        f"The {what} of {name} may depend on chance, and probabilities are not estimated here: build a "
        "TabularMDP from the probabilities themselves."
    )


def _on_leaves(step: Step, example: Any, name: str) -> Step:
    """The same on the leaves of a state: `(key, leaves, action) -> (obs, leaves, reward, terminated)`."""
    leaves, structure = jax.tree.flatten(example)

    def stepped(key: Any, state: list[Any], action: Any) -> Any:
        obs, following, reward, terminated, _ = step(key, jax.tree.unflatten(structure, state), action)
        following = [jnp.asarray(x, e.dtype) for x, e in zip(jax.tree.leaves(following), leaves, strict=True)]
        return _array(obs, name), following, jnp.asarray(reward, float), jnp.asarray(terminated, bool)

    return stepped


def _array(obs: Any, name: str) -> Array:
    if not jax.tree_util.all_leaves([obs]):
        raise ValueError(f"The observations of {name} are no single arrays: they cannot be features.")
    return jnp.asarray(obs)


def _with_chance(step: Step, kept: Sequence[int]) -> Callable[[list[Any], Any], Any]:
    """A step with one key, and which parts of its outcome another key might change."""
    key = jax.random.key(0)

    def stepped(state: list[Any], action: Any) -> Any:
        arguments, marks = (key, state, action), (True, [False] * len(state), False)
        out, (obs, following, reward, terminated) = _marked(step, arguments, marks)
        return out, {
            "observation": obs.any(),
            "next state": jnp.array([following[i].any() for i in kept], bool).any(),
            "reward": reward,
            "termination": terminated,
        }

    return stepped


def _what_matters(outcomes: Sequence[Outcome], state: list[Any]) -> list[int]:
    """Numbers of the leaves that observations, rewards, terminations, or other such leaves, depend on."""
    key, action = jax.random.key(0), jnp.zeros((), jnp.int32)
    shown = np.zeros(len(state), bool)
    onward = np.zeros((len(state), len(state)), bool)  # from leaf, to leaf

    for outcome in outcomes:

        def reach(leaf: Array, step: Step = outcome.step) -> tuple[Array, Array]:
            arguments, marks = (key, state, action), (False, [leaf == i for i in range(len(state))], False)
            _, (obs, following, reward, terminated) = _marked(
                step, arguments, marks, whatever_the_values=True
            )
            return obs.any() | reward | terminated, jnp.array([x.any() for x in following])

        to_shown, to_leaves = jax.jit(jax.vmap(reach))(jnp.arange(len(state)))
        shown |= np.asarray(to_shown)
        onward |= np.asarray(to_leaves)
    while True:
        more = shown | (onward & shown[None]).any(1)
        if (more == shown).all():
            return [int(i) for i in np.flatnonzero(shown)]
        shown = more


def _starts(
    env: Any, env_params: Any, initial: Any, example: Any, kept: Sequence[int], name: str
) -> tuple[list[Any], Any, np.ndarray]:
    """First states, leaves `[M, ...]`, their observations `[M, ...]` and probabilities `[M]`."""
    key = jax.random.key(0)
    if initial is None and _kind(env) == _CATCH:
        columns = jnp.arange(env.columns, dtype=example.ball_x.dtype)
        states = jax.vmap(lambda column: example.replace(ball_x=column))(columns)
        initial = states, np.full(env.columns, 1.0 / env.columns)
    if initial is None:

        def reset(key: Any) -> tuple[Any, list[Any]]:
            obs, state = env.reset_env(key, env_params)
            return _array(obs, name), [jnp.asarray(x) for x in jax.tree.leaves(state)]

        (obs, leaves), (marked, marks) = jax.jit(lambda: _marked(reset, (key,), (True,)))()
        if marked.any() or any(marks[i].any() for i in kept):
            raise ValueError(
                f"The start of {name} may depend on chance, and probabilities are not estimated here: give "
                "initial=(states, probabilities)."
            )
        return [leaf[None] for leaf in leaves], obs[None], np.ones(1)

    def observe(key: Any, state: Any) -> Array:
        return _array(env.observe(key, state, None, env_params), name)

    def observed(state: Any) -> Any:
        return _marked(observe, (key, state), (True, jax.tree.map(lambda _: False, state)))

    states, probs = initial
    states = jax.tree.map(lambda x, e: jnp.asarray(x, e.dtype), states, example)
    obs, marks = jax.jit(jax.vmap(observed))(states)
    if marks.any():
        raise ValueError(_refusal(name, "observation"))
    return jax.tree.leaves(states), obs, np.asarray(probs, float)


_CATCH = "gymnax.environments.bsuite.catch.Catch"
_DEEP_SEA = "gymnax.environments.bsuite.deep_sea.DeepSea"
_FROZEN_LAKE = "gymnax.environments.misc.frozen_lake.FrozenLake"


def _kind(env: Any) -> str:
    """The full name of the class, so that a class derived from a known one is not taken for it."""
    return f"{type(env).__module__}.{type(env).__qualname__}"


def _outcomes(env: Any, env_params: Any) -> list[Outcome]:
    """What may follow an action, where that is known to depend on chance."""
    if _kind(env) == _FROZEN_LAKE and env.is_slippery:
        firm = copy.copy(env)
        firm.is_slippery = False

        def turned(quarters: int) -> Step:
            return lambda key, state, action: firm.step_env(key, state, (action + quarters) % 4, env_params)

        success = float(env.success_rate)
        return [
            Outcome(success, turned(0)),
            Outcome((1.0 - success) / 2.0, turned(-1)),
            Outcome((1.0 - success) / 2.0, turned(1)),
        ]
    if _kind(env) == _DEEP_SEA and not env_params.deterministic:
        calm = env_params.replace(deterministic=True)  # without the noise on rewards, whose mean is 0

        def sail(key: Any, state: Any, action: Any) -> Any:
            return env.step_env(key, state, action, calm)

        def drift(key: Any, state: Any, action: Any) -> Any:
            """A move to the right fails: the diver goes down only. Rewards are paid as if it had not."""
            _, after, reward, terminated, info = sail(key, state, action)
            right = action == state.action_mapping[state.row, state.column]
            after = after.replace(column=jnp.where(right, state.column, after.column))
            return env.observe(key, after, action, calm), after, reward, terminated, info

        return [Outcome(1.0 - 1.0 / env.size, sail), Outcome(1.0 / env.size, drift)]
    return [Outcome(1.0, lambda key, state, action: env.step_env(key, state, action, env_params))]


_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat2",
    "checkpoint",
}
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "rem", "max", "min", "neg", "abs", "sign", "floor", "round", "clamp"),
    *("and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt", "ge", "select_n"),
    *("exp", "log", "sqrt", "square", "integer_pow", "pow", "convert_element_type", "copy"),
}
_MOVING = {"reshape", "broadcast_in_dim", "squeeze", "transpose", "slice", "rev", "concatenate", "stack"}


def _marked(
    function: Callable[..., Any], arguments: tuple[Any, ...], marks: Any, *, whatever_the_values: bool = False
) -> tuple[Any, Any]:
    """Evaluate a function and follow marks from its arguments to its results.

    What carries no mark in the end is the same for all values of the marked arguments. Marks stop where the
    values at hand make an argument irrelevant: at a branch that is not taken, at 0 · x, at `False and x`.

    Args:
        function: of arrays.
        arguments: its arguments.
        marks: the same tree as the arguments, with a bool for each leaf.
        whatever_the_values: do not let marks stop, so that the answer holds for all values of all
            arguments.

    Returns:
        The function's result, and the same tree of bool arrays.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    values = [jnp.asarray(x) for x in jax.tree.leaves(arguments)]
    spread = [jnp.broadcast_to(m, jnp.shape(x)) for m, x in zip(jax.tree.leaves(marks), values, strict=True)]
    out = _interpret(closed, values, spread, not whatever_the_values)
    structure = jax.tree.structure(shapes)
    value, mark = (structure.unflatten([jnp.asarray(pair[i]) for pair in out]) for i in (0, 1))
    return value, mark


def _interpret(closed: Any, values: list[Any], marks: list[Any], stop: bool) -> list[tuple[Any, Any]]:
    constants = [(c, jnp.zeros(jnp.shape(c), bool)) for c in closed.consts]
    known = dict(zip(closed.jaxpr.constvars, constants, strict=True))
    known |= dict(zip(closed.jaxpr.invars, zip(values, marks, strict=True), strict=True))

    def read(atom: Any) -> tuple[Any, Any]:
        if isinstance(atom, Literal):
            return atom.val, jnp.zeros(jnp.shape(atom.val), bool)
        return known[atom]

    for eqn in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        in_values, in_marks = [x for x, _ in inputs], [m for _, m in inputs]
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if eqn.primitive.name in _CALLS and hasattr(inner, "consts"):
            results = _interpret(inner, in_values, in_marks, stop)
        else:
            out_values = _apply(eqn, in_values)
            out_marks = _follow(eqn, in_values, in_marks, stop)
            results = list(zip(out_values, out_marks, strict=True))
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _apply(eqn: Any, values: Sequence[Any]) -> list[Any]:
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _follow(eqn: Any, values: Sequence[Any], marks: Sequence[Any], stop: bool) -> list[Any]:
    """The marks of one operation's results."""
    name, shapes = eqn.primitive.name, [out.aval.shape for out in eqn.outvars]
    if name in _MOVING:
        return _apply(eqn, marks)
    if name not in _ELEMENTWISE:  # every result may depend on all of every argument
        anything = jnp.zeros((), bool)
        for mark in marks:
            anything = anything | mark.any()
        return [jnp.broadcast_to(anything, shape) for shape in shapes]
    (shape,) = shapes
    marks = [jnp.broadcast_to(mark, shape) for mark in marks]
    either = marks[0]
    for mark in marks[1:]:
        either = either | mark
    if not stop:
        return [either]
    if name == "select_n":
        taken = lax.select_n(jnp.broadcast_to(values[0], shape), *marks[1:])
        return [jnp.where(marks[0], True, taken)]
    absorbing = {"mul": 0, "and": False, "or": True}  # x · 0 = 0: random numbers are finite
    if name in absorbing and (name == "mul" or eqn.outvars[0].aval.dtype == bool):
        for value, mark in zip(values, marks, strict=True):
            either = either & (mark | (jnp.broadcast_to(value, shape) != absorbing[name]))
    return [either]
