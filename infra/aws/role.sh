#!/usr/bin/env bash
# The role that the publisher runs as. It may write its own logs and nothing else on AWS; on Google Cloud the workload
# identity pool knows it by its name.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

trust='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}'

# The log group is made by the deployment, so that it has its retention; the role needs no right to make one.
rights() {
    local region groups=
    for region in $PUBLISHER_REGIONS; do
        groups+=",\"arn:aws:logs:$region:$AWS_ACCOUNT:log-group:$LOG_GROUP:*\""
    done
    echo "{\"Version\":\"2012-10-17\",\"Statement\":[{\"Effect\":\"Allow\",\"Action\":[\"logs:CreateLogStream\",\"logs:PutLogEvents\"],\"Resource\":[${groups#,}]}]}"
}

up() {
    local there wanted
    there=$(ask aws --region "$GLOBAL" iam get-role --role-name "$PUBLISHER" --query 'to_string(Role.AssumeRolePolicyDocument)')
    if [ -z "$there" ]; then
        say "role $PUBLISHER: make it"
        run aws --region "$GLOBAL" iam create-role --role-name "$PUBLISHER" --assume-role-policy-document "$trust" >/dev/null
    elif [ "${there//[[:space:]]/}" = "$trust" ]; then
        unchanged "role $PUBLISHER"
    else
        say "role $PUBLISHER: for Lambda alone"
        run aws --region "$GLOBAL" iam update-assume-role-policy --role-name "$PUBLISHER" --policy-document "$trust"
    fi
    wanted=$(rights)
    there=$(ask aws --region "$GLOBAL" iam get-role-policy --role-name "$PUBLISHER" --policy-name logs --query 'to_string(PolicyDocument)')
    if [ "${there//[[:space:]]/}" = "$wanted" ]; then
        unchanged "its right to write its logs"
    else
        say "role $PUBLISHER: let it write its logs"
        run aws --region "$GLOBAL" iam put-role-policy --role-name "$PUBLISHER" --policy-name logs --policy-document "$wanted"
    fi
}

down() {
    local there
    there=$(ask aws --region "$GLOBAL" iam get-role-policy --role-name "$PUBLISHER" --policy-name logs --query PolicyName)
    if [ -n "$there$DRY_RUN" ]; then
        run aws --region "$GLOBAL" iam delete-role-policy --role-name "$PUBLISHER" --policy-name logs
    fi
    there=$(ask aws --region "$GLOBAL" iam get-role --role-name "$PUBLISHER" --query Role.Arn)
    if [ -n "$there$DRY_RUN" ]; then
        say "role $PUBLISHER: remove it"
        run aws --region "$GLOBAL" iam delete-role --role-name "$PUBLISHER"
    else
        gone "role $PUBLISHER"
    fi
}

"$1"
