#!/usr/bin/env bash
# Makes the pipeline on Google Cloud and AWS, or brings it to what settings and sources say. What is there stays as it is, so
# a run that failed is continued by running again, and a second run changes nothing.
set -euo pipefail

usage() {
    cat <<'END'
infra/deploy.sh [--settings FILE] [--dry-run] [--only gcp|aws|site|schema] [--binaries DIR]

  --settings FILE   the settings; infra/settings.env by default
  --dry-run         print every command, whole and on one line, and run none; needs no login
  --only PART       gcp (all on Google Cloud), aws (the publisher), site (pages and their distribution), schema (tables)
  --binaries DIR    take enricher, batcher, kill-switch, backfill (x86-64), publisher (arm64) and contextflow from DIR
                    instead of building them
END
}

wrong() {
    printf '%s\n\n' "$*" >&2
    usage >&2
    exit 2
}

only=all
while [ $# -gt 0 ]; do
    case $1 in
        --settings | --only | --binaries) [ $# -ge 2 ] || wrong "$1: give it a value" ;;&
        --settings) SETTINGS=$(realpath -m -- "$2") && shift ;;
        --only) only=$2 && shift ;;
        --binaries) BINARIES=$(realpath -m -- "$2") && shift ;;
        --dry-run) DRY_RUN=yes ;;
        --help | -h) usage && exit ;;
        *) wrong "$1: no such option" ;;
    esac
    shift
done

cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=parts.sh
. ./parts.sh
case $only in
    all) steps=("${GCP[@]}" "${AWS[@]}" "${SITE[@]}") ;;
    gcp) steps=("${GCP[@]}") ;;
    aws) steps=("${AWS[@]}") ;;
    site) steps=("${SITE[@]}") ;;
    schema) steps=("${SCHEMA[@]}") ;;
    *) wrong "--only $only: no such part" ;;
esac
# shellcheck source-path=SCRIPTDIR source=lib.sh
. ./lib.sh
# shellcheck source-path=SCRIPTDIR source=checks.sh
. ./checks.sh

check_settings
if [ "$only" = all ] || [ "$only" = gcp ]; then
    choose_mode
fi
if [ -z "$DRY_RUN" ]; then
    check_tools "$only"
    check_logins "$only"
fi
stop_if_problems
[ -n "$DRY_RUN" ] || [ "$only" = site ] || refuse_under_a_brake

CHANGES=$(mktemp)
export CHANGES
trap 'rm -f "$CHANGES"' EXIT
for step in "${steps[@]}"; do
    say
    say "== $step"
    "./$step.sh" up || die "$step failed. What was made stays; mend the fault and run again: the run continues there."
done

say
if [ -n "$DRY_RUN" ]; then
    say "This was a dry run: nothing was made or changed."
    exit
fi
./report.sh "$only"
