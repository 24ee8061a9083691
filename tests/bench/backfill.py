#!/usr/bin/env python3
"""Benchmark of the backfill: visits, 24 times over, on one pinned core, whole process, start-up included.

usage: python3 tests/bench/backfill.py [--runs 3] [--cpu 0] [--to null delta] [--gigabytes 2] [--kills 10]

Builds the release binary, writes the input into a temporary folder (the real visits where ../shared/data/visits is, else
the sample of the tests, many times over), checks the rows and prints lines per CPU-second (user + sys) and peak memory of
each job. --gigabytes N runs a job over N gigabytes as well: time grows with the input, memory does not. --kills N kills a
run into the Delta warehouse so often, resumes it, and compares its tables with those of a run that was left alone."""
import argparse, json, os, pathlib, random, shutil, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REAL = ROOT.parent / "shared/data/visits"
SAMPLE = ROOT / "tests/fixtures/visits"
TABLES = ["clickstream_lake.visits", "clickstream_dw.sessions", "clickstream_dw.pageview_events",
          "clickstream_dw.addtocart_events", "clickstream_dw.purchase_events"]


def write_input(folder, copies):
    """Files of `copies` times the visits, and the rows that they come to."""
    source, times = (REAL, copies) if REAL.is_dir() else (SAMPLE, copies * 366)
    folder.mkdir()
    for file in sorted(source.glob("*.jsonl")):
        text = file.read_bytes()
        with (folder / file.name).open("wb") as out:
            for _ in range(times):
                out.write(text)
    rows = json.loads((source / "expected.json").read_text())["rows"]
    return {name: count * times for name, count in rows.items()}


def measure(command, cpu):
    """CPU seconds, peak MiB and the report of one run."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {cpu})
        os.dup2(writer, 1)
        os.execv(command[0], command)
    os.close(writer)
    output = os.fdopen(reader).read()
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        sys.exit(f"{command} failed: {output}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.loads(output)


def backfill(binary, source, data, *more):
    return [binary, "backfill", "--json", "--source", str(source), "--data-dir", str(data), *more]


def job(name, binary, source, expected, to, runs, cpu):
    results = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as data:
            more = ["--to", "null"] if to == "null" else []
            seconds, peak, report = measure(backfill(binary, source, data, *more), cpu)
        wrong = {table: rows for table, rows in report["rows"].items() if rows != expected[table]}
        if wrong or report["dead_letters"]:
            sys.exit(f"{name}: wrong rows {wrong}, {report['dead_letters']} dead letters")
        results.append((report["lines"] / seconds, peak, report["bytes"]))
    rate, size = statistics.median(rate for rate, _, _ in results), results[0][2] / 1e6
    print(f"{name:<28} {size:>8,.0f} MB {rate:>12,.0f} lines per CPU-second   peak {max(peak for _, peak, _ in results):6.1f} MiB",
          flush=True)


def query(binary, data, sql):
    output = subprocess.run([binary, "query", "--json", "--data-dir", str(data), sql], capture_output=True, text=True, check=True)
    return json.loads(output.stdout)


def fingerprint(binary, data):
    """Counts and sums of every table, whatever the order of the rows."""
    sums = ["count(*) AS n, count(DISTINCT session_id) AS ids, sum(cardinality(events)) AS events",
            "count(*) AS n, min(session_key) AS low, max(session_key) AS high, count(DISTINCT session_key) AS keys"]
    sums += ["count(*) AS n, count(DISTINCT session_key) AS keys, min(\"timestamp\") AS first, max(\"timestamp\") AS last"] * 3
    return [query(binary, data, f"SELECT {sum} FROM {table}") for table, sum in zip(TABLES, sums)]


def kills(binary, source, count):
    with tempfile.TemporaryDirectory() as alone, tempfile.TemporaryDirectory() as data:
        started = time.monotonic()
        subprocess.run(backfill(binary, source, alone), check=True, stdout=subprocess.DEVNULL)
        whole, done, resume = time.monotonic() - started, 0, []
        while True:
            run = subprocess.Popen(backfill(binary, source, data, "--checkpoint-bytes", "8000000", *resume),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            try:
                _, error = run.communicate(timeout=random.uniform(0, whole / 6) if done < count else None)
            except subprocess.TimeoutExpired:
                run.kill()
                run.communicate()
                done += 1
                records = (pathlib.Path(data) / "backfill/runs").glob("*.json")
                resume = ["--resume"] if any(json.loads(path.read_text())["state"] != "done" for path in records) else []
                continue
            if run.returncode != 0:
                sys.exit(f"the run after {done} kills failed: {error}")
            break
        same = fingerprint(binary, alone) == fingerprint(binary, data)
        print(f"{done} kills, then resumed: tables {'equal' if same else 'DIFFER'}")
        if not same:
            sys.exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--to", nargs="*", default=["null", "delta"])
    parser.add_argument("--gigabytes", type=float, default=0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--binary", help="in place of a build: a contextflow binary")
    args = parser.parse_args()
    if not args.binary:
        subprocess.run(["cargo", "build", "--release", "-p", "contextflow"], cwd=ROOT, check=True)
    binary = args.binary or str(ROOT / "target/release/contextflow")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        expected = write_input(folder / "x24", 24)
        for to in args.to:
            job(f"visits 24 times, {to}", binary, folder / "x24", expected, to, args.runs, args.cpu)
        if args.kills:
            kills(binary, folder / "x24", args.kills)
        if args.gigabytes:
            copies = round(args.gigabytes * 24 / 0.222)
            shutil.rmtree(folder / "x24")
            expected = write_input(folder / "large", copies)
            for to in args.to:
                job(f"visits {copies} times, {to}", binary, folder / "large", expected, to, 1, args.cpu)


main()
