#!/usr/bin/env bash
# Tells the API of every region whose pages may send events: the site's, and those of SITE_ORIGIN. (CORS keeps other pages
# out, not other programs: the endpoint is open, and its throttle is what bounds it.)
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    local region api origins there site
    site=$(site_origin)
    origins=$(printf '%s\n' "$site" "${SITE_ORIGIN:-}" | sed '/^$/d' | listed)
    if [ -z "$origins" ]; then
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
            --query 'CorsConfiguration.AllowOrigins' | tr '\t' '\n' | listed)
        if [ "$there" = "$origins" ]; then
            unchanged "whose pages the HTTP API in $region lets in"
            continue
        fi
        say "HTTP API $PUBLISHER in $region: let pages of $origins in"
        run aws --region "$region" apigatewayv2 update-api --api-id "${api:-API_ID}" \
            --cors-configuration "AllowOrigins=$origins,AllowMethods=GET,POST,AllowHeaders=content-type,ExposeHeaders=retry-after,MaxAge=86400" >/dev/null
    done
}

# Lines as one list, in an order of its own.
listed() { sort -u | paste -sd, -; }

# Goes with the API.
down() { :; }

"$1"
