#!/usr/bin/env bash
# Datasets, tables and views of BigQuery follow the schemas; nothing is dropped or narrowed.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    local schema=(cargo run --quiet --features cloud -- schema) place=(--project "$GCP_PROJECT" --location "$BIGQUERY_LOCATION")
    [ -z "$BINARIES" ] || schema=("$BINARIES/contextflow" schema)
    cd "$ROOT"
    [ -n "$BINARIES$DRY_RUN" ] || say "build contextflow; the first time that takes some minutes"
    # `diff` ends with 1 where something differs.
    if [ -z "$DRY_RUN" ] && "${schema[@]}" diff "${place[@]}" >/dev/null 2>&1; then
        unchanged "datasets, tables and views"
    else
        say "datasets, tables and views in $BIGQUERY_LOCATION: make what is missing"
        run "${schema[@]}" apply "${place[@]}"
    fi
}

# Removes tables and views by their names, and a dataset only if nothing else is in it.
down() {
    local dataset datasets known name
    if [ -z "$DELETE_DATA" ]; then
        say "tables and views stay (--delete-data removes them)"
        return
    fi
    datasets=$(listed datasetId ls --datasets)
    for dataset in $(datasets); do
        if [ -z "$DRY_RUN" ] && ! grep -qxF "$dataset" <<<"$datasets"; then
            gone "dataset $dataset"
            continue
        fi
        say "dataset $dataset: remove what is ours"
        known=$(listed tableId ls "$dataset")
        # Views first; last what an unfinished backfill left, TABLE__RUN.
        for name in $(views "$dataset") $(tables "$dataset") $(grep -E "^($(tables "$dataset" | paste -sd '|'))__" <<<"$known" || true); do
            if [ -n "$DRY_RUN" ] || grep -qxF "$name" <<<"$known"; then
                run bq --project_id="$GCP_PROJECT" rm --force --table "$GCP_PROJECT:$dataset.$name"
            fi
        done
        known=$(listed tableId ls "$dataset")
        if [ -n "$known" ]; then
            say "dataset $dataset stays: it holds what is not ours: ${known//$'\n'/ }"
        else
            run bq --project_id="$GCP_PROJECT" rm --force --dataset "$GCP_PROJECT:$dataset"
        fi
    done
}

listed() { # FIELD COMMAND...
    local answer
    answer=$(ask bq --project_id="$GCP_PROJECT" --format=json --quiet "$2" --max_results=100000 "${@:3}")
    grep -o "\"$1\":\"[^\"]*\"" <<<"$answer" | cut -d '"' -f 4 | sort -u || true
}

"$1"
