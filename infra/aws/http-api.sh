#!/usr/bin/env bash
# The HTTP API before the publisher, in every region: two routes, and a throttle that AWS_DAILY_LIMIT pays for.
# Pages of other origins ask first with OPTIONS: the API answers that itself once cors.sh has told it whom to let in.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh
# shellcheck source-path=SCRIPTDIR source=throttle.sh
. ./throttle.sh

ROUTES=("POST /publish" "GET /health")

up() {
    local region
    throttle
    say "AWS_DAILY_LIMIT=\"$AWS_DAILY_LIMIT\" pays, on both clouds, for $RATE requests a second in each region and $BURST at once, each of at most $EVENTS events and $BODY_BYTES bytes"
    for region in $PUBLISHER_REGIONS; do
        up_in "$region"
    done
}

up_in() { # REGION
    local region=$1 function=arn:aws:lambda:$1:$AWS_ACCOUNT:function:$PUBLISHER api integration route there
    api=$(api_of "$region")
    if [ -n "$api" ]; then
        unchanged "HTTP API $PUBLISHER in $region"
    else
        say "HTTP API $PUBLISHER in $region: make it"
        api=$(run aws --region "$region" apigatewayv2 create-api --name "$PUBLISHER" --protocol-type HTTP --output text --query ApiId)
        api=${api:-API_ID}
    fi

    integration=$(ask aws --region "$region" apigatewayv2 get-integrations --api-id "$api" \
        --query "Items[?IntegrationUri=='$function' && PayloadFormatVersion=='2.0'] | [0].IntegrationId")
    if [ -n "$integration" ]; then
        unchanged "its integration with the function"
    else
        say "HTTP API $PUBLISHER in $region: hand requests to the function"
        integration=$(run aws --region "$region" apigatewayv2 create-integration --api-id "$api" --integration-type AWS_PROXY \
            --integration-uri "$function" --payload-format-version 2.0 --output text --query IntegrationId)
        integration=${integration:-INTEGRATION_ID}
    fi

    for route in "${ROUTES[@]}"; do
        there=$(ask aws --region "$region" apigatewayv2 get-routes --api-id "$api" --query "Items[?RouteKey=='$route'] | [0].[RouteId, Target]")
        if [ -z "$there" ]; then
            say "HTTP API $PUBLISHER in $region: route $route"
            run aws --region "$region" apigatewayv2 create-route --api-id "$api" --route-key "$route" --target "integrations/$integration" >/dev/null
        elif [ "${there#*$'\t'}" = "integrations/$integration" ]; then
            unchanged "route $route"
        else
            say "HTTP API $PUBLISHER in $region: point the route $route to the function"
            run aws --region "$region" apigatewayv2 update-route --api-id "$api" --route-id "${there%%$'\t'*}" --target "integrations/$integration" >/dev/null
        fi
    done

    permit "$region" "$api"
    stage "$region" "$api"
    say "HTTP API $PUBLISHER in $region: https://$api.execute-api.$region.amazonaws.com/publish"
}

# Lets this API call the function, and no other.
permit() { # REGION API
    local calls="arn:aws:execute-api:$1:$AWS_ACCOUNT:$2/*" policy
    policy=$(ask aws --region "$1" lambda get-policy --function-name "$PUBLISHER" --query Policy)
    if [[ $policy == *"\"$calls\""* ]]; then
        unchanged "its right to call the function"
        return
    fi
    if [[ $policy == *'"http-api"'* ]]; then
        say "HTTP API $PUBLISHER in $1: an earlier one may no longer call the function"
        run aws --region "$1" lambda remove-permission --function-name "$PUBLISHER" --statement-id http-api
    fi
    say "HTTP API $PUBLISHER in $1: let it call the function"
    run aws --region "$1" lambda add-permission --function-name "$PUBLISHER" --statement-id http-api --action lambda:InvokeFunction \
        --principal apigateway.amazonaws.com --source-arn "$calls" >/dev/null
}

# The stage without a path of its own; a change of the routes is live at once.
stage() { # REGION API
    local throttle="ThrottlingRateLimit=$RATE,ThrottlingBurstLimit=$BURST" there
    there=$(ask aws --region "$1" apigatewayv2 get-stage --api-id "$2" --stage-name "\$default" \
        --query 'DefaultRouteSettings.[ThrottlingRateLimit, ThrottlingBurstLimit]')
    if [ -z "$there" ]; then
        say "HTTP API $PUBLISHER in $1: its stage"
        run aws --region "$1" apigatewayv2 create-stage --api-id "$2" --stage-name "\$default" --auto-deploy \
            --default-route-settings "$throttle" >/dev/null
    elif [ "$(awk '{ printf "%.4f %d", $1, $2 }' <<<"$there")" = "$RATE $BURST" ]; then
        unchanged "its throttle"
    else
        say "HTTP API $PUBLISHER in $1: throttle it"
        run aws --region "$1" apigatewayv2 update-stage --api-id "$2" --stage-name "\$default" \
            --default-route-settings "$throttle" >/dev/null
    fi
}

down() {
    local region api
    for region in $PUBLISHER_REGIONS; do
        api=$(api_of "$region")
        if [ -n "$api$DRY_RUN" ]; then
            say "HTTP API $PUBLISHER in $region: remove it"
            run aws --region "$region" apigatewayv2 delete-api --api-id "${api:-API_ID}"
        else
            gone "HTTP API $PUBLISHER in $region"
        fi
    done
}

"$1"
