#!/usr/bin/env bash
# One machine: one process uses all of its devices.
#
#   launch/one_host.sh train --gin_file=gin_configs/experiments/digits.gin --gin.MODEL_DIR="'runs/a'"
#
# PROCESSES=4 starts four instead, on GPU 0 to 3. To try several processes on a CPU:
#
#   PROCESSES=2 JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 launch/one_host.sh train …
#
# Exits with the program's code. 75: stopped and saved; the same command resumes.
set -euo pipefail

program=${1:?"usage: launch/one_host.sh train|eval|sample|encode|interpolate --gin_file=… …"}
shift
python=${PYTHON:-.venv/bin/python}
processes=${PROCESSES:-1}
if [[ ! $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: PROCESSES must be a number of processes, 1 or more, got '$processes'." >&2
    exit 2
fi
if [ "$processes" -eq 1 ]; then
    exec "$python" -m "idode_gin.$program" "$@"
fi

address=localhost:${PORT:-$((20000 + RANDOM % 20000))}
children=()
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT HUP USR1 USR2
for ((index = 0; index < processes; index++)); do
    "$python" -m "idode_gin.$program" "$@" --multiprocess_gpu --coordinator_address="$address" \
        --process_count="$processes" --process_index="$index" --local_device_ids="$index" &
    children+=($!)
done

code=0
for child in "${children[@]}"; do
    status=0
    wait "$child" || status=$?
    while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do # the signal ended only `wait`
        status=0
        wait "$child" || status=$?
    done
    if [ "$status" -ne 0 ]; then code=$status; fi
done
exit "$code"
