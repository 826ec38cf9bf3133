"""Prepare the reference: examples without prompts, public names in signatures, tables of laws."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*(?:\n(?!\n).*)*\n?)+", re.MULTILINE)


class Reference(griffe.Extension):
    """Prepares docstrings and signatures for the site."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_program, obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for module in _modules(pkg):
            for attribute in module.attributes.values():
                if not attribute.is_alias and attribute.name.endswith("_LAWS"):
                    _tell_laws(attribute, module)
            for one in module.classes.values():
                if not one.is_alias:
                    _leave_out_private(one)
            variables = dict(_type_variables(module))
            for annotation in _annotations(module):
                _make_public(annotation, variables)


def _program(found: re.Match[str]) -> str:
    """A doctest as a program without prompts; what a statement prints is a comment below it."""
    lines = []
    for line in found[0].rstrip().splitlines():
        if line.startswith((">>>", "...")):
            lines.append(re.sub(r"\s*# doctest: .*", "", line[4:]))
        else:
            lines.append(f"# {line}".replace(" <BLANKLINE>", ""))
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for one in module.modules.values():
        if not one.is_alias:
            yield from _modules(one)


def _annotations(scope: griffe.Object) -> Iterator[Any]:
    """Every annotation of the functions, attributes and bases of a module or class."""
    for one in scope.members.values():
        if one.is_alias:
            continue
        if isinstance(one, griffe.Function):
            for version in [one, *(one.overloads or ())]:
                yield from (parameter.annotation for parameter in version.parameters)
                yield version.returns
        elif isinstance(one, griffe.Attribute):
            yield one.annotation
        elif isinstance(one, griffe.Class):
            yield from one.bases
            yield from _annotations(one)


def _leave_out_private(one: griffe.Class) -> None:
    """Forget the fields that a dataclass takes for itself, such as `_model`: griffe shows them."""
    if any(decorator.callable_path.startswith("dataclass") for decorator in one.decorators):
        for name in [name for name in one.members if re.match("_[a-z]", name)]:
            one.del_member(name)


def _type_variables(module: griffe.Module) -> Iterator[tuple[str, str]]:
    """The public name of each private type variable: its bound's, or its own without underscore."""
    for name, one in module.attributes.items():
        if name.startswith("_") and not one.is_alias and str(one.value).startswith("TypeVar("):
            bound = re.search(r"bound=['\"]?([\w.]+)", str(one.value))
            yield name, bound[1].rpartition(".")[2] if bound else name.lstrip("_")


def _make_public(annotation: Any, variables: dict[str, str]) -> None:
    if isinstance(annotation, griffe.Expr):
        for one in annotation.iterate(flat=True):
            if isinstance(one, griffe.ExprName) and one.name in variables:
                one.name = variables[one.name]


def _tell_laws(attribute: griffe.Attribute, module: griffe.Module) -> None:
    laws = [
        one
        for one in module.functions.values()
        if any(str(decorator.value).startswith("_book.law") for decorator in one.decorators)
    ]
    rows = [f"| `{one.name}` | {_statement(one)} |" for one in laws]
    text = "\n".join(
        [f"{len(laws)} laws, as a tuple of `Law`:", "", "| name | law |", "| --- | --- |"]
    )
    attribute.docstring = griffe.Docstring("\n".join([text, *rows]), parent=attribute)
    attribute.value = None


def _statement(law: griffe.Function) -> str:
    return " ".join(law.docstring.value.split()) if law.docstring else ""
