#!/usr/bin/env bash
# What there is now, and the next command: `report.sh all|gcp|aws|site|schema`. Called by deploy.sh.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. ./lib.sh

# shellcheck disable=SC2153 # a file of deploy.sh
if [ -s "$CHANGES" ]; then
    say "== done: $(wc -l <"$CHANGES") commands made or changed something"
else
    say "== done: nothing was changed"
fi
if [ "$1" = all ] || [ "$1" = gcp ]; then
    say "Google Cloud, project $GCP_PROJECT, $GCP_REGION:"
    say "  services enricher, batcher, kill-switch (MODE=$MODE); job backfill"
    say "  topics and subscriptions: https://console.cloud.google.com/cloudpubsub/topic/list?project=$GCP_PROJECT"
    say "  dashboard and alerts: https://console.cloud.google.com/monitoring/dashboards?project=$GCP_PROJECT"
    [ "$MODE" = armed ] || say "  the kill-switch stops nothing in this mode"
fi
if [ "$1" != gcp ] && [ "$1" != schema ]; then
    # shellcheck source-path=SCRIPTDIR source=aws/names.sh
    . aws/names.sh
    for region in $PUBLISHER_REGIONS; do
        api=$(api_of "$region")
        [ -z "$api" ] || say "events to: https://$api.execute-api.$region.amazonaws.com/publish"
    done
    site=$(site_origin)
    [ -z "$site" ] || say "site: $site"
fi
say
say "next: GOOGLE_CLOUD_PROJECT=$GCP_PROJECT ${BINARIES:+$BINARIES/}contextflow status --warehouse bigquery"
