"""The modules that get an option each: attention and MLP of every block, with their matrices by role and by input."""

from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import assert_never

from polybit import spec
from polybit.format.exl2 import storage_bits
from polybit.quantizer.candidates import ATTENTION_OPTIONS, MLP_OPTIONS, Option


@dataclass(frozen=True)
class Input:
    """Matrices that share an input, hence a Hessian and an order.

    The Hessian is the sum over the inputs of `heard`; a token passes `num_passes` of them.
    """

    linears: tuple[spec.Linear, ...]
    heard: tuple[spec.Linear, ...]
    num_passes: int = 1
    is_routed: bool = False  # which tokens pass is a router's choice


@dataclass(frozen=True)
class Slot:
    """One module. `name` and `json_roles` are what measurement files call it and its matrices."""

    name: str
    roles: Mapping[str, tuple[spec.Linear, ...]]  # one matrix, or one an expert; in file order
    json_roles: Mapping[str, str]
    inputs: tuple[Input, ...]
    options: tuple[Option, ...]

    @property
    def linears(self) -> tuple[tuple[str, spec.Linear], ...]:
        """Every matrix with its role, expert by expert."""
        return tuple(
            (role, linear)
            for group in zip(*self.roles.values(), strict=True)
            for role, linear in zip(self.roles, group, strict=True)
        )

    @property
    def num_weights(self) -> int:
        """Elements, padding columns included."""
        return sum(linear.in_features * linear.padded_out_features for _, linear in self.linears)

    def num_bits(self, option: Option) -> int:
        """What the slot takes on disk with that option."""
        return sum(
            storage_bits(option[role].layout(linear.in_features), linear.padded_out_features, linear.bias)
            for role, linear in self.linears
        )


def all_slots(model: spec.Model) -> list[Slot]:
    """Attention and MLP of every block, in model order."""
    return [slot for block in model.blocks for slot in slots_of(block)]


def slots_of(block: spec.Block) -> tuple[Slot, Slot]:
    """The block's attention and its MLP."""
    attn = block.attn
    roles = {"q": (attn.q,), "k": (attn.k,), "v": (attn.v,), "o": (attn.o,)}
    json_roles = {role: f"{role}_proj" for role in roles}
    inputs = (Input((attn.q, attn.k, attn.v), (attn.q,)), Input((attn.o,), (attn.o,)))
    layer = attn.q.key.rsplit(".", 2)[0]
    return Slot(f"{layer}.self_attn", roles, json_roles, inputs, ATTENTION_OPTIONS), _mlp_slot(block.mlp, layer)


def _mlp_slot(mlp: spec.Mlp, layer: str) -> Slot:
    match mlp:
        case spec.GatedMlp(gate=gate, up=up, down=down):
            roles = {"gate": (gate,), "up": (up,), "down": (down,)}
            inputs = (Input((gate, up), (gate,)), Input((down,), (down,)))
            return Slot(f"{layer}.mlp", roles, _names("gate_proj", "up_proj", "down_proj"), inputs, MLP_OPTIONS)
        case spec.PlainMlp(up=up, down=down):
            inputs = (Input((up,), (up,)), Input((down,), (down,)))
            options = tuple({role: option[role] for role in ("up", "down")} for option in MLP_OPTIONS)
            names = {"up": "up_proj", "down": "down_proj"}
            return Slot(f"{layer}.mlp", {"up": (up,), "down": (down,)}, names, inputs, options)
        case spec.SparseMoe(experts=experts, top_k=top_k):
            gates, ups, downs = (tuple(getattr(expert, role) for expert in experts) for role in ("gate", "up", "down"))
            routed = tuple(Input((down,), (down,), is_routed=True) for down in downs)
            roles, names = {"gate": gates, "up": ups, "down": downs}, _names("w1", "w3", "w2")
            shared = Input(gates + ups, gates, top_k, is_routed=True)
            return Slot(f"{layer}.block_sparse_moe", roles, names, (shared, *routed), MLP_OPTIONS)
    assert_never(mlp)


def _names(gate: str, up: str, down: str) -> dict[str, str]:
    return {"gate": gate, "up": up, "down": down}
