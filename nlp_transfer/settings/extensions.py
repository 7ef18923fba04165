"""Tasks and strategies from outside this package, named `package.module:Class`, and which modules may be imported for them.

A saved model names the class of its task, so a name must not be able to import just any module. What may be imported is code
that the user has installed, or named on the command line (`--code FILE.py`). What is imported in this process already, such as
the script that calls this package, is used as it is.
"""

import importlib
import importlib.util
import inspect
import json
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

FORM = "package.module:Class"
_CODE: dict[str, str] = {}
"""Files that were given with --code, as absolute paths by the names of their modules."""


def load_code(files: Iterable[str | Path]) -> None:
    """Import files that the user named, each as a module that is called like the file.

    Raises:
        UserError: a file is missing, is no Python, raises an error, or is called like another module.
    """
    for file in files:
        path = os.path.realpath(expand(file))
        name = Path(path).stem
        if _CODE.get(name) == path:
            continue
        if Path(path).suffix != ".py" or not name.isidentifier():
            raise UserError(f"--code: found {file}; allowed: a Python file that is called like a module, such as my_tasks.py")
        if not os.path.isfile(path):
            raise UserError(f"--code: there is no file {file}; allowed: a Python file that exists")
        if name in _CODE or name in sys.modules or name in sys.stdlib_module_names or _is_found_elsewhere(name, path):
            raise UserError(f"--code: {file} is called like another module, {name}; allowed: another name for the file")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a script may parse its arguments and end
            del sys.modules[name]
            raise UserError(f"--code: {file} cannot be imported: {_describe(error, path)}") from error
        _CODE[name] = path


def load_class(setting: str, name: str, base: type) -> Any:
    """Return the class that `package.module:Class` names.

    Args:
        setting: where the name stands, for messages.
        base: what the class must derive from.

    Raises:
        UserError: the module may not be imported or cannot be, or it has no such class.
    """
    module_name, _, path = name.partition(":")
    if "<locals>" in path:
        raise UserError(
            f"{setting}: found {name}, a class that is defined inside a function, where no other process can find it; allowed: "
            f"a class at the top level of a module, as {FORM}"
        )
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise UserError(f"{setting}: found {name!r}; allowed: {FORM}")
    found: Any = sys.modules.get(module_name) or _import(setting, name, module_name.split("."))
    try:
        for part in path.split("."):
            found = inspect.getattr_static(found, part)
    except AttributeError:
        found = _in_code(path) if module_name == "__main__" else None
    if found is None and module_name == "__main__":
        raise UserError(f"{setting}: found {name}, a class of the script that trained. {_elsewhere(path)}")
    if not (isinstance(found, type) and issubclass(found, base)):
        what = f"has no class {path}" if found is None else f"has a {path} that is no {base.__name__}"
        kinds = [key for key, value in vars(sys.modules[module_name]).items() if _is_own(value, base, module_name)]
        raise UserError(
            f"{setting}: found {name}; {module_name} {what}; allowed: a class that derives from nlp_transfer's {base.__name__}"
            + (f"; {module_name} has {', '.join(kinds)}" if kinds else "")
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))  # type: ignore[attr-defined]
        raise UserError(f"{setting}: found {name}, which does not define {missing}; allowed: a class that defines all of them")
    return found


def files_for_child(documents: Any = None) -> list[str]:
    """Return the files that a process started by this one must load to find the same classes.

    Args:
        documents: of tasks and strategies whose classes were loaded here; those of --code are always among the files.

    Raises:
        UserError: a class comes from a module that another process cannot import.
    """
    files = dict(_CODE)
    for name in sorted(set(_modules(documents)) - files.keys()):
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name != "__main__" and file and (name.split(".")[0] == __name__.split(".")[0] or _is_installed(name, file)):
            continue
        if name == "__main__" or "." in name or not file:
            raise UserError(
                f"found a class of the module {name}, which other processes cannot import. Put it into an installed package "
                f"(pip install -e FOLDER), or into one file that is imported, and name it as {FORM}"
            )
        files[name] = os.path.realpath(file)
    return list(files.values())


def _modules(documents: Any) -> Iterator[str]:
    """The modules that `name: package.module:Class` names, at any depth."""
    if isinstance(documents, Mapping):
        name = documents.get("name")
        if isinstance(name, str) and ":" in name:
            yield name.partition(":")[0]
        documents = list(documents.values())
    if isinstance(documents, list):
        for inner in documents:
            yield from _modules(inner)


def _is_own(value: Any, base: type, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value.__module__ == module


def _in_code(path: str) -> Any:
    """A class that was defined in a script and is in a file given with --code now."""
    return next((vars(sys.modules[name])[path] for name in _CODE if path in vars(sys.modules[name])), None)


def _elsewhere(path: str) -> str:
    return (
        f"Put {path} into a file and name it: --code FILE.py; in Python pass the class: load_predictor(MODEL, task={path}). For "
        f"later runs define it in an installed package, as {FORM}"
    )


def _import(setting: str, name: str, parts: list[str]) -> ModuleType:
    """Import a module step by step, each step only from a place that is allowed."""
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if prefix in sys.modules:
            continue
        place = f"{setting}: found {name}"
        try:
            spec = importlib.util.find_spec(prefix)
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is None:
            raise UserError(f"{place}; there is no module {prefix}. {_how_to_install(parts)}")
        if spec.origin is None:  # a namespace package, which has no code
            continue
        if not _may_import(prefix, spec):
            raise UserError(
                f"{place}; {spec.origin} is not imported, since it is not installed and a model could name any module. "
                + _how_to_install(parts)
            )
        try:
            importlib.import_module(prefix)
        except Exception as error:
            raise UserError(f"{place}; {prefix} cannot be imported: {_describe(error, spec.origin)}") from error
    return sys.modules[".".join(parts)]


def _how_to_install(parts: list[str]) -> str:
    file = f", or name its file on the command line: --code {parts[0]}.py" if len(parts) == 1 else ""
    return (
        f"Install {parts[0]} as a package whose folders have an __init__.py (pip install -e FOLDER){file}; in Python, import "
        f"{'.'.join(parts)} before"
    )


def _may_import(name: str, spec: ModuleSpec) -> bool:
    """Whether a module that was found belongs to code that the user installed, or to a package that is imported already."""
    assert spec.origin is not None
    parent = sys.modules.get(name.rpartition(".")[0])
    if name.split(".")[0] in sys.stdlib_module_names:
        return False
    if parent is not None and getattr(parent, "__file__", None):
        return _is_inside(spec.origin, os.path.dirname(str(parent.__file__)))
    return _is_installed(name, spec.origin)


def _is_installed(name: str, origin: str) -> bool:
    """Whether a file is in a folder of installed packages, or belongs to a package of an editable install.

    An editable install puts the root of a project among the places that are searched, and downloaded models may lie in any
    folder there. Its code is therefore only what the distribution names as its packages and modules, each package with its
    `__init__.py`; and nothing that is found only because its folder is the current one.
    """
    if any(_is_inside(origin, folder) for folder in _site_folders()):
        return True
    depth = name.count(".") + (Path(origin).stem == "__init__")
    packages, root = Path(origin).parents[:depth], os.path.realpath(Path(origin).parents[depth])
    if not all((package / "__init__.py").is_file() for package in packages):
        return False
    for project, names in _editable_projects():
        usual = [os.path.realpath(project), os.path.realpath(os.path.join(project, "src"))]
        if name.split(".")[0] in names and _is_inside(origin, project) and (root in usual or root != os.path.realpath(os.curdir)):
            return True
    return False


def _is_inside(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _site_folders() -> list[str]:
    folders = [*site.getsitepackages(), site.getusersitepackages(), *map(sysconfig.get_path, ("purelib", "platlib"))]
    return [folder for folder in dict.fromkeys(folders) if folder and folder.endswith("-packages")]


def _editable_projects() -> Iterator[tuple[str, list[str]]]:
    """The folders of the projects that were installed with `pip install -e`, each with the names of its packages and modules.

    Builders other than setuptools write no `top_level.txt`; their package is called like the project.
    """
    for distribution in distributions(path=_site_folders()):
        try:
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
            if origin.get("dir_info", {}).get("editable"):
                names = (distribution.read_text("top_level.txt") or re.sub(r"[-.]+", "_", distribution.name)).split()
                yield url2pathname(urlparse(origin["url"]).path), names
        except (ValueError, KeyError, AttributeError, TypeError):  # not written by an installer
            continue


def _is_found_elsewhere(name: str, path: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and (spec.origin is None or os.path.realpath(spec.origin) != path)


def _describe(error: BaseException, path: str) -> str:
    """An error with the last line of a file in which it came up."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if os.path.realpath(trace.tb_frame.f_code.co_filename) == os.path.realpath(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")
