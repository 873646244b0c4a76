"""Documentation strings of packages that are installed anyway, read from their source files.

The files are parsed, never imported: quick, and nothing of them runs. The choice is the same on every run: modules in
the order of the shelf, definitions in the order of the file.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qraf.errors import NotFound

__all__ = ["SHELVES", "Passage", "Shelf", "collect"]

MAX_WORDS = 60
MIN_WORDS = 5


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of documentation: the name it belongs to, and its text, which begins with the name."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one collection holds: source files, under the name by which users know them, with a limit for each.

    `parameters`: what is said about single parameters makes passages of its own.
    """

    name: str
    package: str
    files: tuple[tuple[str, str, int], ...]
    parameters: bool = False


SHELVES = (
    Shelf(
        "stdlib",
        "",
        (
            ("shutil.py", "shutil", 10),
            ("tempfile.py", "tempfile", 6),
            ("pathlib.py", "pathlib", 10),
            ("json/__init__.py", "json", 4),
            ("csv.py", "csv", 4),
            ("subprocess.py", "subprocess", 6),
            ("textwrap.py", "textwrap", 4),
            ("difflib.py", "difflib", 4),
            ("heapq.py", "heapq", 5),
            ("bisect.py", "bisect", 4),
            ("collections/__init__.py", "collections", 8),
            ("functools.py", "functools", 6),
            ("contextlib.py", "contextlib", 6),
            ("statistics.py", "statistics", 8),
            ("random.py", "random", 6),
            ("threading.py", "threading", 8),
            ("queue.py", "queue", 5),
            ("sched.py", "sched", 2),
            ("logging/__init__.py", "logging", 6),
            ("argparse.py", "argparse", 4),
            ("zipfile.py", "zipfile", 4),
            ("urllib/request.py", "urllib.request", 4),
            ("smtplib.py", "smtplib", 3),
        ),
    ),
    Shelf(
        "networkx",
        "networkx",
        (
            ("algorithms/shortest_paths/generic.py", "networkx", 5),
            ("algorithms/shortest_paths/weighted.py", "networkx", 8),
            ("algorithms/shortest_paths/astar.py", "networkx", 2),
            ("algorithms/simple_paths.py", "networkx", 4),
            ("algorithms/centrality/degree_alg.py", "networkx", 2),
            ("algorithms/centrality/betweenness.py", "networkx", 2),
            ("algorithms/centrality/closeness.py", "networkx", 2),
            ("algorithms/link_analysis/pagerank_alg.py", "networkx", 2),
            ("algorithms/components/connected.py", "networkx", 4),
            ("algorithms/components/strongly_connected.py", "networkx", 4),
            ("algorithms/community/louvain.py", "networkx.community", 2),
            ("algorithms/community/modularity_max.py", "networkx.community", 2),
            ("algorithms/flow/maxflow.py", "networkx", 4),
            ("algorithms/flow/mincost.py", "networkx", 4),
            ("algorithms/tree/mst.py", "networkx", 5),
            ("algorithms/matching.py", "networkx", 5),
            ("algorithms/cycles.py", "networkx", 4),
            ("algorithms/dag.py", "networkx", 8),
            ("algorithms/euler.py", "networkx", 4),
            ("algorithms/clique.py", "networkx", 4),
            ("algorithms/coloring/greedy_coloring.py", "networkx", 2),
            ("algorithms/traversal/breadth_first_search.py", "networkx", 4),
            ("algorithms/traversal/depth_first_search.py", "networkx", 4),
            ("algorithms/distance_measures.py", "networkx", 4),
            ("algorithms/bridges.py", "networkx", 3),
            ("algorithms/planarity.py", "networkx", 2),
            ("algorithms/isomorphism/isomorph.py", "networkx", 2),
            ("algorithms/approximation/traveling_salesman.py", "networkx.approximation", 4),
            ("classes/graph.py", "networkx", 10),
            ("convert_matrix.py", "networkx", 4),
            ("readwrite/graphml.py", "networkx", 3),
            ("generators/random_graphs.py", "networkx", 4),
            ("drawing/layout.py", "networkx", 4),
        ),
    ),
    Shelf(
        "torch",
        "torch",
        (
            ("nn/modules/module.py", "torch.nn", 10),
            ("nn/modules/linear.py", "torch.nn", 3),
            ("nn/modules/conv.py", "torch.nn", 4),
            ("nn/modules/loss.py", "torch.nn", 10),
            ("nn/modules/activation.py", "torch.nn", 8),
            ("nn/modules/dropout.py", "torch.nn", 3),
            ("nn/modules/batchnorm.py", "torch.nn", 3),
            ("nn/modules/normalization.py", "torch.nn", 4),
            ("nn/modules/rnn.py", "torch.nn", 5),
            ("nn/modules/sparse.py", "torch.nn", 2),
            ("nn/modules/transformer.py", "torch.nn", 4),
            ("nn/utils/clip_grad.py", "torch.nn.utils", 3),
            ("nn/init.py", "torch.nn.init", 7),
            ("optim/optimizer.py", "torch.optim", 5),
            ("optim/lr_scheduler.py", "torch.optim.lr_scheduler", 8),
            ("utils/data/dataloader.py", "torch.utils.data", 3),
            ("utils/data/dataset.py", "torch.utils.data", 5),
            ("utils/data/sampler.py", "torch.utils.data", 4),
            ("utils/checkpoint.py", "torch.utils.checkpoint", 3),
            ("autograd/grad_mode.py", "torch.autograd", 5),
            ("autograd/__init__.py", "torch.autograd", 3),
            ("serialization.py", "torch", 4),
            ("cuda/memory.py", "torch.cuda", 6),
            ("cuda/__init__.py", "torch.cuda", 6),
            ("_compile.py", "torch", 2),
            ("functional.py", "torch", 8),
        ),
    ),
    Shelf(
        "ray",
        "ray",
        (
            ("_private/worker.py", "ray", 24),
            ("actor.py", "ray.actor", 34),
            ("remote_function.py", "ray.remote_function", 4),
            ("runtime_context.py", "ray.runtime_context", 7),
            ("util/placement_group.py", "ray.util", 7),
            ("util/scheduling_strategies.py", "ray.util.scheduling_strategies", 4),
            ("util/actor_pool.py", "ray.util", 6),
            ("util/queue.py", "ray.util.queue", 7),
            ("util/metrics.py", "ray.util.metrics", 5),
            ("exceptions.py", "ray.exceptions", 14),
            ("job_submission/__init__.py", "ray.job_submission", 4),
            ("serve/api.py", "ray.serve", 11),
            ("serve/batching.py", "ray.serve", 4),
        ),
        parameters=True,
    ),
    Shelf(
        "fastapi",
        "fastapi",
        (
            ("applications.py", "fastapi", 34),
            ("param_functions.py", "fastapi", 30),
            ("routing.py", "fastapi", 22),
            ("background.py", "fastapi", 4),
            ("datastructures.py", "fastapi", 6),
            ("encoders.py", "fastapi.encoders", 3),
            ("exceptions.py", "fastapi", 8),
            ("security/oauth2.py", "fastapi.security", 7),
            ("security/http.py", "fastapi.security", 6),
            ("security/api_key.py", "fastapi.security", 4),
        ),
        parameters=True,
    ),
    Shelf(
        "numpy",
        "numpy",
        (
            ("linalg/_linalg.py", "numpy.linalg", 20),
            ("lib/_function_base_impl.py", "numpy", 20),
            ("lib/_shape_base_impl.py", "numpy", 7),
            ("lib/_arraysetops_impl.py", "numpy", 6),
            ("lib/_arraypad_impl.py", "numpy", 2),
            ("lib/_histograms_impl.py", "numpy", 3),
            ("lib/_nanfunctions_impl.py", "numpy", 5),
            ("lib/_npyio_impl.py", "numpy", 6),
            ("lib/_polynomial_impl.py", "numpy", 6),
            ("lib/_stride_tricks_impl.py", "numpy.lib.stride_tricks", 4),
            ("lib/_twodim_base_impl.py", "numpy", 6),
            ("_core/fromnumeric.py", "numpy", 20),
            ("_core/numeric.py", "numpy", 10),
            ("_core/function_base.py", "numpy", 3),
            ("_core/shape_base.py", "numpy", 5),
            ("fft/_pocketfft.py", "numpy.fft", 6),
        ),
    ),
)

_INTERNAL = {"extra_repr", "reset_parameters", "clone", "state_dict", "load_state_dict"}  # the same words everywhere
_SECTION = re.compile(
    r"^(args|arguments|keyword args|parameters|returns?|raises|yields|examples?|notes?|see also|references|warnings?|"
    r"attributes|usage|shape|todo|read more about it)\b[^.]{0,80}$|"
    r"^(-{3,}|={3,}|>>>|\.\. |\* |- |:param|:return|@|#|```|::)",
    re.I,
)
_ARGS = re.compile(r"^(?:Args|Arguments):[ ]*\n(.*?)(?=^\S|\Z)", re.S | re.M)
_SIGNATURE = re.compile(r"^[\w.]+\(.*\)\s*(->.*)?$", re.S)
_PARAMETER = re.compile(r"^(?:- )?\*{0,2}`{0,2}(\w+)`{0,2}(?: \([^)]*\))?(?: : .*)?:\s+(\S.*)$")
_CLEAN = (
    (re.compile(r":[\w:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`"), r"\1"),  # roles of reST
    (re.compile(r"`([^`<]+)\s<[^>]*>`_+"), r"\1"),  # links of reST
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # links of Markdown
    (re.compile(r"\[[^\]]{1,12}\]_"), ""),  # citations
    (re.compile(r"`+([^`]*)`+"), r"\1"),
    (re.compile(r"\*{1,2}([\w][^*]*)\*{1,2}"), r"\1"),
    (re.compile(r"\\(?=\W)"), ""),
    (re.compile(r"\s+"), " "),
)


def collect(shelf: Shelf) -> list[Passage]:
    """The passages of one shelf, each text once.

    Raises:
        NotFound: the package, or every file of the shelf, is not installed.
    """
    root = _root(shelf)
    passages: list[Passage] = []
    seen: set[str] = set()
    for file, prefix, limit in shelf.files:
        path = root / file
        if not path.is_file():
            continue  # another version of the package keeps it elsewhere
        count = 0
        found = list(_passages(ast.parse(path.read_bytes()), prefix, shelf.parameters))
        # what a thing does comes before what its parameters mean
        for passage in sorted(found, key=lambda passage: passage.source.endswith(")")):
            said = passage.text.split(": ", 1)[-1]
            if said in seen or count >= limit:
                continue
            seen.add(said)
            passages.append(passage)
            count += 1
    if not passages:
        raise NotFound("documentation of the package", shelf.package or "the standard library")
    return passages


def _root(shelf: Shelf) -> Path:
    if not shelf.package:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = find_spec(shelf.package)
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("package", shelf.package)
    return Path(next(iter(spec.submodule_search_locations)))


def _passages(tree: ast.Module, prefix: str, parameters: bool) -> Iterator[Passage]:
    public = _public(tree)
    for node in tree.body:
        if public and getattr(node, "name", "") not in public:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_function(node, prefix, parameters)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            yield from _of_docstring(node, name, parameters)
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from _of_function(member, name, parameters)


def _public(tree: ast.Module) -> set[str]:
    """What the module itself calls public, by `__all__` or by a decorator `PublicAPI`; empty where it does not say."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names |= {str(item.value) for item in ast.walk(node.value) if isinstance(item, ast.Constant)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and any(
            ast.unparse(decorator).startswith("PublicAPI") for decorator in node.decorator_list
        ):
            names.add(node.name)
    return names


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str, parameters: bool) -> Iterator[Passage]:
    if (node.name.startswith("_") and node.name != "__init__") or node.name in _INTERNAL:
        return
    name = prefix if node.name == "__init__" else f"{prefix}.{node.name}"
    if node.name != "__init__":
        yield from _of_docstring(node, name, parameters)
    if parameters:
        for argument in (*node.args.args, *node.args.kwonlyargs):
            text = _doc_annotation(argument.annotation)
            if text and not argument.arg.startswith("_"):
                yield from _parameter(name, argument.arg, _opening(text))


def _of_docstring(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str, parameters: bool
) -> Iterator[Passage]:
    doc = ast.get_docstring(node)
    if not doc:
        return
    text = _opening(doc)
    if len(text.split()) >= MIN_WORDS and "deprecated" not in text.lower():
        yield Passage(name, f"{name}: {text}")
    if parameters:
        for parameter, said in _described(doc):
            yield from _parameter(name, parameter, said)


def _parameter(name: str, parameter: str, text: str) -> Iterator[Passage]:
    if len(text.split()) >= MIN_WORDS + 3 and "deprecated" not in text.lower():
        yield Passage(f"{name}({parameter})", f"{name}, parameter {parameter}: {text}")


def _doc_annotation(annotation: ast.expr | None) -> str:
    """The text of `Doc("...")` in `Annotated[..., Doc("...")]`."""
    if annotation is None:
        return ""
    for node in ast.walk(annotation):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Doc"
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            return inspect.cleandoc(node.args[0].value)
    return ""


def _described(doc: str) -> Iterator[tuple[str, str]]:
    """What the docstring says about single parameters, in Google's style."""
    section = _ARGS.search(doc)
    if section is None:
        return
    for block in re.split(r"(?:\A|\n)(?=[ \t]*(?:- )?[*`]{0,3}\w+[*`]{0,3}(?: \([^)]*\))?:[ \n])", section[1]):
        first, *rest = block.strip().split("\n")
        indent = len(block) - len(block.lstrip())
        lines = [first]
        for line in rest:
            if not line.strip() or len(line) - len(line.lstrip()) <= indent:
                break
            lines.append(line.strip())
        match = _PARAMETER.match(" ".join(lines))
        if match and match[1].isidentifier() and not match[1].startswith("_"):
            yield match[1], _cut(_clean(match[2]))


def _opening(doc: str) -> str:
    """The first paragraphs up to `MAX_WORDS` words, without signature, sections and markup."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", doc.strip()):
        paragraph = paragraph.strip()
        if _SIGNATURE.match(paragraph):
            continue
        if _SECTION.match(paragraph.split("\n")[0].strip()) or "\n---" in paragraph:
            break
        kept.append(_clean(paragraph))
        if sum(len(text.split()) for text in kept) >= MAX_WORDS // 2:
            break
    return _cut(" ".join(kept))


def _clean(text: str) -> str:
    for pattern, replacement in _CLEAN:
        text = pattern.sub(replacement, text)
    return text.strip()


def _cut(text: str) -> str:
    """The text up to `MAX_WORDS` words, at the end of a sentence where there is one."""
    words = text.split()
    if len(words) <= MAX_WORDS:
        return text
    short = " ".join(words[:MAX_WORDS])
    end = max(short.rfind(". "), short.rfind("; "))
    return short[: end + 1] if end > len(short) // 3 else short + " ..."
