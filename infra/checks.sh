# shellcheck shell=bash
# What must be so before anything is made. All that is missing is named at once. Sourced.

problems=()
problem() { problems+=("$*"); }

stop_if_problems() {
    [ ${#problems[@]} -gt 0 ] || return 0
    printf 'Nothing was made or changed. First:\n' >&2
    printf '  - %s\n' "${problems[@]}" >&2
    exit 1
}

setting() { # NAME PATTERN WHAT
    if [ -z "${!1:-}" ]; then
        problem "$SETTINGS: $1 is empty; give $3"
    elif ! [[ ${!1} =~ ^($2)$ ]]; then
        problem "$SETTINGS: $1=\"${!1}\" is not $3"
    fi
}

# Of the deployment itself; the others are those of the functions.
DEPLOYMENT_SETTINGS="GCP_PROJECT GCP_REGION BIGQUERY_LOCATION BILLING_ACCOUNT AWS_ACCOUNT PUBLISHER_REGIONS SITE_ORIGIN ALERT_EMAIL
    MONTHLY_LIMIT DAILY_LIMIT BUDGET_CREDITS AWS_DAILY_LIMIT BRAKE_AT STOP_AT DETACH_AT DETACH MODE NO_EVENTS_MINUTES FLOOD_PER_MINUTE
    LOOKER_REPORT_URL ROLE_PREFIX"

# The names that the settings file gives a value to.
names_given() {
    comm -13 <(variables_after /dev/null) <(variables_after "$SETTINGS")
}

variables_after() { # FILE
    # shellcheck disable=SC2016 # expanded by the other shell
    env -i PATH="$PATH" bash -c '. "$1" >/dev/null; compgen -v' _ "$1" | sort
}

# A name that is misspelt would do nothing, and say nothing.
check_names() {
    local name known
    # shellcheck disable=SC2086 # a name a word
    known=$(printf '%s\n' $DEPLOYMENT_SETTINGS "${!FUNCTIONS_OF[@]}")
    for name in $(names_given); do
        # Of the clouds' own command lines.
        [[ $name != @(AWS|CLOUDSDK)_* || $name = AWS_DAILY_LIMIT || $name = AWS_ACCOUNT ]] || continue
        grep -qxF "$name" <<<"$known" ||
            problem "$SETTINGS: $name: there is no such setting; infra/settings.example.env and infra/function-settings.sh have them all"
    done
}

# What a function refuses is best said before it is deployed.
check_function_settings() {
    local name LC_ALL=C
    for name in "${!FUNCTIONS_OF[@]}"; do
        [ -n "${!name:-}" ] || continue
        case $name in
            *_MS | *_BYTES | *_ROWS | *_IDS | *_IN_FLIGHT | *_REQUESTS) setting "$name" '[0-9]+' "a whole number" ;;
            DETACH_AFTER) setting "$name" '[1-9][0-9]*(h|m)' "hours or minutes: 6h, 90m" ;;
            IP_ANONYMISE) setting "$name" 'off|truncate|drop' "off, truncate or drop" ;;
            SYNTHETIC_EVENTS) setting "$name" 'on|off' "on or off" ;;
            *) setting "$name" '[^|"\\[:cntrl:]]+' "a text without | \" \\" ;;
        esac
    done
}

check_settings() {
    check_names
    check_function_settings
    local money='0*[1-9][0-9]* [A-Z]{3}' percent='[1-9][0-9]{0,2}|1000'
    setting GCP_PROJECT '[a-z][-a-z0-9]{4,28}[a-z0-9]' "a project id"
    setting GCP_REGION '[a-z]+-[a-z]+[0-9]+' "a region, such as europe-west1"
    setting BIGQUERY_LOCATION '[A-Za-z0-9-]+' "a location of BigQuery, such as EU"
    setting BILLING_ACCOUNT '[0-9A-Z]{6}-[0-9A-Z]{6}-[0-9A-Z]{6}' "a billing account: 0X0X0X-0X0X0X-0X0X0X"
    setting AWS_ACCOUNT '[0-9]{12}' "an account of 12 digits"
    setting PUBLISHER_REGIONS '[a-z]+(-[a-z]+)+-[0-9]( [a-z]+(-[a-z]+)+-[0-9])*' "a list of AWS regions with one space between them"
    setting ALERT_EMAIL '[^ @|,]+@[^ @|,]+' "an e-mail address"
    setting MONTHLY_LIMIT "$money" "whole units and a currency: 100 USD"
    setting DAILY_LIMIT "$money" "whole units and a currency: 20 USD"
    setting AWS_DAILY_LIMIT '[0-9]+(\.[0-9]+)? USD' "an amount in USD: 5 USD"
    setting BRAKE_AT "$percent" "percent, 1 to 1000"
    setting STOP_AT "$percent" "percent, 1 to 1000"
    setting DETACH_AT "$percent" "percent, 1 to 1000"
    [ -z "${DETACH:-}" ] || setting DETACH 'never|monthly' "never or monthly"
    [ -z "${BUDGET_CREDITS:-}" ] || setting BUDGET_CREDITS 'exclude|include' "exclude or include"
    setting NO_EVENTS_MINUTES '[1-9][0-9]*' "minutes"
    setting FLOOD_PER_MINUTE '[1-9][0-9]*' "events a minute"
    [ -z "${SITE_ORIGIN:-}" ] || setting SITE_ORIGIN 'https?://[^/ ]+' "an origin: https://www.example.com, without a path"
    [ -z "${LOOKER_REPORT_URL:-}" ] || setting LOOKER_REPORT_URL 'https://[A-Za-z0-9.-]+/embed/[A-Za-z0-9/_?=&%.-]+' \
        "the address in the report's embed code, https://lookerstudio.google.com/embed/reporting/..."
    [ -z "${MODE:-}" ] || setting MODE 'dry-run|armed' "dry-run or armed"
    [ ${#problems[@]} -eq 0 ] || return 0
    [ "${MONTHLY_LIMIT#* }" = "${DAILY_LIMIT#* }" ] || problem "$SETTINGS: MONTHLY_LIMIT and DAILY_LIMIT are not in one currency"
    if [ "$BRAKE_AT" -gt "$STOP_AT" ] || [ "$STOP_AT" -gt "$DETACH_AT" ]; then
        problem "$SETTINGS: BRAKE_AT, STOP_AT and DETACH_AT must rise"
    fi
}

# What the kill-switch does is decided by who deploys, never assumed.
choose_mode() {
    [ -z "${MODE:-}" ] || return 0
    if [ -n "$DRY_RUN" ]; then
        MODE=MODE
        say "MODE is empty: deploy.sh will ask for it"
    elif [ -t 0 ]; then
        say "The kill-switch can stop the pipeline and take the project from its billing account when the limits are passed."
        say "  dry-run   it says what it would do, and stops nothing"
        say "  armed     it does it"
        while [ "${MODE:-}" != dry-run ] && [ "${MODE:-}" != armed ]; do
            read -rp "MODE (dry-run or armed; written into $SETTINGS it is not asked for again): " MODE
        done
    else
        problem "$SETTINGS: MODE is empty; give dry-run or armed"
    fi
    export MODE
}

tool() { # NAME WHERE-FROM
    command -v "$1" >/dev/null || problem "$1 is missing: $2"
}

# Each check asks whether it is of the part: all, gcp, aws, site, schema, destroy.
one_of() { # PART PARTS...
    [[ " ${*:2} " == *" $1 "* ]]
}

check_tools() { # PART
    local binary
    if one_of "$1" all gcp aws schema destroy; then
        tool gcloud "https://cloud.google.com/sdk/docs/install"
    fi
    if one_of "$1" all gcp destroy; then
        tool bq "it comes with gcloud: gcloud components install bq"
        tool openssl "install it with your system's packages"
    fi
    if one_of "$1" all aws site destroy; then
        tool aws "https://docs.aws.amazon.com/cli/"
    fi
    if one_of "$1" all aws; then
        tool zip "install it with your system's packages"
    fi
    if one_of "$1" aws site; then
        tool openssl "install it with your system's packages"
    fi
    if one_of "$1" all gcp aws schema && [ -z "$BINARIES" ]; then
        tool cargo "https://rustup.rs"
        [ "$1" = schema ] || tool cargo-lambda "pip install cargo-lambda ziglang"
    elif [ -n "$BINARIES" ]; then
        for binary in $(binaries_of "$1"); do
            [ -f "$BINARIES/$binary" ] || problem "$BINARIES/$binary: there is no such file"
        done
    fi
}

binaries_of() { # PART
    case $1 in
        all) echo enricher batcher kill-switch backfill publisher contextflow ;;
        gcp) echo enricher batcher kill-switch backfill contextflow ;;
        aws) echo publisher ;;
        schema) echo contextflow ;;
    esac
}

# Whoever has no tool, or no project in the settings, was told so.
check_logins() { # PART
    local there errors
    errors=$(mktemp)
    if one_of "$1" all gcp aws schema destroy && command -v gcloud >/dev/null && [ -n "${GCP_PROJECT:-}" ]; then
        there=$(gcloud projects describe "$GCP_PROJECT" --format='value(projectNumber)' 2>"$errors") || true
        if [ -z "$there" ]; then
            problem "gcloud sees no project $GCP_PROJECT: gcloud auth login, or make it: gcloud projects create $GCP_PROJECT$(said "$errors")"
        else
            export PROJECT_NUMBER=$there
            one_of "$1" aws schema destroy || check_billing "$errors"
        fi
    fi
    rm "$errors"
    # `contextflow schema` logs in by itself.
    if one_of "$1" all gcp schema && command -v gcloud >/dev/null && [ -z "${BIGQUERY_REST_ENDPOINT:-}${GOOGLE_APPLICATION_CREDENTIALS:-}" ]; then
        gcloud auth application-default print-access-token >/dev/null 2>&1 ||
            problem "contextflow has no login for BigQuery: gcloud auth application-default login"
    fi
    if one_of "$1" all aws site destroy && command -v aws >/dev/null && [ -n "${AWS_ACCOUNT:-}" ]; then
        there=$(aws --region us-east-1 sts get-caller-identity --query Account --output text 2>/dev/null) || true
        [ "$there" = "$AWS_ACCOUNT" ] || problem "aws is ${there:+logged in to $there, }not logged in to $AWS_ACCOUNT: aws configure, or AWS_PROFILE"
    fi
}

# The first line of what a tool said, in brackets.
said() { # FILE
    sed -n '/./{s/.*/ (&)/p;q}' "$1"
}

# The project's account, and that its currency is the limits': a budget in another one could not be made, and its notices would count
# for nothing.
check_billing() { # FILE
    local there currency=${MONTHLY_LIMIT#* }
    there=$(gcloud billing projects describe "$GCP_PROJECT" --format='value(billingAccountName)' 2>"$1") || true
    [ "$there" = "billingAccounts/$BILLING_ACCOUNT" ] ||
        problem "the bills of $GCP_PROJECT do not go to $BILLING_ACCOUNT: gcloud billing projects link $GCP_PROJECT --billing-account=$BILLING_ACCOUNT (if the kill-switch has detached it, look at the cost first, and run contextflow release afterwards)$(said "$1")"
    there=$(gcloud billing accounts describe "$BILLING_ACCOUNT" --format='value(currencyCode)' 2>"$1") || true
    [ "$there" = "$currency" ] ||
        problem "MONTHLY_LIMIT and DAILY_LIMIT are in $currency, and the billing account $BILLING_ACCOUNT is in ${there:-a currency that gcloud does not tell}; give both in its own$(said "$1")"
}

# A pipeline that the kill-switch has stopped is started again by whoever decides so, not by the next deployment.
refuse_under_a_brake() {
    local acted there name braked=
    # shellcheck source-path=SCRIPTDIR source=gcp/names.sh
    . gcp/names.sh
    acted=$(in_force)
    [ -z "$acted" ] || problem "the kill-switch has acted: $acted in force; look at the cost, then: contextflow release"
    there=$(look pubsub subscriptions list --format='value[separator="|"](name.basename(),pushConfig.pushEndpoint)')
    for name in budget-sub "${PIPELINE_SUBSCRIPTIONS[@]}"; do
        ! grep -qxF "$name|" <<<"$there" || braked+="$name "
    done
    if [ -n "$braked" ]; then
        problem "nothing is pushed from ${braked% }: by the kill-switch's brake, which contextflow release ends, or by someone's hand (gcloud pubsub subscriptions modify-push-config)"
    fi
    stop_if_problems
}
