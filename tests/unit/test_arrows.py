"""The arrows of docs/design.md, "The house": which package may import which, and what importing one pulls in."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "captory_proto": "proto",
    "captory_data": "data",
    "captory_engine": "engine",
    "captory_server": "server",
    "captory_client": "clients",
    "captory_export": "export",
    "captory_training": "training",
    "captory_bench": "benchmarks",
}
ALLOWED = {
    "captory_proto": (),
    "captory_data": (),
    "captory_engine": (),
    "captory_server": ("captory_engine", "captory_data", "captory_proto"),
    "captory_client": ("captory_data", "captory_proto"),
    "captory_export": ("captory_engine",),
    "captory_training": ("captory_engine.diffusion", "captory_data", "captory_client"),
    "captory_bench": tuple(FOLDERS),
}
OPTIONAL = {
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "datasets",
    "ray",
    "tensorrt",
}
WITHOUT_EXTRAS = ("captory_proto", "captory_data", "captory_engine", "captory_server", "captory_client")


def package_root(package: str) -> Path:
    return ROOT / FOLDERS[package] / package


def sources(package: str) -> list[Path]:
    return sorted(package_root(package).rglob("*.py"))


def imports(path: Path, package: str) -> Iterator[str]:
    """Every module that a file imports, at its top or within a function, by absolute name."""
    parts = (package, *path.relative_to(package_root(package)).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (prefix, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def forbidden(module: str, package: str) -> bool:
    ours = any(is_below(module, other) for other in FOLDERS if other != package)
    return ours and not any(is_below(module, allowed) for allowed in ALLOWED[package])


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_follow_the_arrows(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources(package)
        for module in imports(path, package)
        if forbidden(module, package)
    ]
    assert wrong == []


def test_the_arrows_cover_every_package() -> None:
    found = {
        path.parent.name for folder in set(FOLDERS.values()) for path in (ROOT / folder).glob("captory_*/__init__.py")
    }
    assert found == set(FOLDERS)


def test_the_check_sees_what_it_should(tmp_path: Path) -> None:
    assert forbidden("captory_engine.items", "captory_data")
    assert forbidden("captory_engine.scheduler", "captory_training")
    assert not forbidden("captory_engine.diffusion.noise", "captory_training")
    assert forbidden("captory_bench.load", "captory_server")
    assert not forbidden("captory_data.ids", "captory_data")
    assert not forbidden("captory_data_science", "captory_engine")


def loaded_after(code: str) -> set[str]:
    """The top-level modules in a fresh interpreter that has run `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(process.stdout.splitlines()[-1]))


def test_importing_the_packages_loads_nothing_else() -> None:
    loaded = loaded_after("\n".join(f"import {package}" for package in FOLDERS))
    assert not loaded & {*OPTIONAL, "onnxruntime", "numpy", "grpc", "pydantic", "PIL"}


@pytest.mark.parametrize("package", WITHOUT_EXTRAS)
def test_no_module_of_the_main_job_needs_an_extra(package: str) -> None:
    modules = [
        ".".join((package, *path.relative_to(package_root(package)).with_suffix("").parts)).removesuffix(".__init__")
        for path in sources(package)
        if path.name not in ("__main__.py", "tensorrt.py") and not path.name.startswith("torch")  # extras
    ]
    assert not loaded_after("\n".join(f"import {module}" for module in modules)) & OPTIONAL
