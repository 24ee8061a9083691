#!/usr/bin/env bash
# The functions on Cloud Run. None can be called by the public: requests come from inside Google's network only, and only
# as contextflow-push. They scale to zero; the most instances bound what a flood can cost.
#
# The binary goes up as it is, onto Google's base image, where this gcloud can do that (`--no-build`); else into a minimal
# image that Cloud Build makes. No Docker is needed either way.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh
# shellcheck source-path=SCRIPTDIR source=binaries.sh
. ./binaries.sh

up() {
    local track folder budget
    [ -n "$MODE" ] || die "MODE is empty, and the kill-switch needs it: dry-run or armed"
    track=$(no_build_track)
    folder=$(folder_for services)
    build enricher batcher kill-switch
    if [ "$track" = image ]; then
        say "this gcloud has no --no-build: images by Cloud Build"
    else
        say "this gcloud takes binaries as they are: gcloud $track run deploy --no-build"
    fi

    service enricher --concurrency=1000 --max-instances=10 --memory=512Mi \
        --set-env-vars="$(variables enricher "ARCHIVE_URI=gs://$EVENTS_BUCKET/archive")"
    service batcher --concurrency=1000 --max-instances=10 --memory=512Mi \
        --set-env-vars="$(variables batcher "ARCHIVE_URI=gs://$EVENTS_BUCKET/archive")"
    budget=$(budget_id)
    [ -n "$budget" ] || die "there is no budget $BUDGET, whose id the kill-switch needs; run deploy.sh --only gcp"
    service kill-switch --concurrency=10 --max-instances=1 --memory=256Mi \
        --set-env-vars="$(variables kill-switch "MODE=$MODE" "BILLING_ACCOUNT_ID=$BILLING_ACCOUNT" "BUDGET_ID=$budget" \
            "MONTHLY_LIMIT=$MONTHLY_LIMIT" "DAILY_LIMIT=$DAILY_LIMIT" "BRAKE_AT=$BRAKE_AT" "STOP_AT=$STOP_AT" "DETACH_AT=$DETACH_AT" \
            "DETACH=${DETACH:-never}" \
            "PUBLISHER_MEMBER=$(member publisher)" "STATE_URI=gs://$OWN_BUCKET/kill-switch")"

    access grant
}

# The kill-switch takes the project from its billing account where DETACH lets it, and reads whether it has one. It alone has such roles.
access() { # grant|revoke
    local group=(projects) named=("$GCP_PROJECT") role there
    for role in roles/billing.projectManager roles/browser; do
        there=$(held "$(member kill-switch)" "$role" "")
        if [ "$1" = revoke ] || [ "${DETACH:-never}" = monthly ]; then
            "$1" "$(member kill-switch)" "$role" "" projects @ "$GCP_PROJECT"
        elif [ -n "$there" ]; then
            revoke "$(member kill-switch)" "$role" "" projects @ "$GCP_PROJECT"
        fi
    done
}

# Cloud Run's front door checks the push token (PUSH_AUTH=iam) and that it was made for this service, by its address.
variables() { # NAME VARIABLE=VALUE...
    local name=$1
    shift
    environment "$name" PUSH_AUTH=iam "PUSH_AUDIENCE=$(audience "$name")" "PUSH_SERVICE_ACCOUNT=$(account push)" "$@"
}

service() { # NAME FLAGS...
    local name=$1 there deployed made ready code
    shift
    set -- --service-account="$(account "$name")" --no-allow-unauthenticated --ingress=internal --cpu=1 --cpu-throttling --cpu-boost \
        --min-instances=0 --timeout=60 "$@"
    deployed=$(printf '%s\n' "${track/alpha/beta}" "$@" "$(code "$name")" | digest)
    # The label is that of what was asked for, whether or not its revision has started.
    there=$(look run services describe "$name" --region="$GCP_REGION" --format='value[separator="|"](
        metadata.labels.deployed,
        status.latestCreatedRevisionName,
        status.latestReadyRevisionName)')
    IFS='|' read -r there made ready <<<"$there"
    if [ "$there" = "$deployed" ] && [ -n "$ready" ] && [ "$made" = "$ready" ]; then
        unchanged "service $name"
    else
        [ "$there" != "$deployed" ] || say "service $name: revision $made has not started"
        say "service $name: deploy it"
        place "$name"
        change_patiently "${code[@]}" --region="$GCP_REGION" "$@" --labels="app=contextflow,deployed=$deployed" --format=none
    fi
    grant "$(member push)" roles/run.invoker "" run services @ "$name" --region="$GCP_REGION"
}

# Puts the binary where it can be deployed from; `code` is the command that does.
place() { # NAME
    if [ "$track" = image ]; then
        image "$1" "$folder"
        code=(run deploy "$1" --image="$(image_name "$1")" --clear-base-image --command="/$1")
    else
        mkdir -p "$folder/$1"
        [ -n "$DRY_RUN" ] || install -m 755 "$(binary "$1")" "$folder/$1/$1"
        code=("$track" run deploy "$1" --source="$folder/$1" --no-build --base-image=osonly24 --command="./$1")
    fi
}

down() {
    local name there others sources=gs://run-sources-$GCP_PROJECT-$GCP_REGION
    for name in kill-switch batcher enricher; do
        there=$(look run services describe "$name" --region="$GCP_REGION" --format='value(metadata.name)')
        if [ -n "$there$DRY_RUN" ]; then
            say "service $name: remove it"
            change run services delete "$name" --region="$GCP_REGION"
        else
            gone "service $name"
        fi
        there=$(look storage objects list "$sources/services/$name/**" --format='value(name)')
        if [ -n "$there$DRY_RUN" ]; then
            say "the binaries of $name that gcloud put into $sources: remove them"
            change storage rm "$sources/services/$name/" --recursive
        fi
    done
    there=$(look storage buckets describe "$sources" --format='value(name)')
    others=$(look storage objects list "$sources/**" --limit=1 --format='value(name)')
    if [ -n "$DRY_RUN" ] || [ -n "$there" ] && [ -z "$others" ]; then
        say "bucket $sources: remove it, as nothing else is in it"
        change storage buckets delete "$sources"
    fi
    access revoke
}

"$1"
