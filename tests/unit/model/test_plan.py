"""Plans for machines that are made up: what goes where, to the byte, and what is said where nothing fits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polybit.errors import OutOfMemory
from polybit.kernels import reference
from polybit.kernels.reference.attention import QUERY_RUN
from polybit.model.footprint import BlockBytes, Footprint, footprint_of
from polybit.model.options import LoadOptions
from polybit.model.plan import GIB, GPU_SLACK, SMALL_TABLE, Budget, Machine, Plan, longest_context, plan_memory
from polybit.model.source import open_model
from random_model import write_random_model

BLOCK = BlockBytes(matrices=GIB, vectors=0, cache=1 << 16)
TEN = Footprint(
    table=GIB // 2,
    positions=0,
    blocks=(BLOCK,) * 10,
    norm=0,
    head=GIB // 2,
    head_is_table=False,
    activations=0,
    scores=0,
    workspace=0,
    logits=0,
    max_seq_len=8192,
)
CACHE = 1024 * BLOCK.cache  # of one block


def gpus(*sizes: float, ram: float = 64) -> Machine:
    budgets = (Budget(torch.device("cuda", i), int(size * GIB)) for i, size in enumerate(sizes))
    return Machine(tuple(budgets), int(ram * GIB))


def plan(machine: Machine, sizes: Footprint = TEN, tokens: int = 1024, offload: bool = False) -> Plan:
    return plan_memory(sizes, machine, tokens, offload)


class TestSizes:
    def test_of_a_dense_model_are_its_file_and_what_a_token_adds(self, tmp_path: Path) -> None:
        source = open_model(write_random_model(tmp_path), LoadOptions(device="cpu"))
        sizes = footprint_of(source, torch.float16, unpacked=False, backend=reference)
        assert sizes.weights == sum(source.checkpoint.num_bytes(name) for name in source.checkpoint.names())
        assert [block.cache for block in sizes.blocks] == [2 * 2 * 16 * 2] * 2  # K and V, heads, head dim, bytes

    def test_a_tied_head_takes_nothing_beside_its_table(self, tmp_path: Path) -> None:
        source = open_model(write_random_model(tmp_path, {"tie_word_embeddings": True}), LoadOptions(device="cpu"))
        same, other = (footprint_of(source, d, unpacked=False, backend=reference) for d in (torch.half, torch.float32))
        assert same.head_is_table
        assert not other.head_is_table  # fp16 on disk
        assert same.weights == sum(source.checkpoint.num_bytes(name) for name in source.checkpoint.names())

    def test_scores_of_attention_grow_with_what_is_cached(self) -> None:
        sizes = replace(TEN, scores=8)
        assert sizes.scratch(8192) - sizes.scratch(4096) == 8 * QUERY_RUN * 4096
        assert sizes.scratch(1 << 30) == sizes.scratch(8192)  # one sequence reaches no further

    def test_captured_steps_hold_logits_and_a_spare_page(self, tmp_path: Path) -> None:
        folder = write_random_model(tmp_path, {"vocab_size": 1000})
        with_graphs, without = (
            footprint_of(open_model(folder, LoadOptions(graphs=graphs)), torch.float16, False, reference)
            for graphs in (True, False)
        )
        assert with_graphs.graphs >= 256 * sum(block.cache for block in with_graphs.blocks) + 16 * 1000 * 4
        assert replace(with_graphs, graphs=0) == without


class TestOneDevice:
    def test_everything_is_counted(self) -> None:
        (share,) = plan(gpus(24)).shares
        assert (share.blocks, share.cache) == (range(10), 10 * CACHE)
        assert share.weights == 10 * GIB + TEN.head

    def test_only_a_gpu_captures_steps(self) -> None:
        cpu = Machine((Budget(torch.device("cpu"), 24 * GIB),), 24 * GIB)
        scratch = [plan(m, replace(TEN, graphs=4 * GIB)).shares[0].scratch for m in (gpus(24), cpu)]
        assert scratch == [GPU_SLACK + 4 * GIB, 0]

    def test_what_kernels_keep_is_counted_on_each(self) -> None:
        for machine in (gpus(24), gpus(8, 12)):
            kept = plan(machine, replace(TEN, kept=GIB)).shares
            assert all(share.scratch == GPU_SLACK + GIB + TEN.scratch(1024) for share in kept if share.cache > 3 * GIB)
            assert min(share.scratch for share in kept) >= GPU_SLACK + GIB

    @pytest.mark.parametrize("gib", [14, 80])
    def test_the_table_stays_in_ram_whatever_room_there_is(self, gib: int) -> None:
        found = plan(gpus(gib))
        assert found.table == torch.device("cpu")
        assert found.ram == TEN.table
        assert found.shares[0].weights == 10 * GIB + TEN.head

    def test_a_small_table_goes_to_the_gpu_if_it_fits(self) -> None:
        small = replace(TEN, table=SMALL_TABLE)
        found = plan(gpus(24), small)
        assert (found.table, found.ram) == (torch.device("cuda", 0), 0)
        assert found.shares[0].weights == 10 * GIB + TEN.head + small.table
        needed = plan(gpus(24), replace(small, table=0)).shares[0].total / GIB
        assert plan(gpus(needed), small).table == torch.device("cpu")

    def test_a_table_for_which_ram_has_no_room_goes_to_the_gpu(self) -> None:
        found = plan(gpus(24, ram=0.4))
        assert (found.table, found.ram) == (torch.device("cuda", 0), 0)
        with pytest.raises(OutOfMemory):
            plan(gpus(plan(gpus(24)).shares[0].total / GIB, ram=0.4))

    def test_a_tied_table_is_the_heads_own_memory(self) -> None:
        found = plan(gpus(14), replace(TEN, head_is_table=True))
        assert (found.table, found.ram) == (torch.device("cuda", 0), 0)
        assert found.shares[0].weights == 10 * GIB + TEN.head

    def test_a_cpu_holds_all_of_it(self) -> None:
        cpu = Machine((Budget(torch.device("cpu"), 24 * GIB),), 24 * GIB)
        found = plan(cpu)
        assert found.shares[0].weights == 10 * GIB + TEN.head + TEN.table
        assert (found.table, found.ram) == (torch.device("cpu"), 0)

    def test_the_first_that_holds_everything_is_the_only_one(self) -> None:
        assert [share.device.index for share in plan(gpus(4, 20, 20)).shares] == [1]


class TestSeveral:
    def test_blocks_fill_devices_in_order_and_the_head_is_last(self) -> None:
        first, second = plan(gpus(8, 12)).shares
        assert (first.blocks, second.blocks) == (range(5), range(5, 10))
        assert first.weights == 5 * GIB
        assert second.weights == 5 * GIB + TEN.head
        assert (first.cache, second.cache) == (5 * CACHE, 5 * CACHE)

    def test_a_device_too_small_for_a_block_is_left_out(self) -> None:
        assert [share.device.index for share in plan(gpus(2, 8, 12)).shares] == [1, 2]

    def test_block_devices_name_one_a_block(self) -> None:
        assert [device.index for device in plan(gpus(8, 12)).block_devices] == [0] * 5 + [1] * 5

    def test_what_a_split_table_and_tied_head_need_is_a_copy(self) -> None:
        found = plan(gpus(8, 12), replace(TEN, head_is_table=True))
        assert found.table == torch.device("cpu")
        assert found.shares[-1].weights == 5 * GIB + TEN.head

    @given(st.lists(st.floats(0.5, 16), min_size=1, max_size=4), st.integers(1, 8192), st.booleans())
    def test_no_plan_exceeds_a_device(self, sizes: list[float], tokens: int, offload: bool) -> None:
        machine = gpus(*sizes, ram=6)
        try:
            found = plan(machine, tokens=tokens, offload=offload)
        except OutOfMemory:
            return
        assert all(share.total <= share.free for share in found.shares)
        assert [i for share in found.shares for i in share.blocks] == list(range(10))
        assert found.ram <= machine.ram
        assert found.longest >= tokens // 256 * 256


class TestOffload:
    def test_only_when_asked(self) -> None:
        with pytest.raises(OutOfMemory, match=r"--offload \(offload=True\) keeps the layers that do not fit in RAM"):
            plan(gpus(10))
        assert len(plan(gpus(10), offload=True).offloaded) > 0

    def test_nothing_is_offloaded_that_fits(self) -> None:
        found = plan(gpus(14), offload=True)
        assert (len(found.offloaded), found.ram) == (0, TEN.table)

    def test_the_last_blocks_leave_and_two_places_are_kept_for_them(self) -> None:
        found = plan(gpus(10), offload=True)
        (share,) = found.shares
        resident = 10 - len(found.offloaded)
        assert found.offloaded == range(resident, 10)
        assert share.weights == (resident + 2) * GIB + TEN.head
        assert share.cache == 10 * CACHE  # K and V stay on the GPU
        assert found.ram == len(found.offloaded) * GIB + TEN.table
        assert share.spare < GIB  # no further block would have fitted

    def test_the_last_of_several_gpus_takes_them(self) -> None:
        found = plan(gpus(5, 8), offload=True)
        assert [share.blocks for share in found.shares] == [range(2), range(2, 10)]
        assert found.offloaded.stop == 10

    def test_ram_has_an_end_too(self) -> None:
        with pytest.raises(OutOfMemory):
            plan(gpus(10, ram=1), offload=True)


class TestLongest:
    def test_is_the_last_that_fits(self) -> None:
        machine = gpus(13.5)
        longest = longest_context(TEN, machine, offload=False)
        assert 0 < longest < TEN.max_seq_len
        assert plan(machine, tokens=longest).longest == longest
        with pytest.raises(OutOfMemory, match=rf"--cache-tokens {longest} \(cache_tokens={longest}\) would fit"):
            plan(machine, tokens=longest + 256)

    def test_a_shorter_cache_will_do_down_to_a_limit(self) -> None:
        machine = gpus(13.5)
        longest = longest_context(TEN, machine, offload=False)
        assert plan_memory(TEN, machine, 8192, False, fewest=longest).cache_tokens == longest
        with pytest.raises(OutOfMemory, match="cache of 8,192 tokens"):
            plan_memory(TEN, machine, 8192, False, fewest=longest + 256)

    def test_goes_no_further_than_the_model(self) -> None:
        assert longest_context(TEN, gpus(80), offload=False) == TEN.max_seq_len


class TestErrors:
    def test_the_message_adds_up(self) -> None:
        with pytest.raises(OutOfMemory) as raised:
            plan_memory(TEN, gpus(8), 1024, False, what="models/ten")
        text = str(raised.value)
        assert text.startswith("models/ten needs 12.75 GiB (")
        for words in ("weights 10.50 GiB", "cache of 1,024 tokens 640 MiB", "8.00 GiB of cuda:0", "--gpu-split"):
            assert words in text
        assert "\n" not in text

    def test_dequantized_weights_are_a_choice(self) -> None:
        with pytest.raises(OutOfMemory, match=r"--no-unpacked \(unpacked=False\)"):
            plan(gpus(8), replace(TEN, unpacked=True))
