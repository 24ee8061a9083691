#!/usr/bin/env bash
# The backfill, a job of Cloud Run that loads history: it runs when it is told to. Its binary is put into a minimal image by
# Cloud Build, since gcloud deploys binaries as they are only as services.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh
# shellcheck source-path=SCRIPTDIR source=binaries.sh
. ./binaries.sh

up() {
    local there deployed folder
    build backfill
    set -- --service-account="$(account backfill)" --cpu=1 --memory=1Gi --tasks=1 --max-retries=0 --task-timeout=24h \
        --set-env-vars="$(environment backfill "BIGQUERY_LOCATION=$BIGQUERY_LOCATION" "ARCHIVE_URI=gs://$EVENTS_BUCKET/archive" \
            "DEAD_LETTERS_URI=gs://$OWN_BUCKET/backfill/dead-letters" "STATE_URI=gs://$OWN_BUCKET/backfill/state")"
    deployed=$(printf '%s\n' "$@" "$(code backfill)" | digest)
    there=$(look run jobs describe backfill --region="$GCP_REGION" --format='value(metadata.labels.deployed)')
    if [ "$there" = "$deployed" ]; then
        unchanged "job backfill"
        return
    fi
    folder=$(folder_for backfill)
    image backfill "$folder"
    say "job backfill: deploy it"
    change_patiently run jobs deploy backfill --image="$(image_name backfill)" --region="$GCP_REGION" "$@" \
        --labels="app=contextflow,deployed=$deployed" --format=none
}

down() {
    local there
    there=$(look run jobs describe backfill --region="$GCP_REGION" --format='value(metadata.name)')
    if [ -n "$there$DRY_RUN" ]; then
        say "job backfill: remove it"
        change run jobs delete backfill --region="$GCP_REGION"
    else
        gone "job backfill"
    fi
}

"$1"
