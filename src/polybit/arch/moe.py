"""Sparse mixtures of experts, shared by the families that have them."""

from polybit.arch.config import HFConfig
from polybit.arch.decoder import MOST_EXPERTS
from polybit.spec import GatedMlp, SparseMoe

TOP_K = ("num_experts_per_tok", "moe_top_k")
EXPERTS = ("num_experts", "num_local_experts", "moe_num_experts")


def sparse_moe(cfg: HFConfig, router_key: str, experts: tuple[GatedMlp, ...], renormalise: bool) -> SparseMoe:
    """Errors: ConfigError where a token is to visit more experts than there are."""
    top_k = cfg.count(*TOP_K)
    if top_k > len(experts):
        raise cfg.error(TOP_K[0], top_k, f"at most the {len(experts)} experts there are")
    return SparseMoe(router_key, experts, top_k, renormalise)


def num_experts(cfg: HFConfig) -> int:
    return cfg.count(*EXPERTS, most=MOST_EXPERTS)
