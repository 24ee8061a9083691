#!/usr/bin/env bash
# The topics, and who may publish to which.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

TOPICS=("$RAW_TOPIC" "$ENRICHED_TOPIC" "$DEAD_LETTER_TOPIC" "$BUDGET_TOPIC")
# Who brings the notices of all budgets. Nobody else may: a forged notice could stop the pipeline.
BUDGET_PUBLISHER=serviceAccount:billing-budget-alert@system.gserviceaccount.com

there() { look pubsub topics list --format='value(name.basename())'; }

up() {
    local known topic agent held acted
    known=$(there)
    for topic in "${TOPICS[@]}"; do
        if grep -qxF "$topic" <<<"$known"; then
            unchanged "topic $topic"
        else
            say "topic $topic: make it"
            change pubsub topics create "$topic" --labels=app=contextflow --format=none
        fi
    done

    agent=$(pubsub_agent)
    group=(pubsub topics) named=("$DEAD_LETTER_TOPIC")
    held=$(held "$agent" roles/pubsub.publisher "")
    if [ -z "$held" ]; then
        say "Pub/Sub's own account in this project: see that it is there"
        change beta services identity create --service=pubsub.googleapis.com --format=none
    fi
    acted=$(in_force)
    [[ $acted != *stop* ]] || die "the kill-switch has stopped the publisher; look at the cost, then: contextflow release"
    may_publish "$(member publisher)" "$RAW_TOPIC"
    may_publish "$(member enricher)" "$ENRICHED_TOPIC"
    may_publish "$(member batcher)" "$ENRICHED_TOPIC"
    may_publish "$(member enricher)" "$DEAD_LETTER_TOPIC"
    may_publish "$(member batcher)" "$DEAD_LETTER_TOPIC"
    may_publish "$agent" "$DEAD_LETTER_TOPIC"
    may_publish "$BUDGET_PUBLISHER" "$BUDGET_TOPIC"
    others
}

may_publish() { # MEMBER TOPIC
    grant "$1" roles/pubsub.publisher "" pubsub topics @ "$2"
}

# Takes every other role on the budget's topic away, with whatever condition it was given.
others() {
    local policy role member
    policy=$(look pubsub topics get-iam-policy "$BUDGET_TOPIC" --flatten='bindings[].members[]' --format='value[separator="|"](bindings.role,bindings.members)')
    while IFS='|' read -r role member; do
        [ -n "$role" ] || continue
        if [ "$role $member" != "roles/pubsub.publisher $BUDGET_PUBLISHER" ]; then
            say "$BUDGET_TOPIC: take $role from ${member#*:}"
            change pubsub topics remove-iam-policy-binding "$BUDGET_TOPIC" --member="$member" --role="$role" --format=none
        fi
    done <<<"$policy"
}

down() {
    local known topic
    known=$(there)
    for topic in "${TOPICS[@]}"; do
        if [ -n "$DRY_RUN" ] || grep -qxF "$topic" <<<"$known"; then
            say "topic $topic: remove it"
            change pubsub topics delete "$topic"
        else
            gone "topic $topic"
        fi
    done
}

"$1"
