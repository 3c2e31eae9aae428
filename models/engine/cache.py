"""Keys and values of all sequences in blocks of one pool, shared between sequences that begin alike.

A tree of full blocks, one path for each beginning that is known. Knows nothing of scheduling or of the model.
"""

from collections import OrderedDict
from collections.abc import Iterator

import torch

BLOCK = 16  # tokens
PINNED = 1 / 4  # of the pool, at most, for beginnings that a second sequence has used


def blocks(tokens: int) -> int:
    """How many blocks `tokens` tokens take."""
    return -(-tokens // BLOCK)


class Block:
    """Room for BLOCK tokens; in the tree under `key`, its parent and its tokens, once it is known what comes there.

    `writer` is the number of the sequence that computes it; 0: it is filled, and anyone may read it.
    """

    __slots__ = ("index", "key", "shared", "users", "writer")

    def __init__(self, index: int, writer: int) -> None:
        self.index = index
        self.key: tuple[Block | None, tuple[int, ...]] | None = None
        self.writer = writer
        self.users = 1
        self.shared = False


class Cache:
    """A pool of `budget` tokens, [layers, 2, budget, kv_heads, head_dim], taken once at the start.

    A block nobody uses any more keeps its contents until its room is needed: of what one sequence has used the least
    recently used first, what several have shared (a template, a schema) last.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, budget: int
    ) -> None:
        self.blocks = budget // BLOCK
        self.budget = self.blocks * BLOCK
        self.bytes_per_token = 2 * layers * kv_heads * head_dim * dtype.itemsize
        self.pool = torch.zeros(layers, 2, self.budget, kv_heads, head_dim, dtype=dtype, device=device)
        self._taken = bytearray(self.blocks)
        self._tree: dict[tuple[Block | None, tuple[int, ...]], Block] = {}
        # Both in order of last use; a block always stands behind its children, so that the first one has none.
        self._idle: OrderedDict[Block, None] = OrderedDict()
        self._pinned: OrderedDict[Block, None] = OrderedDict()
        self._tables: dict[int, list[Block]] = {}
        self._full: dict[int, int] = {}
        self._in_use = self._shared = 0

    def table(self, number: int) -> list[int]:
        """The blocks of sequence `number`, in its order."""
        return [block.index for block in self._tables[number]]

    @property
    def used(self) -> int:
        """Tokens of room that rows hold."""
        return self._in_use * BLOCK

    def tokens(self) -> dict[str, int]:
        """Where the budget is, in tokens: `used` by rows (`shared`: by several), kept for later rows, or `free`."""
        kept = len(self._idle) + len(self._pinned)
        return {
            "used": self.used,
            "shared": self._shared * BLOCK,
            "pinned": len(self._pinned) * BLOCK,
            "evictable": len(self._idle) * BLOCK,
            "free": (self.blocks - self._in_use - kept) * BLOCK,
        }

    def available(self) -> int:
        """Blocks that can be had, by evicting all that nobody uses."""
        return self.blocks - self._in_use

    def find(self, ids: list[int]) -> tuple[int, int, int]:
        """How many leading blocks of `ids` are known, never its last token's; how many of these nobody uses; and the
        sequence that is still computing the last of them, 0 where all are filled."""
        path = list(self._path(ids))
        writer = next((block.writer for block in path if block.writer), 0)
        return len(path), sum(block.users == 0 for block in path), writer

    def _path(self, ids: list[int]) -> Iterator[Block]:
        parent: Block | None = None
        for start in range(0, (len(ids) - 1) // BLOCK * BLOCK, BLOCK):
            parent = self._tree.get((parent, tuple(ids[start : start + BLOCK])))
            if parent is None:
                return
            yield parent

    def open(self, number: int, ids: list[int], spare: int, reusable: int | None = None) -> int:
        """Give sequence `number` blocks for all of `ids`; how many tokens of it are there already.

        The caller has asked `find` and `available` first. `spare` blocks behind them are kept free if
        possible, so that the answer may lie side by side with the prompt. What comes after the first `reusable` tokens
        is computed anew; None: the last one.
        """
        assert number not in self._tables
        table = self._tables[number] = list(self._path(ids if reusable is None else ids[: reusable + 1]))
        for block in table:
            self._use(block)
        known = len(table)
        self._append(number, blocks(len(ids)) - known, spare)
        for at in range(known, len(ids) // BLOCK):
            self._name(table, at, ids)
        self._full[number] = known
        return known * BLOCK

    def extend(self, number: int, tokens: int) -> bool:
        """Make room for the first `tokens` tokens of a sequence; False where there is none."""
        missing = blocks(tokens) - len(self._tables[number])
        if missing > self.available():
            return False
        if missing > 0:
            self._append(number, missing, 0)
        return True

    def fill(self, number: int, ids: list[int], computed: int) -> None:
        """The first `computed` of a sequence's tokens are in the pool: blocks full by now are for others to read."""
        table = self._tables[number]
        for at in range(self._full[number], computed // BLOCK):
            if table[at].key is None:
                self._name(table, at, ids)
            table[at].writer = 0
        self._full[number] = computed // BLOCK

    def close(self, number: int, *, sound: bool = True) -> None:
        """Sequence `number` needs its blocks no more; harmless if it has none. Unless they are `sound`, which they are
        not where something went wrong in it, nobody will find them again, whoever has filled them."""
        for block in reversed(self._tables.pop(number, [])):
            if not sound and block.key is not None:
                del self._tree[block.key]
                block.key = None
            block.users -= 1
            self._shared -= block.users == 1
            if block.users == 0:
                self._leave(block)
        self._full.pop(number, None)

    def _use(self, block: Block) -> None:
        block.shared = True
        block.users += 1
        self._shared += block.users == 2
        if block.users == 1:
            self._in_use += 1
            self._idle.pop(block, None)
            self._pinned.pop(block, None)

    def _leave(self, block: Block) -> None:
        self._in_use -= 1
        if block.key is None or block.writer:
            self._forget(block)
        elif block.shared:
            self._pinned[block] = None
            if len(self._pinned) > self.blocks * PINNED:
                self._idle[self._pinned.popitem(last=False)[0]] = None
        else:
            self._idle[block] = None

    def _forget(self, block: Block) -> None:
        if block.key is not None:
            del self._tree[block.key]
        self._taken[block.index] = 0

    def _name(self, table: list[Block], at: int, ids: list[int]) -> None:
        """Put a block into the tree, unless its parent is not there or another with the same tokens is."""
        parent = table[at - 1] if at else None
        key = (parent, tuple(ids[at * BLOCK : (at + 1) * BLOCK]))
        if (parent is None or parent.key is not None) and key not in self._tree:
            table[at].key = key
            self._tree[key] = table[at]

    def _append(self, number: int, count: int, spare: int) -> None:
        """Take `count` blocks, side by side and behind the sequence's last one where that can be."""
        free = self._taken.count(0)
        while free < count or (free < count + spare and self._idle):
            kept = self._idle or self._pinned
            self._forget(kept.popitem(last=False)[0])
            free += 1
        table = self._tables[number]
        behind = table[-1].index + 1 if table else 0
        for index in self._places(count, spare, behind):
            self._taken[index] = 1
            table.append(Block(index, number))
        self._in_use += count

    def _places(self, count: int, spare: int, behind: int) -> list[int]:
        if behind and not any(self._taken[behind : behind + count]) and behind + count <= self.blocks:
            return list(range(behind, behind + count))
        for room in (count + spare, count):
            if (start := self._taken.find(bytes(room))) >= 0:
                return list(range(start, start + count))
        return [index for index, taken in enumerate(self._taken) if not taken][:count]
