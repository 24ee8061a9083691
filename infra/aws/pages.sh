#!/usr/bin/env bash
# The page, with the API's address (and the report's) written in, to the bucket. Only what has changed is sent.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

# Of a cloud there is no page of visits: it asks the local warehouse.
PAGES="index.html style.css app.js chart.js dead-letters.js http.js publish.js ranks.js report.js text.js"
# Browsers ask each time whether a file has changed, CloudFront once a minute.
CACHE="public, max-age=0, s-maxage=60, must-revalidate"

up() {
    local folder file api there sum sent=
    folder=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of this run
    trap "rm -rf '$folder'" EXIT
    api=$(api_address)
    for file in $PAGES; do
        cp "$ROOT/infra/site/$file" "$folder/$file"
    done
    write "$folder/index.html" publisher "$api"
    write "$folder/index.html" report "${LOOKER_REPORT_URL:-}"

    # What the bucket tells of an object is the MD5 of its content.
    there=$(ask aws --region "$HOME_REGION" s3api list-objects-v2 --bucket "$SITE_BUCKET" --query 'Contents[].[Key, ETag]')
    for file in $PAGES; do
        sum=$(openssl md5 -r "$folder/$file" | cut -d' ' -f1)
        if [[ $'\n'$there$'\n' == *$'\n'"$file"$'\t'"\"$sum\""$'\n'* ]]; then
            continue
        fi
        say "site: send $file"
        run aws --region "$HOME_REGION" s3api put-object --bucket "$SITE_BUCKET" --key "$file" --body "$folder/$file" \
            --content-type "$(media_type "$file")" --cache-control "$CACHE" >/dev/null
        sent=1
    done
    [ -n "$sent" ] || unchanged "pages of the site"
    say "site: $(site_origin)/"
}

# Fills in an empty setting of the page.
write() { # FILE NAME VALUE
    local value
    value=$(sed -E 's/&/\&amp;/g; s/"/\&quot;/g; s/</\&lt;/g' <<<"$3")
    VALUE=$value NAME=$2 awk '
        BEGIN { empty = "<meta name=\"contextflow-" ENVIRON["NAME"] "\" content=\"" }
        (at = index($0, empty "\">")) {
            $0 = substr($0, 1, at - 1) empty ENVIRON["VALUE"] substr($0, at + length(empty))
            found = 1
        }
        { print }
        END { exit !found }' "$1" >"$1.new" || die "infra/site/index.html has no empty setting contextflow-$2"
    mv "$1.new" "$1"
}

media_type() { # FILE
    case $1 in
        *.html) echo "text/html; charset=utf-8" ;;
        *.css) echo "text/css; charset=utf-8" ;;
        *.js) echo "text/javascript; charset=utf-8" ;;
    esac
}

# Goes with the bucket.
down() { :; }

"$1"
