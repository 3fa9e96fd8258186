"""Commands made of functions: arguments and help from their signatures and docstrings."""

from __future__ import annotations

import argparse
import inspect
import re
import typing
from typing import Any, Callable


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are, and defaults where there is one worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def add(commands: Any, name: str, function: Callable[..., Any], summary: str, example: str) -> None:
    """A command that calls the function with what is given on the command line.

    Parameters without a default are positional, or required options where they are keywords only; `output` is -o.
    Others are options, and flags where they are False by default. Types and choices are those of the annotations.
    """
    doc = inspect.getdoc(function) or ""
    description, texts = _parts(doc)
    parser = commands.add_parser(
        name, help=summary, description=description, epilog=f"example:\n  {example}", formatter_class=_Help
    )
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        text = texts[parameter.name].replace("%", "%%")
        flag = "--" + parameter.name.replace("_", "-")
        if parameter.default is False:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        settings = {**_settings(hints[parameter.name], parameter.name), "help": text}
        required = parameter.default is inspect.Parameter.empty
        if parameter.name == "output":
            parser.add_argument("-o", flag, required=required, **settings)
        elif required and parameter.kind is parameter.KEYWORD_ONLY:
            parser.add_argument(flag, required=True, **settings)
        elif required:
            parser.add_argument(parameter.name, **settings)
        else:
            parser.add_argument(flag, default=parameter.default, **settings)
    parser.set_defaults(function=function)


def _parts(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring's text before its arguments, and the description of each of them."""
    description, _, rest = doc.partition("\nArgs:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in rest.split("\nReturns:")[0].splitlines():
        entry = re.match(r"    (\w+): (.*)", line)
        if entry:
            name, texts[entry[1]] = entry[1], entry[2]
        elif line.strip():
            texts[name] += " " + line.strip()
    return description.strip(), {name: text.replace("`", "") for name, text in texts.items()}


def _settings(hint: Any, name: str) -> dict[str, Any]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Union:
        kinds = [x for x in arguments if x is not type(None)]
        return _settings(str if str in kinds else kinds[0], name)
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": arguments}
    if typing.get_origin(hint) is tuple:
        return {"nargs": len(arguments), "type": arguments[0], "metavar": ("LOW", "HIGH")}
    metavar = {int: "N", float: "NUMBER", str: name.upper()}[hint]
    return {"type": hint, "metavar": metavar}
