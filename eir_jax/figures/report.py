"""One self-contained HTML page of a run's numbers, protocols, pictures and settings."""

import base64
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from eir_jax.system.errors import UserError
from eir_jax.system.files import replacing
from eir_jax.system.words import counted

Record = dict[str, Any]
# Tasks, and the parts of a record that are theirs.
TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "knn": (
        "kNN classification",
        {
            "knn": "Embedding, top-1",
            "knn_top5": "Embedding, top-5",
            "knn_feature": "Feature before the head, top-1",
            "knn_feature_top5": "Feature before the head, top-5",
            "knn_bank": "Memory bank as gallery, top-1",
            "knn_bank_top5": "Memory bank as gallery, top-5",
        },
    ),
    "linear": ("Linear classification", {"linear": "Linear probe on frozen features"}),
    "retrieval": ("Retrieval", {"retrieval": "Each image among the others"}),
}
SETTINGS = ("learning_rate", "weight_decay")  # of a part: how it came about, no result
HEALTH = {
    "rank_me": (
        "RankMe",
        "About how many independent directions the embedding uses: near 1 it has "
        "collapsed; it can be at most its dimension, and at most the rows measured.",
    ),
    "rows": ("Rows", "Of how many images health is measured."),
    "embedding_std": (
        "Embedding deviation",
        "How far the embeddings of different images lie apart: 1 is spread over the "
        "whole sphere, near 0 all images look alike to the encoder.",
    ),
    "uniformity": (
        "Uniformity",
        "How evenly the embeddings fill the sphere: 0 is all in one point, and the "
        "more negative, the more even.",
    ),
    "nearest_by_pixels": (
        "Nearest by pixels",
        "Share of images whose nearest is also the nearest by 8x8 pixels: near 1 the "
        "embedding sees little else.",
    ),
    "same_class": (
        "Nearest of the same class",
        "Share of the measured images whose nearest other one is of their class.",
    ),
    "same_class_by_pixels": (
        "The same by pixels",
        "That share for the nearest by 8x8 pixels: what an embedding must beat.",
    ),
    "alignment": (
        "Alignment",
        "Mean squared distance of two views of an image: 0 is the same embedding for "
        "both, 2 is no relation.",
    ),
}
PICTURES = {  # by how their titles begin
    "Nearest neighbours": "At the left pictures chosen at random, each beside the most "
    "similar ones by the embedding; green: of its class, pink: of another.",
    "Test embedding": "Each point is a picture, near those that the embedding finds "
    "similar. Distances between groups mean little.",
    "Training": "What the run noted while it trained; thin lines are the numbers "
    "themselves, thick ones a running mean.",
}
PANELS = {
    "Loss and its terms": "What is minimised, and its terms before their lambda.",
    "kNN top-1 accuracy": "Share of test pictures whose class their neighbours elect.",
    "R@K, each image among the others": "Share with one of their class among the K "
    "nearest.",
    "Learning rate": "Of each step; it falls at optimizer.milestones.",
    "Images per second": "How fast training went, compilation and evaluation left out.",
    "Alignment": "Mean squared distance of two views of a picture; 0: the same.",
    "Bank drift": "How far the bank's rows move when they are renewed; 0: not at all.",
    "Embedding std": "How far different pictures lie apart; near 0 all look alike.",
    "Entropy": "Of the distributions p and q (one a view) over all rows, in nats: 0 is "
    "certain, the logarithm of the number of pictures is no idea.",
    "Gradient norm": "Length of the gradient of all parameters.",
    "Positive rank": "Place of a picture's own row among all by similarity.",
    "RankMe": "About how many independent directions the embedding uses.",
    "Uniformity": "How evenly embeddings fill the sphere; the more negative, the more "
    "even.",
}
ABSENT = "—"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c6168; --paper: #fff;
  --card: #f4f5f7; --line: #dcdfe3; --good: #1a7f37; --bad: #b3261e;
  --warn: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #a2a7ae;
  --paper: #16181b; --card: #212429; --line: #3a3f46; --good: #5fd07f; --bad: #ff8f85;
  --warn: #4a3a10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.25rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.soft { color: var(--soft); font-size: .9rem; }
.cards, .grid { display: grid; gap: 1rem; margin: 1.25rem 0 0; padding: 0;
  list-style: none; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.cards li { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; }
.cards strong { display: block; font-size: 1.8rem; line-height: 1.3; }
.cards li > span { display: block; }
.warning { background: var(--warn); border-radius: .6rem; padding: .7rem 1rem; }
.scroll, .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem .35rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; }
tbody th { font-weight: 500; }
.numbers, .words { font-size: .93rem; }
.numbers th { white-space: nowrap; }
.words th { white-space: nowrap; width: 1%; padding-right: 1.2rem; }
.words td { min-width: 8rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { /* a picture's words stay legible: it is moved sideways */
  figure img { max-width: none; width: 46rem; } }
@media (max-width: 30rem) {
  .cards li:last-child:nth-child(odd) { grid-column: 1 / -1; } }
.up { color: var(--good); } .down { color: var(--bad); }
details { margin-top: 1rem; background: var(--card); border-radius: .6rem;
  padding: .6rem 1rem; }
summary { cursor: pointer; font-weight: 600; }
summary code { font-weight: 400; color: var(--soft); }
figure { margin: 0 0 2rem; }
img { display: block; max-width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: .4rem; }
"""


def write_report(
    record: Record,
    config_flat: dict[str, Any],
    figures: dict[str, Path],
    path: Path,
    *,
    made: dict[str, str] | None = None,
    paper: Record | None = None,
    compare: Record | None = None,
) -> None:
    """Write the report of an evaluated checkpoint as one HTML file without a script.

    Args:
        record: as `evaluate` returns it; only `step` and `protocol` must be there.
        config_flat: {dotted key: value} of every setting.
        figures: {title: PNG}; they are copied into the page.
        path: of the HTML file; its folders are made.
        made: what made the run and its evaluation, {what: words}.
        paper: {"table": where from, "knn": {"5": 0.866}, ...}, shares like ours.
        compare: the record of another run, with its name as `label`.

    Raises:
        UserError: a picture cannot be read or the file cannot be written.
    """
    protocol = record["protocol"]
    data = protocol.get("data", {})
    title = f"{data.get('name', 'Evaluation')}, step {record['step']:,}"
    tasks = [_task(name, record, paper, compare) for name in TASKS]
    rest = {k: v for k, v in protocol.items() if k not in (*TASKS, "health")}
    parts = [
        f"<header><h1>{escape(title)}</h1>",
        _data_line(data),
        *(f'<p class="warning">{escape(w)}</p>' for w in record.get("warnings", ())),
        _cards(record, paper),
        "</header><main>",
        _notes(record),
        *tasks,
        _health(record, protocol),
        _section("Pictures", map(_picture, figures, figures.values())),
        _section(
            "How it was made",
            [
                _details("Commands, commits, devices", made or {}, is_open=True),
                _details("Data and images", rest),
                _details("Settings", config_flat),
            ],
        ),
        "</main>",
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
    )
    _write(head + "\n".join(filter(None, parts)) + "\n</body></html>\n", Path(path))


def _notes(record):
    """Return what is to be known of the data and the numbers, and what is left out."""
    lines = list(record.get("notes", ()))
    lines += [
        f"Without {task}: {why}" for task, why in record.get("refused", {}).items()
    ]
    items = "".join(f"<li>{escape(line)}" for line in lines)
    return _section("To know", [f'<ul class="soft">{items}</ul>']) if items else ""


def _task(name, record, paper, compare):
    """Return a task's section: a table for each of its parts, then its protocol."""
    title, parts = TASKS[name]
    if record["protocol"].get(name, {}).get("query") == "train":
        title += " within train, each image among the others"
    tables = []
    for part, caption in parts.items():
        ours = record.get(part)
        if ours:
            theirs = (paper or {}).get(part, {})
            other = compare and (_label(compare), compare.get(part, {}))
            tables.append(_results(caption, ours, theirs, other))
    if not tables:
        return ""
    body = [f'<div class="grid">{"".join(tables)}</div>']
    if paper and any(paper.get(part) for part in parts):
        source = paper.get("table", "the paper")
        body.append(f'<p class="soft">Paper: {escape(str(source))}.</p>')
    ours = record["protocol"].get(name, {})
    theirs = compare and compare.get("protocol", {}).get(name, {})
    if theirs and theirs.get("hash") != ours.get("hash"):
        body.append(
            f'<p class="warning">{escape(_label(compare))} was evaluated by another '
            f"protocol ({escape(str(theirs.get('hash')))}): the numbers do not compare."
            "</p>"
        )
    return _section(title, [*body, _details("Protocol", ours)])


def _results(caption, ours, theirs, other):
    """Return the table of a part: ours, the paper's, the difference, another run's."""
    shown = {key: value for key, value in ours.items() if key not in SETTINGS}
    head = ["%", "ours" if theirs or other else "this run"]
    head += ["paper's EIR", "difference"] if theirs else []
    head += [other[0]] if other else []
    rows = []
    for key, value in shown.items():
        cells = [f'<th scope="row">{escape(f"k = {key}" if key.isdigit() else key)}']
        cells.append(f"<td>{_percent(value)}")
        if theirs:
            cells.append(f"<td>{_percent(theirs.get(key))}")
            cells.append(f"<td>{_difference(value, theirs.get(key))}")
        if other:
            cells.append(f"<td>{_percent(other[1].get(key))}")
        rows.append("<tr>" + "".join(cells))
    columns = "".join(f'<th scope="col">{escape(words)}' for words in head)
    chosen = [f"{k.replace('_', ' ')} {_plain(ours[k])}" for k in SETTINGS if k in ours]
    note = f'<p class="soft">Chosen: {escape(", ".join(chosen))}.</p>' if chosen else ""
    return (
        f'<div><h3>{escape(caption)}</h3><div class="scroll"><table class="numbers">'
        f"<thead><tr>{columns}</thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{note}</div>"
    )


def _cards(record, paper):
    """Return the headline numbers, each with the paper's where there is one."""
    largest = max(record.get("knn") or ["200"], key=int)
    wanted = (
        ("knn", "200" if "200" in record.get("knn", {}) else largest, "kNN, k = {}"),
        ("retrieval", "R@1", "{}"),
        ("linear", "top-1", "Linear, {}"),
    )
    cards = []
    for part, key, name in wanted:
        if key not in record.get(part, {}):
            continue
        theirs = (paper or {}).get(part, {}).get(key)
        value = record[part][key]
        note = f"paper's EIR {_percent(theirs)} ({_difference(value, theirs)})"
        cards.append(
            f"<li><span>{escape(name.format(key))}</span>"
            f"<strong>{_percent(value)} %</strong>"
            + (f'<span class="soft">{note}</span>' if theirs is not None else "")
        )
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ""


def _data_line(data):
    words = [str(data["source"])] if "source" in data else []
    for key, name in (("train_images", "training"), ("test_images", "test")):
        if key in data:
            words.append(counted(data[key], f"{name} image"))
    return f'<p class="soft">{escape(", ".join(words))}</p>' if words else ""


def _health(record, protocol):
    items = []
    for key, value in record.get("health", {}).items():
        title, words = HEALTH.get(key, (key.replace("_", " ").capitalize(), ""))
        items.append(
            f"<li><span>{escape(title)}</span><strong>{_plain(value)}</strong>"
            f'<span class="soft">{escape(words)}</span>'
        )
    if not items:
        return ""
    body = f'<ul class="cards grid">{"".join(items)}</ul>'
    return _section("Health", [body, _details("Protocol", protocol.get("health", {}))])


def _picture(title, path):
    try:
        picture = base64.b64encode(Path(path).read_bytes()).decode()
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {error}") from None
    words = next((w for start, w in PICTURES.items() if title.startswith(start)), "")
    panels = _details("What each panel is", PANELS) if title == "Training" else ""
    return (
        f'<figure><h3>{escape(title)}</h3><div class="wide">'
        f'<img alt="{escape(title)}" src="data:image/png;base64,{picture}"></div>'
        f'<figcaption class="soft">{escape(words)}</figcaption>{panels}</figure>'
    )


def _section(title: str, body: Iterable[str]) -> str:
    text = "\n".join(filter(None, body))
    return f"<section><h2>{escape(title)}</h2>\n{text}\n</section>" if text else ""


def _details(title: str, values: dict[str, Any], is_open: bool = False) -> str:
    """Return a table of words that opens at a click; nothing without values."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}<td>{escape(_plain(value))}'
        for key, value in _leaves(values)
        if key != "hash"
    )
    tag = f" <code>{escape(str(values['hash']))}</code>" if "hash" in values else ""
    return (
        f"<details{' open' * is_open}><summary>{escape(title)}{tag}</summary>"
        f'<div class="scroll"><table class="words"><tbody>{rows}</tbody></table></div>'
        "</details>"
        if rows
        else ""
    )


def _leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return ABSENT if value in (None, "") else str(value)


def _percent(share: float | None) -> str:
    return ABSENT if share is None or not math.isfinite(share) else f"{100 * share:.2f}"


def _difference(ours: float | None, theirs: float | None) -> str:
    """Return ours - theirs in percentage points, signed and coloured."""
    if ours is None or theirs is None or not math.isfinite(ours - theirs):
        return ABSENT
    points = round(100 * (ours - theirs), 2) + 0.0  # no -0.00
    kind = "up" if points > 0 else "down" if points < 0 else "soft"
    return f'<span class="{kind}">{points:+.2f}</span>'


def _label(compare: Record) -> str:
    return str(compare.get("label") or f"step {compare['step']}")


def _write(text: str, path: Path) -> None:
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
