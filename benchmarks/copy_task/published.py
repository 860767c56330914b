"""The block of benchmarks/copy_task/README.md on how far back a cell recalls, for ``benchmarks.report``.

Every number comes from a results.json of ``python -m benchmarks.copy_task``, of ``--longest`` or ``--compare``, kept as
benchmarks/results/copy-*.json.
"""

from argparse import Namespace

from .options import task_of
from .report import longest_solved, markdown, table
from .summary import summarise


def block(results: list[dict]) -> str:
    """Make one section per file of results, or one sentence without results."""
    return "\n\n".join(section(result) for result in results) if results else "No run has been recorded yet."


def section(result: dict) -> str:
    """State the task, the machine and the solved lengths, and show the table of all trials."""
    task, rows = task_of(Namespace(**result["configuration"])), summarise(result["trials"])
    headings, *lines = table(rows, task)
    return "\n\n".join([preamble(result), longest_solved(rows), markdown(headings, lines).rstrip("\n")])


def preamble(result: dict) -> str:
    asked, machine = result["configuration"], result["hardware"]
    minutes, processes = asked["minutes"], asked.get("processes", 1)
    most = f"{asked['epochs']} epochs" if minutes is None else f"{minutes:g} minutes of training"
    together = f", {processes} trials side by side" if processes > 1 else ""
    return (
        f"{asked['symbols']} symbols out of {asked['vocabulary']} to recall, the length being the delay; "
        f"H={asked['hidden']}, at most {most} for each{together}; {machine['cpu']}, "
        f"{machine['threads']} of {machine['cores']} cores, GPU {machine['gpu']}, torch {machine['torch']}, fused_rnn "
        f"{machine['fused_rnn']}, backend `{asked['backend']}`, seed {asked['seed']}."
    )
