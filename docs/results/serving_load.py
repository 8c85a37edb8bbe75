"""Many clients at once: is every answer right, and is memory flat? Writes serving-load.json.

python docs/results/serving_load.py [--clients N] [--queue N] [--rounds N] [--model M] [--out FILE]

`d2sd serve` runs in a process of its own. In every round all clients ask at once, each its own
prompt, greedily: a third as streams, a third whole, a third as streams of five users; some leave
after the first piece of text. Whoever gets 429 comes back after the time it was told, or half a
second. Every whole text must be the one that `generate` gives for that prompt in this process, and
every one that was left must be a beginning of it. Between rounds the server's resident memory and
the bytes of its prefix cache are read. Ends with 1 when an answer was wrong, lost or broken.
"""

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx

from d2sd.generate import Request, generate
from d2sd.session import ModelChoice, open_session

PAGE = os.sysconf("SC_PAGE_SIZE")
CACHE_MB = 16
LONGEST_WAIT = 0.5
WORDS = """river stone cloud garden horse lamp bread winter letter bridge music forest doctor
teacher market island castle engine mirror pencil window summer village farmer dragon robot planet
ocean candle"""


def prompt(number):
    """Hardly two get the same answer; the rows of all of them are many times the cache's bound."""
    words = random.Random(number).choices(WORDS.split(), k=30)
    first, second, third, fourth, *rest = words
    asked = f"Explain how a {first} is used by a {second} in the {third}, and tell me of {fourth}"
    return f"{asked} as well, in many words: {', '.join(rest)}"


def reference(session, options, number):
    """What `generate` says to a prompt, by the plain loop."""
    ids = session.chat_prompt([{"role": "user", "content": prompt(number)}])
    request = Request(ids, max_new_tokens=options.tokens, stop_tokens=session.stop_tokens)
    return generate(session.target, session.drafter("none"), request, session.tokenizer).text


class Client:
    """One who asks until it is answered, and takes down what came back."""

    def __init__(self, http, options, number):
        self.http, self.options, self.number = http, options, number
        self.leaves = number % 10 == 9
        self.text, self.answers, self.wait = "", Counter(), 0.0

    def values(self):
        values = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": prompt(self.number)}],
            "temperature": 0,
            "max_tokens": self.options.tokens,
            "stream": self.number % 3 > 0 or self.leaves,
        }
        return values | ({"user": f"user {self.number % 5}"} if self.number % 3 == 2 else {})

    async def ask(self):
        while not await self.asked():
            await asyncio.sleep(self.wait)

    async def asked(self):
        """One request; gives whether it was the last one."""
        path = "/v1/chat/completions"
        try:
            async with self.http.stream("POST", path, json=self.values()) as answer:
                if answer.status_code == 429:
                    await self.refused(answer)
                elif answer.status_code != 200:
                    self.answers["other"] += 1
                elif "event-stream" in answer.headers["content-type"]:
                    await self.follow(answer)
                else:
                    body = json.loads(await answer.aread())
                    self.text = body["choices"][0]["message"]["content"]
                    self.answers["whole"] += 1
        except httpx.TransportError as error:
            self.answers["broken"] += 1
            sys.stderr.write(f"{self.number}: {error!r}\n")
        return set(self.answers) != {"refused"}

    async def refused(self, answer):
        error = json.loads(await answer.aread())["error"]
        clean = error["code"] == "queue_full" and int(answer.headers["retry-after"]) >= 1
        self.answers["refused" if clean else "other"] += 1
        self.wait = min(LONGEST_WAIT, int(answer.headers["retry-after"]))

    async def follow(self, answer):
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                self.answers["streamed"] += 1
                return
            if line.startswith("data: "):
                choices = json.loads(line.removeprefix("data: ")).get("choices", [])
                self.text += "".join(one["delta"].get("content") or "" for one in choices)
                if self.leaves and self.text:
                    self.answers["left"] += 1
                    return
        self.answers["cut"] += 1

    def is_right(self, wanted):
        if self.answers["left"]:
            return wanted.startswith(self.text)
        return self.text == wanted


async def round_of(url, options):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=600) as http:
        clients = [Client(http, options, number) for number in range(options.clients)]
        await asyncio.gather(*(client.ask() for client in clients))
    return clients


def state(url, process):
    """Once nobody waits any more: memory, the cache, and requests by status."""
    while True:
        text = httpx.get(f"{url}/metrics").text
        figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        if float(figures["d2sd_queue"]) == 0:
            break
        time.sleep(0.1)
    time.sleep(1)
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    statuses = {
        re.findall(r'status="(\d+)"', name)[0]: int(float(value))
        for name, value in figures.items()
        if name.startswith("d2sd_requests_total")
    }
    return {
        "resident_mb": round(pages * PAGE / 1e6, 1),
        "prefix_cache_mb": round(float(figures["d2sd_prefix_cache_bytes"]) / 2**20, 2),
        "statuses": statuses,
    }


@contextmanager
def server(options):
    command = [sys.executable, "-m", "d2sd.cli", "serve", "--model", options.model, "--port", "0"]
    command += ["--policy", options.policy, "--dtype", "float32", "--device", "cpu"]
    command += ["--max-queue", str(options.queue), "--prefix-cache", str(CACHE_MB)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process, opened(process, log)
            process.terminate()
            if process.wait(60):
                raise SystemExit(f"the server ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()


def opened(process, log):
    for _ in range(600):
        log.seek(0)
        found = re.search(r"(http://\S+) is open", log.read())
        try:
            if found and httpx.get(f"{found[1]}/health").status_code == 200:
                return found[1]
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.2)
    log.seek(0)
    raise SystemExit(f"the server did not start: {log.read()}")


def figures_of(clients, wanted, found):
    counts = sum((client.answers for client in clients), Counter())
    right = sum(client.is_right(text) for client, text in zip(clients, wanted, strict=True))
    return {**dict(sorted(counts.items())), "right": right, **found}


def troubles(rounds, options):
    """What must not be, in words."""
    found = []
    for number, one in enumerate(rounds):
        if one["right"] != options.clients:
            found.append(f"round {number}: {one['right']} of {options.clients} answers are right")
        found += [f"round {number}: {name}" for name in ("other", "broken", "cut") if one.get(name)]
        if one["prefix_cache_mb"] > CACHE_MB:
            found.append(f"round {number}: the prefix cache is beyond its bound")
    return found


COLUMNS = ("whole", "streamed", "left", "refused", "right", "resident_mb", "prefix_cache_mb")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--policy", default="planned")
    parser.add_argument("--model", default="proving-ground")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("serving-load.json"))
    options = parser.parse_args()
    choice = ModelChoice(options.model, device="cpu", dtype="float32")
    session = open_session(choice, ["none"], lambda words: None)
    wanted = [reference(session, options, number) for number in range(options.clients)]
    rounds = []
    with server(options) as (process, url):
        started = state(url, process)["resident_mb"]
        for _ in range(options.rounds):
            clients = asyncio.run(round_of(url, options))
            rounds.append(figures_of(clients, wanted, state(url, process)))
    rows = [[str(n + 1), *(str(one.get(c, 0)) for c in COLUMNS)] for n, one in enumerate(rounds)]
    result = {
        "clients": options.clients,
        "queue": options.queue,
        "tokens": options.tokens,
        "policy": options.policy,
        "prefix_cache_bound_mb": CACHE_MB,
        "different_texts": len(set(wanted)),
        "resident_at_start_mb": started,
        "rounds": rounds,
        "troubles": troubles(rounds, options),
        "tables": {"load": {"columns": ["round", *COLUMNS], "rows": rows}},
        "run": session.provenance(0),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in result.items() if k != "run"}, indent=1) + "\n")
    return 1 if result["troubles"] else 0


if __name__ == "__main__":
    sys.exit(main())
