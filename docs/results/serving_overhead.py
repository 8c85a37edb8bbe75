"""What the server costs over `generate`. Writes docs/results/serving-overhead.json.

python docs/results/serving_overhead.py PROMPTS [--limit N] [--dtype bfloat16]

One stream at a time: `d2sd serve` in a process of its own and `generate` in this one answer the
same prompts in turns, with the same passes, policy and limits. Seconds run from the request to its
last token, reading the prompt included; every prompt is new to both.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from d2sd.answers.endpoint import Connection, Endpoint
from d2sd.bench.prompts import read_prompts
from d2sd.generate import Request, generate
from d2sd.session import ModelChoice, open_session

POLICIES = ("none", "planned")


def started(options):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "d2sd.cli", "serve", "--model", options.model]
    command += ["--dtype", options.dtype, "--policy", "planned", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health").close()
            return process, Connection(Endpoint(f"{url}/v1", tries=1))
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def by_server(connection, options, policy, text):
    values = {
        "model": options.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": options.max_new_tokens,
        "policy": policy,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    said, usage = "", {}
    start = time.perf_counter()
    for event in connection.stream("/chat/completions", values):
        usage = event.get("usage") or usage
        said += "".join(one["delta"].get("content", "") for one in event["choices"])
    return said, usage["completion_tokens"] / (time.perf_counter() - start)


def by_generate(session, drafter, options, text):
    start = time.perf_counter()
    prompt = session.chat_prompt([{"role": "user", "content": text}])
    request = Request(
        prompt, max_new_tokens=options.max_new_tokens, stop_tokens=session.stop_tokens
    )
    answer = generate(session.target, drafter, request, session.tokenizer)
    return answer.text, answer.new_tokens / (time.perf_counter() - start)


def measured(session, connection, options, policy, prompts):
    """Speeds of both on every prompt, the first of which warms up."""
    drafter = session.drafter(policy)
    ways = {
        "generate": lambda text: by_generate(session, drafter, options, text),
        "server": lambda text: by_server(connection, options, policy, text),
    }
    speeds = {name: [] for name in ways}
    same = 0
    for number, prompt in enumerate(prompts):
        order = [*ways] if number % 2 else [*ways][::-1]
        found = {name: ways[name](prompt.turns[0]) for name in order}
        same += number > 0 and found["generate"][0] == found["server"][0]
        if number:
            for name, (_, speed) in found.items():
                speeds[name].append(speed)
    return speeds, same


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    out = Path(__file__).with_name("serving-overhead.json")
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    session = open_session(ModelChoice(options.model, dtype=options.dtype), ["planned"])
    assert session.is_compiled, "run d2sd tune first"
    process, connection = started(options)
    prompts = read_prompts(options.prompts, len(POLICIES) * (options.limit + 1))
    rows, all_speeds = [], {}
    try:
        for place, policy in enumerate(POLICIES):
            part = prompts[place * (options.limit + 1) :][: options.limit + 1]
            speeds, same = measured(session, connection, options, policy, part)
            pairs = zip(speeds["server"], speeds["generate"], strict=True)
            ratios = [ours / plain for ours, plain in pairs]
            low, _, high = statistics.quantiles(ratios, n=4)
            rows.append(
                [
                    policy,
                    f"{statistics.median(speeds['generate']):.1f}",
                    f"{statistics.median(speeds['server']):.1f}",
                    f"{statistics.median(ratios):.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{same} of {len(ratios)}",
                ]
            )
            all_speeds[policy] = speeds
    finally:
        process.terminate()
        process.wait(30)
    columns = [
        "policy",
        "generate, tokens/s",
        "server, tokens/s",
        "ratio",
        "quartiles",
        "same text",
    ]
    result = {
        "tables": {"overhead": {"columns": columns, "rows": rows}},
        "tokens_per_second": all_speeds,
        "run": session.provenance(0),
    }
    options.out.write_text(json.dumps(result, ensure_ascii=False) + "\n")
    sys.stdout.write("\n".join("  ".join(row) for row in rows) + "\n")


main()
