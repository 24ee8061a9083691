#!/usr/bin/env bash
# The push subscriptions. Pub/Sub signs each push as contextflow-push and tries a message again after 10 s to 10 min, for 31 days.
# The pipeline's have no dead-letter policy: its functions separate poison messages themselves, and a policy would forward the
# whole backlog of an outage once its attempts are used up. The kill-switch's has one, of 100 attempts.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    local agent subscription
    agent=$(pubsub_agent)
    # Projects whose Pub/Sub was enabled before April 2021 need this for signed pushes; in others it changes nothing.
    grant "$agent" roles/iam.serviceAccountTokenCreator "" iam service-accounts @ "$(account push)"

    subscription clickstream-raw-sub "$RAW_TOPIC" enricher /
    subscription clickstream-enriched-sub "$ENRICHED_TOPIC" batcher /
    subscription clickstream-archive-sub "$ENRICHED_TOPIC" batcher /archive
    subscription clickstream-dead-letter-sub "$DEAD_LETTER_TOPIC" batcher /dead-letter
    subscription budget-sub "$BUDGET_TOPIC" kill-switch /

    # The kill-switch turns these into pull subscriptions (brake), and takes the publisher's role from the topic (stop).
    for subscription in "${PIPELINE_SUBSCRIPTIONS[@]}"; do
        grant "$(member kill-switch)" "$BRAKE_ROLE" "" pubsub subscriptions @ "$subscription"
    done
    grant "$(member kill-switch)" "$STOP_ROLE" "" pubsub topics @ "$RAW_TOPIC"
}

subscription() { # NAME TOPIC SERVICE PATH
    local endpoint there wanted audience dead_letters flags
    endpoint=$(address "$3")$4
    audience=$(audience "$3")
    flags=(--push-endpoint="$endpoint" --push-auth-service-account="$(account push)" --push-auth-token-audience="$audience"
        --ack-deadline=60 --min-retry-delay=10s --max-retry-delay=600s --message-retention-duration=31d)
    wanted="$endpoint|$(account push)|$audience|60|10s|600s|2678400s||"
    if [ "$1" = budget-sub ]; then
        dead_letters=projects/$GCP_PROJECT/topics/$DEAD_LETTER_TOPIC
        flags+=(--dead-letter-topic="$dead_letters" --max-delivery-attempts=100)
        wanted+="$dead_letters|100"
    else
        wanted+="|"
    fi
    there=$(look pubsub subscriptions describe "$1" --format='value[separator="|"](
        pushConfig.pushEndpoint,
        pushConfig.oidcToken.serviceAccountEmail,
        pushConfig.oidcToken.audience,
        ackDeadlineSeconds,
        retryPolicy.minimumBackoff,
        retryPolicy.maximumBackoff,
        messageRetentionDuration,
        expirationPolicy.ttl,
        deadLetterPolicy.deadLetterTopic,
        deadLetterPolicy.maxDeliveryAttempts)')
    if [ "${there%%|*}" = "" ] && [ -n "$there" ]; then
        die "nothing is pushed from $1: the kill-switch's brake, or someone's; contextflow release starts it again"
    elif [ "$there" = "$wanted" ]; then
        unchanged "subscription $1"
    elif [ -z "$there" ]; then
        say "subscription $1: make it, pushing to $3$4"
        change_patiently pubsub subscriptions create "$1" --topic="$2" "${flags[@]}" --expiration-period=never --labels=app=contextflow --format=none
    else
        say "subscription $1: give it its settings"
        [ "$(cut -d '|' -f 8 <<<"$there")" = "" ] || flags+=(--expiration-period=never)
        # An update without the flag keeps the policy of an earlier deployment.
        [ "$1" = budget-sub ] || [ "$(cut -d '|' -f 9 <<<"$there")" = "" ] || flags+=(--clear-dead-letter-policy)
        change pubsub subscriptions update "$1" "${flags[@]}" --format=none
    fi
    if [ "$1" = budget-sub ]; then
        grant "$agent" roles/pubsub.subscriber "" pubsub subscriptions @ "$1"
    fi
}

down() {
    local known name
    known=$(look pubsub subscriptions list --format='value(name.basename())')
    for name in budget-sub "${PIPELINE_SUBSCRIPTIONS[@]}"; do
        if [ -n "$DRY_RUN" ] || grep -qxF "$name" <<<"$known"; then
            say "subscription $name: remove it"
            change pubsub subscriptions delete "$name"
        else
            gone "subscription $name"
        fi
    done
}

"$1"
