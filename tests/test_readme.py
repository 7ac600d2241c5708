import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_composing_example_is_short():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_the_two_commands_stand_at_the_top():
    commands = [line for line in README.splitlines()[:20] if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert "pgjax train ppo" in commands[0]
    assert "-m pytest" in commands[1]
