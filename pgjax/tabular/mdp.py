"""Finite decision problems, given by their transition probabilities; each of them is an environment as well.

A reward r(s, a) is paid on leaving s. Entering a terminal state terminates the episode; its value is 0, and
whatever `transition` and `reward` say of it is ignored. A horizon is part of the task: its end terminates
too, and the policy may look at the time. A time limit on top is a wrapper that truncates
(`pgjax.envs.TimeLimit`).
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pgjax.types import Array, Numeric, PRNGKey


class EnvState(NamedTuple):
    """Where an episode of a `TabularMDP` stands.

    Attributes:
        state: int32 scalar, s.
        time: int32 scalar, steps taken in this episode.
    """

    state: Array
    time: Array


class Discrete(NamedTuple):
    """The set {0, …, n − 1}.

    Attributes:
        n: its size.
        shape: of an element.
        dtype: of an element.
    """

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.int32

    def sample(self, key: PRNGKey) -> Array:
        """An element, each as likely as any other."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)


class Box(NamedTuple):
    """Arrays of one shape.

    Attributes:
        shape: of an element.
        dtype: of an element.
        low: lower bound of every entry.
        high: upper bound of every entry.
    """

    shape: tuple[int, ...]
    dtype: Any
    low: float = -math.inf
    high: float = math.inf


@dataclasses.dataclass(frozen=True, eq=False, init=False, repr=False)
class TabularMDP:
    """A problem with S states and A actions, and the same problem as an environment.

        J = E[Σ_t γ^t r(s_t, a_t)],   s_0 ~ initial,   s_{t+1} ~ transition[s_t, a_t]

    It is a pytree (`horizon` is static, all else are leaves), so that functions of it can be compiled,
    differentiated and mapped over problems. Values are checked when a problem is constructed, apart from
    those that are traced.

    Attributes:
        transition: `[S, A, S]`, P(s' | s, a).
        reward: `[S, A]`, the expected reward of taking a in s.
        initial: `[S]`, the probabilities of the first state.
        gamma: discount factor; below 1 unless there is a horizon.
        horizon: number of steps after which every episode terminates, or None.
        terminal: bool `[S]`; None: no state is.
        features: `[S, ...]`, what is observed of every state; None: one-hot.

    Raises:
        ValueError: if the shapes do not fit, if a row of probabilities does not sum to 1 or has a negative
            entry, if anything is not finite, if γ lies outside [0, 1] or is 1 without a horizon.

    Example:
        >>> mdp = TabularMDP([[[0, 1.0]], [[0, 1.0]]], [[1.0], [0.0]], [1.0, 0], 0.9, terminal=[False, True])
        >>> mdp
        TabularMDP(2 states, 1 terminal, 1 action, gamma=0.9)
        >>> mdp.observations
        Array([[1., 0.],
               [0., 1.]], dtype=float32)
    """

    transition: Array
    reward: Array
    initial: Array
    gamma: Array
    horizon: int | None
    terminal: Array
    features: Array | None

    def __init__(
        self,
        transition: Any,
        reward: Any,
        initial: Any,
        gamma: Numeric,
        horizon: int | None = None,
        terminal: Any = None,
        features: Any = None,
    ):
        dtype = jnp.result_type(float)
        transition = jnp.asarray(transition, dtype)
        if terminal is None:
            terminal = np.zeros(transition.shape[-1:], bool)
        fields = {
            "transition": transition,
            "reward": jnp.asarray(reward, dtype),
            "initial": jnp.asarray(initial, dtype),
            "gamma": jnp.asarray(gamma, dtype),
            "horizon": None if horizon is None else operator.index(horizon),
            "terminal": jnp.asarray(terminal, bool),
            "features": None if features is None else jnp.asarray(features),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        _check_shapes(self)
        _check_values(self)

    def __repr__(self) -> str:
        said = [_count(self.num_states, "state"), _count(self.num_actions, "action")]
        if isinstance(self.terminal, jax.Array) and _concrete(self.terminal) and self.terminal.ndim == 1:
            said.insert(1, f"{int(self.terminal.sum())} terminal")
        if _concrete(self.gamma):
            said.append(f"gamma={np.asarray(self.gamma)!s}")
        if self.horizon is not None:
            said.append(f"horizon={self.horizon}")
        return f"TabularMDP({', '.join(said)})"

    @property
    def num_states(self) -> int:
        """S."""
        return self.transition.shape[-1]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.transition.shape[-2]

    @property
    def observations(self) -> Array:
        """What a policy sees of every state: `[S, ...]`; with a horizon H `[H, S, K + H]`.

        With a horizon the K features of the state, flattened, are followed by the one-hot time.
        """
        if self.horizon is None:
            return self.state_features
        state, time = np.arange(self.num_states)[None], np.arange(self.horizon)[:, None]
        return self.observe(*np.broadcast_arrays(state, time))

    @property
    def state_features(self) -> Array:
        """The features, or one-hot states, `[S, ...]`."""
        if self.features is None:
            return jnp.eye(self.num_states, dtype=self.transition.dtype)
        return self.features

    def observe(self, state: Any, time: Any) -> Array:
        """What a policy sees of given states at given times.

        Args:
            state: int `[...]`.
            time: int `[...]`, read with a horizon H only; from H on its one-hot is all zeros.

        Returns:
            `[..., *shape of the features]`; with a horizon `[..., K + H]`.
        """
        features = self.state_features
        if self.horizon is None:
            return features[state]
        flat = features.reshape(self.num_states, -1).astype(self.transition.dtype)
        clock = jax.nn.one_hot(time, self.horizon, dtype=self.transition.dtype)
        return jnp.concatenate([flat[state], clock], -1)

    def reset(self, key: PRNGKey, params: Any = None, /) -> tuple[Array, EnvState]:
        """Start an episode.

        Args:
            key: consumed.
            params: ignored; the problem is its own parameters.

        Returns:
            The observation and the environment's state.
        """
        del params
        start = EnvState(_draw(key, self.initial), jnp.zeros((), jnp.int32))
        return self.observe(*start), start

    def step(
        self, key: PRNGKey, state: EnvState, action: Array, params: Any = None, /
    ) -> tuple[Array, EnvState, Array, Array, Array, dict[Any, Any]]:
        """Take one step; where the episode ends, start the next one.

        Args:
            key: consumed.
            state: where the episode stands.
            action: int scalar, a.
            params: ignored.

        Returns:
            The observation, the environment's state, the reward, `terminated`, `truncated` (never: that is a
            wrapper's business) and `{"final_observation": what the action led to, before any reset}`.
        """
        del params
        next_key, reset_key = jax.random.split(key)
        after = EnvState(_draw(next_key, self.transition[state.state, action]), state.time + 1)
        obs = self.observe(*after)
        terminated = self.terminal[after.state]
        if self.horizon is not None:
            terminated = terminated | (after.time >= self.horizon)
        fresh_obs, fresh = self.reset(reset_key)
        following = jax.tree.map(lambda new, old: jnp.where(terminated, new, old), fresh, after)
        return (
            jnp.where(terminated, fresh_obs, obs),
            following,
            self.reward[state.state, action],
            terminated,
            jnp.zeros((), bool),
            {"final_observation": obs},
        )

    def action_space(self, params: Any = None) -> Discrete:
        """The actions.

        Args:
            params: ignored.

        Returns:
            {0, …, A − 1}.
        """
        del params
        return Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> Discrete | Box:
        """The observations.

        Args:
            params: ignored.

        Returns:
            A finite set where the features are single integers, or else arrays of their shape.
        """
        del params
        example = jax.eval_shape(self.observe, jnp.zeros((), int), jnp.zeros((), int))
        if example.shape == () and jnp.issubdtype(example.dtype, jnp.integer):
            return Discrete(int(np.max(self.state_features)) + 1, dtype=example.dtype)
        return Box(example.shape, example.dtype)


_LEAVES = ("transition", "reward", "initial", "gamma", "terminal", "features")


def _flatten(mdp: TabularMDP) -> tuple[list[tuple[Any, Any]], int | None]:
    return [(jax.tree_util.GetAttrKey(name), getattr(mdp, name)) for name in _LEAVES], mdp.horizon


def _unflatten(horizon: int | None, leaves: Any) -> TabularMDP:
    """Never through `__init__`: the leaves of a transformed problem may be batched, or no arrays at all."""
    mdp = object.__new__(TabularMDP)
    for name, leaf in zip(_LEAVES, leaves, strict=True):
        object.__setattr__(mdp, name, leaf)
    object.__setattr__(mdp, "horizon", horizon)
    return mdp


jax.tree_util.register_pytree_with_keys(TabularMDP, _flatten, _unflatten)


def _concrete(x: Any) -> bool:
    return not isinstance(x, Tracer)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _check_shapes(mdp: TabularMDP) -> None:
    shape = mdp.transition.shape
    if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
        raise ValueError(f"transition must have the shape [S, A, S], got {[*shape]}.")
    expected = {"reward": shape[:2], "initial": shape[:1], "gamma": (), "terminal": shape[:1]}
    for name, wanted in expected.items():
        found = getattr(mdp, name).shape
        if found != wanted:
            raise ValueError(
                f"{name} must have the shape {[*wanted]} beside a transition {[*shape]}, got {[*found]}."
            )
    if mdp.features is not None and mdp.features.shape[:1] != shape[:1]:
        raise ValueError(
            f"features need one row for each of the {shape[0]} states, got the shape {[*mdp.features.shape]}."
        )
    if mdp.horizon is not None and mdp.horizon < 1:
        raise ValueError(f"horizon must be at least 1, or None for a task without one, got {mdp.horizon}.")


def _check_values(mdp: TabularMDP) -> None:
    """Every check that the concrete fields allow."""
    # A row that was normalised in float32 sums to 1 within a few roundings.
    tolerance = max(1e-6, 100.0 * float(jnp.finfo(mdp.transition.dtype).eps))
    if _concrete(mdp.gamma):
        gamma = float(mdp.gamma)
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}.")
        if gamma == 1.0 and mdp.horizon is None:
            raise ValueError(
                "gamma = 1 needs a horizon, since the sum of rewards may diverge without one: "
                "give horizon=H, or take gamma below 1 (0.9999, say)."
            )
    live = ~np.asarray(mdp.terminal) if _concrete(mdp.terminal) else np.zeros(mdp.num_states, bool)
    if _concrete(mdp.terminal) and not live.any():
        raise ValueError("every state is terminal: an episode needs a state to start in.")
    for name in ("transition", "reward", "initial"):
        value = getattr(mdp, name)
        if _concrete(value):
            _check_finite(name, np.asarray(value), live)
    if _concrete(mdp.transition):
        _check_rows("transition", np.asarray(mdp.transition), live, tolerance)
    if _concrete(mdp.initial):
        initial = np.asarray(mdp.initial)
        _check_rows("initial", initial[None], np.ones(1, bool), tolerance)
        if _concrete(mdp.terminal) and (initial[~live] > 0).any():
            state = int(np.flatnonzero(~live & (initial > 0))[0])
            raise ValueError(
                f"initial[{state}] is {initial[state]}, but state {state} is terminal: "
                "no episode can start there."
            )
    if mdp.features is not None and _concrete(mdp.features):
        features = np.asarray(mdp.features)
        _check_finite("features", features, np.ones(len(features), bool))


def _check_finite(name: str, value: np.ndarray, live: np.ndarray) -> None:
    wrong = ~np.isfinite(value) & live.reshape(-1, *[1] * (value.ndim - 1))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}{[*place]} is {value[place]}; every entry must be finite.")


def _check_rows(name: str, rows: np.ndarray, live: np.ndarray, tolerance: float) -> None:
    """Whether the last axis holds probabilities; the row of a terminal state may hold anything."""

    def at(place: Sequence[int]) -> str:
        place = [int(i) for i in place]
        return f"{name}{place[1:] or ''}" if name == "initial" else f"{name}{place}"

    live = live.reshape(-1, *[1] * (rows.ndim - 1))
    negative = (rows < 0) & live
    if negative.any():
        place = np.argwhere(negative)[0]
        raise ValueError(f"{at(place)} is {rows[tuple(place)]}; a probability cannot be negative.")
    total = rows.sum(-1, dtype=np.float64)
    wrong = (np.abs(total - 1.0) > tolerance) & live[..., 0]
    if wrong.any():
        place = np.argwhere(wrong)[0]
        raise ValueError(f"{at(place)} sums to {total[tuple(place)]:.7g}; every row must sum to 1.")


def _draw(key: PRNGKey, probs: Array) -> Array:
    """A state by inverse distribution function; one of probability 0 is never drawn."""
    possible = probs > 0
    cumulated = jnp.cumsum(probs)
    # scaled to the largest value that a possible state has, so that one of them always lies above
    threshold = jax.random.uniform(key, dtype=probs.dtype) * jnp.where(possible, cumulated, 0.0).max()
    return jnp.argmax(possible & (cumulated > threshold)).astype(jnp.int32)


def random_mdp(
    key: PRNGKey,
    num_states: int,
    num_actions: int,
    gamma: Numeric,
    *,
    horizon: int | None = None,
    num_terminal: int = 0,
    concentration: Numeric = 1.0,
) -> TabularMDP:
    """A problem drawn at random: Dirichlet transitions, rewards uniform in [0, 1], a Dirichlet start.

    Args:
        key: consumed; map over an array of keys for many problems.
        num_states: S.
        num_actions: A.
        gamma: discount factor.
        horizon: number of steps of an episode, or None.
        num_terminal: how many states, the last ones, are terminal.
        concentration: of the Dirichlet distributions; towards 0 the transitions become deterministic.

    Returns:
        The problem.

    Raises:
        ValueError: unless 0 <= num_terminal < num_states.

    Example:
        >>> import jax
        >>> random_mdp(jax.random.key(0), 5, 3, 0.9, num_terminal=1)
        TabularMDP(5 states, 1 terminal, 3 actions, gamma=0.9)
    """
    if not 0 <= num_terminal < num_states:
        raise ValueError(
            f"num_terminal must leave at least one of the {num_states} states, got {num_terminal}."
        )
    dtype = jnp.result_type(float)
    transition_key, reward_key, initial_key = jax.random.split(key, 3)

    def dirichlet(key: PRNGKey, size: int, shape: tuple[int, ...]) -> Array:
        alpha = jnp.broadcast_to(jnp.asarray(concentration, dtype), (size,))
        return jax.random.dirichlet(key, alpha, shape, dtype)

    num_live = num_states - num_terminal
    return TabularMDP(
        transition=dirichlet(transition_key, num_states, (num_states, num_actions)),
        reward=jax.random.uniform(reward_key, (num_states, num_actions), dtype),
        initial=jnp.pad(dirichlet(initial_key, num_live, ()), (0, num_terminal)),
        gamma=gamma,
        horizon=horizon,
        terminal=np.arange(num_states) >= num_live,
    )


def chain_mdp(
    num_states: int,
    gamma: Numeric,
    *,
    slip: Numeric = 0.0,
    left_reward: Numeric = 0.0,
    right_reward: Numeric = 1.0,
    start: int = 0,
    horizon: int | None = None,
) -> TabularMDP:
    """States in a row; action 0 moves left, action 1 moves right, and at the ends one stays.

    Moving left in the first state pays `left_reward`, moving right in the last one `right_reward`. With
    `left_reward` small and the start at the left, the better reward is hidden behind a row of zeros.

    Args:
        num_states: S.
        gamma: discount factor.
        slip: probability of moving, and being paid, the other way.
        left_reward: of the left end.
        right_reward: of the right end.
        start: the first state of every episode.
        horizon: number of steps of an episode, or None.

    Returns:
        The problem.

    References:
        Strens 2000, A Bayesian framework for reinforcement learning, section 5 (the chain), in its idea.

    Example:
        >>> chain_mdp(5, 0.9)
        TabularMDP(5 states, 0 terminal, 2 actions, gamma=0.9)
    """
    state = np.arange(num_states)
    landing = np.stack([np.maximum(state - 1, 0), np.minimum(state + 1, num_states - 1)], 1)
    pays = np.zeros((2, num_states, 2))  # which move in which state earns which reward
    pays[0, 0, 0] = pays[1, -1, 1] = 1.0
    reward = left_reward * pays[0] + right_reward * pays[1]
    happens = (1.0 - slip) * np.eye(2) + slip * (1.0 - np.eye(2))
    return TabularMDP(
        transition=_mix(happens, np.eye(num_states)[landing]),
        reward=_mix(happens, reward[..., None])[..., 0],
        initial=np.eye(num_states)[start],
        gamma=gamma,
        horizon=horizon,
    )


def grid_mdp(
    layout: Sequence[str],
    gamma: Numeric,
    *,
    slip: Numeric = 0.0,
    step_reward: Numeric = 0.0,
    goal_reward: Numeric = 1.0,
    pit_reward: Numeric = -1.0,
    cliff_reward: Numeric = -1.0,
    horizon: int | None = None,
) -> TabularMDP:
    """A grid with walls, drawn as text: actions 0 to 3 move up, right, down and left.

    `S` start, `.` free, `#` wall, `G` goal, `X` pit, `C` cliff. One stays where a wall or the edge is. Goals
    and pits are terminal; who steps on a cliff finds themselves back at a start, and the episode goes on.
    The reward of a move is that of the cell it leads to. States are the cells, without walls and cliffs, in
    reading order; with several starts each is as likely.

    Args:
        layout: rows of equal length.
        gamma: discount factor.
        slip: probability that a move goes to one of the two sides instead, half of it to each.
        step_reward: of moving to a free cell or a start, and of staying.
        goal_reward: of moving to a goal.
        pit_reward: of moving to a pit.
        cliff_reward: of moving to a cliff.
        horizon: number of steps of an episode, or None.

    Returns:
        The problem.

    Raises:
        ValueError: if the rows differ in length, a character is unknown or there is no start.

    References:
        Sutton & Barto 2018, example 3.5 and exercise 4.9; Russell & Norvig 2020, section 17.1 (the slip).

    Example:
        >>> grid_mdp(["S.#", "..G"], 0.9)
        TabularMDP(5 states, 1 terminal, 4 actions, gamma=0.9)
    """
    cells = [list(row) for row in layout]
    if not cells or not cells[0] or len({len(row) for row in cells}) != 1:
        raise ValueError(f"The rows of a layout must be of one length above 0, got {list(layout)}.")
    unknown = sorted({cell for row in cells for cell in row} - set("S.#GXC"))
    if unknown:
        raise ValueError(f"Unknown cell {unknown[0]!r} in the layout. Known are S . # G X C.")
    grid = np.array(cells)
    if not (grid == "S").any():
        raise ValueError("A layout needs a start: write S where episodes begin.")
    is_state = np.isin(grid, list("S.GX"))
    number = np.where(is_state, np.cumsum(is_state).reshape(grid.shape) - 1, -1)
    kind = grid[is_state]
    num_states = len(kind)
    starts = (kind == "S") / (kind == "S").sum()
    transition = np.zeros((num_states, 4, num_states))
    lands_on = np.full((num_states, 4), "X")
    for state, place in enumerate(np.argwhere(is_state)):
        for move, step in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            there = tuple(np.clip(place + step, 0, np.array(grid.shape) - 1))
            if grid[there] == "#":
                there = tuple(place)
            lands_on[state, move] = grid[there]
            transition[state, move] = starts if grid[there] == "C" else np.eye(num_states)[number[there]]
    rewards = {"S": step_reward, ".": step_reward, "G": goal_reward, "X": pit_reward, "C": cliff_reward}
    reward = sum(value * (lands_on == cell) for cell, value in rewards.items())
    sides = 0.5 * (np.roll(np.eye(4), 1, 0) + np.roll(np.eye(4), -1, 0))
    happens = (1.0 - slip) * np.eye(4) + slip * sides
    return TabularMDP(
        transition=_mix(happens, transition),
        reward=_mix(happens, jnp.asarray(reward)[..., None])[..., 0],
        initial=starts,
        gamma=gamma,
        horizon=horizon,
        terminal=np.isin(kind, ["G", "X"]),
    )


def cliff_mdp(gamma: Numeric, *, horizon: int | None = None) -> TabularMDP:
    """The cliff walk: 4 × 12 cells, −1 a step, −100 and back to the start for a fall, an end at the goal.

    Actions 0 to 3 move up, right, down and left. The shortest path takes 13 steps along the cliff.

    Args:
        gamma: discount factor; the book's 1 needs a horizon here.
        horizon: number of steps of an episode, or None.

    Returns:
        The problem; the 38 cells that are not cliff are its states.

    References:
        Sutton & Barto 2018, example 6.6.

    Example:
        >>> cliff_mdp(0.99)
        TabularMDP(38 states, 1 terminal, 4 actions, gamma=0.99)
    """
    return grid_mdp(
        ["............", "............", "............", "SCCCCCCCCCCG"],
        gamma,
        step_reward=-1.0,
        goal_reward=-1.0,
        cliff_reward=-100.0,
        horizon=horizon,
    )


def bandit_mdp(reward: Any) -> TabularMDP:
    """A bandit: one state, one step.

    Args:
        reward: `[A]`, the expected reward of every arm.

    Returns:
        The problem, with horizon 1 and γ = 1, so that J = π · reward.

    Example:
        >>> bandit_mdp([0.2, 0.8])
        TabularMDP(1 state, 0 terminal, 2 actions, gamma=1.0, horizon=1)
    """
    reward = jnp.asarray(reward, jnp.result_type(float))
    if reward.ndim != 1:
        raise ValueError(f"The rewards of a bandit must have the shape [A], got {[*reward.shape]}.")
    return TabularMDP(np.ones((1, len(reward), 1)), reward[None], np.ones(1), 1.0, horizon=1)


def kakade_mdp(gamma: Numeric = 0.9, *, initial: Any = (1.0, 0.0)) -> TabularMDP:
    """Two states that pay for staying: 1 in the first, 2 in the second.

    Action 0 stays, action 1 moves to the other state and pays nothing. From a start in the first state the
    plain gradient lingers on a plateau where it has learned to stay there; the natural gradient does not.

    Args:
        gamma: discount factor.
        initial: `[2]`, the probabilities of the first state.

    Returns:
        The problem.

    References:
        Kakade 2002, A natural policy gradient, section 4 (the two-state problem).

    Example:
        >>> kakade_mdp()
        TabularMDP(2 states, 0 terminal, 2 actions, gamma=0.9)
    """
    stay, move = np.eye(2), 1.0 - np.eye(2)
    return TabularMDP(np.stack([stay, move], 1), [[1.0, 0.0], [2.0, 0.0]], initial, gamma)


def _mix(happens: Any, outcome: Any) -> Array:
    """`[S, A, K]`: what is expected of every action when `happens [A, M]` says which move follows it."""
    return jnp.einsum("am,smk->sak", jnp.asarray(happens), jnp.asarray(outcome), precision="highest")
