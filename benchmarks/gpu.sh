#!/usr/bin/env bash
# Everything that is to be measured on an accelerator, in ten minutes: see accelerator.py.
#
#   benchmarks/gpu.sh                              # results beside the others
#   benchmarks/gpu.sh --minutes 5 --parts scan     # options of accelerator.py
#   benchmarks/gpu.sh learning --runs FOLDER       # no ten minutes: replay and values on MinAtar at full length
#   WHEELS=wheels OUT=out benchmarks/gpu.sh        # packages from a folder, results into another
#
# WHEELS: a folder of wheels, installed without any index, for a machine that reaches none:
#         pip download --only-binary=:all: -c constraints.txt -d wheels \
#             flax optax gymnax gymnasium chex tyro orbax-checkpoint six
#         Those of jax are passed over where the interpreter has jax: its own knows the accelerator.
# OUT:    where the results go.
# LIMIT:  seconds in all, 600.
# PYTHON: the interpreter; it should have jax for its accelerator already.
set -euo pipefail
[[ -z ${WHEELS:-} || $WHEELS == /* ]] || WHEELS=$PWD/$WHEELS
[[ -z ${OUT:-} || $OUT == /* ]] || OUT=$PWD/$OUT
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
limit=${LIMIT:-600} # installing included
begin=$SECONDS

if [[ -n ${WHEELS:-} ]]; then
    shopt -s nullglob
    wheels=("$WHEELS"/*.whl)
    if ((${#wheels[@]} == 0)); then
        echo "gpu.sh: there is no wheel in WHEELS=$WHEELS." >&2
        exit 2
    fi
    if "$python" -c 'import jax' 2>/dev/null; then
        others=()
        for wheel in "${wheels[@]}"; do
            [[ ${wheel##*/} == jax[-_l]* ]] || others+=("$wheel")
        done
        wheels=(${others[@]+"${others[@]}"})
    fi
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if ((${#wheels[@]} > 0)); then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "${wheels[@]}"
    fi
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

missing=$("$python" - <<'PYTHON'
import importlib.util

names = ("jax", "flax", "optax", "gymnax", "gymnasium", "chex", "tyro", "orbax", "rich", "matplotlib", "scipy", "six")
print(*(name for name in names if importlib.util.find_spec(name) is None))
PYTHON
)
if [[ -n $missing ]]; then
    echo "gpu.sh: $python lacks $missing. Install them, or name a folder of their wheels: WHEELS=folder." >&2
    exit 2
fi

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
else
    echo "gpu.sh: nvidia-smi is not here; jax says below what it runs on." >&2
fi
"$python" -c 'import jax; print(jax.__version__, jax.default_backend(), *jax.devices())'

options=()
[[ -n ${OUT:-} ]] && options+=(--results "$OUT")
if [[ ${1:-} == learning ]]; then
    "$python" -m benchmarks.learning --full ${options[@]+"${options[@]}"} "${@:2}"
    exit
fi
status=0
left=$((limit - SECONDS + begin))
timeout --signal=INT --kill-after=10 $((left > 0 ? left : 1)) \
    "$python" -m benchmarks.accelerator ${options[@]+"${options[@]}"} "$@" || status=$?
if ((status == 124 || status == 137)); then
    echo "gpu.sh: cut off after $limit s; what was measured before is in ${OUT:-benchmarks/results}." >&2
fi
exit "$status"
