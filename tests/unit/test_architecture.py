"""Who may import whom, read from the source with `ast`; and what must stay light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nlp_transfer

ROOT = Path(nlp_transfer.__file__).parent
PACKAGE = "nlp_transfer"


def module_name(path: Path) -> str:
    """`data.splits` for data/splits.py, `data` for data/__init__.py, an empty text for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(source: str) -> set[str]:
    """The package's own modules that a source imports anywhere, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if name.removeprefix(f"{PACKAGE}.") in MODULES}
            found |= modules if modules == inner else modules | {base}
    own = {name.removeprefix(PACKAGE).removeprefix(".") for name in found if name.split(".")[0] == PACKAGE}
    unknown = own - set(MODULES) - {""}
    assert not unknown, unknown
    return own


GRAPH = {name: imports(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

BASE = {
    "errors", "applicability", "config", "explain", "registry", "extensions", "processes", "head_type", "secrets",
    "known_secrets", "redactor", "system", "child_processes", "terminal", "strict_json",
}  # fmt: skip
SOURCES = (
    BASE
    | {"console", "disk", "hub_answers", "hub_client", "locks", "memory"}
    | {name for name in MODULES if name.split(".")[0] == "sources"}
)
SHARED_DATA = {name for name in MODULES if name.split(".")[0] in ("data", "seq2seq", "models")} | {
    "layers", "heads", "compatibility",
}  # fmt: skip
METRICS = {"metrics", "metrics.classification", "metrics.regression", "metrics.translation", "metrics.own"}
CONCRETE = {name for name in MODULES if name.startswith(("tasks.", "strategies.")) and not name.split(".")[1].startswith("_")}
SHARED_STRATEGY_PARTS = {name for name in MODULES if name.startswith("strategies._")}
SHARED_TASK_PARTS = {name for name in MODULES if name.startswith("tasks._")}
PROTOCOLS = {"tasks", "strategies"}


def room(name: str) -> str:
    return name.split(".")[0]


def of(*rooms: str) -> list[str]:
    """Every module of these rooms; a room that does not exist is an error, so that no rule is empty."""
    found = [name for name in MODULES if room(name) in rooms]
    assert {room(name) for name in found} == set(rooms)
    return found


def test_the_whole_package_was_read() -> None:
    assert len(MODULES) > 40
    assert sum(map(len, GRAPH.values())) > 100
    assert len(CONCRETE) >= 6


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import nlp_transfer.config\nfrom nlp_transfer import registry\ndef f():\n    from nlp_transfer.errors import UserError\n"
    )
    assert imports(source) == {"config", "registry", "errors"}


@pytest.mark.parametrize(
    "name",
    of(
        "errors",
        "applicability",
        "config",
        "registry",
        "extensions",
        "processes",
        "metrics",
        "head_type",
        "hub_answers",
        "hub_client",
        "secrets",
        "known_secrets",
        "redactor",
        "console",
        "system",
        "child_processes",
        "terminal",
        "strict_json",
    ),
)
def test_the_ground_floor_imports_errors_alone(name: str) -> None:
    own = {other for other in MODULES if room(other) == room(name)}
    late = {"heads"} if name == "head_type" else set()  # inside the functions that transformers calls back
    hidden = {
        "console": {"secrets", "system", "terminal"},
        "redactor": {"secrets", "system", "terminal"},
        "secrets": {"known_secrets"},
    }.get(name, set())
    depends = {
        "config": {"annotations", "applicability", "explain"},
        "registry": {"extensions"},
        "extensions": {"system"},
        "processes": {"system"},
        "metrics": {"hub_client"},
        "system": {"disk"},
        "metrics.own": {"processes"},
        "hub_client": {"hub_answers"},
    }.get(name, set())
    assert GRAPH[name] <= {"errors"} | own | late | hidden | depends


def test_what_explains_settings_knows_their_schema_and_names() -> None:
    assert GRAPH["explain"] == {"errors", "config", "registry"}


@pytest.mark.parametrize("name", of("sources"))
def test_sources_import_settings_and_errors(name: str) -> None:
    assert GRAPH[name] <= SOURCES - {"registry", "head_type"}


@pytest.mark.parametrize("name", of("data", "models", "layers", "heads", "compatibility", "features", "replay", "seq2seq"))
def test_data_and_models_import_what_lies_below(name: str) -> None:
    played_back = {"features"} if name == "replay" else set()
    assert GRAPH[name] <= SOURCES | SHARED_DATA | METRICS | set(of("kernels")) | played_back


@pytest.mark.parametrize("name", of("kernels"))
def test_kernels_know_one_another_alone(name: str) -> None:
    assert {other for other in GRAPH[name] if room(other) != "kernels"} <= {"head_type"}


@pytest.mark.parametrize("name", of("tasks", "strategies"))
def test_tasks_and_strategies_know_no_sibling_and_no_training(name: str) -> None:
    # A strategy may put several tasks together, by their protocol; a task knows no strategy.
    own = {"tasks"} | SHARED_TASK_PARTS if room(name) == "tasks" else PROTOCOLS | {"features", "replay"} | SHARED_STRATEGY_PARTS
    assert GRAPH[name] <= SOURCES | SHARED_DATA | METRICS | own
    assert not GRAPH[name] & CONCRETE


@pytest.mark.parametrize("name", of("training", "inference", "translator", "export"))
def test_training_and_the_like_know_the_protocols_alone(name: str) -> None:
    own = {other for other in MODULES if room(other) in ("training", "inference", "translator", "export", "kernels")}
    assert GRAPH[name] <= SOURCES | SHARED_DATA | METRICS | PROTOCOLS | SHARED_TASK_PARTS | own
    assert not GRAPH[name] & CONCRETE


@pytest.mark.parametrize("name", of("compare", "comparison"))
def test_comparing_knows_no_concrete_task_and_no_command_line(name: str) -> None:
    assert "cli" not in GRAPH[name]
    assert name == "compare" or "compare" not in GRAPH[name]
    assert not GRAPH[name] & CONCRETE
    assert name == "comparison.server" or "fine_tune" not in GRAPH[name], "what looks at runs must not need what makes them"


def test_no_module_names_a_concrete_task_or_strategy() -> None:
    """They are found by name, so a new one is a new file and nothing else."""
    assert {name: found & CONCRETE for name, found in GRAPH.items() if found & CONCRETE} == {}


def test_only_the_way_in_imports_the_command_line() -> None:
    assert {name for name, found in GRAPH.items() if "cli" in found} <= {"", "__main__"}
    assert "cli" in GRAPH["__main__"]


def test_nothing_imports_the_story_but_the_ways_in() -> None:
    assert {name for name, found in GRAPH.items() if "fine_tune" in found} <= {"", "cli", "comparison.server"}


def test_import_stays_light() -> None:
    """Help answers at once because none of these is loaded for it."""
    heavy = "{'torch', 'transformers', 'pydantic', 'datasets', 'numpy', 'accelerate', 'peft'}"
    program = f"import sys, nlp_transfer, nlp_transfer.cli; print(sorted({heavy} & set(sys.modules)), 'click' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] True"


STARTERS = {"subprocess", "multiprocessing", "concurrent", "asyncio", "pty", "joblib", "multiprocess", "runpy"}
STARTING = re.compile(
    r"((os\.)?(popen|startfile|exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?)|os\.system|.*\.(multiprocessing|DataLoader)|DataLoader)"
)


def starting(source: str) -> set[str]:
    """What a source imports or names to start another program; waiting for a pipe and for the parent process starts none."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in STARTERS}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            if node.module.split(".")[0] in STARTERS and not names <= {"connection", "parent_process"}:
                found.add(node.module)
            found |= {name for name in names if STARTING.fullmatch(name)}
        elif isinstance(node, ast.Attribute) and STARTING.fullmatch(ast.unparse(node)):
            found.add(node.attr)
    return found


def test_one_module_starts_processes() -> None:
    """Each child is isolated, since the only code that starts one isolates it (`tests/faults/test_current_folder.py`)."""
    found = {name: starting(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert {name for name, what in found.items() if what} == {"child_processes"}


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import subprocess", "from subprocess import run", "import concurrent.futures", "import os\nos.system('x')",
        "from multiprocessing import get_context", "import torch\ntorch.multiprocessing.spawn", "from os import execvp",
        "from torch.utils.data import DataLoader", "import asyncio",
    ],
)  # fmt: skip
def test_every_way_of_starting_a_process_is_found(source: str) -> None:
    assert starting(source)
