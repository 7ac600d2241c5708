"""The scan that computes ahead: the same values as `lax.scan`, with less in its loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from programs import equations

import pgjax
from pgjax import networks
from pgjax._ahead import scan_ahead
from pgjax.rollouts import reset_envs, rollout

WEIGHT = jnp.array([0.3, -0.2])


def noisy(carry, x):
    """Needs the carry, the row, both, and neither; with a nested jit and a nested scan."""
    key, scale = x
    noise = jax.jit(lambda k: jax.random.normal(k, (2,)))(key)
    drift = lax.scan(lambda c, w: (c + w, c), 0.0, noise)[1]
    carry = jax.nn.relu(carry * 0.9) + WEIGHT * noise + scale * jnp.arange(2.0)
    return carry, {"carry": carry, "drift": drift, "noise": noise, "constant": jnp.ones(3), "x": scale}


def rows(num_steps):
    return jax.random.split(jax.random.key(0), num_steps), jnp.linspace(0.0, 1.0, num_steps)


def loop_body(function, *inputs):
    """Names of the primitives inside a program's last scan."""
    program = jax.make_jaxpr(function)(*inputs)
    body = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"][-1].params["jaxpr"]
    return list(equations(getattr(body, "jaxpr", body)))


@pytest.mark.parametrize("num_steps", [1, 5])
def test_it_is_a_scan(num_steps):
    carry, ys = scan_ahead(noisy, jnp.ones(2), rows(num_steps))
    expected_carry, expected = lax.scan(noisy, jnp.ones(2), rows(num_steps))
    assert ys.keys() == expected.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (carry, ys), (expected_carry, expected)
    )


def test_what_no_step_changes_leaves_the_loop_whether_or_not_the_rest_may_wait():
    def body(carry, x, size):
        weight = jnp.sin(scale) * jnp.arange(1.0, 3.0)  # of what is closed over, and of a literal
        return carry * weight, jnp.ones(size) @ (x * jnp.ones(size)) + carry.sum()

    scale, xs = jnp.array(0.5), jnp.arange(4.0)
    for size in (2, 100_000):  # the larger does not wait outside
        run = functools.partial(scan_ahead, functools.partial(body, size=size))
        found, expected = run(jnp.ones(2), xs), lax.scan(functools.partial(body, size=size), jnp.ones(2), xs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
        assert "sin" not in loop_body(run, jnp.ones(2), xs)
    plain = functools.partial(lax.scan, functools.partial(body, size=2))
    assert "sin" in loop_body(plain, jnp.ones(2), xs)


def test_random_bits_leave_the_loop():
    inside = loop_body(lambda c, x: lax.scan(noisy, c, x), jnp.ones(2), rows(5))
    ahead = loop_body(lambda c, x: scan_ahead(noisy, c, x), jnp.ones(2), rows(5))
    assert any("random" in name for name in inside)
    assert not any("random" in name or name == "erf_inv" for name in ahead)
    assert "mul" in ahead


@pytest.mark.last_bits
def test_random_numbers_of_many_keys_are_those_of_each_key():
    """Drawn ahead for all steps, environments and seeds in one row."""

    def body(carry, keys):
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[1], (2,)))(keys)
        return carry + noise, noise

    def run(scan, keys):
        return scan(body, jnp.zeros((3, 2)), keys)

    keys = jax.random.split(jax.random.key(0), (5, 4, 3))  # seeds, steps, environments
    for over_seeds in (lambda f, keys: f(keys[0]), lambda f, keys: jax.vmap(f)(keys)):
        expected = over_seeds(functools.partial(run, lax.scan), keys)
        got = over_seeds(functools.partial(run, scan_ahead), keys)
        for e, g in zip(expected, got, strict=True):
            np.testing.assert_array_equal(g, e)


def test_it_can_be_mapped_and_differentiated():
    def total(start, weight, scan):
        def body(carry, x):
            carry = carry * weight + jax.random.normal(x[0], (2,))
            return carry, carry**2

        return scan(body, start, rows(4))[1].sum()

    starts = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    gradients = jax.grad(total, (0, 1))
    expected = jax.vmap(lambda s: gradients(s, 0.5, lax.scan))(starts)
    found = jax.vmap(lambda s: gradients(s, 0.5, scan_ahead))(starts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize(("size", "stays"), [(100, False), (10_000, True)])
def test_what_takes_much_memory_and_more_than_the_outputs_stays_in_the_loop(size, stays):
    def body(carry, key):
        return carry + jnp.sort(jax.random.normal(key, (size,)) + carry)[0], None

    key = jax.random.split(jax.random.key(0), 3)
    names = loop_body(lambda c, x: scan_ahead(body, c, x), 0.0, key)
    assert any("random" in name for name in names) == stays


def test_what_an_inner_scan_computes_ahead_leaves_the_outer_loop_too():
    def outer(carry, key):
        return scan_ahead(noisy, carry, (jax.random.split(key, 2), jnp.ones(2)))[0], None

    keys = jax.random.split(jax.random.key(0), 3)
    assert not any(
        "random" in name for name in loop_body(lambda c, x: scan_ahead(outer, c, x), jnp.ones(2), keys)
    )
    carry, _ = scan_ahead(outer, jnp.ones(2), keys)
    np.testing.assert_allclose(carry, lax.scan(outer, jnp.ones(2), keys)[0], rtol=1e-6)


def test_a_row_that_nothing_needs_still_counts_its_steps():
    carry, ys = scan_ahead(lambda c, x: (c + 1, c), 0, jnp.zeros((4, 2)))
    assert carry == 4
    np.testing.assert_array_equal(ys, [0, 1, 2, 3])


def test_side_effects_stay_where_they_are():
    seen = []

    def body(carry, x):
        jax.debug.callback(lambda v: seen.append(float(v)), x * 2.0, ordered=True)
        return carry + x, carry

    carry, _ = jax.jit(lambda: scan_ahead(body, 0.0, jnp.arange(3.0)))()
    jax.block_until_ready(carry)
    jax.effects_barrier()
    assert seen == [0.0, 2.0, 4.0]


def test_the_loop_of_a_rollout_draws_no_random_numbers():
    env, env_params = pgjax.envs.make("CartPole-v1")
    actor = networks.CategoricalActor(2)
    params = actor.init(jax.random.key(0), jnp.zeros(4))
    carry = reset_envs(jax.random.key(1), env, env_params, 3)

    def policy(key, obs):
        return actor.apply(params, obs).sample_and_log_prob(key)

    names = set()
    program = jax.make_jaxpr(lambda key: rollout(key, carry, policy, env, env_params, 4))(jax.random.key(2))
    for eqn in program.eqns:
        if eqn.primitive.name == "scan":
            names.update(equations(getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])))
    assert "dot_general" in names
    assert not any("random" in name or "threefry" in name for name in names)
