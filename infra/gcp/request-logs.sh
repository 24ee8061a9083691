#!/usr/bin/env bash
# Cloud Run writes a log line of about 1 KB for each push that went well; at a high rate they would cost more than the functions.
# They are left out; those of failures stay, and metrics count all.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

NAME=contextflow-requests
FILTER='log_id("run.googleapis.com/requests") AND resource.labels.service_name=("enricher" OR "batcher") AND httpRequest.status<400'

there() {
    local exclusions
    exclusions=$(look logging sinks describe _Default --flatten='exclusions[]' --format='value[separator="|"](exclusions.name,exclusions.filter)')
    grep "^$NAME|" <<<"$exclusions" || true
}

up() {
    local there
    there=$(there)
    if [ "$there" = "$NAME|$FILTER" ]; then
        unchanged "request logs of what went well are left out"
    elif [ -z "$there" ]; then
        say "request logs: leave out what went well"
        change logging sinks update _Default --add-exclusion="name=$NAME,filter=$FILTER" --format=none
    else
        say "request logs: leave out what went well"
        change logging sinks update _Default --update-exclusion="name=$NAME,filter=$FILTER" --format=none
    fi
}

down() {
    local there
    there=$(there)
    if [ -n "$there$DRY_RUN" ]; then
        say "request logs: write them again"
        change logging sinks update _Default --remove-exclusions="$NAME" --format=none
    else
        gone "exclusion $NAME"
    fi
}

"$1"
