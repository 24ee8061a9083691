"""Starts bqemulator with two gaps of its Storage Write API closed.

    python tests/parts/bqemulator.py --rest-port 9050 --grpc-port 9060

Both are patched from outside, so that the package stays as PyPI has it:

1. The Arrow schema that appended rows are decoded into is built from name, type and mode of the columns alone: a STRUCT
   column comes out without fields and every value of it fails. `tabledata.insertAll` has the builder that keeps them.
2. After the first request of a connection `write_stream` may be empty (the service remembers it); here that is refused.
"""

import sys

# This file has the package's name: its folder may not stand before the installed packages.
sys.path.pop(0)

from bqemulator.api.routes import tabledata  # noqa: E402
from bqemulator.cli import main  # noqa: E402
from bqemulator.grpc_api import write_servicer  # noqa: E402


def table_arrow_schema(table_meta):
    fields = tabledata._fields_raw_from_schema(table_meta.schema_.fields)
    return tabledata._build_arrow_schema(fields)


ensure_stream_bound = write_servicer.BigQueryWriteHandler._ensure_stream_bound


def ensure_stream_bound_once(self, stream_name, bound_ctx, context):
    if not stream_name and bound_ctx is not None:
        return bound_ctx
    return ensure_stream_bound(self, stream_name, bound_ctx, context)


write_servicer._table_arrow_schema = table_arrow_schema
write_servicer.BigQueryWriteHandler._ensure_stream_bound = ensure_stream_bound_once

if __name__ == "__main__":
    main(["start", *sys.argv[1:]])
