"""Write the table of README.md and docs/which-bpw.md: the most bits per weight that fit a graphics card.

python docs/write_vram_table.py          rewrite the tables
python docs/write_vram_table.py --check  exit 1 if one is not current
"""

import sys
from pathlib import Path
from typing import Any

from polybit import arch, spec
from polybit.kernels.pages import FULL
from polybit.model.machine import imagined_machine
from polybit.quantizer.prospect import Prospect

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "which-bpw.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

CONTEXT = 4096  # tokens of fp16 keys and values
DESKTOP_GIB = 0.25  # of a card that also draws a screen
CARDS_GIB = (6, 8, 12, 16, 24, 48)
BPWS = (8.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.75, 2.5, 2.25)


def llama(
    hidden: int, layers: int, mlp: int, heads: int, kv_heads: int, head_dim: int, vocab: int, tied: bool
) -> spec.Model:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
    }
    return arch.read_model(config, "docs/write_vram_table.py")


MODELS = {
    "1B (Llama 3.2 1B)": llama(2048, 16, 8192, 32, 8, 64, 128256, tied=True),
    "3B (Llama 3.2 3B)": llama(3072, 28, 8192, 24, 8, 128, 128256, tied=True),
    "8B (Llama 3.1 8B)": llama(4096, 32, 14336, 32, 8, 128, 128256, tied=False),
    "14B (Qwen 2.5 14B)": llama(5120, 48, 13824, 40, 8, 128, 152064, tied=False),
    "32B (Qwen 2.5 32B)": llama(5120, 64, 27648, 40, 8, 128, 152064, tied=False),
    "70B (Llama 3 70B)": llama(8192, 80, 28672, 64, 8, 128, 128256, tied=False),
}


def fits(model: spec.Model, bpw: float, card_gib: int) -> bool:
    return Prospect(model, imagined_machine(str(card_gib - DESKTOP_GIB)), FULL, head_bits=6).fits(bpw, CONTEXT)


def best_bpw(model: spec.Model, card_gib: int) -> str:
    return next((f"{bpw:g}" for bpw in BPWS if fits(model, bpw, card_gib)), "—")


def table() -> str:
    head = ["model", *(f"{card} GB" for card in CARDS_GIB)]
    rows = [[name, *(best_bpw(model, card) for card in CARDS_GIB)] for name, model in MODELS.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] + [":-:"] * len(CARDS_GIB), *rows))


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    current = {page: page.read_text(encoding="utf-8") for page in PAGES}
    if "--check" in sys.argv:
        sys.exit(any(with_table(text) != text for text in current.values()))
    for page, text in current.items():
        page.write_text(with_table(text), encoding="utf-8")


if __name__ == "__main__":
    main()
