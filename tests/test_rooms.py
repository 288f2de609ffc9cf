"""The rooms of eir_jax: who may import whom."""

import ast
from pathlib import Path

import eir_jax

ROOT = Path(eir_jax.__file__).parent
# From the lowest floor up: a room imports from those before it alone. The commands,
# files beside the rooms, may import from all, and nothing imports from them.
ROOMS = (
    *(
        "configs",
        "system",
        "models",
        "data",
        "objectives",
        "run",
        "evaluation",
        "figures",
    ),
    *("collection", "experiments", "training", "planning"),
)
MOST_LINES = 450


def imported(path):
    """Yield each module of eir_jax that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("eir_jax"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports whole"
            if (node.module or "").partition(".")[0] == "eir_jax":
                names = (f"{node.module}.{a.name}" for a in node.names)
                yield from (n if is_module(n) else node.module for n in names)


def is_module(name):
    path = ROOT.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def files():
    return {
        path: path.relative_to(ROOT.parent).with_suffix("").parts
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__init__.py"
    }


def test_every_folder_is_a_room_and_says_what_for():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name[0] != "_"}
    assert folders == set(ROOMS)
    for room in ROOMS:
        text = (ROOT / room / "__init__.py").read_text()
        assert len(ast.get_docstring(ast.parse(text)).splitlines()) == 1, room


def test_nothing_is_imported_from_a_higher_room():
    upward = []
    for path, (_, *place) in files().items():
        if len(place) == 1:  # a command
            continue
        below = ROOMS[: ROOMS.index(place[0]) + 1]
        for module in imported(path):
            if module.split(".")[1:2] and module.split(".")[1] not in below:
                upward.append(f"{'/'.join(place)} imports {module}")
    assert not upward, "\n".join(upward)


def test_no_circle_of_imports():
    graph = {".".join(parts): set(imported(path)) for path, parts in files().items()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_no_file_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in files()}
    assert {p.name: n for p, n in lengths.items() if n > MOST_LINES} == {}
