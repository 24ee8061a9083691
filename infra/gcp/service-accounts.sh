#!/usr/bin/env bash
# One service account a function, so that each holds only its own roles (granted where the resource is made), one that
# Pub/Sub pushes as, and one that builds the job's image. None has a key.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

ACCOUNTS=(publisher enricher batcher kill-switch backfill push build)

there() { look iam service-accounts list --format='value(email)'; }

up() {
    local known name
    known=$(there)
    for name in "${ACCOUNTS[@]}"; do
        if grep -qxF "$(account "$name")" <<<"$known"; then
            unchanged "service account contextflow-$name"
        else
            say "service account contextflow-$name: make it"
            change iam service-accounts create "contextflow-$name" --display-name="ContextFlow $name" --format=none
        fi
    done
}

down() {
    local known name
    known=$(there)
    for name in "${ACCOUNTS[@]}"; do
        if [ -n "$DRY_RUN" ] || grep -qxF "$(account "$name")" <<<"$known"; then
            say "service account contextflow-$name: remove it"
            change iam service-accounts delete "$(account "$name")"
        else
            gone "service account contextflow-$name"
        fi
    done
}

"$1"
