# shellcheck shell=bash
# What every script of the deployment sources: settings, and the few words that all use.
#
# A concern is one script, `gcp/NAME.sh` or `aws/NAME.sh`, called with `up` or `down`. Both look before they act, so that a
# second run changes nothing, and end with an error at the first thing that fails. deploy.sh calls them in order with
# `up`, destroy.sh in the opposite order with `down`; each can be called alone: `infra/gcp/topics.sh up`.
#
# In the environment, all optional: SETTINGS (the file), DRY_RUN (not empty: print commands, run and ask nothing),
# BINARIES (folder of built binaries), DELETE_DATA (not empty: `down` takes data too), FILES (folder for what commands read).
# What is said, and the commands of a dry run, goes to descriptor 3, the standard output of the first script: so a
# function that uses `run` or `say` can be read with $(...).
# shellcheck disable=SC2034 # used by the scripts that source this

# A question that fails ends the script inside $(...) too; bash would go on with "nothing" for an answer. What is asked is put into a
# variable first: in an argument, a test or a `for` a failure would be lost all the same.
shopt -s inherit_errexit

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export SETTINGS=${SETTINGS:-$ROOT/infra/settings.env}
export DRY_RUN=${DRY_RUN:-} BINARIES=${BINARIES:-} DELETE_DATA=${DELETE_DATA:-} FILES=${FILES:-$ROOT/target/deployment}

{ : >&3; } 2>/dev/null || exec 3>&1

say() { printf '%s\n' "$*" >&3; }

unchanged() { say "unchanged: $*"; }

gone() { say "not there: $*"; }

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Runs a command; in a dry run prints it, whole and on one line, as a shell would take it.
# CHANGES is the file in which deploy.sh counts what was run; `CHANGES='' run …` runs what changes nothing in the clouds.
run() {
    if [ -n "$DRY_RUN" ]; then
        printf '%q ' "$@" | sed 's/ $//' >&3
        echo >&3
    else
        [ -z "${CHANGES:-}" ] || echo "$1" >>"$CHANGES"
        "$@"
    fi
}

# 16 hexadecimal digits that stand for what is read.
digest() { openssl dgst -sha256 -r | cut -c 1-16; }

# The number of the project, which names of Google's own accounts and of the identity pool bear.
project_number() {
    if [ -n "$DRY_RUN" ]; then
        echo PROJECT_NUMBER
    elif [ -n "${PROJECT_NUMBER:-}" ]; then
        echo "$PROJECT_NUMBER"
    else
        gcloud projects describe "$GCP_PROJECT" --format='value(projectNumber)'
    fi
}

# shellcheck source-path=SCRIPTDIR source=function-settings.sh
. "$ROOT/infra/function-settings.sh"

# What a function is given of the settings file, as lines NAME=VALUE.
settings_of() { # FUNCTION
    local name value
    while IFS='=' read -r name value; do
        [[ -z $name || " ${FUNCTIONS_OF[$name]} " != *" $1 "* ]] || printf '%s=%s\n' "$name" "$value"
    done <<<"$FUNCTION_SETTINGS"
}

# One setting of functions.
value_of() { # NAME
    sed -n "s/^$1=//p" <<<"$FUNCTION_SETTINGS"
}

# Those that are given, as lines. What a deployed function gets by itself stands here.
function_settings() {
    local name
    : "${IP_ANONYMISE:=truncate}" "${GEO_URI:=gs://${GCP_PROJECT:-}-contextflow/enrichment/geo_lookup.csv}"
    for name in "${!FUNCTIONS_OF[@]}"; do
        [ -z "${!name:-}" ] || printf '%s=%s\n' "$name" "${!name}"
    done | sort
}

# Once: what deploy.sh has asked for stays. What this shell has set for a function that runs here is no setting of a
# deployment, and no tool of a deployment reads those of the functions.
if [ "${SETTINGS_READ:-}" != "$SETTINGS" ]; then
    [ -r "$SETTINGS" ] || die "$SETTINGS: no settings there; copy infra/settings.example.env to infra/settings.env and fill it in"
    unset "${!FUNCTIONS_OF[@]}"
    set -a
    # shellcheck disable=SC1090 # the user's file
    . "$SETTINGS"
    SETTINGS_READ=$SETTINGS
    FUNCTION_SETTINGS=$(function_settings)
    set +a
    export -n "${!FUNCTIONS_OF[@]}"
fi
