import importlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import zoo
from jax import lax

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks import accelerator, estimators, fisher, harness, memory, tables, throughput  # noqa: E402

CPU = {"device": "Some CPU(R) 9000 @ 2.10GHz", "platform": "cpu", "cores": 4, "date": "2030-01-02"}
MINE = ("accelerator", "compile_time", "estimators", "fisher", "memory")


def spread(median):
    return {"median": median, "least": median / 2, "greatest": 2 * median}


def arguments(**changes):
    return harness.parser("About.").parse_args([f"--{k}={v}" for k, v in changes.items()])


def test_the_floor_of_dqn_evaluates_its_target_network_in_every_gradient_step():
    """Batch and target stand still there: the compiler would take their products out of the loop."""
    task = throughput.dqn_task()
    key = jax.random.key(0)
    program = jax.jit(task.parts["gradients"]).lower(jax.eval_shape(task.init, key), key)
    blocks = program.compile().as_text().split("\n\n")
    (entry,) = (block for block in blocks if block.startswith("ENTRY"))
    multiply = [block.split()[0] for block in blocks if " dot(" in block]
    assert multiply
    assert " dot(" not in entry
    assert not any(f"calls={name}," in entry for name in multiply)


class TestHarness:
    def test_a_ratio_is_of_pairs(self):
        found = harness.ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        assert (found["median"], found["least"], found["greatest"], found["turns"]) == (2.0, 1.0, 3.0, 3)
        assert found["least"] <= found["lower"] <= found["median"] <= found["upper"] <= found["greatest"]
        assert harness.ratio([3.0], [2.0])["upper"] == 1.5
        assert harness.show(found) == "2.00 [1.00, 3.00]"
        with pytest.raises(ValueError):
            harness.ratio([1.0], [1.0, 2.0])

    def test_turns_alternate_and_the_first_is_not_kept(self):
        order = []
        programs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
        times = harness.by_turns(programs, 3)
        assert order == ["a", "b"] * 4
        assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}

    def test_a_file_has_the_name_of_the_device_and_the_day(self):
        folder = pathlib.Path("results")
        assert harness.result_file(CPU, folder).name == "some-cpu-9000-2-10ghz-4-cores-2030-01-02.json"
        gpu = {"device": "NVIDIA H100 80GB HBM3", "platform": "gpu", "cores": 16, "date": "2030-01-02"}
        assert harness.result_file(gpu, folder).name == "nvidia-h100-80gb-hbm3-2030-01-02.json"

    def test_benchmarks_of_a_day_share_a_file(self, tmp_path):
        row = memory.measure_natural_gradient(8, 1)
        path = harness.save("memory", [row], tmp_path, turns=1)
        before = json.loads(path.read_text())
        row = {
            "network": "n",
            "batch_size": 5,
            "seconds": {"product": 1e-3, "linearized_once": 2e-3},
            "product_against_value_and_gradient": spread(0.5),
            "gradient_of_gradient_against_linearized_once": spread(3.0),
            "relative_difference_of_the_directions": 1e-6,
        }
        assert harness.save("fisher", [row], tmp_path) == path
        found = json.loads(path.read_text())
        assert list(found) == ["memory", "fisher"]
        assert found["memory"] == before["memory"]
        (stamp,) = [row["measured"] for row in found["memory"]["rows"]]
        assert stamp == {"time": found["memory"]["time"], "commit": harness.commit(), "turns": 1}
        assert found["fisher"]["versions"]["jax"] == jax.__version__
        page = path.with_suffix(".md").read_text()
        assert page == harness.page(found)
        assert "turns 1" in page
        assert f"commit {harness.commit()}" in page or harness.commit() is None
        assert "| n | 5 | 1.00 | 0.50 [0.25, 1.00] | 2.00 | 3.00 [1.50, 6.00] | 1e-06 |" in page
        assert sorted(x.name for x in tmp_path.iterdir()) == sorted([path.name, path.with_suffix(".md").name])

    @pytest.mark.parametrize(
        "rows",
        [
            [{"task": "a"}, {"task": "b"}],
            [{"part": "scan", "T": 1}, {"part": "fvp"}],
            [{"algorithm": "ppo", "environment": "a"}, {"algorithm": "ppo", "environment": "b"}],
            [{"network": "n", "batch_size": 1}, {"network": "n", "batch_size": 2}],
        ],
        ids=lambda rows: next(iter(rows[0])),
    )
    def test_a_part_that_is_measured_again_leaves_the_rest_of_the_day(self, tmp_path, rows, monkeypatch):
        monkeypatch.setattr(harness, "page", lambda found: "")
        path = harness.save("fisher", [row | {"found": 1} for row in rows], tmp_path, turns=3)
        assert harness.save("fisher", [rows[0] | {"found": 2}], tmp_path, turns=5) == path
        kept = json.loads(path.read_text())["fisher"]["rows"]
        assert [row.pop("measured")["turns"] for row in kept] == [5, 3]
        assert kept == [rows[0] | {"found": 2}, rows[1] | {"found": 1}]

    def test_what_other_versions_measured_on_that_day_stays_apart(self, tmp_path, monkeypatch):
        """Otherwise its rows would stand below versions that they were not measured with."""
        monkeypatch.setattr(harness, "page", lambda found: "")
        versions = harness.about()["versions"]
        path = harness.save("fisher", [{"task": "a"}, {"task": "b"}], tmp_path)
        monkeypatch.setattr(harness, "packages", lambda *names: versions | {"jax": "99"})
        other = harness.save("fisher", [{"task": "a", "new": True}], tmp_path)
        assert other.stem == f"{path.stem}-2"
        assert harness.save("fisher", [{"task": "b", "new": True}], tmp_path) == other
        (first, second) = (json.loads(x.read_text())["fisher"] for x in (path, other))
        assert [row["task"] for row in first["rows"]] == ["a", "b"]
        assert [(row["task"], row["new"]) for row in second["rows"]] == [("a", True), ("b", True)]
        assert (first["versions"], second["versions"]["jax"]) == (versions, "99")
        assert harness.save("memory", [{}], tmp_path) == path  # nothing of it is there

    def test_a_row_names_the_commit_and_says_if_the_code_was_changed_since(self, tmp_path, monkeypatch):
        monkeypatch.setattr(harness, "RESULTS", tmp_path / "benchmarks" / "results")
        assert harness.commit() is None  # no repository
        code = tmp_path / "pgjax" / "code.py"
        code.parent.mkdir()
        code.write_text("1")

        def git(*call):
            options = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(tmp_path)]
            call = ["git", *options, *call]
            return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

        git("init", "-q")
        git("add", ".")
        git("commit", "-q", "-m", "code")
        (tmp_path / "benchmarks" / "results").mkdir(parents=True)
        (tmp_path / "benchmarks" / "results" / "new.json").write_text("{}")
        assert harness.commit() == git("rev-parse", "--short", "HEAD")
        code.write_text("2")
        assert harness.commit() == git("rev-parse", "--short", "HEAD") + "-dirty"

    def test_no_turns_are_refused_before_anything_is_measured(self):
        none = harness.parser("About.").parse_args(["--turns", "0"])
        with pytest.raises(SystemExit, match="--turns must be at least 1, got 0"):
            harness.run("memory", lambda _: pytest.fail("measured"), lambda rows: "", none)

    def test_quick_saves_nothing(self, tmp_path, capsys):
        quick = harness.parser("About.").parse_args(["--quick", "--results", str(tmp_path)])
        assert harness.run("memory", lambda _: [{}], lambda rows: "the table", quick) == 0
        assert capsys.readouterr() == ("the table\n", "quick: nothing saved\n")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MINE)
def test_a_title_and_a_table_need_no_library(name):
    """A page is made from the JSON alone, on a machine that has none of what was measured."""
    module = importlib.import_module(f"benchmarks.{name}")
    assert re.fullmatch(r"[A-Z].*\.", module.__doc__.splitlines()[0])
    call = f"import sys, benchmarks.{name} as module; module.table([]); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


class TestEstimators:
    def test_ours_and_rlaxs_are_the_same_where_nothing_is_truncated(self):
        pytest.importorskip("rlax")
        arrays = estimators.data(32, 4) | {"truncated": jnp.zeros((32, 4), bool)}
        arrays["next_value"] = jnp.concatenate([arrays["value"][1:], arrays["next_value"][-1:]])
        for name, theirs in estimators.theirs(arrays).items():
            names, _, ours = estimators.ours()[name]
            found, expected = ours(*(arrays[k] for k in names)), theirs()
            if name == "V-trace":  # theirs gives errors, ours values; both the advantage
                found, expected = (found[0] - arrays["value"], found[1]), tuple(expected)
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert jnp.allclose(x, y, rtol=1e-4, atol=1e-4), name

    def test_rows_say_what_the_table_shows(self):
        rows = estimators.measure_size(8, 2, 2)
        assert [row["estimator"] for row in rows] == list(estimators.ours())
        assert all(row["microseconds"]["pgjax"] > 0 for row in rows)
        for row in rows:
            assert row["elements_per_second"] == pytest.approx(16e6 / row["microseconds"]["pgjax"])
        assert estimators.table(rows).count("\n") == len(rows) + 1


@pytest.fixture
def as_users_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("as_users_compile")
class TestMemory:
    def test_a_copy_of_the_buffer_would_be_seen(self):
        found = memory.measure_replay("ddpg", "Pendulum-v1", 200_000)
        assert found["buffer"] >= 200_000 * (3 + 1 + 1 + 3) * 4  # obs, action, reward, next_obs
        assert found["once"]

        def bump(x):
            return x.at[0].add(1.0)

        x = jax.ShapeDtypeStruct((1000,), "float32")
        in_place = memory.sizes(jax.jit(bump, donate_argnums=0).lower(x).compile())
        beside = memory.sizes(jax.jit(bump).lower(x).compile())
        assert (in_place["alias"], beside["alias"]) == (4000, 0)
        assert beside["peak"] - in_place["peak"] == 4000

    def test_chunks_take_less(self):
        one, eight = (memory.measure_natural_gradient(8192, n) for n in (1, 8))
        assert eight["temp"] < one["temp"] / 2


class TestAccelerator:
    def test_work_is_that_of_products_and_loops(self):
        def products(x, y):
            return x @ y  # 3 × 5 times 5 × 7

        shapes = jax.ShapeDtypeStruct((3, 5), "float32"), jax.ShapeDtypeStruct((5, 7), "float32")
        operations, moved = accelerator.work(jax.make_jaxpr(products)(*shapes))
        assert operations == 2 * 3 * 5 * 7
        assert moved == 4 * (15 + 35 + 21)

        def loop(xs, y):
            return lax.scan(lambda total, x: (total + jax.jit(jnp.dot)(x, y).sum(), None), 0.0, xs)[0]

        xs = jax.ShapeDtypeStruct((11, 3, 5), "float32")
        operations, moved = accelerator.work(jax.make_jaxpr(loop)(xs, shapes[1]))
        assert operations == 11 * 2 * 3 * 5 * 7
        assert moved == 4 * (11 * 15 + 11 * (15 + 35 + 21))

    def test_work_of_a_convolution_is_that_of_its_matrix_product(self):
        image = jax.ShapeDtypeStruct((2, 10, 10, 4), "float32")
        kernel = jax.ShapeDtypeStruct((3, 3, 4, 16), "float32")

        def convolve(x, w):
            return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        operations, _ = accelerator.work(jax.make_jaxpr(convolve)(image, kernel))
        assert operations == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 4)

    def test_a_row_says_why_there_is_no_figure(self, capsys):
        def too_large():
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate\n 9 GiB")

        row = accelerator.attempt({"num_envs": 2**17}, too_large)
        assert row == {"num_envs": 2**17, "error": "out of memory"}
        assert "out of memory" in capsys.readouterr().err
        row = accelerator.attempt({"width": 1}, lambda: {"x": 1 / 0})
        assert row == {"width": 1, "error": "ZeroDivisionError: division by zero"}
        rows = [{"part": "throughput", "algorithm": "ppo", "num_envs": 2**17, "error": "out of memory"}]
        assert accelerator.table(rows).splitlines()[-1].startswith("| ppo | 131,072 |")
        assert accelerator.table(rows).endswith("| out of memory |")

    def test_shares_are_of_the_rate_of_their_type(self, monkeypatch):
        device = {"operations_per_second": 1e9, "bf16_operations_per_second": 4e9, "bytes_per_second": 1e9}
        monkeypatch.setattr(accelerator, "make", lambda *args, **changes: zoo.ZOO["a2c"]())
        row = accelerator.measure_bf16("a2c", 8, 4, 1, device)
        single, half = (row["shares"][name] for name in accelerator.TYPES)
        speed = row["steps_per_second"]["bfloat16"] / row["steps_per_second"]["float32"]
        assert single["operations"] == half["operations"] > 0
        assert half["matrix_share"] == pytest.approx(single["matrix_share"] * speed / 4.0)
        assert half["bandwidth_share"] == pytest.approx(single["bandwidth_share"] * speed)
        assert row["float32_against_bfloat16"]["turns"] == 1

    def test_a_fisher_product_has_its_share(self):
        device = {"operations_per_second": 1e9, "bytes_per_second": 1e9}
        row = accelerator.measure_fisher("8-64-64-4", 64, 1, device)
        layers = 8 * 64 + 64 * 64 + 64 * 4
        assert row["operations"] >= 2 * 64 * 3 * layers  # forward, its derivative, and back
        share = row["operations"] / row["seconds"]["product"] / 1e9
        assert row["matrix_share"] == pytest.approx(share)
        table = accelerator.table([{"part": "fisher"} | row]).splitlines()
        assert table[2].endswith("| of the matrix rate | of the bandwidth |")
        assert table[4].count("|") == table[2].count("|")

    def test_time_that_is_not_needed_goes_to_later_parts(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(accelerator.time, "monotonic", lambda: now[0])
        clock = accelerator.Clock(100.0, ["scan", "fisher", "seeds"])  # equal shares
        clock.begin("scan")
        assert clock.left() == pytest.approx(100 / 3)
        now[0] = 10.0
        clock.begin("fisher")
        assert clock.left() == pytest.approx(45.0)
        now[0] = 90.0  # over its time
        assert clock.left() < 0
        clock.begin("seeds")
        assert clock.left() == pytest.approx(10.0)

    def test_what_no_time_is_left_for_is_said(self):
        clock = accelerator.Clock(-1.0, ["throughput"])
        clock.begin("throughput")
        cases = accelerator.measure_throughput(["ppo"], [6, 7])
        found = list(accelerator.measure_programs(cases, clock, 1, {}))
        assert [row["error"] for row in found] == ["no time left"] * 2

    @pytest.mark.slow
    def test_a_part_is_measured_and_saved(self, tmp_path):
        wanted = ["--parts", "scan", "device", "--turns", "1", "--results", str(tmp_path), "--minutes", "1"]
        assert accelerator.main(wanted) == 0
        (path,) = tmp_path.glob("*.json")
        rows = json.loads(path.read_text())["accelerator"]["rows"]
        assert [row["part"] for row in rows][:2] == ["device", "scan"]
        assert not [row for row in rows if "error" in row]
        assert all(row["bandwidth_share"] > 0 for row in rows[1:])

    @pytest.mark.parametrize("name", list(accelerator.ALGORITHMS))
    def test_every_algorithm_can_be_made_from_few_to_many_environments(self, name):
        for num_envs in (2**6, 2**17):
            algorithm = accelerator.make(name, num_envs)
            state = jax.eval_shape(algorithm.init, jax.random.key(0))
            assert any(num_envs in x.shape for x in jax.tree.leaves(state.env_carry))


class TestGpuScript:
    def run(self, *args, folder=ROOT, **variables):
        environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"} | variables
        call = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *(args or ["--help"])]
        return subprocess.run(call, env=environment, capture_output=True, text=True, cwd=folder)

    def test_it_runs_without_an_accelerator(self):
        done = self.run()
        assert done.returncode == 0, done.stderr
        assert "cpu" in done.stdout
        assert "--minutes" in done.stdout

    def test_it_trains_what_had_less_than_the_full_length(self, tmp_path):
        done = self.run("learning", "--list", folder=tmp_path, OUT="out")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(
            "sac:SpaceInvaders-MinAtar: 5 seeds, 10,000,000 steps\n16 pairs are left.\n"
        )

    def test_it_measures_and_is_cut_off_in_time(self, tmp_path):
        call = ("--quick", "--parts", "device", "scan")
        done = self.run(*call, folder=tmp_path, OUT="out")
        assert done.returncode == 0, done.stderr
        assert "| copy, GB/s |" in done.stdout
        assert "| scan, µs | blocks, µs | associative, µs | taken, µs |" in done.stdout
        done = self.run(*call, folder=tmp_path, OUT="out", LIMIT="1")
        assert done.returncode == 124
        assert f"cut off after 1 s; what was measured before is in {tmp_path}/out" in done.stderr

    def test_wheels_of_jax_do_not_take_the_place_of_the_one_that_is_there(self, tmp_path):
        (tmp_path / "wheels").mkdir()
        (tmp_path / "wheels" / "jaxlib-9.9.9-py3-none-any.whl").write_text("none that can be installed")
        done = self.run(folder=tmp_path, WHEELS="wheels")  # named from where it was called
        assert done.returncode == 0, done.stderr
        assert f"\n{jax.__version__} cpu" in f"\n{done.stdout}"

    def test_it_says_what_is_missing(self, tmp_path):
        done = self.run(WHEELS=str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"there is no wheel in WHEELS={tmp_path}" in done.stderr
        bare = tmp_path / "python"
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
        bare.chmod(0o755)
        done = self.run(PYTHON=str(bare))
        assert done.returncode == 2
        assert "lacks jax flax" in done.stderr


def test_every_call_of_an_estimator_is_waited_for(monkeypatch):
    """As the comparison with other libraries does; otherwise calls would overlap."""
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    run, calls = estimators.repeated(lambda: "advantage", 1e-3)
    waited.clear()
    run()
    assert calls > 1
    assert waited == ["advantage"] * calls


def test_only_what_small_runs_do_has_one_thread(monkeypatch):
    """PPO with 2,048 environments and the 64 seeds are in processes of their own."""
    here, apart, chosen = [], [], []
    monkeypatch.setattr(throughput.harness, "run", lambda *a: here.append(a[-1].only) or 0)
    monkeypatch.setattr(throughput.threads, "choose_threads", chosen.append)
    monkeypatch.setattr(
        throughput.subprocess,
        "run",
        lambda call, **_: apart.append(call) or types.SimpleNamespace(returncode=3),
    )
    assert throughput.main(["--turns", "7"]) == 3
    assert here == [[name for name in throughput.TASKS if name != "ppo-2048x128"]]
    assert [call[call.index("--only") + 1 :][0] for call in apart] == ["ppo-2048x128", throughput.SEEDS]
    assert all(call[call.index("--turns") + 1] == "7" for call in apart)
    assert chosen == [1]
    assert throughput.main(["--only", "ppo-2048x128"]) == 0
    assert (here[1], len(apart), chosen) == (["ppo-2048x128"], 2, [1])


class TestTables:
    def test_the_readme_says_what_the_results_say(self):
        call = [sys.executable, "-m", "benchmarks.tables", "--check"]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_the_newest_file_with_the_benchmark_counts(self, tmp_path):
        def write(name, **found):
            (tmp_path / f"{name}.json").write_text(json.dumps(found))

        write("a", throughput={"rows": [1], "date": "2030-01-02", "device": "d"})
        write("b", throughput={"rows": [2], "date": "2030-01-01", "device": "d"})
        write("c", fisher={"rows": [3], "date": "2030-02-01", "device": "d"})
        write("old", rows=[4])
        (tmp_path / "list.json").write_text("[]")
        assert tables.newest("throughput", tmp_path)["rows"] == [1]
        assert tables.newest("peers", tmp_path) is None
        write("0", throughput={"rows": [5], "date": "2030-01-02", "time": "00:01", "device": "e"})
        assert tables.newest("throughput", tmp_path)["rows"] == [5]  # on the same day, and says when

    def test_only_what_stands_between_the_markers_changes(self):
        text = "a\n<!-- fast: begin -->\nold\n<!-- fast: end -->\nb\n"
        new = tables.replace(text, "fast", "| new |")
        assert new == "a\n<!-- fast: begin -->\n| new |\n<!-- fast: end -->\nb\n"
        assert tables.replace(new, "fast", "| new |") == new
        for broken in ("nothing", text + text, "<!-- fast: end --><!-- fast: begin -->"):
            with pytest.raises(ValueError, match="once each"):
                tables.replace(broken, "fast", "")

    def test_it_writes_and_it_checks(self, tmp_path, capsys, monkeypatch):
        readme = tmp_path / "README.md"
        sections = [f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in ("learned", "fast")]
        readme.write_text("".join(sections))
        learned = {
            "ppo:CartPole-v1": {"iqm": 499.6, "scored": "training", "verdict": "reached"},
            "dqn:CartPole-v1": {"iqm": 1.0, "evaluation_iqm": 9.234, "scored": "evaluation"},
            "dqn:Acrobot-v1": {
                "evaluation_iqm": -80.2,
                "scored": "evaluation",
                "verdict": "reached",
                "digest": "of old",
            },
            "ppo:Pendulum-v1": {"iqm": math.nan, "scored": "training", "verdict": "failed"},
        }
        (tmp_path / "learning.json").write_text(json.dumps(learned))
        rows = [
            {"task": "ppo-4x128", "steps_per_second": 123_456.0, "ratio": spread(0.9)},
            {"task": "64 seeds", "steps_per_second": 1e6, "over_purejaxrl": spread(3.0)},
        ]
        fast = {"throughput": {"rows": rows, "versions": {"jax": "9"}, **CPU}}
        theirs = {"task": "dqn", "versions": {"rejax": "0.1.3"}, "ratio": spread(2.0), "compile_ratio": None}
        fast["peers"] = fast["throughput"] | {"rows": [theirs, theirs | {"task": "x"}]}
        del fast["peers"]["rows"][1]["ratio"]
        (tmp_path / "some.json").write_text(json.dumps(fast))
        call = ["--readme", str(readme), "--results", str(tmp_path)]
        assert tables.main([*call, "--check"]) == 1
        assert readme.read_text() == "".join(sections)
        assert tables.main(call) == 0
        text = readme.read_text()
        assert "| environment | ppo | dqn |" in text
        assert "| Acrobot-v1 | … | **-80**† |" in text
        assert "Of 4 pairs 2 come 95 % of that way or more (bold), 1 less than 25 %" in text
        assert "… is not trained yet. † is of a preset that has changed since." in text
        assert "| CartPole-v1 | **500** | 9.23 |" in text
        assert "| Pendulum-v1 | ~~none~~ |  |" in text
        assert (
            "`python -m benchmarks throughput`, Some CPU(R) 9000 @ 2.10GHz, 4 cores, 2030-01-02, jax 9"
            in text
        )
        assert "| ppo-4x128 | 123k | 0.90 [0.45, 1.80] |  |" in text
        assert "| 64 seeds | 1,000k |  | 3.00 [1.50, 6.00] |" in text
        assert "| dqn | rejax 0.1.3 | 2.00 [1.00, 4.00] | 2.5 |  |" in text
        assert "| x | rejax 0.1.3 | did not run |  |  |" in text
        assert tables.main([*call, "--check"]) == 0
        assert "as the results say" in capsys.readouterr().out
        (tmp_path / "learning.json").unlink()
        assert tables.main(call) == 0  # without results a section stays
        assert readme.read_text() == text
        readme.write_text("no markers")
        assert tables.main(call) == 1
        assert "<!-- fast: begin -->" in capsys.readouterr().err


def test_the_fishers_networks_are_what_their_names_say():
    for name in fisher.SIZES:
        size, *_, actions = map(int, name.split("-"))
        actor = fisher.make_actor(name)
        policy = actor.apply(actor.init(jax.random.key(0), jnp.zeros(size)), jnp.zeros(size))
        leaves = jax.tree.leaves(jax.eval_shape(lambda policy=policy: policy))
        assert leaves[0].shape == (actions,)


def test_an_unknown_benchmark_is_a_mistake():
    call = [sys.executable, "-m", "benchmarks", "nothing"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "No benchmark 'nothing'" in done.stderr
