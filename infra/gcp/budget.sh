#!/usr/bin/env bash
# The budget of this project, a month: it stops nothing, its notices go to the kill-switch. The thresholds only decide when Google
# sends an e-mail as well; notices come several times a day in any case.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

TOPIC=projects/$GCP_PROJECT/topics/$BUDGET_TOPIC

budgets() {
    "${HOW:-change}" billing budgets "$@" --billing-account="$BILLING_ACCOUNT" --billing-project="$GCP_PROJECT"
}

up() {
    local id there amount currency percent wanted credits counts rules=() shares=
    read -r amount currency <<<"$MONTHLY_LIMIT"
    for percent in $(printf '%s\n' 50 "$BRAKE_AT" "$STOP_AT" "$DETACH_AT" | sort -nu); do
        percent=$(awk "BEGIN { print $percent / 100 }")
        shares+=${shares:+;}$percent
        rules+=("percent=$percent")
    done
    # A credit would hide what is spent until it is used up, and then all of it is seen at once.
    credits=${BUDGET_CREDITS:-exclude}-all-credits
    counts=(--filter-projects="projects/$GCP_PROJECT" --calendar-period=month --credit-types-treatment="$credits")
    id=$(budget_id)
    if [ -z "$id" ] || [ -n "$DRY_RUN" ]; then
        say "budget $BUDGET: make it"
        budgets create --display-name="$BUDGET" --budget-amount="$amount$currency" "${counts[@]}" \
            "${rules[@]/#/--threshold-rule=}" --notifications-rule-pubsub-topic="$TOPIC" --format=none
        return
    fi
    there=$(HOW=look budgets describe "$id" --format='value[separator="|"](
        amount.specifiedAmount.units,
        amount.specifiedAmount.currencyCode,
        thresholdRules.thresholdPercent.list(separator=";"),
        notificationsRule.pubsubTopic,
        budgetFilter.calendarPeriod,
        budgetFilter.creditTypesTreatment,
        budgetFilter.projects.list())' | sed 's/\.0\([;|]\)/\1/g')
    wanted="$amount|$currency|$shares|$TOPIC|MONTH|$(tr 'a-z-' 'A-Z_' <<<"$credits")"
    # Google tells the project by its number.
    if [ "$there" = "$wanted|projects/$GCP_PROJECT" ] || [ "$there" = "$wanted|projects/$(project_number)" ]; then
        unchanged "budget $BUDGET"
    else
        say "budget $BUDGET: $MONTHLY_LIMIT a month"
        budgets update "$id" --budget-amount="$amount$currency" "${counts[@]}" --clear-threshold-rules "${rules[@]/#/--add-threshold-rule=}" \
            --notifications-rule-pubsub-topic="$TOPIC" --format=none
    fi
}

down() {
    local id
    id=$(budget_id)
    if [ -n "$id" ]; then
        say "budget $BUDGET: remove it"
        budgets delete "$id"
    else
        gone "budget $BUDGET"
    fi
}

"$1"
