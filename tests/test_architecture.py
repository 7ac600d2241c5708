"""The rules of the house that imports can break."""

import ast
import pathlib
import subprocess
import sys

import pytest

import pgjax

ROOT = pathlib.Path(pgjax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = [  # from the ground up; a room imports from lower floors only, and from itself
    {"_jit", "_jaxpr", "_advice", "_checks", "_imports", "types"},
    {"_axes"},
    {"_draws"},
    {"_ahead"},
    {"_lapack", "_mapped", "_matmul", "_random", "descent"},
    {"distributions"},
    {"estimators", "losses", "gradients", "metrics"},
    {"natural"},
    {"networks", "rollouts", "minibatch", "normalization", "replay", "exploration", "tabular"},
    {"values"},
    {"diagnostics", "improvement", "experience", "online", "windows"},
    {"deterministic", "suites"},
    {"host"},
    {"training", "algorithms", "envs", "placement"},
    {"experiment"},
    {"", "__init__", "__main__"},
]
FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.removeprefix("pgjax").lstrip(".").split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_arrows_only_go_down(path):
    here = room("pgjax." + module_name(path))
    for imported in imports(path):
        there = room(imported)
        if not imported.startswith("pgjax.") or there == here or there not in FLOOR_OF:
            continue
        assert FLOOR_OF[there] < FLOOR_OF[here], f"{module_name(path)} imports {imported}"


@pytest.mark.parametrize("path", sorted((ROOT / "algorithms").glob("*.py")), ids=module_name)
def test_no_algorithm_imports_another(path):
    assert not {i for i in imports(path) if i.startswith("pgjax.algorithms")}


@pytest.mark.parametrize("room_name", ["estimators", "losses", "natural"])
def test_the_three_rooms_of_mathematics_do_not_know_each_other(room_name):
    others = {"estimators", "losses", "natural"} - {room_name}
    for path in (ROOT / room_name).glob("*.py"):
        assert not {i for i in imports(path) if i.startswith("pgjax.") and room(i) in others}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("gymnax", {"envs", "experiment"}),
        ("flax", {"networks", "natural.kfac"}),
        ("matplotlib", {"experiment"}),
        ("rich", {"experiment"}),
        ("tyro", {"experiment"}),
        ("orbax", {"experiment"}),
        ("scipy", {"experiment"}),
        ("gymnasium", {"host"}),
        ("tensorboardX", {"experiment"}),
        ("wandb", {"experiment"}),
        ("time", {"experiment"}),
        ("os", {"experiment"}),
        ("pathlib", {"experiment"}),
    ],
)
def test_who_may_import(package, allowed):
    for path in FILES:
        name = module_name(path)
        if name in allowed or room("pgjax." + name) in allowed:
            continue
        assert package not in {i.split(".")[0] for i in imports(path)}, name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_side_effects_outside_experiment(path):
    if room("pgjax." + module_name(path)) == "experiment":
        return
    names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
    attributes = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert not names & {"print", "open", "input"}
    if module_name(path) != "host":  # whose environments are not JAX
        assert not (attributes | names) & {"io_callback", "pure_callback", "callback"}


@pytest.mark.parametrize("path", sorted((ROOT / "algorithms").glob("*.py")), ids=module_name)
def test_an_algorithm_wires_and_computes_nothing_reusable(path):
    text = path.read_text()
    assert "reverse=True" not in text
    assert "stop_gradient" not in text


def test_one_reverse_scan_in_the_library():
    with_reverse = [module_name(p) for p in FILES if "reverse=True" in p.read_text()]
    assert with_reverse == ["estimators.recurrence"]


def test_no_module_shares_its_name_with_a_public_function():
    modules = {module_name(p).split(".")[-1] for p in FILES}
    functions = {n for n in pgjax.__all__ if callable(getattr(pgjax, n))}
    assert not modules & functions


def test_importing_pgjax_imports_nothing_heavy():
    heavy = {
        "gymnax",
        "matplotlib",
        "scipy.stats",
        "orbax",
        "rich",
        "tyro",
        "pandas",
        "tensorboardX",
        "wandb",
    }
    code = f"import sys, pgjax; print(sorted({heavy} & set(sys.modules)))"
    plain = "import sys, jax, flax.linen, optax; print(sorted(sys.modules))"
    known = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, check=True).stdout
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(ast.literal_eval(found)) <= set(ast.literal_eval(known))


def test_importing_pgjax_takes_no_longer_than_what_it_is_made_of():
    """At most 0.3 s more than jax, flax and optax, of a processor's time: others may be busy beside it."""

    def seconds(modules):
        code = f"import {modules}, time; print(time.process_time())"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)

    parts = whole = float("inf")
    for _ in range(20):  # the least of several: whoever is busy beside it only adds
        parts, whole = min(parts, seconds("jax, flax, optax")), min(whole, seconds("pgjax"))
        if whole < parts + 0.3:
            break
    assert whole < parts + 0.3
