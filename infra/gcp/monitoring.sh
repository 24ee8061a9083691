#!/usr/bin/env bash
# What is watched: the files of monitoring/, with settings in the place of ${NAME}. What is made bears a mark of its file's
# content, so that a run changes only what has changed.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. ../lib.sh
# shellcheck source-path=SCRIPTDIR source=names.sh
. ./names.sh

up() {
    local file
    folder=$(folder_for monitoring)
    channel
    for file in monitoring/log-metrics/*.json; do
        log_metric "$file"
    done
    dashboard
    policies=$(policies)
    for file in monitoring/alerts/*.json; do
        alert "$file"
    done
}

filled() { # FILE
    sed -e "s|\${GCP_PROJECT}|$GCP_PROJECT|g" -e "s|\${NO_EVENTS_MINUTES}|$NO_EVENTS_MINUTES|g" \
        -e "s|\${NO_EVENTS_SECONDS}|$((NO_EVENTS_MINUTES * 60))|g" \
        -e "s|\${FLOOD_PER_MINUTE}|$FLOOD_PER_MINUTE|g" -e "s|\${NOTIFICATION_CHANNEL}|${channel:-}|g" "$1"
}

# Ours of a list whose lines begin with what tells whose they are.
ours() { sed -n 's/^contextflow|//p'; }

channels() { look beta monitoring channels list --format='value[separator="|"](userLabels.app,name,labels.email_address)' | ours; }

# Where alerts go: an e-mail. Its name, which Google chose, is `channel` from here on.
channel() {
    local there
    there=$(channels)
    channel=${there%%|*}
    if [ -z "$there" ]; then
        say "notification channel: make it, to ALERT_EMAIL"
        channel=$(change beta monitoring channels create --display-name="ContextFlow alerts" --type=email --user-labels=app=contextflow \
            --channel-labels="email_address=$ALERT_EMAIL" --format='value(name)')
        channel=${channel:-projects/$GCP_PROJECT/notificationChannels/CHANNEL}
    elif [ "${there#*|}" = "$ALERT_EMAIL" ]; then
        unchanged "notification channel"
    else
        say "notification channel: to the new ALERT_EMAIL"
        change beta monitoring channels update "$channel" --update-channel-labels="email_address=$ALERT_EMAIL" --format=none
    fi
}

log_metric() { # FILE
    local name there mark verb=create
    name=$(basename "$1" .json)
    mark=$(filled "$1" | digest)
    there=$(look logging metrics describe "$name" --format='value(description)')
    if [[ $there == *"($mark)" ]]; then
        unchanged "log-based metric $name"
        return
    fi
    [ -z "$there" ] || verb=update
    say "log-based metric $name: $verb it"
    filled "$1" | sed "s/^\(  \"description\": \".*\)\",\$/\1 ($mark)\",/" >"$folder/$name.json"
    change logging metrics "$verb" "$name" --config-from-file="$folder/$name.json" --format=none
}

dashboard() {
    local file=monitoring/dashboard.json there mark
    mark=$(filled $file | digest)
    there=$(dashboards)
    filled $file | sed "0,/\"contextflow\": \"\"/s//\"contextflow\": \"\", \"deployed-$mark\": \"\"/" >"$folder/dashboard.json"
    if [[ $there == *"deployed-$mark"* ]]; then
        unchanged "dashboard"
    elif [ -z "$there" ]; then
        say "dashboard: make it"
        change monitoring dashboards create --config-from-file="$folder/dashboard.json" --format=none
    else
        say "dashboard: change it"
        sed -i "0,/{/s//{\"etag\": \"$(cut -d '|' -f 2 <<<"$there")\",/" "$folder/dashboard.json"
        change monitoring dashboards update "${there%%|*}" --config-from-file="$folder/dashboard.json" --format=none
    fi
}

dashboards() { look monitoring dashboards list --format='value[separator="|"](name,etag,labels.list())' | sed -n '/|.*|.*contextflow=/p'; }

policies() { look alpha monitoring policies list --format='value[separator="|"](userLabels.app,name,userLabels.file,userLabels.deployed)' | ours; }

alert() { # FILE
    local name there mark
    name=$(basename "$1" .json)
    mark=$(filled "$1" | digest)
    there=$(grep -F "|$name|" <<<"$policies" || true)
    filled "$1" | sed "s/\"app\": \"contextflow\"/&, \"file\": \"$name\", \"deployed\": \"$mark\"/" >"$folder/alert-$name.json"
    if [ "${there##*|}" = "$mark" ]; then
        unchanged "alert $name"
    elif [ -z "$there" ]; then
        say "alert $name: make it"
        change_patiently alpha monitoring policies create --policy-from-file="$folder/alert-$name.json" --format=none
    else
        say "alert $name: change it"
        change alpha monitoring policies update "${there%%|*}" --policy-from-file="$folder/alert-$name.json" --format=none
    fi
}

down() {
    local name known file
    known=$(policies | cut -d '|' -f 1)
    for name in ${DRY_RUN:+ALERT} $known; do
        say "alert ${name##*/}: remove it"
        change alpha monitoring policies delete "$name"
    done
    known=$(dashboards | cut -d '|' -f 1)
    for name in ${DRY_RUN:+DASHBOARD} $known; do
        say "dashboard: remove it"
        change monitoring dashboards delete "$name"
    done
    known=$(channels | cut -d '|' -f 1)
    for name in ${DRY_RUN:+CHANNEL} $known; do
        say "notification channel: remove it"
        change beta monitoring channels delete "$name"
    done
    known=$(look logging metrics list --format='value(name)')
    for file in monitoring/log-metrics/*.json; do
        name=$(basename "$file" .json)
        if [ -n "$DRY_RUN" ] || grep -qxF "$name" <<<"$known"; then
            say "log-based metric $name: remove it"
            change logging metrics delete "$name"
        else
            gone "log-based metric $name"
        fi
    done
}

"$1"
