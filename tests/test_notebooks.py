"""Every notebook runs, in its quick mode, and lies beside its script as an executed copy."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPTS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_it_runs(script):
    quick = os.environ | {"PGJAX_NOTEBOOK_QUICK": "1", "MPLBACKEND": "agg"}
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, env=quick, timeout=300)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_the_executed_copy_has_the_cells_of_the_script(script):
    import jupytext

    source, executed = jupytext.read(script), jupytext.read(script.with_suffix(".ipynb"))
    assert [c.source for c in executed.cells] == [c.source for c in source.cells]
    code = [c for c in executed.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    assert any(o.output_type == "display_data" for c in code for o in c.outputs)
