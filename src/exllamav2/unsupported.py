"""Names that scripts import and polybit has nothing behind yet: importing them is no error, using them is one."""

from typing import Any

from polybit.errors import RequestError


class ExLlamaV2Lora:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RequestError("ExLlamaV2Lora: adapters are not supported by polybit yet; merge it into the model first")

    @classmethod
    def from_directory(cls, *args: Any, **kwargs: Any) -> "ExLlamaV2Lora":
        return cls(*args, **kwargs)


class ExLlamaV2VisionTower:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RequestError("ExLlamaV2VisionTower: images are not supported by polybit yet; the model reads text")


class ExLlamaV2MMEmbedding:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RequestError("ExLlamaV2MMEmbedding: embeddings in place of tokens are not supported by polybit yet")
