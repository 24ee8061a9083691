#!/usr/bin/env python3
"""Benchmark of the core: `contextflow enrich` over 1,000,000 events on one pinned core, whole process, start-up included.

usage: python3 tests/bench/enrich.py [--runs 5] [--cpu 0] [--to null|ndjson|parquet ...]

Builds the release binary, makes the input once under tests/bench/data, checks the answer and prints, for each form of
output, the median events per CPU-second (user + sys) and the peak memory."""
import argparse, json, os, pathlib, statistics, subprocess, sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = HERE / "data"
RIGHT = {"read": 1_000_000, "written": 1_000_000, "dead_lettered": 0, "unknown_geo": 40_087,
         "max_timestamp": "2026-10-20T00:15:02.920Z"}


def generator(*arguments):
    subprocess.run([sys.executable, HERE / "gen_events.py", *map(str, arguments)], check=True)


def measure(command, cpu):
    """CPU seconds, peak MiB and the summary of one run."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {cpu})
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.execv(command[0], command)
    os.close(writer)
    output = os.fdopen(reader).read()
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        sys.exit(f"{command} failed: {output}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.loads(output)


def job(binary, name, expected, arguments, runs, cpu):
    results = []
    for _ in range(runs):
        cpu_seconds, peak, summary = measure([binary, "enrich", "--json", *map(str, arguments)], cpu)
        answer = {key: summary[key] for key in expected}
        if answer != expected:
            sys.exit(f"{name}: wrong answer {answer}, expected {expected}")
        results.append((summary["read"] / cpu_seconds, peak))
    rate = statistics.median(rate for rate, _ in results)
    print(f"{name:<44} {rate:>12,.0f} events per CPU-second   peak {max(peak for _, peak in results):6.1f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--to", nargs="*", default=["null", "ndjson", "parquet"])
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "-p", "contextflow"], cwd=ROOT, check=True)
    binary = str(ROOT / "target/release/contextflow")
    DATA.mkdir(exist_ok=True)
    geo, events, dirty, schema = (DATA / name for name in ("geo.csv", "events.ndjson", "dirty.ndjson", "columns.json"))
    if not dirty.exists():
        generator("--geo", geo)
        generator(1_000_000, events)
        generator(1_000_000, dirty, "--malformed", 1)
    # The same columns as a schema file that is given at run time.
    built_in = json.loads((ROOT / "shared/schemas/clickstream.json").read_text())
    schema.write_text(json.dumps({**built_in, "event_type": "run_time", "version": "1-0-1"}))

    common = ["--in", events, "--geo", geo]
    for form in args.to:
        target = ["--to", form] + ([] if form == "null" else ["--out", DATA / f"out.{form}"])
        job(binary, f"built-in schema, {form}", RIGHT, common + target, args.runs, args.cpu)
    job(binary, "schema file given at run time, null", RIGHT, common + ["--schema", schema, "--to", "null"], args.runs, args.cpu)
    letters = DATA / "dead.ndjson"
    broken = {"read": 1_000_000, "written": 999_030, "dead_lettered": 970}
    job(binary, "0.1 % of the lines broken, null", broken, ["--in", dirty, "--geo", geo, "--to", "null", "--dead-letters", letters],
        args.runs, args.cpu)
    lines = [json.loads(line)["line"] for line in letters.open()]
    if len(lines) != 970 or lines != sorted(set(lines)):
        sys.exit("the dead letters do not name 970 different lines")


main()
