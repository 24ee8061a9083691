#!/usr/bin/env bash
# The bucket of the site's pages. It is private: only the distribution reads it (cdn.sh).
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

s3api() { # COMMAND ARGUMENTS...
    local command=$1
    shift
    set -- aws --region "$HOME_REGION" s3api "$command" --bucket "$SITE_BUCKET" "$@"
    "${ASK_OR_RUN:-run}" "$@"
}

up() {
    local there where=()
    there=$(ask aws --region "$HOME_REGION" s3api list-buckets --query "Buckets[?Name=='$SITE_BUCKET'] | [0].Name")
    if [ -n "$there" ]; then
        unchanged "bucket $SITE_BUCKET"
    else
        say "bucket $SITE_BUCKET: make it"
        [ "$HOME_REGION" = us-east-1 ] || where=(--create-bucket-configuration "LocationConstraint=$HOME_REGION")
        s3api create-bucket --object-ownership BucketOwnerEnforced ${where[@]+"${where[@]}"} >/dev/null
    fi

    there=$(ASK_OR_RUN=ask s3api get-public-access-block --query \
        'PublicAccessBlockConfiguration.[BlockPublicAcls, IgnorePublicAcls, BlockPublicPolicy, RestrictPublicBuckets]')
    if [ "$there" = $'True\tTrue\tTrue\tTrue' ]; then
        unchanged "its public access block"
    else
        say "bucket $SITE_BUCKET: block public access"
        s3api put-public-access-block --public-access-block-configuration \
            BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
    fi

    there=$(ASK_OR_RUN=ask s3api get-bucket-ownership-controls --query 'OwnershipControls.Rules[0].ObjectOwnership')
    if [ "$there" = BucketOwnerEnforced ]; then
        unchanged "its ownership"
    else
        say "bucket $SITE_BUCKET: its owner owns every object, and access lists count for nothing"
        s3api put-bucket-ownership-controls --ownership-controls 'Rules=[{ObjectOwnership=BucketOwnerEnforced}]'
    fi

    there=$(ASK_OR_RUN=ask s3api get-bucket-encryption --query \
        'ServerSideEncryptionConfiguration.Rules[0].ApplyServerSideEncryptionByDefault.SSEAlgorithm')
    if [ "$there" = AES256 ]; then
        unchanged "its encryption"
    else
        say "bucket $SITE_BUCKET: encrypt it"
        s3api put-bucket-encryption --server-side-encryption-configuration \
            'Rules=[{ApplyServerSideEncryptionByDefault={SSEAlgorithm=AES256}}]'
    fi
}

# Its pages are copies of infra/site, so they go with it.
down() {
    local there
    there=$(ask aws --region "$HOME_REGION" s3api list-buckets --query "Buckets[?Name=='$SITE_BUCKET'] | [0].Name")
    if [ -n "$there$DRY_RUN" ]; then
        say "bucket $SITE_BUCKET: remove it with its pages"
        run aws --region "$HOME_REGION" s3 rb "s3://$SITE_BUCKET" --force
    else
        gone "bucket $SITE_BUCKET"
    fi
}

"$1"
