"""The table of subcommands. A new one is a new row; help, suggestions, completion and docs/commands.md follow."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that it runs, as `python -m` would, and the words that it puts before the user's."""

    group: str
    name: str
    module: str
    help: str
    words: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # what people type when they mean it


COMMANDS: Final = (
    Command("Start", "demo", "pipelines.finetune", "the whole path on generated data: minutes, no GPU",
            words=("--recipe", "demo"), also=("quickstart", "example")),
    Command("Start", "init", "medpix.init", "look at your images and table, and write a recipe",
            also=("new", "create", "setup")),
    Command("Start", "doctor", "medpix.doctor", "check this machine, and say what to do",
            also=("check", "diagnose", "info")),
    Command("Data", "prepare", "vlm_core.prepare", "check data, cache it, and write a report about it",
            also=("data", "report", "explain")),
    Command("Data", "caches", "vlm_core.caches", "list, verify and delete caches", also=("cache", "clean", "prune")),
    Command("Train", "plan", "vlm_core.finetune", "steps, memory, disk space and hours; loads no weights",
            words=("--plan",), also=("estimate", "dry-run")),
    Command("Train", "train", "pipelines.finetune", "train, evaluate and register a model",
            also=("run", "fine-tune", "fit", "pipeline")),
    Command("Train", "sweep", "pipelines.sweep", "search a space of settings for the best ones",
            also=("search", "tune", "optimize", "hyperparameters")),
    Command("Train", "finetune", "vlm_core.finetune", "only train, without Prefect and MLflow"),
    Command("Train", "encode", "vlm_core.encode", "only fill the vision cache, for later trainings",
            also=("features",)),
    Command("Train", "export", "vlm_core.export", "merge an adapter into its base model", also=("merge", "save")),
    Command("Judge", "evaluate", "vlm_core.evaluate", "score a checkpoint or a registered model",
            also=("eval", "score", "test", "validate", "compare")),
    Command("Judge", "ask", "vlm_core.generate", "ask a model about images",
            also=("generate", "predict", "infer", "chat", "answer")),
    Command("Judge", "review", "vlm_core.review", "make and score a reader study with blinded answers",
            also=("study", "reader")),
    Command("Judge", "judge", "vlm_core.judge", "let a language model judge the answers of an evaluation",
            also=("llm", "grade")),
    Command("Registry", "registry", "tasks.registry", "versions, champions and their history",
            also=("promote", "rollback", "models", "champion")),
    Command("Registry", "serve", "tasks.registry", "verify a version and answer over HTTP on loopback",
            words=("serve",), also=("server", "api", "deploy")),
    Command("Registry", "playground", "tasks.playground", "a page to ask a registered model and its base model",
            also=("web", "ui", "gradio", "try")),
    Command("Servers", "up", "tasks.services", "start Prefect, MLflow and a worker on this machine",
            words=("up",), also=("start",)),
    Command("Servers", "env", "tasks.services", 'their addresses for a shell: eval "$(medpix env)"', words=("env",)),
    Command("Servers", "status", "tasks.services", "whether they run", words=("status",), also=("ps",)),
    Command("Servers", "down", "tasks.services", "stop them", words=("down",), also=("stop", "kill")),
    Command("Shell", "completion", "medpix.completion", "print a script that completes these names",
            also=("complete", "autocomplete")),
)  # fmt: skip


def names_of_modules() -> dict[str, str]:
    """Returns how a user calls each module: `{"vlm_core.prepare": "medpix prepare", ...}`.

    A module whose own subcommands are rows here is called `medpix`: `medpix up`.
    """
    shared = {command.module: "medpix" for command in COMMANDS if command.words == (command.name,)}
    return shared | {command.module: f"medpix {command.name}" for command in COMMANDS if not command.words}
