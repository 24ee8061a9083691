#!/usr/bin/env bash
# The publisher's log group in every region. Made before the function, which would make one that keeps its logs for ever.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

RETENTION_DAYS=30

retention() { # REGION
    ask aws --region "$1" logs describe-log-groups --log-group-name-prefix "$LOG_GROUP" \
        --query "logGroups[?logGroupName=='$LOG_GROUP'] | [0].[logGroupName, retentionInDays]"
}

up() {
    local region there
    for region in $PUBLISHER_REGIONS; do
        there=$(retention "$region")
        if [ "$there" = "$LOG_GROUP"$'\t'"$RETENTION_DAYS" ]; then
            unchanged "log group $LOG_GROUP in $region"
            continue
        fi
        say "log group $LOG_GROUP in $region: $RETENTION_DAYS days"
        [ -n "$there" ] || run aws --region "$region" logs create-log-group --log-group-name "$LOG_GROUP"
        run aws --region "$region" logs put-retention-policy --log-group-name "$LOG_GROUP" --retention-in-days $RETENTION_DAYS
    done
}

down() {
    local region there
    for region in $PUBLISHER_REGIONS; do
        there=$(retention "$region")
        if [ -n "$there$DRY_RUN" ]; then
            say "log group $LOG_GROUP in $region: remove it"
            run aws --region "$region" logs delete-log-group --log-group-name "$LOG_GROUP"
        else
            gone "log group $LOG_GROUP in $region"
        fi
    done
}

"$1"
