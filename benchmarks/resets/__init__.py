"""What episodes within sequences cost, and what the ways around them do: ``python -m benchmarks.resets``.

``cases`` says what is measured: how many of all steps begin an episode, and the ways to run them, ours and those that
people use with torch.nn. ``check`` says whether a way computes what it should, ``measuring`` times all of them in a
process of its own, ``__main__`` starts that and writes the results, ``report`` makes what is shown of them.
"""
