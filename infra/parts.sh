# shellcheck shell=bash
# The concerns of each part, in the order in which they are made. Sourced by deploy.sh and destroy.sh.
# shellcheck disable=SC2034 # used by those

GCP=(
    gcp/apis gcp/service-accounts gcp/roles gcp/identity-pool gcp/topics gcp/buckets gcp/schema gcp/datasets
    gcp/deduplication gcp/budget
    gcp/images gcp/services gcp/subscriptions gcp/backfill gcp/request-logs gcp/monitoring
)
SCHEMA=(gcp/schema)
AWS=(aws/role aws/log-group aws/lambda aws/http-api aws/cors aws/budget)
SITE=(aws/bucket aws/cdn aws/pages aws/cors)
