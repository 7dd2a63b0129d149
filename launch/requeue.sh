#!/usr/bin/env bash
# Runs the last command of a SLURM batch script, and requeues the job if the command was stopped
# (exit code 75: saved, can resume). The job exits with any other code: 0 is done, and others need
# someone who reads the error.
#
#   launch/requeue.sh srun … python -m idode_gin.train …
set -uo pipefail

"$@"
code=$?
if [ "$code" -eq 75 ]; then
    # SLURM_JOB_ID of the last task of a job array is the number of the array: all of its tasks.
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    job=${job:-$SLURM_JOB_ID}
    echo "Stopped and saved. Requeued: job $job, restart $((${SLURM_RESTART_COUNT:-0} + 1))."
    scontrol requeue "$job" || exit "$code"
    exit 0
fi
exit "$code"
