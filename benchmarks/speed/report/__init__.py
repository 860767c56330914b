"""The blocks of tables that ``benchmarks.report`` writes of what ``python -m benchmarks.speed`` measured.

Every number, name and date comes from files of results. ``tables`` shows those of a CPU, ``scaling`` how cost grows,
``fills`` sequences of different lengths, ``gpu`` those of a GPU.
"""

MALLOC = {
    "resident": "malloc told to keep what is freed, in huge pages: least noise, kindest to code that allocates a lot",
    "default": "malloc as it is by default",
}
