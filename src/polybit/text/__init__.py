"""Text in and out of a model: tokenizer, streaming detokenizer, chat template. It knows no model and no torch."""

from polybit.text.chat_template import ChatTemplate, Message
from polybit.text.detokenizer import Detokenizer
from polybit.text.piece_index import PieceIndex
from polybit.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "Message", "PieceIndex", "Tokenizer"]
