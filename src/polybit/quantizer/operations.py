"""How much a conversion computes, stage by stage, in floating-point operations: what its time is estimated from.

Products are counted from shapes. What is no product (searches of scales, rounding) is counted as the operations of
products that take as long, measured once on a small model; so the sum is good for an estimate, not for a benchmark.
"""

from collections.abc import Mapping

from polybit import spec
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.tune import EPOCHS

PRICING = 22_000  # for each weight: every width and a dozen scales tried on it
ROUNDING = 8_000  # for each weight
MEASURING = 100_000  # for each weight: nineteen options of gptq-v2 rounded
FEEDBACK = 8  # for each weight and input feature: errors pushed on, and sweeps of descent over them
VISITS = 4.0  # forward passes that quantizing a layer takes, quantized and not, parts of one counted as parts
WRITING = 2.0  # a token that the model writes takes as long as so many that it reads
TESTED = 1000  # tokens that source and result are compared on, the sample counted as some
OWN_TEXT_SHARE = 0.5  # of the rows, where no text is given


def operations(model: spec.Model, options: ConvertOptions) -> Mapping[str, float]:
    """By stage, for one model; those of judging are shared by all models of a conversion."""
    tokens, head = options.rows * options.length, _num_weights(model.head.linear)
    passing = 2 * _weights_passed(model)  # for each token
    statistics = 2 * tokens * sum(linear.in_features**2 for linear in model.linears)
    weights = sum(map(_num_weights, model.linears))
    feedback = FEEDBACK * sum(linear.in_features * _num_weights(linear) for linear in model.linears)
    measured = options.measure_rows * options.measure_length
    return {
        "calibrate": OWN_TEXT_SHARE * WRITING * tokens * (passing + 2 * head),
        "forward": tokens * passing,
        "loss": 4 * tokens * head,
        "backward": 2 * tokens * passing + statistics + PRICING * weights,
        "measure": 10 * measured * passing + MEASURING * weights,
        "quantize": VISITS * tokens * passing + (1 + options.how.by_loss) * statistics + feedback + ROUNDING * weights,
        "test": 2 * TESTED * (passing + 2 * head),
        "head": (ROUNDING + FEEDBACK * model.hidden_size) * head + 2 * tokens * model.hidden_size**2,
        "tune": EPOCHS * tokens * (2 * passing + 6 * head),
    }


def _weights_passed(model: spec.Model) -> float:
    """By each token; experts that it is not sent to left out."""
    return sum(
        sum(map(_num_weights, block.attn.linears)) + sum(map(_num_weights, block.mlp.linears)) * active_share(block.mlp)
        for block in model.blocks
    )


def active_share(mlp: spec.Mlp) -> float:
    """Of its matrices, that one token passes."""
    return mlp.top_k / len(mlp.experts) if isinstance(mlp, spec.SparseMoe) else 1.0


def _num_weights(linear: spec.Linear) -> int:
    return linear.in_features * linear.padded_out_features
