#!/usr/bin/env python3
"""The worst requests that anyone may send, against `contextflow dev`: what each costs beside an ordinary request of its size.

usage: python3 tests/bench/hostile.py [--binary target/debug/contextflow] [--requests 40] [--only NAME]

Each request is sent several times to a pipeline of its own. CPU-seconds are those of the whole process; bytes are all that travel:
the request and its answer, twice over the raw topic, its rows three times over theirs, its dead letters twice over theirs, and raw
text to the bucket. Dollars are the list
prices of infra/prices.json for the same bytes, messages, objects and CPU on the clouds. Prints a line for each, by the thousand,
with its ratio to an ordinary request of the same size, and fails if any of the three is over 20."""
import argparse, gzip, http.client, json, os, pathlib, random, socket, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LIMIT = 20
PRICES = {name: price["tiers"][0]["price"] / price["per"]
          for name, price in json.loads((ROOT / "infra/prices.json").read_text())["prices"].items()}
MIB = 1 << 20


def click(number):
    """An event of 230 bytes, as those of gen_events.py."""
    return json.dumps({"event_id": mark(), "user_id": f"u-{number}", "session_id": f"s-{number}",
                       "page_url": f"https://shop.example.com/products/item-{number}", "event_name": "page_view",
                       "ip_address": f"8.8.{number % 250}.4", "event_timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
                      separators=(",", ":"))


def array(events):
    return "[" + ",".join(events) + "]"


def ordinary(size):
    """As many ordinary events as fit, at least one."""
    events, left = [], size - 2
    while not events or (len(events) < 500 and left > 0):
        events.append(click(len(events)))
        left -= len(events[-1]) + 1
    return array(events).encode(), {}


def body(text, **headers):
    return (text if isinstance(text, bytes) else text.encode()), {name.replace("_", "-"): value for name, value in headers.items()}


def mark():
    return f"m-{random.getrandbits(48):x}"


WORST = {
    "deep: arrays 120 deep in an unknown key": lambda: body('{"x":' + "[" * 120 + "]" * 120 + ',"y":[' + ",".join(["[" * 120 + "]" * 120] * 4000) + "]}"),
    "deep: half a million open brackets": lambda: body("[" * (MIB // 2)),
    "wide: 20,000 unknown keys": lambda: body("{" + ",".join(f'"k{n}":1' for n in range(20_000)) + "}"),
    "repeated: one key with a bad value 18,000 times": lambda: body('{' + ",".join(['"user_id":[1]'] * 18_000) + "}"),
    "repeated: faults, then known keys": lambda: body('{"event_type":"clickstream",' + ",".join(['"user_id":1,"page_url":{}'] * 9_000) + "}"),
    "one event of 256 KB": lambda: body(json.dumps({"page_url": "x" * 262_000})),
    "three events over 256 KB": lambda: body(array(json.dumps({"page_url": "x" * 340_000}) for _ in range(3))),
    "tiny: 500 empty objects": lambda: body(array(["{}"] * 500)),
    "tiny: 500 events of one short member": lambda: body(array(['{"userId":"u"}'] * 500)),
    "tiny: 500 bad events": lambda: body(array(['{"user_id":5}'] * 500)),
    "tiny: 500 events of an unknown type": lambda: body(array(['{"event_type":"x"}'] * 500)),
    "tiny: 500 numbers": lambda: body(array(["5"] * 500)),
    "tiny: 500 broken lines": lambda: body("\n".join(["{"] * 500), content_type="application/x-ndjson"),
    "500 events with ids of their own and no time": lambda: body(array(f'{{"event_id":"{mark()}"}}' for _ in range(500))),
    "20 events with ids of their own and no time": lambda: body(array(f'{{"event_id":"{mark()}"}}' for _ in range(20))),
    "one id with 500 contents": lambda: body(array(f'{{"event_id":"same","user_id":"{mark()}"}}' for _ in range(500))),
    "huge id: 250 KB": lambda: body(json.dumps({"event_id": "x" * 250_000})),
    "huge number: 250,000 digits": lambda: body('{"event_timestamp":' + "9" * 250_000 + "}"),
    "huge exponents in an array": lambda: body('{"user_id":[' + ",".join(["1e999999999"] * 20_000) + "]}"),
    "escapes: 40,000 control characters in a bad event": lambda: body('{"user_id":5,"page_url":"' + "\\u0001" * 40_000 + '"}'),
    "half surrogate pairs": lambda: body('{"page_url":"' + "\\ud800" * 40_000 + '"}'),
    "quotes in a bad event": lambda: body('{"user_id":5,"page_url":"' + '\\"' * 100_000 + '"}'),
    "gzip bomb: 500 MiB in 500 KB": lambda: body(gzip.compress(b"[" + b"{}," * (170 * MIB // 3)), content_encoding="gzip"),
    "no UTF-8": lambda: body(b'{"page_url":"' + b"\xff" * 200_000 + b'"}'),
    "slow: a byte every 50 ms": "slow",
    "a header of 300 KB": "header",
}


class Pipeline:
    def __init__(self, binary, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = pathlib.Path(folder)
        self.process = subprocess.Popen([binary, "dev", "--port", str(self.port), "--data-dir", folder],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).read()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("the pipeline did not come up")

    def cpu(self):
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30).read().decode()

    def post(self, data, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/publish", data, {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def slow(self):
        """A body that trickles in; what counts is that it is cut off."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(b"POST /publish HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\ncontent-length: 400\r\n\r\n" % self.port)
            try:
                for _ in range(100):
                    client.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                pass
        return 0, b""

    def settle(self):
        """Waits until nothing is on its way, the archive's window included."""
        for _ in range(600):
            report = json.loads(self.get("/api/report"))
            if all(subscription.get("waiting", 0) == 0 for subscription in report.get("subscriptions", [])):
                return
            time.sleep(0.25)
        sys.exit("the pipeline does not come to rest")

    def stored(self):
        """Bytes of rows, of dead letters and of raw text in the bucket, and the number of objects."""
        rows = letters = raw = objects = 0
        for path in (self.folder / "bucket").rglob("*"):
            if not path.is_file():
                continue
            objects += 1
            name = path.relative_to(self.folder / "bucket").as_posix()
            size = len(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path.stat().st_size
            if name.startswith("dead-letter/raw/"):
                raw += size
            elif name.startswith("dead-letter/"):
                letters += size
            else:
                rows += size
        return rows, letters, raw, objects

    def end(self):
        self.process.terminate()
        self.process.wait()


def cost(requests, sent, answered, messages, rows, letters, raw, objects, cpu):
    """Dollars of one request on both clouds, by the list prices."""
    pubsub = PRICES["pubsub_raw"]
    total = requests * (PRICES["http_api"] * -(-sent // (512 << 10) or -1) + PRICES["lambda_requests"] + 0.03 * 0.25 * PRICES["lambda_time"])
    total += (requests * sent + answered) * PRICES["aws_egress"]
    total += (2 * requests * sent + 3 * rows + 2 * letters) * pubsub
    total += messages * 3 * PRICES["run_requests"] + cpu * (PRICES["run_cpu"] + 0.5 * PRICES["run_memory"])
    total += (rows + letters) * (PRICES["storage_write"] + PRICES["bigquery_storage"] + 0.2 * PRICES["archive_storage"])
    total += raw * PRICES["archive_storage"] + objects * PRICES["archive_writes"]
    return total / requests


def measure(binary, make, requests):
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(binary, folder)
        try:
            for _ in range(3):
                pipeline.post(*ordinary(1_000))
            pipeline.settle()
            time.sleep(0.5)
            idle_from, cpu_from = time.monotonic(), pipeline.cpu()
            time.sleep(2)
            idle = (pipeline.cpu() - cpu_from) / (time.monotonic() - idle_from)
            stored_from, started, cpu_from = pipeline.stored(), time.monotonic(), pipeline.cpu()
            answered, statuses, messages, sent = 0, set(), set(), 0
            for _ in range(requests):
                if make == "slow":
                    status, answer = pipeline.slow()
                elif make == "header":
                    status, answer = pipeline.post(b"{}", {"x-large": "x" * 300_000})
                    sent = 300_000
                else:
                    data, headers = make()
                    sent = len(data)
                    status, answer = pipeline.post(data, headers)
                statuses.add(status)
                answered += len(answer)
                if status == 200:
                    messages |= {one["message_id"] for one in json.loads(answer)["accepted"]}
            # The archive's window is ten seconds; a report would cost CPU itself.
            time.sleep(12)
            cpu = max(0.0, pipeline.cpu() - cpu_from - idle * (time.monotonic() - started))
            pipeline.settle()
            rows, letters, raw, objects = (after - before for after, before in zip(pipeline.stored(), stored_from))
        finally:
            pipeline.end()
    dollars = cost(requests, sent, answered, len(messages), rows, letters, raw, objects, cpu)
    return {"sent": sent, "statuses": sorted(statuses), "cpu": cpu / requests, "bytes": 3 * sent + (answered + 3 * rows + 2 * letters + raw) / requests,
            "dollars": dollars}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target/debug/contextflow")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    known = {}
    over = []
    print(f"{'by the thousand':52} {'KB sent':>8} {'CPU-s':>8} {'MB':>8} {'USD':>9}   ratio of CPU, bytes, USD")
    for name, make in WORST.items():
        if args.only not in name:
            continue
        requests = 2 if make == "slow" else args.requests
        worst = measure(args.binary, make, requests)
        size = max(worst["sent"], 300)
        if size not in known:
            known[size] = measure(args.binary, lambda: ordinary(size), args.requests)
        usual = known[size]
        # Less than a tick of the clock a request is no measurement.
        tick = 1 / os.sysconf("SC_CLK_TCK") / args.requests
        ratios = [worst["cpu"] / max(usual["cpu"], tick), worst["bytes"] / usual["bytes"], worst["dollars"] / usual["dollars"]]
        print(f"{name:52} {worst['sent'] / 1e3:8.1f} {worst['cpu'] * 1e3:8.2f} {worst['bytes'] / 1e3:8.1f} {worst['dollars'] * 1e3:9.5f}   "
              + ", ".join(f"{ratio:.1f}" for ratio in ratios) + f"   {worst['statuses']}", flush=True)
        if max(ratios) > LIMIT:
            over.append(name)
    if over:
        sys.exit(f"over {LIMIT} times an ordinary request: " + "; ".join(over))


main()
