# shellcheck shell=bash
# The settings of the functions that the settings file may give, each with the functions that read it; the deployed ones
# get what stands there. Sourced by lib.sh. A test compares the list with what the code reads; what the scripts
# themselves give (topics, buckets, accounts) is not on it.
# shellcheck disable=SC2034 # used by lib.sh

declare -A FUNCTIONS_OF=(
    [ARCHIVE_BYTES]="batcher"
    [ARCHIVE_WAIT_MS]="batcher"
    [BATCH_BYTES]="batcher"
    [BATCH_IN_FLIGHT]="batcher"
    [BATCH_ROWS]="batcher"
    [BATCH_WAIT_MS]="batcher"
    [BODY_TIMEOUT_MS]="enricher batcher kill-switch"
    [BUDGET_MS]="batcher"
    [CHECKPOINT_BYTES]="backfill"
    [DETACH_AFTER]="kill-switch"
    [GEO_URI]="enricher backfill"
    [HEADER_TIMEOUT_MS]="enricher batcher kill-switch"
    [IDLE_TIMEOUT_MS]="enricher batcher kill-switch"
    [IP_ANONYMISE]="publisher enricher backfill"
    [LOOKUP_MAX_AGE_MS]="enricher"
    [MAX_CONCURRENT_REQUESTS]="enricher batcher kill-switch"
    [MAX_CONNECTIONS]="enricher batcher kill-switch"
    [MAX_EVENT_BYTES]="publisher enricher"
    [MAX_HELD_BYTES]="enricher batcher kill-switch"
    [MAX_NOTICE_AGE_MS]="kill-switch"
    [PACK_BYTES]="enricher"
    [PACK_IN_FLIGHT]="enricher"
    [PACK_ROWS]="enricher"
    [PACK_WAIT_MS]="enricher"
    [PROJECTS]="kill-switch"
    [PUBLISH_TIMEOUT_MS]="publisher"
    [PUBLISH_TYPES]="publisher"
    [PUBLISH_WAIT_MS]="publisher"
    [REMEMBERED_IDS]="batcher"
    [RUST_LOG]="publisher enricher batcher kill-switch backfill"
    [SCHEMAS_MAX_AGE_MS]="enricher batcher"
    [SCHEMAS_URI]="enricher batcher backfill"
    [SOURCE]="backfill"
    [SUBSCRIPTIONS]="kill-switch"
    [SYNTHETIC_EVENTS]="publisher"
)
