#!/usr/bin/env bash
# Runs a command as the last thing of a SLURM batch script, and queues the job again if it was
# stopped (exit code 75: saved, goes on from there). Any other code is the job's own: 0 is done, 2 and
# 3 would only come again.
#
#   launch/requeue.sh srun … python -m idode_gin.train …
set -uo pipefail

"$@"
code=$?
if [ "$code" -eq 75 ]; then
    echo "Stopped and saved. Queued again: job ${SLURM_JOB_ID}, restart $((${SLURM_RESTART_COUNT:-0} + 1))."
    scontrol requeue "$SLURM_JOB_ID" || exit "$code"
    exit 0
fi
exit "$code"
