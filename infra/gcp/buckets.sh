#!/usr/bin/env bash
# The two buckets: of the events (archive and dead letters), and our own (lookup table, records of kill-switch and backfill,
# what images are built from). Neither can be public. Events move to colder classes after 30, 90 and 365 days and are deleted after
# 3 years; dead letters stay at hand for 180 days and are deleted after 5 years; what marks an id as seen is deleted after 7 days:
# `lifecycle-events.json`.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

GEO=gs://$OWN_BUCKET/enrichment/geo_lookup.csv

buckets() { "${HOW:-change}" storage buckets "$@"; }

up() {
    local folder
    folder=$(folder_for buckets)
    sed "s|\${EVENT_PREFIXES}|$(event_prefixes)|" lifecycle-events.json >"$folder/lifecycle-events.json"
    cp lifecycle-own.json "$folder"
    bucket "$EVENTS_BUCKET" "$folder/lifecycle-events.json"
    bucket "$OWN_BUCKET" "$folder/lifecycle-own.json"
    geo
    access grant
}

# The folders of the event types, as JSON. A lifecycle rule knows no exception, and dead letters are beside them.
event_prefixes() {
    local file names=
    for file in "$ROOT"/shared/schemas/*.json; do
        grep -q '"ingest": "batch"' "$file" || names+=", \"archive/$(basename "$file" .json)/\""
    done
    echo "[${names#, }]"
}

bucket() { # NAME LIFECYCLE-FILE
    local there wanted label
    label=$(digest <"$2")
    there=$(HOW=look buckets describe "gs://$1" --format='value[separator="|"](uniform_bucket_level_access,public_access_prevention,labels.lifecycle)')
    wanted="True|enforced|$label"
    if [ "$there" = "$wanted" ]; then
        unchanged "bucket $1"
        return
    fi
    if [ -z "$there" ]; then
        say "bucket $1: make it in $GCP_REGION"
        buckets create "gs://$1" --location="$GCP_REGION" --uniform-bucket-level-access --public-access-prevention --lifecycle-file="$2" --format=none
    fi
    say "bucket $1: its access and lifecycle"
    buckets update "gs://$1" --uniform-bucket-level-access --public-access-prevention --lifecycle-file="$2" --update-labels="app=contextflow,lifecycle=$label" --format=none
}

# A table that is there may be a better one, of yours: it stays.
geo() {
    local there
    there=$(look storage objects describe "$GEO" --format='value(name)')
    if [ -n "$there" ]; then
        unchanged "$GEO"
    else
        say "$GEO: copy the built-in table"
        change storage cp "$ROOT/shared/lookups/geo_lookup.csv" "$GEO"
    fi
}

# Roles on objects of a name. Who may not list a bucket is told "forbidden" of an object that is not there; so whose work
# begins with an object that is not there yet may also list the names.
access() { # grant|revoke
    local own=projects/_/buckets/$OWN_BUCKET events=projects/_/buckets/$EVENTS_BUCKET geo schemas name
    geo=$(object_at "$(value_of GEO_URI)")
    "$1" "$(member enricher)" roles/storage.objectViewer "resource.name == \"$own/objects/${geo:-${GEO#gs://*/}}\"" storage buckets @ "gs://$OWN_BUCKET"
    "$1" "$(member backfill)" roles/storage.objectViewer "resource.name == \"$own/objects/${geo:-${GEO#gs://*/}}\"" storage buckets @ "gs://$OWN_BUCKET"
    schemas=$(object_at "$(value_of SCHEMAS_URI)")
    for name in ${schemas:+enricher batcher backfill}; do
        "$1" "$(member "$name")" roles/storage.objectViewer "resource.name == \"$own\" || resource.name.startsWith(\"$own/objects/${schemas%/}/\")" storage buckets @ "gs://$OWN_BUCKET"
    done
    "$1" "$(member enricher)" roles/storage.objectCreator "resource.name.startsWith(\"$events/objects/archive/dead-letter/raw/\")" storage buckets @ "gs://$EVENTS_BUCKET"
    "$1" "$(member enricher)" roles/storage.objectUser "resource.name == \"$events\" || resource.name.startsWith(\"$events/objects/archive/first-seen/\")" storage buckets @ "gs://$EVENTS_BUCKET"
    "$1" "$(member batcher)" roles/storage.objectCreator "resource.name.startsWith(\"$events/objects/archive/\")" storage buckets @ "gs://$EVENTS_BUCKET"
    "$1" "$(member kill-switch)" roles/storage.objectUser "resource.name == \"$own\" || resource.name.startsWith(\"$own/objects/kill-switch/\")" storage buckets @ "gs://$OWN_BUCKET"
    "$1" "$(member backfill)" roles/storage.objectUser "resource.name == \"$own\" || resource.name.startsWith(\"$own/objects/backfill/\")" storage buckets @ "gs://$OWN_BUCKET"
    "$1" "$(member backfill)" roles/storage.objectViewer "resource.name == \"$events\" || resource.name.startsWith(\"$events/objects/archive/\")" storage buckets @ "gs://$EVENTS_BUCKET"
    "$1" "$(member build)" roles/storage.objectViewer "resource.name.startsWith(\"$own/objects/builds/\")" storage buckets @ "gs://$OWN_BUCKET"
}

# The name of what lies in our own bucket; of what lies elsewhere nothing, and whose bucket it is gives the right to it.
object_at() { # URI
    [[ $1 != "gs://$OWN_BUCKET/"* ]] || echo "${1#"gs://$OWN_BUCKET/"}"
}

down() {
    local name there
    if [ -z "$DELETE_DATA" ]; then
        say "buckets $EVENTS_BUCKET and $OWN_BUCKET stay (--delete-data removes them)"
        access revoke
        return
    fi
    for name in "$EVENTS_BUCKET" "$OWN_BUCKET"; do
        there=$(HOW=look buckets describe "gs://$name" --format='value(name)')
        if [ -n "$there$DRY_RUN" ]; then
            say "bucket $name: remove it with all that is in it"
            change storage rm "gs://$name" --recursive
        else
            gone "bucket $name"
        fi
    done
}

"$1"
