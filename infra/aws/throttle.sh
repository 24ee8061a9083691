# shellcheck shell=bash
# How many requests AWS_DAILY_LIMIT pays for: RATE and BURST of the API in each region, and CONCURRENCY of the function.
# Sourced. The prices are those of infra/prices.json (us-east-1; some regions take up to a fifth more); what a request
# takes is assumed with caution. AWS calls a throttle best effort: for a moment more may pass.
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
    numbers=$(awk -v limit="$limit" -v regions="$regions" -v memory="$MEMORY_MB" '
        function dollars(bytes, units) {          # a million requests of that size
            api = 1.00 * units                    # HTTP API, a unit of 512 KiB
            request = 0.20                        # Lambda, a request
            duration = memory / 1024 * 0.2 * 13.3334 # Lambda on arm64, a GB-second; 0.2 s: a publish to the other cloud and back
            logs = 300 / 1000 * 0.50              # CloudWatch, a GB; 300 bytes: one line, as a failing request writes
            egress = (3000 + bytes) / 1000 * 0.09 # to the internet, a GB; 3,000 bytes: handshake share, headers and the answer
            return api + request + duration + logs + egress
        }
        function at_most(most, value) { return value < most ? value : most }
        BEGIN {
            price = dollars(1000, 1)              # a request of one event
            requests = limit / price * 1e6 / regions
            rate = requests / (86400 + 10)        # the bucket is spent once more than it is refilled in a day
            rate = at_most(10000, rate)           # more is no account given unasked, nor a larger burst
            burst = at_most(5000, int(rate * 10 + 1)) # what ten seconds bring may come at once
            printf "%.2f %d %.2f %.0f\n", rate, burst, price, limit / price * dollars(1048576, 2)
        }')
    read -r RATE BURST PER_MILLION LARGEST <<<"$numbers"
    CONCURRENCY=$BURST
}
