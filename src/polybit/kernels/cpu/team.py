"""The threads that share the work of a kernel: as many as torch has, the caller among them.

A kernel offers work; whoever is there joins in, and the caller waits for those alone. So a thread that is not woken in
time, or whose core another program uses, delays nobody. Work that follows soon finds the others awake: waking one takes
as long as a product of a megabyte.
"""

import atexit
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numpy.typing import NDArray

from polybit.kernels.cpu.atomic import exchange, read, replace, take_next
from polybit.kernels.cpu.inner import emitted

log = logging.getLogger(__name__)

LINE = 8  # int64 in a line of the caches, which cores do not share
TICKETS, LEFT, CALLS, LIMIT = (LINE * i for i in range(4))
WORK, ARGUMENTS = LIMIT + 1, LIMIT + 2
# TICKETS counts pieces of work, and in its lower bits those who joined the last; after its end there are no more.
TICKET_BITS = 16
NO_MORE = (1 << TICKET_BITS) - 1
PATIENCE = 1 << 10  # turns given away without work in between: a fraction of a millisecond
# Who waits lets others have the core, if any want it: the one who is waited for may be among them.
give_way = types.ExternalFunction("SwitchToThread" if os.name == "nt" else "sched_yield", types.int32())

Board = NDArray[np.int64]


class Team:
    """One kernel at a time, whoever calls: `with team.turn: kernel(..., *team.call())`."""

    def __init__(self) -> None:
        self.turn = threading.Lock()  # in a `with` of its own: whatever interrupts there, others get theirs
        self._board = _empty_board()
        self._awake = threading.Event()
        self._may_leave = False
        self._is_complete = False  # the system gives no more threads, or the process ends
        self._threads = list[threading.Thread]()
        atexit.register(self.end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def call(self) -> tuple[Board, int]:
        """What `together` takes: the board and for how many threads. They are awake soon."""
        count = torch.get_num_threads()
        if count > 1:
            self._wake(count)
        return self._board, count

    def _wake(self, count: int) -> None:
        if len(self._threads) > count - 1:  # they would be awake, and use their cores, whenever the others are
            self._dismiss()
            self._is_complete = False
        while len(self._threads) < count - 1 and not self._is_complete:
            self._add()
        self._board[CALLS] += 1
        if not self._awake.is_set():
            self._awake.set()

    def _add(self) -> None:
        thread = threading.Thread(target=self._help, name="polybit-kernels", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._is_complete = True
            log.warning(
                "%d threads compute, not more: %s; see ulimit -u, or ask for fewer (--threads)",
                len(self._threads) + 1,
                error,
            )
            return
        self._threads.append(thread)

    def _help(self) -> None:
        job = 0
        while not self._may_leave:
            job, calls = help_out(self._board, job)
            self._awake.clear()
            if calls == self._board[CALLS] and not self._may_leave:
                self._awake.wait()

    def _begin_anew(self) -> None:
        """A forked process has none of the threads, and lock and board as they were at that moment."""
        self.turn, self._awake, self._threads = threading.Lock(), threading.Event(), []
        self._board, self._may_leave = _empty_board(), False

    def end(self) -> None:
        """Before the code that threads run is gone."""
        with self.turn:
            self._dismiss()
            self._is_complete = True

    def _dismiss(self) -> None:
        self._may_leave = True
        try:
            while self._threads:
                self._awake.set()  # again, for another that falls asleep may just have cleared it
                self._threads[-1].join(0.01)
                if not self._threads[-1].is_alive():
                    self._threads.pop()
        finally:
            self._may_leave = False


def _empty_board() -> Board:
    return np.zeros(4 * LINE, np.int64)


team = Team()


@njit(cache=True, error_model="numpy", nogil=True)
def help_out(board: Board, job: int) -> tuple[int, int]:
    """Join in what is offered after `job`, until for a while there is nothing -> the last one, and calls seen."""
    calls = read(board, CALLS)
    idle = 0
    while idle < PATIENCE:
        tickets = read(board, TICKETS)
        offered, ticket = tickets >> TICKET_BITS, tickets & NO_MORE
        if offered != job and ticket < read(board, LIMIT) and replace(board, TICKETS, tickets, tickets + 1):
            call(board[WORK], board[ARGUMENTS], ticket)
            take_next(board, LEFT)
            job, idle = offered, 0
        elif read(board, CALLS) != calls:
            calls, idle = read(board, CALLS), 0
        else:
            give_way()
            idle += 1
    return job, calls


def _offer(board: Board, limit: int, work: int, arguments: int) -> None:
    """Do it, with up to limit - 1 others."""
    job = (read(board, TICKETS) >> TICKET_BITS) + 1
    board[LEFT], board[LIMIT], board[WORK], board[ARGUMENTS] = 0, limit, work, arguments
    exchange(board, TICKETS, (job << TICKET_BITS) + 1)
    call(work, arguments, 0)
    joined = (exchange(board, TICKETS, (job << TICKET_BITS) + NO_MORE) & NO_MORE) - 1
    while read(board, LEFT) < joined:
        give_way()


@emitted
def together(typing: Any, board: Any, limit: Any, work: Any, arguments: Any) -> Any:
    """work(worker, *arguments) by up to `limit` threads at once, each with a number below that of its own.

    `work` is a compiled function; it does what the others leave and is called by the caller at least. It asks for no
    memory and raises nothing, for nobody would hear of it.
    """
    resolved = typing.resolve_function_type(work, (types.int64, *arguments.types), {})
    compiled = work.dispatcher.overloads[resolved.args]

    def emit(context: Any, b: Any, signature: Any, values: Sequence[Any]) -> Any:
        address, packed = _bundle(context, b, compiled, signature.args[3], values[3])
        offered = types.void(board, types.intp, types.intp, types.intp)
        return context.compile_internal(b, _offer, offered, [*values[:2], address, packed])

    return types.void(board, types.intp, work, arguments), emit


def _bundle(context: Any, b: Any, compiled: Any, kind: Any, arguments: Any) -> tuple[Any, Any]:
    """Addresses of a function (packed arguments, worker) that calls a compiled one, and of the packed arguments."""
    context.add_linking_libs([compiled.library])
    packed = cgutils.alloca_once_value(b, arguments)
    function = ir.Function(b.module, CALLED, b.module.get_unique_name("unpack_and_call"))
    function.linkage = "internal"
    inside = ir.IRBuilder(function.append_basic_block())
    values = cgutils.unpack_tuple(inside, inside.load(inside.inttoptr(function.args[0], packed.type)))
    context.call_internal_no_propagate(inside, compiled.fndesc, compiled.signature, [function.args[1], *values])
    inside.ret_void()
    return b.ptrtoint(function, INT), b.ptrtoint(packed, INT)


INT = ir.IntType(64)
CALLED = ir.FunctionType(ir.VoidType(), [INT, INT])


@emitted
def call(typing: Any, address: Any, arguments: Any, worker: Any) -> Any:
    """A function of CALLED."""

    def emit(context: Any, b: Any, signature: Any, values: Sequence[Any]) -> Any:
        b.call(b.inttoptr(values[0], CALLED.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit
