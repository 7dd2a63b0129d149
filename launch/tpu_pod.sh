#!/usr/bin/env bash
# A Cloud TPU pod slice: the same command on every worker, which detect each other.
#
#   TPU=my-pod ZONE=us-central2-b launch/tpu_pod.sh train \
#       --gin_file=gin_configs/experiments/imagenet32_new.gin --gin.MODEL_DIR="'gs://bucket/runs/a'" \
#       --tfds_data_dir=gs://bucket/tfds
#
# Every worker has the clone in FOLDER, set up with `make setup EXTRAS=tpu,gcs`. MODEL_DIR is in a bucket,
# or on a disk that all workers have mounted; what is in a bucket of the data, each worker copies first.
# gcloud does not distinguish 75 from other failures: see `exit_reason` in MODEL_DIR/summary.json.
set -euo pipefail

program=${1:?"usage: TPU=… ZONE=… launch/tpu_pod.sh train|eval|sample|encode|interpolate --gin_file=… …"}
shift
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"
arguments=""
[ $# -eq 0 ] || arguments=$(printf ' %q' "$@")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd ${FOLDER:-idode_gin} && exec ${PYTHON:-.venv/bin/python} -m idode_gin.$program --multiprocess_gpu$arguments"
