import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import pgjax

MODULES = [
    "pgjax",
    *(
        module.name
        for module in pkgutil.walk_packages(pgjax.__path__, "pgjax.")
        if not module.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_every_example_of_the_module_runs_and_prints_what_it_says(name, capsys):
    module = importlib.import_module(name)
    written = len(re.findall(r"^\s*>>> ", inspect.getsource(module), re.MULTILINE))
    failed, attempted = doctest.testmod(module)
    assert failed == 0, capsys.readouterr().out
    assert attempted == written, "doctest does not find all examples"


def test_the_examples_are_many():
    assert {"pgjax.estimators.returns", "pgjax.distributions", "pgjax.gradients"} <= set(MODULES)
