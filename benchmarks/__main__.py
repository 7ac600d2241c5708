"""Run a chosen set of benchmarks, each in a process of its own.

    python -m benchmarks                         # those of one machine, about half an hour on two cores
    python -m benchmarks throughput fisher       # some of them
    python -m benchmarks throughput --turns 9    # with options of its own; `--help` shows them
    python -m benchmarks --quick                 # does everything run? Nothing is saved
    python -m benchmarks tables                  # write the tables of the README anew from the results

Results go to benchmarks/results/<device>-<date>.json, with their tables beside them.
"""

import pathlib
import subprocess
import sys

BY_DEFAULT = ("throughput", "estimators", "fisher", "compile_time", "memory")
OTHERS = (
    "peers",
    "learning",
    "tables",
    "accelerator",
    "audit",
    "host_side",
    "kill",
    "ppo_details",
    "recurrence",
)
OTHERS += ("scaling",)


def main(arguments: list[str]) -> int:
    """Run them; the exit status is that of the worst."""
    names = []
    while arguments and not arguments[0].startswith("-"):
        names.append(arguments.pop(0))
    if not names and any(a in ("-h", "--help") for a in arguments):
        print(f"{__doc__}\nThere are: {', '.join((*BY_DEFAULT, *OTHERS))}.")
        return 0
    unknown = [name for name in names if name not in (*BY_DEFAULT, *OTHERS)]
    if unknown:
        known = ", ".join((*BY_DEFAULT, *OTHERS))
        print(f"No benchmark {unknown[0]!r}. There are: {known}.", file=sys.stderr)
        return 2
    worst = 0
    for name in names or BY_DEFAULT:
        print(f"--- {name}", flush=True)
        call = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        worst = max(worst, abs(subprocess.run(call, cwd=pathlib.Path(__file__).parents[1]).returncode))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
