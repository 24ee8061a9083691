# shellcheck shell=bash
# Names on Google Cloud, and how what bears them is found and shared. Sourced by the scripts beside it, after ../lib.sh.
# shellcheck disable=SC2034 # used by those scripts

RAW_TOPIC=clickstream-raw-topic
ENRICHED_TOPIC=clickstream-enriched-topic
DEAD_LETTER_TOPIC=clickstream-dead-letter-topic
BUDGET_TOPIC=budget-topic
PIPELINE_SUBSCRIPTIONS=(clickstream-raw-sub clickstream-enriched-sub clickstream-archive-sub clickstream-dead-letter-sub)
EVENTS_BUCKET=$GCP_PROJECT-clickstream  # archive/, archive/dead-letter/
OWN_BUCKET=$GCP_PROJECT-contextflow     # enrichment/, kill-switch/, backfill/, builds/
BUDGET=contextflow-$GCP_PROJECT
# Roles of our own, where Google's hold more than a function needs (roles.sh).
APPEND_ROLE=projects/$GCP_PROJECT/roles/${ROLE_PREFIX:-contextflow}_append
BRAKE_ROLE=projects/$GCP_PROJECT/roles/${ROLE_PREFIX:-contextflow}_brake
STOP_ROLE=projects/$GCP_PROJECT/roles/${ROLE_PREFIX:-contextflow}_stop

account() { echo "contextflow-$1@$GCP_PROJECT.iam.gserviceaccount.com"; }

member() { echo "serviceAccount:$(account "$1")"; }

# Pub/Sub's own account in this project: it forwards to the dead letter topic and signs the push tokens.
pubsub_agent() { echo "serviceAccount:service-$(project_number)@gcp-sa-pubsub.iam.gserviceaccount.com"; }

# The answer to a question, as text. Nothing where there is no such thing or its API is not enabled, and in a dry run,
# where nothing is asked.
ask() {
    [ -z "$DRY_RUN" ] || return 0
    local answer errors
    errors=$(mktemp)
    if answer=$("$@" 2>"$errors"); then
        rm "$errors"
        [ -z "$answer" ] || printf '%s\n' "$answer"
    elif grep -qiE 'NOT_FOUND|not found|does not exist|cannot find|matched no objects|SERVICE_DISABLED|or it is disabled' "$errors" - <<<"$answer"; then # bq tells faults as answers
        rm "$errors"
    else
        cat "$errors" >&2
        rm "$errors"
        return 1
    fi
}

# gcloud in this project: a question, and a change.
look() { ask gcloud "$@" --project="$GCP_PROJECT" --quiet; }
change() { run gcloud "$@" --project="$GCP_PROJECT" --quiet; }

# A change for which something made a moment ago must be known everywhere, which takes Google up to a minute.
change_patiently() { patiently change "$@"; }

patiently() { # COMMAND...
    local attempt errors
    errors=$(mktemp)
    for attempt in 1 2 3 4 5 6 7 8 9 10 11 12; do
        if "$@" 2>"$errors"; then
            rm "$errors"
            return
        fi
        if [ "$attempt" = 12 ] || ! grep -q 'does not exist' "$errors"; then
            break
        fi
        say "not known yet ($attempt of 12): again in 5 s"
        sleep 5
    done
    cat "$errors" >&2
    rm "$errors"
    return 1
}

# What gcloud calls a resource is two parts here: `pubsub topics @ NAME --flags`.
split_resource() { # RESOURCE...: sets group, and named (the name and its flags)
    group=()
    while [ $# -gt 0 ] && [[ $1 != "@" ]]; do
        group+=("$1")
        shift
    done
    shift
    named=("$@")
}

# `grant MEMBER ROLE CONDITION GROUP... @ NAME [FLAGS]`, for example
# `grant "$(member push)" roles/run.invoker "" run services @ enricher --region=R`: gives the role unless it is given.
grant() {
    local member=$1 role=$2 condition=$3 group named there flag
    shift 3
    split_resource "$@"
    there=$(held "$member" "$role" "$condition")
    if [ -n "$there" ]; then
        unchanged "$role of ${member#*:} on ${named[0]}"
        return
    fi
    say "${named[0]}: give $role to ${member#*:}"
    only_if "$condition"
    change_patiently "${group[@]}" add-iam-policy-binding "${named[@]}" --member="$member" --role="$role" "${flag[@]}" --format=none
}

# The opposite.
revoke() {
    local member=$1 role=$2 condition=$3 group named there flag
    shift 3
    split_resource "$@"
    there=$(held "$member" "$role" "$condition")
    if [ -z "$there$DRY_RUN" ]; then
        gone "$role of ${member#*:} on ${named[0]}"
        return
    fi
    say "${named[0]}: take $role from ${member#*:}"
    only_if "$condition"
    change "${group[@]}" remove-iam-policy-binding "${named[@]}" --member="$member" --role="$role" "${flag[@]}" --format=none
}

# Sets `flag`, the condition as gcloud takes it. A project's policy may have conditions, and then gcloud asks for the word None.
only_if() { # CONDITION
    flag=()
    if [ -n "$1" ]; then
        flag=("--condition=^;^title=contextflow;expression=$1")
    elif [ "${group[0]}" = projects ]; then
        flag=(--condition=None)
    fi
}

# Says so if the role is given; `group` and `named` are those of the caller.
held() { # MEMBER ROLE CONDITION
    local policy
    policy=$(look "${group[@]}" get-iam-policy "${named[@]}" --flatten='bindings[].members[]' \
        --format='value[separator="|"](bindings.role,bindings.members,bindings.condition.expression)')
    if grep -qxF -e "$2|$1|$3" <<<"$policy"; then
        echo yes
    fi
}

# What the kill-switch has done and nobody has released, `brake,stop`.
in_force() {
    local state
    state=$(look storage cat "gs://$OWN_BUCKET/kill-switch/state.json" | tr -d ' \n')
    if [[ $state =~ \"active\":\[([^]]+)\] ]]; then
        echo "${BASH_REMATCH[1]//\"/}"
    fi
}

# A folder for files that commands read. It stays, so that the commands of a dry run can be given by hand.
folder_for() { # CONCERN
    mkdir -p "$FILES/$1"
    echo "$FILES/$1"
}

# All that a function is set by, as gcloud takes it: what the scripts know, then what the settings file gives.
environment() { # FUNCTION VARIABLE=VALUE...
    local given
    given=$(settings_of "$1" | paste -sd '|')
    shift
    printf '^|^GOOGLE_CLOUD_PROJECT=%s' "$GCP_PROJECT"
    printf '|%s' "$@" ${given:+"$given"}
}

# The budget's id, which Google chose. It is known by its name, which bears the project's.
budget_id() {
    local name
    name=$(look billing budgets list --billing-account="$BILLING_ACCOUNT" --filter="displayName=$BUDGET" --format='value(name)' --billing-project="$GCP_PROJECT")
    [ -z "$DRY_RUN" ] || name=BUDGET_ID
    echo "${name##*/}"
}

# What the schemas name, by their files: `tables DATASET`, and the views over them.
datasets() { sed -n 's/.*"dataset": "\([a-z_]*\)".*/\1/p' "$ROOT"/shared/schemas/*.json | sort -u; }

streamed_datasets() {
    local file
    for file in "$ROOT"/shared/schemas/*.json; do
        grep -q '"ingest": "batch"' "$file" || sed -n 's/.*"dataset": "\([a-z_]*\)".*/\1/p' "$file"
    done | sort -u
}

tables() { tr -d '\n' <<<"$(cat "$ROOT"/shared/schemas/*.json)" | grep -oE "\"dataset\": \"$1\", *\"name\": \"[a-z_]+\"" | sed 's/.*"\([a-z_]*\)"$/\1/' | sort; }

views() {
    local file
    for file in "$ROOT/infra/sql/views/$1".*.sql; do
        [ ! -e "$file" ] || basename "${file#*"/views/$1."}" .sql
    done
    tables "$1" | sed 's/.*/v_&\nv_&_conflicts/'
}

# The address that a service has by its name; push tokens are made for it. `address` is the one that Cloud Run tells.
audience() { echo "https://$1-$(project_number).$GCP_REGION.run.app"; }

address() { # SERVICE
    local url
    url=$(look run services describe "$1" --region="$GCP_REGION" --format='value(status.url)')
    [ -z "$DRY_RUN" ] || url=$(audience "$1")
    [ -n "$url" ] || die "there is no Cloud Run service $1 in $GCP_REGION; run deploy.sh --only gcp"
    echo "$url"
}

# Asked for once: a name that bears it is made in many places.
PROJECT_NUMBER=$(project_number)
