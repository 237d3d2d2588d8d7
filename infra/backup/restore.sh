#!/usr/bin/env bash
# Restore what backup.sh has copied into empty databases and buckets:
#   infra/backup/restore.sh FOLDER
# The same variables as for backup.sh. Stop Prefect, MLflow, workers and jobs first. What is in the databases `prefect`
# and `mlflow` is replaced.
set -euo pipefail
folder=${1:?usage: restore.sh FOLDER}
here=$(dirname "$0")
if [[ ! -f $folder/COMPLETE ]]; then
  echo "restore.sh: $folder: no file COMPLETE in it, the backup was cut short; take an older one" >&2
  exit 2
fi
for database in prefect mlflow; do
  psql --dbname=postgres --quiet --command="DROP DATABASE IF EXISTS $database" --command="CREATE DATABASE $database"
  pg_restore --dbname="$database" --exit-on-error --no-owner "$folder/$database.dump"
done
python "$here/../compose/buckets.py" openba mlflow
for bucket in mlflow openba; do
  python "$here/buckets.py" "$folder/$bucket" "s3://$bucket" always
done
