"""Is a push all or nothing, whatever happens on its way?

    python scripts/endurance/push_faults.py [PUSHES] [SEED]

Pushes a tiny model PUSHES times (default 100) to a hub on the loopback interface whose calls fail at random: errors, requests
for patience, connections cut in the middle of a request or an answer, answers lost after the work was done, commits by others in
between, bytes that arrive changed, a token that is withdrawn. After each push the repository must be absent, empty, as it was, or
hold all of the model; what holds all of it is loaded, and must answer as the model does. A push that said it was made must be
whole. Nothing is waited for, so that it takes about a second a push. Ends with status 1 if anything is otherwise.
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
from tests.conftest import sentiment_rows, write_csv
from tests.hub import Hub, RandomFaults
from tests.hub.client import TOKEN, connected
from tests.models import save_tiny

NAME = "ann/reviews"
TEXTS = ["a good film", "the awful plot was dull", "the cat sat on the mat"]
USUAL = ("500", "503", "429", "409", "cut-request", "500-after", "cut-answer", "drop", "rival")
BEFORE = {"README.md": b"before", "model.safetensors": b"before", "pytorch_model.bin": b"older", "notes.txt": b"kept"}


def make_run(folder: Path) -> Path:
    write_csv(folder / "train.csv", sentiment_rows(60))
    return fine_tune(
        model=str(save_tiny("bert", folder / "tiny")),
        data={"train": str(folder / "train.csv")},
        task="text_classification",
        training={"max_steps": 16, "learning_rate": 0.01},
        output_dir=str(folder / "run"),
    ).output_dir


def faults_of(seed: int) -> RandomFaults:
    """Most pushes meet a bad hub; every fourth one that also damages what it is sent, and is otherwise good enough to undo that;
    every fifth one that withdraws the token."""
    generator = random.Random(seed)
    if seed % 4 == 0:
        return RandomFaults(seed, generator.uniform(0.05, 0.2), (*USUAL, "corrupt", "corrupt", "corrupt"))
    kinds = (*USUAL, "401") if seed % 5 == 0 else USUAL
    return RandomFaults(seed, generator.uniform(0.05, 0.6), kinds)


def what_is_there(hub: Hub, wanted: dict[str, bytes], before: dict[str, bytes] | None) -> str:
    """In a word. Files that others have put there in between are left out of account."""
    if ("models", NAME) not in hub.repositories:
        return "absent"
    files = {name: content for name, content in hub.repository(NAME).files().items() if name != "rival.txt"}
    if all(files.get(name) == content for name, content in wanted.items()):
        return "whole"
    if set(files) <= {".gitattributes"}:
        return "empty"
    return "as before" if files == before else "half"


def loads(hub: Hub, folder: Path, answers: list[dict[str, object]]) -> bool:
    for name, content in hub.repository(NAME).files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return load_predictor(folder)(TEXTS) == answers


def main(pushes: int, seed: int) -> int:
    found: Counter[str] = Counter()
    met: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make_run(folder)
        answers = load_predictor(run)(TEXTS)
        wanted = {path: content.bytes() for path, content in make_package(run, NAME).files.items()}
        for number in range(pushes):
            with connected(folder) as (hub, _):
                before = hub.seed(NAME, BEFORE, private=True).files() if number % 2 else None
                faults = faults_of(seed + number)
                hub.faults = [faults]
                try:
                    pushed, said = push(run, NAME), "pushed"
                    exact = hub.repository(NAME).files(pushed.commit)
                    kept = all(exact.get(path) == content for path, content in wanted.items())
                except UserError as error:
                    kept, said = True, "refused"
                    print(f"{number}: {' '.join(str(error).split())}", file=sys.stderr)
                there = what_is_there(hub, wanted, before)
                met.update(fault.split()[0] for fault in faults.struck)
                found[f"{said}, {there}"] += 1
                one = (
                    sum(commit.title.startswith("Push ") for commit in hub.repository(NAME).history()) if there == "whole" else 1
                )
                fine = there in ({"whole"} if said == "pushed" else {"absent", "empty", "as before", "whole"})
                if not (fine and kept and one == 1 and (there != "whole" or loads(hub, folder / f"again-{number}", answers))):
                    wrong.append(f"push {number} (seed {seed + number}): {said}, {there}, {one} commits; {faults.struck}")
                assert TOKEN in hub.users or any(fault.startswith("401") for fault in faults.struck)
    print(f"{pushes} pushes, {sum(met.values())} faults: " + ", ".join(f"{count} x {kind}" for kind, count in met.most_common()))
    print("\n".join(f"{count:4} {what}" for what, count in found.most_common()))
    print("\n".join(wrong) if wrong else "each was all or nothing")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
