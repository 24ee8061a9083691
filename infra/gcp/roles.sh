#!/usr/bin/env bash
# Roles of our own, where Google's hold more than a function needs: its editor of tables may drop them, its editor of
# subscriptions may take events, its administrator of topics may publish.
#
# Google keeps the name of a removed role: for 7 days it can be taken back, and for 30 more it can be neither taken back nor given again.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    role "$APPEND_ROLE" "append to tables" bigquery.tables.get,bigquery.tables.updateData
    role "$BRAKE_ROLE" "change subscriptions" pubsub.subscriptions.get,pubsub.subscriptions.update
    role "$STOP_ROLE" "change who publishes" pubsub.topics.getIamPolicy,pubsub.topics.setIamPolicy
}

role() { # NAME TITLE PERMISSIONS
    local id=${1##*/} there
    there=$(look iam roles list --format='value(name.basename())')
    if ! grep -qxF "$id" <<<"$there"; then
        there=$(look iam roles list --show-deleted --format='value(name.basename())')
        if grep -qxF "$id" <<<"$there"; then
            say "role $id: it was removed; take it back"
            change iam roles undelete "$id" --format=none ||
                die "Google takes a role back for 7 days only, and gives its name again after 30 more: until then set ROLE_PREFIX=contextflow2 in $SETTINGS"
        else
            say "role $id: make it"
            change iam roles create "$id" --title="ContextFlow: $2" --permissions="$3" --stage=GA --format=none
            return
        fi
    fi
    there=$(look iam roles describe "$id" --format='value(includedPermissions.list(separator=","))')
    if [ "$there" = "$3" ]; then
        unchanged "role $id"
    else
        say "role $id: $3"
        change iam roles update "$id" --permissions="$3" --format=none
    fi
}

down() {
    local there name
    there=$(look iam roles list --format='value(name.basename())')
    for name in "$APPEND_ROLE" "$BRAKE_ROLE" "$STOP_ROLE"; do
        if [ -n "$DRY_RUN" ] || grep -qxF "${name##*/}" <<<"$there"; then
            say "role ${name##*/}: remove it"
            change iam roles delete "${name##*/}" --format=none
        else
            gone "role ${name##*/}"
        fi
    done
}

"$1"
