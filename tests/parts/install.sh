#!/usr/bin/env bash
# Installs the foreign parts that the tests run against: into $CONTEXTFLOW_PARTS, by default target/parts.
# It needs Python 3.11 or later and, for Google's Pub/Sub emulator, a Java runtime and the gcloud CLI with its component
# pubsub-emulator. What is there already stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
parts=${CONTEXTFLOW_PARTS:-target/parts}

if [ ! -x "$parts/bin/python" ]; then
    python3 -m venv "$parts"
fi
"$parts/bin/pip" install --quiet --disable-pip-version-check --requirement tests/parts/requirements.txt

# bqemulator loads DuckDB's spatial extension, which the wheel brings, from where DuckDB looks for extensions.
"$parts/bin/python" - <<'PYTHON'
import pathlib
import shutil

import duckdb
import duckdb_extension_spatial

version = f"v{duckdb.__version__}"
packed = pathlib.Path(duckdb_extension_spatial.__file__).parent / "extensions" / version / "spatial.duckdb_extension"
target = pathlib.Path.home() / ".duckdb" / "extensions" / version / "linux_amd64" / packed.name
target.parent.mkdir(parents=True, exist_ok=True)
if not target.exists():
    shutil.copy(packed, target)
PYTHON

jar=$(find "${CLOUDSDK_ROOT:-/usr/lib/google-cloud-sdk}/platform/pubsub-emulator/lib" -name '*.jar' 2>/dev/null | head -n 1 || true)
if [ -z "$jar" ] && command -v gcloud >/dev/null; then
    root=$(gcloud info --format='value(installation.sdk_root)' 2>/dev/null)
    jar=$(find "$root/platform/pubsub-emulator/lib" -name '*.jar' 2>/dev/null | head -n 1 || true)
fi
if [ -n "$jar" ]; then
    ln -sfn "$jar" "$parts/pubsub-emulator.jar"
else
    echo "Google's Pub/Sub emulator is missing: gcloud components install pubsub-emulator (or apt-get install google-cloud-cli-pubsub-emulator)" >&2
fi
