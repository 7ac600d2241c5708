"""Checkpoints of a run: each a folder that is whole or not there, and can be told from a damaged one.

`RUN/checkpoints/<iteration>/` holds `state/`, written by orbax, and `about.json`: what the run was, where
it ran, and the digest of every other file. A checkpoint is written under another name, brought to the disk,
and renamed: whoever dies in between leaves something that nobody takes for a checkpoint. Nothing in it is
executed when it is read.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pgjax.experiment import files, processes

_FOLDER, _PARTIAL, _ABOUT, _STATE = "checkpoints", ".partial", "about.json", "state"


class DamagedError(ValueError):
    """A checkpoint that is not what was written."""


def save(folder: Path, iteration: int, tree: Any, about: Mapping[str, Any], *, keep: int) -> None:
    """Write a checkpoint, then drop the oldest ones beyond `keep`, and any that claim to be further on.

    Several processes call this together, each with its part of the arrays.

    Args:
        folder: the run's.
        iteration: iterations done.
        tree: arrays of jax, typed keys included, and of NumPy.
        about: JSON to keep beside them.
        keep: how many checkpoints stay.

    Raises:
        OSError: if it cannot be written; nothing is left of it, and the older ones are as before.
    """
    import orbax.checkpoint as ocp

    parent = folder / _FOLDER
    partial = parent / f"{_PARTIAL}-{iteration}"
    try:
        if processes.is_first():
            parent.mkdir(exist_ok=True)
            for old in parent.glob(f"{_PARTIAL}*"):
                shutil.rmtree(old)
            partial.mkdir()
        processes.wait("checkpoint begins")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((partial / _STATE).resolve(), tree)
        if processes.is_first():
            written = sorted(path for path in partial.rglob("*") if path.is_file())
            digests = {path.relative_to(partial).as_posix(): _digest(path) for path in written}
            for path in written:
                files.sync(path)
            told = {**about, "iteration": iteration, "sha256": digests}
            files.write_json(partial / _ABOUT, told | {"seal": _seal(told)})
            # what stands there or further on is damaged, and was passed over when the run went on from before
            for damaged in [i for i in iterations(folder) if i >= iteration]:
                shutil.rmtree(parent / str(damaged))
            partial.rename(parent / str(iteration))
            files.sync(parent)
            for old in iterations(folder)[:-keep]:
                shutil.rmtree(parent / str(old))
        processes.wait("checkpoint ends")
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise
        # orbax and tensorstore wrap what the system said
        raise OSError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def iterations(folder: Path) -> list[int]:
    """The checkpoints there are.

    Args:
        folder: the run's.

    Returns:
        Their iterations, ascending.
    """
    return sorted(int(path.name) for path in (folder / _FOLDER).glob("*") if path.name.isdigit())


def about(folder: Path, iteration: int) -> dict[str, Any]:
    """What was kept beside a checkpoint's arrays, after all of its files are seen to be what was written.

    Args:
        folder: the run's.
        iteration: which.

    Returns:
        The content of about.json.

    Raises:
        DamagedError: names the file that is missing or changed.
    """
    path = folder / _FOLDER / str(iteration)
    try:
        kept = files.read_json(path / _ABOUT)
        if kept.pop("seal", None) != _seal(kept):
            raise ValueError("it is not what was written")
        digests = dict(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / _ABOUT} is damaged or missing: {error}") from None
    for name, digest in digests.items():
        file = path / name
        if not file.is_file():
            raise DamagedError(f"{file} is missing: checkpoint {iteration} is damaged.")
        if _digest(file) != digest:
            raise DamagedError(f"{file} is not what was written: checkpoint {iteration} is damaged.")
    return kept


def newest(folder: Path) -> tuple[int, dict[str, Any], list[str]]:
    """The latest checkpoint that is whole.

    Args:
        folder: the run's.

    Returns:
        Its iteration; what `about` says of it; what was wrong with each later one.

    Raises:
        FileNotFoundError: if there is none.
        DamagedError: if none is whole; names a file of each.
    """
    complaints: list[str] = []
    for iteration in reversed(iterations(folder)):
        try:
            return iteration, about(folder, iteration), complaints
        except DamagedError as error:
            complaints.append(str(error))
    if complaints:
        raise DamagedError(f"No checkpoint of {folder} is whole: {' '.join(complaints)}")
    raise FileNotFoundError(f"{folder / _FOLDER} holds no checkpoint: the run has not come to its first one.")


def restore(folder: Path, iteration: int, like: Any) -> Any:
    """Read a checkpoint's arrays into the host's memory.

    Args:
        folder: the run's.
        iteration: which.
        like: a tree of `jax.ShapeDtypeStruct`, typed keys included: what is expected.

    Returns:
        The tree, of NumPy arrays and of typed keys.

    Raises:
        ValueError: if the structure, a shape or a dtype differs; says where and how.
        DamagedError: if the files cannot be read.
    """
    import orbax.checkpoint as ocp

    path = (folder / _FOLDER / str(iteration) / _STATE).resolve()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.metadata(path).item_metadata.tree
            wanted = ocp.tree.serialize_tree(like, keep_empty_nodes=True)
            _compare(_leaves(found), _leaves(wanted))
            return checkpointer.restore(path, jax.tree.map(_template, like))
    except (ValueError, OSError) as error:
        if isinstance(error, _ShapeError):
            raise
        raise DamagedError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


class _ShapeError(ValueError):
    pass


def _leaves(tree: Any) -> dict[str, Any]:
    """Arrays by their path, names joined by dots, however the tree keeps them."""
    return {
        ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _stored_shape(x: Any) -> tuple[int, ...]:
    """Keys are stored as their numbers."""
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, x).shape
    return tuple(x.shape)


def _compare(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    lacking, beyond = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if lacking or beyond:
        named = [f"{name} is not in it" for name in lacking] + [f"{name} is too much" for name in beyond]
        raise _ShapeError(f"The checkpoint is of another program: {'; '.join(named[:3])}.")
    for name, x in wanted.items():
        if tuple(found[name].shape) != _stored_shape(x):
            raise _ShapeError(
                f"The checkpoint has other shapes: {name} is {list(found[name].shape)} in it, here "
                f"{list(_stored_shape(x))}."
            )
        if not jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) and found[name].dtype != x.dtype:
            raise _ShapeError(
                f"The checkpoint has other types: {name} is {found[name].dtype} in it, here {x.dtype}."
            )


def _template(x: Any) -> Any:
    """What orbax reads as: an array of NumPy, so that placing it is left to the caller."""
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jax.numpy.zeros(_stored_shape(x), jax.numpy.uint32))
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def _seal(told: Mapping[str, Any]) -> str:
    """The digest of what is told, which tells a changed about.json from a whole one."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(like: Any) -> int:
    """Bytes of a tree's arrays.

    Args:
        like: a tree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        Their sum, before any compression.
    """
    return sum(int(np.prod(x.shape)) * _itemsize(x.dtype) for x in jax.tree.leaves(like))


def _itemsize(dtype: Any) -> int:
    return 8 if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: where.
        num_bytes: needed.

    Raises:
        ValueError: if less is free.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"{folder} has {free / 1e9:.2f} GB free, but the checkpoints may take {num_bytes / 1e9:.2f} GB: "
            "name another --out, or keep fewer with --keep."
        )
