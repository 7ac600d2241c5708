"""What the library computes, a second time: NumPy loops in float64 that follow the definitions.

Nothing here imports the library. Functions take one stream of steps, `[T]`; `per_column` maps them.
"""

import itertools
from typing import NamedTuple

import numpy as np


def recurrence(x, decay, init):
    """y_t = x_t + decay_t y_{t+1}."""
    x = np.asarray(x, np.float64)
    decay = np.asarray(decay, np.float64)
    y, out = np.broadcast_to(np.asarray(init, np.float64), x.shape[1:]), np.empty_like(x)
    for t in reversed(range(len(x))):
        y = x[t] + decay[t] * y
        out[t] = y
    return out


def per_column(function, *arrays, **options):
    """`function` of `[T]` arrays, over all columns of `[T, ...]` arrays of the same shape."""
    shape = np.shape(arrays[0])
    columns = [np.reshape(a, (shape[0], -1)) for a in arrays]
    out = [function(*(c[:, i] for c in columns), **options) for i in range(columns[0].shape[1])]
    return np.stack(out, 1).reshape(shape)


def steps_left(terminated, truncated, t):
    """Number of rewards from step t on, to the end of its episode or of the window."""
    ends = [k for k in range(t, len(terminated)) if terminated[k] or truncated[k]]
    return (ends[0] if ends else len(terminated) - 1) - t + 1


def reward_to_go(reward, terminated, truncated, *, gamma):
    """Σ_k γ^k r_{t+k} to the end."""
    return np.array(
        [
            sum(gamma**k * reward[t + k] for k in range(steps_left(terminated, truncated, t)))
            for t in range(len(reward))
        ]
    )


def n_step_from(t, reward, next_value, terminated, truncated, *, gamma, n):
    """n rewards from step t on, fewer where an end comes first, then the critic unless the task ended."""
    n = min(n, steps_left(terminated, truncated, t))
    rewards = sum(gamma**k * reward[t + k] for k in range(n))
    return rewards if terminated[t + n - 1] else rewards + gamma**n * next_value[t + n - 1]


def n_step_return(reward, next_value, terminated, truncated, *, gamma, n):
    return np.array(
        [
            n_step_from(t, reward, next_value, terminated, truncated, gamma=gamma, n=n)
            for t in range(len(reward))
        ]
    )


def lambda_return(reward, next_value, terminated, truncated, *, gamma, lambda_):
    """(1 − λ) Σ_{n<L} λ^{n−1} G^(n) + λ^{L−1} G^(L), with L the steps left."""
    out = []
    for t in range(len(reward)):
        left = steps_left(terminated, truncated, t)
        g = [
            n_step_from(t, reward, next_value, terminated, truncated, gamma=gamma, n=n)
            for n in range(1, left + 1)
        ]
        out.append(
            (1 - lambda_) * sum(lambda_**k * g[k] for k in range(left - 1)) + lambda_ ** (left - 1) * g[-1]
        )
    return np.array(out)


def td_error(reward, value, next_value, terminated, *, gamma):
    return np.array(
        [
            r - v if end else r + gamma * after - v
            for r, v, after, end in zip(reward, value, next_value, terminated, strict=True)
        ]
    )


def gae(reward, value, next_value, terminated, truncated, *, gamma, lambda_):
    """Σ_k (γλ)^k δ_{t+k} to the end."""
    delta = td_error(reward, value, next_value, terminated, gamma=gamma)
    return reward_to_go(delta, terminated, truncated, gamma=gamma * lambda_)


def trace_sum(error, coefficient, terminated, truncated, *, gamma):
    """Σ_k γ^k (Π_{0 < j ≤ k} coefficient_{t+j}) error_{t+k}, to the end of the episode or of the window."""
    return np.array(
        [
            sum(
                gamma**k * np.prod(coefficient[t + 1 : t + k + 1]) * error[t + k]
                for k in range(steps_left(terminated, truncated, t))
            )
            for t in range(len(error))
        ]
    )


def vtrace(ratio, reward, value, next_value, terminated, truncated, *, gamma, lambda_, rho_clip, c_clip):
    """Espeholt et al. 2018, eq. 1: v = V + Σ_k γ^k (Π_{j < k} c_{t+j}) ρ_{t+k} δ_{t+k}; and the advantage."""
    rho, c = np.minimum(ratio, rho_clip), lambda_ * np.minimum(ratio, c_clip)
    error = rho * td_error(reward, value, next_value, terminated, gamma=gamma)
    shifted = np.append(1.0, c[:-1])  # the trace leaves a step with that step's c
    target = value + trace_sum(error, shifted, terminated, truncated, gamma=gamma)
    advantage = []
    for t in range(len(reward)):
        if terminated[t]:
            after = 0.0
        elif truncated[t] or t == len(reward) - 1:
            after = next_value[t]
        else:
            after = (1 - lambda_) * next_value[t] + lambda_ * target[t + 1]
        advantage.append(rho[t] * (reward[t] + gamma * after - value[t]))
    return target, np.array(advantage)


def retrace(ratio, reward, action_value, next_state_value, terminated, truncated, *, gamma, lambda_):
    """Munos et al. 2016, eq. 3: G = Q + Σ_k γ^k (Π_{0 < j ≤ k} c_{t+j}) δ_{t+k}."""
    error = td_error(reward, action_value, next_state_value, terminated, gamma=gamma)
    c = lambda_ * np.minimum(ratio, 1.0)
    return action_value + trace_sum(error, c, terminated, truncated, gamma=gamma)


def episode_time(terminated, truncated, *, start=0):
    """Steps taken before this one in the same episode."""
    out, now = [], start
    for end in np.logical_or(terminated, truncated):
        out.append(now)
        now = 0 if end else now + 1
    return np.array(out)


def return_so_far(reward, terminated, truncated, *, gamma, start=0.0):
    """F_t = r_t + γ F_{t−1}, anew after an end."""
    out, before = [], start
    for r, end in zip(reward, np.logical_or(terminated, truncated), strict=True):
        out.append(r + gamma * before)
        before = 0.0 if end else out[-1]
    return np.array(out)


class Trajectories(NamedTuple):
    """Every trajectory of a tiny problem: arrays `[T, M]`, padded with zeros, and probabilities `[M]`."""

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    valid: np.ndarray
    dynamics: np.ndarray  # the part of the probability that does not depend on the policy
    probability: np.ndarray


START = np.array([0.5, 0.5])
NEXT = np.array([[[0.25, 0.75], [0.75, 0.25]], [[0.5, 0.5], [0.25, 0.75]]])  # [s, a, s']
REWARD = np.array([[1.0, -0.5], [2.0, 3.0]])  # [s, a]
POLICY = np.array([[0.25, 0.75], [0.5, 0.5]])  # [s, a]; θ = log POLICY


def enumerate_trajectories(horizon, *, early_end):
    """All trajectories from 2 states and 2 actions under POLICY.

    The horizon is part of the task: it terminates. With `early_end`, action 1 in state 1 terminates too.
    """
    rows = []
    for path in itertools.product(range(2), repeat=2 * horizon):
        states, actions = path[:horizon], path[horizon:]
        dynamics, policy, length = START[states[0]], 1.0, horizon
        for t in range(horizon):
            policy *= POLICY[states[t], actions[t]]
            if early_end and states[t] == actions[t] == 1:
                length = t + 1
                break
            if t + 1 < horizon:
                dynamics *= NEXT[states[t], actions[t], states[t + 1]]
        if any(states[length:]) or any(actions[length:]):
            continue  # one padding only
        valid = np.arange(horizon) < length
        rewards = np.where(valid, REWARD[list(states), list(actions)], 0.0)
        end = np.arange(horizon) == length - 1
        rows.append((states, actions, rewards, end, valid, dynamics, dynamics * policy))
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    return Trajectories(*(c.T for c in columns))


def softmax_scores(trajectories):
    """∇_θ log π(a_t | s_t) of the tabular softmax at θ = log POLICY, `[T, M, 2, 2]`; 0 where not valid."""
    state, action = np.eye(2)[trajectories.obs], np.eye(2)[trajectories.action]
    score = state[..., :, None] * (action - POLICY[trajectories.obs])[..., None, :]
    return score * trajectories.valid[..., None, None]


def finite_difference(function, x, step=1e-6):
    """Central differences of a function `R -> array`."""
    return (np.asarray(function(x + step)) - np.asarray(function(x - step))) / (2 * step)
