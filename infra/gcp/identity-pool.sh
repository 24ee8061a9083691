#!/usr/bin/env bash
# The workload identity pool: the publisher on AWS logs in with its role, and no key exists. The provider lets one role of one
# account in; that role may act as contextflow-publisher. A pool that was deleted keeps its name for 30 days, and is taken
# back.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

POOL=(contextflow --location=global)
PROVIDER=(aws --workload-identity-pool=contextflow --location=global)
ROLE=arn:aws:sts::$AWS_ACCOUNT:assumed-role/clickstream-publisher
MAPPING='google.subject=assertion.arn,attribute.aws_account=assertion.account'
MAPPING+=",attribute.aws_role=assertion.arn.extract('{account_arn}assumed-role/') + 'assumed-role/' + assertion.arn.extract('assumed-role/{role_name}/')"
CONDITION="assertion.account == '$AWS_ACCOUNT' && assertion.arn.startsWith('$ROLE/')"

pools() { "${HOW:-change}" iam workload-identity-pools "$@"; }

up() {
    local state there wanted settings
    state=$(HOW=look pools describe "${POOL[@]}" --format='value(state)')
    case $state in
        ACTIVE) unchanged "identity pool contextflow" ;;
        DELETED)
            say "identity pool contextflow: it was deleted less than 30 days ago; take it back"
            pools undelete "${POOL[@]}" --format=none
            ;;
        *)
            say "identity pool contextflow: make it"
            pools create "${POOL[@]}" --display-name=ContextFlow --format=none
            ;;
    esac

    state=$(HOW=look pools providers describe "${PROVIDER[@]}" --format='value(state)')
    if [ "$state" = DELETED ]; then
        say "its provider aws: take it back"
        pools providers undelete "${PROVIDER[@]}" --format=none
    fi
    settings=("--attribute-mapping=$MAPPING" "--attribute-condition=$CONDITION" "--account-id=$AWS_ACCOUNT")
    wanted="$AWS_ACCOUNT|$CONDITION|$MAPPING"
    there=$(HOW=look pools providers describe "${PROVIDER[@]}" --format='value[separator="|"](
        aws.accountId,
        attributeCondition,
        attributeMapping.list(separator=","))')
    if [ -z "$state" ]; then
        say "its provider aws: make it, for $ROLE alone"
        pools providers create-aws "${PROVIDER[@]}" "${settings[@]}" --format=none
    elif [ "$(sorted "$there")" = "$(sorted "$wanted")" ]; then
        unchanged "its provider aws"
    else
        say "its provider aws: let $ROLE in, alone"
        pools providers update-aws "${PROVIDER[@]}" "${settings[@]}" --format=none
    fi
    grant "principalSet://iam.googleapis.com/projects/$(project_number)/locations/global/workloadIdentityPools/contextflow/attribute.aws_role/$ROLE" \
        roles/iam.workloadIdentityUser "" iam service-accounts @ "$(account publisher)"
}

sorted() { tr ',' '\n' <<<"${1//|/,}" | sort; }

down() {
    local state
    state=$(HOW=look pools providers describe "${PROVIDER[@]}" --format='value(state)')
    if [ "$state" = ACTIVE ] || [ -n "$DRY_RUN" ]; then
        say "provider aws: remove it"
        pools providers delete "${PROVIDER[@]}" --format=none
    else
        gone "provider aws"
    fi
    state=$(HOW=look pools describe "${POOL[@]}" --format='value(state)')
    if [ "$state" = ACTIVE ] || [ -n "$DRY_RUN" ]; then
        say "identity pool contextflow: remove it; Google keeps its name for 30 days"
        pools delete "${POOL[@]}" --format=none
    else
        gone "identity pool contextflow"
    fi
}

"$1"
