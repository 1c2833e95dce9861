"""The text of one request, piece by piece, for a thread or for an event loop."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

from polybit.errors import PolybitError
from polybit.generator.background import Background
from polybit.generator.completion import Completion
from polybit.generator.sequence import Sequence
from polybit.generator.serving import Serving


class Stream(Iterator[str], AsyncIterator[str]):
    """`for piece in stream`, or `async for piece in stream`: pieces that are not empty.

    The request is on its way from the start, together with all others of its engine. Leaving it early (`close`, or the
    end of a `with` block) frees its pages. An error of the request is raised after its last piece.
    """

    def __init__(self, sequence: Sequence, serving: Serving, background: Background) -> None:
        self._sequence = sequence
        self._serving = serving
        self._background = background
        self._num_told = 0

    # ---- pieces

    def __next__(self) -> str:
        while True:
            has_ended = self.has_ended  # asked first: another thread may add the last piece at any time
            if (piece := self.ready()) is not None:
                return piece
            if has_ended:
                raise self.error or StopIteration
            self._serving.wait(self._has_news)

    async def __anext__(self) -> str:
        while True:
            has_ended = self.has_ended
            if (piece := self.ready()) is not None:
                return piece
            if has_ended:
                raise self.error or StopAsyncIteration
            await self._background.next_step(self._sequence)

    def ready(self) -> str | None:
        """The next piece that is there already; None: there is none yet, or no more."""
        pieces = self._sequence.pieces
        while self._num_told < len(pieces):
            self._num_told += 1
            if piece := pieces[self._num_told - 1]:
                return piece
        return None

    def _has_news(self) -> bool:
        return self._num_told < len(self._sequence.pieces) or self._sequence.has_ended

    def block(self, tokens: Iterable[int]) -> None:
        """The next token is none of these, ids of the vocabulary. For those who make the steps themselves."""
        self._sequence.block(tokens)

    # ---- the whole

    @property
    def completion(self) -> Completion:
        """What came out so far; whole once the stream is exhausted."""
        return self._sequence.completion()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes, though pieces may be left to take."""
        return self._sequence.has_ended

    @property
    def error(self) -> PolybitError | None:
        """Why it ended early."""
        return self._sequence.error

    @property
    def has_begun(self) -> bool:
        """Whether it has left the queue."""
        return self._sequence.has_begun

    @property
    def prompt_tokens_read(self) -> int:
        """How far the prompt is read; tokens that others had read before count."""
        return min(self._sequence.num_stored, self._sequence.num_prompt)

    def drain(self) -> Completion:
        """Generate to the end. Raises the request's error."""
        for _ in self:
            pass
        return self.completion

    async def finished(self) -> Completion:
        """`drain` for an event loop."""
        async for _ in self:
            pass
        return self.completion

    # ---- leaving

    def close(self) -> None:
        """Nobody wants more of it; nothing where it has ended. Never waits, so an event loop may call it too."""
        self._serving.cancel(self._sequence)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._serving.abandon(self._sequence)


@contextmanager
def closing_all(streams: Iterable[Stream]) -> Iterator[None]:
    try:
        yield
    finally:
        for stream in streams:
            stream.close()
