"""What must be settled before JAX's backend starts: the other processes, CPU devices and threads."""

import contextlib
import os
from pathlib import Path

from pgjax.experiment.options import checked, complain, fail, peek


def start_devices(args: list[str], run: Path | None, *, fill: bool = False) -> None:
    """The other processes, and how many CPU devices there are: both must come before JAX's backend starts.

    One device for each core, seeds being spread over them; a run that goes on has as many as before.

    Args:
        args: what was typed.
        run: the folder of a run that goes on.
        fill: there is work for all cores, however few seeds there are.

    Raises:
        SystemExit: with status 2, if the other processes cannot be reached or the run cannot be read.
    """
    import jax

    from pgjax.experiment import files, processes

    before = checked(lambda: files.read_json(run / "config.json")) if run else {}
    numbers = {
        name: peek(args, f"--{name}", "") for name in ("devices", "processes", "process-index", "seeds")
    }
    given = {name: int(text) for name, text in numbers.items() if text.isdigit()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seeds, spread = given.get("seeds", 1), peek(args, "--shard", "seed") == "data"
    wanted = cores if spread or fill else min(cores, seeds)
    if run:  # of each process, where there were several
        with contextlib.suppress(TypeError, KeyError):  # damaged: it is said where all of it is read
            wanted = before["devices"] // before["processes"]
    wanted = given.get("devices", wanted)
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if isinstance(wanted, int) and wanted >= 1 and not forced:
        with contextlib.suppress(RuntimeError):  # it has started: called from a program of one's own
            jax.config.update("jax_num_cpu_devices", wanted)
    coordinator = peek(args, "--coordinator", "") or None
    try:
        checked(
            lambda: processes.start(
                coordinator, given.get("processes"), given.get("process-index"), warn=complain
            )
        )
    except RuntimeError as error:
        fail(f"The processes did not come together: {error}")


def choose_threads(args: list[str]) -> None:
    """XLA's threads, by what is typed, tuned, or in the run that goes on.

    The whole preset would start JAX's backend.

    Args:
        args: what was typed.
    """
    from pgjax.experiment import files, presets, threads

    tuned = presets.TUNED.get((args[0] if args else "", peek(args, "--env", "")), {})
    network = presets.NetworkSpec(**tuned["network"])._asdict() if "network" in tuned else {}
    preset = {"environment": peek(args, "--env", ""), "options": tuned, "network": network}
    seeds = peek(args, "--seeds", "1")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # it is said where all of it is read
        before = files.read_json(Path(peek(args, "--resume", "")) / "config.json")
        if "threads" in before:
            if str(before["threads"]).isdigit():
                threads.keep_threads(int(before["threads"]))
            return
        preset, seeds = before["preset"], str(before["seeds"])  # of before that was noted
    typed = peek(args, "--num-envs", "")
    num_envs = int(typed) if typed.isdigit() else preset["options"].get("num_envs", 1)
    torso = peek(args, "--network.torso", "") or preset["network"].get("torso", "")
    images = torso == "cnn" or (not torso and preset["environment"].endswith("MinAtar"))
    threads.choose_threads(num_envs * int(seeds) if seeds.isdigit() else num_envs, images=images)
