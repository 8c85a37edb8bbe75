"""What the server answers to requests nobody would write. Writes docs/results/serving-fuzz.json.

python docs/results/serving_fuzz.py [--examples N] [--seed N] [--quick] [--url URL --model NAME]

schemathesis reads the document that the server publishes and makes requests of it: some as
documented, some wrong on purpose, in all its phases. Three in four of the completions get the
server's own model, and most of these a policy there is or none, so that they are answered and not
only refused. A request fails when its status is 500 or more, when an error has not OpenAI's
shape, or when a stream ends neither with [DONE] nor with an error. Without a URL, `d2sd serve` is
started for the time, with answers of at most 8 tokens. Ends with 1 when a request failed.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError
from schemathesis.generation import GenerationMode

PACKAGES = ("d2sd", "schemathesis", "hypothesis", "fastapi", "starlette", "uvicorn", "pydantic")
PACKAGES += ("xgrammar", "torch", "transformers")
FIELDS = {"message", "type", "param", "code"}
NEEDED = {"stream_options": "stream", "trace": "stream", "top_logprobs": "logprobs"}
POLICIES = (None, "none", "ngram", "ngram:length=3")


class Ledger:
    """Every request's operation, phase and status; what was wrong with its answer."""

    def __init__(self, model):
        self.model = model
        self.seen = 0
        self.counts, self.phases = Counter(), Counter()
        self.failures = []

    def adapt(self, case):
        """Most completions name what the server has, and leave out what doesn't go together."""
        self.seen += 1
        body = case.body
        if not isinstance(body, dict) or self.seen % 4 == 0:
            return
        body["model"] = self.model
        if self.seen % 16:
            body["policy"] = POLICIES[self.seen // 4 % len(POLICIES)]
        if case.meta.generation.mode is GenerationMode.POSITIVE:
            for name, needed in NEEDED.items():
                if not body.get(needed):
                    body.pop(name, None)
            if self.seen % 8:
                body.pop("response_format", None)

    def note(self, case, response):
        meta = case.meta
        self.counts[case.operation.label, response.status_code] += 1
        self.phases[f"{meta.phase.name.value}, {meta.generation.mode.value}"] += 1
        wrong = wrong_with(response)
        if wrong:
            body = case.body if isinstance(case.body, (dict, list, str)) else repr(case.body)
            request = f"{case.method} {case.formatted_path} {json.dumps(body, default=repr)[:2000]}"
            self.failures.append({"request": request, "status": response.status_code, "why": wrong})


def wrong_with(response):
    """Why an answer is none that a client could read; nothing where it is one."""
    text = response.content.decode("utf-8", "replace")
    if response.status_code >= 500:
        return f"a failure of the server: {text[:200]}"
    if response.status_code >= 400:
        return "" if response.request.method == "HEAD" else shape(text)
    if "event-stream" in "".join(response.headers.get("content-type", ())):
        last = text.strip().rpartition("\n")[2].removeprefix("data: ")
        if last != "[DONE]":
            return shape(last) or ("an error of the server" if '"server_error"' in last else "")
    return ""


def shape(text):
    try:
        error = json.loads(text)["error"]
        return "" if set(error) == FIELDS and error["message"] else f"another shape: {text[:200]}"
    except (ValueError, KeyError, TypeError):
        return f"no error of OpenAI's: {text[:200]}"


def settings(options):
    return SchemathesisConfig.from_dict(
        {
            "seed": options.seed,
            "base-url": options.url,
            "continue-on-failure": True,
            "request-timeout": 120,
            "max-stream-events": 10_000,
            "cache": {"enabled": False},
            "checks": {"enabled": False, "not_a_server_error": {"enabled": True}},
            "generation": {
                "mode": "all",
                "max-examples": options.examples,
                "no-shrink": True,
                "database": "none",
                "unique-inputs": True,
            },
            "phases": {
                "stateful": {"enabled": False},
                "coverage": {"enabled": not options.quick},
            },
        }
    )


def fuzz(options):
    """All phases once; gives the ledger and what schemathesis itself has to say."""
    ledger = Ledger(options.model)

    @schemathesis.hook
    def before_call(context, case, kwargs):
        ledger.adapt(case)

    @schemathesis.hook
    def after_call(context, case, response):
        ledger.note(case, response)

    url = f"{options.url}/openapi.json"
    schema = schemathesis.openapi.from_url(url, config=settings(options))
    said = []
    for event in from_schema(schema).execute():
        if isinstance(event, (FatalError, NonFatalError)):
            said.append(repr(getattr(event, "exception", None) or event.value)[:500])
    return ledger, said


@contextmanager
def server():
    """`d2sd serve` of the shipped tiny model on a free port, without drafters."""
    command = [sys.executable, "-m", "d2sd.cli", "serve", "--model", "proving-ground"]
    command += ["--port", "0", "--policy", "ngram", "--max-tokens", "8", "--dtype", "float32"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        try:
            for _ in range(600):
                log.seek(0)
                found = re.search(r"(http://\S+) is open", log.read())
                if found and alive(found[1]):
                    yield found[1]
                    return
                time.sleep(0.2)
            raise SystemExit("the server did not start")
        finally:
            process.terminate()
            process.wait()


def alive(url):
    try:
        return urllib.request.urlopen(f"{url}/health").status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def table(counts):
    statuses = sorted({status for _, status in counts})
    operations = sorted({operation for operation, _ in counts})
    rows = [[name, *(str(counts[name, s]) for s in statuses)] for name in operations]
    return {"columns": ["operation", *map(str, statuses)], "rows": rows}


def report(options):
    ledger, said = fuzz(options)
    result = {
        "requests": sum(ledger.counts.values()),
        "failures": ledger.failures,
        "server_errors": sum(n for (_, status), n in ledger.counts.items() if status >= 500),
        "said_by_schemathesis": said,
        "alive_afterwards": alive(options.url),
        "tables": {"fuzz": table(ledger.counts)},
        "phases": dict(sorted(ledger.phases.items())),
        "seed": options.seed,
        "examples": options.examples,
        "model": options.model,
        "versions": versions(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 1 if ledger.failures or said or not result["alive_afterwards"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="leave the phase of coverage out")
    parser.add_argument("--url")
    parser.add_argument("--model", default="proving-ground")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("serving-fuzz.json"))
    options = parser.parse_args()
    if options.url:
        return report(options)
    with server() as options.url:
        return report(options)


if __name__ == "__main__":
    sys.exit(main())
