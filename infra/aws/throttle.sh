# shellcheck shell=bash
# What AWS_DAILY_LIMIT pays for on both clouds, whoever sends: RATE and BURST of the API in each region, CONCURRENCY of the function,
# and of a request at most EVENTS and BODY_BYTES. Sourced.
#
# `requests.tsv` has the dearest request within each bound, from infra/prices.json: what it costs alone, and what it costs of what
# requests share, an instance and objects of the archive, with what those cost a second at most. A second of requests costs at most
# `rate * usd + min(rate * shared_usd, shared_usd_a_second)`. The largest bound is taken with which the limit pays for
# `least_rate` requests a second in each region. AWS calls a throttle best effort: for a moment more may pass.
#
# The rate bounds the bill. The burst is what comes at once after a pause, as from pages that send again what they have kept; the
# function may run as often at the same time, or it would refuse what the API lets in.
# shellcheck disable=SC2034 # used by the scripts that source it

MEMORY_MB=256
throttle() {
    local limit currency regions numbers
    read -r limit currency <<<"$AWS_DAILY_LIMIT"
    regions=$(wc -w <<<"$PUBLISHER_REGIONS")
    [ "$currency" = USD ] || die "AWS_DAILY_LIMIT=\"$AWS_DAILY_LIMIT\": AWS bills in USD; give it as \"5 USD\""
    numbers=$(awk -v limit="$limit" -v regions="$regions" '
        function at_most(most, value) { return value < most ? value : most }
        /^#/ { next }
        {
            second = limit / (86400 + 10)         # the bucket is spent once more than it is refilled in a day
            shared = (second - $5) / $3
            alone = second / ($3 + $4)
            rate = (shared > alone ? shared : alone) / regions
            events = $1
            body = $2
            if (rate >= $6) exit
        }
        END {
            rate = int(at_most(10000, rate) * 10000) / 10000 # more is no account given unasked, nor a larger burst
            burst = at_most(5000, int(rate * 10 + 1)) # what ten seconds bring may come at once
            printf "%.4f %d %d %d\n", rate, burst, events, body
        }' "$ROOT/infra/aws/requests.tsv")
    read -r RATE BURST EVENTS BODY_BYTES <<<"$numbers"
    CONCURRENCY=$BURST
}
