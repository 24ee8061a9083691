#!/usr/bin/env python3
"""The deployed functions between real servers: Google's Pub/Sub emulator and bqemulator.

usage: python3 tests/bench/clouds.py [--rate 1100] [--seconds 60] [--batch 50] [--kill-every 0]

contextflow generate -> publisher -> Pub/Sub -> enricher -> Pub/Sub -> batcher -> BigQuery, each function a process of its
own as `cargo build --profile deploy` makes it. With --kill-every N the enricher and the batcher are killed (SIGKILL) every
N seconds and started again. At the end every event that was answered 200 must be in the table, and once in the
deduplicated view. tests/parts/install.sh installs the servers.

Google's emulator has two pushes of a subscription on their way at once, whatever waits behind them: so a push carries
--batch events, and what an answer waits for (windows of enricher and batcher) is set short."""
import argparse, json, os, pathlib, re, signal, socket, subprocess, sys, tempfile, threading, time, urllib.request

import functions

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PARTS = (ROOT / os.environ.get("CONTEXTFLOW_PARTS", "target/parts")).resolve()
CONTEXTFLOW = ROOT / "target/debug/contextflow"
PROJECT = "bench-project"
TABLE = "contextflow.clickstream_events"
VIEW = "contextflow.v_clickstream_events"


def call(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read()
    return json.loads(text) if text else {}


class Process:
    """A process that may be killed and started again; it knows the CPU and memory of all its lives."""

    def __init__(self, name, command, port, environment=None):
        self.name, self.command, self.port = name, command, port
        self.environment = dict(os.environ, **(environment or {}))
        self.cpu, self.peak, self.log = 0.0, 0.0, open(os.path.join(tempfile.gettempdir(), f"bench-{name}.log"), "w")
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=self.log, stderr=self.log)
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended at once, see {self.log.name}")
            time.sleep(0.05)
        sys.exit(f"{self.name} did not come up, see {self.log.name}")

    def end(self, how):
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        self.cpu += (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        self.peak = max(self.peak, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)
        self.process.send_signal(how)
        self.process.wait()


def make_topics(url, enricher, batcher):
    api = f"{url}/v1/projects/{PROJECT}"
    topics = {"raw": "clickstream-raw-topic", "enriched": "clickstream-enriched-topic", "dead": "clickstream-dead-letter-topic"}
    for topic in topics.values():
        call(f"{api}/topics/{topic}", {}, "PUT")
    for name, topic, endpoint in (("raw", "raw", f"{enricher}/"), ("enriched", "enriched", f"{batcher}/"),
                                  ("archive", "enriched", f"{batcher}/archive"), ("dead-letter", "dead", f"{batcher}/dead-letter")):
        body = {"topic": f"projects/{PROJECT}/topics/{topics[topic]}", "pushConfig": {"pushEndpoint": endpoint},
                "ackDeadlineSeconds": 60, "retryPolicy": {"minimumBackoff": "0.5s", "maximumBackoff": "600s"}}
        call(f"{api}/subscriptions/clickstream-{name}-sub", body, "PUT")


class BigQuery:
    def __init__(self, rest):
        self.api = f"{rest}/bigquery/v2/projects/{PROJECT}"

    def query(self, sql):
        answer = call(f"{self.api}/queries", {"query": sql, "useLegacySql": False, "maxResults": 1000000, "timeoutMs": 120000})
        if answer.get("errors"):
            sys.exit(f"{sql}: {answer['errors']}")
        names = [field["name"] for field in answer["schema"]["fields"]]
        return [dict(zip(names, (cell["v"] for cell in row["f"]))) for row in answer.get("rows", [])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rate", 1100), ("seconds", 60), ("batch", 50), ("kill-every", 0), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--features", "cloud"], cwd=ROOT, check=True)
    subprocess.run(functions.BUILD, cwd=ROOT, check=True)
    ports = {name: functions.free_port() for name in ("pubsub", "rest", "grpc", "publisher", "enricher", "batcher")}
    url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            processes.append(Process("pubsub", ["java", "-Xmx1g", "-jar", PARTS / "pubsub-emulator.jar", "--host=127.0.0.1", f"--port={ports['pubsub']}"], ports["pubsub"]))
            processes.append(Process("bqemulator", [PARTS / "bin/python", ROOT / "tests/parts/bqemulator.py", "--rest-port", str(ports["rest"]),
                                                    "--grpc-port", str(ports["grpc"])], ports["grpc"]))
            bigquery = BigQuery(url["rest"])
            subprocess.run([CONTEXTFLOW, "schema", "apply"], check=True, stdout=subprocess.DEVNULL, env=dict(
                os.environ, GOOGLE_CLOUD_PROJECT=PROJECT, BIGQUERY_REST_ENDPOINT=url["rest"]))
            make_topics(url["pubsub"], url["enricher"], url["batcher"])
            environment = {"GOOGLE_CLOUD_PROJECT": PROJECT, "PUBSUB_ENDPOINT": url["pubsub"], "BIGQUERY_REST_ENDPOINT": url["rest"],
                           "BIGQUERY_GRPC_ENDPOINT": url["grpc"], "ARCHIVE_URI": os.path.join(folder, "archive"), "PUSH_AUTH": "off",
                           "PACK_WAIT_MS": "5", "BATCH_WAIT_MS": "20", "ARCHIVE_WAIT_MS": "20"}
            running = {name: Process(name, [functions.DEPLOY / name], ports[name], dict(environment, PORT=str(ports[name])))
                       for name in ("publisher", "enricher", "batcher")}
            processes += running.values()
            ids_file = pathlib.Path(folder, "accepted")
            generator = subprocess.Popen(
                [CONTEXTFLOW, "generate", "--to", url["publisher"], "--rate", str(args.rate), "--duration", f"{args.seconds}s",
                 "--seed", str(args.seed), "--batch", str(args.batch), "--accepted-ids", ids_file, "--json"], stdout=subprocess.PIPE, text=True)
            done = threading.Event()
            kills = 0
            waiter = threading.Thread(target=lambda: (generator.wait(), done.set()))
            waiter.start()
            while not done.wait(args.kill_every or None):
                for name in ("enricher", "batcher"):
                    running[name].end(signal.SIGKILL)
                    running[name].start()
                    kills += 1
            sent = json.loads(generator.stdout.read())
            accepted = set(ids_file.read_text().split())
            distinct, started = 0, time.monotonic()
            while distinct < len(accepted) and time.monotonic() - started < 180:
                time.sleep(0.2)
                distinct = int(bigquery.query(f"SELECT COUNT(DISTINCT event_id) AS n FROM `{PROJECT}.{TABLE}`")[0]["n"])
            landed = {row["event_id"] for row in bigquery.query(f"SELECT DISTINCT event_id FROM `{PROJECT}.{TABLE}`")}
            figures = bigquery.query(
                "SELECT COUNT(*) OVER () AS row_count, PERCENTILE_DISC(millis, 0.5) OVER () AS p50_ms, PERCENTILE_DISC(millis, 0.99) OVER () AS p99_ms "
                f"FROM (SELECT TIMESTAMP_DIFF(loaded_at, received_at, MILLISECOND) AS millis FROM `{PROJECT}.{TABLE}`) LIMIT 1")[0]
            view = bigquery.query(f"SELECT COUNT(*) AS n, COUNT(DISTINCT event_id) AS ids FROM `{PROJECT}.{VIEW}` WHERE event_timestamp > '2000-01-01'")[0]
            twice = int(view["n"]) - int(view["ids"])
            dead = bigquery.query(f"SELECT COUNT(*) AS n FROM `{PROJECT}.contextflow.dead_letters`")[0]["n"]
            for function in running.values():
                function.end(signal.SIGTERM)
            lost = accepted - landed
            print(json.dumps({
                "generator": sent, "events_a_request": args.batch, "kills": kills, "distinct_rows": len(landed), **figures,
                "dead_letters": int(dead), "lost": len(lost), "twice_in_the_view": twice,
                "cpu_seconds_per_million": {name: round(f.cpu * 1e6 / max(1, len(accepted)), 1) for name, f in running.items()},
                "peak_mib": {name: round(f.peak) for name, f in running.items()}}))
            if lost or twice or int(dead) or sent["failed"]:
                sys.exit("FAILED")
        finally:
            for process in processes:
                if process.process.poll() is None:
                    process.process.kill()


main()
