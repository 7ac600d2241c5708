"""Random numbers drawn together are the numbers of `jax.random`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import equations, walk
from zoo import ZOO

from pgjax import networks
from pgjax._ahead import scan_ahead
from pgjax._draws import draw_together
from pgjax.training import init_progress


def draw_much(key, start):
    """Draws of draws, of one key and of many, nested and not, and what needs none."""
    first, *others = jax.random.split(key, 4)
    noise = jax.jit(lambda k: jax.random.normal(k, (3, 2)))(first)
    each = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 7), (2,)))(jnp.stack(others))
    row = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(first, i)))(jnp.arange(5))
    words = {bits: jax.random.bits(others[0], (3,), bits) for bits in (jnp.uint8, jnp.uint16, jnp.uint32)}
    order = jax.random.permutation(others[1], 6)
    return {
        "noise": noise * start[0],
        "each": each,
        "row": row,
        "words": list(words.values()),
        "order": order,
        "none": jax.random.normal(first, (0, 3)),
        "keys": jax.random.key_data(others[2]),
        "start": start + 1,
    }


def generators(f, *inputs):
    """How many random generators a program has, those of nested programs included."""
    names = equations(jax.make_jaxpr(f)(*inputs).jaxpr)
    return sum(name in ("threefry2x32", "random_bits", "random_split", "random_fold_in") for name in names)


def assert_same(f, *inputs):
    found, expected = jax.jit(draw_together(f))(*inputs), jax.jit(f)(*inputs)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_to_the_bit_and_in_order():
    assert_same(draw_much, jax.random.key(5), jnp.arange(2.0))


def test_keys_of_the_older_kind():
    assert_same(draw_much, jax.random.PRNGKey(5), jnp.arange(2.0))


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_other_generators_draw_as_before(implementation):
    assert_same(draw_much, jax.random.key(5, impl=implementation), jnp.arange(2.0))


def test_counts_of_the_older_kind():
    with jax.threefry_partitionable(False):
        assert_same(draw_much, jax.random.key(5), jnp.arange(2.0))


def test_numbers_of_64_bits():
    with jax.enable_x64(True):
        assert_same(lambda k: (jax.random.normal(k, (4,)), jax.random.bits(k, (3,))), jax.random.key(1))


def test_under_a_map_over_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.vmap(lambda k: draw_together(draw_much)(k, jnp.ones(2)))(keys)
    expected = jax.vmap(lambda k: draw_much(k, jnp.ones(2)))(keys)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_network_has_two_generators():
    """One for the keys of its layers, one for all their numbers."""
    network = networks.ActorCritic(networks.CategoricalActor(2), networks.Critic())

    def init(key):
        return network.init(key, jnp.zeros(4))

    assert generators(init, jax.random.key(0)) >= 12
    assert generators(draw_together(init), jax.random.key(0)) == 2
    assert_same(init, jax.random.key(0))


def test_a_training_starts_with_three_generators():
    """For the keys, for the keys made of those, and for all numbers; the bare algorithm has one a call."""
    algorithm = ZOO["ppo"]()
    assert generators(algorithm.init, jax.random.key(0)) >= 12
    assert generators(lambda key: init_progress(key, algorithm), jax.random.key(0)) == 3


@pytest.mark.parametrize("number", [9, [9, 0, 2**32 - 1]])
def test_a_single_draw_counts_from_what_is_folded_in(number):
    """With no other draw in its row."""

    def fold(key, number):
        return jax.random.key_data(jnp.vectorize(jax.random.fold_in)(key, number))

    given = jax.random.key(1), jnp.asarray(number, jnp.uint32)
    assert generators(draw_together(fold), *given) == 1
    assert_same(fold, *given)


@pytest.mark.parametrize("size", [1, 10, 31, 32, 40])
def test_a_row_of_keys_gives_what_each_key_gives(size):
    """Few numbers of each key come from one vector, which XLA does not unroll; many as they did."""

    def body(carry, key):
        first, second = jax.random.split(key)
        return carry, (jax.random.bits(first, (size,)), jax.random.key_data(jax.random.fold_in(second, 3)))

    keys = jax.random.split(jax.random.key(0), 5)

    def ahead(keys):
        return scan_ahead(body, 0, keys)[1]

    expected = [jax.lax.map(lambda key, i=i: body(0, key)[1][i], keys) for i in (0, 1)]
    for found, wanted in zip(jax.jit(ahead)(keys), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    program = jax.make_jaxpr(ahead)(keys).jaxpr
    shapes = {v.aval.shape for e in walk(program) if e.primitive.name == "threefry2x32" for v in e.outvars}
    # the two keys that each is split into, and the bits
    assert shapes == ({(10,), (5 * size,)} if size < 32 else {(10,)})


def test_side_effects_stay_where_they_are():
    seen = []

    def spoken(key):
        jax.debug.callback(lambda x: seen.append(float(x)), jax.random.uniform(key), ordered=True)
        jax.debug.callback(lambda x: seen.append(float(x)), 2.0, ordered=True)
        return jax.random.uniform(key)

    value = jax.jit(draw_together(spoken))(jax.random.key(0))
    jax.effects_barrier()
    assert seen == [pytest.approx(float(value)), 2.0]
