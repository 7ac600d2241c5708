"""Compiled programs that outlive the command which compiled them."""

import contextlib
import functools
import hashlib
import os
import platform
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
from jax import monitoring

MAX_BYTES = 512 * 2**20
"""What the kept programs of a machine may fill; one of PPO takes half a megabyte."""

_SWITCH = "PGJAX_COMPILATION_CACHE"
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"
_ZLIB = b"\x78"  # how a zlib stream begins; jax writes others where it finds another compressor
_events: Counter[str] = Counter()


def keep_programs(warn: Callable[[str], None]) -> Path | None:
    """Let jax keep what this process compiles, and load what an earlier one has compiled.

    The folder is `$XDG_CACHE_HOME/pgjax` or `~/.cache/pgjax`, in it one for each kind of processor: jax
    would run a program for another processor, and crash. One that the user has named,
    `JAX_COMPILATION_CACHE_DIR`, is taken as it is, and nothing is ever removed from it. Nothing is kept if
    `PGJAX_COMPILATION_CACHE` or `JAX_ENABLE_COMPILATION_CACHE` is 0.

    It must come before the first program is compiled.

    Args:
        warn: called with one line where the folder cannot be written to; everything is compiled anew then.

    Returns:
        The folder, or None if nothing is kept.
    """
    if os.environ.get(_SWITCH, "").lower() in ("0", "false", "off", "no"):
        jax.config.update("jax_enable_compilation_cache", False)
    options = jax.config.values
    if not options["jax_enable_compilation_cache"]:
        return None
    named = options["jax_compilation_cache_dir"]
    if named:
        folder = Path(named)
    else:
        folder = _base() / "pgjax" / f"programs-{_processor()}"
        try:
            # whoever can write here can make this user run anything
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            drop_damaged(folder)
            trim(folder, MAX_BYTES)
        except OSError as error:
            warn(
                f"compiled programs cannot be kept in {folder}: {error.strerror or error}. Name another "
                f"folder by JAX_COMPILATION_CACHE_DIR, or set {_SWITCH}=0."
            )
            return None
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # the small programs too: there are many, and each costs more to compile than to load
    defaults = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in defaults.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    _listen()
    return folder


def loaded() -> tuple[int, int]:
    """How many programs were there already.

    Returns:
        The number of those that were loaded, and of all; both 0 if nothing is kept.
    """
    return _events[_HIT], _events[_REQUEST]


def drop_damaged(folder: Path) -> None:
    """Remove programs whose writing was cut off: jax would neither use nor replace them.

    Args:
        folder: of the programs; those that were whole the last time are not looked at again.
    """
    stamp = folder / "checked"
    since = stamp.stat().st_mtime_ns if stamp.exists() else 0
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another command may be at it as well
            if path.stat().st_mtime_ns >= since and not _is_whole(path.read_bytes()):
                path.unlink()
    stamp.touch()


def trim(folder: Path, max_bytes: int) -> None:
    """Remove the programs that were used longest ago until the rest fits.

    Args:
        folder: of the programs.
        max_bytes: what may stay.
    """
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            if path.is_file():
                found.append((max(about.st_atime_ns, about.st_mtime_ns), about.st_size, path))
    excess = sum(size for _, size, _ in found) - max_bytes
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


@functools.cache  # once a process
def _listen() -> None:
    monitoring.register_event_listener(_count)


def _count(event: str, **_: str | int) -> None:
    if event in (_HIT, _REQUEST):
        _events[event] += 1


def _is_whole(data: bytes) -> bool:
    if data and not data.startswith(_ZLIB):
        return True
    stream = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        stream.decompress(data)
    return stream.eof


def _base() -> Path:
    """Of the user's caches; a relative path in the variable counts as none, as its standard says."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path(os.path.expanduser("~")) / ".cache"


def _processor() -> str:
    """A name for what programs are compiled for: the model and the instructions it knows."""
    about = [platform.system(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        first, *_ = Path("/proc/cpuinfo").read_text().split("\n\n")
        about += re.findall(r"^(?:model name|flags|Features|CPU \w+)\s*:.*", first, re.MULTILINE)
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
