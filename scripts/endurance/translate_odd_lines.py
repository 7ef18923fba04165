"""Check that `translate` keeps the lines, their order and a constant memory for unusual lines and after it was killed.

    python scripts/endurance/translate_odd_lines.py [LINES] [MODEL]

Writes a file of LINES lines (default 10,000) with empty, very long and unusual ones, and translates it with MODEL (default: a
tiny random one). The command is killed once halfway and run again. Prints the number of lines in and out, how many of a sample
equal the translation of the line by itself, and the memory over time. Takes a few minutes on two CPU cores with the defaults;
with another model, about as long as translating three times as many sentences.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from nlp_transfer import load_translator
from nlp_transfer.inference.writers import LINE_END
from tests.end_to_end.test_translate import BLANK, ODD, make_loud, train
from tests.helpers.models import WORDS, save_tiny

EVERY = 0.1  # seconds between two looks at the memory
SAMPLE = 200
LONG, HUGE = 3_000, 50_000  # characters of a line in a hundred, and of a line in a thousand


def make_lines(count: int) -> list[str]:
    """Make lines of which 5 % are blank, 5 % unusual and 1 % long."""
    generator = random.Random(0)
    odd = [text.replace("\n", " ") for text in ODD]
    made = []
    for i in range(count):
        size = HUGE if i % 1000 == 500 else LONG if i % 100 == 50 else 0
        words = generator.choices(WORDS, k=size // 4 or generator.randint(1, 12))
        if size:  # a sentence now and then, and long stretches without any
            words = [f"{word}." if generator.random() < 0.05 else word for word in words]
        lines = {0: generator.choice(BLANK), 1: generator.choice(odd)}
        made.append(" ".join(words) if size else lines.get(i % 20, " ".join(words)))
    return made


def resident(process: int) -> int:
    """Return the memory of a process in KiB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


class Command:
    """`nlp-transfer translate` in a child process whose memory is tracked."""

    def __init__(self, model: Path, source: Path, output: Path) -> None:
        self.output, self.part = output, output.with_name(f".part-{output.name}")
        self.part.unlink(missing_ok=True)
        self.seen: list[tuple[int, int]] = []  # bytes written, KiB
        self.started = time.monotonic()
        arguments = ["translate", model, "--input", source, "--output", output]
        self.process = subprocess.Popen([sys.executable, "-m", "nlp_transfer", *map(str, arguments)])

    def run(self, until: int | None = None) -> int:
        """Run to the end, or kill the command once so many bytes are written; return the exit status."""
        while self.process.poll() is None:
            written = self.part.stat().st_size if self.part.exists() else 0
            if kib := resident(self.process.pid):
                self.seen.append((written, kib))
            if until is not None and written >= until:
                self.process.send_signal(signal.SIGKILL)
                break
            time.sleep(EVERY)
        return self.process.wait()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def memory_at(self, share: float) -> float:
        """Return the memory in MiB when a share of the output was written."""
        whole = self.output.stat().st_size
        return next((kib for written, kib in self.seen if written >= share * whole), self.seen[-1][1]) / 1024


def read(path: Path) -> list[str]:
    """Return the complete lines."""
    return path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]


def main(count: int, model: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None:
            model = train(folder / "tiny", save_tiny("bert", folder / "encoder"))
            make_loud(model / "model")
        lines = make_lines(count)
        source, output = folder / "in.txt", folder / "out.txt"
        source.write_bytes("".join(f"{line}\n" for line in lines).encode())
        print(f"{count:,} lines, {source.stat().st_size:,} bytes, {sum(not line.strip() for line in lines):,} of them blank")

        first = Command(model, source, output)
        status = first.run(until=source.stat().st_size // 3)
        assert status == -signal.SIGKILL, f"it ended with {status} before a third was written"
        assert not output.exists(), "a killed command left its output half-written"
        before = read(first.part)
        print(f"killed after {first.seconds:.0f} s and {len(before):,} lines; no output, a part file beside it")

        second = Command(model, source, output)
        status = second.run()
        assert status == 0, f"it ended with {status}"
        assert not second.part.exists(), "a part file was left"
        found = read(output)
        print(f"run again: {second.seconds:.0f} s, {len(lines):,} lines in, {len(found):,} lines out")
        assert len(found) == len(lines)
        assert found[: len(before)] == before, "the killed command wrote something else"
        assert all(LINE_END.sub(" ", line) == answer for line, answer in zip(lines, found, strict=True) if not line.strip())
        for share in (0.1, 0.5, 1.0):
            print(f"memory at {share:4.0%}: {second.memory_at(share):6.0f} MiB")
        print(f"memory at most: {max(kib for _, kib in second.seen) / 1024:.0f} MiB")

        translate = load_translator(model)
        rows = random.Random(1).sample(
            [row for row, line in enumerate(lines) if 0 < len(line.strip()) < LONG], min(SAMPLE, count // 2)
        )
        same = sum(LINE_END.sub(" ", translate([lines[row]])[0]) == found[row] for row in rows)
        print(
            f"{same} of {len(rows)} lines are what the line alone is translated to; {len({found[row] for row in rows})} different"
        )
        assert same >= 0.95 * len(rows), "lines are out of order"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
