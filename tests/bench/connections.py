#!/usr/bin/env python3
"""What idle and slow clients cost the others: latency of good requests to `contextflow dev` alone, with idle connections
held open, and under slow heads and bodies (slowloris).

    connections.py CONTEXTFLOW [--idle 20000] [--slow 2000] [--seconds 20] [--rate 50]

Python's standard library only. The server holds all of them, so the hard limit of open files (ulimit -Hn) bounds their number. Prints a table and
whether the p99 stayed within twice the one alone.
"""
import argparse
import http.client
import json
import multiprocessing
import os
import pathlib
import resource
import select
import socket
import subprocess
import time

# Seconds from one look at the slow clients to the next, and between two bytes of one.
PAUSE, SLOW_EVERY = 0.05, 5
# Idle connections of one client process, and open files that the server needs for everything else.
SHARE, RESERVE = 5_000, 1_200
ADDRESSES = [f"127.0.0.{host}" for host in range(2, 10)]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def connect(port, number):
    """From one of several addresses, since each has but some 28,000 ports."""
    stream = socket.socket()
    stream.bind((ADDRESSES[number % len(ADDRESSES)], 0))
    stream.connect(("127.0.0.1", port))
    return stream


def probe(port, rate, seconds, answers):
    """Good requests at a steady rate; each is timed from when it was due."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"event_name": "click", "user_id": "bench", "event_timestamp": time.time()}).encode()
    took, failed = [], 0
    start = time.monotonic()
    for number in range(int(rate * seconds)):
        due = start + number / rate
        time.sleep(max(0, due - time.monotonic()))
        try:
            client.request("POST", "/publish", body, {"content-type": "application/json"})
            answer = client.getresponse()
            answer.read()
            failed += answer.status != 200
        except (OSError, http.client.HTTPException):
            client.close()
            failed += 1
        took.append((time.monotonic() - due) * 1_000)
    answers.put((took, failed))


class Dev:
    def __init__(self, binary, connections):
        self.port = free_port()
        command = [binary, "dev", "--ephemeral", "--port", str(self.port)]
        environment = dict(os.environ, MAX_CONNECTIONS=str(connections), IDLE_TIMEOUT_MS="3600000")
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("contextflow dev does not come up")

    def figures(self):
        """Resident MiB, CPU-seconds, open files."""
        proc = pathlib.Path("/proc", str(self.process.pid))
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return int(status["VmRSS"].split()[0]) / 1_024, ticks / 100, len(list((proc / "fd").iterdir()))


def measure(name, dev, args, meanwhile=None):
    answers = multiprocessing.Queue()
    client = multiprocessing.Process(target=probe, args=(dev.port, args.rate, args.seconds, answers))
    cpu = dev.figures()[1]
    client.start()
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        if meanwhile:
            meanwhile()
        time.sleep(PAUSE)
    took, failed = answers.get()
    client.join()
    memory, now, files = dev.figures()
    took.sort()
    at = lambda share: took[min(len(took) - 1, int(len(took) * share))]
    print(f"{name:34} {len(took):6} {failed:6} {at(.5):8.1f} {at(.99):8.1f} {took[-1]:8.1f} {now - cpu:7.2f} {memory:8.0f} {files:7}", flush=True)
    return at(.99)


def hold(port, numbers, ready):
    """Connections that have asked once and stay open."""
    held = []
    for number in numbers:
        stream = connect(port, number)
        stream.sendall(f"GET /health HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
        stream.recv(4_096)
        held.append(stream)
    ready.put(len(held))
    time.sleep(3_600)


def idle(dev, count):
    """Processes that hold idle connections, once all are open."""
    ready, holders = multiprocessing.Queue(), []
    for first in range(0, count, SHARE):
        numbers = range(first, min(first + SHARE, count))
        holders.append(multiprocessing.Process(target=hold, args=(dev.port, numbers, ready), daemon=True))
        holders[-1].start()
    for _ in holders:
        ready.get()
    return holders


class Slow:
    """Clients that send a byte of a body or a line of a head every five seconds; one that is cut comes again."""

    def __init__(self, dev, count):
        self.dev, self.streams, self.cut = dev, {}, 0
        self.poll = select.epoll()
        for number in range(count):
            self.begin(number)

    def begin(self, number):
        stream = connect(self.dev.port, number)
        host = f"host: 127.0.0.1:{self.dev.port}\r\n"
        head = f"POST /publish HTTP/1.1\r\n{host}"
        body = f"{head}content-type: application/json\r\ncontent-length: 1000000\r\n\r\n["
        stream.sendall((body if number % 2 else head).encode())
        stream.setblocking(False)
        self.streams[stream.fileno()] = (stream, number)
        self.poll.register(stream, select.EPOLLIN | select.EPOLLHUP)
        self.due = list(self.streams)

    def __call__(self):
        for descriptor, _ in self.poll.poll(0):
            stream, number = self.streams.pop(descriptor)
            self.poll.unregister(stream)
            stream.close()
            self.cut += 1
            self.begin(number)
        if not self.due:
            self.due = list(self.streams)
        share = max(1, int(len(self.streams) * PAUSE / SLOW_EVERY))
        for descriptor in self.due[:share]:
            stream, number = self.streams.get(descriptor, (None, 0))
            try:
                if stream:
                    stream.send(b" " if number % 2 else b"a: b\r\n"[:6])
            except OSError:
                pass
        del self.due[:share]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contextflow")
    parser.add_argument("--idle", type=int, default=20_000)
    parser.add_argument("--slow", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=50)
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    args.idle = min(args.idle, most - RESERVE)
    dev = Dev(args.contextflow, args.idle + 100)
    try:
        print(f"{'good requests':34} {'sent':>6} {'failed':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'CPU s':>7} {'RSS MiB':>8} {'files':>7}")
        measure("to warm up", dev, args)
        alone = measure("alone", dev, args)
        held = idle(dev, args.idle)
        with_idle = measure(f"with {args.idle} idle connections", dev, args)
        for holder in held:
            holder.terminate()
        slow = Slow(dev, args.slow)
        under_slow = measure(f"with {args.slow} slow clients", dev, args, slow)
        print(f"{slow.cut} slow connections were cut")
        for stream, _ in slow.streams.values():
            stream.close()
        again = measure("alone again", dev, args)
        worst = max(with_idle, under_slow) / max(alone, again)
        print(f"the worst p99 is {worst:.2f} times the one alone: {'within' if worst <= 2 else 'OVER'} twice")
    finally:
        dev.process.terminate()
        dev.process.wait()


if __name__ == "__main__":
    main()
