"""The command `bench`: what a server gives under load, and whether that may be believed."""

from __future__ import annotations

from pathlib import Path

import typer

from miyabi_llm.cli import bench_more, bench_quality, stored
from miyabi_llm.cli.dashes import EXTRA, BeforeDashes
from miyabi_llm.cli.default import RunFirst

app = typer.Typer(
    name="bench", cls=RunFirst, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback()
def _group() -> None:
    """Measure servers under load: numbers one can trust, and a gate for CI."""


app.add_typer(bench_more.app)
app.add_typer(bench_quality.app)

TARGETS = typer.Argument(
    None, metavar="[[NAME=]REF|URL]...", help="Models to start and measure, or servers.", autocompletion=stored.complete
)
URL = typer.Option([], "--url", metavar="[NAME=]URL[#MODEL]", help="Measure this server; may be given again.")
ENDPOINT = typer.Option([], "--endpoint", metavar="[NAME=]SERVER", help="Measure a server that `ps` lists.")
BACKEND = typer.Option([], "--backend", metavar="NAME", help="What serves the models: once, or once for each.")
SPEECH = typer.Option(None, "--speech", metavar="DIALECT", help="openai-chat, openai-completions, ollama, anthropic.")
MODEL = typer.Option(None, "--model", metavar="NAME", help="The model to ask servers for; else their first.")
KEY_ENV = typer.Option(None, "--key-env", metavar="NAME", help="The environment variable that holds the servers' key.")
CTX = typer.Option(None, "--ctx", metavar="N", min=1, help="Context to serve with, in tokens.")
THREADS = typer.Option(None, "--threads", metavar="N", min=1, help="Threads to serve with.")
PULL = typer.Option(False, "--pull", help="Pull models first that are not here.")
WORKLOAD = typer.Option("chat", "--workload", "-w", metavar="NAME", help="chat, code-review, rag, batch; or JSONL.")
CONCURRENCY = typer.Option(None, "--concurrency", "-c", metavar="N,...", help="Requests at once; 1 when left out.")
RATE = typer.Option(None, "--rate", metavar="N,...", help="Requests per second instead, sent whether answered or not.")
SWEEP = typer.Option(False, "--sweep", help="Double the concurrency until it pays no more.")
SLO = typer.Option(None, "--slo", metavar="PROMISE", help="Find the highest load that keeps 'ttft_p95<500ms'.")
DURATION = typer.Option(None, "--duration", metavar="S", min=0.1, help="Seconds of sending per load; 30.")
REQUESTS = typer.Option(None, "--requests", "-n", metavar="N", min=1, help="Requests per load, instead or at most.")
DEPTH = typer.Option(None, "--depth", metavar="N,...", help="Tokens of text before each question; 0 when left out.")
MAX_TOKENS = typer.Option(None, "--max-tokens", metavar="N", min=1, help="Longest answer; else as the workload says.")
WARM_UP = typer.Option(1, "--warm-up", metavar="N", min=0, help="Requests per stream before each load, not counted.")
SEED = typer.Option(0, "--seed", metavar="N", help="Order of the prompts and times of sending.")
NONCE = typer.Option(True, "--nonce/--no-nonce", help="Make each prompt new to the server's cache.")
PREFIX = typer.Option(0.0, "--prefix-share", metavar="X", min=0, max=0.99, help="Part of the prompts that is common.")
ARRIVAL = typer.Option("poisson", "--arrival", metavar="KIND", help="Of --rate: poisson or constant.")
RAMP = typer.Option(0.0, "--ramp", metavar="S", min=0, help="Seconds over which the streams begin.")
TIMEOUT = typer.Option(300.0, "--timeout", metavar="S", min=0.1, help="Seconds for one answer.")
PROCESSES = typer.Option(1, "--processes", metavar="N", min=1, max=64, help="Processes of ours that send the requests.")
MAX_ERRORS = typer.Option(0.05, "--max-errors", metavar="X", min=0, max=1, help="Share of failures that is endured.")
GOODPUT = typer.Option(None, "--goodput", metavar="LIMITS", help="Count answers within 'ttft<500ms,tpot<50ms'.")
JSON_FILE = typer.Option(None, "--json-file", metavar="FILE", hidden=True)
JSON = typer.Option(False, "--json", help="Print one JSON document; `--json FILE.json` writes it there.")
CSV = typer.Option(None, "--csv", metavar="FILE", help="Write the metrics as a table.")
HTML = typer.Option(None, "--html", metavar="FILE", help="Write a report with plots, in one file.")
SAMPLES = typer.Option(None, "--samples", metavar="FILE", help="Write every request as a line of JSON.")
NAME = typer.Option("", "--name", metavar="TEXT", help="What the reports call this measurement.")
PRICE_IN = typer.Option(None, "--price-in", metavar="N", min=0, help="What a million prompt tokens cost elsewhere.")
PRICE_OUT = typer.Option(None, "--price-out", metavar="N", min=0, help="What a million output tokens cost elsewhere.")
PRICES = typer.Option(None, "--prices", metavar="FILE", help="Your own dated price table, in TOML.")
PRICE_KWH = typer.Option(None, "--price-kwh", metavar="N", min=0, help="What a kilowatt hour costs (measured energy).")
FAIL_ON = typer.Option([], "--fail-on", metavar="RULE", help="Exit with 5 when 'ttft_p95 > 500ms'; may be repeated.")
BASELINE = typer.Option(None, "--baseline", metavar="FILE", help="Compare with this stored measurement.")
WIDEN = typer.Option(False, "--other-machine", help="Allow another machine's baseline, with wide tolerances.")
SAVE = typer.Option(None, "--save-baseline", metavar="FILE", help="Store this measurement to compare with later.")
JUNIT = typer.Option(None, "--junit", metavar="FILE", help="Write the judgement for a CI system's test view.")
MARKDOWN = typer.Option(None, "--markdown", metavar="FILE", help="Write the judgement for a pull request.")
HISTORY = typer.Option(None, "--history", metavar="FILE", help="Add the judgement to a history, as a line of JSON.")
LABEL = typer.Option("", "--label", metavar="TEXT", help="What the history calls it: a version, a commit.")
COMPAT = typer.Option(None, "--compat", metavar="NAME", help="vllm: add figures under its names to the JSON.")


@app.command("run", cls=BeforeDashes)
def run(
    context: typer.Context,
    targets: list[str] | None = TARGETS,
    url: list[str] = URL,
    endpoint: list[str] = ENDPOINT,
    backend: list[str] = BACKEND,
    speech: str | None = SPEECH,
    model: str | None = MODEL,
    key_env: str | None = KEY_ENV,
    ctx: int | None = CTX,
    threads: int | None = THREADS,
    pull: bool = PULL,
    workload: str = WORKLOAD,
    concurrency: str | None = CONCURRENCY,
    rate: str | None = RATE,
    sweep: bool = SWEEP,
    slo: str | None = SLO,
    duration: float | None = DURATION,
    requests: int | None = REQUESTS,
    depth: str | None = DEPTH,
    max_tokens: int | None = MAX_TOKENS,
    warm_up: int = WARM_UP,
    seed: int = SEED,
    nonce: bool = NONCE,
    prefix_share: float = PREFIX,
    arrival: str = ARRIVAL,
    ramp: float = RAMP,
    timeout: float = TIMEOUT,
    processes: int = PROCESSES,
    max_errors: float = MAX_ERRORS,
    goodput: str | None = GOODPUT,
    json_file: Path | None = JSON_FILE,
    csv: Path | None = CSV,
    html: Path | None = HTML,
    samples: Path | None = SAMPLES,
    name: str = NAME,
    price_in: float | None = PRICE_IN,
    price_out: float | None = PRICE_OUT,
    prices: Path | None = PRICES,
    price_kwh: float | None = PRICE_KWH,
    fail_on: list[str] = FAIL_ON,
    baseline: Path | None = BASELINE,
    other_machine: bool = WIDEN,
    save_baseline: Path | None = SAVE,
    junit: Path | None = JUNIT,
    markdown: Path | None = MARKDOWN,
    history: Path | None = HISTORY,
    label: str = LABEL,
    compat: str | None = COMPAT,
    json_: bool = JSON,
) -> None:
    """Measure servers under load; the command meant by `bench` alone.

    Models are started, measured in turns and stopped; servers that run are measured as they are. Every percentile is
    shown only where there were requests enough for it. A measurement that must not be trusted prints no numbers and
    exits with 7. What follows `--` goes to the backend's program.
    """
    from miyabi_llm import config, hardware
    from miyabi_llm.bench import report as reports
    from miyabi_llm.bench.run import Order
    from miyabi_llm.bench.workload import load_workload
    from miyabi_llm.cli import bench_files, bench_gate, bench_run
    from miyabi_llm.cli import bench_parse as parse
    from miyabi_llm.cli import bench_targets as aims
    from miyabi_llm.errors import BadUsage

    settings = config.load()
    wanted = aims.wishes(targets or (), url, endpoint, backend)
    plan = parse.plan(
        parse.Words(concurrency, rate, slo, duration, requests, depth, sweep=sweep),
        parse.Sending(arrival, ramp, timeout, seed),
    )
    how = aims.How(speech, model, key_env, ctx or plan.context or None, threads, pull, context.meta[EXTRA])
    if compat not in (None, "vllm"):
        raise BadUsage(f"--compat {compat}: vllm is the only one")
    told = bench_gate.Told(junit, markdown, history, label)
    gate = bench_gate.gate(fail_on, baseline, save_baseline, told, widen=other_machine)
    bench_gate.check_one(gate, 0 if plan.searching else len(plan.loads), len(wanted))
    tariff = parse.tariff(price_in, price_out, prices, price_kwh)
    order = Order(
        machine=reports.machine(hardware.look(settings.env)),
        workload=load_workload(workload, max_tokens=max_tokens),
        nonce=nonce,
        prefix_share=prefix_share,
        warm_up=warm_up,
        error_limit=max_errors,
        timeout_s=timeout,
        goals=parse.goals(goodput),
        samples=samples,
        seed=seed,
        in_blocks=gate.wanted or gate.save is not None,
        processes=processes,
        env=settings.env,
    )
    face = bench_run.Face(settings, name, tariff, as_json=json_)
    study = bench_run.measure(aims.Aim(wanted, how), plan, order, face)
    files = bench_files.Files(json_file, csv, html)
    end = bench_files.End(files, gate, settings, as_json=json_, searching=plan.searching, compat=compat)
    bench_files.finish(study, end)
