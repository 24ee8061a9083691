#!/usr/bin/env bash
# Tells the API of every region which origin its pages come from: the site's. (CORS keeps other sites' pages out, not
# other programs: the endpoint is open, and its throttle is what bounds it.)
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    local region api origin there
    origin=$(site_origin)
    if [ -z "$origin" ]; then
        say "there is no site yet: the API takes events of pages of any origin until deploy.sh --only site has made it"
        return
    fi
    for region in $PUBLISHER_REGIONS; do
        api=$(api_of "$region")
        if [ -z "$api$DRY_RUN" ]; then
            say "there is no HTTP API in $region yet; deploy.sh --only aws makes it"
            continue
        fi
        there=
        [ -z "$api" ] || there=$(ask aws --region "$region" apigatewayv2 get-api --api-id "$api" \
            --query "join(',', CorsConfiguration.AllowOrigins || \`[]\`)")
        if [ "$there" = "$origin" ]; then
            unchanged "origin that the HTTP API in $region lets in"
            continue
        fi
        say "HTTP API $PUBLISHER in $region: let pages of $origin in"
        run aws --region "$region" apigatewayv2 update-api --api-id "${api:-API_ID}" \
            --cors-configuration "AllowOrigins=$origin,AllowMethods=GET,POST,AllowHeaders=content-type,ExposeHeaders=retry-after,MaxAge=86400" >/dev/null
    done
}

# Goes with the API.
down() { :; }

"$1"
