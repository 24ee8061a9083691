#!/usr/bin/env python3
"""Each deployed function alone: CPU-seconds of its process under pushes over HTTP, and its peak memory.

usage: python3 tests/bench/functions.py [table] [archive] [enricher] [overload]

table     batcher, pushes of 500 rows, a warehouse that acknowledges at once: rows per CPU-second
archive   batcher /archive, the same pushes, gzip level 1 into a folder: rows per CPU-second
enricher  single-event pushes with PUSH_AUTH=oidc, 1,000 at once: pushes per CPU-second with HTTP
overload  batcher, ten times what a warehouse of 2 s an append takes, for 60 s, up to 1,000 pushes at once"""
import json, os, pathlib, re, signal, socket, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "target/deploy"
# The functions and what they are measured with, without the query engine that the tests bring.
BUILD = ["cargo", "build", "--profile", "deploy", "-p", "publisher", "-p", "enricher", "-p", "batcher", "-p", "pipeline-tests",
         "--bins", "--no-default-features", "--features", "publisher/cloud,enricher/cloud,batcher/cloud"]
LOAD = DEPLOY / "load"
LOG = open(os.path.join(tempfile.gettempdir(), "bench-functions.log"), "w")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(port, process):
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            sys.exit(f"it ended at once, see {LOG.name}")
        time.sleep(0.05)
    sys.exit("it did not come up")


class Function:
    def __init__(self, name, environment):
        self.port = free_port()
        # On a core of its own, so that what it is fed with does not disturb it.
        self.process = subprocess.Popen(["taskset", "-c", "0", DEPLOY / name], stdout=LOG, stderr=LOG, env=dict(
            os.environ, PORT=str(self.port), GOOGLE_CLOUD_PROJECT="bench", PUSH_AUTH="off", RUST_LOG="warn") | environment)
        wait_for(self.port, self.process)

    def cpu(self):
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self):
        return round(int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024)

    def end(self):
        self.process.terminate()
        return self.process.wait()


def server(*arguments):
    return subprocess.Popen(["taskset", "-c", "1", LOAD, *map(str, arguments)], stdout=subprocess.PIPE, stderr=LOG, text=True)


def warehouse(*arguments):
    port = free_port()
    process = server("warehouse", "--port", port, *arguments)
    wait_for(port, process)
    return process, {"BIGQUERY_GRPC_ENDPOINT": f"http://127.0.0.1:{port}", "PUBSUB_ENDPOINT": "http://127.0.0.1:9"}


def push(function, **options):
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = ["taskset", "-c", "1", LOAD, "push", "--port", str(function.port), *flags]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured(function, **options):
    push(function, **dict(options, requests=max(1, options["requests"] // 20)))  # the connections and tables are open
    before = function.cpu()
    done = push(function, **dict(options, first=options["requests"]))
    spent = function.cpu() - before
    return {"per_cpu_second": round(done["rows"] / spent), "cpu_seconds": round(spent, 2), "peak_mib": function.peak(), **done}


def table():
    behind, environment = warehouse()
    function = Function("batcher", environment)
    figures = measured(function, rows=500, requests=4000, concurrency=16)
    function.end()
    behind.terminate()
    return figures


def archive():
    behind, environment = warehouse()
    with tempfile.TemporaryDirectory() as folder:
        function = Function("batcher", environment | {"ARCHIVE_URI": folder, "ARCHIVE_WAIT_MS": "200"})
        figures = measured(function, path="/archive", rows=500, requests=2000, concurrency=16)
        function.end()
    behind.terminate()
    return figures


def enricher():
    with tempfile.TemporaryDirectory() as folder:
        token = os.path.join(folder, "token")
        topic, signer = server("topic"), server("signer", token)
        environment = dict(line.strip().split("=", 1) for line in (signer.stdout.readline() for _ in range(4)))
        function = Function("enricher", environment | {"PUBSUB_ENDPOINT": topic.stdout.readline().strip()})
        figures = measured(function, rows=0, requests=400_000, concurrency=1000, token=token)
        function.end()
        topic.kill(), signer.kill()
    return figures


def overload(seconds=60):
    """Four appends of 500 rows in 2 s are 1,000 rows/s; 10,000 rows/s come, each pack again and again until it is taken.
    After the minute the warehouse is well again."""
    behind, environment = warehouse("--delay-ms", 2000, "--delay-for-s", seconds, "--identity", 9)
    function = Function("batcher", environment)
    done = push(function, rows=100, rate=100, requests=100 * seconds, concurrency=1000)
    peak, code = function.peak(), function.end()
    behind.send_signal(signal.SIGTERM)
    counts = json.loads(behind.communicate()[0])
    return {"rows_sent": done["rows"], "pushed_again": done["pushed_again"], "drained_after_s": round(done["seconds"] - seconds, 1),
            "distinct": counts["distinct"], "lost": done["rows"] - counts["distinct"], "rows": counts["rows"], "peak_mib": peak, "exit_code": code}


def main():
    jobs = {"table": table, "archive": archive, "enricher": enricher, "overload": overload}
    if set(sys.argv[1:]) - set(jobs):
        sys.exit(__doc__)
    subprocess.run(BUILD, cwd=ROOT, check=True)
    for name in sys.argv[1:] or jobs:
        print(json.dumps({"job": name, **jobs[name]()}), flush=True)


if __name__ == "__main__":
    main()
