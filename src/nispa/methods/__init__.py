"""The methods by name. Each is one file; ``base`` is the contract they keep."""

from __future__ import annotations

from nispa.errors import unknown_name
from nispa.methods.base import Method
from nispa.methods.finetune import Finetune
from nispa.methods.joint import Joint
from nispa.methods.nispa import Nispa
from nispa.methods.stl import Stl
from nispa.methods.stl_iso import StlIso

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Nispa, Finetune, Joint, Stl, StlIso)
}


def method_class(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
