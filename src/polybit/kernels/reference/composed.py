"""Products together with what comes before them, one after the other: faster backends do both in one go."""

from polybit.kernels.composed import InTurn
from polybit.kernels.reference.activations import gated_activate
from polybit.kernels.reference.matrices import matmul
from polybit.kernels.reference.norms import rms_norm

_in_turn = InTurn(rms_norm, gated_activate, matmul)
norm_matmul, gated_matmul = _in_turn.norm_matmul, _in_turn.gated_matmul
