"""The scaling benchmark: what it reads in compiled programs, and what it makes of that on paper."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A sum before the loop over iterations. In that loop a gather, and a loop of 4 whose condition sums and which
# holds a loop of 5 with a sum of two arrays. An exchange is called once and stands in both branches of a
# conditional.
TEXT = """HloModule jit_program, is_scheduled=true, entry_computation_layout={(f32[3]{0})->f32[3]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%exchange (x: bf16[7]) -> bf16[7] {
  %x = bf16[7]{0} parameter(0)
  ROOT %moved = bf16[7]{0} collective-permute(%x), source_target_pairs={{0,1}}, metadata={op_name="f/ppermute"}
}

%inner_body (i: (s32[], f32[2,3], f32[])) -> (s32[], f32[2,3], f32[]) {
  %i = (s32[], f32[2,3]{1,0}, /*index=2*/f32[]) parameter(0)
  %g = (f32[2,3]{1,0}, f32[]) all-reduce(%m, %n), channel_id=1, to_apply=%add, metadata={op_name="f/(dot:sum)"}
  %used = f32[] fusion(%g, %all-reduce.1), kind=kLoop, calls=%add
  ROOT %out = (s32[], f32[2,3]{1,0}, f32[]) tuple(%k, %g, %used)
}

%outer_body (o: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %loop.5 = (s32[], f32[2,3]{1,0}, /*index=2*/f32[]) while(%t), condition=%short, body=%inner_body, metadata={op_name="f/while"}, backend_config={"known_init_step":{"init":"0","step":"1"},"known_trip_count":{"n":"5"}}
  ROOT %out = (s32[], f32[2,3]{1,0}) tuple(%k, %g)
}

%short (c: (s32[])) -> pred[] {
  ROOT %less = pred[] compare(%k, %n), direction=LT
}

%asks (c: (s32[])) -> pred[] {
  %asked = pred[9]{0} all-reduce(%p), to_apply=%add, metadata={op_name="f/any"}
  ROOT %less = pred[] compare(%k, %n), direction=LT
}

%iteration (o: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %loop.4 = (s32[], f32[2,3]{1,0}) while(%t), condition=%asks, body=%outer_body, backend_config={"known_trip_count":{"n":"4"}}
  %all = s8[16,2]{1,0} all-gather(%part), dimensions={0}, metadata={op_name="f/gather"}
  %one = bf16[7]{0} call(%y), to_apply=%exchange
  %two = bf16[7]{0} conditional(%p, %y, %y), branch_computations={%exchange, %exchange}
  ROOT %out = (s32[], f32[2,3]{1,0}) tuple(%k, %g)
}

ENTRY %main (p: f32[3]) -> f32[3] {
  %before = f32[3]{0} all-reduce(%p), to_apply=%add, metadata={op_name="f/before"}
  ROOT %loop = (s32[], f32[2,3]{1,0}) while(%t), condition=%short, body=%iteration, metadata={op_name="f/while"}
}
"""  # noqa: E501


class TestCollectives:
    def test_each_is_counted_through_the_loops_around_it(self, scaling):
        assert set(scaling.collectives(TEXT)) == {
            ("all-reduce", 1, 12, 1, "call", "f/before"),
            ("all-reduce", 2, 4 * 6 + 4, 4 * 5, "iteration", "f/(dot:sum)"),
            ("all-reduce", 1, 9, 4 + 1, "iteration", "f/any"),  # a condition is asked once more
            ("all-gather", 1, 32, 1, "iteration", "f/gather"),
            ("collective-permute", 1, 14, 1 + 2, "iteration", "f/ppermute"),
        }
        assert len(scaling.collectives(TEXT)) == 5

    def test_totals_are_those_of_an_iteration(self, scaling):
        found = [c._asdict() for c in scaling.collectives(TEXT)]
        assert scaling.totals(found) == {"count": 29, "bytes": 20 * 28 + 5 * 9 + 32 + 3 * 14}

    def test_a_loop_that_may_end_early_is_refused(self, scaling):
        unknown = TEXT.replace('"known_trip_count":{"n":"5"}', "")
        with pytest.raises(ValueError, match=r"How often all-reduce of f/\(dot:sum\) runs is not noted"):
            scaling.collectives(unknown)

    def test_it_may_stand_where_nothing_is_said(self, scaling):
        silent = TEXT.replace('"known_trip_count":{"n":"5"}', "").replace("all-reduce(%m, %n)", "add(%m, %n)")
        assert len(scaling.collectives(silent)) == 4

    def test_programs_for_other_devices_are_refused(self, scaling):
        with pytest.raises(ValueError, match="all-gather-start of f/gather: only programs for CPUs"):
            scaling.collectives(TEXT.replace("all-gather(", "all-gather-start("))


WORKER = """
import importlib.util, json, sys
import jax, jax.numpy as jnp
from jax import lax
jax.config.update("jax_num_cpu_devices", 4)
from pgjax import placement
from jax.sharding import NamedSharding, PartitionSpec

spec = importlib.util.spec_from_file_location("scaling", sys.argv[1])
scaling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scaling)
mesh = placement.make_mesh("data")
x = jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, PartitionSpec("data")))
w = jax.device_put(jnp.ones((3, 5)), NamedSharding(mesh, PartitionSpec()))

def fit(w, x, length):
    def step(w, _):
        return w - 0.1 * x.T @ jnp.tanh(x @ w), None

    def iteration(_, w):
        w, _ = lax.scan(step, w, length=7)
        return w / jnp.abs(x @ w).max()

    w = lax.fori_loop(0, length, iteration, w)
    return w, jnp.sin(x @ w).sum()

def each(x, length):
    return lax.fori_loop(0, length, lambda _, x: jax.vmap(lambda row: row / row.sum())(x), x)

programs = jax.jit(fit).lower(w, x, 3), jax.jit(each).lower(x, 3)
print("RESULT" + json.dumps([scaling.collectives(p.compile().as_text()) for p in programs]))
"""


def test_a_real_program_is_read(scaling):
    """Seven steps an iteration sum a [3, 5] gradient each; one maximum an iteration, one sum in the end."""
    left_out = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {k: v for k, v in os.environ.items() if k not in left_out} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WORKER, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    fit, each = json.loads(done.stdout.partition("RESULT")[2])
    assert sorted(c[:5] for c in fit) == [
        ["all-reduce", 1, 4, 1, "call"],
        ["all-reduce", 1, 4, 1, "iteration"],
        ["all-reduce", 1, 60, 7, "iteration"],
    ]
    assert all("while/body" in c[5] for c in fit if c[4] == "iteration")
    assert each == []


@pytest.fixture
def link(scaling):
    """Four devices; powers of two, so that sums are exact."""
    return scaling.Link("four", 4, (0.0, 0.25, 1.0), (64.0, 32.0, 16.0), "")


class TestPaper:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        # by counting: of 64 bytes on each of 4 devices a part has 16
        [
            ("all-reduce", 6 * 16),  # three parts to be summed, three to be known
            ("all-gather", 3 * 16),
            ("all-to-all", 3 * 16),
            ("reduce-scatter", 3 * 64),  # each result is a part
            ("collective-permute", 64),
        ],
    )
    def test_what_a_device_sends(self, scaling, kind, expected):
        assert scaling.sent(kind, 64, 4) == expected

    @pytest.mark.parametrize(("which", "expected"), [(0, 1.5), (1, 3.5), (2, 8.0)])
    def test_waiting_is_latency_and_bytes_of_an_iteration(self, scaling, link, which, expected):
        found = [
            scaling.Collective("all-reduce", 1, 32, 2, "iteration", ""),  # 2 × 48 bytes
            scaling.Collective("all-reduce", 9, 10**6, 5, "call", ""),
        ]
        # 96 bytes at 64, 32 and 16 a second, and twice the latency
        assert scaling.communication(found, link, which) == expected

    def test_a_program_is_projected(self, scaling, link, monkeypatch):
        monkeypatch.setattr(scaling, "LINKS", (link,))
        monkeypatch.setattr(scaling, "COMPUTE", (3.5, 14.0))
        collective = scaling.Collective("all-reduce", 1, 32, 2, "iteration", "")._asdict()
        row = {"algorithm": "ppo", "hidden": [8], "devices": 4, "gradient_steps": 2, "count": 2}
        (found,) = scaling.project([row | {"collectives": [collective]}])
        assert found["communication"] == [1.5, 3.5, 8.0]
        assert found["latency"] == 0.5
        # two gradient steps: 7 and 28 seconds an iteration, or a quarter of that each
        assert found["weak"] == [[7 / 8.5, 7 / 10.5, 7 / 15], [28 / 29.5, 28 / 31.5, 28 / 36]]
        assert found["strong"] == [[1.75 / 3.25, 1.75 / 5.25, 1.75 / 9.75], [7 / 8.5, 7 / 10.5, 7 / 15]]
        least = found["compute_for_90_percent"]
        assert scaling.efficiency(2 * least, 3.5) == pytest.approx(0.9)

    @pytest.mark.parametrize(
        ("seeds", "devices", "expected"), [(8, 8, 1.0), (10, 8, 10 / 16), (7, 8, 7 / 8), (17, 8, 17 / 24)]
    )
    def test_places_that_no_seed_fills_are_lost(self, scaling, seeds, devices, expected):
        assert scaling.padding(seeds, devices) == expected


@pytest.fixture(scope="module")
def found(scaling):
    """What lies in benchmarks/results."""
    return json.loads(scaling.RESULTS.read_text(encoding="utf-8"))


class TestResults:
    def test_the_page_is_made_of_the_numbers(self, scaling, found):
        assert scaling.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == scaling.report(found)
        assert found["projected"] == scaling.project(found["compiled"])

    def test_only_sums_cross_devices_and_seeds_say_nothing(self, found):
        assert {c["kind"] for row in found["compiled"] for c in row["collectives"]} == {"all-reduce"}
        assert {row["count"] for row in found["measured"] if row["axis"] == "seed"} == {0}

    def test_every_gradient_step_sums_all_parameters_once(self, found):
        """CartPole-v1: four observations and two actions; a critic has one output."""
        for row in found["compiled"]:
            first, second = row["hidden"]
            torso = 5 * first + (first + 1) * second
            actor, critic = torso + 2 * (second + 1), torso + second + 1
            large = sorted(c["count"] for c in row["collectives"] if c["bytes"] >= 4 * critic)
            # TRPO: the policy's gradient, ten products with its Fisher information, and its critic's forty
            assert large == {"ppo": [16], "a2c": [1], "trpo": [1, 10, 40]}[row["algorithm"]]
            assert max(c["count"] for c in row["collectives"]) == row["gradient_steps"]  # none while acting
            whole = max(c["bytes"] for c in row["collectives"])
            assert 0 <= whole - 4 * (actor + critic if row["algorithm"] != "trpo" else actor) < 1000
