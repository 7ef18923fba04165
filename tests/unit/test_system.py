"""Users without a home folder, consoles without Unicode, closed pipes, and systems that lack what Linux has."""

import ast
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import nlp_transfer
from nlp_transfer.commands.exit_status import error_prefix
from nlp_transfer.data.tokens import to_device
from nlp_transfer.experiments.plan import make_plan
from nlp_transfer.inference.file_predictor import _device_name
from nlp_transfer.models import accelerator, device
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies.multitask import Multitask
from nlp_transfer.tasks.regression import Regression
from nlp_transfer.utils import environment
from nlp_transfer.utils.atomic_files import sync
from nlp_transfer.utils.console import is_main, say_once
from nlp_transfer.utils.distributed import rank
from nlp_transfer.utils.environment import default_cache
from tests.builders import refused
from tests.helpers.models import save_tiny
from tests.helpers.processes import CHILDREN

pytestmark = pytest.mark.process

ROOT = Path(nlp_transfer.__file__).parent
BARE = CHILDREN / "bare_system"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without HOME, without an entry in the list of users, and with nothing that stands for them; temporary files."""

    def getpwuid(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "NLP_TRANSFER_CACHE", "HF_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    say_once.cache_clear()
    environment.fallback_cache.cache_clear()
    yield tmp_path / "temporary"
    environment.fallback_cache.cache_clear()


# --- folders


def test_without_a_home_caches_are_private_temporary_folders(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = default_cache()
    assert cache.is_relative_to(nobody)
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    assert default_cache() == cache
    assert capsys.readouterr().err.count(str(cache.parent)) == 1, "told once"
    environment.prepare_libraries()
    assert Path(os.environ["HF_HOME"]).is_relative_to(nobody)
    assert os.environ.pop("LOGNAME") == str(os.getuid())
    os.environ.pop("HF_HOME")


@pytest.mark.parametrize("home", ["/proc/nonexistent", "/proc", "/dev/null", "/dev/null/home"])
def test_a_read_only_home_holds_no_caches(home: str, nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    assert default_cache().is_relative_to(nobody)


def test_named_cache_folders_are_used(nobody: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg/nlp_transfer"
    environment.prepare_libraries()
    assert "HF_HOME" not in os.environ, "huggingface_hub honors XDG_CACHE_HOME by itself"
    monkeypatch.setenv("NLP_TRANSFER_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
    assert not list(nobody.iterdir())


def test_an_existing_read_only_cache_is_used(nobody: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home/.cache/nlp_transfer").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(environment, "_can_create", lambda _: False)
    assert default_cache() == tmp_path / "home/.cache/nlp_transfer"


def test_a_folder_of_another_user_is_not_trusted(nobody: Path) -> None:
    (nobody / f"nlp_transfer-{os.getuid()}").symlink_to(nobody.parent)
    assert environment.fallback_cache().parent == nobody
    assert not environment.fallback_cache().is_symlink()
    assert environment.fallback_cache().stat().st_mode & 0o777 == 0o700


def test_a_tilde_needs_a_home_folder(nobody: Path) -> None:
    with refused("~/runs", "HOME is not set"):
        environment.expand("~/runs")
    assert environment.expand("~notes.csv") == Path("~notes.csv")
    assert environment.expand("runs") == Path("runs")


def test_folders_are_synchronized_where_the_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("os.fsync", fsync)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")
    assert len(calls) == 2


# --- names


@pytest.mark.parametrize(
    ("names", "message"), [(("A", "a"), "'A' and 'a'"), (("Own",), "'own' and 'Own'"), (("aux",), "aux"), (("COM1",), "COM1")]
)
def test_tasks_whose_folders_would_collide_are_refused(names: tuple[str, ...], message: str) -> None:
    tasks = [{"name": name, "data": {"train": "x.csv"}, "task": "regression"} for name in names]
    with pytest.raises(ValueError, match=message):
        Multitask(tasks=tasks)
    assert Multitask(tasks=[{"name": "auxiliary", "data": {"train": "x.csv"}, "task": "regression"}])


def test_strategies_whose_folders_would_collide_are_refused() -> None:
    raw = {"model": "m", "data": {"train": "x.csv"}, "task": "text_classification", "output_dir": "runs"}
    ways = ["{name: lora, target_modules: [Query]}", "{name: lora, target_modules: [query]}"]
    with refused("would share the folder lora_target_modules=_query-all-0"):
        make_plan(raw, ways, [0], None, None)


# --- devices


class Float64(TorchDispatchMode):
    """Fails where a tensor of float64 is made on another device than the CPU, as MPS does."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                assert tensor.device.type == "cpu", f"{function}: float64 on {tensor.device}"
        return made


def test_a_regression_makes_no_float64_on_a_device_without_it() -> None:
    task = Regression(mean=1e9, scale=2.0)
    labels = torch.tensor([1e9 + 1, 1e9 + 3], dtype=torch.float64)
    logits = torch.zeros(2, 1)
    with Float64():
        batch = to_device({"labels": labels, "input_ids": torch.ones(2, 3, dtype=torch.long)}, torch.device("meta"))
        found = task.objective().loss(type("Outputs", (), {"logits": logits.to("meta")}), batch)
    assert batch["input_ids"].device.type == "meta"
    assert found["squared_error"].device.type == "meta"
    outputs = type("Outputs", (), {"logits": logits})
    assert float(task.objective().loss(outputs, {"labels": labels})["squared_error"]) == 0.5**2 + 1.5**2
    with pytest.raises(AssertionError, match="float64 on meta"), Float64():
        labels.to("meta")


def test_one_function_chooses_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert device.device_type() == device.inference_device() == "mps"
    assert device.resolve_precision("auto", "bert")[0] == "fp32"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (device.device_type(), device.inference_device()) == ("cuda", "cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert device.device_type() == device.inference_device() == "cpu"
    with refused("fp16; ACCELERATE_USE_CPU is set"):
        device.resolve_precision("fp16", "bert")
    monkeypatch.delenv("LOCAL_RANK")
    assert accelerator.make_accelerator(TrainingConfig(), "fp32").device.type == "cpu"


# --- other systems


def test_all_of_it_works_without_what_other_systems_lack(tmp_path: Path) -> None:
    """No resource, fcntl, pwd, fork, affinity, poll or SIGHUP: every module is imported, a model trained, and two compared."""
    save_tiny("bert", tmp_path / "tiny")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(BARE), str(ROOT.parent)))}
    done = subprocess.run(
        [sys.executable, str(BARE / "child.py"), str(tmp_path)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modules"] > 100
    assert found["missing"] == ["fork", "getuid", "sched_getaffinity"]
    assert found["steps"] == 2
    assert found["peak_memory_bytes"] > 2**20
    assert found["compared"] == {"full": 2, "bitfit": 2}
    assert found["failed"] == []


def test_text_files_name_their_encoding() -> None:
    """`open` is looked after by ruff; methods of paths are found here."""
    found = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("read_text", "write_text")
                and ast.unparse(node.func.value) != "distribution"  # metadata of a package, which is always utf-8
            ):
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                found.append((f"{path.name}:{node.lineno}", named))
    assert len(found) > 10
    assert [place for place, named in found if not named] == []


# --- standard streams


def command(script: str, *arguments: str, **popen: Any) -> subprocess.Popen[bytes]:
    start = f"import sys; sys.argv[0] = 'nlp-transfer'\nfrom nlp_transfer.cli import cli, main, run_command\n{script}"
    return subprocess.Popen([sys.executable, "-c", start, *arguments], **popen)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "script",
    [
        "main()",  # with --help: click's own writing
        "run_command(lambda: print('x' * 100_000, file=sys.STREAM))",
        "run_command(lambda: print('x', file=sys.STREAM))",  # which is written when the process ends
        "run_command(lambda: getattr(sys.STREAM, 'buffer').write(b'x' * 100_000))",
        "from nlp_transfer.utils.console import say\n"
        "sys.stderr = sys.STREAM\nrun_command(lambda: [say('x' * 9000) for _ in range(9)])",
        "from nlp_transfer import UserError\n@cli.command()\ndef fail():\n    raise UserError('x')\nsys.argv[1] = 'fail'\nmain()",
    ],
)  # fmt: skip
def test_a_closed_pipe_ends_with_141_and_no_message(stream: str, script: str) -> None:
    if (stream == "stderr") == script.startswith("main()") or (stream == "stdout" and "fail" in script):
        script, stream = script.replace("main()", "run_command(lambda: print('x', file=sys.stderr))"), "stderr"
    other = "stderr" if stream == "stdout" else "stdout"
    read, write = os.pipe()
    os.close(read)
    process = command(script.replace("STREAM", stream), "--help", **{stream: write, other: subprocess.PIPE})  # type: ignore[arg-type]
    os.close(write)
    said = [text for text in process.communicate() if text]
    assert process.returncode == 141
    assert said == []


def test_a_broken_connection_elsewhere_is_a_crash() -> None:
    process = command(
        "def f():\n    raise BrokenPipeError(32, 'socket')\nrun_command(f)", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, error = process.communicate()
    assert process.returncode == 1
    assert b"BrokenPipeError" in error


def test_closed_standard_streams_do_no_harm(tmp_path: Path) -> None:
    """Else the next file that is opened gets their number, and what is printed is written into it."""
    script = (
        "def f():\n    import os\n    from nlp_transfer.utils.console import say\n"
        "    with open(sys.argv[1], 'w', encoding='utf-8') as file:\n        print('lost')\n        say('lost')\n"
        "        os.write(1, b'lost')\n        os.write(2, b'lost')\n        file.write('kept')\n"
        "        sys.stdin.read()\nrun_command(f)"
    )

    def close() -> None:
        for number in range(3):
            os.close(number)

    process = command(script, str(tmp_path / "file"), preexec_fn=close)
    assert process.wait() == 0
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_a_console_lacks_are_written_as_escapes(encoding: str) -> None:
    script = (
        "def f():\n    import json\n    from nlp_transfer.utils.console import say, show_table, Steps\n"
        "    say('Grüße ☃ \\ud800')\n    show_table('☃', ['süß'], [['日本']])\n    print(json.dumps({'☃': 1}))\n    print('☃')\n"
        "    with Steps('☃', 2) as steps:\n        steps.advance()\nrun_command(f)"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    process = command(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    out, error = process.communicate()
    assert process.returncode == 0, error
    record, plain = out.decode(encoding).splitlines()
    assert json.loads(record) == {"☃": 1}
    assert plain == "\\u2603"
    greeting = "Gr\\xfc\\xdfe" if encoding == "ascii" else "Grüße"
    assert f"{greeting} \\u2603 \\ud800" in error.decode(encoding)


# --- errors of several processes


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, 0), ({"RANK": "3"}, 0), ({"RANK": ""}, 0), ({"RANK": "3", "WORLD_SIZE": "1"}, 0), ({"RANK": "3", "WORLD_SIZE": "4"}, 3),
])  # fmt: skip
def test_a_rank_that_an_earlier_launcher_left_silences_nothing(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank() == expected
    assert is_main() == (expected == 0)


def test_a_rank_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "abc")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("RANK: found 'abc'", "allowed: a number"):
        rank()


def test_the_name_of_a_device_is_found_on_every_kind() -> None:
    """Which decides whether predictions of an interrupted command are used; without CUDA its functions raise."""
    assert _device_name("mps") == "mps"
    assert _device_name("cpu") == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("same", "same", None), ("its own", "another", "error (rank 1): "), (None, "alone", "error (rank 1): ")],
)
def test_errors_of_other_ranks_are_printed_once(
    first: str | None, second: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{rank}/error.json"))

    monkeypatch.setattr("nlp_transfer.commands.exit_status.SAME_MESSAGE", 0.2)
    if first is not None:
        at(0)
        assert error_prefix(first) == "error: "
    at(1)
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(error_prefix(second)))  # which leaves signals as they are
    thread.start()
    thread.join()
    assert found == [expected]


def test_an_error_of_rank_1_reaches_the_user(tmp_path: Path) -> None:
    """Rank 0 has ended well before; rank 1 prints a message that only it has."""
    script = (
        "from nlp_transfer import UserError\nfrom nlp_transfer.commands import exit_status\n"
        "exit_status.SAME_MESSAGE = 0.1\n"
        "def f():\n    raise UserError('the disk of this machine is full')\nrun_command(f)"
    )
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "1/error.json")}
    environment = os.environ | launched
    process = command(script, stderr=subprocess.PIPE, env=environment)
    _, error = process.communicate()
    assert process.returncode == 2
    assert error.decode() == "error (rank 1): the disk of this machine is full\n"


def test_an_invalid_rank_does_not_hide_an_error() -> None:
    process = command("main()", "train", "nope.yaml", stderr=subprocess.PIPE, env=os.environ | {"WORLD_SIZE": "x"})
    _, error = process.communicate()
    assert process.returncode == 2
    assert error.decode().startswith("error: ")
    assert b"Traceback" not in error
