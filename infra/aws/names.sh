# shellcheck shell=bash
# Names on AWS, and how what bears them is found. Sourced by the scripts beside it, after ../lib.sh.
# shellcheck disable=SC2034,SC2154 # used by those scripts; set by ../lib.sh

export AWS_PAGER=

PUBLISHER=clickstream-publisher # the function, its role, its API
LOG_GROUP=/aws/lambda/$PUBLISHER
ROLE_ARN=arn:aws:iam::$AWS_ACCOUNT:role/$PUBLISHER
SITE=contextflow-site # access control and headers policy of the distribution
SITE_BUCKET=$SITE-$AWS_ACCOUNT
read -r HOME_REGION _ <<<"$PUBLISHER_REGIONS" # has what is needed once
GLOBAL=us-east-1                              # where the services without a region are asked

# The answer to a question as text. Nothing where there is no such thing, and in a dry run, where nothing is asked.
# A list of several pages is answered page by page: `None` is that of a page without it.
ask() {
    [ -z "$DRY_RUN" ] || return 0
    local answer errors
    [[ " $* " == *" --output "* ]] || set -- "$@" --output text
    errors=$(mktemp)
    if answer=$("$@" 2>"$errors"); then
        rm "$errors"
        sed '/^None$/d' <<<"$answer"
    elif grep -qE '\((NotFound|NoSuch|ResourceNotFound|ServerSideEncryptionConfigurationNotFound|OwnershipControlsNotFound|404)' "$errors"; then
        rm "$errors"
    else
        cat "$errors" >&2
        rm "$errors"
        return 1
    fi
}

api_of() { # REGION
    ask aws --region "$1" apigatewayv2 get-apis --query "Items[?Name=='$PUBLISHER'] | [0].ApiId"
}

# The address that pages send events to: that of the first region.
api_address() {
    local api
    api=$(api_of "$HOME_REGION")
    if [ -z "$api" ] && [ -z "$DRY_RUN" ]; then
        die "there is no HTTP API $PUBLISHER in $HOME_REGION, whose address the page needs; run deploy.sh --only aws first"
    fi
    echo "https://${api:-API_ID}.execute-api.$HOME_REGION.amazonaws.com"
}

# One field of the site's distribution, which is known by its origin.
distribution() { # FIELD
    ask aws --region "$GLOBAL" cloudfront list-distributions \
        --query "DistributionList.Items[?Origins.Items[0].Id=='$SITE_BUCKET'] | [0].$1"
}

site_origin() {
    local alias domain
    alias=$(distribution 'Aliases.Items[0]')
    domain=$(distribution DomainName)
    [ -z "$DRY_RUN" ] || domain=DISTRIBUTION.cloudfront.net
    [ -z "$alias$domain" ] || echo "https://${alias:-$domain}"
}
