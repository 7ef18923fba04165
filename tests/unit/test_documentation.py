"""What the documents say exists: every setting, value, command, flag, name, file, test and variable that they name."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

import nlp_transfer
from nlp_transfer.cli import cli
from nlp_transfer.export.standalone import SCRIPT, SERVER
from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.run.document import parse_overrides
from nlp_transfer.run.resolve import resolve
from nlp_transfer.settings import registry
from nlp_transfer.settings.applicability import takes
from nlp_transfer.settings.base_settings import Settings
from nlp_transfer.settings.schema import DataConfig, RunConfig, TrainingConfig
from nlp_transfer.settings.validation import all_settings, validate
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems, UserError

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nlp_transfer"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "recipes").glob("*.py")), *sorted((ROOT / "docs").glob("**/*.md"))]
SCHEMAS: dict[str, list[type[Settings]]] = {
    "": [RunConfig],
    "data": [DataConfig],
    "training": [TrainingConfig],
    "task": [registry.load("task", name) for name in registry.names("task")],
    "strategy": [registry.load("strategy", name) for name in registry.names("strategy")],
    "task.head": [HeadConfig],
}
KNOWN = {name for name, _, _ in all_settings()}
COMMANDS: dict[str, Any] = dict(cli.commands)
FLAGS = {name: {flag for option in command.params for flag in option.opts} | {"--help"} for name, command in COMMANDS.items()}
OF_OTHERS = {"--rdzv_endpoint"}  # torchrun's
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))
BASE: dict[str, Any] = {
    "model": "m", "data": {"train": "a.csv"}, "task": {"name": "text_classification"}, "output_dir": "run"
}  # fmt: skip

DOTTED = re.compile(r"(?<![\w./`-])`?(?:--)?(data|task|strategy|training)\.([a-z_]\w*)((?:\.[a-z_]\w*)*)(?!\w|\()")
SPAN = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOLDERS = "|".join(
    path.name
    for place in (ROOT, PACKAGE)
    for path in place.iterdir()
    if path.is_dir() and path.name[0] not in "._" and path.name != "runs"
)
VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b")


def literals(annotation: Any) -> set[str]:
    """The words that a field may be, out of unions and the like."""
    if get_origin(annotation) is Literal:
        return {str(value) for value in get_args(annotation)}
    return set().union(*map(literals, get_args(annotation)))


def refused(section: str, name: str, value: Any) -> bool:
    """Whether no schema of a section has a setting of this name with this value."""
    for schema in SCHEMAS[section]:
        if name in schema.model_fields:
            validate(schema, {name: value}, problems := Problems())
            if not any(message.startswith(name) for message in problems.messages):
                return False
    return name != "name" or (":" not in str(value) and value not in registry.names(section))  # type: ignore[arg-type]


def unknown_settings(text: str) -> Iterator[str]:
    """Dotted names that no schema has, and tables of strategies and tasks with settings that theirs do not have."""
    for part, name, inner in DOTTED.findall(text):
        deeper = [word for word in inner.split(".") if word]
        nested = part == "task" and name == "head" and all(word in HeadConfig.model_fields for word in deeper)
        sides = part == "data" and all(word in ("source", "target") for word in deeper)
        if f"{part}.{name}" not in KNOWN or not (nested or sides or name in ("settings", "class_weights") or not deeper):
            yield f"{part}.{name}{inner}"
    for kind in ("strategy", "task"):
        for table in re.findall(rf"^\| `{kind}\.name` \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
            for line in table.splitlines():
                name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
                fields = registry.load(kind, name.strip("`")).model_fields
                words = set(fields).union(*(literals(field.annotation) for field in fields.values()))
                yield from (f"{name}: {span}" for cell in cells for span in SPAN.findall(cell) if span not in words | KNOWN)


def wrong_values(text: str) -> Iterator[str]:
    """`name: value` in a line of text, and blocks of YAML, that no schema takes."""
    for span in SPAN.findall(BLOCK.sub("", text)):
        found = yaml_of(span) if re.match(r"[a-z_.]+: \S", span) and "..." not in span else None
        if isinstance(found, dict):
            for name, value in found.items():
                section, _, last = str(name).rpartition(".")
                inside = isinstance(value, dict) and last in SCHEMAS and not section
                pairs = [(last, *pair) for pair in value.items()] if inside else [(section, last, value)]
                for owner, setting, given in pairs:
                    places = [owner] if owner else list(SCHEMAS)
                    if all(refused(place, str(setting), given) for place in places):
                        yield span
    for named in re.findall(r"\{name: [^{}]*\}", re.sub(r"```yaml.*?```", "", text, flags=re.DOTALL)):
        document = yaml_of(named) or {}
        for kind, build in (("task", task_from), ("strategy", strategy_from)):
            if document.get("name") in registry.names(kind):  # type: ignore[arg-type]
                try:
                    build(document)
                except UserError as error:
                    yield str(error)
    for language, block in BLOCK.findall(text):
        if language == "yaml":
            try:
                run = resolve(BASE | yaml.safe_load(block))
            except UserError as error:
                yield str(error)
            else:
                yield from (f"{name} has no effect" for name in run.unused)


def yaml_of(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def command_lines(text: str) -> Iterator[str]:
    """Lines in which this project's commands, recipes or scripts are called."""
    blocks = [block for language, block in BLOCK.findall(text) if language == "bash"]
    indented = re.findall(r"^ {4}(?:python |--)(?:.*\\\n)*.*", text, re.MULTILINE)  # in the docstring of a recipe
    lines = [line.strip() for part in (*blocks, *indented) for line in re.sub(r"\\\n\s*", " ", part).splitlines()]
    lines += SPAN.findall(BLOCK.sub("", text))
    for line in [f"nlp-transfer train FILE {line}" if re.match(rf"--({'|'.join(KNOWN)})\b", line) else line for line in lines]:
        if re.match(r"(\w+=\w+ )*(nlp-transfer|torchrun|accelerate launch|python (-m nlp_transfer|recipes/)|scripts/)", line):
            yield line.split("  #")[0]


def wrong_commands(text: str) -> Iterator[str]:
    """Commands and flags that do not exist, settings that a command does not take, values that a setting cannot have."""
    for line in command_lines(text):
        words = shlex.split(line.replace("...", "").split(" # ")[0])
        start = next(
            (i for i, word in enumerate(words) if word in ("nlp-transfer", "nlp_transfer") or word.endswith(".py")), None
        )
        if start is None:
            yield from (word for word in words[:1] if word.startswith("scripts/") and not (ROOT / word).exists())
            continue
        script = words[start].endswith(".py")
        if script and not (ROOT / words[start]).exists():
            yield words[start]
        if not script and start + 1 == len(words):  # the program's name alone
            continue
        command = "train" if script else words[start + 1]
        if command not in COMMANDS:
            yield f"nlp-transfer {command}"
            continue
        for i, word in enumerate(words[start + 1 :], start + 1):
            if not word.startswith("--") or word in FLAGS[command] or (script and words[start].startswith("scripts/")):
                continue
            name = word.removeprefix("--").partition("=")[0]
            if not takes(command, name) or name not in KNOWN | {"data.test.source", "data.test.target"}:
                yield f"{line}: {word}"
            elif "=" not in word and i + 1 < len(words):
                section, _, last = name.rpartition(".")
                value = parse_overrides([word, words[i + 1]])[0][1]
                if refused(section, last, value):
                    yield f"{line}: {word} {value}"
    flags = {flag for span in SPAN.findall(BLOCK.sub("", text)) for flag in re.findall(r"^(--[\w.-]+)", span)}
    yield from sorted(flags - OF_OTHERS - set().union(*FLAGS.values()) - {f"--{name}" for name in KNOWN})


def wrong_python(text: str, whole: bool = False) -> Iterator[str]:
    """Names that the package does not export and arguments that its functions do not take."""
    blocks = [text] if whole else [block for language, block in BLOCK.findall(text) if language == "python"]
    spans = [] if whole else [span for span in SPAN.findall(BLOCK.sub("", text)) if re.match(r"\w+\(", span)]
    for source in [*blocks, *spans]:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module == "nlp_transfer":
                yield from (alias.name for alias in node.names if alias.name not in nlp_transfer.__all__)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in nlp_transfer.__all__:
                called = getattr(nlp_transfer, node.func.id)
                schema = isinstance(called, type) and issubclass(called, Settings)
                taken = set(called.model_fields) if schema else {*inspect.signature(called).parameters, *RunConfig.model_fields}
                for keyword in node.keywords:
                    if keyword.arg not in taken:
                        yield f"{node.func.id}({keyword.arg}=)"
                    elif keyword.arg in ("data", "training", "task", "strategy") and isinstance(keyword.value, ast.Dict):
                        names = [str(key.value) for key in keyword.value.keys if isinstance(key, ast.Constant)]
                        yield from (f"{keyword.arg}.{name}" for name in names if f"{keyword.arg}.{name}" not in KNOWN)


def missing_files(text: str) -> Iterator[str]:
    """Paths and tests that are not there; a path may be one inside the package."""
    place = ROOT
    for span in SPAN.findall(BLOCK.sub("", text)) + re.findall(r"\]\((?!http)([^)#]+)\)", text):
        file, _, test = span.partition("::")
        if re.fullmatch(rf"({FOLDERS})/[\w./-]*|\w+\.py|[A-Z]+\.md", file) and "NAME" not in file:
            place = ROOT / file if (ROOT / file).exists() else PACKAGE / file
            if not place.exists() and file not in (SCRIPT, SERVER):
                yield file
        if test and f"def {test}(" not in place.read_text(encoding="utf-8"):
            yield span


def unknown_variables(text: str) -> Iterator[str]:
    """Environment variables that neither this package nor the libraries below it read."""
    import accelerate.utils
    import huggingface_hub.constants

    read = SOURCE + "".join(inspect.getsource(module) for module in (huggingface_hub.constants, accelerate.utils.dataclasses))
    cuda = {"CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"}  # read by CUDA itself
    yield from (name for name in VARIABLE.findall(text) if name not in read and name not in cuda)


def faults(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    python = wrong_python(text, whole=path.suffix == ".py")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    return [f"{check.__name__}: {fault}" for check in CHECKS for fault in check(text)] + [
        f"wrong_python: {fault}" for fault in python
    ]


CHECKS = (unknown_settings, wrong_values, wrong_commands, missing_files, unknown_variables)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_all_that_a_document_names_exists(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(
    ("text", "check", "fault"),
    [
        ("| `strategy.name` | |\n|---|---|\n| `few_shot` | `classifier`, `pairs` |\n", unknown_settings, "`few_shot`: pairs"),
        ("| `task.name` | what |\n|---|---|\n| `regression` | `threshold` |\n", unknown_settings, "`regression`: threshold"),
        ("set `data.tests`", unknown_settings, "data.tests"),
        ("task.head.poling", unknown_settings, "task.head.poling"),
        ("`token_cache: never` keeps none", wrong_values, "token_cache: never"),
        ("`data: {token_cash: none}` keeps none", wrong_values, "data: {token_cash: none}"),
        ("`{name: partial, layers: all}`", wrong_values, "strategy.layers: unknown setting"),
        ("```yaml\nstrategy: {name: lora, rank: 8}\n```", wrong_values, "strategy.rank: unknown setting"),
        ("```yaml\nstrategy: {name: few_shot, regularization: 2}\n```", wrong_values, "strategy.regularization: has no effect"),
        ("```yaml\ntraining: {max_steps: 9, epochs: 2}\n```", wrong_values, "training.epochs has no effect"),
        ("```bash\nnlp-transfer guess runs/a\n```", wrong_commands, "nlp-transfer guess"),
        ("`nlp-transfer push runs/a me/a --publik`", wrong_commands, "--publik"),
        ("```bash\nnlp-transfer predict m --input a.csv \\\n  --data.test c.csv\n```", wrong_commands, "--data.test"),
        ("```bash\npython recipes/lost.py\n```", wrong_commands, "recipes/lost.py"),
        ("```bash\nnlp-transfer train a.yaml --training.epochs many\n```", wrong_commands, "--training.epochs many"),
        ("give `--beam 2`", wrong_commands, "--beam"),
        ("```python\nfrom nlp_transfer import train\n```", wrong_python, "train"),
        ("`load_predictor(..., precison='auto')`", wrong_python, "load_predictor(precison=)"),
        ("```python\nfrom nlp_transfer import fine_tune\nfine_tune(data={'tests': 1})\n```", wrong_python, "data.tests"),
        ("see `hub/lost.py`", missing_files, "hub/lost.py"),
        ("`tests/unit/test_config.py::test_lost`", missing_files, "tests/unit/test_config.py::test_lost"),
        ("`NLP_TRANSFER_KASH`", unknown_variables, "NLP_TRANSFER_KASH"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_found(text: str, check: Any, fault: str) -> None:
    found = list(check(text))
    assert len(found) == 1
    assert fault in found[0]


def test_documents_are_not_read_in_vain() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bbc_news.py", "strategies.md"} <= set(texts)
    assert sum(len(list(command_lines(text))) for text in texts.values()) > 25
    assert len(list(command_lines(ast.get_docstring(ast.parse(texts["translation.py"])) or ""))) > 4
    assert sum(language == "yaml" for text in texts.values() for language, _ in BLOCK.findall(text)) > 5
    assert texts["SECURITY.md"].count("::test_") > 20


def test_every_strategy_and_task_is_named() -> None:
    for name in ("README.md", "CHANGELOG.md", "docs/strategies.md"):
        spans = set(SPAN.findall((ROOT / name).read_text(encoding="utf-8")))
        assert set(registry.names("strategy")) - spans == set(), name
    for name in ("README.md", "docs/tasks.md"):
        assert set(registry.names("task")) - set(SPAN.findall((ROOT / name).read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize("name", registry.names("strategy"))
def test_every_setting_of_a_strategy_is_documented(name: str) -> None:
    text = (ROOT / "docs/strategies.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| `{name}` \|(.*)", text, re.MULTILINE)[:1]
    assert set(registry.load("strategy", name).model_fields) - set(SPAN.findall(row)) == set()


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 220
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"(docs/{path.name})" not in readme] == []


def test_every_part_of_the_package_is_in_contributing() -> None:
    spans = set(SPAN.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    named = {span.removeprefix("nlp_transfer/").partition("/")[0] for span in spans}
    parts = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - named - {"__init__.py", "__main__.py"} == set()


def test_one_function_decides_where_the_cache_is() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if '"NLP_TRANSFER_CACHE"' in path.read_text()
    }
    assert readers == {"utils/environment.py"}
