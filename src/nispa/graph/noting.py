"""What rules note on a walk: weights of connections, values of units, and what becomes one unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nispa.graph.found import Call, Found, LayerFound, Learned, Refused, ValuesFound
from nispa.graph.ids import Ids
from nispa.graph.units import MAY_BE_SHARED, ValueKind


class Noting:
    """What is known so far.

    Attributes:
        ids: Numbers and ties.
        found: Weights, values and norms.
    """

    def __init__(self, shared: Iterable[str] = ()) -> None:
        """Nothing yet.

        Args:
            shared: Parameters whose numbers belong to no unit, since each meets many.
        """
        self.ids = Ids()
        self.found = Found()
        self._shared = frozenset(shared)

    def beside(self, path: str, what: str) -> None:
        """Notes what the module of a norm, or one in it, does beside the norm."""
        self.found.beside.setdefault(path, []).append(what)

    def values(self, learned: Learned, kind: ValueKind) -> Tensor:
        """Numbers of a parameter's entries, one for each; 0 if they are shared."""
        if learned.name in self._shared and kind in MAY_BE_SHARED:
            kind = "shared"
        entry = self._noted(learned.name, kind, learned.shape, None)
        return entry.ids[learned.rows] if learned.shape else entry.ids

    def values_along(self, name: str, kind: ValueKind, size: int, dim: int) -> Tensor:
        """Numbers ``(size,)`` of a parameter or buffer whose entries differ along ``dim`` only."""
        return self._noted(name, kind, (size,), dim).ids

    def layer(
        self,
        call: Call,
        weight: Learned,
        columns: Tensor,
        blocks: int = 1,
        *,
        operator: str = "",
        bias: Learned | None = None,
        turned: bool = False,
        outputs: int | None = None,
    ) -> Tensor:
        """Notes a weight of connections, and ties its bias.

        Args:
            call: The operator.
            weight: Its rows and ``columns / blocks`` columns, with the kernel behind.
            columns: Numbers it reads.
            blocks: Groups of a grouped convolution.
            operator: See :class:`.Layer`; by default the name of the operator.
            bias: The bias of its rows.
            turned: See :class:`.LayerFound`.
            outputs: How often its rows multiply what they read; by default once for each element
                of the result.

        Returns:
            Numbers of its rows.
        """
        if weight.name in self.found.values:
            raise Refused(_tied(weight.name))
        if turned and len(weight.rows) != weight.shape[0]:
            raise Refused(f"{call.by} takes a part of '{weight.name}'; give it a weight of its own")
        count, first = weight.shape[1] if turned else len(weight.rows), int(weight.rows[0])
        entry = self.found.layers.get((weight.name, first))
        alike = entry is not None and (len(entry.rows), entry.blocks, entry.turned)
        if entry is not None and alike == (count, blocks, turned):
            entry.columns = self.ids.join([entry.columns, columns], f"'{weight.name}', used twice")
            entry.calls += 1
            entry.module = entry.module if entry.module == self._whole(call, weight) else None
        else:
            for (name, start), other in self.found.layers.items():
                if (
                    name == weight.name
                    and start < first + count
                    and first < start + len(other.rows)
                ):
                    raise Refused(
                        f"{call.by} takes rows of '{name}' that are taken otherwise, too; give "
                        "each use a weight of its own"
                    )
            entry = LayerFound(
                weight.name,
                self.ids.fresh((count,), f"'{_owner(weight.name)}'"),
                columns.clone(),
                operator or call.name,
                weight.shape[2:],
                blocks,
                first,
                self._whole(call, weight),
                turned=turned,
            )
            self.found.layers[weight.name, first] = entry
        entry.outputs += math.prod(call.shape) if outputs is None else outputs
        if bias is not None:
            if entry.bias is not None and entry.bias.name != bias.name:
                raise Refused(
                    f"{call.by} takes '{weight.name}' with another bias than before; give each use "
                    "a weight of its own, or the same bias"
                )
            entry.bias = bias
            self.ids.join([entry.rows, self.values(bias, "bias")], f"the bias '{bias.name}'")
        return entry.rows

    def of_one_unit(
        self, call: Call, ids: Tensor, dims: Sequence[int], what: str, instead: str
    ) -> Tensor:
        """Ties what an operator mixes without a weight for each.

        Args:
            call: The operator.
            ids: Numbers of what it reads.
            dims: Dimensions that it mixes along.
            what: What it does, for errors.
            instead: The way out, for errors.

        Returns:
            A number for each of the rest, with size 1 along ``dims``.

        Raises:
            Refused: All rows of a layer would become one unit.
        """
        if not self.ids.differ(ids, dims):
            return self.ids.along(ids, dims, call.by)
        origins = self.ids.origins(ids)
        names = ", ".join(origins[:3]) + (", ..." if len(origins) > 3 else "")
        refusal = (
            f"{call.by} {what} units of {names}: a unit that is kept would change with the others; "
            f"{instead}"
        )
        if self.ids.would_be_one([each.rows for each in self.found.layers.values()], ids, dims):
            raise Refused(refusal)
        return self.ids.along(ids, dims, call.by, refusal)

    def _noted(
        self, name: str, kind: ValueKind, shape: Sequence[int], dim: int | None
    ) -> ValuesFound:
        if any(weight == name for weight, _ in self.found.layers):
            raise Refused(_tied(name))
        entry = self.found.values.get(name)
        if entry is None:
            ids = torch.zeros(tuple(shape), dtype=torch.int64)
            if kind != "shared":
                ids = self.ids.fresh(shape, f"'{name}'")
            entry = ValuesFound(kind, ids, dim)
            self.found.values[name] = entry
        elif entry.dim != dim or tuple(entry.ids.shape) != tuple(shape):
            raise Refused(_tied(name))
        return entry

    def _whole(self, call: Call, weight: Learned) -> str | None:
        """The path of the module that uses a weight, if it is a known one and does nothing else."""
        mine = type(call.owner) in _LAYERS and weight.name == f"{call.path}.weight".lstrip(".")
        return call.path if mine else None


_LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def _owner(parameter: str) -> str:
    return parameter.removesuffix(".weight")


def _tied(name: str) -> str:
    return (
        f"'{name}' is the weight of connections in one place and a value per unit in another (tied "
        "weights that cross groups); give each place a parameter of its own"
    )
