"""What makes programs slow, looked for in the programs: no clock runs here."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
import zoo
from programs import equations

import pgjax
from pgjax import networks

KEY = jax.random.key(0)
ROOT = pathlib.Path(__file__).parents[1]
OLD_JAX = jax.__version_info__ < (0, 11)


def operations(algorithm):
    """How often each operation stands in the program of one iteration."""
    state = jax.eval_shape(algorithm.init, KEY)
    return collections.Counter(equations(jax.make_jaxpr(algorithm.step)(KEY, state).jaxpr))


@pytest.mark.parametrize("name", ["ppo", "ppo-continuous", "trpo", "npg"])
def test_a_shuffle_sorts_nothing(name):
    assert "sort" not in operations(zoo.ZOO[name]())


def test_jaxs_own_permutation_would_be_found():
    found = set(equations(jax.make_jaxpr(lambda key: jax.random.permutation(key, 8))(KEY).jaxpr))
    assert "sort" in found


def solving_one_long_sequence():
    """The outermost part of the compiled program that solves `[100,000, 1]` after it was computed."""
    x = jax.ShapeDtypeStruct((100_000, 1), jnp.float32)
    text = jax.jit(lambda x: pgjax.reverse_recurrence(jnp.exp(x), x, 0.0)).lower(x).compile().as_text()
    return text[text.index("ENTRY") :]


def test_one_long_sequence_is_solved_by_loops_that_are_one_function_each():
    """Not by one that starts a kernel for every operation of every step: on CPUs three times as slow."""
    program = solving_one_long_sequence()
    # over the groups to what each starts with, over these, and over the groups once more
    assert program.count('xla_cpu_small_call="true"') == 3
    assert " while(" not in program


def test_one_long_sequence_that_was_computed_is_solved_in_place():
    """Its result is neither filled first nor copied at last: either took a tenth of the time."""
    arrays = r"= f32\[(?:8,12500|100000(?:,1)?)\]\S* "
    whole = re.findall(arrays + r"(?!parameter|get-tuple|bitcast\()(.*)", solving_one_long_sequence())
    assert len(whole) == 1, whole  # what was computed


STEPS = {"num_steps": 16}
CRITIC = {"critic_epochs": 2, "critic_minibatches": 4, "cg_iters": 3}
# 32 indices at least: fewer numbers of one key are drawn in another way
REPLAY = {"num_updates": 2, "num_steps": 2, "num_gradient_steps": 2}
LARGE = {"capacity": 400, "batch_size": 16}
# what may grow, and what does not
COUNTS = {
    "ppo": (STEPS | {"num_epochs": 2, "num_minibatches": 4}, {}),
    "a2c": (STEPS, {}),
    "a3c": (STEPS | {"num_updates": 4}, {}),
    "acktr": (STEPS | {"num_updates": 2}, {}),
    "npg": (STEPS | CRITIC, {}),
    "trpo": (STEPS | CRITIC | {"num_backtracks": 3}, {}),
    "actor-critic": ({"num_updates": 32}, {}),
    "reinforce-critic": ({"num_critic_steps": 3, "max_steps": 32}, {}),
    "q_learning": ({"num_updates": 32}, {}),
    "sarsa": ({"num_updates": 32}, {}),
    "dqn": (REPLAY, LARGE),
    "ddpg-continuous": (REPLAY, LARGE),
    "td3-continuous": (REPLAY, LARGE),
    "sac-discrete": (REPLAY, LARGE),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_program_does_not_grow_with_the_number_of_steps_epochs_and_gradient_steps(name):
    counts, more = COUNTS[name]
    small, large = (zoo.ZOO[name](**{k: n * x for k, x in counts.items()}, **more) for n in (1, 3))
    assert operations(large) == operations(small)


STEP_COUNT = 36  # no other loop runs as often
STEPS_OF = {"num_steps": STEP_COUNT}
# Operations of a step of the loop over time, of which some copy what the loop carries, on jax 0.10.2 and on
# 0.11.2. With `num_updates` it learns in every step, and these operations are among them.
MOST = {
    "ppo": (STEPS_OF, 29, 30),
    "ppo-continuous": (STEPS_OF, 24, 24),
    "a2c": (STEPS_OF, 29, 30),
    "a3c": (STEPS_OF, 29, 30),
    "acktr": (STEPS_OF, 28, 29),
    "npg": (STEPS_OF, 28, 29),
    "trpo": (STEPS_OF, 28, 29),
    "reinforce": ({"max_steps": STEP_COUNT, "num_chunks": 1}, 27, 28),
    "dqn": (STEPS_OF, 39, 39),
    "ddpg-continuous": (STEPS_OF, 34, 34),
    "td3-continuous": (STEPS_OF, 34, 34),
    "sac-continuous": (STEPS_OF, 36, 36),
    "sac-discrete": (STEPS_OF, 37, 38),
    "actor-critic": ({"num_updates": STEP_COUNT}, 150, 151),
    "q_learning": ({"num_updates": STEP_COUNT}, 76, 77),
    "sarsa": ({"num_updates": STEP_COUNT}, 92, 93),
}

COMPILED = """
import json, sys
import jax, optax, pgjax
from pgjax import networks
from pgjax.algorithms import ppo

sys.path.insert(0, "tests")
import programs, test_compiled, zoo


def compiled(algorithm):
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    text = jax.jit(algorithm.step).lower(jax.random.key(1), state).compile().as_text()
    return text, list(programs.compiled_loops(text))


def over(loops, steps):
    return max(loop.operations for loop in loops if loop.trips == steps)


env = pgjax.envs.make("CartPole-v1")
network = networks.Raveled(networks.ActorCritic(networks.CategoricalActor(2), networks.Critic()))
optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-4, eps=1e-5))
text, loops = compiled(ppo.make(*env, network, optimizer, num_envs=4, num_steps=128))
found = {
    "rollout": over(loops, 128),
    "update": max(loop.operations for loop in loops if "transpose(jvp(" in loop.text),
    "sorts": text.count(" sort("),
}
for name, (options, *_) in test_compiled.MOST.items():
    _, loops = compiled(zoo.ZOO[name](**options))
    found[name] = over(loops, test_compiled.STEP_COUNT)
print("RESULT" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled():
    """Operations that XLA runs in every step of a loop, on a CPU with one device."""
    if jax.default_backend() != "cpu":
        pytest.skip("the figures are those of CPUs")
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-c", COMPILED]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(re.search("RESULT(.*)", done.stdout)[1])


def test_the_compiled_update_sorts_nothing(compiled):
    assert compiled["sorts"] == 0


def test_a_step_of_a_rollout_runs_no_more_operations_than_it_did(compiled):
    """31 on jax 0.10.2, of which 7 copy what the loop carries, and 32 on 0.11.2."""
    assert 0 < compiled["rollout"] <= (31 if OLD_JAX else 32)


@pytest.mark.parametrize("name", MOST)
def test_the_loop_over_time_of_every_algorithm_runs_no_more_operations_than_it_did(compiled, name):
    assert 0 < compiled[name] <= MOST[name][1 if OLD_JAX else 2]


def test_a_gradient_step_runs_no_more_operations_than_it_did(compiled):
    """77 on jax 0.10.2 and 79 on 0.11.2, two networks of three layers; 142 where parameters are a pytree."""
    assert 0 < compiled["update"] <= (77 if OLD_JAX else 79)


def test_one_vector_of_parameters_is_one_update():
    network = networks.ActorCritic(zoo.categorical(), zoo.critic())

    def update(network):
        params = network.init(KEY, jnp.zeros(4))
        optimizer = zoo.adam()
        program = jax.make_jaxpr(lambda g, s, p: optax.apply_updates(p, optimizer.update(g, s, p)[0]))(
            params, optimizer.init(params), params
        )
        return len(list(equations(program.jaxpr)))

    assert 4 * update(networks.Raveled(network)) < update(network)


def test_a_rollout_hands_its_keys_and_parameters_in_from_outside():
    """Random bits, and parameters cut out of one vector, are made once, before the loop."""
    network = networks.Raveled(zoo.categorical())
    params = network.init(KEY, jnp.zeros(4))
    carry = pgjax.reset_envs(KEY, *zoo.CARTPOLE, 2)

    def run(params, key):
        def policy(key, obs):
            return network.apply(params, obs).sample_and_log_prob(key)

        return pgjax.rollout(key, carry, policy, *zoo.CARTPOLE, 8)

    program = jax.make_jaxpr(run)(params, KEY)
    loops = [eqn for eqn in program.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == 8]
    inside = [set(equations(loop.params["jaxpr"].jaxpr)) for loop in loops]
    assert any("dot_general" in names for names in inside)
    assert not any({"split", "random_bits", "threefry2x32"} & names for names in inside)
