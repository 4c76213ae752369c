"""The methods by name. Each is one file; ``base`` is the contract they keep."""

from __future__ import annotations

from nispa.errors import unknown_name
from nispa.methods.agem import AGem
from nispa.methods.base import Method
from nispa.methods.cbp import Cbp
from nispa.methods.clnp import Clnp
from nispa.methods.der import Der
from nispa.methods.derpp import Derpp
from nispa.methods.er import Er
from nispa.methods.ewc import Ewc
from nispa.methods.ewc_online import EwcOnline
from nispa.methods.fdr import Fdr
from nispa.methods.finetune import Finetune
from nispa.methods.gem import Gem
from nispa.methods.hat import Hat
from nispa.methods.icarl import ICarl
from nispa.methods.joint import Joint
from nispa.methods.l2 import L2
from nispa.methods.mas import Mas
from nispa.methods.nice import Nice
from nispa.methods.nispa import Nispa
from nispa.methods.nispa_context import NispaContext
from nispa.methods.nispa_replay import NispaReplay
from nispa.methods.packnet import PackNet
from nispa.methods.piggyback import Piggyback
from nispa.methods.redo import Redo
from nispa.methods.rehearsal import Rehearsal
from nispa.methods.si import Si
from nispa.methods.spacenet import SpaceNet
from nispa.methods.stl import Stl
from nispa.methods.stl_iso import StlIso
from nispa.methods.supsup import SupSup
from nispa.methods.wsn import Wsn

_NISPA = (Nispa, NispaReplay, NispaContext)
_STRUCTURAL = (Clnp, PackNet, Wsn, Piggyback, SupSup, Hat, SpaceNet, Nice)
_REGULARISED = (L2, Ewc, EwcOnline, Si, Mas)
_REPLAY = (Rehearsal, Er, Der, Derpp, AGem, Gem, ICarl, Fdr)
_RENEWING = (Cbp, Redo)
_BOUNDS = (Finetune, Joint, Stl, StlIso)
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (*_NISPA, *_STRUCTURAL, *_REGULARISED, *_REPLAY, *_RENEWING, *_BOUNDS)
}
"""The methods by name; one of your own is known everywhere once it is entered."""


def method_class(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
