#!/usr/bin/env bash
# Runs the last command of a SLURM batch script, and requeues the job if the command was stopped
# (exit code 75: saved, can resume). The job exits with any other code: 0 is done, and 2 and 3 would
# only occur again.
#
#   launch/requeue.sh srun … python -m idode_gin.train …
set -uo pipefail

"$@"
code=$?
if [ "$code" -eq 75 ]; then
    echo "Stopped and saved. Requeued: job ${SLURM_JOB_ID}, restart $((${SLURM_RESTART_COUNT:-0} + 1))."
    scontrol requeue "$SLURM_JOB_ID" || exit "$code"
    exit 0
fi
exit "$code"
