"""Reads the files of Cloud Monitoring with the messages of Google's APIs that the gcloud CLI brings.

    python3 tests/parts/google_messages.py /usr/lib/google-cloud-sdk/lib infra/gcp/monitoring

Prints how many files it has read, and before that every member that the API does not know. A value of the wrong type is an error.
"""

import sys
from pathlib import Path

sdk, folder = map(Path, sys.argv[1:])
sys.path[:0] = [str(sdk), str(sdk / "third_party")]

from apitools.base.py import encoding  # noqa: E402
from googlecloudsdk.generated_clients.apis.logging.v2 import logging_v2_messages as logging  # noqa: E402
from googlecloudsdk.generated_clients.apis.monitoring.v1 import monitoring_v1_messages as dashboards  # noqa: E402
from googlecloudsdk.generated_clients.apis.monitoring.v3 import monitoring_v3_messages as alerts  # noqa: E402

messages = {"log-metrics/*.json": logging.LogMetric, "alerts/*.json": alerts.AlertPolicy, "dashboard.json": dashboards.Dashboard}
files = [(file, message) for pattern, message in messages.items() for file in sorted(folder.glob(pattern))]
for file, message in files:
    read = encoding.JsonToMessage(message, file.read_text())
    for path, unknown in encoding.UnrecognizedFieldIter(read):
        print(file.name, [str(edge) for edge in path], unknown)
print(len(files), "files")
