"""Prints the rows of a query, read by Google's own client, one JSON array a line; values in Python's words.

    python tests/parts/read_rows.py http://127.0.0.1:9050 project 'SELECT * FROM `dataset.table`'
"""

import json
import sys

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery


def words(value):
    if isinstance(value, dict):
        return {name: words(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [words(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return f"{type(value).__name__} {value}"


endpoint, project, sql = sys.argv[1:]
client = bigquery.Client(project, AnonymousCredentials(), client_options={"api_endpoint": endpoint})
for row in client.query_and_wait(sql):
    print(json.dumps([words(value) for value in row.values()]))
