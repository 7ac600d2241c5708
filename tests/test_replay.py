import collections
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import pgjax
from pgjax.types import Transition

CAPACITY = 5


def transitions(ids, shape=None):
    """Transitions in which everything tells the id."""
    ids = np.asarray(ids).reshape(shape or (-1,))
    return Transition(
        obs={"image": (ids[..., None] + np.arange(3)).astype(np.uint8), "x": ids.astype(np.float32)},
        action=ids.astype(np.int32),
        log_prob=-ids.astype(np.float32),
        reward=10.0 * ids.astype(np.float32),
        terminated=ids % 2 == 1,
        truncated=ids % 3 == 1,
        next_obs={"image": (ids[..., None] + np.arange(3) + 1).astype(np.uint8), "x": ids + np.float32(1)},
    )


EXAMPLE = jax.tree.map(lambda x: x[0], transitions([0]))


def contents(replay):
    """The ids that are stored, oldest first."""
    size, position = int(replay.size), int(replay.position)
    ids = np.asarray(replay.storage.action)
    return [int(ids[(position - size + i) % len(ids)]) for i in range(size)]


# against a deque


@given(st.lists(st.sampled_from([0, 1, 2, 5, 7, 12]), max_size=6))
def test_a_buffer_holds_what_a_deque_holds(sizes):
    replay, model, added = pgjax.init_replay(EXAMPLE, CAPACITY), collections.deque(maxlen=CAPACITY), 0
    for size in sizes:
        ids = np.arange(added, added + size)
        replay, added = pgjax.add_to_replay(replay, transitions(ids)), added + size
        model.extend(ids.tolist())
        assert contents(replay) == list(model)
    stored = jax.tree.map(lambda x: np.asarray(x)[: len(model)], replay.storage)
    chex.assert_trees_all_equal(stored, transitions(stored.action))
    if model:
        batch = pgjax.sample_replay(jax.random.key(added), replay, 7)
        chex.assert_trees_all_equal(batch, transitions(batch.action))
        assert set(np.asarray(batch.action).tolist()) <= set(model)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
def test_samples_come_with_any_number_of_batch_axes_and_go_in_earlier_steps_first(shape):
    num = int(np.prod(shape))
    batch = jax.tree.map(lambda x: np.reshape(x, (*shape, *x.shape[1:])), transitions(np.arange(num)))
    replay = pgjax.add_to_replay(pgjax.init_replay(EXAMPLE, CAPACITY), batch)
    assert contents(replay) == list(range(num))


def test_types_are_those_of_the_example():
    replay = pgjax.init_replay({"image": jnp.zeros(2, jnp.uint8), "x": jnp.zeros((), jnp.bfloat16)}, 3)
    batch = {"image": jnp.full((2, 2), 255, jnp.uint8), "x": jnp.array([0.5, 1.5])}
    sample = pgjax.sample_replay(jax.random.key(0), pgjax.add_to_replay(replay, batch), 4)
    assert sample["image"].dtype == jnp.uint8
    assert sample["x"].dtype == jnp.bfloat16
    assert (np.asarray(sample["image"]) == 255).all()
    assert set(np.asarray(sample["x"], float)) <= {0.5, 1.5}


def test_a_time_limit_comes_back_as_a_time_limit():
    """No reference-page mistake 9: truncation stored as termination."""
    cut = transitions([4])  # truncated, not terminated
    replay = pgjax.add_to_replay(pgjax.init_replay(EXAMPLE, CAPACITY), cut)
    sample = pgjax.sample_replay(jax.random.key(0), replay, 3)
    assert np.asarray(sample.truncated).all()
    assert not np.asarray(sample.terminated).any()


# sampling


@pytest.mark.parametrize("added", [3, 8, 12])
def test_every_stored_sample_is_drawn_equally_often(added):
    """χ² of 8,000 draws, p above 1e-4: one key in 10,000 would fail, and these are fixed."""
    replay = pgjax.add_to_replay(pgjax.init_replay(EXAMPLE, 8), transitions(np.arange(added)))
    drawn = np.asarray(pgjax.sample_replay(jax.random.key(added), replay, 8_000).action)
    stored = np.arange(max(added - 8, 0), added)
    counts = [(drawn == i).sum() for i in stored]
    assert sum(counts) == len(drawn)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_draws_are_independent_with_replacement_and_depend_on_the_key_alone():
    """Pairs of neighbouring draws are uniform too: χ² over 25 pairs, p above 1e-4, key fixed."""
    replay = pgjax.add_to_replay(pgjax.init_replay(EXAMPLE, CAPACITY), transitions(np.arange(5)))
    drawn = np.asarray(pgjax.sample_replay(jax.random.key(1), replay, 8_000).action)
    pairs = np.bincount(5 * drawn[::2] + drawn[1::2], minlength=25)
    assert stats.chisquare(pairs).pvalue > 1e-4
    again = pgjax.sample_replay(jax.random.key(1), replay, 8_000).action
    np.testing.assert_array_equal(again, drawn)


def test_an_empty_buffer_gives_zeros():
    sample = pgjax.sample_replay(jax.random.key(0), pgjax.init_replay(EXAMPLE, CAPACITY), 2)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(sample))


# memory


BIG = 50_000
WIDE = Transition(*jnp.zeros((7, 4)))._replace(terminated=jnp.zeros((), bool), action=jnp.zeros((), int))


def new_samples(key, x):
    batch = Transition(*jax.random.normal(key, (7, 3, 4)) + x)
    return batch._replace(terminated=batch.terminated[:, 0] > 0, action=batch.action[:, 0].astype(int))


def learn(key, replay, x):
    """Stands for a few gradient steps."""

    def step(x, key):
        batch = pgjax.sample_replay(key, replay, 8)
        return jnp.tanh(x + batch.obs.mean() + batch.action.mean()), None

    return jax.lax.scan(step, x, jax.random.split(key, 2))[0]


def write_then_learn(loop, key):
    act_key, learn_key = jax.random.split(key)
    replay = pgjax.add_to_replay(loop[0], new_samples(act_key, loop[1]))
    return (replay, learn(learn_key, replay, loop[1])), None


def learn_then_act(loop, key):
    act_key, learn_key = jax.random.split(key)
    x = learn(learn_key, *loop)
    return (pgjax.add_to_replay(loop[0], new_samples(act_key, x)), x), None


@pytest.mark.parametrize(
    ("step", "seeds"), [(write_then_learn, 0), (write_then_learn, 2), (learn_then_act, 0)]
)
def test_a_compiled_loop_holds_the_buffer_once_and_never_copies_it(step, seeds):
    def run(replay, key):
        return jax.lax.scan(step, (replay, jnp.zeros(())), jax.random.split(key, 1000))[0]

    replay, key = jax.eval_shape(lambda: pgjax.init_replay(WIDE, BIG)), jax.random.key(0)
    if seeds:
        run, key = jax.vmap(run), jax.random.split(key, seeds)
        replay = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), replay)
    program = jax.jit(run, donate_argnums=0).lower(replay, key).compile()
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(replay))
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < num_bytes / 100
    assert memory.alias_size_in_bytes == num_bytes  # what comes out lies where what went in lay
    copies = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", program.as_text())
    assert not [shape for shape in copies if str(BIG) in shape.split(",")]


def test_work_does_not_grow_with_the_capacity():
    """Operations as the compiler counts them, and memory beside the buffer."""

    def cost(capacity):
        replay = jax.eval_shape(lambda: pgjax.init_replay(WIDE, capacity))
        step = jax.jit(lambda *loop: write_then_learn(loop[:2], loop[2])[0], donate_argnums=0)
        program = step.lower(replay, jnp.zeros(()), jax.random.key(0)).compile()
        return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes

    assert cost(BIG) == cost(10 * BIG)


def test_a_mapped_buffer_is_as_many_buffers():
    ids = np.arange(14).reshape(2, 7)
    batches = jax.tree.map(lambda *x: np.stack(x), *(transitions(i) for i in ids))
    empty = jax.tree.map(lambda x: jnp.stack([x, x]), pgjax.init_replay(EXAMPLE, CAPACITY))
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.vmap(pgjax.add_to_replay)(empty, batches)
    samples = jax.vmap(lambda k, r: pgjax.sample_replay(k, r, 4))(keys, together)
    for i in range(2):
        alone = pgjax.add_to_replay(pgjax.init_replay(EXAMPLE, CAPACITY), transitions(ids[i]))
        chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], together), alone)
        sample = pgjax.sample_replay(keys[i], alone, 4)
        chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], samples), sample)


# n steps


@st.composite
def rollouts(draw):
    """Transitions `[T, 2]` with any ends, and rewards of no pattern."""
    length = draw(st.sampled_from([1, 6]))
    ends = np.array(draw(st.lists(st.sampled_from(range(4)), min_size=2 * length, max_size=2 * length)))
    ends = ends.reshape(length, 2)
    traj = transitions(np.arange(2 * length), (length, 2))
    reward = np.random.default_rng(draw(st.integers(0, 10_000))).normal(size=(length, 2))
    return traj._replace(reward=reward, terminated=ends % 2 == 1, truncated=ends >= 2)


@given(rollouts(), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([1, 2, 3, 8]))
def test_n_step_transitions_equal_a_loop(x64, traj, gamma, n):
    transition, discount = pgjax.n_step_transitions(traj, gamma=gamma, n=n)
    length = len(traj.reward)
    for t in range(length):
        for i in range(2):
            total, last = 0.0, t
            for k in range(n):
                last = t + k
                total += gamma**k * traj.reward[last, i]
                if traj.terminated[last, i] or traj.truncated[last, i] or last == length - 1:
                    break
            np.testing.assert_allclose(transition.reward[t, i], total, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(discount[t, i], gamma ** (last - t + 1), rtol=1e-12)
            for name in ("next_obs", "terminated", "truncated"):
                here, there = (getattr(x, name) for x in (transition, traj))
                chex.assert_trees_all_equal(
                    jax.tree.map(lambda x, t=t, i=i: x[t, i], here),
                    jax.tree.map(lambda x, last=last, i=i: x[last, i], there),
                )
    for name in ("obs", "action", "log_prob"):
        chex.assert_trees_all_equal(getattr(transition, name), getattr(traj, name))


@given(rollouts(), st.sampled_from([1, 3, 8]))
def test_the_one_step_target_of_n_step_transitions_is_the_n_step_return(x64, traj, n):
    def value(obs):
        return np.sin(obs["x"].astype(float))

    transition, discount = pgjax.n_step_transitions(traj, gamma=0.9, n=n)
    target = transition.reward + discount * np.where(
        transition.terminated, 0.0, value(jax.tree.map(np.asarray, transition.next_obs))
    )
    expected = pgjax.n_step_return(
        traj.reward, value(traj.next_obs), traj.terminated, traj.truncated, gamma=0.9, n=n
    )
    np.testing.assert_allclose(target, expected, rtol=1e-9, atol=1e-11)


@given(rollouts(), st.sampled_from([0.5, 1.0]))
def test_one_step_transitions_are_the_transitions(x64, traj, gamma):
    transition, discount = pgjax.n_step_transitions(traj, gamma=gamma, n=1)
    chex.assert_trees_all_equal(transition, jax.tree.map(jnp.asarray, traj))
    np.testing.assert_array_equal(discount, np.full_like(traj.reward, gamma))


def test_overlapping_windows_cut_no_transition_short(x64, rng):
    """With the last n − 1 steps kept, the first rows of every window are those of one long stream."""
    n, step = 3, 4
    traj = transitions(np.arange(24), (12, 2))
    ends = rng.integers(0, 4, size=(12, 2)) * (rng.random((12, 2)) < 0.3)
    traj = traj._replace(reward=rng.normal(size=(12, 2)), terminated=ends % 2 == 1, truncated=ends >= 2)
    whole = pgjax.n_step_transitions(traj, gamma=0.9, n=n)
    for start in (0, step):
        window = jax.tree.map(lambda x, s=start: x[s : s + step + n - 1], traj)
        part = pgjax.n_step_transitions(window, gamma=0.9, n=n)
        head, rows = (jax.tree.map(lambda x, s=s: x[s : s + step], y) for y, s in ((part, 0), (whole, start)))
        chex.assert_trees_all_close(head, rows, rtol=1e-12)


def test_discounts_and_transitions_are_stored_together():
    traj = transitions(np.arange(6), (3, 2))
    pair = pgjax.n_step_transitions(traj, gamma=0.9, n=2)
    replay = pgjax.init_replay((EXAMPLE, jnp.zeros(())), 10)
    transition, discount = pgjax.sample_replay(jax.random.key(0), pgjax.add_to_replay(replay, pair), 4)
    assert transition.obs["image"].dtype == jnp.uint8
    assert discount.shape == (4,)


# errors


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_buffer_without_room_is_an_error(capacity):
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        pgjax.init_replay(EXAMPLE, capacity)


def test_floats_do_not_become_integers_unnoticed():
    replay = pgjax.init_replay(jnp.zeros(2, jnp.uint8), 3)
    with pytest.raises(ValueError, match="float32 cannot be stored as uint8"):
        pgjax.add_to_replay(replay, jnp.full((1, 2), 0.5))


@pytest.mark.parametrize(
    "batch",
    [
        {"a": np.zeros((2, 3)), "b": np.zeros(3)},
        {"a": np.zeros((2, 4)), "b": np.zeros(2)},
        {"a": np.zeros(3)},
    ],
    ids=["unequal batches", "another shape", "another structure"],
)
def test_what_does_not_look_like_the_example_is_an_error(batch):
    replay = pgjax.init_replay({"a": jnp.zeros(3), "b": jnp.zeros(())}, 3)
    with pytest.raises((AssertionError, ValueError)):
        pgjax.add_to_replay(replay, batch)


def test_fewer_than_one_step_is_an_error():
    with pytest.raises(ValueError, match="n must be at least 1"):
        pgjax.n_step_transitions(transitions([1, 2]), gamma=0.9, n=0)
