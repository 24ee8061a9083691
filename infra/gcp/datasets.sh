#!/usr/bin/env bash
# Who may write into the datasets: the batcher into those of streamed events, the backfill into all, and it may run jobs.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    local dataset
    for dataset in $(streamed_datasets); do
        writer batcher "$dataset"
    done
    for dataset in $(datasets); do
        writer backfill "$dataset"
    done
    grant "$(member backfill)" roles/bigquery.jobUser "" projects @ "$GCP_PROJECT"
}

# BigQuery keeps a dataset's roles in the dataset itself; WRITER is roles/bigquery.dataEditor there.
writer() { # ACCOUNT DATASET
    local email there file
    email=$(account "$1")
    there=$(ask bq --project_id="$GCP_PROJECT" --format=json show --dataset "$GCP_PROJECT:$2")
    if [[ $there == *"\"$email\""* ]]; then
        unchanged "contextflow-$1 writes into $2"
        return
    fi
    say "dataset $2: let contextflow-$1 write"
    file=$(folder_for datasets)/$2.json
    printf '%s\n' "$there" | sed "s/\"access\": *\[/&{\"role\": \"WRITER\", \"userByEmail\": \"$email\"}, /" >"$file"
    run bq --project_id="$GCP_PROJECT" update --source "$file" "$GCP_PROJECT:$2"
}

# The datasets' own lists stay with them: an account that is gone counts for nothing there.
down() {
    revoke "$(member backfill)" roles/bigquery.jobUser "" projects @ "$GCP_PROJECT"
}

"$1"
