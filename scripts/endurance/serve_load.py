"""Load a server of `nlp-transfer serve` with many clients, and check every response.

    python scripts/endurance/serve_load.py MODEL TEXTS.csv COLUMN [--requests 2000] [--clients 64] [-- OPTIONS OF serve]

MODEL is a run folder or an export. Starts a server on a free port and prints:
- the latency and the number of requests per second of one client, and of many clients; each response is compared with
  `load_predictor`;
- the statuses of oversized, malformed and wrong requests under load, and of clients that send slowly;
- whether all requests that the server accepted were answered when SIGTERM ended it under load.
Takes about a minute.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-3  # of probabilities: int8 and bf16 depend slightly on the other rows of a batch
CONTEXT = ssl.create_default_context()  # shared, since each takes tens of milliseconds to make
ROUNDS = 4
TIMEOUT = 2.0  # seconds, of the server for slow clients


def start(model: str, options: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Start a server; return the process and its address."""
    command = [sys.executable, "-m", "nlp_transfer", "serve", model, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+:\d+", line):
            return process, found.group()
    raise SystemExit(f"the server did not start: {command}")


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    """End a server with SIGTERM; return its exit status and its last messages."""
    process.send_signal(signal.SIGTERM)
    messages = process.communicate(timeout=60)[1]
    return process.returncode, messages


def in_threads(count: int, work: Callable[[int], None]) -> float:
    """Call `work` in several threads; return the seconds that they took."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


class Load:
    """Clients that send requests of one to four texts, and compare each response with the expected predictions."""

    def __init__(self, address: str, texts: list[str], expected: list[dict[str, Any]]) -> None:
        self.address, self.texts, self.expected = address, texts, expected
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.rows = self.wrong = self.other_label = 0
        self.lock = threading.Lock()

    def send(self, client: httpx2.Client, generator: random.Random, most: int) -> bool:
        """Send one request; return whether a response came."""
        chosen = [generator.randrange(len(self.texts)) for _ in range(generator.randint(1, most))]
        begin = time.perf_counter()
        try:
            response = client.post(f"{self.address}/predict", json={"texts": [self.texts[i] for i in chosen]})
        except httpx2.TransportError as error:
            with self.lock:
                self.statuses[type(error).__name__] += 1
            return False
        seconds = time.perf_counter() - begin
        predictions = response.json()["predictions"] if response.status_code == 200 else []
        with self.lock:
            self.statuses[str(response.status_code)] += 1
            self.seconds.append(seconds)
            if response.status_code == 200:
                self.rows += len(chosen)
                self.wrong += len(predictions) != len(chosen)
                for i, prediction in zip(chosen, predictions, strict=False):
                    near = abs(prediction.get("probability", 0) - self.expected[i].get("probability", 0)) <= TOLERANCE
                    self.wrong += not near
                    self.other_label += prediction["prediction"] != self.expected[i]["prediction"]
        return True

    def run(self, requests: int, clients: int, most: int) -> float:
        """Send `requests` requests from `clients` clients, each on its own connection; return the seconds."""
        remaining = iter(range(requests))

        def work(number: int) -> None:
            generator = random.Random(number)
            with httpx2.Client(timeout=120, verify=CONTEXT) as client:
                while True:
                    with self.lock:
                        if next(remaining, None) is None:
                            return
                    self.send(client, generator, most)

        return in_threads(clients, work)

    def report(self, title: str, seconds: float) -> None:
        """Print what was measured."""
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1000
        print(
            f"{title}: {dict(self.statuses)}, {len(self.seconds) / seconds:.0f} requests/s, {self.rows / seconds:.0f} rows/s, "
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; {self.wrong} wrong or mixed up, {self.other_label} with another label"
        )


def bad_requests(address: str, text: str) -> None:
    """Send requests that must be refused, and print their statuses."""
    content = {"Content-Type": "application/json"}
    bodies: dict[str, bytes] = {
        "malformed JSON": b'{"texts": [',
        "not UTF-8": b'{"texts": ["\xff"]}',
        "nested lists": b'{"texts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "an empty text": b'{"texts": [""]}',
        "a number": b'{"texts": [1]}',
        "a wrong column": b'{"rows": [{"body": "a"}]}',
        "an unknown field": b'{"text": ["a"]}',
        "too many texts": json.dumps({"texts": [text] * 1000}).encode(),
        "too many characters": json.dumps({"texts": ["a" * 300_000]}).encode(),
        "10 MB": json.dumps({"texts": ["a" * 10_000_000]}).encode(),
    }
    for name, body in bodies.items():
        response = httpx2.post(f"{address}/predict", content=body, headers=content, timeout=60)
        print(f"  {name}: {response.status_code} {response.text[:110]}")


def slow_clients(address: str, count: int) -> Counter[str]:
    """Open connections that send half of a request and wait; return what each was answered."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    answers: Counter[str] = Counter()

    def work(number: int) -> None:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT + 30) as connection:
            head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
            connection.sendall(head + b'{"te')
            answers[connection.recv(100).split(b"\r\n")[0].decode()] += 1

    in_threads(count, work)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("table", type=Path)
    parser.add_argument("column")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--most", type=int, default=4, help="texts in a request")
    arguments, options = parser.parse_known_args()
    options = [option for option in options if option != "--"]
    with arguments.table.open(encoding="utf-8", newline="") as file:
        texts = [row[arguments.column] for row in csv.DictReader(file)][:2000]
    from nlp_transfer import load_predictor

    precision = options[options.index("--precision") + 1] if "--precision" in options else "fp32"
    expected = load_predictor(arguments.model, precision=precision)(texts)

    process, address = start(arguments.model, options)
    alone, many = Load(address, texts, expected), Load(address, texts, expected)
    seconds = [0.0, 0.0]
    for _ in range(ROUNDS):  # interleaved, since other programs may use the machine
        seconds[0] += alone.run(arguments.requests // ROUNDS // 10, 1, arguments.most)
        seconds[1] += many.run(-(-arguments.requests // ROUNDS), arguments.clients, arguments.most)
    alone.report("one client", seconds[0])
    many.report(f"{arguments.clients} clients", seconds[1])
    sums = dict(re.findall(r"^nlp_transfer_batch_rows_(sum|count) (\S+)", httpx2.get(f"{address}/metrics").text, re.MULTILINE))
    print(f"{float(sums['sum']) / float(sums['count']):.1f} rows in a batch on average")
    bad_requests(address, texts[0])
    print(f"SIGTERM when idle: exit status {stop(process)[0]}")

    process, address = start(arguments.model, [*options, "--timeout", str(TIMEOUT)])
    besides = Load(address, texts, expected)
    answers: list[Counter[str]] = []
    slow = threading.Thread(target=lambda: answers.append(slow_clients(address, 50)))
    slow.start()
    besides.report("8 clients beside 50 slow ones", besides.run(100, 8, arguments.most))
    slow.join()
    print(f"the slow clients: {dict(answers[0])}")
    stop(process)

    process, address = start(arguments.model, options)
    load = Load(address, texts, expected)
    ended = threading.Event()

    def until_refused(number: int) -> None:
        generator = random.Random(number)
        with httpx2.Client(timeout=120, verify=CONTEXT) as client:
            while load.send(client, generator, arguments.most) and not ended.is_set():
                pass

    threads = threading.Thread(target=lambda: in_threads(arguments.clients, until_refused))
    threads.start()
    time.sleep(4)
    status, messages = stop(process)
    ended.set()
    threads.join()
    counted = int(re.findall(r"([\d,]+) requests", messages)[0].replace(",", ""))
    print(
        f"SIGTERM under load: exit status {status}; the server answered {counted} requests, the clients received "
        f"{load.statuses['200']} responses; others: {dict(load.statuses)}; {load.wrong} wrong"
    )


if __name__ == "__main__":
    main()
