"""The table of commands; each is imported only when it is called."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

# name -> (module under miyabi_llm.cli, what `--help` says). A test holds these lines against the docstrings.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart", "Doctor, install, pull, serve and review a small diff: the whole road, measured."),
    "pull": ("pull", "Bring a model here, verified."),
    "resolve": ("pull", "Say what a name means, without downloading."),
    "list": ("models", "List the models in the store."),
    "show": ("models", "Show a model's header and its card."),
    "verify": ("models", "Hash a model's bytes again and compare."),
    "rm": ("models", "Remove models from the store."),
    "prune": ("models", "Remove partial downloads and blobs no model needs."),
    "df": ("models", "Show what the store uses of the disk."),
    "outdated": ("models", "Compare pulled models with their sources."),
    "link": ("models", "Show a model to other tools without a second copy."),
    "export": ("models", "Write a model to one file, for a machine without a network."),
    "import": ("models", "Read a model from a file that `export` wrote."),
    "serve": ("serve", "Serve a model over an OpenAI-compatible API."),
    "switch": ("switch", "Load a model of a server of many now, unloading others if it must."),
    "ps": ("servers", "List running servers."),
    "logs": ("servers", "Show a server's log."),
    "stop": ("servers", "Stop a server."),
    "connect": ("connect", "Point a client program at a running server."),
    "run": ("run", "Ask a model once, or chat with it."),
    "mcp": ("mcp", "Give local models to Claude Code and other MCP hosts as tools."),
    "batch": ("batch", "Ask a file of requests, and write a file of answers."),
    "bench": ("bench", "Measure servers under load: numbers one can trust, and a gate for CI."),
    "gateway": ("gateway", "Put one address in front of Claude and the models here; a policy says what may leave."),
    "fit": ("fit", "Say whether a model fits this machine, and how."),
    "quantize": ("quantize", "Quantize a model, measure the loss, and keep the best that fits."),
    "finetune": ("finetune", "Train a model from a recipe, and prove what came out."),
    "convert": ("convert", "Make a copy of a GGUF model in safetensors, for vLLM and for training."),
    "data": ("data", "Look at rows before they are trained on, and make rows of a git history."),
    "backend": ("backend", "Install and list the programs that run models."),
    "route": ("route", "Say where requests go and why; test, replay and audit the policy of the gateway."),
    "doctor": ("doctor", "Judge this machine and say what to type."),
}


class LazyGroup(TyperGroup):
    """A command group that knows its commands' names and help without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # the names are for "Did you mean"

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Import the module that holds `cmd_name` and return its command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"miyabi_llm.cli.{entry[0]}")
        command = typer.main.get_command(module.app)
        if cmd_name in getattr(command, "commands", {}) and command.name != cmd_name:
            return command.commands[cmd_name]  # type: ignore[attr-defined]
        return command

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    name="miyabi-llm",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from miyabi_llm import __version__

        print(f"miyabi-llm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """From a model's name to a verified, served, measured model of your own."""
