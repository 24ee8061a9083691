#!/usr/bin/env python3
"""The whole pipeline under load: `contextflow dev` as the README starts it, and `contextflow generate`.

usage: python3 tests/bench/pipeline.py [--rate 1100] [--seconds 60] [--kills 0] [--seed 1]

With --kills N the pipeline is killed (SIGKILL) at N random moments and started again each time. At the end every event
that was answered 200 must be in the table, and once in the deduplicated view."""
import argparse, json, os, pathlib, random, re, signal, socket, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = ROOT / "target/debug/contextflow"


class Pipeline:
    def __init__(self, folder, port):
        self.folder, self.port, self.cpu, self.peak = folder, port, 0.0, 0.0
        self.start()

    def start(self):
        self.process = subprocess.Popen([BINARY, "dev", "--port", str(self.port), "--data-dir", self.folder],
                                        stderr=subprocess.PIPE, text=True)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).read()
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(self.process.stderr.read())
                time.sleep(0.05)
        sys.exit("the pipeline did not come up")

    def look(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        self.peak = max(self.peak, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)

    def end(self, how):
        self.look()
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        self.cpu += (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        self.process.send_signal(how)
        _, text = self.process.communicate()
        return text.strip().splitlines()[-1] if text.strip() else ""

    def query(self, sql):
        answer = subprocess.run([BINARY, "query", "--json", "--data-dir", self.folder, sql], check=True, capture_output=True)
        return json.loads(answer.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rate", 1100), ("seconds", 60), ("kills", 0), ("seed", 1), ("batch", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    subprocess.run(["cargo", "build"], cwd=ROOT, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ids_file = pathlib.Path(folder, "accepted")
        pipeline = Pipeline(os.path.join(folder, "data"), port)
        generator = subprocess.Popen(
            [BINARY, "generate", "--to", f"http://127.0.0.1:{port}", "--rate", str(args.rate), "--duration", f"{args.seconds}s",
             "--seed", str(args.seed), "--batch", str(args.batch), "--accepted-ids", ids_file, "--json"],
            stdout=subprocess.PIPE, text=True)
        chance = random.Random(args.seed)
        moments = sorted(chance.uniform(1, args.seconds - 1) for _ in range(args.kills))
        started = time.monotonic()
        for moment in moments:
            time.sleep(max(0.0, moment - (time.monotonic() - started)))
            pipeline.end(signal.SIGKILL)
            pipeline.start()
        out, _ = generator.communicate()
        sent = json.loads(out)
        accepted = ids_file.read_text().split()
        rows = [{}]
        for _ in range(60):
            rows = pipeline.query("SELECT (SELECT count(*) FROM clickstream_events) AS rows, "
                                  "(SELECT count(*) FROM contextflow.v_clickstream_events) AS distinct_rows, "
                                  "(SELECT count(*) FROM dead_letters) AS dead_letters")
            if rows[0]["distinct_rows"] >= len(accepted):
                break
            time.sleep(0.5)
        landed = [row["event_id"] for row in pipeline.query("SELECT event_id FROM contextflow.v_clickstream_events")]
        summary = pipeline.end(signal.SIGINT)
        lost = set(accepted) - set(landed)
        twice = len(landed) - len(set(landed))
        print(json.dumps({"generator": sent, "kills": len(moments), **rows[0], "lost": len(lost), "twice_in_view": twice,
                          "cpu_seconds": round(pipeline.cpu, 1), "peak_mib": round(pipeline.peak)}))
        print(summary)
        if lost or twice or sent["failed"] or rows[0]["dead_letters"]:
            sys.exit("FAILED")


main()
