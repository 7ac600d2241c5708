import subprocess
import sys

import pytest

from pgjax import _imports

MODULE = "a_module_of_this_test"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that notes when it is imported; gives the notes."""
    (tmp_path / f"{MODULE}.py").write_text("import sys\nsys.imported.append(__name__)\nanswer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "imported", [], raising=False)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield sys.imported
    sys.modules.pop(MODULE, None)


def take():
    return __import__(MODULE)


def test_a_module_waits_until_something_of_it_is_used(module):
    with _imports.postponed(MODULE):
        later = take()
    assert module == []
    assert MODULE not in sys.modules
    assert [later.answer, later.answer] == [42, 42]
    assert module == [MODULE]


def test_what_is_used_at_once_is_imported_at_once(module):
    with _imports.postponed(MODULE):
        assert take().answer == 42
        assert module == [MODULE]
        assert type(take()) is type(sys)  # the module itself from here on
    assert take() is sys.modules[MODULE]
    assert module == [MODULE]


def test_afterwards_an_import_is_a_usual_one(module):
    with _imports.postponed(MODULE):
        later = take()
    assert take().answer == 42
    assert take() is not later
    assert later.answer == 42
    assert module == [MODULE]


def test_a_module_that_is_there_stays(module):
    there = take()
    with _imports.postponed(MODULE):
        assert take() is there
    assert sys.modules[MODULE] is there


def test_a_module_that_is_missing_is_missed_where_it_is_used(module):
    with _imports.postponed("nothing_of_this_name"):
        import nothing_of_this_name as later  # pyright: ignore[reportMissingImports]
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        _ = later.answer


def test_an_error_meanwhile_leaves_nothing_behind(module):
    with pytest.raises(RuntimeError), _imports.postponed(MODULE):
        raise RuntimeError
    assert MODULE not in sys.modules


def test_an_environment_is_made_and_a_seed_told_without_what_others_need():
    """seaborn and scipy.stats take longer to import than jax does."""
    code = """
import sys, pgjax
from pgjax.experiment import display
pgjax.envs.names()
pgjax.envs.make("CartPole-v1", rescale_obs=False)
assert display.with_interval([2.0]) == "2.0"
print([name for name in ("seaborn", "pandas", "scipy.stats") if name in sys.modules])
from gymnax.environments.misc import pong
print(pong.sns.color_palette("cubehelix", 3)[0] == __import__("seaborn").color_palette("cubehelix", 3)[0])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout.split("\n")[:2] == ["[]", "True"], ended.stderr
