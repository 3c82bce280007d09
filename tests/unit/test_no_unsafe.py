"""Nothing that can run code from data: the count of each such call stays at zero, in every package and script."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("proto", "data", "engine", "server", "clients", "export", "training", "benchmarks", "tests", "scripts")
MODULES = {"pickle", "cPickle", "_pickle", "pickletools", "marshal", "cloudpickle", "dill", "joblib", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
}
NAMES = {"UnsafeLoader", "FullLoader", "load_pickle", "register_custom_ops_library"}
TRUE_ARGUMENTS = {"shell", "trust_remote_code", "allow_pickle"}


def findings(source: str) -> Iterator[str]:
    """Each unsafe thing in a file, as line and words."""
    for node in ast.walk(ast.parse(source)):
        for words in _unsafe(node):
            yield f"{getattr(node, 'lineno', 0)}: {words}"


def _unsafe(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        yield from (module for _ in [0] if module.split(".")[0] in MODULES)
        yield from (f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in CALLS)
    elif isinstance(node, ast.Call):
        yield from _unsafe_call(node)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield node.attr


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in CALLS or (isinstance(node.func, ast.Name) and name in BUILTINS):
        yield name
    for keyword in node.keywords:
        harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in TRUE_ARGUMENTS and not harmless:
            yield f"{name}({keyword.arg}=...)"


def test_there_is_none_anywhere() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [f"{path.relative_to(ROOT)}:{words}" for path in paths for words in findings(path.read_text("utf-8"))]
    assert len(paths) > 20
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import xml, marshal as m",
        "def f():\n    import cloudpickle",
        "torch.load('x')",
        "from torch import load",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.SomethingLoader, yaml.FullLoader",
        "np.load('x', allow_pickle=flag)",
        "np.savez('x', allow_pickle=True)",
        "eval('1')",
        "exec(code)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "os.system('ls')",
    ],
)
def test_the_check_sees(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "yaml.safe_load(text)",
        "safetensors.torch.load_file(path)",
        "re.compile('x')",
        "np.load('x')",
        "subprocess.run(['ls'], shell=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_the_check_lets_pass(source: str) -> None:
    assert not list(findings(source))


@pytest.mark.parametrize(
    "graph", sorted((ROOT / "model_repository").glob("*/1/model.onnx")), ids=lambda path: path.parts[-3]
)
def test_shipped_graphs_do_not_tell_where_they_were_made(graph: Path) -> None:
    content = graph.read_bytes()
    assert not [words for words in (b"stack_trace", b"site-packages", b".venv") if words in content]
