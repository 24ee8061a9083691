"""Starts bqemulator with four faults of its Storage Write API mended.

    python tests/parts/bqemulator.py --rest-port 9050 --grpc-port 9060

All are patched from outside, so that the package stays as PyPI has it:

1. The Arrow schema that appended rows are decoded into is built from name, type and mode of the columns alone: a STRUCT
   column comes out without fields and every value of it fails. `tabledata.insertAll` has the builder that keeps them.
2. After the first request of a connection `write_stream` may be empty (the service remembers it); here that is refused.
3. The threads of gRPC use DuckDB's one connection while queries use it from the event loop: now and then both stand still
   for ever, each with a lock that the other waits for. Here each thread reads through a cursor of its own, as DuckDB
   wants it, and appends go through the event loop.
4. Every stream of appends holds a thread, that of a client that was killed for ever, and there are six on two processors:
   after the second kill no append is answered any more. Here there are more.
"""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

# This file has the package's name: its folder may not stand before the installed packages.
sys.path.pop(0)

from bqemulator.api.routes import tabledata  # noqa: E402
from bqemulator.cli import main  # noqa: E402
from bqemulator.grpc_api import write_servicer  # noqa: E402
from bqemulator.storage.engine import DuckDBEngine  # noqa: E402


def table_arrow_schema(table_meta):
    fields = tabledata._fields_raw_from_schema(table_meta.schema_.fields)
    return tabledata._build_arrow_schema(fields)


ensure_stream_bound = write_servicer.BigQueryWriteHandler._ensure_stream_bound


def ensure_stream_bound_once(self, stream_name, bound_ctx, context):
    if not stream_name and bound_ctx is not None:
        return bound_ctx
    return ensure_stream_bound(self, stream_name, bound_ctx, context)


start_engine = DuckDBEngine.start


async def start_engine_and_know_its_loop(self):
    self.loop, self.thread = asyncio.get_running_loop(), threading.current_thread()
    self.loop.set_default_executor(ThreadPoolExecutor(1_000, "stream"))
    await start_engine(self)


shared_connection = DuckDBEngine.connection.fget
of_thread = threading.local()


def own_connection(self):
    if threading.current_thread() is self.thread:
        return shared_connection(self)
    if not hasattr(of_thread, "cursor"):
        of_thread.cursor = shared_connection(self).cursor()
        of_thread.cursor.execute("SET TimeZone = 'UTC'")
    return of_thread.cursor


flush_to_target = write_servicer.BigQueryWriteHandler._flush_to_target


def flush_on_the_loop(self, stream, rows):
    engine = self._ctx.engine
    if threading.current_thread() is engine.thread:
        flush_to_target(self, stream, rows)
        return

    async def flush():
        async with engine.write_lock():
            flush_to_target(self, stream, rows)

    asyncio.run_coroutine_threadsafe(flush(), engine.loop).result()


write_servicer._table_arrow_schema = table_arrow_schema
write_servicer.BigQueryWriteHandler._ensure_stream_bound = ensure_stream_bound_once
write_servicer.BigQueryWriteHandler._flush_to_target = flush_on_the_loop
DuckDBEngine.start = start_engine_and_know_its_loop
DuckDBEngine.connection = property(own_connection)

if __name__ == "__main__":
    main(["start", *sys.argv[1:]])
