"""ExLlamaV2Config: a model folder's description, and the settings that a script may change before it loads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exllamav2.refusal import refuse
from polybit import spec
from polybit.errors import RequestError
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.text.json_object import read_object

READ = (
    *("architecture", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "intermediate_size", "num_experts", "num_experts_per_token", "sliding_window"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)


@dataclass(slots=True)  # slots: a misspelt setting is an error
class ExLlamaV2Config:
    """With a directory it reads the folder at once, else at `prepare`."""

    model_dir: str | None = None

    # Read from the folder.
    architecture: str = field(default="", init=False)
    vocab_size: int = field(default=0, init=False)
    hidden_size: int = field(default=0, init=False)
    num_hidden_layers: int = field(default=0, init=False)
    num_attention_heads: int = field(default=0, init=False)
    num_key_value_heads: int = field(default=0, init=False)
    head_dim: int = field(default=0, init=False)
    bos_token_id: int | None = field(default=None, init=False)
    eos_token_id: int | None = field(default=None, init=False)
    pad_token_id: int | None = field(default=None, init=False)
    intermediate_size: int = field(default=0, init=False)
    num_experts: int | None = field(default=None, init=False)
    num_experts_per_token: int | None = field(default=None, init=False)
    sliding_window: int | None = field(default=None, init=False)
    attn_logit_softcapping: float | None = field(default=None, init=False)
    final_logit_softcapping: float | None = field(default=None, init=False)
    model_config: dict[str, Any] = field(default_factory=dict, init=False)  # config.json
    generation_config: dict[str, Any] = field(default_factory=dict, init=False)
    _read: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # the above, as they were

    # What the model computes.
    max_seq_len: int = field(default=2048, init=False)
    scale_pos_emb: float = field(default=1.0, init=False)
    scale_alpha_value: float = field(default=1.0, init=False)
    alt_rope_method: str | None = field(default=None, init=False)
    yarn_rope_factor: float = field(default=1.0, init=False)
    load_in_q4: bool = field(default=False, init=False)

    # How fast, and in how much memory: polybit chooses by itself, and any value gives the same text.
    max_batch_size: int = field(default=1, init=False)
    max_input_len: int = field(default=2048, init=False)
    max_attention_size: int = field(default=2048**2, init=False)
    max_output_len: int | None = field(default=None, init=False)
    max_dq_size: int = field(default=512 * 2**20, init=False)
    no_flash_attn: bool = field(default=False, init=False)
    no_xformers: bool = field(default=False, init=False)
    no_sdpa: bool = field(default=False, init=False)
    no_graphs: bool = field(default=False, init=False)
    fasttensors: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.model_dir is not None:
            self.prepare()

    @property
    def folder(self) -> Path:
        if self.model_dir is None:
            raise RequestError("ExLlamaV2Config: model_dir is not set; pass the model's folder")
        return Path(self.model_dir).expanduser()

    def prepare(self, no_tensors: bool = False) -> None:
        """Read and check the folder, whose tensors are looked for either way."""
        source = open_model(self.folder)
        model, attn = source.spec, source.spec.blocks[0].attn
        self.architecture = model.architecture
        self.vocab_size = model.embedding.num_rows
        self.hidden_size = model.hidden_size
        self.num_hidden_layers = len(model.blocks)
        self.num_attention_heads = attn.num_heads
        self.num_key_value_heads = attn.num_kv_heads
        self.head_dim = attn.head_dim
        self.bos_token_id = _first_id(source.config, "bos")
        self.eos_token_id = _first_id(source.config, "eos")
        self.pad_token_id = _first_id(source.config, "pad")
        self.intermediate_size, self.num_experts, self.num_experts_per_token = _mlp_sizes(model.blocks[0].mlp)
        self.sliding_window = attn.window
        self.attn_logit_softcapping, self.final_logit_softcapping = attn.softcap, model.head.softcap
        self.model_config = source.config
        self.generation_config = read_object(self.folder / "generation_config.json") or {}
        self._read = {name: getattr(self, name) for name in READ}
        self.max_seq_len = model.max_seq_len

    def _check_read(self) -> None:
        """Raises RequestError where a script changed what the folder says."""
        for name, value in self._read.items():
            if getattr(self, name) != value:
                raise RequestError(
                    f"ExLlamaV2Config: {name} is {getattr(self, name)!r}, but the folder's is {value!r}, which polybit "
                    "takes as it is; edit config.json in a copy of the folder"
                )

    def arch_compat_overrides(self, quiet: bool = False, warn_only: bool = False) -> None:
        """Nothing to override: polybit's kernels serve every feature of a model that loads."""

    def set_low_mem(self) -> None:
        """Nothing to lower: a prompt is always read in chunks."""

    def load_options(self) -> LoadOptions:
        """What the settings mean to polybit."""
        self._check_read()
        yarn = self.alt_rope_method == "yarn"
        refuse("ExLlamaV2Config", load_in_q4=self.load_in_q4, alt_rope_method=None if yarn else self.alt_rope_method)
        return LoadOptions(
            max_seq_len=self.max_seq_len,
            rope_scale=None if self.scale_pos_emb == 1 else self.scale_pos_emb,
            rope_alpha=None if self.scale_alpha_value == 1 else self.scale_alpha_value,
            rope_yarn=self.yarn_rope_factor if yarn else None,
            graphs=not self.no_graphs,
        )


def _mlp_sizes(mlp: spec.Mlp) -> tuple[int, int | None, int | None]:
    """Width, experts, and how many of them a token goes through."""
    match mlp:
        case spec.SparseMoe():
            return mlp.experts[0].up.out_features, len(mlp.experts), mlp.top_k
        case spec.GatedMlp() | spec.PlainMlp():
            return mlp.up.out_features, None, None


def _first_id(config: dict[str, Any], role: str) -> int | None:
    value = config.get(f"{role}_token_id")
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) else None
