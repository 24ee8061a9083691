#!/usr/bin/env bash
# The publisher as a Lambda on arm64, in every region; all of them publish to the one topic.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh
# shellcheck source-path=SCRIPTDIR source=throttle.sh
. ./throttle.sh

# What Lambda leaves to the rest of the account, always.
UNRESERVED=100

# One package for all regions, the same for the same binary: its time and owner are left out.
package() { # FOLDER
    local binary=${BINARIES:+$BINARIES/publisher}
    if [ -z "$binary" ]; then
        say "function $PUBLISHER: build it for arm64"
        binary=$ROOT/target/lambda/publisher/bootstrap
        (cd "$ROOT" && CHANGES='' run cargo lambda build --arm64 --profile deploy --package publisher --lambda-dir target/lambda >&2)
    fi
    [ -z "$DRY_RUN" ] || return 0
    [ -f "$binary" ] || die "$binary: there is no such file; build it (cargo lambda build --arm64 --profile deploy --package publisher)"
    [ "$(od -An -tx1 -j18 -N1 "$binary" | tr -d ' ')" = b7 ] || say "$binary is not built for arm64: it will not start on Lambda"
    install -m 755 "$binary" "$1/bootstrap"
    (cd "$1" && TZ=UTC touch -t 202601010000 bootstrap && TZ=UTC zip -qX publisher.zip bootstrap)
}

up() {
    local region folder number audience variables environment logging wanted code there
    throttle
    folder=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of this run
    trap "rm -rf '$folder'" EXIT
    package "$folder"
    code=
    [ -n "$DRY_RUN" ] || code=$(openssl dgst -sha256 -binary "$folder/publisher.zip" | openssl base64)

    number=$(project_number)
    audience=//iam.googleapis.com/projects/$number/locations/global/workloadIdentityPools/contextflow/providers/aws
    variables=$({
        echo "GOOGLE_CLOUD_PROJECT=$GCP_PROJECT"
        echo RAW_TOPIC=clickstream-raw-topic
        echo "WORKLOAD_IDENTITY_AUDIENCE=$audience"
        echo "IMPERSONATE_SERVICE_ACCOUNT=contextflow-publisher@$GCP_PROJECT.iam.gserviceaccount.com"
        echo "MAX_BODY_BYTES=$BODY_BYTES"
        echo "MAX_REQUEST_EVENTS=$EVENTS"
        settings_of publisher
    } | LC_ALL=C sort)
    # No value has a quote or a backslash.
    # shellcheck disable=SC2001 # of every line
    environment=$(sed 's/\([^=]*\)=\(.*\)/"\1":"\2"/' <<<"$variables" | paste -sd ,)
    # Without the three lines that Lambda would write for every request.
    logging=LogFormat=JSON,ApplicationLogLevel=INFO,SystemLogLevel=WARN,LogGroup=$LOG_GROUP
    settings=(--runtime provided.al2023 --handler bootstrap --memory-size "$MEMORY_MB" --timeout 15 --role "$ROLE_ARN"
        --environment "{\"Variables\":{$environment}}" --logging-config "$logging")
    wanted=$(printf '%s\t' provided.al2023 bootstrap "$MEMORY_MB" 15 "$ROLE_ARN" JSON INFO WARN "$LOG_GROUP")$variables

    for region in $PUBLISHER_REGIONS; do
        there=$(configuration "$region" CodeSha256)
        if [ -z "$there" ]; then
            create "$region" "$folder"
        else
            update "$region" "$folder" "$there" "$code" "$wanted"
        fi
        reserve "$region"
    done
}

configuration() { # REGION QUERY
    ask aws --region "$1" lambda get-function-configuration --function-name "$PUBLISHER" --query "$2"
}

create() { # REGION FOLDER
    say "function $PUBLISHER in $1: make it"
    once_the_role_is_known aws --region "$1" lambda create-function --function-name "$PUBLISHER" --architectures arm64 \
        --zip-file "fileb://$2/publisher.zip" "${settings[@]}" >/dev/null
    run aws --region "$1" lambda wait function-active-v2 --function-name "$PUBLISHER"
}

# Lambda may not yet know a role that was made a moment ago.
once_the_role_is_known() {
    local attempt errors
    errors=$(mktemp)
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        if run "$@" 2>"$errors"; then
            cat "$errors" >&2
            rm "$errors"
            return
        fi
        cat "$errors" >&2
        grep -q "cannot be assumed by Lambda" "$errors" || break
        say "Lambda does not know the role yet ($attempt of 10); again in 5 s"
        sleep 5
    done
    rm "$errors"
    return 1
}

update() { # REGION FOLDER CODE-THERE CODE CONFIGURATION
    local there variables
    if [ "$3" = "$4" ]; then
        unchanged "code of $PUBLISHER in $1"
    else
        say "function $PUBLISHER in $1: give it the new code"
        run aws --region "$1" lambda update-function-code --function-name "$PUBLISHER" --architectures arm64 \
            --zip-file "fileb://$2/publisher.zip" >/dev/null
        run aws --region "$1" lambda wait function-updated-v2 --function-name "$PUBLISHER"
    fi
    there=$(configuration "$1" "[Runtime, Handler, MemorySize, Timeout, Role, LoggingConfig.LogFormat,
        LoggingConfig.ApplicationLogLevel, LoggingConfig.SystemLogLevel, LoggingConfig.LogGroup]")
    variables=$(ask aws --region "$1" lambda get-function-configuration --function-name "$PUBLISHER" --query Environment.Variables \
        --output json | sed -n 's/^ *"\([^"]*\)": "\(.*\)",\{0,1\}$/\1=\2/p' | LC_ALL=C sort)
    if [ "$there"$'\t'"$variables" = "$5" ]; then
        unchanged "settings of $PUBLISHER in $1"
    else
        say "function $PUBLISHER in $1: give it the new settings"
        run aws --region "$1" lambda update-function-configuration --function-name "$PUBLISHER" "${settings[@]}" >/dev/null
        run aws --region "$1" lambda wait function-updated-v2 --function-name "$PUBLISHER"
    fi
}

# Of the account's instances so many are the function's, whatever else runs there, and no more: a second bound behind the API's throttle.
reserve() { # REGION
    local there free
    there=$(ask aws --region "$1" lambda get-function-concurrency --function-name "$PUBLISHER" --query ReservedConcurrentExecutions)
    if [ "$there" = "$CONCURRENCY" ]; then
        unchanged "concurrency of $PUBLISHER in $1"
        return
    fi
    free=$(ask aws --region "$1" lambda get-account-settings --query AccountLimit.UnreservedConcurrentExecutions)
    if [ -n "$free" ] && ((free + ${there:-0} - CONCURRENCY < UNRESERVED)); then
        say "function $PUBLISHER in $1: the account has $free at once, too few to reserve $CONCURRENCY of them; they bound it"
        [ -z "$there" ] || run aws --region "$1" lambda delete-function-concurrency --function-name "$PUBLISHER"
        return
    fi
    say "function $PUBLISHER in $1: at most $CONCURRENCY requests at once"
    run aws --region "$1" lambda put-function-concurrency --function-name "$PUBLISHER" --reserved-concurrent-executions "$CONCURRENCY" >/dev/null
}

down() {
    local region there
    for region in $PUBLISHER_REGIONS; do
        there=$(configuration "$region" FunctionArn)
        if [ -n "$there$DRY_RUN" ]; then
            say "function $PUBLISHER in $region: remove it"
            run aws --region "$region" lambda delete-function --function-name "$PUBLISHER" >/dev/null
        else
            gone "function $PUBLISHER in $region"
        fi
    done
}

"$1"
