#!/usr/bin/env bash
# Set up the Prefect server of PREFECT_API_URL for openba: the work pool, its queues with their limits, every deployment
# of prefect.yaml, and the automations against dead runs. Idempotent; runs from any folder.
#   infra/prefect/deploy.sh [GPU_RUNS]     # how many trainings and evaluations may run at a time; 1 by default
set -euo pipefail
: "${PREFECT_API_URL:?set it to the address of the Prefect server, such as http://127.0.0.1:4200/api}"
gpu_runs=${1:-1}
folder=$(cd "$(dirname "$0")" && pwd)
pool=openba

prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect work-pool create "$pool" --type process
prefect work-queue inspect gpu --pool "$pool" >/dev/null 2>&1 || prefect work-queue create gpu --pool "$pool"
prefect work-queue set-concurrency-limit gpu "$gpu_runs" --pool "$pool"
cd "$folder/../.."
prefect --no-prompt deploy --all
prefect automation inspect openba-crash-pending >/dev/null 2>&1 ||
  prefect automation create --from-file "$folder/automations.yaml"
