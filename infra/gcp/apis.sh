#!/usr/bin/env bash
# The APIs of Google Cloud that the pipeline and its deployment use.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

APIS=(
    artifactregistry bigquery bigquerydatatransfer bigquerystorage billingbudgets cloudbilling cloudbuild cloudresourcemanager iam iamcredentials
    logging monitoring pubsub run serviceusage storage sts
)

up() {
    local enabled api missing=()
    enabled=$(look services list --enabled --format='value(config.name)')
    for api in "${APIS[@]}"; do
        grep -qxF "$api.googleapis.com" <<<"$enabled" || missing+=("$api.googleapis.com")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        unchanged "the APIs"
        return
    fi
    say "enable ${#missing[@]} APIs; this takes a minute or two"
    change services enable "${missing[@]}"
}

# They cost nothing, and something else in the project may use them.
down() {
    say "the APIs stay enabled: they cost nothing, and something else in the project may use them"
}

"$1"
