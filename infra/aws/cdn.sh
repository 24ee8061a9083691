#!/usr/bin/env bash
# CloudFront before the bucket: HTTPS only, the headers that keep the page to itself, and the one right to read the bucket.
#
# Where AWS Certificate Manager has a certificate in us-east-1 for the host of SITE_ORIGIN, the distribution answers to that
# host, from TLS 1.2. For its own domain CloudFront itself sets what it takes.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

CACHING_OPTIMIZED=658327ea-f89d-4fab-a63d-7e88639e58f6 # AWS's own cache policy: compressed, without cookies or queries

cloudfront() { # COMMAND ARGUMENTS...
    local command=$1
    shift
    set -- aws --region "$GLOBAL" cloudfront "$command" "$@"
    "${ASK_OR_RUN:-run}" "$@"
}

up() {
    local access headers there arn
    access=$(access_control)
    headers=$(headers_policy)
    if [ -z "$access" ]; then
        say "origin access control $SITE: make it"
        access=$(cloudfront create-origin-access-control --output text --query OriginAccessControl.Id --origin-access-control-config \
            "Name=$SITE,SigningProtocol=sigv4,SigningBehavior=always,OriginAccessControlOriginType=s3")
        access=${access:-ACCESS_CONTROL_ID}
    else
        unchanged "origin access control $SITE"
    fi
    up_headers "$headers"
    headers=$(headers_policy)
    up_distribution "$access" "${headers:-HEADERS_POLICY_ID}"
    arn=$(distribution ARN)
    up_policy "${arn:-arn:aws:cloudfront::$AWS_ACCOUNT:distribution/DISTRIBUTION_ID}"
}

access_control() {
    ASK_OR_RUN=ask cloudfront list-origin-access-controls --query "OriginAccessControlList.Items[?Name=='$SITE'] | [0].Id"
}

headers_policy() {
    ASK_OR_RUN=ask cloudfront list-response-headers-policies --type custom \
        --query "ResponseHeadersPolicyList.Items[?ResponseHeadersPolicy.ResponseHeadersPolicyConfig.Name=='$SITE'] | [0].ResponseHeadersPolicy.Id"
}

# The page runs and loads only what it brings, sends to the API alone, and frames nothing but the report.
content_policy() {
    local api frame=
    api=$(api_address)
    [ -z "${LOOKER_REPORT_URL:-}" ] || frame="; frame-src ${LOOKER_REPORT_URL%/embed/*}"
    echo "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' $api; img-src 'self' data:$frame; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

up_headers() { # POLICY
    local content config mark there
    content=$(content_policy)
    config='"Name":"'$SITE'","SecurityHeadersConfig":{'
    config+='"StrictTransportSecurity":{"Override":true,"AccessControlMaxAgeSec":31536000},'
    config+='"ContentSecurityPolicy":{"Override":true,"ContentSecurityPolicy":"'$content'"},'
    config+='"ContentTypeOptions":{"Override":true},'
    config+='"FrameOptions":{"Override":true,"FrameOption":"DENY"},'
    config+='"ReferrerPolicy":{"Override":true,"ReferrerPolicy":"no-referrer"}}'
    mark=$(marked "$config")
    config='{"Comment":"'$mark'",'$config'}'
    if [ -z "$1" ]; then
        say "headers policy $SITE: make it"
        cloudfront create-response-headers-policy --response-headers-policy-config "$config" >/dev/null
        return
    fi
    there=$(ASK_OR_RUN=ask cloudfront get-response-headers-policy --id "$1" --query \
        '[ETag, ResponseHeadersPolicy.ResponseHeadersPolicyConfig.Comment]')
    if [ "${there#*$'\t'}" = "$mark" ]; then
        unchanged "headers policy $SITE"
    else
        say "headers policy $SITE: give it the new headers"
        cloudfront update-response-headers-policy --id "$1" --if-match "${there%%$'\t'*}" \
            --response-headers-policy-config "$config" >/dev/null
    fi
}

# The comment of what is made of a configuration: it says of which, so that a run changes only what has changed.
marked() { # CONFIGURATION
    local mark
    mark=$(digest <<<"$1")
    echo "ContextFlow $mark"
}

up_distribution() { # ACCESS-CONTROL HEADERS-POLICY
    local there id mark version config alias='"Quantity":0' certificate='{"CloudFrontDefaultCertificate":true}' host='' arn reference
    arn=$(certificate)
    if [ -n "$arn" ]; then
        host=${SITE_ORIGIN#https://}
        alias='"Quantity":1,"Items":["'$host'"]'
        certificate='{"ACMCertificateArn":"'$arn'","SSLSupportMethod":"sni-only","MinimumProtocolVersion":"TLSv1.2_2021"}'
    fi
    config='"Enabled":true,"DefaultRootObject":"index.html"'
    config+=',"Aliases":{'$alias'},"ViewerCertificate":'$certificate
    config+=',"HttpVersion":"http2and3","IsIPV6Enabled":true,"PriceClass":"PriceClass_100","WebACLId":""'
    config+=',"Origins":{"Quantity":1,"Items":[{"Id":"'$SITE_BUCKET'","DomainName":"'$SITE_BUCKET.s3.$HOME_REGION.amazonaws.com'"'
    config+=',"OriginPath":"","CustomHeaders":{"Quantity":0},"ConnectionAttempts":3,"ConnectionTimeout":10'
    config+=',"OriginAccessControlId":"'$1'","S3OriginConfig":{"OriginAccessIdentity":""}}]},"OriginGroups":{"Quantity":0}'
    config+=',"DefaultCacheBehavior":{"TargetOriginId":"'$SITE_BUCKET'","ViewerProtocolPolicy":"redirect-to-https","Compress":true'
    config+=',"AllowedMethods":{"Quantity":2,"Items":["GET","HEAD"],"CachedMethods":{"Quantity":2,"Items":["GET","HEAD"]}}'
    config+=',"CachePolicyId":"'$CACHING_OPTIMIZED'","ResponseHeadersPolicyId":"'$2'","SmoothStreaming":false,"FieldLevelEncryptionId":""'
    config+=',"LambdaFunctionAssociations":{"Quantity":0},"FunctionAssociations":{"Quantity":0}}'
    config+=',"CacheBehaviors":{"Quantity":0},"CustomErrorResponses":{"Quantity":0}'
    config+=',"Logging":{"Enabled":false,"IncludeCookies":false,"Bucket":"","Prefix":""}'
    config+=',"Restrictions":{"GeoRestriction":{"RestrictionType":"none","Quantity":0}}'
    mark=$(marked "$config")
    reference=$SITE-$(date +%s)
    id=$(distribution Id)
    if [ -n "$id" ]; then
        there=$(ASK_OR_RUN=ask cloudfront get-distribution-config --id "$id" --query 'DistributionConfig.[Comment, Enabled]')
        # A removal that was broken off has switched it off.
        if [ "$there" = "$mark"$'\tTrue' ]; then
            unchanged "distribution $id"
            return
        fi
        reference=$(ASK_OR_RUN=ask cloudfront get-distribution-config --id "$id" --query DistributionConfig.CallerReference)
    fi
    config='{"CallerReference":"'$reference'","Comment":"'$mark'",'$config'}'
    if [ -z "$id" ]; then
        say "distribution of $SITE_BUCKET: make it (it is everywhere after some minutes)"
        cloudfront create-distribution --distribution-config "$config" >/dev/null
    else
        say "distribution $id: give it the new settings"
        version=$(etag "$id")
        cloudfront update-distribution --id "$id" --if-match "$version" --distribution-config "$config" >/dev/null
    fi
}

# The certificate for the host of SITE_ORIGIN; nothing where there is none, or no such host.
certificate() {
    local host=${SITE_ORIGIN:-} arn
    host=${host#https://}
    [[ ${SITE_ORIGIN:-} =~ ^https://[a-z0-9.-]+$ ]] || return 0
    arn=$(ask aws --region us-east-1 acm list-certificates --certificate-statuses ISSUED --query \
        "CertificateSummaryList[?DomainName=='$host' || contains(SubjectAlternativeNameSummaries || \`[]\`, '$host')] | [0].CertificateArn")
    if [ -n "$arn" ]; then
        echo "$arn"
    else
        say "there is no issued certificate for $host in us-east-1, so the site stays on CloudFront's own domain; to have it there, ask for one and deploy again:"
        say "  aws acm request-certificate --region us-east-1 --validation-method DNS --domain-name $host"
    fi
}

etag() { # DISTRIBUTION
    ASK_OR_RUN=ask cloudfront get-distribution-config --id "$1" --query ETag
}

# Only this distribution reads the bucket, and only over TLS, as it always does.
up_policy() { # DISTRIBUTION-ARN
    local there policy
    there=$(ask aws --region "$HOME_REGION" s3api get-bucket-policy --bucket "$SITE_BUCKET" --query Policy)
    if [[ $there == *"\"$1\""* ]]; then
        unchanged "its right to read the bucket"
        return
    fi
    policy='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"cloudfront.amazonaws.com"},"Action":"s3:GetObject"'
    policy+=',"Resource":"arn:aws:s3:::'$SITE_BUCKET'/*","Condition":{"StringEquals":{"AWS:SourceArn":"'$1'"}}}]}'
    say "bucket $SITE_BUCKET: let the distribution read it"
    run aws --region "$HOME_REGION" s3api put-bucket-policy --bucket "$SITE_BUCKET" --policy "$policy"
}

# A distribution is switched off before it can be removed, and CloudFront takes minutes for that.
down() {
    local id enabled config access headers version
    id=$(distribution Id)
    if [ -n "$id$DRY_RUN" ]; then
        say "distribution ${id:-DISTRIBUTION_ID}: switch it off and remove it (some minutes)"
        enabled=$(distribution Enabled)
        if [ "$enabled" != False ]; then
            version=$(etag "$id")
            config=$(ASK_OR_RUN=ask cloudfront get-distribution-config --id "$id" --query DistributionConfig --output json |
                sed -E 's/^ {4}"Enabled": true/    "Enabled": false/' | tr -s ' \n' ' ')
            cloudfront update-distribution --id "${id:-DISTRIBUTION_ID}" --if-match "${version:-ETAG}" \
                --distribution-config "${config:-CONFIG}" >/dev/null
        fi
        cloudfront wait distribution-deployed --id "${id:-DISTRIBUTION_ID}"
        version=$(etag "$id")
        cloudfront delete-distribution --id "${id:-DISTRIBUTION_ID}" --if-match "${version:-ETAG}"
    else
        gone "distribution of $SITE_BUCKET"
    fi
    headers=$(headers_policy)
    if [ -n "$headers$DRY_RUN" ]; then
        say "headers policy $SITE: remove it"
        version=$(ASK_OR_RUN=ask cloudfront get-response-headers-policy --id "$headers" --query ETag)
        cloudfront delete-response-headers-policy --id "${headers:-HEADERS_POLICY_ID}" --if-match "${version:-ETAG}"
    else
        gone "headers policy $SITE"
    fi
    access=$(access_control)
    if [ -n "$access$DRY_RUN" ]; then
        say "origin access control $SITE: remove it"
        version=$(ASK_OR_RUN=ask cloudfront get-origin-access-control --id "$access" --query ETag)
        cloudfront delete-origin-access-control --id "${access:-ACCESS_CONTROL_ID}" --if-match "${version:-ETAG}"
    else
        gone "origin access control $SITE"
    fi
}

"$1"
