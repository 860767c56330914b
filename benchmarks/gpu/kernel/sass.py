"""The machine code of a kernel: instructions, loops, and the composition of a time step.

``parse`` reads the output of ``cuobjdump -sass`` or ``nvdisasm``. ``loops`` finds loops in the graph of jumps, where
a loop is a set of instructions each of which leads back to each other; removing the jumps back to its first
instructions leaves the loops inside it. So code that the compiler moved behind the jump back still belongs to its loop.

A time step multiplies, waits for other threads and writes results: ``time_loop`` is the innermost loop that does all
three. Loops around it run tiles of sequences; a loop inside it either writes no results (the product and its segments)
or waits for nobody (work done unit by unit). Counts are of the code, each instruction of the loop once, however often
loops inside it run; loops that only poll are omitted. ``role`` counts the instructions that one warp executes.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

# Kinds of instructions in display order, each with the prefixes of its opcodes.
KINDS = {
    "mma": r"[HDIQ]G?MMA\b",
    "multiply-add": r"(FFMA|DFMA)",
    "ldmatrix": r"LDSM\b",
    "LDS": r"LDS\b",
    "STS": r"(STS|STSM)\b",
    "LDG": r"LDG?\b",
    "STG": r"(STG?|STAS)\b",
    "cp.async": r"(LDGSTS|UBLKCP)\b",
    "atomic": r"(RED|ATOM)",
    "BAR": r"BAR\b",
    "mbarrier": r"SYNCS\b",
    "MUFU": r"MUFU\b",
    "S2R": r"S2U?R\b",
    "local memory": r"(LDL|STL)\b",
    "integer division": r"I2F(\.U32|\.U64|\.S64)?\.RP\b",
    "call": r"CALL\b",
    "jump": r"(BRA|BRX|JMP|JMX)\b",
}
PRODUCTS = ("mma", "multiply-add")
STOPS = ("EXIT", "RET", "BRX", "JMX", "KILL")  # the next instruction does not follow them
# An instruction as both programs print it; a label of nvdisasm; the name of a function, as either has it.
LINE = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>!?U?P[T\d]+)\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
    r"|^(?P<label>\.L_\w+):|^\s*Function\s*:\s*(?P<function>\S+)|^\.text\.(?P<section>\S+):",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str  # with its modifiers
    operands: str
    conditional: bool  # has a predicate
    target: int | None = None  # of a jump

    @property
    def kind(self) -> str | None:
        return next((kind for kind, pattern in KINDS.items() if re.match(pattern, self.opcode)), None)

    @property
    def waits(self) -> bool:
        """Whether it waits for other threads, or reads memory that they change: a barrier or an uncached load."""
        return self.kind in ("BAR", "mbarrier") or (self.kind == "LDG" and "STRONG" in self.opcode)


@dataclass(frozen=True)
class Loop:
    header: int  # address of its first instruction
    body: frozenset[int]  # addresses, those of loops inside it included
    inner: tuple["Loop", ...] = ()

    def __iter__(self) -> Iterator["Loop"]:
        """Yield this loop, then all loops inside it."""
        yield self
        for loop in self.inner:
            yield from loop


@dataclass
class Count:
    """The composition of a loop."""

    instructions: int
    kinds: dict[str, int]
    loops: int  # inside it
    polls: int  # loops inside it that are omitted


def parse(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function, in the order of their addresses."""
    found: dict[str, list[re.Match]] = {}
    labels: dict[str, dict[str, int]] = {}
    function, waiting = "", []
    for line in LINE.finditer(text):
        if line["function"] or line["section"]:
            function = line["function"] or line["section"]
            found[function], labels[function] = [], {}
        elif line["label"]:
            waiting.append(line["label"])
        else:
            address = int(line["address"], 16)
            labels.setdefault(function, {}).update(dict.fromkeys(waiting, address))
            waiting = []
            found.setdefault(function, []).append(line)
    return {name: [_instruction(line, labels[name]) for line in lines] for name, lines in found.items()}


def _instruction(line: re.Match, labels: dict[str, int]) -> Instruction:
    opcode, operands, target = line["opcode"], line["operands"].strip(), None
    if opcode.startswith(("BRA", "JMP")):
        last = operands.rsplit(",", 1)[-1].split()[-1].strip("`()")
        target = labels[last] if last in labels else int(last, 16)
    conditional = line["predicate"] not in (None, "PT", "UPT")
    # a condition may also stand before the target: BRA P0, 0x100; BRA.U UP0, 0x100; BRA.DIV UR4, 0x100
    return Instruction(int(line["address"], 16), opcode, operands, conditional or "," in operands, target)


def successors(instructions: list[Instruction]) -> dict[int, list[int]]:
    """Return the possible successors of each instruction. Calls return; jumps to an address in a register end."""
    following: dict[int, list[int]] = {}
    for instruction, after in zip(instructions, [*instructions[1:], None]):
        leaves = instruction.target is not None or instruction.opcode.split(".")[0] in STOPS
        following[instruction.address] = [] if instruction.target is None else [instruction.target]
        if after and (instruction.conditional or not leaves):
            following[instruction.address].append(after.address)
    return following


def loops(instructions: list[Instruction]) -> tuple[Loop, ...]:
    """Return the outermost loops, with those inside them."""
    following = successors(instructions)
    return _loops(set(following), following) if following else ()


def _loops(nodes: set[int], following: dict[int, list[int]]) -> tuple[Loop, ...]:
    found = []
    for component in _components(nodes, following):
        if len(component) == 1 and not component & set(following[min(component)]):
            continue
        entered = {to for node in nodes - component for to in following[node] if to in component}
        headers = entered or {min(component)}
        without_return = {node: [to for to in following[node] if to not in headers] for node in component}
        found.append(Loop(min(headers), frozenset(component), _loops(component, without_return)))
    return tuple(sorted(found, key=lambda loop: loop.header))


def _components(nodes: Collection[int], following: dict[int, list[int]]) -> list[set[int]]:
    """The strongly connected components (Tarjan 1972), without recursion, because code is long."""
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    found: list[set[int]] = []
    on_stack: set[int] = set()
    for start in nodes:
        path = [(start, iter(following[start]))] if start not in number else []
        while path:
            node, rest = path[-1]
            if node not in number:
                number[node] = lowest[node] = len(number)
                stack.append(node)
                on_stack.add(node)
            after = next((to for to in rest if to in following and (to not in number or to in on_stack)), None)
            if after is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == number[node]:
                    cut = stack.index(node)
                    found.append(set(stack[cut:]))
                    on_stack -= found[-1]
                    del stack[cut:]
            elif after not in number:
                path.append((after, iter(following[after])))
            else:
                lowest[node] = min(lowest[node], number[after])
    return found


def time_loop(instructions: list[Instruction]) -> Loop | None:
    """Return the loop over time steps, as this module's head defines it; of several, the one with most products."""
    kinds = [instruction.kind for instruction in instructions]
    product = next((kind for kind in PRODUCTS if kind in kinds), None)
    at = {instruction.address: kind for instruction, kind in zip(instructions, kinds)}
    return max(step_loops(instructions), key=lambda loop: sum(at[a] == product for a in loop.body), default=None)


def step_loops(instructions: list[Instruction]) -> list[Loop]:
    """Return all loops over time steps: a kernel may have one for calls with options, and another for those without."""
    kinds = {instruction.address: instruction.kind for instruction in instructions}
    waits = {instruction.address for instruction in instructions if instruction.waits}
    product = next((kind for kind in PRODUCTS if kind in kinds.values()), None)

    def is_step(loop: Loop) -> bool:
        found = {kinds[address] for address in loop.body}
        return {product, "STG"} <= found and bool(waits & loop.body)

    steps = [loop for outer in loops(instructions) for loop in outer if is_step(loop)]
    return [loop for loop in steps if not any(is_step(inner) for inner in loop.inner)]


def count(instructions: list[Instruction], loop: Loop) -> Count:
    """Count the instructions of a loop by kind, without the loops in it that only poll."""
    at = {instruction.address: instruction for instruction in instructions}
    inside = [each for each in loop if each is not loop]
    polling = [each for each in inside if _polls([at[address] for address in each.body])]
    left_out = {address for each in polling for address in each.body}
    counted = [at[address] for address in loop.body - left_out]
    return Count(len(counted), kinds(counted), len(inside) - len(polling), len(polling))


def kinds(instructions: Iterable[Instruction]) -> dict[str, int]:
    """Count the instructions of each kind; some have none."""
    found = Counter(instruction.kind for instruction in instructions)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def inside(instructions: list[Instruction], loop: Loop) -> list[Instruction]:
    """Return all instructions of a loop, including those of loops inside it."""
    return [instruction for instruction in instructions if instruction.address in loop.body]


def special_registers(instructions: Iterable[Instruction]) -> set[str]:
    """Return the special registers that are read: of threads and blocks (SR_TID.X, SR_CTAID.X), clocks and so on."""
    readers = (each for each in instructions if re.match(r"(CS2|S2U?)R\b", each.opcode))
    return {register for each in readers for register in re.findall(r"SR_[\w.]+", each.operands)}


def rare(instruction: Instruction) -> bool:
    """Whether an instruction is rarely executed in a warp kernel whose values travel in rows of 16 bytes.

    Such instructions read the clock, which bounds long waits, or move a single value of device memory.
    """
    single = instruction.kind in ("LDG", "STG") and re.search(r"\.[US](8|16)\b", instruction.opcode)
    return bool(single or "SR_CLOCK" in instruction.operands)


@dataclass(frozen=True)
class _Way:
    """A path from an instruction of a loop to the jump back."""

    avoided: int = 0
    work: int = 0
    path: tuple[Instruction, ...] = ()
    loops: tuple[tuple[Instruction, ...], ...] = ()

    def __lt__(self, other: "_Way") -> bool:
        return (-self.avoided, self.work, -len(self.path)) < (-other.avoided, other.work, -len(other.path))


Chosen = Callable[[Instruction], bool]


def role(
    instructions: list[Instruction],
    loop: Loop,
    avoided: Chosen = rare,
    work: Chosen = lambda instruction: True,
) -> Count:
    """Return the instructions that a warp executes in one iteration of a loop, without the loops inside it.

    Warps with different roles take different paths through a loop, and none executes all of it. The result is the
    longest of all paths from the loop's first instruction back to it; or, if ``work`` is not every instruction, the
    shortest one with most ``work``, which omits options of a call, because they do no such work. It passes as few
    ``avoided`` instructions as possible. Predicated-off instructions count, because they are executed, too; so do a few
    instructions around the loops inside it, but not these loops themselves, however often they run: polling, and work
    done value by value.
    """
    at, following = {each.address: each for each in instructions}, successors(instructions)
    entries = {to for node in following.keys() - loop.body for to in following[node] if to in loop.body} | {loop.header}
    onward = {node: [to for to in following[node] if to in loop.body - entries] for node in loop.body}
    best: dict[int, _Way] = {}
    for component in _components(loop.body, onward):  # each after all that it leads to
        code = tuple(at[node] for node in sorted(component))
        after = [best[to] for node in component for to in onward[node] if to in best]
        after += [_Way() for node in component if entries.intersection(following[node])]
        if after:  # otherwise it only leaves the loop
            way = max(after)
            skipped = way.avoided + sum(map(avoided, code))
            if len(code) > 1 or code[0].address in onward[code[0].address]:
                way = _Way(skipped, way.work, way.path, (code, *way.loops))
            else:
                way = _Way(skipped, way.work + work(code[0]), (*code, *way.path), way.loops)
            best |= dict.fromkeys(component, way)
    way = best[loop.header]
    polls = sum(map(_polls, way.loops))
    return Count(len(way.path), kinds(way.path), len(way.loops) - polls, polls)


def _polls(body: Collection[Instruction]) -> bool:
    """Whether a loop only polls memory until other threads change it."""
    looks = {"LDG", "mbarrier", "jump", "S2R", None}
    return any(each.waits for each in body) and all(each.kind in looks for each in body)
