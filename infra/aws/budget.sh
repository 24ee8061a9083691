#!/usr/bin/env bash
# The AWS budget: a day's cost of the account, with an e-mail to ALERT_EMAIL at 80 and 100 percent. It stops nothing (the
# throttle bounds, the budget tells), and AWS counts the cost some hours late.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

BUDGET=contextflow-daily
THRESHOLDS="80 100"

budgets() { # COMMAND ARGUMENTS...
    local command=$1
    shift
    set -- aws --region "$GLOBAL" budgets "$command" --account-id "$AWS_ACCOUNT" "$@"
    "${ASK_OR_RUN:-run}" "$@"
}

notification() { # PERCENT
    echo "NotificationType=ACTUAL,ComparisonOperator=GREATER_THAN,Threshold=$1,ThresholdType=PERCENTAGE"
}

up() {
    local amount unit there percent
    read -r amount unit <<<"$AWS_DAILY_LIMIT"
    there=$(ASK_OR_RUN=ask budgets describe-budget --budget-name $BUDGET --query 'Budget.BudgetLimit.[Amount, Unit]')
    local budget="{\"BudgetName\":\"$BUDGET\",\"BudgetType\":\"COST\",\"TimeUnit\":\"DAILY\",\"BudgetLimit\":{\"Amount\":\"$amount\",\"Unit\":\"$unit\"}}"
    if [ -z "$there" ]; then
        say "AWS budget $BUDGET: make it"
        budgets create-budget --budget "$budget"
    elif awk -v there="$there" -v wanted="$amount $unit" 'BEGIN { split(there, a); split(wanted, b); exit !(a[1] + 0 == b[1] + 0 && a[2] == b[2]) }'; then
        unchanged "AWS budget $BUDGET"
    else
        say "AWS budget $BUDGET: $AWS_DAILY_LIMIT a day"
        budgets update-budget --new-budget "$budget"
    fi
    for percent in $THRESHOLDS; do
        alert "$percent"
    done
}

alert() { # PERCENT
    local there email
    email=SubscriptionType=EMAIL,Address=$ALERT_EMAIL
    there=$(ASK_OR_RUN=ask budgets describe-notifications-for-budget --budget-name $BUDGET \
        --query "Notifications[?Threshold==\`$1\` && NotificationType=='ACTUAL'] | [0].Threshold")
    if [ -z "$there" ]; then
        say "AWS budget $BUDGET: tell ALERT_EMAIL at $1 %"
        budgets create-notification --budget-name $BUDGET --notification "$(notification "$1")" --subscribers "$email"
        return
    fi
    there=$(ASK_OR_RUN=ask budgets describe-subscribers-for-notification --budget-name $BUDGET --notification "$(notification "$1")" \
        --query "Subscribers[?SubscriptionType=='EMAIL'] | [0].Address")
    if [ "$there" = "$ALERT_EMAIL" ]; then
        unchanged "its alert at $1 %"
    else
        say "AWS budget $BUDGET: tell the new ALERT_EMAIL at $1 %"
        budgets update-subscriber --budget-name $BUDGET --notification "$(notification "$1")" \
            --old-subscriber "SubscriptionType=EMAIL,Address=$there" --new-subscriber "$email"
    fi
}

down() {
    local there
    there=$(ASK_OR_RUN=ask budgets describe-budget --budget-name $BUDGET --query Budget.BudgetName)
    if [ -n "$there$DRY_RUN" ]; then
        say "AWS budget $BUDGET: remove it"
        budgets delete-budget --budget-name $BUDGET
    else
        gone "AWS budget $BUDGET"
    fi
}

"$1"
