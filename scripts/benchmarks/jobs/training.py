"""Speed of classification training in rows per second: this project and transformers' Trainer."""

from typing import Any

from jobs.common import Setting, work_per_token
from protocol import Answer, Worker, WorkerError, medians, take_turns
from tables import megabytes, ratios, spread

# A sampler that groups by length goes through batches from long to short, so a turn holds a whole such group.
DATA: dict[str, dict[str, Any]] = {
    "banking77": {"title": "Banking77", "batch_size": 32, "max_length": 128, "steps": 50},
    "bbc": {"title": "BBC News", "batch_size": 16, "max_length": 256, "steps": 27},
}
SMALL = {"batch_size": 4, "max_length": 32, "steps": 3}  # so that a trial with models of common size is short
ABOUT = """Each worker trains the same checkpoint on the same rows and takes turns of so many optimizer steps with the others.
Warmup steps at the beginning of a turn do not count. Times are those of complete cycles from one optimizer step to the next,
including the preparation of batches. Rows per second are tokens per second (without padding) divided by the mean number of
tokens in a row, since rows in a turn may be longer or shorter than average. No worker evaluates or saves. `share` relates the
operations that the tokens need (6 for each weight of the encoder's linear layers, and the products of attention) per second
to the speed of matrix products of the model's shapes in bf16 on this machine at the same time. A worker that skips some of
these operations is credited with them."""
PLAIN = "Trainer, as the example script: fp32, padded to {max_length}"
DYNAMIC = "Trainer, fp32, batches padded to their longest row"


def run(setting: Setting) -> dict[str, Any]:
    tables, notes, raw = [], [], {}
    for name in setting.data_sets:
        job = DATA[name] | (SMALL if setting.quick else {})
        rows, more, raw[name] = _compare(setting, name, job)
        tables.append({"title": f"{job['title']}, batch {job['batch_size']}, at most {job['max_length']} tokens", "rows": rows})
        notes += more
    return {"about": ABOUT, "tables": tables, "notes": notes, "turns": raw}


def _compare(setting: Setting, name: str, job: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    data = setting.data(name)
    steps = setting.steps or job["steps"]
    common = {"train": data["files"]["train"], "max_length": job["max_length"], "batch_size": job["batch_size"]}

    def peer(title: str, **settings: Any) -> Worker:
        return setting.worker(f"{name} {title}", "transformers_training.py", model=data["model"], **common, **settings)

    def ours(title: str, **training: Any) -> Worker:
        return setting.worker(f"{name} {title}", "ours_training.py", model=data["model"], **common, training=training)

    def request(worker: Worker, _: int) -> dict[str, int]:
        # Random batches vary less between steps than batches sorted by length, so fewer steps suffice.
        slow = worker.name in names
        return {"warmup": 2, "steps": max(1, steps // 3) if slow else steps}

    names = [f"{name} {PLAIN.format(**job)}", f"{name} {DYNAMIC}"]
    tried: dict[str, str] = {}
    workers: list[Worker] = []
    try:
        for dropout in (None, 0.0):
            worker, tried[_dropout(dropout)] = tune(setting, peer, dropout, steps)
            workers.append(worker)
        workers.insert(0, ours("here, defaults"))
        workers.insert(1, ours("here, attention dropout 0", attention_dropout=0.0))
        workers.append(peer(PLAIN.format(**job), stock=True, pad_to_max=True))
        workers.append(peer(DYNAMIC, stock=True))
        products = setting.worker(
            f"{name} products", "products.py", hidden=data["hidden"], inner=data["inner"],
            tokens=round(job["batch_size"] * data["mean_tokens"]),
        )  # fmt: skip
        workers.append(products)
        found = take_turns(workers, setting.repeats, lambda w, i: {"seconds": 0.5} if w is products else request(w, i))
    finally:
        for worker in workers:
            worker.close()
    rate = found.pop(products.name)
    rows = _rows(found, data, rate, name)
    speed = {kind: medians(rate, kind) for kind in ("bfloat16", "float32")}
    notes = [
        f"{job['title']}: {data['mean_tokens']:.1f} tokens a row on average; products of {job['batch_size']} such rows by "
        f"{data['hidden']} x {data['inner']} reach {speed['bfloat16']:.0f} GFLOP/s in bf16, {speed['float32']:.0f} in fp32",
        *[f"{job['title']}, tuning the Trainer, {dropout}, tokens a second: {text}" for dropout, text in tried.items()],
    ]
    return rows, notes, {"turns": found, "products": rate}


def tune(setting: Setting, peer: Any, dropout: float | None, steps: int) -> tuple[Worker, str]:
    """Find the fastest Trainer settings for this data: first the attention, then the number of loader processes.

    Returns:
        The fastest worker, still running, and a description of what was tried.
    """
    found: dict[str, float] = {}
    alive: dict[str, Worker] = {}

    def better(choices: dict[str, dict[str, Any]]) -> str:
        for title, settings in choices.items():
            alive[title] = peer(f"Trainer, tuned, {_dropout(dropout)} ({title})", attention_dropout=dropout, **settings)
        turns = take_turns(list(alive.values()), 1 if setting.quick else 2, {"warmup": 2, "steps": steps})
        rates = {title: medians(turns[worker.name], "tokens_per_second") for title, worker in alive.items()}
        best = max(rates, key=lambda title: rates[title])
        for title in [title for title in alive if title != best]:
            alive.pop(title).close()
        found.update(rates)
        return best

    try:
        attention = better({kind: {"attention": kind} for kind in ("sdpa", "eager")})
        best = better({f"{attention}, 2 loaders": {"attention": attention, "loader_workers": 2}})
    except WorkerError:
        for worker in alive.values():
            worker.close()
        raise
    return alive[best], ", ".join(f"{title} {rate:,.0f}" for title, rate in found.items())


def _dropout(value: float | None) -> str:
    return "dropout of the checkpoint" if value is None else f"attention dropout {value:g}"


def _rows(found: dict[str, list[Answer]], data: Answer, rate: list[Answer], name: str) -> list[dict[str, Any]]:
    rows = []
    ours = [library for library in found if library.startswith(f"{name} here")]
    for library, answers in found.items():
        speed = [answer["tokens_per_second"] for answer in answers]
        row: dict[str, Any] = {
            "library": library.removeprefix(f"{name} "),
            "rows/s": spread([value / data["mean_tokens"] for value in speed]),
            "step, ms": spread([1000 * answer["seconds"] / answer["steps"] for answer in answers]),
        }
        for i, one in enumerate(ours):
            mine = [answer["tokens_per_second"] for answer in found[one]]
            row["defaults / library" if i == 0 else "dropout 0 / library"] = None if library in ours else ratios(mine, speed)
        work = work_per_token(data)
        row["share"] = spread([work * value / 1e9 / one["bfloat16"] for value, one in zip(speed, rate, strict=True)])
        row["peak memory, MB"] = megabytes(answers)
        rows.append(row)
    return rows
