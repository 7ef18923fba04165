"""Load user-defined classes and functions (`package.module:Class`), only from trusted modules.

A saved model names the class of its task, so loading a model must not import arbitrary modules. A module is trusted if it is
installed, given on the command line (`--code FILE.py`), or already imported, such as the calling script.
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
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

FORM = "package.module:Class"
FUNCTION_FORM = "package.module:function"
NAMING = ("name", "metrics", "callbacks", "optimizer", "schedule", "augment")  # settings that may name classes and functions
_CODE: dict[str, str] = {}
"""Absolute paths of the files loaded with --code, by module name."""


def load_code(files: Iterable[str | Path]) -> None:
    """Import Python files, each as a module named after the file.

    Raises:
        UserError: a file is missing, is not a Python file, cannot be imported, or has the name of another module.
    """
    for file in files:
        path = os.path.realpath(expand(file))
        name = Path(path).stem
        if _CODE.get(name) == path:
            continue
        if Path(path).suffix != ".py" or not name.isidentifier():
            raise UserError(f"--code: found {file}; allowed: a Python file with the name of a module, such as my_tasks.py")
        if not os.path.isfile(path):
            raise UserError(f"--code: there is no file {file}; allowed: a Python file that exists")
        if name in _CODE or name in sys.modules or name in sys.stdlib_module_names or _is_found_elsewhere(name, path):
            raise UserError(f"--code: {file} has the name of another module, {name}; rename the file")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a script may parse its arguments and exit
            del sys.modules[name]
            raise UserError(f"--code: {file} cannot be imported: {_describe(error, path)}") from error
        _CODE[name] = path


def load_class(setting: str, name: str, base: type) -> Any:
    """Return the class that `package.module:Class` names.

    Args:
        setting: the setting that contains the name, for messages.
        base: the required base class.

    Raises:
        UserError: the module is not trusted or cannot be imported, or it has no such class.
    """
    module, path, loaded = _load(setting, name, "class", FORM)
    module_name = module.__name__
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        fault = f"has no class {path}" if loaded is None else f"has a {path} that is not a subclass of {base.__name__}"
        known = [key for key, value in vars(module).items() if _is_defined_in(value, base, module_name)]
        raise UserError(
            f"{setting}: found {name}; {module_name} {fault}; allowed: a subclass of nlp_transfer.{base.__name__}"
            + (f"; {module_name} has {', '.join(known)}" if known else "")
        )
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(loaded.__abstractmethods__))  # type: ignore[attr-defined]
        raise UserError(f"{setting}: found {name}, which does not define {missing}; allowed: a class that defines all of them")
    return loaded


def load_function(setting: str, name: str) -> Any:
    """Return the function that `package.module:function` names.

    Use this only for settings that the user wrote. A saved record could name any function, since functions have no required base
    class.

    Raises:
        UserError: the module is not trusted or cannot be imported, or it has no such function.
    """
    module, path, loaded = _load(setting, name, "function", FUNCTION_FORM)
    if not callable(loaded):
        fault = f"has no {path}" if loaded is None else f"has a {path} that cannot be called"
        raise UserError(f"{setting}: found {name}; {module.__name__} {fault}; allowed: a function, as {FUNCTION_FORM}")
    # Settings may come from other people, who must not be able to call functions such as `os.system` under any name.
    defined = getattr(loaded, "__module__", None) if isinstance(loaded, (FunctionType, BuiltinFunctionType, type)) else None
    if {place.partition(".")[0] for place in (module.__name__, str(defined))} & sys.stdlib_module_names:
        raise UserError(f"{setting}: found {name}, which is part of Python; allowed: your own function, as {FUNCTION_FORM}")
    return loaded


def _load(setting: str, name: str, kind: str, form: str) -> tuple[ModuleType, str, Any]:
    """Return the module, the name inside it, and the object with this name (None if there is no such attribute)."""
    module_name, _, path = name.partition(":")
    if "<locals>" in path or "<lambda>" in path:
        raise UserError(
            f"{setting}: found {name}, a {kind} defined inside a function, which other processes cannot load; allowed: a {kind} "
            f"at the top level of a module, as {form}"
        )
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise UserError(f"{setting}: found {name!r}; allowed: {form}")
    module = sys.modules.get(module_name) or _import(setting, name, module_name.split("."))
    loaded: Any = module
    try:
        for part in path.split("."):
            loaded = inspect.getattr_static(loaded, part)
    except AttributeError:
        loaded = None
        if module_name == "__main__":  # the class of a training script may be in a file of --code now
            loaded = next((vars(sys.modules[name])[path] for name in _CODE if path in vars(sys.modules[name])), None)
            if loaded is None:
                raise UserError(f"{setting}: found {name}, a {kind} of the training script. {_how_to_load(path)}") from None
    return module, path, loaded


def files_for_child(documents: Any = None) -> list[str]:
    """Return the files that a child process must pass to `load_code` to load the same classes as this process.

    Args:
        documents: task, strategy and training documents that name the classes and functions.

    Raises:
        UserError: a class is in a module that other processes cannot import.
    """
    files = dict(_CODE)
    for name in sorted(set(_modules(documents)) - files.keys()):
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name != "__main__" and file and (name.split(".")[0] == __name__.split(".")[0] or _is_installed(name, file)):
            continue
        if name == "__main__" or "." in name or not file:
            raise UserError(
                f"found a class of the module {name}, which other processes cannot import. Move it to an installed package (pip "
                f"install -e FOLDER), or to a single file that you import, and name it as {FORM}"
            )
        files[name] = os.path.realpath(file)
    return list(files.values())


def _modules(documents: Any) -> Iterator[str]:
    """Yield the module of every class and function that nested documents name, as `package.module:Class`."""
    if isinstance(documents, Mapping):
        for name in (documents.get(key) for key in NAMING):
            for each in name if isinstance(name, list) else [name]:
                if isinstance(each, str) and ":" in each:
                    yield each.partition(":")[0]
        documents = list(documents.values())
    if isinstance(documents, list):
        for inner in documents:
            yield from _modules(inner)


def _is_defined_in(value: Any, base: type, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value.__module__ == module


def _how_to_load(path: str) -> str:
    return (
        f"Put {path} into a file and add --code FILE.py; in Python, pass the class: load_predictor(MODEL, task={path}). For "
        f"later runs, define it in an installed package and name it as {FORM}"
    )


def _import(setting: str, name: str, parts: list[str]) -> ModuleType:
    """Import a module and its parent packages, if all of them are trusted."""
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if prefix in sys.modules:
            continue
        location = f"{setting}: found {name}"
        try:
            spec = importlib.util.find_spec(prefix)
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is None:
            raise UserError(f"{location}; there is no module {prefix}. {_how_to_install(parts)}")
        if spec.origin is None:  # a namespace package, without code
            continue
        if not _may_import(prefix, spec):
            raise UserError(
                f"{location}; {spec.origin} is not imported, since it is not installed, and a model could name any module. "
                + _how_to_install(parts)
            )
        try:
            importlib.import_module(prefix)
        except Exception as error:
            raise UserError(f"{location}; {prefix} cannot be imported: {_describe(error, spec.origin)}") from error
    return sys.modules[".".join(parts)]


def _how_to_install(parts: list[str]) -> str:
    file = f", or name its file on the command line: --code {parts[0]}.py" if len(parts) == 1 else ""
    return (
        f"Install {parts[0]} as a package with an __init__.py in each folder (pip install -e FOLDER){file}; in Python, import "
        f"{'.'.join(parts)} first"
    )


def _may_import(name: str, spec: ModuleSpec) -> bool:
    """Whether a module is installed, or belongs to a package that is already imported."""
    assert spec.origin is not None
    parent = sys.modules.get(name.rpartition(".")[0])
    if name.split(".")[0] in sys.stdlib_module_names:
        return False
    if parent is not None and getattr(parent, "__file__", None):
        return _is_inside(spec.origin, os.path.dirname(str(parent.__file__)))
    return _is_installed(name, spec.origin)


def _is_installed(name: str, origin: str) -> bool:
    """Whether a module is in site-packages or belongs to an editable install.

    An editable install adds the project's root to the module search path, and that folder may also contain downloaded models. A
    module of an editable install is therefore accepted only if the distribution lists it, all its packages have an
    `__init__.py`, and it is not found merely because the project is the current folder.
    """
    if any(_is_inside(origin, folder) for folder in _site_folders()):
        return True
    depth = name.count(".") + (Path(origin).stem == "__init__")
    packages, root = Path(origin).parents[:depth], os.path.realpath(Path(origin).parents[depth])
    if not all((package / "__init__.py").is_file() for package in packages):
        return False
    for project, names in _editable_projects():
        roots = [os.path.realpath(project), os.path.realpath(os.path.join(project, "src"))]
        if name.split(".")[0] in names and _is_inside(origin, project) and (root in roots or root != os.path.realpath(os.curdir)):
            return True
    return False


def _is_inside(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _site_folders() -> list[str]:
    folders = [*site.getsitepackages(), site.getusersitepackages(), *map(sysconfig.get_path, ("purelib", "platlib"))]
    return [folder for folder in dict.fromkeys(folders) if folder and folder.endswith("-packages")]


def installed_packages() -> Iterable[Distribution]:
    """Return the packages that pip or another installer has put into a site-packages folder.

    A package does not count as installed if its metadata are elsewhere on the module search path, such as in a downloaded
    folder.
    """
    return distributions(path=_site_folders())


def _editable_projects() -> Iterator[tuple[str, list[str]]]:
    """Yield the folder of each editable install, with the names of its packages and modules.

    Build back ends other than setuptools write no `top_level.txt`. In that case, the package is assumed to have the project's
    name.
    """
    for distribution in installed_packages():
        try:
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
            if origin.get("dir_info", {}).get("editable"):
                names = (distribution.read_text("top_level.txt") or re.sub(r"[-.]+", "_", distribution.name)).split()
                yield url2pathname(urlparse(origin["url"]).path), names
        except (ValueError, KeyError, AttributeError, TypeError):  # metadata is damaged
            continue


def _is_found_elsewhere(name: str, path: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and (spec.origin is None or os.path.realpath(spec.origin) != path)


def _describe(error: BaseException, path: str) -> str:
    """Return the type and message of an error, and the line of the file at `path` that caused it."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if os.path.realpath(trace.tb_frame.f_code.co_filename) == os.path.realpath(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")
