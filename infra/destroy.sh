#!/usr/bin/env bash
# Removes what deploy.sh made, and nothing else. Tables, buckets and the archive stay, unless they are asked for too.
set -euo pipefail

usage() {
    cat <<'END'
infra/destroy.sh [--settings FILE] [--dry-run] [--delete-data]

  --settings FILE   the settings; infra/settings.env by default
  --dry-run         print every command, whole and on one line, and run none; needs no login
  --delete-data     remove the tables, the buckets and all that is in them, too (Cloud Storage keeps deleted objects for
                    7 days, and bills them; Google's "soft delete")
END
}

wrong() {
    printf '%s\n\n' "$*" >&2
    usage >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --settings) [ $# -ge 2 ] || wrong "$1: give it a value" ;;&
        --settings) SETTINGS=$(realpath -m -- "$2") && shift ;;
        --delete-data) DELETE_DATA=yes ;;
        --dry-run) DRY_RUN=yes ;;
        --help | -h) usage && exit ;;
        *) wrong "$1: no such option" ;;
    esac
    shift
done

cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. ./lib.sh
# shellcheck source-path=SCRIPTDIR source=parts.sh
. ./parts.sh
# shellcheck source-path=SCRIPTDIR source=checks.sh
. ./checks.sh

check_settings
if [ -z "$DRY_RUN" ]; then
    check_tools destroy
    check_logins destroy
fi
stop_if_problems

steps=("${GCP[@]}" "${AWS[@]}" "${SITE[@]}")
done_already=" "
for ((at = ${#steps[@]} - 1; at >= 0; at--)); do
    step=${steps[at]}
    [[ $done_already != *" $step "* ]] || continue
    done_already+="$step "
    say
    say "== $step"
    "./$step.sh" down || die "$step failed. Mend the fault and run again: the run continues there."
done

say
if [ -n "$DRY_RUN" ]; then
    say "This was a dry run: nothing was removed."
elif [ -n "$DELETE_DATA" ]; then
    say "== done: what is left are the enabled APIs, and what the lines above say stays"
else
    say "== done: what is left are the tables, the buckets and the enabled APIs; destroy.sh --delete-data removes the data too"
fi
