# shellcheck shell=bash
# The binaries that run on Cloud Run: how they are built, found and made into images. Sourced.

# Old enough for every base image; a binary that asks for a newer C library would not start.
TARGET=x86_64-unknown-linux-gnu
GLIBC=2.31

binary() { # NAME
    echo "${BINARIES:-$ROOT/target/cloud-run}/$1"
}

build() { # NAME...
    local name packages=()
    [ -z "$BINARIES" ] || return 0
    say "build $* for Cloud Run"
    for name in "$@"; do
        packages+=(--package "$name")
    done
    (cd "$ROOT" && CHANGES='' run cargo lambda build --profile deploy --lambda-dir target/lambda --target "$TARGET.$GLIBC" "${packages[@]}" >&2)
    for name in "$@"; do
        CHANGES='' run install -D -m 755 "$ROOT/target/lambda/$name/bootstrap" "$ROOT/target/cloud-run/$name"
    done
}

# What stands for the code of a function.
code() { # NAME
    if [ -n "$DRY_RUN" ]; then
        echo "$1" | digest
    else
        [ -f "$(binary "$1")" ] || die "$(binary "$1"): there is no such file; --binaries names a folder of built binaries"
        digest <"$(binary "$1")"
    fi
}

# The gcloud that deploys a binary as it is: of which release track it is; `image` where it is of none.
no_build_track() {
    local track
    command -v gcloud >/dev/null || { echo alpha && return; }
    for track in beta alpha; do
        if gcloud meta lint-gcloud-commands --command-string="gcloud $track run deploy x --source=. --no-build --base-image=osonly24 --command=./x --region=r" 2>/dev/null |
            grep -q '"success": true}'; then
            echo "$track"
            return
        fi
    done
    echo image
}

image_name() { # NAME
    echo "$GCP_REGION-docker.pkg.dev/$GCP_PROJECT/contextflow/$1:$(code "$1")"
}

# Has Cloud Build put the binary into an image.
image() { # NAME FOLDER
    local folder=$2/image-$1
    mkdir -p "$folder"
    printf 'FROM gcr.io/distroless/cc-debian12:nonroot\nCOPY %s /%s\nENTRYPOINT ["/%s"]\n' "$1" "$1" "$1" >"$folder/Dockerfile"
    printf '{"steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", "-t", "%s", "."]}], "images": ["%s"], "options": {"logging": "CLOUD_LOGGING_ONLY"}}\n' \
        "$(image_name "$1")" "$(image_name "$1")" >"$folder/cloudbuild.json"
    [ -n "$DRY_RUN" ] || install -m 755 "$(binary "$1")" "$folder/$1"
    say "image of $1: have Cloud Build make it"
    change_patiently builds submit "$folder" --config="$folder/cloudbuild.json" --region="$GCP_REGION" --suppress-logs \
        --service-account="projects/$GCP_PROJECT/serviceAccounts/$(account build)" --gcs-source-staging-dir="gs://$OWN_BUCKET/builds" --format=none
}
