"""The direction of imports: packages lie in layers, and each imports only from layers below its own."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import catdog

ROOT = Path(catdog.__file__).parent
# From the top down; packages of one layer do not import each other.
LAYERS = (
    {"cli"},
    {"experiments", "doctor"},
    {"training", "scoring", "serving", "kaggle"},
    {"reporting"},
    {"inference"},
    {"data", "models", "evaluation"},
    {"base"},
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}


def package_of(module: str) -> str:
    """The package of a module such as catdog.data.images; what lies in catdog itself is the base."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else "base"


def imported(path: Path) -> set[str]:
    """The modules of catdog that a file imports, anywhere in it, also only for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "catdog":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "catdog"}
    return found


def test_packages_import_only_from_layers_below() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = package_of(".".join(("catdog", *path.relative_to(ROOT).with_suffix("").parts)))
        if path.name == "__main__.py":
            continue
        for module in sorted(imported(path)):
            other = package_of(module)
            if other != own and LEVEL[other] <= LEVEL[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {".".join(("catdog", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
    imports = {}
    for name, path in names.items():
        found = imported(path)
        imports[name] = {module if module in names else module.rpartition(".")[0] for module in found} & names.keys()
    while free := [name for name, below in imports.items() if not below]:
        for name in free:
            del imports[name]
        for below in imports.values():
            below.difference_update(free)
    assert imports == {}


def test_every_package_has_a_layer_and_says_what_it_is_for() -> None:
    for init in ROOT.rglob("__init__.py"):
        assert init.parent == ROOT or init.parent.name in LEVEL
        assert len(ast.get_docstring(ast.parse(init.read_text())) or "") > 40, init


def test_exports_are_there_and_cost_nothing_until_they_are_used() -> None:
    names = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    script = (
        "import importlib, sys\n"
        f"packages = [importlib.import_module('catdog.' + name) for name in {names!r}]\n"
        "heavy = [m for m in ('tensorflow', 'keras', 'ray', 'cv2', 'pyarrow', 'numpy') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "for package in packages:\n"
        "    for name in package.__all__:\n"
        "        assert getattr(package, name) is not None, name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_nothing_runs_what_a_file_says() -> None:
    """Readers that run code are not used on files; a pickle goes only between processes of one run."""
    runs = re.compile(
        r"(eval|exec|(pickle|cloudpickle|dill|marshal|joblib|torch|shelve)\.(\w*load\w*|Unpickler|open)"
        r"|yaml\.(?!safe_)\w*load\w*|(.+\.)?(load_model|read_pickle)|.*saved_model\.load)"
    )
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called, words = ast.unparse(node.func), [ast.unparse(word) for word in node.keywords]
                if runs.fullmatch(called) or (called == "np.load" and "allow_pickle=False" not in words):
                    found.add(f"{path.relative_to(ROOT)}: {ast.unparse(node)[:20]}")
    assert found == {
        "interruption.py: exec('')", "restarts.py: pickle.loads(sys.std", "scoring/actor.py: pickle.loads(block['",
    }  # fmt: skip


def test_the_readme_lists_every_module() -> None:
    """Its tree is where people look first; a module that it lacks, or that is gone, makes it useless."""
    tree = (ROOT.parent / "README.md").read_text().partition("    catdog/  ")[2].partition("    jobs/  ")[0]
    listed, package = set(), ""
    for line in tree.splitlines()[1:]:
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        if name.endswith("/"):
            package = name
        else:
            listed.add(package + name if depth == 4 else name)
    there = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if not path.name.startswith("__")}
    assert listed == there
