#!/usr/bin/env bash
# The scheduled query that removes copies of events from closed days (infra/sql/deduplicate.sql), each night, as the backfill's
# account, which may change tables.
#
# Its name bears a digest of what it does: where that has changed, a new one takes the place of the old one.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

NAME=contextflow-deduplicate
LOCATION=${BIGQUERY_LOCATION,,}
SCHEDULE='every day 03:30'

up() {
    local there query name old
    query=$(json_text <"$ROOT/infra/sql/deduplicate.sql")
    name=$NAME-$(printf '%s' "$query $SCHEDULE $(account backfill)" | digest)
    there=$(scheduled)
    if grep -qF "\"$name\"" <<<"$there"; then
        unchanged "scheduled query $NAME"
    else
        say "scheduled query $NAME: $SCHEDULE"
        # bq tells its faults on standard output.
        patiently run bq --project_id="$GCP_PROJECT" --location="$LOCATION" mk --transfer_config --data_source=scheduled_query \
            --display_name="$name" --schedule="$SCHEDULE" --service_account_name="$(account backfill)" --params="{\"query\": \"$query\"}" >&2
    fi
    for old in $(grep -vF "\"$name\"" <<<"$there" | names); do
        remove "$old"
    done
}

# Of each of ours a line with its name and the one that is shown, in the order in which they come.
scheduled() {
    local there
    there=$(ask bq --project_id="$GCP_PROJECT" --format=json ls --transfer_config --transfer_location="$LOCATION")
    grep -oE '"(name|displayName)":"[^"]*"' <<<"$there" | paste -d ' ' - - | grep -F "\"$NAME-" || true
}

names() { sed -nE 's/.*"name":"([^"]*)".*/\1/p'; }

remove() { # NAME
    say "scheduled query ${1##*/}: remove it"
    run bq --project_id="$GCP_PROJECT" rm --force --transfer_config "$1" >&2
}

# A text as it stands in a string of JSON.
json_text() { sed 's/\\/\\\\/g; s/"/\\"/g' | awk '{ printf "%s\\n", $0 }'; }

down() {
    local there name
    there=$(scheduled | names)
    [ -z "$DRY_RUN" ] || there=projects/$GCP_PROJECT/locations/$LOCATION/transferConfigs/ID
    [ -n "$there" ] || gone "scheduled query $NAME"
    for name in $there; do
        remove "$name"
    done
    [ -z "$DELETE_DATA" ] || run bq --project_id="$GCP_PROJECT" rm --force --table "$GCP_PROJECT:contextflow.deduplications"
}

"$1"
