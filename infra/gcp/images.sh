#!/usr/bin/env bash
# Where Cloud Build puts images: a repository, and the account that builds. Of the job always, and of the services where this
# gcloud cannot deploy a binary as it is.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

REPOSITORY=(contextflow --location="$GCP_REGION")

up() {
    local there
    there=$(look artifacts repositories describe "${REPOSITORY[@]}" --format='value(name)')
    if [ -n "$there" ]; then
        unchanged "repository contextflow"
    else
        say "repository contextflow, for images: make it"
        change artifacts repositories create "${REPOSITORY[@]}" --repository-format=docker --labels=app=contextflow --format=none
    fi
    grant "$(member build)" roles/artifactregistry.writer "" artifacts repositories @ "${REPOSITORY[@]}"
    grant "$(member build)" roles/logging.logWriter "" projects @ "$GCP_PROJECT"
}

down() {
    local there
    there=$(look artifacts repositories describe "${REPOSITORY[@]}" --format='value(name)')
    if [ -n "$there$DRY_RUN" ]; then
        say "repository contextflow: remove it with its images"
        change artifacts repositories delete "${REPOSITORY[@]}" --format=none
    else
        gone "repository contextflow"
    fi
    revoke "$(member build)" roles/logging.logWriter "" projects @ "$GCP_PROJECT"
}

"$1"
