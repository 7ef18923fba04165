"""Check that a push is atomic on a hub whose calls fail at random.

    python scripts/endurance/push_faults.py [PUSHES] [SEED]

Pushes a tiny model PUSHES times (default 100) to a hub on the loopback interface. The faults are error statuses, rate limits,
connections that break inside a request or an answer, lost answers, commits by others, damaged bytes and a revoked token. After
each push the repository must be absent, empty, unchanged, complete, or damaged with a report that names the commit. A complete
repository must load and give the predictions of the model. Waits are skipped, so that a push takes about a second. The exit
status is 1 if a check fails.
"""

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.conftest  # noqa: F401  (keeps everything else offline)
from nlp_transfer import UserError, fine_tune, load_predictor, push
from nlp_transfer.hub.package import make_package
from tests.builders import sentiment_rows, write
from tests.helpers.hub import Hub, RandomFaults
from tests.helpers.hub.client import connected
from tests.helpers.models import save_tiny

NAME = "ann/reviews"
TEXTS = ["a good film", "the awful plot was dull", "the cat sat on the mat"]
USUAL = ("500", "503", "429", "409", "cut-request", "500-after", "cut-answer", "drop", "rival")
BEFORE = {"README.md": b"before", "model.safetensors": b"before", "pytorch_model.bin": b"older", "notes.txt": b"kept"}


def make_run(folder: Path) -> Path:
    write(folder / "train.csv", sentiment_rows(60))
    return fine_tune(
        model=str(save_tiny("bert", folder / "tiny")),
        data={"train": str(folder / "train.csv")},
        task="text_classification",
        training={"max_steps": 16, "learning_rate": 0.01},
        output_dir=str(folder / "run"),
    ).output_dir


def faults_of(seed: int) -> RandomFaults:
    """Return the faults of a push. Every fourth hub also damages files, and every fifth one also revokes the token."""
    kinds = (*USUAL, *(("corrupt",) * 3 if seed % 4 == 0 else ()), *(("401",) if seed % 5 == 0 else ()))
    return RandomFaults(seed, random.Random(seed).uniform(0.02, 0.3), kinds)


def outcome(hub: Hub, expected: dict[str, bytes], before: dict[str, bytes] | None, message: str) -> str:
    """Return the state of the repository in one word. Files of other commits are ignored."""
    if ("models", NAME) not in hub.repositories:
        return "absent"
    files = {name: content for name, content in hub.repository(NAME).files().items() if name != "rival.txt"}
    if expected.items() <= files.items():
        return "complete"
    if set(files) <= {".gitattributes"}:
        return "empty"
    if files == before:
        return "unchanged"
    return "damaged" if hub.commit("models", NAME) in message else "inconsistent"


def load_again(hub: Hub, folder: Path) -> list[dict[str, object]]:
    """Return the predictions of the model in the repository."""
    for name, content in hub.repository(NAME).files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return load_predictor(folder)(TEXTS)


def main(pushes: int, seed: int) -> int:
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make_run(folder)
        predictions = load_predictor(run)(TEXTS)
        with make_package(run, NAME) as package:
            expected = {path: file.read_bytes() for path, file in package.files.items()}
        for number in range(pushes):
            with connected(folder) as (hub, _):
                before = hub.seed(NAME, BEFORE, private=True).files() if number % 2 else None
                faults = faults_of(seed + number)
                hub.faults = [faults]
                message = ""
                try:
                    push(run, NAME)
                except UserError as error:
                    message = " ".join(str(error).split())
                    print(f"{number}: {message}", file=sys.stderr)
                state = outcome(hub, expected, before, message)
                kinds.update(fault.split()[0] for fault in faults.struck)
                outcomes[f"{'refused' if message else 'pushed'}, {state}"] += 1
                titles = [commit.title for commit in hub.repository(NAME).history()] if state == "complete" else ["Push"]
                is_atomic = state != "inconsistent" if message else state == "complete"
                is_single = sum(title.startswith("Push") for title in titles) == 1
                if (
                    not is_atomic
                    or not is_single
                    or (state == "complete" and load_again(hub, folder / f"again-{number}") != predictions)
                ):
                    failures.append(f"push {number} (seed {seed + number}): {message or 'pushed'}, {state}; {faults.struck}")
    print(f"{pushes} pushes, {kinds.total()} faults: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()))
    print("\n".join(f"{count:4} {state}" for state, count in outcomes.most_common()))
    print("\n".join(failures) if failures else "each push was atomic")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
