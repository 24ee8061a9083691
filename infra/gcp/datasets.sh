#!/usr/bin/env bash
# Who may write into the datasets: the batcher may append to tables of streamed events, the backfill may make and replace
# tables of all, and run jobs.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    local dataset
    for dataset in $(streamed_datasets); do
        writer batcher "$dataset" "$APPEND_ROLE"
    done
    for dataset in $(datasets); do
        writer backfill "$dataset" WRITER
    done
    grant "$(member backfill)" roles/bigquery.jobUser "" projects @ "$GCP_PROJECT"
}

# BigQuery keeps a dataset's roles in the dataset itself; WRITER is roles/bigquery.dataEditor there.
writer() { # ACCOUNT DATASET ROLE
    local there file entry
    entry="{\"role\":\"$3\",\"userByEmail\":\"$(account "$1")\"}"
    there=$(ask bq --project_id="$GCP_PROJECT" --format=json show --dataset "$GCP_PROJECT:$2")
    [ -n "$there$DRY_RUN" ] || die "there is no dataset $2; run deploy.sh --only schema"
    if [[ $there == *"$entry"* ]]; then
        unchanged "$3 of contextflow-$1 on dataset $2"
        return
    fi
    say "dataset $2: give $3 to contextflow-$1"
    file=$(folder_for datasets)/$2.json
    printf '%s\n' "$there" | sed "s|\"access\": *\[|&$entry,|" >"$file"
    patiently update "$file" "$2"
}

# bq tells its faults on standard output.
update() { # FILE DATASET
    run bq --project_id="$GCP_PROJECT" update --source "$1" "$GCP_PROJECT:$2" >&2
}

# Takes what contextflow-batcher and contextflow-backfill may do out of a dataset that stays: an entry of an account that is gone may
# not be sent again.
no_writers() { # DATASET
    local there entries file
    there=$(ask bq --project_id="$GCP_PROJECT" --format=json show --dataset "$GCP_PROJECT:$1")
    entries="\{\"role\":\"[^\"]*\",\"userByEmail\":\"($(account batcher)|$(account backfill))\"\},?"
    if [ -z "$DRY_RUN" ] && ! grep -qE "$entries" <<<"$there"; then
        return
    fi
    say "dataset $1: take the rights of contextflow-batcher and contextflow-backfill out"
    file=$(folder_for datasets)/$1.json
    sed -E "s/$entries//g; s/,\]/]/g" <<<"$there" >"$file"
    update "$file" "$1"
}

down() {
    local dataset
    for dataset in $(datasets); do
        no_writers "$dataset"
    done
    revoke "$(member backfill)" roles/bigquery.jobUser "" projects @ "$GCP_PROJECT"
}

"$1"
