"""Layers import downwards only; what is meant to be torch only has no Ray; the public surface is pinned."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import retailray

PACKAGE = Path(retailray.__file__).parent
# a layer may import what stands above it in this list, and layers in one line may import each other's surface
LAYERS = [
    {"errors"},
    {"background", "interrupts", "events", "provenance"},
    {"storage"},
    {"config"},
    {"runs"},
    {"tracking"},
    {"data"},
    {"execution"},
    {"models"},
    {"reports", "cluster"},
    {"results"},
    {"scoring", "quality", "retrieval"},
    {"evaluation", "recommendation", "forecasting", "segmentation"},
    {"training"},
    {"tuning", "studies"},
    {"nightly", "export", "own_models", "assortments"},
    {"demo", "demo_products", "article"},
    {"cli", "api"},
    {"__main__"},
]
LEVEL = {layer: level for level, layers in enumerate(LAYERS) for layer in layers}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "retailray":
                found |= {f"retailray.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts[0]


def test_layers_import_downwards_only():
    wrong = []
    for path, layer in modules():
        if layer == "__init__":
            continue
        for name in imports(path):
            if name.startswith("retailray."):
                other = name.split(".")[1]
                if other != layer and LEVEL[other] >= LEVEL[layer]:
                    inside = name.count(".") > 1
                    if LEVEL[other] > LEVEL[layer] or inside:
                        wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_models_are_torch_only_and_the_ground_floor_is_light():
    for path, layer in modules():
        names = {name.split(".")[0] for name in imports(path)}
        if layer == "models":
            assert "ray" not in names, path
        if LEVEL.get(layer, 99) <= LEVEL["runs"]:
            assert not names & {"ray", "torch", "torchvision"}, path


TASKS = ["scoring.chunks", "training.cache.pixels", "training.cache.views", "quality.scan", "execution.entry"]


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (TASKS, {"torch", "matplotlib", "sklearn", "scipy"}),  # each is a process; torch takes seconds and 300 MB
        (["quality.check"], {"torch", "ray", "sklearn", "scipy.stats"}),
        (
            ["tuning.trial", "training.worker", "models.predictor"],
            {"matplotlib", "sklearn", "scipy", "ray.data", "torchvision"},
        ),
        (["scoring.score"], {"ray", "sklearn", "scipy"}),
    ],
    ids=["tasks", "check", "workers", "score"],
)
@pytest.mark.slow  # a process of its own
def test_a_process_imports_what_it_uses(modules, without):
    """What is imported for somebody else's sake is time before every first image."""
    imported = ", ".join(f"retailray.{name}" for name in modules)
    code = f"import sys, {imported}; print({without!r} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_every_job_is_thin_and_every_command_has_one():
    from retailray.config import COMMANDS

    jobs = PACKAGE.parent / "jobs"
    assert {path.stem for path in jobs.glob("*.py")} == set(COMMANDS)
    for path in (jobs / f"{command}.py" for command in COMMANDS):
        assert len(path.read_text().splitlines()) < 15


def test_a_function_that_is_long_or_takes_much_says_why():
    """Over 40 lines or 7 parameters: a comment that begins with "long because" or "many because"."""
    unexplained = []
    for path, _ in modules():
        source = path.read_text()
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            docstring = node.body[0] if ast.get_docstring(node) else None
            length = node.end_lineno - node.lineno + 1
            length -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            many = len([one for one in parameters if one.arg not in ("self", "cls")]) > 7
            own = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if (length > 40 and "# long because" not in own) or (many and "# many because" not in own):
                unexplained.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}")
    assert not unexplained


def test_the_page_on_the_architecture_names_files_and_functions_that_exist():
    """Each file and each function beside it in the table "How do I", and each file in the paragraph of a folder."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    wrong = []
    for folder, text in re.findall(r"^- \*\*`(\w+)/`\*\*:(.*?)(?=^- |^Words)", page, re.S | re.M):
        names = re.findall(r"`(\w+\.py)`", text)
        wrong += [f"{folder}/{name}" for name in names if not list((PACKAGE / folder).rglob(name))]
    for name, inside in re.findall(r"`([\w/]+\.py)` \(((?:`\w+`(?:, )?)+)\)", page):
        [path] = [found for found in (PACKAGE / name, PACKAGE.parent / name) if found.exists()][:1] or [None]
        known = path.read_text() if path else ""
        defined = {word: re.search(rf"(def |class |^){word}\b", known, re.M) for word in re.findall(r"`(\w+)`", inside)}
        wrong += [f"{name}: {word}" for word, found in defined.items() if not found]
    places = re.findall(r"`((?:\w+/)+\w+\.py)`", page)
    wrong += [name for name in places if not (PACKAGE / name).exists() and not (PACKAGE.parent / name).exists()]
    assert len(re.findall(r"\.py`", page)) > 40
    assert not wrong


def test_no_module_changes_its_own_variables():
    """Kind of fault: what one run leaves in a module is found there by the next run of the same process."""
    statements = (ast.walk(ast.parse(path.read_text())) for path, _ in modules())
    assert not [node.names for nodes in statements for node in nodes if isinstance(node, ast.Global)]


@pytest.mark.slow  # a process of its own
def test_importing_the_reader_of_images_changes_nothing_for_others():
    """Kind of fault: a script that imports one of our modules finds the limits of Pillow lifted."""
    code = """if True:
        import warnings, PIL.Image
        before = PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters)
        import retailray.data.images, retailray.scoring.chunks
        print((PIL.Image.MAX_IMAGE_PIXELS, [one for one in warnings.filters if "PIL" in str(one)]) == (before[0], []))
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
