"""The layers of the package: who may import whom, read from the source with `ast`; and what must stay light to import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nlp_transfer
from nlp_transfer.settings.named_settings import NamedSettings
from nlp_transfer.tasks import Task
from nlp_transfer.tasks.common.text_generation import TextGenerationTask

ROOT = Path(nlp_transfer.__file__).parent
PACKAGE = "nlp_transfer"

# A module may import its own layer and those before it. The longest prefix of its name counts.
LAYERS = (
    ("utils", "security"),
    ("settings", "hub.client", "hub.responses", "kernels"),
    ("data", "models", "evaluation.metrics"),
    ("tasks",),
    ("strategies",),
    ("saved_models",),
    ("training", "inference", "evaluation"),
    ("report", "hub"),
    ("run",),
    ("fine_tune",),
    ("experiments", "sklearn", "export", "serving"),
    ("commands",),
    ("cli",),
    ("__main__", ""),
)


def module_name(path: Path) -> str:
    """`data.splits` for data/splits.py, `data` for data/__init__.py, an empty text for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(source: str) -> set[str]:
    """The package's own modules that a source imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix(f"{PACKAGE}.") in MODULES else str(node.module) for name in inner}
    own = {name.removeprefix(PACKAGE).removeprefix(".") for name in found if name.split(".")[0] == PACKAGE}
    assert not own - set(MODULES), own - set(MODULES)
    return own


GRAPH = {name: imports(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
METHODS = {
    name for name in MODULES if re.fullmatch(r"(tasks|strategies)\.(?!common$)\w+", name)
}  # one for each task and strategy


def layer(name: str) -> int:
    """The number of the layer that a module belongs to."""
    found = {
        prefix: number
        for number, names in enumerate(LAYERS)
        for prefix in names
        if f"{name}.".startswith(f"{prefix}.") or not prefix
    }
    return found[max(found, key=len)]


def method(name: str) -> str | None:
    """The task or strategy that a module is a part of."""
    return next((other for other in METHODS if f"{name}.".startswith(f"{other}.")), None)


def test_the_whole_package_was_read() -> None:
    assert len(MODULES) > 100
    assert sum(map(len, GRAPH.values())) > 500
    assert len(METHODS) > 15
    assert all(any(f"{name}.".startswith(f"{prefix}.") for name in MODULES) for names in LAYERS for prefix in names if prefix)


def test_the_root_holds_four_modules() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py", "fine_tune.py"}


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import nlp_transfer.cli\nfrom nlp_transfer.settings import registry\n"
    source += "def f():\n    from nlp_transfer.utils.errors import UserError\n"
    assert imports(source) == {"cli", "settings.registry", "utils.errors"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_to_lower_layers(name: str) -> None:
    assert {other for other in GRAPH[name] if layer(other) > layer(name)} == set()


@pytest.mark.parametrize("name", MODULES)
def test_a_task_or_strategy_is_imported_by_its_own_parts_alone(name: str) -> None:
    """They are found by name, so a new one is a new file and nothing else."""
    assert {other for other in GRAPH[name] if method(other) not in (None, method(name))} == set()


def test_no_imports_are_circular() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circular: {' -> '.join((*path, name))}"
        if name not in done:
            for other in GRAPH[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_protocols_are_small() -> None:
    """Public members of a protocol's base class, without those of `Settings`, which every group of settings has."""
    from nlp_transfer.settings.base_settings import Settings
    from nlp_transfer.strategies import Strategy

    members = {name for name in {*vars(Strategy), *Strategy.model_fields} if name[0] != "_" and not name.startswith("model_")}
    members -= set(dir(Settings))
    assert members == {
        "traits", "check", "prepare_model", "prepare_data", "param_groups", "next_phase", "loss", "export_model",
        "auxiliary_jobs",
    }  # fmt: skip
    assert len(members) <= 9


def test_strategies_attach_nothing_to_models() -> None:
    """What a strategy remembers is in its private attributes or in a module of its own."""
    for name, path in MODULES.items():
        if name.startswith("strategies."):
            assigned = [
                ast.unparse(target)
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Attribute)
                and ast.unparse(target.value) in ("model", "trained", "adapted", "view.model")
            ]
            assert assigned == [], name


def test_no_two_files_share_a_name() -> None:
    stems = [path.stem for path in MODULES.values() if path.stem != "__init__"]
    assert sorted(stems) == sorted(set(stems))
    assert not set(stems) & set(sys.stdlib_module_names), "named like a module of the standard library"


def test_import_stays_light() -> None:
    """Help answers at once because none of these is loaded for it."""
    heavy = "{'torch', 'transformers', 'pydantic', 'datasets', 'numpy', 'accelerate', 'peft'}"
    program = f"import sys, nlp_transfer, nlp_transfer.cli; print(sorted({heavy} & set(sys.modules)), 'click' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] True"


STARTERS = {"subprocess", "multiprocessing", "concurrent", "asyncio", "pty", "joblib", "multiprocess", "runpy"}
WAITING = {"Future", "ThreadPoolExecutor", "as_completed"}
STARTING = re.compile(
    r"((os\.)?(popen|startfile|exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?)|os\.system|.*\.(multiprocessing|DataLoader)|DataLoader)"
)


def starting(source: str) -> set[str]:
    """What a source imports or names to start another program; waiting for one starts none."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in STARTERS}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            if node.module.split(".")[0] in STARTERS and not names <= WAITING:
                found.add(node.module)
            found |= {name for name in names if STARTING.fullmatch(name)}
        elif isinstance(node, ast.Attribute) and STARTING.fullmatch(ast.unparse(node)):
            found.add(node.attr)
    return found


def test_one_module_starts_processes() -> None:
    """Each child is isolated, since the only code that starts one isolates it (`tests/faults/test_current_folder.py`)."""
    found = {name: starting(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert {name for name, what in found.items() if what} == {"security.child_processes"}


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


def test_kernels_have_one_entry_point() -> None:
    """Other modules import `nlp_transfer.kernels` alone, and so do not know which kernels there are."""
    users = {name: {other for other in GRAPH[name] if other.startswith("kernels")} for name in MODULES}
    users = {name: found for name, found in users.items() if found and not name.startswith("kernels")}
    assert len(users) > 3
    assert set().union(*users.values()) == {"kernels"}


def members(protocol: type, base: type) -> set[str]:
    """The public members of a protocol, without its settings and those of the base class of settings."""
    fields = set(getattr(protocol, "model_fields", ()))
    return {name for name in {*dir(protocol), *protocol.__annotations__} - set(dir(base)) - fields if name[0] != "_"}


def test_the_task_protocol_is_small() -> None:
    found = members(Task, NamedSettings)
    assert len(found) <= 15, sorted(found)
    assert {"traits", "fit", "encode", "predict", "scorer"} <= found


def recognized(source: str, known: set[str]) -> set[str]:
    """What a source asks a task for besides its protocol: attributes of names that end in `task`, also in hasattr and getattr."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_task(node.value):
            found |= {node.attr} - known
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr") and is_task(node.args[0]):
            found |= {str(argument.value) for argument in node.args[1:2] if isinstance(argument, ast.Constant)}
    return found


def is_task(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "task") or (isinstance(node, ast.Attribute) and node.attr == "task")


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("tasks")])
def test_no_module_recognizes_a_task(name: str) -> None:
    known = {*members(Task, NamedSettings), "max_length", "_changed", "_unused", *dir(NamedSettings), *dir(dict)}
    if name.startswith("inference."):
        known |= members(TextGenerationTask, NamedSettings)
    assert recognized(MODULES[name].read_text(encoding="utf-8"), known) == set()


@pytest.mark.parametrize(
    "source", ["task.threshold", "job.task.labels", "hasattr(task, 'head')", "getattr(run.task, 'labels', None)"]
)
def test_recognition_of_a_task_is_found(source: str) -> None:
    assert recognized(source, {"fit"})
