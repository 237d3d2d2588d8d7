#!/usr/bin/env bash
# Copy the databases of Prefect and MLflow, MLflow's artifacts and the outputs of steps to a folder:
#   infra/backup/backup.sh FOLDER
# PGHOST, PGPORT, PGUSER and PGPASSWORD name the Postgres server; AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and
# AWS_SECRET_ACCESS_KEY the object store. Databases first: an output that is newer than a database is harmless, a run
# without its output is not. An incomplete backup has no file COMPLETE.
set -euo pipefail
folder=${1:?usage: backup.sh FOLDER}
buckets=$(dirname "$0")/buckets.py
umask 077
mkdir -p "$folder"
rm -f "$folder/COMPLETE"
for database in prefect mlflow; do
  pg_dump --format=custom --file="$folder/$database.dump.part" "$database"
  mv "$folder/$database.dump.part" "$folder/$database.dump"
done
python "$buckets" s3://mlflow "$folder/mlflow" always
python "$buckets" s3://openba "$folder/openba" size
date --utc +%FT%TZ >"$folder/COMPLETE"
