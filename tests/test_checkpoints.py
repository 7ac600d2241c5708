import errno
import pickle
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.experiment import checkpoints, files


class Pair(NamedTuple):
    left: Any
    right: Any


def tree(shift: float = 0.0) -> dict[str, Any]:
    return {
        "keys": jax.random.split(jax.random.key(3), 2),
        "progress": Pair(
            {"w": jnp.arange(6.0).reshape(2, 3) + shift, "half": jnp.ones(3, jnp.bfloat16)},
            (None, Pair(jnp.array([True, False]), jnp.int32(7)), ()),
        ),
        "history": {"x": np.array([[1.0, np.nan, np.inf]])},
    }


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of iterations 2, 4 and 6, of which two are kept."""
    for iteration in (2, 4, 6):
        checkpoints.save(tmp_path, iteration, tree(iteration), {"note": iteration}, keep=2)
    return tmp_path


def test_what_is_restored_is_what_was_saved(saved):
    back = checkpoints.restore(saved, 6, like(tree()))
    assert jax.tree.structure(back) == jax.tree.structure(tree())
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree(6)), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_the_last_ones_are_kept_and_the_newest_is_found(saved):
    assert checkpoints.iterations(saved) == [4, 6]
    iteration, about, complaints = checkpoints.newest(saved)
    assert (iteration, about["note"], about["iteration"], complaints) == (6, 6, 6, [])


def every_file(folder):
    path = folder / "checkpoints" / "6"
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "one bit"])
def test_whatever_is_damaged_is_named_and_the_one_before_is_taken(saved, harm):
    for name in every_file(saved):
        path = saved / "checkpoints" / "6" / name
        whole = path.read_bytes()
        if harm == "missing":
            path.unlink()
        elif harm == "empty":
            path.write_bytes(b"")
        elif harm == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        else:
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        iteration, about, complaints = checkpoints.newest(saved)
        assert iteration == about["note"] == 4, name
        assert len(complaints) == 1
        assert name in complaints[0]
        path.write_bytes(whole)
    assert checkpoints.newest(saved)[0] == 6


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_further_on_takes_no_place_of_a_whole_one(saved, keep):
    """The run went back to iteration 4; what it writes next must not be dropped in favour of the damage."""
    (saved / "checkpoints" / "6" / "about.json").write_text("{}")
    checkpoints.save(saved, 5, tree(5), {}, keep=keep)
    assert checkpoints.iterations(saved) == [4, 5][-keep:]
    assert checkpoints.newest(saved)[::2] == (5, [])


def test_if_none_is_whole_every_damage_is_named(saved):
    for iteration in (4, 6):
        (saved / "checkpoints" / str(iteration) / "state" / "_METADATA").unlink()
    with pytest.raises(checkpoints.DamagedError, match=r"6/state/_METADATA is missing.*4/state/_METADATA"):
        checkpoints.newest(saved)


def test_without_any_the_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoints.newest(tmp_path)


def test_what_was_half_written_is_not_taken_for_one_and_cleaned_up(saved):
    half = saved / "checkpoints" / ".partial-8" / "state"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_bytes(b"x")
    assert checkpoints.newest(saved)[0] == 6
    checkpoints.save(saved, 8, tree(8), {}, keep=2)
    assert checkpoints.iterations(saved) == [6, 8]
    assert not list((saved / "checkpoints").glob(".partial*"))


@pytest.mark.parametrize("moment", ["arrays", "about", "rename"])
def test_a_full_disk_leaves_the_older_ones_and_no_half_of_it(saved, monkeypatch, moment):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "arrays":
        import orbax.checkpoint as ocp

        monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    elif moment == "about":
        monkeypatch.setattr(files, "write_json", full)
    else:
        monkeypatch.setattr("pathlib.Path.rename", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(saved, 8, tree(8), {}, keep=2)
    monkeypatch.undo()
    assert [p.name for p in sorted((saved / "checkpoints").iterdir())] == ["4", "6"]
    assert checkpoints.newest(saved)[0] == 6


def test_other_shapes_and_other_programs_are_refused_with_what_differs(saved):
    wanted = like(tree())
    wider = wanted["progress"].left | {"w": jax.ShapeDtypeStruct((2, 4), jnp.float32)}
    with pytest.raises(ValueError, match=r"progress\.left\.w is \[2, 3\] in it, here \[2, 4\]"):
        checkpoints.restore(saved, 6, wanted | {"progress": wanted["progress"]._replace(left=wider)})
    more = wanted | {"extra": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(ValueError, match=r"another program: extra is not in it"):
        checkpoints.restore(saved, 6, more)
    with pytest.raises(ValueError, match=r"another program: keys is too much"):
        checkpoints.restore(saved, 6, {k: v for k, v in wanted.items() if k != "keys"})
    integers = wanted | {"history": {"x": jax.ShapeDtypeStruct((1, 3), np.int32)}}
    with pytest.raises(ValueError, match=r"history\.x is float64 in it, here int32"):
        checkpoints.restore(saved, 6, integers)


def test_reading_executes_nothing_from_the_file(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was loaded")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    checkpoints.about(saved, 6)
    checkpoints.restore(saved, 6, like(tree()))


def test_too_little_room_is_said_in_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**7))
    checkpoints.check_room(tmp_path, 10**6)
    with pytest.raises(ValueError, match=r"has 0\.01 GB free, but the checkpoints may take 0\.50 GB"):
        checkpoints.check_room(tmp_path, 5 * 10**8)


def test_size_counts_keys_and_arrays():
    assert checkpoints.size({"k": jax.random.split(jax.random.key(0), 3), "x": np.zeros((2, 2))}) == 24 + 32
